//! VFIO's objects: one method per ioctl, plain structs out, no policy.
//!
//! By group: a [`Container`] holds the I/O address space, a [`Group`] joins it and gives out its [`Device`]s. By
//! character device: [`Device::open_cdev`], bound to an [`Iommufd`](super::iommufd::Iommufd) that holds the address
//! space.

pub mod chain;
mod container;
mod device;
mod dma;
mod group;
mod irq;

pub use chain::{Area, IommuInfo, IovaRange, RegionInfo};
pub use container::Container;
pub use device::{Device, DeviceInfo};
pub use dma::{DmaAccess, host_range};
pub use group::{Group, GroupStatus};
pub use irq::{IrqAction, IrqData, IrqInfo, SetIrqs};

use vfio_bindings::bindings::vfio::{VFIO_TYPE1_IOMMU, VFIO_TYPE1v2_IOMMU};

/// Whether PCI devices can be assigned on this host, in a few words for the machine report.
#[must_use]
pub fn describe() -> &'static str {
    let container = match Container::open() {
        Ok(container) => container,
        Err(error) => {
            return match error.errno() {
                Some(libc::ENOENT | libc::ENODEV) => "absent",
                Some(_) => "no permission for /dev/vfio/vfio",
                None => "unknown API version",
            };
        }
    };
    if container.has(VFIO_TYPE1v2_IOMMU) {
        "type1v2"
    } else if container.has(VFIO_TYPE1_IOMMU) {
        "type1"
    } else {
        "no IOMMU driver"
    }
}
