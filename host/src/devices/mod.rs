//! The host's PCI functions and mediated devices, administered over sysfs: what is there, what stands in the way of
//! assigning it, binding to vfio-pci and back, the CPUs of its interrupts, and news of it from the kernel.
//!
//! * [`list()`], [`members`] what is there · [`bind()`], [`unbind`] who drives it · [`mdev`] mediated devices
//! * [`vfio_path`] which file opens it · [`affinity`] where its interrupts go · [`Uevents`] what changes
//!
//! Nothing here opens a device or keeps state: each call reads the kernel's files anew.

pub mod affinity;
mod bind;
pub mod command;
mod config;
#[cfg(test)]
mod fixture;
mod group;
mod in_use;
mod list;
pub mod mdev;
mod obstacle;
mod paths;
mod sysfs;
mod uevent;

pub use bind::{Rebound, bind, unbind};
pub use group::{Class, Member, members};
pub use list::{PciDevice, Sriov, list};
pub use obstacle::Obstacle;
pub use paths::{DeviceAddress, VfioPaths, is_registered, vfio_path};
pub use uevent::{Action, Heard, Uevent, Uevents, last as last_uevent, parse as parse_uevent};

use std::path::PathBuf;

/// Where the kernel shows itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// sysfs.
    pub sys: PathBuf,
    /// procfs.
    pub proc: PathBuf,
    /// The device nodes.
    pub dev: PathBuf,
}

impl Default for Host {
    /// This machine.
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into(), dev: "/dev".into() }
    }
}
