//! Every PCI function of the host, and whether it can be assigned.

use super::config::Config;
use super::in_use::InUse;
use super::obstacle::{self, Candidate, Obstacle};
use super::{Class, DeviceAddress, Host, Member, VfioPaths, group, members, paths, sysfs, vfio_path};
use crate::error::{Error, Result};
use crate::pci::Bdf;
use serde::{Serialize, Serializer};
use std::path::Path;

/// A PCI function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PciDevice {
    /// Its address.
    #[serde(serialize_with = "text")]
    pub address: Bdf,
    /// Its vendor's number.
    #[serde(serialize_with = "number")]
    pub vendor: u16,
    /// Its device number.
    #[serde(serialize_with = "number")]
    pub device: u16,
    /// What it is.
    pub class: Class,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group and its files.
    pub vfio: VfioPaths,
    /// The other devices of its IOMMU group.
    pub group_members: Vec<Member>,
    /// The NUMA node it is near to.
    pub numa_node: Option<u32>,
    /// MSI-X vectors, 0 to 2048; `None`: unknown, the kernel shows an ordinary user 64 bytes of the configuration.
    pub msix_vectors: Option<u16>,
    /// MSI vectors, 0 to 32; `None`: unknown.
    pub msi_vectors: Option<u16>,
    /// The pin: 0 none, 1 to 4 for INTA to INTD; `None`: unknown.
    pub intx_pin: Option<u8>,
    /// Its SR-IOV virtual functions, where it can have such.
    pub sriov: Option<Sriov>,
    /// What is in the way of assigning it; nothing: it can be.
    pub obstacles: Vec<Obstacle>,
}

/// SR-IOV virtual functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sriov {
    /// How many there are.
    pub enabled: u16,
    /// How many there can be.
    pub total: u16,
}

impl PciDevice {
    /// Whether it can be given to a guest as it is.
    ///
    /// # Errors
    /// What is in the way.
    pub fn assignable(&self) -> std::result::Result<(), &[Obstacle]> {
        if self.obstacles.is_empty() { Ok(()) } else { Err(&self.obstacles) }
    }
}

