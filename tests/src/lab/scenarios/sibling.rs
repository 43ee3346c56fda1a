//! Another device of the same IOMMU group gets a driver of the host's, while the guest has ours.
//!
//! Linux refuses that since 5.18 (`iommu_device_use_default_domain`), but to drivers that manage their DMA themselves. The
//! lab brings one that does and is none of VFIO's.

use crate::lab::devices::Kind;
use crate::lab::in_guest::{Delivery, Guest};
use crate::lab::{Context, Need, Scenario};
use pollvisor::assign::News;
use pollvisor::cli::{DeviceAddress, DeviceArg};
use pollvisor::devices::{Host, bind, unbind};
use pollvisor::error::{Error, Result};
use pollvisor::pci::Bdf;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "sibling: a host driver joins the group in use",
    needs: &[Need::Kvm, Need::Group, Need::Igb, Need::Sibling],
    run: joins,
}];

/// The chipset's disk controller and its SMBus, which are in one group.
const DISKS: &str = "0000:00:1f.2";
const BUS: &str = "0000:00:1f.3";
/// How long the news may take.
const SOON: Duration = Duration::from_secs(5);

fn joins(context: &mut Context) -> Result<()> {
    let (host, address) = (Host::default(), BUS.parse::<Bdf>().map_err(Error::new)?);
    modprobe("ahci")?;
    give(DISKS, None)?;
    bind(&host, address)?;
    let mut guest = Guest::start(Delivery::Polled, Kind::Msix)?;
    let via = guest.via(Delivery::Polled, 0)?;
    // One of another group, to see that it stays.
    let igb = guest.attach(context, Need::Igb, (Kind::Msix, 4), via.clone(), false)?;
    let mut igb = igb.ok_or_else(|| Error::new("igb has no MSI-X"))?;
    let mut ours = DeviceArg::from(DeviceAddress::Pci(address));
    ours.iommufd = Some(false);
    drop(guest.session.attach(&ours, via.clone())?);

    // An ordinary driver the kernel keeps out; nobody hears of it, and nothing happens.
    match give(DISKS, Some("ahci")) {
        Err(error) if error.errno() == Some(libc::EBUSY) => {}
        answer => return Err(Error::new(format!("ahci beside a device in use: {answer:?}"))),
    }
    // VFIO's own may join.
    give(DISKS, Some("vfio-pci"))?;
    sleep(Duration::from_millis(200));
    let news = guest.session.fleet()?.news();
    if !news.is_empty() || guest.session.fleet()?.devices().len() != 2 {
        return Err(Error::new(format!("a sibling that is safe: {news:?}")));
    }

    modprobe(Need::Sibling.name())?;
    give(DISKS, Some(Need::Sibling.name()))?;
    let (began, mut news) = (Instant::now(), Vec::new());
    while news.is_empty() && began.elapsed() < SOON {
        sleep(Duration::from_millis(1));
        news = guest.session.fleet()?.news();
    }
    context.note(format!("after {} ms: {news:?}", began.elapsed().as_millis()));
    let expected = News::Unsafe { name: BUS.to_string(), sibling: DISKS.to_string() };
    if news != [expected] || guest.session.fleet()?.devices().len() != 1 {
        return Err(Error::new(format!("a sibling with a driver of the host's: {news:?}")));
    }
    guest.raise(&mut igb, 2)?;

    // And not again before that driver has gone.
    match guest.session.attach(&ours, via.clone()) {
        Err(error) if error.to_string().contains("not viable") => {}
        answer => return Err(Error::new(format!("attached beside it again: {answer:?}"))),
    }
    give(DISKS, None)?;
    drop(guest.session.attach(&ours, via)?);
    guest.raise(&mut igb, 3)?;
    drop(igb);
    if !guest.session.fleet()?.is_consistent() {
        return Err(Error::new("what is counted of groups is not what is open"));
    }
    guest.session.stop()?;
    unbind(&host, address).map(drop)
}

fn modprobe(module: &str) -> Result<()> {
    let status = Command::new("modprobe").arg(module).status();
    let status = status.map_err(|e| Error::os(format!("modprobe {module}"), &e))?;
    if status.success() { Ok(()) } else { Err(Error::new(format!("modprobe {module} failed"))) }
}

/// Takes a device's driver away, and gives it another one.
fn give(device: &str, driver: Option<&str>) -> Result<()> {
    let folder = format!("/sys/bus/pci/devices/{device}");
    let write = |path: String, text: &str| {
        fs::write(&path, text).map_err(|e| Error::os(format!("writing {text} to {path}"), &e))
    };
    if fs::exists(format!("{folder}/driver")).unwrap_or(false) {
        write(format!("{folder}/driver/unbind"), device)?;
    }
    // An empty line: no override.
    write(format!("{folder}/driver_override"), driver.unwrap_or("\n"))?;
    match driver {
        Some(driver) => write(format!("/sys/bus/pci/drivers/{driver}/bind"), device),
        None => Ok(()),
    }
}
