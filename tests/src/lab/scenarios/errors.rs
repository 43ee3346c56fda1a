//! Errors of PCIe's, injected by QEMU where a port meets them: the port's interrupt, Linux's AER driver, vfio-pci, its
//! error eventfd, pollvisor. QEMU's igb cannot report its own: its error reporting cannot be switched on.

use super::life::{finish, pollvisor};
use crate::lab::devices::Kind;
use crate::lab::in_guest::{Delivery, Guest, InGuest};
use crate::lab::linux::{start, talk, told};
use crate::lab::monitor::{KernelLog, Monitor, PATIENCE, until};
use crate::lab::{Context, Need, Scenario};
use nix::sys::signal::Signal;
use pollvisor::assign::News;
use pollvisor::devices::{Host, bind, unbind};
use pollvisor::error::{Error, Result};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "life: the device reports an error",
        needs: &[Need::Kvm, Need::Igb, Need::Monitor],
        run: |c| reported(c, false),
    },
    Scenario {
        name: "cdev: life: the device reports an error",
        needs: &[Need::Iommufd, Need::Kvm, Need::Igb, Need::Monitor],
        run: |c| reported(c, true),
    },
    Scenario {
        name: "life: the command whose device reports an error",
        needs: &[Need::Kvm, Need::Igb, Need::Monitor],
        run: command,
    },
    Scenario {
        name: "linux: igb, and it reports an error",
        needs: &[Need::Kvm, Need::Linux, Need::Igb, Need::Monitor],
        run: linux,
    },
];

/// The root port above igb, as `tests/lab/lab` calls it.
const PORT: &str = "port-igb";
/// A symbol that the receiver does not know; the read of a register that nobody answers; a broken link.
const CORRECTABLE: &str = "RCVR";
/// What the kernel calls it.
const CORRECTED: &str = "RxErr";
const NON_FATAL: &str = "COMP_TIME";
const FATAL: &str = "DLP";
/// Interrupts after which a guest is past what its driver does at first, which takes some, too.
const FIRES: u64 = 500;
/// What pollvisor says of them.
const UNCORRECTABLE: &str = "an uncorrectable PCIe error";
/// The vectors that fire.
const VECTORS: u16 = 4;

/// A correctable error changes nothing; others take the device from the guest, with every signal up to then accounted
/// for. The host has it back then, and the guest may have it again.
fn reported(context: &mut Context, iommufd: bool) -> Result<()> {
    let (host, address) = (Host::default(), context.address(Need::Igb)?);
    let mut monitor = Monitor::open()?;
    let mut guest = Guest::start(Delivery::Polled, Kind::Msix)?;
    for (error, delivery) in
        [(NON_FATAL, Delivery::Polled), (FATAL, Delivery::Irqfd), (FATAL, Delivery::Blocking)]
    {
        let told = |e: Error| e.context(format!("{error}, {delivery:?}"));
        let via = guest.via(delivery, 0)?;
        let device = guest.attach(context, Need::Igb, (Kind::Msix, VECTORS), via, iommufd).map_err(told)?;
        let mut device = device.ok_or_else(|| Error::new("igb has no MSI-X"))?;
        for vector in 0..VECTORS {
            guest.raise(&mut device, vector).map_err(told)?;
        }
        // What waits behind a mask when it goes has to be in the account, too.
        guest.session.driver(&device.assigned).mask(VECTORS - 1, true)?;
        let _raised = guest.ledger(&mut device);
        let handled = total(&guest, &device);
        let mut log = KernelLog::from_now()?;
        let sent = while_firing(&device, || {
            monitor.inject(PORT, CORRECTABLE)?;
            log.says(CORRECTED)?;
            sleep(Duration::from_millis(20));
            device.assigned.set_up().map_err(|e| e.context("a correctable error"))?;
            monitor.inject(PORT, error)
        })
        .map_err(told)?;
        let news = guest.session.fleet()?.news();
        if !matches!(&news[..], [News::Failed(_)]) {
            return Err(told(Error::new(format!("it does not fire any more, and the news are {news:?}"))));
        }
        log.says(if error == FATAL { "(Fatal)" } else { "(Non-Fatal)" }).map_err(told)?;
        log.says("device recovery successful").map_err(told)?;
        accounted(&guest, &mut device, (sent, handled), delivery).map_err(told)?;
        let id = guest.session.driver(&device.assigned).config(0, 4)?;
        if id != 0xffff_ffff || !guest.session.fleet()?.devices().is_empty() {
            return Err(told(Error::new(format!("the guest still finds {id:#x} in its slot"))));
        }
        drop(device);
        unbind(&host, address)?;
        bind(&host, address)?;
        if !guest.session.fleet()?.is_consistent() {
            return Err(told(Error::new("the counts of groups and containers do not agree")));
        }
        let [open, masked] = sent;
        context
            .note(format!("{error}, {delivery:?}: {open} signals and {masked} behind a mask, accounted for"));
    }
    guest.session.stop()
}

fn total(guest: &Guest, device: &InGuest) -> u64 {
    guest.handled(device).iter().sum()
}

/// Fires all vectors in turn until the device is gone, which `meanwhile` brings about. How often, but for the last
/// vector, and how often that.
fn while_firing(device: &InGuest, meanwhile: impl FnOnce() -> Result<()>) -> Result<[u64; 2]> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stop, assigned, last) = (&stop, device.assigned.clone(), u32::from(VECTORS) - 1);
        let firing = scope.spawn(move || -> Result<[u64; 2]> {
            let (mut sent, began) = ([0, 0], Instant::now());
            for vector in (0..=last).cycle() {
                if stop.load(Ordering::Relaxed) || assigned.fire(vector).is_err() {
                    break;
                }
                sent[usize::from(vector == last)] += 1;
                sleep(Duration::from_micros(100));
                if began.elapsed() > PATIENCE {
                    return Err(Error::new(format!("it fires still, after {PATIENCE:?}")));
                }
            }
            Ok(sent)
        });
        sleep(Duration::from_millis(50));
        let result = meanwhile();
        stop.store(result.is_err(), Ordering::Relaxed);
        let sent = firing.join().map_err(|_| Error::new("the firing thread panicked"))?;
        result.and(sent)
    })
}

