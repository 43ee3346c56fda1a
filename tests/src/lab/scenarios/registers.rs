//! The base line: by VFIO's eventfds alone, every raise of every vector of every kind is seen where it should be. When
//! this fails the lab is broken, or the driver in [`devices`](crate::lab::devices).

use crate::lab::assigned::{Assigned, By};
use crate::lab::devices::{Device, Kind};
use crate::lab::{Context, Need, Scenario};
use pollvisor::error::{Error, Result};
use pollvisor::sys::fd::EventFd;
use pollvisor::sys::vfio::DmaAccess;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "device registers: igb", needs: &[Need::Igb], run: |c| by(c, Need::Igb, By::Group) },
    Scenario {
        name: "device registers: e1000e",
        needs: &[Need::E1000e],
        run: |c| by(c, Need::E1000e, By::Group),
    },
    Scenario { name: "device registers: edu", needs: &[Need::Edu], run: |c| by(c, Need::Edu, By::Group) },
    Scenario { name: "device registers: nvme", needs: &[Need::Nvme], run: |c| by(c, Need::Nvme, By::Group) },
    Scenario {
        name: "cdev: device registers: igb",
        needs: &[Need::Iommufd, Need::Igb],
        run: |c| by(c, Need::Igb, By::File),
    },
    Scenario {
        name: "cdev: device registers: nvme",
        needs: &[Need::Iommufd, Need::Nvme],
        run: |c| by(c, Need::Nvme, By::File),
    },
];

/// Where the device's memory is.
const MEMORY: u64 = 0x10_0000;
/// Raises of each kind.
const RAISES: u16 = 1000;
/// How long nothing may come before it counts as nothing.
const NOTHING: Duration = Duration::from_millis(5);

fn by(context: &mut Context, need: Need, by: By) -> Result<()> {
    let mut device = Assigned::open(context.address(need)?, by)?;
    let mut driver = device.driver()?;
    if driver.memory() > 0 {
        device.add_memory(MEMORY, driver.memory(), DmaAccess::ReadWrite)?;
    }
    for kind in [Kind::Msix, Kind::Msi, Kind::Intx] {
        let (there, used) = (device.interrupts(kind)?, driver.vectors(kind));
        if u32::from(used) > there || (used == 0 && there > 0) {
            return Err(Error::new(format!("{kind:?}: VFIO has {there} vectors, the driver {used}")));
        }
        if used > 0 {
            let began = Instant::now();
            let seen =
                all_of(&mut device, driver.as_mut(), kind).map_err(|e| e.context(format!("{kind:?}")))?;
            let took = began.elapsed().as_secs_f64();
            context.note(format!(
                "{kind:?}: {RAISES} raises on {used} of {there} vectors, {seen} seen, {took:.2} s"
            ));
        }
    }
    Ok(())
}

/// All vectors of a kind; how many interrupts were seen.
fn all_of(device: &mut Assigned, driver: &mut dyn Device, kind: Kind) -> Result<u64> {
    let vectors = driver.vectors(kind);
    let events = (0..vectors).map(|_| EventFd::new()).collect::<Result<Vec<_>>>()?;
    device.signal(kind, &events)?;
    driver.set_up(device, kind, MEMORY)?;
    sleep(NOTHING);
    // What setting up left behind.
    let _: u64 = events.iter().map(EventFd::take).sum();
    for vector in 0..vectors {
        alone(device, driver, &events, vector)?;
        if kind == Kind::Intx {
            level(device, driver, &events[0])?;
        } else {
            driver.acknowledge(device, vector)?;
        }
    }
    let seen = in_turn(device, driver, &events, kind)?;
    driver.quiet(device)?;
    device.signal(kind, &[])?;
    Ok(seen)
}

/// One raise reaches its own eventfd and no other, also with time to come late.
fn alone(device: &mut Assigned, driver: &mut dyn Device, events: &[EventFd], vector: u16) -> Result<()> {
    driver.raise(device, vector)?;
    arrival(&events[usize::from(vector)], vector)?;
    sleep(NOTHING);
    for (other, event) in (0..).zip(events) {
        let late = event.take();
        if late > 0 && (other != vector || driver.counts_exactly()) {
            return Err(Error::new(format!(
                "vector {vector} raised once: {late} too many at vector {other}"
            )));
        }
    }
    Ok(())
}

/// The pin, raised and not acknowledged: masked now; fires again when unmasked; falls when acknowledged.
fn level(device: &mut Assigned, driver: &mut dyn Device, event: &EventFd) -> Result<()> {
    device.unmask()?;
    arrival(event, 0).map_err(|e| e.context("unmasked while asserted"))?;
    driver.acknowledge(device, 0)?;
    device.unmask()?;
    sleep(NOTHING);
    match event.take() {
        0 => Ok(()),
        more => Err(Error::new(format!("unmasked after the acknowledgement: {more} interrupts"))),
    }
}

fn in_turn(device: &mut Assigned, driver: &mut dyn Device, events: &[EventFd], kind: Kind) -> Result<u64> {
    let mut seen = 0;
    for (round, (vector, event)) in (0..RAISES).zip((0..).zip(events).cycle()) {
        let what = |e: Error| e.context(format!("raise {round}"));
        driver.raise(device, vector)?;
        let here = arrival(event, vector).map_err(what)?;
        driver.acknowledge(device, vector)?;
        if kind == Kind::Intx {
            device.unmask()?;
        }
        if driver.counts_exactly() {
            let elsewhere: u64 = events.iter().map(EventFd::take).sum();
            if here != 1 || elsewhere != 0 {
                let text =
                    format!("vector {vector} raised once: seen {here} times there, {elsewhere} elsewhere");
                return Err(what(Error::new(text)));
            }
        }
        seen += here;
    }
    sleep(NOTHING);
    let late: u64 = events.iter().map(EventFd::take).sum();
    if late > 0 && driver.counts_exactly() {
        return Err(Error::new(format!("{late} interrupts that nobody raised")));
    }
    Ok(seen + late)
}

fn arrival(event: &EventFd, vector: u16) -> Result<u64> {
    event.wait(2000);
    match event.take() {
        0 => Err(Error::new(format!("vector {vector} was raised and not seen within 2 s"))),
        seen => Ok(seen),
    }
}
