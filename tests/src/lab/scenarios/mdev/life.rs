//! A mediated device goes while the guest runs, or its parent does; and both while others make and remove.

use super::{
    ONE, PARENT, attached, available, fresh, load, made, raised, removed as all_removed, unload, until,
};
use crate::lab::Context;
use crate::lab::devices::Kind;
use crate::lab::in_guest::{Delivery, Guest};
use pollvisor::assign::News;
use pollvisor::devices::{Host, mdev};
use pollvisor::error::{Error, Result, errno_name};
use pollvisor_core::mediated::Uuid;
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The host takes it back while it fires, by its `remove` and by its driver; the guest goes on without it, and gets another.
pub(super) fn removed(context: &mut Context, iommufd: bool) -> Result<()> {
    let host = fresh()?;
    for delivery in [Delivery::Polled, Delivery::Irqfd, Delivery::Blocking] {
        let mut guest = Guest::start(delivery, Kind::Intx)?;
        for by_driver in [false, true, false] {
            let told = |e: Error| e.context(format!("{delivery:?}, by its driver {by_driver}"));
            let took = taken_back(&host, &mut guest, delivery, (iommufd, by_driver)).map_err(told)?;
            context.note(format!("{delivery:?}, by its driver {by_driver}: the host waited {took:?}"));
        }
        guest.session.stop()?;
        all_removed(&host, &[])?;
    }
    Ok(())
}

/// By a process of its own: one that has the device and waits in the kernel for its end could not be killed.
fn gives_back(uuid: Uuid, by_driver: bool) -> Result<()> {
    let mut command = Command::new(if by_driver { "sh" } else { "./pollvisor" });
    if by_driver {
        command.args(["-c", &format!("echo {uuid} >/sys/bus/mdev/drivers/mtty/unbind")]);
    } else {
        command.args(["mdev", "remove", &uuid.to_string()]);
    }
    let output = command.output().map_err(|e| Error::os("starting what takes it back", &e))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(Error::new(format!("taking it back: {said}"))) }
}

fn taken_back(
    host: &Host,
    guest: &mut Guest,
    delivery: Delivery,
    (iommufd, by_driver): (bool, bool),
) -> Result<Duration> {
    let uuid = made(host)?;
    let via = guest.via(delivery, 0)?;
    let mut device = attached(guest, uuid, via, iommufd)?;
    for _ in 0..10 {
        raised(guest, &mut device)?;
    }
    let before = guest.handled(&device);
    let ports = guest.session.driver(&device.assigned).ports(0)?.ok_or_else(|| Error::new("no ports"))?;
    let stop = AtomicBool::new(false);
    let took = std::thread::scope(|scope| -> Result<Duration> {
        let (puppet, stop) = (guest.session.puppet().clone(), &stop);
        // What is sent is received, and read: an interrupt each, as far as its line is unmasked.
        let firing = scope.spawn(move || -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                puppet.port_write(ports, 1, 0x55)?;
                puppet.port_read(ports, 1)?;
            }
            Ok(())
        });
        sleep(Duration::from_millis(50));
        let began = Instant::now();
        let gone = gives_back(uuid, by_driver);
        let took = began.elapsed();
        stop.store(true, Ordering::Relaxed);
        firing.join().map_err(|_| Error::new("the firing thread panicked"))??;
        gone.map(|()| took)
    })?;
    if guest.handled(&device) == before {
        return Err(Error::new("nothing fired"));
    }
    let mut news = Vec::new();
    let fleet = guest.session.fleet()?;
    let began = Instant::now();
    while news.is_empty() && began.elapsed() < Duration::from_secs(2) {
        sleep(Duration::from_millis(1));
        news = fleet.news();
    }
    if !matches!(&news[..], [News::WantedBack(_)]) || !fleet.devices().is_empty() || !fleet.is_consistent() {
        return Err(Error::new(format!("after it was taken back: {news:?}")));
    }
    let id = guest.session.driver(&device.assigned).config(0, 4)?;
    if id != 0xffff_ffff || device.assigned.fire(0).is_ok() {
        return Err(Error::new(format!("the guest still finds {id:#x} in its slot")));
    }
    drop(device);
    // One without a driver is still there.
    all_removed(host, if by_driver { std::slice::from_ref(&uuid) } else { &[] })?;
    Ok(took)
}

