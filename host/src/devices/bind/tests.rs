use super::super::fixture::Fixture;
use super::*;
use std::io::Error as IoError;

const NIC: &str = "0000:01:00.0";

/// The kernel's part of it: the driver core's, for one function.
struct Kernel<'a> {
    fixture: &'a Fixture,
    at: &'a str,
    /// The host driver that matches it.
    native: Option<&'a str>,
    /// Whether vfio-pci's probe succeeds.
    vfio_works: bool,
    /// The attribute that cannot be written, and the error.
    fails: Option<(&'a str, i32)>,
    log: Vec<String>,
}

impl<'a> Kernel<'a> {
    fn new(fixture: &'a Fixture, at: &'a str) -> Self {
        Self { fixture, at, native: Some("igb"), vfio_works: true, fails: None, log: Vec::new() }
    }

    fn write(&mut self, path: &Path, text: &str) -> std::io::Result<()> {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        self.log.push(format!("{name}={}", text.trim_end()));
        if let Some((fails, errno)) = self.fails
            && fails == name
        {
            return Err(IoError::from_raw_os_error(errno));
        }
        sysfs::write(path, text)?;
        match name {
            "unbind" => self.fixture.drive(self.at, None),
            "drivers_probe" if driver(&self.fixture.path(self.at)).is_none() => {
                match self.fixture.read(&format!("{}/driver_override", self.at)).as_str() {
                    "vfio-pci" if self.vfio_works => self.fixture.drive(self.at, Some("vfio-pci")),
                    "" | "(null)" => self.fixture.drive(self.at, self.native),
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn bind(&mut self) -> Result<Rebound> {
        let host = &self.fixture.host;
        bind_with(host, NIC.parse().expect("an address"), &mut |path, text| self.write(path, text))
    }

    fn unbind(&mut self) -> Result<Rebound> {
        let host = &self.fixture.host;
        unbind_with(host, NIC.parse().expect("an address"), &mut |path, text| self.write(path, text))
    }
}

fn nic(driver: Option<&str>) -> (Fixture, String) {
    let fixture = Fixture::new();
    let at = fixture.pci(NIC, 0x02_0000, driver, Some(7));
    (fixture, at)
}

fn rebound(before: Option<&str>, now: Option<&str>) -> Rebound {
    let text = |driver: Option<&str>| driver.map(ToString::to_string);
    Rebound { address: NIC.parse().expect("an address"), before: text(before), now: text(now) }
}

#[test]
fn there_and_back() {
    let (fixture, at) = nic(Some("igb"));
    let mut kernel = Kernel::new(&fixture, &at);
    assert_eq!(kernel.bind(), Ok(rebound(Some("igb"), Some("vfio-pci"))));
    assert_eq!(kernel.log, ["driver_override=vfio-pci", "unbind=0000:01:00.0", "drivers_probe=0000:01:00.0"]);
    assert_eq!(kernel.bind(), Ok(rebound(Some("vfio-pci"), Some("vfio-pci"))));
    assert_eq!(kernel.log.len(), 3, "bound already: nothing is written");
    assert_eq!(kernel.unbind(), Ok(rebound(Some("vfio-pci"), Some("igb"))));
    assert_eq!(fixture.read(&format!("{at}/driver_override")), "");
    kernel.log.clear();
    assert_eq!(kernel.unbind(), Ok(rebound(Some("igb"), Some("igb"))));
    assert!(kernel.log.is_empty(), "a host driver has it: nothing is written");
}

#[test]
fn without_drivers() {
    let (fixture, at) = nic(None);
    let mut kernel = Kernel::new(&fixture, &at);
    kernel.native = None;
    assert_eq!(kernel.bind(), Ok(rebound(None, Some("vfio-pci"))));
    assert_eq!(kernel.log.len(), 2, "nothing to unbind from");
    assert_eq!(kernel.unbind(), Ok(rebound(Some("vfio-pci"), None)));
}

#[test]
fn what_fails_half_way_is_undone() {
    let (fixture, at) = nic(Some("igb"));
    let mut kernel = Kernel::new(&fixture, &at);
    kernel.vfio_works = false;
    let error = kernel.bind().expect_err("its probe fails").to_string();
    for word in ["did not take it", "undone, its driver is igb", "dmesg"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(fixture.read(&format!("{at}/driver_override")), "");
    kernel.vfio_works = true;
    for (fails, errno, name, now) in [
        ("unbind", libc::EIO, "EIO", "(undone, its driver is igb)"),
        ("drivers_probe", libc::ENODEV, "ENODEV", "(not undone, it has no driver now)"),
    ] {
        fixture.drive(&at, Some("igb"));
        kernel.fails = Some((fails, errno));
        let error = kernel.bind().expect_err(fails);
        assert_eq!(error.errno(), Some(errno));
        let error = error.to_string();
        assert!(error.contains(name) && error.contains(fails) && error.contains(now), "{error}");
        assert_eq!(fixture.read(&format!("{at}/driver_override")), "");
    }
}

#[test]
fn without_permission_nothing_is_tried() {
    let (fixture, at) = nic(Some("igb"));
    let mut kernel = Kernel::new(&fixture, &at);
    kernel.fails = Some(("driver_override", libc::EACCES));
    let error = kernel.bind().expect_err("EACCES");
    assert_eq!(error.errno(), Some(libc::EACCES));
    assert!(error.to_string().contains(NIC) && error.to_string().contains("root"), "{error}");
    assert_eq!(kernel.log, ["driver_override=vfio-pci"]);
}

#[test]
fn what_cannot_be_unbound_says_who_has_it() {
    let (fixture, at) = nic(Some("vfio-pci"));
    let mut kernel = Kernel::new(&fixture, &at);
    kernel.fails = Some(("unbind", libc::EPERM));
    let error = kernel.unbind().expect_err("EPERM");
    assert_eq!(error.errno(), Some(libc::EPERM));
    assert!(error.to_string().contains("its driver is vfio-pci"), "{error}");
}

#[test]
fn an_earlier_override_is_put_back() {
    let (fixture, at) = nic(Some("igb"));
    fixture.file(&format!("{at}/driver_override"), "igb\n");
    let mut kernel = Kernel::new(&fixture, &at);
    kernel.vfio_works = false;
    kernel.bind().expect_err("its probe fails");
    assert_eq!(fixture.read(&format!("{at}/driver_override")), "igb");
}

/// Refused with these words, and nothing written.
fn refused(fixture: &Fixture, at: &str, words: &[&str]) {
    let mut kernel = Kernel::new(fixture, at);
    let error = kernel.bind().expect_err("to be refused").to_string();
    assert!(kernel.log.is_empty(), "{:?}", kernel.log);
    for word in words {
        assert!(error.contains(word), "no `{word}` in: {error}");
    }
}

#[test]
fn what_the_host_uses_is_refused() {
    let (fixture, at) = nic(Some("igb"));
    fixture.net(&format!("{at}/net/eth0"));
    let route = "Iface Destination Gateway Flags RefCnt Use Metric Mask\neth0 00000000 0100000A 0003 0 0 0 00000000\n";
    fixture.file("proc/net/route", route);
    refused(&fixture, &at, &["refusing", "default route", "eth0", "try:", "cannot be forced"]);
    fixture.file("proc/net/route", "");
    fixture.block(&format!("{at}/block/sda"), "8:0");
    fixture.block(&format!("{at}/block/sda/sda1"), "8:1");
    fixture.file("proc/self/mountinfo", "1 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
    refused(&fixture, &at, &["refusing", "sda1, mounted at /", "umount"]);
    std::fs::remove_file(fixture.path("proc/self/mountinfo")).expect("the file");
    refused(&fixture, &at, &["mountinfo", "ENOENT"]);
}

#[test]
fn what_vfio_cannot_take_is_refused() {
    let (fixture, at) = nic(Some("igb"));
    fixture.file(&format!("{at}/sriov_totalvfs"), "7\n");
    fixture.file(&format!("{at}/sriov_numvfs"), "1\n");
    refused(&fixture, &at, &["virtual functions", "echo 0 >"]);
    fixture.file(&format!("{at}/sriov_numvfs"), "0\n");
    std::fs::remove_dir_all(fixture.path("sys/bus/pci/drivers/vfio-pci")).expect("the driver");
    refused(&fixture, &at, &["vfio-pci is not loaded", "modprobe vfio-pci"]);
    let bridge = fixture.pci(NIC, 0x06_0400, Some("pcieport"), Some(7));
    refused(&fixture, &bridge, &["is a bridge"]);
    let error = bind(&fixture.host, "0f:00.0".parse().expect("an address")).expect_err("nothing there");
    assert_eq!(error.errno(), Some(libc::ENODEV));
}
