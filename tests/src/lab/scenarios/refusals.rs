//! What cannot be done is said: what was tried, on what, why, and what to do; and nothing stays open or bound.

use crate::lab::devices::Kind;
use crate::lab::in_guest::{Delivery, Guest};
use crate::lab::{Context, Need, Scenario};
use pollvisor::assign::Via;
use pollvisor::devices::{Host, bind, unbind};
use pollvisor::error::{Error, Result};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "refusals: bad input",
        needs: &[Need::Kvm, Need::Igb, Need::Edu, Need::Ivshmem],
        run: bad_input,
    },
    Scenario {
        name: "refusals: another driver, another process",
        needs: &[Need::Kvm, Need::Igb],
        run: taken,
    },
    Scenario { name: "refusals: no permission", needs: &[Need::Kvm, Need::Igb], run: permission },
    Scenario { name: "refusals: a group that is not viable", needs: &[Need::Kvm, Need::Group], run: group },
    Scenario { name: "refusals: beyond the vectors", needs: &[Need::Kvm, Need::Igb], run: beyond },
    Scenario { name: "without an IOMMU", needs: &[Need::NoIommu, Need::Kvm], run: no_iommu },
];

pub(super) fn run(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new("./pollvisor");
    let output = command.args(arguments).stdin(Stdio::null()).output();
    output.map_err(|e| Error::os("starting ./pollvisor", &e))
}

/// It ends with 1 and says all of `texts` on stderr, nothing on stdout, and panics not.
pub(super) fn refused(output: &Output, texts: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    let missing: Vec<_> = texts.iter().filter(|text| !said.contains(**text)).collect();
    if output.status.code() != Some(1)
        || !missing.is_empty()
        || said.contains("panicked")
        || !output.stdout.is_empty()
    {
        return Err(Error::new(format!("{}; without {missing:?}: {said}", output.status)));
    }
    Ok(())
}

