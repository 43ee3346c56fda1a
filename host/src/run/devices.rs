//! `run --device` and `devices test`: assigned devices, each vector of which is fired by VFIO's loopback, so that all but
//! the hardware is measured: eventfd → poller, or irqfd → guest.

use super::handlers::{Handlers, Targets};
use super::live::Live;
use super::produce::pause_until;
use super::report::Report;
use super::{Prepared, REFRESH, SETTLE, name, prepare};
use crate::accel::{Accelerator, Choice};
use crate::assign::{Assigned, Via};
use crate::cli::{DeliveryArg, DeviceArg, InterruptArg, IrqchipArg, RunArgs, SourceArg};
use crate::devices::{self, DeviceAddress, Host};
use crate::error::{Error, Result};
use crate::pin::Placement;
use crate::record::{Figures, Stage};
use crate::session::{DeviceSession, DeviceSessionConfig};
use crate::source::{Backend, Port};
use crate::sys::sched;
use pollvisor_core::ids::VcpuId;
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::line::Kind;
use pollvisor_core::route::Irqchip;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const STAGES: [Stage; 4] =
    [Stage::SignalToSeen, Stage::SeenToInjected, Stage::SignalToAccepted, Stage::SignalToHandler];
/// Vectors of a device whose configuration space an ordinary user cannot read whole.
const UNKNOWN: usize = 2048;
/// Vectors of a mediated device, of which sysfs says nothing. No driver in Linux makes one with more than a few, and each
/// vector's histograms take 0.1 MB.
const MEDIATED: usize = 256;
/// Pollers, in the order in which they are started.
const POLLED: usize = 0;

/// One vector of one device.
struct Vector {
    device: Arc<Assigned>,
    number: u32,
    slot: usize,
    gate: (VcpuId, u8),
    /// Whose signals are stamped; none in the kernel.
    port: Option<Arc<Port>>,
    /// Whether the kernel delivers it, at times or always.
    kernel: bool,
    /// Of a line that is unmasked here: how often it has to have been before it can fire again. What it is asked to fire
    /// before, the device drops.
    unmasked: Option<AtomicU64>,
}

