//! What this host offers for assigned devices: asked of the VFIO container, as far as the machine report needs it.

use super::ioctl::{self, VFIO_CHECK_EXTENSION, VFIO_GET_API_VERSION};
use std::os::fd::AsFd;
use vfio_bindings::bindings::vfio::{VFIO_API_VERSION, VFIO_TYPE1_IOMMU, VFIO_TYPE1v2_IOMMU};

/// Whether PCI devices can be assigned on this host, in a few words for the machine report.
#[must_use]
pub fn describe() -> &'static str {
    let container = match std::fs::File::options().read(true).write(true).open("/dev/vfio/vfio") {
        Ok(container) => container,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return "absent",
        Err(_) => return "no permission for /dev/vfio/vfio",
    };
    let version = ioctl::value(container.as_fd(), &VFIO_GET_API_VERSION, 0).ok();
    if version.and_then(|v| u32::try_from(v).ok()) != Some(VFIO_API_VERSION) {
        return "unknown API version";
    }
    let has = |kind: u32| {
        ioctl::value(container.as_fd(), &VFIO_CHECK_EXTENSION, kind as usize).is_ok_and(|v| v > 0)
    };
    if has(VFIO_TYPE1v2_IOMMU) {
        "type1v2"
    } else if has(VFIO_TYPE1_IOMMU) {
        "type1"
    } else {
        "no IOMMU driver"
    }
}