/// The module cannot go while a guest has a device of it, and the device does not notice; afterwards both go.
pub(super) fn module_in_use(_: &mut Context) -> Result<()> {
    let host = fresh()?;
    let mut guest = Guest::start(Delivery::Polled, Kind::Intx)?;
    let via = guest.via(Delivery::Polled, 0)?;
    let (uuid, _idle) = (made(&host)?, made(&host)?);
    let mut device = attached(&mut guest, uuid, via, false)?;
    for _ in 0..3 {
        raised(&guest, &mut device)?;
        if unload()? {
            return Err(Error::new("the module went while a guest had a device of it"));
        }
        raised(&guest, &mut device)?;
    }
    if mdev::devices(&host).len() != 2 || !guest.session.fleet()?.news().is_empty() {
        return Err(Error::new(format!("after it was refused: {:?}", mdev::devices(&host))));
    }
    drop(device);
    guest.session.stop()?;
    if !unload()? || !mdev::devices(&host).is_empty() {
        return Err(Error::new(format!("the module did not go: {:?}", mdev::devices(&host))));
    }
    Ok(())
}

/// How often each answer came: `create` and `remove`, by the error's name.
type Answers = BTreeMap<(&'static str, &'static str), u64>;

fn note(answers: &mut Answers, call: &'static str, result: &Result<Uuid>) -> Result<()> {
    let name = match result {
        Ok(_) => "done",
        Err(error) => error.errno().and_then(errno_name).unwrap_or("?"),
    };
    // The module's own rules: a UUID in use; a parent or device that goes; one half made or half removed.
    let known = match call {
        "create" => ["done", "EEXIST", "ENODEV"],
        _ => ["done", "EAGAIN", "ENODEV"],
    };
    *answers.entry((call, name)).or_default() += 1;
    match result {
        Err(error) if !known.contains(&name) => Err(Error::new(format!("{call}: {error}"))),
        _ => Ok(()),
    }
}

/// Makes and removes, the one the same UUIDs as the other, until told to stop.
fn makes_and_removes(host: &Host, stop: &AtomicBool) -> Result<Answers> {
    let uuids = ["83b8f4f2-509f-382f-3c1e-e6bfe0fa2001", "83b8f4f2-509f-382f-3c1e-e6bfe0fa2002"];
    let mut answers = Answers::new();
    while !stop.load(Ordering::Relaxed) {
        for uuid in uuids {
            note(&mut answers, "create", &mdev::create(host, PARENT, ONE, Some(uuid)))?;
            note(&mut answers, "remove", &mdev::remove(host, uuid))?;
        }
    }
    Ok(answers)
}

fn warned() -> bool {
    const WARNED: u64 = 1 << 9;
    let tainted = std::fs::read_to_string("/proc/sys/kernel/tainted").unwrap_or_default();
    tainted.trim().parse::<u64>().is_ok_and(|bits| bits & WARNED != 0)
}

/// Every call ends, with success or one of the errors that are known; nothing is left; and the kernel complains of nothing.
pub(super) fn against_the_parent(context: &mut Context) -> Result<()> {
    let (host, warned_before) = (fresh()?, warned());
    let stop = AtomicBool::new(false);
    let (answers, cycles) = std::thread::scope(|scope| -> Result<(Answers, u32)> {
        let (host, stop) = (&host, &stop);
        let makers = [(); 2].map(|()| scope.spawn(move || makes_and_removes(host, stop)));
        let (began, mut cycles, mut result) = (Instant::now(), 0, Ok(true));
        while began.elapsed() < Duration::from_secs(4) && matches!(result, Ok(true)) {
            sleep(Duration::from_millis(20));
            result = unload().and_then(|went| load().map(|()| went));
            cycles += 1;
        }
        // With the parent there: what was spoilt while half made would stay.
        sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        let mut all = Answers::new();
        for maker in makers {
            for (key, count) in maker.join().map_err(|_| Error::new("a maker panicked"))?? {
                *all.entry(key).or_default() += count;
            }
        }
        if result? { Ok((all, cycles)) } else { Err(Error::new("mtty was not unloaded")) }
    })?;
    context.note(format!("{cycles} times without the parent; {answers:?}"));
    for key in [("create", "done"), ("create", "ENODEV"), ("remove", "done"), ("remove", "ENODEV")] {
        if !answers.contains_key(&key) {
            return Err(Error::new(format!("never seen: {key:?}")));
        }
    }
    // What is left is whole, and goes.
    for device in mdev::devices(&host) {
        mdev::remove(&host, &device.uuid.to_string())?;
    }
    until("all instances", || Ok(available(&host, ONE) == Some(24)))?;
    all_removed(&host, &[])?;
    if !unload()? || warned() != warned_before {
        return Err(Error::new("the parent did not go in peace; the console log has more"));
    }
    Ok(())
}