/// What was sent was delivered, merged or dropped, and that behind a mask dropped; no more handlers ran than interrupts
/// were delivered.
fn accounted(
    guest: &Guest,
    device: &mut InGuest,
    ([open, masked], handled): ([u64; 2], u64),
    delivery: Delivery,
) -> Result<()> {
    let irqfd = delivery == Delivery::Irqfd;
    // What irqfds deliver only the guest counts.
    let sent = if irqfd { masked } else { open + masked };
    let mut ledger = guest.ledger(device);
    // The poller's figures may come a moment later.
    let whole = until("every signal", || {
        ledger += guest.ledger(device);
        Ok((ledger.signals() >= sent).then_some(()))
    });
    if whole.is_err() || ledger.signals() != sent || ledger.dropped < masked {
        let sent = format!("{open} signals were sent, and {masked} behind a mask");
        return Err(Error::new(format!("{sent}; the ledger has {ledger:?}")));
    }
    let most = if irqfd { open } else { ledger.delivered };
    let ran = total(guest, device) - handled;
    if masked == 0 || ran == 0 || ran > most {
        return Err(Error::new(format!("{open} signals, {most} interrupts, and handlers ran {ran} times")));
    }
    Ok(())
}

/// `run --device`: it goes on after a correctable error. After another it ends with 1, says why, and prints what was
/// measured until then; the next one finds the device as if nothing had been.
fn command(context: &mut Context) -> Result<()> {
    let (mut monitor, address) = (Monitor::open()?, context.address(Need::Igb)?);
    for (error, delivery) in [(NON_FATAL, "irqfd"), (FATAL, "polled")] {
        let mut log = KernelLog::from_now()?;
        let device = format!("host={address},delivery={delivery}");
        let mut child = Command::new("./pollvisor")
            .args(["run", "--device", &device, "-D", "60s", "-i", "200us", "--warm-up", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Error::os("starting ./pollvisor", &e))?;
        until("it to fire", || Ok((injections() > FIRES).then_some(())))?;
        let ended = |e: std::io::Error| Error::os("waiting for ./pollvisor", &e);
        monitor.inject(PORT, CORRECTABLE)?;
        log.says(CORRECTED)?;
        sleep(Duration::from_millis(100));
        if let Some(status) = child.try_wait().map_err(ended)? {
            return Err(Error::new(format!("a correctable error, and it ended: {status}")));
        }
        monitor.inject(PORT, error)?;
        let status = until("its end", || child.try_wait().map_err(ended));
        if status.is_err() {
            child.kill().map_err(ended)?;
        }
        let (status, mut said) = (status?, String::new());
        if let Some(stderr) = &mut child.stderr {
            let _bytes = stderr.read_to_string(&mut said).map_err(ended)?;
        }
        let told = |what: &str| {
            print!("{said}");
            Error::new(format!("{error}, {delivery}: {what}"))
        };
        let last = said.lines().last().unwrap_or_default();
        if status.code() != Some(1) || !last.contains(UNCORRECTABLE) {
            return Err(told(&format!("{status}, and it says last: {last}")));
        }
        let totals = said.lines().find(|line| line.starts_with("sent ")).ok_or_else(|| told("no figures"))?;
        if !adds_up(totals) {
            return Err(told(&format!("the ledger does not add up: {totals}")));
        }
        log.says("device recovery successful")?;
        context.note(format!("{error}, {delivery}: {totals}"));
        finish(pollvisor(context, &["-D", "200ms", "-i", "1ms", "--delivery", delivery])?)?;
    }
    Ok(())
}

/// Linux goes on without its device, and what that signalled is in the report at the end.
fn linux(context: &mut Context) -> Result<()> {
    let (mut monitor, mut log) = (Monitor::open()?, KernelLog::from_now()?);
    let device = format!("host={},delivery=blocking", context.address(Need::Igb)?);
    let parameters = "net=igb pings=10 end=button";
    let mut guest = start("vmlinux", parameters, &["--device", &device])?;
    guest.says("guest: waits")?;
    monitor.inject(PORT, FATAL)?;
    until("word of the error", || Ok(talk().contains(UNCORRECTABLE).then_some(())))?;
    log.says("device recovery successful")?;
    guest.signal(Signal::SIGTERM)?;
    let ended = guest.end()?.with(0)?;
    let delivered: u64 = ended.delivered().iter().map(|(_, count)| count).sum();
    let noted = ended.report["machine"]["warnings"].to_string().contains(UNCORRECTABLE);
    if ended.report["ended"] != "shutdown" || delivered < 10 || !noted {
        return Err(told(format!("the report: {}", ended.report)));
    }
    context.note(format!("it shut down; {delivered} interrupts of the device's are in the report"));
    Ok(())
}

/// Interrupts that went into the guests there are.
fn injections() -> u64 {
    let count = std::fs::read_to_string("/sys/kernel/debug/kvm/irq_injections");
    count.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// `sent 9 = delivered 5 + merged 3 + dropped 1; ...`
fn adds_up(totals: &str) -> bool {
    let ledger = totals.split(';').next().unwrap_or_default();
    let numbers: Vec<u64> = ledger.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    matches!(numbers[..], [sent, delivered, merged, dropped] if sent > 0 && sent == delivered + merged + dropped)
}
