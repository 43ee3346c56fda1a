//! Mediated devices of a real parent driver, the kernel's sample mtty: made and removed by the command, in the guest, and while
//! both come and go.

mod command;
mod life;
mod linux;

use crate::lab::devices::{Access, Device, Kind, Mtty};
use crate::lab::in_guest::{Delivery, Guest, InGuest};
use crate::lab::{Context, Need, Scenario};
use pollvisor::assign::{Irqs, Opener, Vector, Via};
use pollvisor::devices::{DeviceAddress, Host, mdev};
use pollvisor::error::{Error, Result};
use pollvisor::sys::vfio::{self, RegionInfo};
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::line;
use pollvisor_core::mediated::Uuid;
use pollvisor_core::route::Msi;
use pollvisor_core::teardown::device::Opened;
use std::convert::Infallible;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "mdev: by the command", needs: &[Need::Mtty], run: command::made_and_removed },
    Scenario { name: "mdev: refusals", needs: &[Need::Mtty, Need::Kvm], run: command::refusals },
    Scenario { name: "mdev: pollvisor run --device", needs: &[Need::Mtty, Need::Kvm], run: command::runs },
    Scenario { name: "mdev: guest: INTx", needs: &[Need::Mtty, Need::Kvm], run: |c| line(c, false) },
    Scenario {
        name: "cdev: mdev: guest: INTx",
        needs: &[Need::Mtty, Need::Iommufd, Need::Kvm],
        run: |c| line(c, true),
    },
    Scenario { name: "mdev: guest: MSI", needs: &[Need::Mtty, Need::Kvm], run: |c| message(c, false) },
    Scenario {
        name: "cdev: mdev: guest: MSI",
        needs: &[Need::Mtty, Need::Iommufd, Need::Kvm],
        run: |c| message(c, true),
    },
    Scenario {
        name: "mdev: guest: two beside a PCI device",
        needs: &[Need::Mtty, Need::Kvm, Need::Igb],
        run: |c| beside(c, false),
    },
    Scenario {
        name: "cdev: mdev: guest: two beside a PCI device",
        needs: &[Need::Mtty, Need::Iommufd, Need::Kvm, Need::Igb],
        run: |c| beside(c, true),
    },
    Scenario {
        name: "mdev: removed while it runs",
        needs: &[Need::Mtty, Need::Kvm],
        run: |c| life::removed(c, false),
    },
    Scenario {
        name: "cdev: mdev: removed while it runs",
        needs: &[Need::Mtty, Need::Iommufd, Need::Kvm],
        run: |c| life::removed(c, true),
    },
    Scenario {
        name: "mdev: the parent's module while a guest has one",
        needs: &[Need::Mtty, Need::Kvm],
        run: life::module_in_use,
    },
    Scenario {
        name: "mdev: made and removed while the parent comes and goes",
        needs: &[Need::Mtty],
        run: life::against_the_parent,
    },
    Scenario {
        name: "linux: mtty, polled",
        needs: linux::NEEDS,
        run: |c| linux::talks(c, "polled", "split"),
    },
    Scenario { name: "linux: mtty, irqfd", needs: linux::NEEDS, run: |c| linux::talks(c, "irqfd", "kernel") },
];

/// Raises by each way.
const RAISES: u64 = 200;
const PATIENCE: Duration = Duration::from_secs(5);
const PARENT: &str = "mtty";
/// One port; what the parent has 24 of.
const ONE: &str = "mtty-1";
/// Two ports.
const TWO: &str = "mtty-2";

/// Whether the parent is there afterwards, loaded or unloaded.
fn modprobe(arguments: &[&str]) -> Result<bool> {
    // Its status says nothing: with -r the lab's tries the modules that this one needs too, and fails as they are in use.
    Command::new("modprobe").args(arguments).output().map_err(|e| Error::os("starting modprobe", &e))?;
    Ok(Path::new("/sys/class/mdev_bus/mtty").exists())
}

fn load() -> Result<()> {
    if modprobe(&[PARENT])? { Ok(()) } else { Err(Error::new("mtty was not loaded")) }
}

/// False: it is in use.
fn unload() -> Result<bool> {
    modprobe(&["-r", PARENT]).map(|there| !there)
}

/// A parent with nothing made yet, whatever ran before.
fn fresh() -> Result<Host> {
    let unloaded = unload()?;
    load()?;
    if !unloaded || available(&Host::default(), ONE) != Some(24) {
        return Err(Error::new("there is no fresh parent mtty"));
    }
    Ok(Host::default())
}