impl Vector {
    /// Waits until its line can fire.
    fn wait_for_line(&self, stop: &AtomicBool) {
        let Some(wanted) = &self.unmasked else { return };
        let (wanted, began) = (wanted.fetch_add(1, Ordering::Relaxed), Instant::now());
        while self.device.unmasked().is_ok_and(|now| now < wanted)
            && !stop.load(Ordering::Relaxed)
            && began.elapsed() < SETTLE
        {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Runs it.
///
/// # Errors
/// What is in the way, and what to do about it.
pub(super) fn measure(args: &RunArgs) -> Result<Report> {
    check(args)?;
    let Prepared { places, clock, interrupted, mut machine } =
        prepare(args, &Choice { accelerator: Accelerator::Kvm, no_kvm: None })?;
    let host = Host::default();
    let mut pollers = vec![(Backend::AIO, places.poller)];
    let by = |device: &DeviceArg| device.delivery.unwrap_or(args.delivery);
    if args.device.iter().all(|device| by(device) != DeliveryArg::Polled) && args.hand_over.is_none() {
        pollers.clear();
    }
    let blocking = pollers.len();
    if args.device.iter().any(|device| by(device) == DeliveryArg::Blocking) {
        pollers.push((Backend::EpollBlock, Placement { cpu: None, fifo: None }));
    }
    let kernel = args.device.iter().any(|device| by(device) == DeliveryArg::Irqfd);
    let config = DeviceSessionConfig {
        irqchip: match args.irqchip {
            IrqchipArg::Split => Irqchip::Split,
            IrqchipArg::Kernel => Irqchip::Kernel,
            IrqchipArg::Auto if kernel && args.interrupt == InterruptArg::Intx => Irqchip::Kernel,
            IrqchipArg::Auto => Irqchip::Split,
        },
        pollers,
        vcpus: places.vcpus.clone(),
        slots: args.device.iter().map(|device| budget(&host, device)).sum(),
        each_vector: true,
    };
    let mut session = DeviceSession::start(&config, host, clock)?;
    let mut vectors = Vec::new();
    for device in &args.device {
        let via = match by(device) {
            DeliveryArg::Polled => session.by_poller(POLLED)?,
            DeliveryArg::Blocking => session.by_poller(blocking)?,
            DeliveryArg::Irqfd => Via::Kernel,
        };
        vectors.extend(attach(&mut session, device, via, args)?);
    }
    machine.idle = "hlt".into();
    (machine.delivery, machine.source) = (name(args.delivery), "vfio-loopback".into());
    machine.warnings.extend_from_slice(session.warnings());
    let spinning = Some(places.poller).filter(|_| args.delivery == DeliveryArg::Polled);
    let placed: Vec<_> = places.vcpus.iter().copied().chain(spinning).collect();
    machine.warnings.extend(crate::pin::not_isolated(&placed));
    machine.pinned = placed.iter().all(|placement| placement.cpu.is_some());

    let run = Run { session: &session, args, vectors: &vectors, interrupted: &interrupted };
    if !args.warm_up.is_zero() {
        run.phase(args.warm_up)?;
    }
    let began = Instant::now();
    let (sent, figures, handled) = run.phase(args.duration)?;
    let seconds = began.elapsed().as_secs_f64();
    let news = session.fleet()?.news();
    let mut report = Report::new(&figures, &sent, Some(&handled), machine);
    report.seconds = seconds;
    report.interrupted = interrupted.load(Ordering::Relaxed);
    drop(vectors);
    let stopped = session.stop();
    if let Some(news) = news.first() {
        // What was measured until then is not lost.
        eprint!("{}", report.table());
        return Err(Error::new(news.to_string()));
    }
    stopped.map(|()| report)
}

fn check(args: &RunArgs) -> Result<()> {
    if args.source != SourceArg::Eventfd {
        return Err(Error::new("VFIO signals eventfds, not doorbells").remedy("--source eventfd"));
    }
    if args.hlog.is_some() {
        return Err(
            Error::new("--hlog is not written with --device").remedy("--json has every vector's figures")
        );
    }
    hand_over_takes_time(args)?;
    no_device_twice(args)
}

/// That there is time between two hand-overs.
pub(super) fn hand_over_takes_time(args: &RunArgs) -> Result<()> {
    if args.hand_over.is_some_and(|period| period.is_zero()) {
        return Err(Error::new("--hand-over 0: nothing would be delivered in between"));
    }
    Ok(())
}

/// That no device is given twice.
pub(super) fn no_device_twice(args: &RunArgs) -> Result<()> {
    let named = |name: &str| {
        args.device.iter().any(|device| device.id.as_deref().unwrap_or(&device.address.to_string()) == name)
    };
    let given = args.poller.iter().flat_map(|poller| &poller.vectors);
    if let Some((name, _)) = given.into_iter().find(|(name, _)| !named(name)) {
        return Err(Error::new(format!("--poller vectors: no --device is called {name}"))
            .remedy("id=NAME in --device"));
    }
    for (at, device) in args.device.iter().enumerate() {
        if args.device[..at].iter().any(|other| other.address == device.address) {
            return Err(Error::new(format!("{} is given twice", device.address)));
        }
    }
    Ok(())
}

/// As many vectors as a device can have, its line included.
pub(super) fn budget(host: &Host, device: &DeviceArg) -> usize {
    let DeviceAddress::Pci(address) = device.address else { return MEDIATED + 1 };
    let listed = devices::list(host).unwrap_or_default();
    let found = listed.iter().find(|listed| listed.address == address);
    let vectors = found.and_then(|found| Some(found.msix_vectors?.max(found.msi_vectors?)));
    vectors.map_or(UNKNOWN, usize::from) + 1
}

fn attach(session: &mut DeviceSession, device: &DeviceArg, via: Via, args: &RunArgs) -> Result<Vec<Vector>> {
    let assigned = session.attach(device, via.clone())?;
    let kind = kind(session, &assigned, args.interrupt)?;
    if let (Kind::Msix, Some(wanted)) = (kind, args.vectors) {
        let there = usize::from(session.driver(&assigned).msix_vectors()?);
        if wanted > there {
            return Err(Error::new(format!(
                "{}: it has {there} MSI-X vectors, not {wanted}",
                assigned.name()
            ))
            .remedy(format!("--vectors {there}, or less")));
        }
    }
    let wanted = args.vectors.and_then(|wanted| u32::try_from(wanted).ok()).unwrap_or(u32::MAX);
    let gates = session.set_up(&assigned, kind, wanted)?;
    let slots = assigned.slots();
    let port = if let Via::Poller(port) = &via { Some(port.clone()) } else { None };
    let is_unmasked_here = kind == Kind::Intx && assigned.ends()?.is_some();
    let unmasked = assigned.unmasked()?;
    let mut to_kernel = Vec::new();
    if let (Some(poller), Some(_)) = (args.poller.as_ref().filter(|poller| !poller.vectors.is_empty()), &port)
    {
        to_kernel = others(&poller.vectors, assigned.name(), gates.len(), kind)?;
        for vector in &to_kernel {
            assigned.hand_over(*vector, Via::Kernel)?;
        }
    }
    let vector = |(number, gate): (u32, (VcpuId, u8))| {
        let handed = usize::try_from(number).is_ok_and(|number| to_kernel.contains(&number));
        // INTx is counted last.
        let at = if kind == Kind::Intx { slots.len() - 1 } else { usize::try_from(number).unwrap_or(0) };
        Vector {
            device: assigned.clone(),
            number,
            slot: usize::try_from(slots[at]).unwrap_or(usize::MAX),
            gate,
            port: port.clone().filter(|_| kind != Kind::Intx && !handed),
            kernel: port.is_none() || args.hand_over.is_some() || handed,
            unmasked: is_unmasked_here.then(|| AtomicU64::new(unmasked)),
        }
    };
    Ok((0..).zip(gates).map(vector).collect())
}

/// The vectors of a device that no poller was given.
pub(super) fn others(
    given: &[(String, Vec<usize>)],
    name: &str,
    vectors: usize,
    kind: Kind,
) -> Result<Vec<usize>> {
    let mine = given.iter().find(|(device, _)| device == name).map_or(&[][..], |(_, vectors)| vectors);
    if let Some(beyond) = mine.iter().find(|vector| **vector >= vectors) {
        return Err(Error::new(format!("--poller vectors: {name} has no vector {beyond}, only {vectors}")));
    }
    if kind == Kind::Intx {
        return Err(Error::new("--poller vectors: INTx is one line, and cannot be shared out")
            .remedy("delivery= for the device"));
    }
    Ok((0..vectors).filter(|vector| !mine.contains(vector)).collect())
}

fn kind(session: &DeviceSession, device: &Assigned, wanted: InterruptArg) -> Result<Kind> {
    const MSI: u8 = 5;
    const MSIX: u8 = 0x11;
    let driver = session.driver(device);
    let none =
        |what: &str, flag: &str| Err(Error::new(format!("{}: it has no {what}", device.name())).remedy(flag));
    Ok(match wanted {
        InterruptArg::Msix if driver.capability(MSIX)?.is_none() => return none("MSI-X", "--interrupt auto"),
        InterruptArg::Msi if driver.capability(MSI)?.is_none() => return none("MSI", "--interrupt auto"),
        InterruptArg::Intx if !driver.has_intx()? => {
            return none("INTx that its delivery can end", "--interrupt auto");
        }
        InterruptArg::Msix => Kind::Msix,
        InterruptArg::Msi => Kind::Msi,
        InterruptArg::Intx => Kind::Intx,
        InterruptArg::Auto if driver.capability(MSIX)?.is_some() => Kind::Msix,
        InterruptArg::Auto if driver.capability(MSI)?.is_some() => Kind::Msi,
        InterruptArg::Auto if driver.has_intx()? => Kind::Intx,
        InterruptArg::Auto => return none("interrupt at all", "a device that has one"),
    })
}

struct Run<'a> {
    session: &'a DeviceSession,
    args: &'a RunArgs,
    vectors: &'a [Vector],
    interrupted: &'a AtomicBool,
}

impl Run<'_> {
    /// Fires for `duration`, hands over meanwhile, and waits until every signal is accounted for.
    fn phase(&self, duration: Duration) -> Result<(Vec<u64>, Figures, Vec<u64>)> {
        let before = self.counted();
        let stop = AtomicBool::new(false);
        let mut total = *self.session.empty_figures();
        let quiet = self.args.quiet || self.args.json || !std::io::stderr().is_terminal();
        let live = (!quiet).then(|| Live::new(self.vectors.len()));
        let (sent, mut own, handled) = std::thread::scope(|scope| -> Result<_> {
            let stop = &stop;
            let producer = scope.spawn(move || self.produce(duration, stop));
            if let Some(period) = self.args.hand_over {
                scope.spawn(move || self.hand_over(period, stop));
            }
            let mut result = Ok(());
            while !producer.is_finished() && result.is_ok() {
                std::thread::sleep(REFRESH.min(duration / 4));
                if self.interrupted.load(Ordering::Relaxed) || self.session.has_failed() {
                    stop.store(true, Ordering::Relaxed);
                }
                total.add(&self.session.take_figures());
                if let Some(live) = &live {
                    live.show(&self.by_vector(&total), Stage::SignalToAccepted, total.total().signals());
                }
                result = self.session.fleet().map(drop);
            }
            let produced = producer.join().map_err(|_| Error::new("the producer panicked"));
            stop.store(true, Ordering::Relaxed);
            result.and(produced?)
        })?;
        self.settle(&sent, &before, &mut total);
        let mut figures = self.by_vector(&total);
        for (n, vector) in self.vectors.iter().enumerate() {
            let counted = &mut figures.ledger[n];
            *counted += self.counted_of(vector).since(before[n]);
            if vector.kernel {
                // The kernel takes every signal of an eventfd that is bound there, one interrupt each; the guest's
                // handlers are the check.
                counted.delivered += sent[n].saturating_sub(counted.signals());
            }
        }
        own.spurious += figures.spurious;
        figures.add(&own);
        figures.spurious = own.spurious;
        Ok((sent, figures, handled))
    }

    fn produce(&self, duration: Duration, stop: &AtomicBool) -> Result<(Vec<u64>, Figures, Vec<u64>)> {
        sched::timer_slack(1);
        let clock = self.session.clock();
        let targets = Targets {
            guest: Some(self.session.guest()),
            vectors: self.vectors.iter().map(|vector| vector.gate).collect(),
            tsc_offset: self.session.tsc_offset(),
            clock,
            stage: Stage::SignalToHandler,
        };
        let mut handlers = Handlers::new(targets);
        let mut figures = Figures::new(&STAGES, self.vectors.len(), true);
        let mut sent = vec![0; self.vectors.len()];
        let (end, step) =
            (clock.now().saturating_add(clock.cycles(duration)), clock.cycles(self.args.interval));
        let mut next = clock.now();
        for (n, vector) in self.vectors.iter().enumerate().cycle() {
            if stop.load(Ordering::Relaxed) || next >= end {
                break;
            }
            vector.wait_for_line(stop);
            handlers.look(n, &mut figures);
            handlers.announce(n);
            let port = vector.port.as_ref().filter(|_| !vector.kernel);
            port.inspect(|port| port.prepare_stamp(vector.slot));
            let made = clock.now();
            port.inspect(|port| port.stamp(vector.slot, made));
            if vector.device.fire(vector.number).is_err() {
                // It went by itself; the fleet has said why.
                break;
            }
            let done = clock.now();
            sent[n] += 1;
            handlers.signalled(n, made);
            if vector.kernel && self.args.hand_over.is_none() {
                figures.record(n, Stage::SignalToAccepted, clock.ns(done.saturating_sub(made)));
            }
            next = (next + step).max(clock.now());
            pause_until(clock, next, self.args.interval);
        }
        handlers.finish(&mut figures);
        Ok((sent, figures, handlers.vectors.iter().map(|vector| vector.runs).collect()))
    }

    /// To the kernel and back, all vectors.
    fn hand_over(&self, period: Duration, stop: &AtomicBool) {
        let mut to_kernel = true;
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(period);
            for vector in self.vectors {
                let Some(port) = &vector.port else { continue };
                let via = if to_kernel { Via::Kernel } else { Via::Poller(port.clone()) };
                let number = usize::try_from(vector.number).unwrap_or(usize::MAX);
                if let Err(error) = vector.device.hand_over(number, via) {
                    eprintln!("pollvisor: handing vector {number} over: {error}");
                    return;
                }
            }
            to_kernel = !to_kernel;
        }
    }