/// And the device is as it was.
fn works(address: &str) -> Result<()> {
    let output = run(&[
        "devices",
        "test",
        address,
        "-D",
        "100ms",
        "-i",
        "1ms",
        "--warm-up",
        "0",
        "--delivery",
        "irqfd",
    ])?;
    if !output.status.success() {
        return Err(Error::new(format!("afterwards: {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(())
}

fn bad_input(context: &mut Context) -> Result<()> {
    let [igb, edu, ivshmem] = [Need::Igb, Need::Edu, Need::Ivshmem].map(|need| context.address(need));
    let (igb, edu, ivshmem) = (igb?.to_string(), edu?.to_string(), ivshmem?.to_string());
    let test = |address: &str, more: &[&str]| run(&[&["devices", "test", address][..], more].concat());
    refused(&test("0000:ff:1f.7", &[])?, &["no PCI function 0000:ff:1f.7", "ENODEV", "devices list"])?;
    refused(&test("00:00.9", &[])?, &["not a PCI address"])?;
    refused(&test(&ivshmem, &[])?, &[&ivshmem, "no interrupt"])?;
    refused(&test(&edu, &["--interrupt", "msix"])?, &[&edu, "no MSI-X", "--interrupt auto"])?;
    refused(&test(&igb, &["--vectors", "11"])?, &["10 MSI-X vectors, not 11"])?;
    refused(&test(&igb, &["--source", "doorbell"])?, &["eventfds, not doorbells"])?;
    refused(&run(&["devices", "test", &igb, &igb])?, &["given twice"])?;
    let line = ["--interrupt", "intx", "--delivery", "irqfd", "--irqchip", "split"];
    refused(&test(&igb, &line)?, &["no INTx"])?;
    refused(&test(&igb, &["--cpus", "boot=0"])?, &["vCPU"])?;
    refused(&test(&igb, &["--poller", "cpu=1,vectors=[nic0:0]"])?, &["no --device is called nic0"])?;
    let ten = format!("cpu=1,vectors=[{igb}:10]");
    refused(&test(&igb, &["--poller", &ten])?, &["has no vector 10, only 10"])?;
    for device in [
        "path=/nowhere",
        "host=xx",
        "host=01:00.0,what=1",
        "path=/sys/bus/pci/devices/0000:01:00.0,iommufd=maybe",
    ] {
        refused(&run(&["run", "--device", device])?, &["--device"])?;
    }
    if !std::path::Path::new("/dev/iommu").exists() {
        let device = format!("host={igb},iommufd=on");
        refused(&run(&["run", "--device", &device])?, &["iommufd=on", "CONFIG_VFIO_DEVICE_CDEV"])?;
    }
    works(&igb)?;
    works(&edu)
}

fn taken(context: &mut Context) -> Result<()> {
    let (host, address) = (Host::default(), context.address(Need::Igb)?);
    let name = address.to_string();
    unbind(&host, address)?;
    let driver = unbind(&host, address)?.now.unwrap_or_else(|| "no driver".into());
    refused(&run(&["devices", "test", &name])?, &[&name, &driver, "not vfio-pci", "pollvisor devices bind"])?;
    bind(&host, address)?;
    let mut other = Command::new("./pollvisor")
        .args(["devices", "test", &name, "-D", "60s", "--delivery", "irqfd", "--json"])
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| Error::os("starting ./pollvisor", &e))?;
    std::thread::sleep(Duration::from_millis(700));
    let second = run(&["devices", "test", &name]);
    let stopped = other.kill().and_then(|()| other.wait()).map_err(|e| Error::os("stopping ./pollvisor", &e));
    refused(&second?, &["EBUSY", "try:"])?;
    stopped?;
    works(&name)
}

/// As somebody who may use KVM, and not this group.
fn permission(context: &mut Context) -> Result<()> {
    const NOBODY: u32 = 65534;
    let name = context.address(Need::Igb)?.to_string();
    let mode = |mode| std::fs::set_permissions("/dev/kvm", std::fs::Permissions::from_mode(mode));
    mode(0o666).map_err(|e| Error::os("opening /dev/kvm to all", &e))?;
    let mut command = Command::new("./pollvisor");
    let output =
        command.args(["devices", "test", &name]).stdin(Stdio::null()).uid(NOBODY).gid(NOBODY).output();
    let output = output.map_err(|e| Error::os("starting ./pollvisor", &e))?;
    mode(0o600).map_err(|e| Error::os("closing /dev/kvm", &e))?;
    refused(&output, &["/dev/vfio/", "EACCES", "try:"])?;
    works(&name)
}

/// Two functions of one slot, one of them with the host's driver.
fn group(_: &mut Context) -> Result<()> {
    // The chipset's: its disk controller and its SMBus share a group.
    let (host, disks) = (Host::default(), "0000:00:1f.2");
    let address = "0000:00:1f.3".parse().map_err(Error::new)?;
    let loaded = Command::new("modprobe").arg("ahci").status().map_err(|e| Error::os("modprobe ahci", &e))?;
    if !loaded.success() {
        return Err(Error::new("modprobe ahci failed"));
    }
    bind(&host, address)?;
    let output = run(&["devices", "test", "0000:00:1f.3"])?;
    refused(&output, &["not viable", disks, "ahci", "pollvisor devices bind"])?;
    let listed = run(&["devices", "list"])?;
    let said = String::from_utf8_lossy(&listed.stderr).into_owned();
    if !said.contains(disks) {
        return Err(Error::new(format!("the list does not say what is in the way: {said}")));
    }
    unbind(&host, address).map(drop)
}

fn beyond(context: &mut Context) -> Result<()> {
    let mut guest = Guest::start(Delivery::Polled, Kind::Msix)?;
    let via = guest.via(Delivery::Polled, 0)?;
    let device = guest.attach(context, Need::Igb, (Kind::Msix, 4), via.clone(), false)?;
    let mut device = device.ok_or_else(|| Error::new("igb has no MSI-X"))?;
    let told = |error: Error, text: &str| {
        let good = error.to_string().contains(text);
        if good { Ok(()) } else { Err(Error::new(format!("`{text}` is not in: {error}"))) }
    };
    for vector in [10, 64, u32::MAX - 1, u32::MAX] {
        let error = device.assigned.fire(vector).err();
        told(error.ok_or_else(|| Error::new(format!("vector {vector} fired")))?, "EINVAL")?;
    }
    for via in [Via::Kernel, via] {
        let error = device.assigned.hand_over(99, via).err();
        told(error.ok_or_else(|| Error::new("vector 99 was handed over"))?, "no vector 99")?;
    }
    // The guest's own: an entry beyond the table is registers, or nothing.
    let driver = guest.session.driver(&device.assigned);
    driver.mask(10, false)?;
    driver.mask(127, false)?;
    guest.raise(&mut device, 3)?;
    guest.session.stop()
}

fn no_iommu(_: &mut Context) -> Result<()> {
    let name = std::env::var("IGB").map_err(|_| Error::new("$IGB is not set"))?;
    refused(&run(&["devices", "test", &name])?, &[&name, "IOMMU", "try:"])?;
    let bound = run(&["devices", "bind", &name])?;
    refused(&bound, &[&name, "IOMMU"])
}
