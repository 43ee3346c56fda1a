//! Fixtures.

#[cfg(loom)]
pub mod model;