    fn settle(&self, sent: &[u64], before: &[Outcome], total: &mut Figures) {
        let began = Instant::now();
        loop {
            total.add(&self.session.take_figures());
            let open = self.vectors.iter().zip(sent).zip(before).any(|((vector, sent), before)| {
                let polled = total.ledger.get(vector.slot).map_or(0, Outcome::signals);
                !vector.kernel && polled + self.counted_of(vector).since(*before).signals() < *sent
            });
            if !open || began.elapsed() > SETTLE {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What others than pollers made of a vector's signals so far.
    fn counted_of(&self, vector: &Vector) -> Outcome {
        vector.device.counted(vector.slot)
    }

    fn counted(&self) -> Vec<Outcome> {
        self.vectors.iter().map(|vector| self.counted_of(vector)).collect()
    }

    /// Figures by slot as figures by vector.
    fn by_vector(&self, figures: &Figures) -> Figures {
        let mut ours = Figures::new(&STAGES, 0, false);
        ours.stages.add(&figures.stages);
        for vector in self.vectors {
            ours.vectors.extend(figures.vectors.get(vector.slot).cloned());
            ours.ledger.push(figures.ledger.get(vector.slot).copied().unwrap_or_default());
            ours.latest.push(figures.latest.get(vector.slot).copied().unwrap_or(0));
        }
        (ours.spurious, ours.unstamped, ours.negative, ours.deferred) =
            (figures.spurious, figures.unstamped, figures.negative, figures.deferred);
        ours
    }
}
