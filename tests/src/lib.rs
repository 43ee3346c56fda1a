//! Fixtures shared by the tests and models.

#[cfg(not(loom))]
pub mod differential;
#[cfg(not(loom))]
pub mod fuzz;
#[cfg(not(loom))]
pub mod lab;
#[cfg(loom)]
pub mod model;
#[cfg(not(loom))]
pub mod note;
#[cfg(not(loom))]
pub mod pci;
pub mod races;
#[cfg(not(loom))]
pub mod rig;
#[cfg(not(loom))]
pub mod scribble;
