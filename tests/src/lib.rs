//! Fixtures shared by the tests and models.

#[cfg(not(loom))]
pub mod differential;
#[cfg(loom)]
pub mod model;
#[cfg(not(loom))]
pub mod rig;
