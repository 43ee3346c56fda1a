//! Fixtures.
#[cfg(not(loom))]
pub mod differential;
