//! Devices come and go: while they fire, by the host's wish, and with the process.

use crate::lab::devices::Kind;
use crate::lab::in_guest::{Delivery, Guest};
use crate::lab::{Context, Need, Scenario};
use pollvisor::assign::News;
use pollvisor::devices::{Host, bind, unbind};
use pollvisor::error::{Error, Result};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "life: 200 attach and detach cycles while it fires",
        needs: &[Need::Kvm, Need::Igb],
        run: |c| cycles(c, false, 200),
    },
    Scenario {
        name: "cdev: life: 50 attach and detach cycles while it fires",
        needs: &[Need::Iommufd, Need::Kvm, Need::Igb],
        run: |c| cycles(c, true, 50),
    },
    Scenario {
        name: "life: unbound from sysfs while it runs",
        needs: &[Need::Kvm, Need::Igb],
        run: |c| unbound(c, false),
    },
    Scenario {
        name: "cdev: life: unbound from sysfs while it runs",
        needs: &[Need::Iommufd, Need::Kvm, Need::Igb],
        run: |c| unbound(c, true),
    },
    Scenario {
        name: "life: killed, and attached again at once",
        needs: &[Need::Kvm, Need::Igb],
        run: killed,
    },
    Scenario {
        name: "life: vectors shared out, and handed over from the command line",
        needs: &[Need::Kvm, Need::Igb],
        run: shared_out,
    },
    Scenario { name: "life: ended by SIGTERM at any moment", needs: &[Need::Kvm, Need::Igb], run: ended },
];

/// Open descriptors of this process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// The guest's CPU raises interrupts without a pause while the device is taken away under it, and given back.
fn cycles(context: &mut Context, iommufd: bool, cycles: usize) -> Result<()> {
    let mut guest = Guest::start(Delivery::Polled, Kind::Msix)?;
    let (mut fired, mut first) = (0u64, 0);
    let began = Instant::now();
    for cycle in 0..cycles {
        let delivery = [Delivery::Polled, Delivery::Irqfd, Delivery::Blocking][cycle % 3];
        let via = guest.via(delivery, 0)?;
        // The gates are used anew: 222 fit a vCPU.
        if cycle % 50 == 0 && cycle > 0 {
            guest.session.stop()?;
            guest = Guest::start(Delivery::Polled, Kind::Msix)?;
        }
        let via = if cycle % 50 == 0 { guest.via(delivery, 0)? } else { via };
        let told = |e: Error| e.context(format!("cycle {cycle}, {delivery:?}"));
        let device = guest.attach(context, Need::Igb, (Kind::Msix, 4), via, iommufd).map_err(told)?;
        let mut device = device.ok_or_else(|| Error::new("igb has no MSI-X"))?;
        guest.raise(&mut device, 0).map_err(told)?;
        let stop = AtomicBool::new(false);
        let bar = guest.session.driver(&device.assigned).bar(0)?;
        std::thread::scope(|scope| -> Result<()> {
            let puppet = guest.session.puppet().clone();
            let stop = &stop;
            let raising = scope.spawn(move || -> Result<u64> {
                const EICS: u64 = 0x1520;
                let mut writes = 0;
                while !stop.load(Ordering::Relaxed) {
                    puppet.write(bar + EICS, 4, 0xf)?;
                    writes += 1;
                }
                Ok(writes)
            });
            sleep(Duration::from_millis(5));
            let gone = guest.session.fleet()?.detach(&device.assigned);
            let after = guest.handled(&device);
            sleep(Duration::from_millis(2));
            let later = guest.handled(&device);
            stop.store(true, Ordering::Relaxed);
            fired += raising.join().map_err(|_| Error::new("the raising thread panicked"))??;
            // One that was accepted before may have been on its way to the handler.
            let one_each = after.iter().zip(&later).all(|(after, later)| later - after <= 1);
            if !gone? || !one_each {
                return Err(told(Error::new(format!("interrupts after the end: {after:?}, then {later:?}"))));
            }
            Ok(())
        })?;
        drop(device);
        if !guest.session.fleet()?.is_consistent() {
            return Err(told(Error::new("the counts of groups and containers do not agree")));
        }
        if cycle == 10 {
            first = descriptors();
        }
        if cycle % 50 == 49 && descriptors() > first + 1 {
            return Err(told(Error::new(format!("{} descriptors are open, {first} were", descriptors()))));
        }
    }
    let each = began.elapsed().as_millis() / cycles as u128;
    context
        .note(format!("{cycles} cycles of {each} ms, {fired} writes of the register that raises meanwhile"));
    guest.session.stop()
}

