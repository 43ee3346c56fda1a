//! A machine made of files, for tests.

use super::{Host, config, sysfs};
use std::path::{Path, PathBuf};

pub(super) struct Fixture {
    root: tempfile::TempDir,
    pub(super) host: Host,
}

impl Fixture {
    /// A machine with a PCI bus, the drivers vfio-pci, igb and nvme, nothing mounted and no routes.
    pub(super) fn new() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        // Without links of its own: what is canonical is compared.
        let path = root.path().canonicalize().expect("the folder");
        let host = Host { sys: path.join("sys"), proc: path.join("proc"), dev: path.join("dev") };
        let fixture = Self { root, host };
        fixture.folder("sys/bus/pci/devices");
        for driver in ["vfio-pci", "igb", "nvme"] {
            fixture.file(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
        }
        fixture.file("sys/bus/pci/drivers_probe", "");
        fixture.file("proc/self/mountinfo", "1 1 0:2 / / rw - rootfs rootfs rw\n");
        fixture.file("proc/net/route", "Iface\tDestination\tGateway\tFlags\n");
        fixture
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.path().canonicalize().expect("the folder").join(path)
    }

    pub(super) fn folder(&self, path: &str) -> PathBuf {
        let path = self.path(path);
        std::fs::create_dir_all(&path).expect("a folder");
        path
    }

    pub(super) fn file(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, bytes).expect("a file");
    }

    pub(super) fn link(&self, path: &str, target: &Path) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        let _none = std::fs::remove_file(&path);
        std::os::unix::fs::symlink(target, path).expect("a link");
    }

    /// A PCI function; where it is, below the root.
    pub(super) fn pci(&self, address: &str, class: u32, driver: Option<&str>, group: Option<u32>) -> String {
        let at = format!("sys/devices/pci0000:00/{address}");
        let node = self.folder(&at);
        self.file(&format!("{at}/vendor"), "0x8086\n");
        self.file(&format!("{at}/device"), "0x10c9\n");
        self.file(&format!("{at}/class"), format!("{class:#08x}\n"));
        self.file(&format!("{at}/numa_node"), "-1\n");
        self.file(&format!("{at}/driver_override"), "(null)\n");
        let mut space = config::tests::space(&[(0x11, 9)]);
        space[0x0e] = u8::from(class >> 8 == 0x0604);
        self.file(&format!("{at}/config"), space);
        self.link(&format!("sys/bus/pci/devices/{address}"), &node);
        if let Some(driver) = driver {
            self.drive(&at, Some(driver));
        }
        if let Some(group) = group {
            let groups = format!("sys/kernel/iommu_groups/{group}");
            self.link(&format!("{groups}/devices/{address}"), &node);
            self.link(&format!("{at}/iommu_group"), &self.path(&groups));
        }
        at
    }

    /// Gives a function a driver, or takes it.
    pub(super) fn drive(&self, at: &str, driver: Option<&str>) {
        let _none = std::fs::remove_file(self.path(at).join("driver"));
        if let Some(driver) = driver {
            self.link(&format!("{at}/driver"), &self.folder(&format!("sys/bus/pci/drivers/{driver}")));
        }
    }

    /// A block device at `at` below the root.
    pub(super) fn block(&self, at: &str, number: &str) {
        let node = self.folder(at);
        self.file(&format!("{at}/dev"), format!("{number}\n"));
        let name = node.file_name().and_then(|name| name.to_str()).expect("a name");
        self.link(&format!("sys/class/block/{name}"), &node);
    }

    /// A network interface at `at` below the root.
    pub(super) fn net(&self, at: &str) {
        let node = self.folder(at);
        let name = node.file_name().and_then(|name| name.to_str()).expect("a name");
        self.link(&format!("sys/class/net/{name}"), &node);
    }

    /// What stands in an attribute.
    pub(super) fn read(&self, path: &str) -> String {
        sysfs::read(self.path(path)).unwrap_or_else(|| panic!("no {path}"))
    }
}