fn available(host: &Host, kind: &str) -> Option<u32> {
    mdev::types(host).into_iter().find(|offer| offer.id == kind)?.available
}

fn made(host: &Host) -> Result<Uuid> {
    mdev::create(host, PARENT, ONE, None)
}

/// Removes one, and all is as [`fresh`] left it.
fn removed(host: &Host, uuids: &[Uuid]) -> Result<()> {
    for uuid in uuids {
        mdev::remove(host, &uuid.to_string())?;
    }
    let left = (mdev::devices(host), available(host, ONE));
    if left == (Vec::new(), Some(24)) { Ok(()) } else { Err(Error::new(format!("left behind: {left:?}"))) }
}

fn until(what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !done()? {
        if began.elapsed() > PATIENCE {
            return Err(Error::new(format!("{what}: not within {PATIENCE:?}")));
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// One in the guest, its line set up.
fn attached(guest: &mut Guest, uuid: Uuid, via: Via, iommufd: bool) -> Result<InGuest> {
    let device = guest.attach_at(uuid.into(), (Kind::Intx, 1), via, iommufd)?;
    device.ok_or_else(|| Error::new("mtty has no INTx"))
}

/// Raises its line, by all three causes in turn, and waits until it is unmasked again: what it would raise before that, it
/// loses.
fn raised(guest: &Guest, device: &mut InGuest) -> Result<()> {
    let unmasked = device.assigned.unmasked()?;
    guest.raise(device, 0)?;
    let assigned = &device.assigned;
    until("unmasking its line", || Ok(assigned.unmasked()? > unmasked))
}

/// Exactly so many handlers ran, and all was counted that is.
fn exact(guest: &Guest, device: &mut InGuest, delivery: Delivery, before: u64) -> Result<()> {
    std::thread::sleep(Duration::from_millis(50));
    let ran = guest.handled(device).iter().sum::<u64>() - before;
    let counted = guest.ledger(device);
    // The kernel's irqfd counts nothing; the handlers do.
    let delivered = if delivery == Delivery::Irqfd { 0 } else { RAISES };
    if ran == RAISES && counted == (Outcome { delivered, ..Outcome::default() }) {
        return Ok(());
    }
    Err(Error::new(format!("{delivery:?}: {RAISES} raised, {ran} handlers ran, counted {counted:?}")))
}

/// The guest's driver finds a serial port, and every interrupt of it arrives.
fn line(context: &mut Context, iommufd: bool) -> Result<()> {
    let host = fresh()?;
    for delivery in [Delivery::Polled, Delivery::Irqfd, Delivery::Blocking] {
        let (uuid, began) = (made(&host)?, Instant::now());
        let mut guest = Guest::start(delivery, Kind::Intx)?;
        let via = guest.via(delivery, 0)?;
        for kind in [Kind::Msix, Kind::Msi] {
            if guest.attach_at(uuid.into(), (kind, 1), via.clone(), iommufd)?.is_some() {
                return Err(Error::new(format!("the guest finds {kind:?} in mtty's configuration space")));
            }
            for device in guest.session.fleet()?.devices() {
                guest.session.fleet()?.detach(&device)?;
            }
        }
        let mut device = attached(&mut guest, uuid, via, iommufd)?;
        let before = guest.handled(&device).iter().sum();
        for n in 0..RAISES {
            raised(&guest, &mut device).map_err(|e| e.context(format!("{delivery:?}, raise {n}")))?;
        }
        exact(&guest, &mut device, delivery, before)?;
        drop(device);
        guest.session.stop()?;
        let took = began.elapsed().as_secs_f64();
        context.note(format!("{delivery:?}: {RAISES} on its line, by three causes, {took:.2} s"));
        removed(&host, &[uuid])?;
    }
    Ok(())
}

/// Its registers by VFIO alone.
struct Registers {
    device: Arc<vfio::Device>,
    region: RegionInfo,
}

impl Access for Registers {
    fn read(&mut self, _bar: u8, offset: u64, size: u8) -> u64 {
        let mut data = [0; 8];
        self.device.read(&self.region, offset, &mut data[..size.into()]).expect("a register is read");
        u64::from_le_bytes(data)
    }

    fn write(&mut self, _bar: u8, offset: u64, size: u8, value: u64) {
        let data = value.to_le_bytes();
        self.device.write(&self.region, offset, &data[..size.into()]).expect("a register is written");
    }

    fn read_memory(&mut self, _: u64, _: &mut [u8]) {}

    fn write_memory(&mut self, _: u64, _: &[u8]) {}
}

/// It has no capability by which a guest could set MSI up: what an assigned device does then is done here, down to the guest's
/// handler.
fn message(context: &mut Context, iommufd: bool) -> Result<()> {
    let host = fresh()?;
    for delivery in [Delivery::Polled, Delivery::Irqfd, Delivery::Blocking] {
        let (uuid, began) = (made(&host)?, Instant::now());
        let mut guest = Guest::start(delivery, Kind::Msi)?;
        let (vcpu, gate) = guest.session.gates(1)?[0];
        let parts = guest.session.platform()?.parts().clone();
        let gsis = parts.routes.allocate(1)?;
        let slot = parts.routes.slot(gsis[0]);
        let mut vector = Vector::new(gsis[0], slot, guest.via(delivery, 0)?)?;
        parts.routes.set(&[(gsis[0], Some(Msi::fixed(vcpu.0, gate)))])?;
        vector.bind(&parts)?;

        let opener = Opener::without_memory(host.clone(), parts.vm.clone());
        let (device, opening) = opener.open(DeviceAddress::Mdev(uuid), Some(iommufd))?;
        let device = Arc::new(device);
        let mut irqs = Irqs::new(device.clone())?;
        irqs.enable(line::Kind::Msi, &[vector.event().clone()])?;
        let (mut driver, region) = (Mtty::new(), device.region(0)?);
        let mut registers = Registers { device, region };
        driver.set_up(&mut registers, Kind::Msi, 0)?;
        let handled = || guest.session.guest().handled(vcpu, gate);
        let before = handled();
        for n in 0..RAISES {
            driver.raise(&mut registers, 0)?;
            until("its handler", || Ok(handled() > before + n))
                .map_err(|e| e.context(format!("{delivery:?}, raise {n}")))?;
            driver.acknowledge(&mut registers, 0)?;
        }
        std::thread::sleep(Duration::from_millis(50));
        let (ran, figures) = (handled() - before, guest.session.take_figures());
        let slot = usize::try_from(slot).unwrap_or(usize::MAX);
        let counted = figures.ledger.get(slot).copied().unwrap_or_default();
        let delivered = if delivery == Delivery::Irqfd { 0 } else { RAISES };
        if ran != RAISES || counted != (Outcome { delivered, ..Outcome::default() }) {
            return Err(Error::new(format!(
                "{delivery:?}: {RAISES} raised, {ran} handlers ran, counted {counted:?}"
            )));
        }
        irqs.release()?;
        vector.unbind(&parts)?;
        drop((irqs, registers));
        let Ok(unmapped) = Opened::new().back_out().unmap_bars(|| Ok::<_, Infallible>(()));
        let Ok(closed) = unmapped.close_device(|| Ok::<_, Infallible>(()));
        let _gone = opener.close(opening, closed);
        drop(opener);
        guest.session.stop()?;
        let took = began.elapsed().as_secs_f64();
        context.note(format!("{delivery:?}: {RAISES} as MSI, by three causes, {took:.2} s"));
        removed(&host, &[uuid])?;
    }
    Ok(())
}

/// Two of them and a PCI device in one container, or in one address space: each is heard, and goes by itself.
fn beside(context: &mut Context, iommufd: bool) -> Result<()> {
    let host = fresh()?;
    let uuids = [made(&host)?, made(&host)?];
    let mut guest = Guest::start(Delivery::Polled, Kind::Msix)?;
    let via = guest.via(Delivery::Polled, 0)?;
    let first = attached(&mut guest, uuids[0], via.clone(), iommufd)?;
    let igb = guest.attach(context, Need::Igb, (Kind::Msix, 4), via.clone(), iommufd)?;
    let mut igb = igb.ok_or_else(|| Error::new("igb has no MSI-X"))?;
    let mut mttys = [first, attached(&mut guest, uuids[1], via, iommufd)?];
    for n in 0..30u16 {
        mttys.iter_mut().try_for_each(|device| raised(&guest, device))?;
        guest.raise(&mut igb, n % 4)?;
    }
    let [first, mut second] = mttys;
    guest.session.fleet()?.detach(&first.assigned)?;
    guest.raise(&mut igb, 0)?;
    raised(&guest, &mut second)?;
    let mut hands = guest.hands(&igb);
    igb.driver.quiet(&mut hands)?;
    guest.session.fleet()?.detach(&igb.assigned)?;
    raised(&guest, &mut second)?;
    if !guest.session.fleet()?.is_consistent() {
        return Err(Error::new("the counts of groups and containers do not agree"));
    }
    drop((first, second));
    guest.session.stop()?;
    removed(&host, &uuids)
}
