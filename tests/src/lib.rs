//! Fixtures.

#[cfg(not(loom))]
pub mod fuzz;
#[cfg(loom)]
pub mod model;
pub mod races;