/// The host takes the device back while it fires; the guest goes on without it, and gets it again.
fn unbound(context: &mut Context, iommufd: bool) -> Result<()> {
    let (host, address) = (Host::default(), context.address(Need::Igb)?);
    let mut guest = Guest::start(Delivery::Polled, Kind::Msix)?;
    for _ in 0..3 {
        let via = guest.via(Delivery::Polled, 0)?;
        let device = guest.attach(context, Need::Igb, (Kind::Msix, 4), via, iommufd)?;
        let mut device = device.ok_or_else(|| Error::new("igb has no MSI-X"))?;
        guest.raise(&mut device, 2)?;
        let stop = AtomicBool::new(false);
        let rebound = std::thread::scope(|scope| {
            let assigned = device.assigned.clone();
            let stop = &stop;
            scope.spawn(move || while !stop.load(Ordering::Relaxed) && assigned.fire(1).is_ok() {});
            sleep(Duration::from_millis(20));
            let rebound = unbind(&host, address);
            stop.store(true, Ordering::Relaxed);
            rebound
        })?;
        let began = Instant::now();
        let mut news = guest.session.fleet()?.news();
        // The kernel goes on as soon as the device is closed, which is before it is said.
        while news.is_empty() && began.elapsed() < Duration::from_secs(2) {
            sleep(Duration::from_millis(1));
            news = guest.session.fleet()?.news();
        }
        if !matches!(&news[..], [News::WantedBack(_)]) || !guest.session.fleet()?.devices().is_empty() {
            return Err(Error::new(format!("after the unbinding: {news:?}")));
        }
        let id = guest.session.driver(&device.assigned).config(0, 4)?;
        if id != 0xffff_ffff || device.assigned.fire(0).is_ok() {
            return Err(Error::new(format!("the guest still finds {id:#x} in its slot")));
        }
        context.note(format!("given back: {:?}", rebound.now));
        drop(device);
        bind(&host, address)?;
    }
    guest.session.stop()
}

pub(super) fn pollvisor(context: &Context, more: &[&str]) -> Result<Child> {
    let address = context.address(Need::Igb)?.to_string();
    let mut command = Command::new("./pollvisor");
    command.args(["devices", "test", &address, "--json", "--warm-up", "0"]).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().map_err(|e| Error::os("starting ./pollvisor", &e))
}

/// What a run of it says must be a ledger that adds up.
pub(super) fn finish(child: Child) -> Result<()> {
    let output = child.wait_with_output().map_err(|e| Error::os("waiting for ./pollvisor", &e))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(Error::new(format!("./pollvisor: {}: {said}", output.status)));
    }
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| Error::new(format!("./pollvisor printed no JSON: {e}; {said}")))?;
    let count = |key: &str| report["ledger"][key].as_u64().unwrap_or(u64::MAX);
    if count("sent") != count("delivered") + count("merged") + count("dropped") {
        return Err(Error::new(format!("the ledger does not add up: {}", report["ledger"])));
    }
    Ok(())
}

/// SIGKILL while it fires: the kernel cleans up, and the next one finds the device as if nothing had been.
fn killed(context: &mut Context) -> Result<()> {
    for delivery in ["polled", "irqfd", "blocking"] {
        let mut child = pollvisor(context, &["-D", "60s", "-i", "100us", "--delivery", delivery])?;
        sleep(Duration::from_millis(700));
        child.kill().map_err(|e| Error::os("killing ./pollvisor", &e))?;
        child.wait().map_err(|e| Error::os("waiting for ./pollvisor", &e))?;
        finish(pollvisor(context, &["-D", "200ms", "-i", "1ms", "--delivery", delivery])?)?;
    }
    Ok(())
}

/// Some vectors by the poller, the others by the kernel, in one device.
fn shared_out(context: &mut Context) -> Result<()> {
    let poller = format!("cpu=1,vectors=[{}:0-3]", context.address(Need::Igb)?);
    finish(pollvisor(context, &["-D", "1s", "-i", "1ms", "--poller", &poller])?)?;
    finish(pollvisor(context, &["-D", "2s", "-i", "1ms", "--hand-over", "10ms"])?)
}

/// SIGTERM at one moment after the other, from the start on: the device can be unbound and bound at once.
fn ended(context: &mut Context) -> Result<()> {
    let (host, address) = (Host::default(), context.address(Need::Igb)?);
    for moment in [0, 20, 50, 100, 150, 200, 300, 500, 800] {
        let child = pollvisor(context, &["-D", "60s", "-i", "200us"])?;
        sleep(Duration::from_millis(moment));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)
            .map_err(|e| Error::new(format!("SIGTERM: {e}")))?;
        let began = Instant::now();
        let output = child.wait_with_output().map_err(|e| Error::os("waiting for ./pollvisor", &e))?;
        let took = began.elapsed();
        if took > Duration::from_secs(5) {
            return Err(Error::new(format!("SIGTERM after {moment} ms: it took {took:?} to end")));
        }
        // Before it handles signals it ends by it; after that it reports.
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code().is_some_and(|code| code != 0) {
            return Err(Error::new(format!("SIGTERM after {moment} ms: {}: {said}", output.status)));
        }
        unbind(&host, address)?;
        bind(&host, address)?;
    }
    Ok(())
}
