//! Which file opens a device for VFIO.

use super::{Host, group, sysfs};
use crate::error::{Error, Result};
use crate::pci::Bdf;
use pollvisor_core::mediated::Uuid;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// What a device to assign is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceAddress {
    /// A PCI function.
    Pci(Bdf),
    /// A mediated device.
    Mdev(Uuid),
}

impl DeviceAddress {
    /// Its node in sysfs.
    #[must_use]
    pub fn node(self, host: &Host) -> PathBuf {
        let bus = match self {
            Self::Pci(_) => "pci",
            Self::Mdev(_) => "mdev",
        };
        host.sys.join(format!("bus/{bus}/devices/{self}"))
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(address) => address.fmt(f),
            Self::Mdev(uuid) => uuid.fmt(f),
        }
    }
}

impl From<Bdf> for DeviceAddress {
    fn from(address: Bdf) -> Self {
        Self::Pci(address)
    }
}

impl From<Uuid> for DeviceAddress {
    fn from(uuid: Uuid) -> Self {
        Self::Mdev(uuid)
    }
}

/// The ways to open a device that a VFIO driver has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VfioPaths {
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// Its own node, `/dev/vfio/devices/vfioN`, where the kernel has such (`CONFIG_VFIO_DEVICE_CDEV`).
    pub cdev: Option<PathBuf>,
    /// Whether no IOMMU confines it (`enable_unsafe_noiommu_mode`).
    pub noiommu: bool,
}

impl VfioPaths {
    /// The group's node, `/dev/vfio/N` or `/dev/vfio/noiommu-N`.
    #[must_use]
    pub fn group_node(&self, host: &Host) -> Option<PathBuf> {
        let prefix = if self.noiommu { "noiommu-" } else { "" };
        Some(host.dev.join(format!("vfio/{prefix}{}", self.group?)))
    }
}

/// Where VFIO shows a device.
///
/// # Errors
/// ENODEV when there is no such device. One that no VFIO driver has is no error: its `cdev` is `None`.
pub fn vfio_path(host: &Host, address: impl Into<DeviceAddress>) -> Result<VfioPaths> {
    let address = address.into();
    let node = address.node(host);
    if !node.is_dir() {
        return Err(missing(address));
    }
    let group = group::group(&node);
    // The folder is there without the character device as well; `dev` is not.
    let name = sysfs::names(node.join("vfio-dev"))
        .into_iter()
        .find(|name| name.trim_start_matches("noiommu-").starts_with("vfio"));
    let has_cdev = |name: &&String| node.join("vfio-dev").join(name).join("dev").exists();
    // The group of a mediated device has that name as well (`vfio_noiommu_group_alloc`): what its DMA reaches is its parent's
    // driver's business.
    let is_mediated = matches!(address, DeviceAddress::Mdev(_));
    let group_name = sysfs::read(node.join("iommu_group/name")).filter(|_| !is_mediated);
    Ok(VfioPaths {
        group,
        cdev: name.as_ref().filter(has_cdev).map(|name| host.dev.join("vfio/devices").join(name)),
        noiommu: group_name.as_deref() == Some("vfio-noiommu")
            || name.is_some_and(|name| name.starts_with("noiommu-")),
    })
}

/// Whether VFIO shows a device of its own for this one, as it does since Linux 6.1 until its driver lets go
/// (`vfio_unregister_group_dev`).
#[must_use]
pub fn is_registered(host: &Host, address: DeviceAddress) -> bool {
    !sysfs::names(address.node(host).join("vfio-dev")).is_empty()
}

/// There is no such device.
pub(super) fn missing(address: DeviceAddress) -> Error {
    let (what, remedy) = match address {
        DeviceAddress::Pci(_) => ("PCI function", "`pollvisor devices list` shows what is there"),
        DeviceAddress::Mdev(_) => ("mediated device", "`pollvisor mdev list` shows what is there"),
    };
    let errno = std::io::Error::from_raw_os_error(libc::ENODEV);
    Error::os(format!("there is no {what} {address}"), &errno).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    #[test]
    fn groups_and_character_devices() {
        let fixture = Fixture::new();
        let host = &fixture.host;
        let at = fixture.pci("0000:01:00.0", 0x02_0000, Some("vfio-pci"), Some(7));
        let address: Bdf = "01:00.0".parse().expect("an address");
        let expected = VfioPaths { group: Some(7), cdev: None, noiommu: false };
        assert!(!is_registered(host, address.into()));
        fixture.folder(&format!("{at}/vfio-dev/vfio3"));
        assert!(is_registered(host, address.into()));
        assert_eq!(vfio_path(host, address), Ok(expected.clone()));
        assert_eq!(expected.group_node(host), Some(host.dev.join("vfio/7")));
        fixture.file(&format!("{at}/vfio-dev/vfio3/dev"), "511:0\n");
        let cdev = Some(host.dev.join("vfio/devices/vfio3"));
        assert_eq!(vfio_path(host, address), Ok(VfioPaths { cdev, ..expected }));
    }

    #[test]
    fn without_an_iommu() {
        let fixture = Fixture::new();
        fixture.pci("0000:01:00.0", 0x02_0000, Some("igb"), None);
        let address: Bdf = "01:00.0".parse().expect("an address");
        let none = VfioPaths { group: None, cdev: None, noiommu: false };
        assert_eq!(vfio_path(&fixture.host, address), Ok(none));
        fixture.pci("0000:02:00.0", 0x02_0000, Some("vfio-pci"), Some(0));
        fixture.file("sys/kernel/iommu_groups/0/name", "vfio-noiommu\n");
        let address: Bdf = "02:00.0".parse().expect("an address");
        let paths = vfio_path(&fixture.host, address).expect("paths");
        assert!(paths.noiommu);
        assert_eq!(paths.group_node(&fixture.host), Some(fixture.host.dev.join("vfio/noiommu-0")));
    }

    #[test]
    fn mediated_devices_and_none_at_all() {
        let fixture = Fixture::new();
        let text = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
        let uuid: Uuid = text.parse().expect("a UUID");
        let error = vfio_path(&fixture.host, uuid).expect_err("nothing there");
        assert_eq!(error.errno(), Some(libc::ENODEV));
        fixture.link(&format!("sys/bus/mdev/devices/{text}"), &fixture.folder("sys/devices/virtual/mtty/x"));
        fixture.link("sys/devices/virtual/mtty/x/iommu_group", &fixture.folder("sys/kernel/iommu_groups/9"));
        fixture.file("sys/kernel/iommu_groups/9/name", "vfio-noiommu\n");
        let paths = VfioPaths { group: Some(9), cdev: None, noiommu: false };
        assert_eq!(vfio_path(&fixture.host, uuid), Ok(paths));
    }
}
