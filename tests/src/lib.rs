//! Fixtures shared by the tests and models.

#[cfg(loom)]
pub mod model;
#[cfg(not(loom))]
pub mod rig;
