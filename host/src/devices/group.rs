//! IOMMU groups: what the IOMMU cannot tell apart, and so can only be given away together.

use super::{Host, sysfs};
use crate::pci::Bdf;
use serde::{Serialize, Serializer, ser::SerializeStruct};
use std::fmt;
use std::path::Path;

/// A PCI class code: class, subclass, programming interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class(pub u32);

impl Class {
    /// Whether it is a bridge from PCI to PCI, which passes its children's DMA and does none of its own.
    #[must_use]
    pub fn is_pci_bridge(self) -> bool {
        self.0 >> 8 == 0x0604
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 >> 16, self.0 >> 8 & 0xff) {
            (0x01, 0x08) => f.write_str("NVMe"),
            (0x01, _) => f.write_str("storage"),
            (0x02, _) => f.write_str("network"),
            (0x03, 0x00) => f.write_str("VGA"),
            (0x06, _) => f.write_str("bridge"),
            (0x0c, 0x03) => f.write_str("USB"),
            _ => write!(f, "{:04x}", self.0 >> 8),
        }
    }
}

impl Serialize for Class {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut class = serializer.serialize_struct("Class", 2)?;
        class.serialize_field("code", &format!("{:#08x}", self.0))?;
        class.serialize_field("name", &self.to_string())?;
        class.end()
    }
}

/// A device of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its name on its bus: for PCI the address.
    pub name: String,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its class, of a PCI function.
    pub class: Option<Class>,
    /// Whether it is a mediated device. Whatever its driver is called, it is VFIO's.
    #[serde(skip)]
    pub mediated: bool,
}

impl Member {
    /// Its PCI address, if it is a PCI function.
    #[must_use]
    pub fn address(&self) -> Option<Bdf> {
        self.class.and(self.name.parse().ok())
    }

    /// Whether a user of the group is safe from it: it has no driver, or one that leaves its DMA to that user
    /// (`driver_managed_dma` in the kernel: VFIO's own, pci-stub, and pcieport of a bridge).
    #[must_use]
    pub fn is_viable(&self) -> bool {
        match self.driver.as_deref() {
            None | Some("pci-stub") => true,
            Some("pcieport") => self.class.is_some_and(Class::is_pci_bridge),
            Some(driver) => self.mediated || is_vfio(driver),
        }
    }
}

/// Whether a driver is VFIO's: vfio-pci or a variant of it, such as mlx5_vfio_pci.
pub(super) fn is_vfio(driver: &str) -> bool {
    driver.split(['-', '_']).any(|part| part == "vfio")
}

/// The devices of an IOMMU group, by name; none when there is no such group.
#[must_use]
pub fn members(host: &Host, group: u32) -> Vec<Member> {
    let folder = host.sys.join(format!("kernel/iommu_groups/{group}/devices"));
    let member = |name: String| {
        let node = folder.join(&name);
        let mediated = sysfs::link_name(node.join("subsystem")).as_deref() == Some("mdev");
        Member { driver: driver(&node), class: class(&node), mediated, name }
    };
    sysfs::names(&folder).into_iter().map(member).collect()
}

/// The driver of a device, by its node in sysfs.
pub(super) fn driver(node: &Path) -> Option<String> {
    sysfs::link_name(node.join("driver"))
}

/// The class of a device, by its node in sysfs.
pub(super) fn class(node: &Path) -> Option<Class> {
    sysfs::hex(node.join("class")).map(Class)
}

/// The IOMMU group of a device, by its node in sysfs.
pub(super) fn group(node: &Path) -> Option<u32> {
    sysfs::link_name(node.join("iommu_group"))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    #[test]
    fn classes_have_short_names() {
        for (code, name) in [
            (0x01_0802, "NVMe"),
            (0x01_0601, "storage"),
            (0x02_0000, "network"),
            (0x03_0000, "VGA"),
            (0x06_0400, "bridge"),
            (0x0c_0330, "USB"),
            (0x0c_0500, "0c05"),
        ] {
            assert_eq!(Class(code).to_string(), name);
        }
    }

    #[test]
    fn viable_members() {
        let fixture = Fixture::new();
        for (address, class, driver, viable) in [
            ("0000:00:01.0", 0x06_0400, Some("pcieport"), true),
            ("0000:00:02.0", 0x06_0400, None, true),
            ("0000:01:00.0", 0x02_0000, None, true),
            ("0000:01:00.1", 0x02_0000, Some("vfio-pci"), true),
            ("0000:01:00.2", 0x02_0000, Some("mlx5_vfio_pci"), true),
            ("0000:01:00.3", 0x0c_0500, Some("pci-stub"), true),
            ("0000:01:00.4", 0x02_0000, Some("igb"), false),
            ("0000:01:00.5", 0x02_0000, Some("pcieport"), false),
            ("0000:01:00.6", 0x06_0400, Some("shpchp"), false),
        ] {
            fixture.pci(address, class, driver, Some(7));
            let members = members(&fixture.host, 7);
            let member = members.iter().find(|member| member.name == address).expect(address);
            assert_eq!(member.driver.as_deref(), driver);
            assert_eq!(member.address(), address.parse().ok());
            assert_eq!(member.is_viable(), viable, "{address}");
        }
        assert_eq!(members(&fixture.host, 7).len(), 9);
        let node = fixture.folder("sys/devices/virtual/mtty/mtty/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001");
        fixture.link("sys/kernel/iommu_groups/9/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", &node);
        std::os::unix::fs::symlink(fixture.folder("sys/bus/mdev/drivers/mtty"), node.join("driver"))
            .expect("a link");
        assert!(!super::members(&fixture.host, 9)[0].is_viable(), "a driver that nobody knows");
        std::os::unix::fs::symlink(fixture.folder("sys/bus/mdev"), node.join("subsystem")).expect("a link");
        assert!(super::members(&fixture.host, 9)[0].is_viable());
        assert!(members(&fixture.host, 8).is_empty());
    }
}