fn text<S: Serializer>(value: &Bdf, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn number<S: Serializer>(value: &u16, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:#06x}"))
}

/// The PCI functions of the host, by address.
///
/// # Errors
/// Without a PCI bus, or when what is mounted cannot be read.
pub fn list(host: &Host) -> Result<Vec<PciDevice>> {
    let bus = host.sys.join("bus/pci/devices");
    std::fs::read_dir(&bus).map_err(|e| {
        Error::os(format!("reading {}", bus.display()), &e)
            .remedy("this needs a machine with PCI and sysfs mounted at /sys")
    })?;
    let in_use = InUse::read(host)?;
    let addresses = sysfs::names(&bus).into_iter().filter_map(|name| name.parse::<Bdf>().ok());
    // One that goes meanwhile is left out.
    Ok(addresses.filter_map(|address| device(host, address, &in_use)).collect())
}

fn device(host: &Host, address: Bdf, in_use: &InUse) -> Option<PciDevice> {
    let node = node(host, address).ok()?;
    let id = |name: &str| u16::try_from(sysfs::hex(node.join(name))?).ok();
    let class = group::class(&node)?;
    let config = Config::read(&node);
    let driver = group::driver(&node);
    let vfio = vfio_path(host, address).ok()?;
    let name = address.to_string();
    let mut others = vfio.group.map(|group| members(host, group)).unwrap_or_default();
    others.retain(|member| member.name != name);
    let candidate = Candidate {
        address,
        node: &node,
        driver: driver.as_deref(),
        is_bridge: obstacle::is_bridge(&config, Some(class)),
        paths: &vfio,
        others: &others,
    };
    Some(PciDevice {
        obstacles: obstacle::obstacles(host, &candidate, in_use),
        address,
        vendor: id("vendor")?,
        device: id("device")?,
        class,
        driver,
        vfio,
        group_members: others,
        numa_node: sysfs::number(node.join("numa_node")),
        msix_vectors: config.msix,
        msi_vectors: config.msi,
        intx_pin: config.pin,
        sriov: sriov(&node),
    })
}

/// The virtual functions of a function that can have such.
pub(super) fn sriov(node: &Path) -> Option<Sriov> {
    let total = sysfs::number(node.join("sriov_totalvfs"))?;
    Some(Sriov { enabled: sysfs::number(node.join("sriov_numvfs"))?, total })
}

/// A function's node, without links.
pub(super) fn node(host: &Host, address: Bdf) -> Result<std::path::PathBuf> {
    let address = DeviceAddress::Pci(address);
    address.node(host).canonicalize().map_err(|_| paths::missing(address))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    fn find(fixture: &Fixture, address: &str) -> PciDevice {
        let devices = list(&fixture.host).expect("a list");
        devices.into_iter().find(|d| d.address.to_string() == address).expect(address)
    }

    fn in_the_way(device: &PciDevice) -> Vec<(&str, &str)> {
        device.obstacles.iter().map(|o| (o.what.as_str(), o.remedy.as_str())).collect()
    }

    /// A NIC of two functions behind a root port, all in group 7, and the group's node.
    fn nic(first: Option<&str>, second: Option<&str>) -> Fixture {
        let fixture = Fixture::new();
        fixture.pci("0000:00:01.0", 0x06_0400, Some("pcieport"), Some(7));
        let at = fixture.pci("0000:01:00.0", 0x02_0000, first, Some(7));
        fixture.file(&format!("{at}/numa_node"), "1\n");
        fixture.file(&format!("{at}/sriov_totalvfs"), "7\n");
        fixture.file(&format!("{at}/sriov_numvfs"), "2\n");
        fixture.pci("0000:01:00.1", 0x02_0000, second, Some(7));
        fixture.file("dev/vfio/7", "");
        fixture.file("dev/vfio/vfio", "");
        fixture
    }

    #[test]
    fn all_of_a_function() {
        let fixture = nic(Some("vfio-pci"), None);
        let device = find(&fixture, "0000:01:00.0");
        assert_eq!((device.vendor, device.device, device.class), (0x8086, 0x10c9, Class(0x02_0000)));
        assert_eq!((device.driver.as_deref(), device.vfio.group), (Some("vfio-pci"), Some(7)));
        let others: Vec<_> = device.group_members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(others, ["0000:00:01.0", "0000:01:00.1"]);
        assert_eq!((device.numa_node, device.sriov), (Some(1), Some(Sriov { enabled: 2, total: 7 })));
        assert_eq!((device.msix_vectors, device.msi_vectors, device.intx_pin), (Some(10), Some(0), Some(1)));
        assert_eq!(device.assignable(), Ok(()));
        let second = find(&fixture, "0000:01:00.1");
        assert_eq!((second.numa_node, second.sriov), (None, None));
        let json = serde_json::to_value(&device).expect("JSON");
        assert_eq!((&json["address"], &json["vendor"]), (&"0000:01:00.0".into(), &"0x8086".into()));
        assert_eq!(json["class"], serde_json::json!({ "code": "0x020000", "name": "network" }));
    }

    #[test]
    fn a_group_is_viable_only_without_host_drivers() {
        let fixture = nic(Some("vfio-pci"), Some("igb"));
        let wanted =
            ("0000:01:00.1 of its IOMMU group is driven by igb", "pollvisor devices bind 0000:01:00.1");
        assert_eq!(in_the_way(&find(&fixture, "0000:01:00.0")), [wanted]);
        assert_eq!(
            in_the_way(&find(&fixture, "0000:01:00.1")),
            [("igb has it, and vfio-pci has to", "pollvisor devices bind 0000:01:00.1")]
        );
        assert_eq!(
            in_the_way(&find(&fixture, "0000:00:01.0")),
            [("it is a bridge", "assign the devices behind it")]
        );
    }

    #[test]
    fn what_else_is_in_the_way() {
        let fixture = nic(None, None);
        assert_eq!(find(&fixture, "0000:01:00.0").obstacles[0].what, "no driver has it, and vfio-pci has to");
        fixture.pci("0000:02:00.0", 0x01_0802, Some("vfio-pci"), None);
        let device = find(&fixture, "0000:02:00.0");
        assert_eq!(device.obstacles.len(), 1);
        assert!(device.obstacles[0].what.contains("no IOMMU group"));
        assert!(device.obstacles[0].remedy.contains("intel_iommu=on"));
        let at = fixture.pci("0000:03:00.0", 0x01_0802, Some("nvme"), Some(8));
        fixture.block(&format!("{at}/nvme/nvme1/nvme1n1"), "259:4");
        fixture.file("proc/self/mountinfo", "1 1 259:4 / / rw - ext4 /dev/nvme1n1 rw\n");
        let device = find(&fixture, "0000:03:00.0");
        assert_eq!(device.obstacles[0].what, "it carries nvme1n1, mounted at /");
        assert_eq!(device.obstacles.len(), 2);
    }

    #[test]
    fn the_nodes_have_to_be_there() {
        let fixture = nic(Some("vfio-pci"), None);
        std::fs::remove_file(fixture.path("dev/vfio/7")).expect("the node");
        let device = find(&fixture, "0000:01:00.0");
        assert!(device.obstacles[0].what.starts_with("there is no ") && device.obstacles.len() == 1);
        // The function's own node with iommufd does as well.
        fixture.file("sys/devices/pci0000:00/0000:01:00.0/vfio-dev/vfio0/dev", "511:0\n");
        fixture.file("dev/vfio/devices/vfio0", "");
        fixture.file("dev/iommu", "");
        assert_eq!(find(&fixture, "0000:01:00.0").assignable(), Ok(()));
    }

    #[test]
    fn a_short_or_missing_configuration_is_unknown() {
        let fixture = nic(None, None);
        let config = fixture.path("sys/devices/pci0000:00/0000:01:00.0/config");
        let whole = std::fs::read(&config).expect("the file");
        std::fs::write(&config, &whole[..64]).expect("the file");
        let device = find(&fixture, "0000:01:00.0");
        assert_eq!((device.msix_vectors, device.msi_vectors, device.intx_pin), (None, None, Some(1)));
        std::fs::remove_file(&config).expect("the file");
        assert_eq!(find(&fixture, "0000:01:00.0").intx_pin, None);
    }

    #[test]
    fn no_pci_at_all() {
        let fixture = Fixture::new();
        std::fs::remove_dir(fixture.path("sys/bus/pci/devices")).expect("the folder");
        assert_eq!(list(&fixture.host).expect_err("no bus").errno(), Some(libc::ENOENT));
    }
}
