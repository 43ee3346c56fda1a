//! `pollvisor run`: a guest, signals, and how long each stage took.

mod devices;
mod guest;
mod guest_devices;
mod guest_report;
mod handlers;
mod hlog;
mod live;
mod place;
mod produce;
mod report;
mod tuning;

pub use produce::{Produced, Progress, produce};
pub use report::{LapicReport, Ledger, Report, StageFigures, VectorReport, microseconds};

use crate::accel::Idle;
use crate::accel::{Accelerator, Choice, choose};
use crate::cli::{DeliveryArg, GuestArg, IdleArg, RunArgs, SourceArg};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::pin::Placement;
use crate::poller::PollerThread;
use crate::record::Figures;
use crate::session::{Delivery, Session, SessionConfig, Signaller, Signals, Stopped};
use crate::source::Backend;
use crate::sys::sched;
use hlog::Hlog;
use live::Live;
use pollvisor_core::irqfd::Outcome;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often figures are taken while it runs.
const REFRESH: Duration = Duration::from_millis(250);
/// How long the last signals may take to be accounted for.
const SETTLE: Duration = Duration::from_secs(5);

/// Runs it and prints the result; the process's exit code.
///
/// # Errors
/// Whatever kept it from being done, and what to do about it.
pub fn run(args: &RunArgs) -> Result<u8> {
    let choice = choose(args.accel)?;
    choice.refuse(&only_kvm(args))?;
    if args.boot.kernel.is_some() {
        place::keep_house(args)?;
        return guest::run(args);
    }
    args.boot.none_without_kernel()?;
    let report = measure(args, &choice)?;
    if choice.accelerator == Accelerator::Software {
        eprintln!("{}", choice.accelerator.headline());
    }
    if args.json {
        let json =
            serde_json::to_string_pretty(&report).map_err(|e| Error::new(format!("writing JSON: {e}")))?;
        println!("{json}");
    } else {
        print!("{}", report.table());
    }
    let unaccounted =
        [("signals", report.ledger.missing()), ("interrupts in the LAPICs", report.missing_in_lapics())];
    match unaccounted.iter().find(|(_, missing)| *missing != 0) {
        None => Ok(0),
        Some((what, missing)) => {
            Err(Error::new(format!("{missing} {what} are not accounted for")).remedy("report this as a bug"))
        }
    }
}

/// The flags that were given and only KVM can serve, and why.
fn only_kvm(args: &RunArgs) -> [(&'static str, bool, &'static str); 7] {
    const NO_CODE: &str = "runs no guest instruction";
    const NO_EXIT: &str = "runs no guest instruction that could exit";
    const NO_IRQFD: &str = "has no in-kernel irqfd";
    [
        ("--kernel", args.boot.kernel.is_some(), NO_CODE),
        ("--device", !args.device.is_empty(), "maps nothing into a guest and runs no driver"),
        ("--delivery irqfd", args.delivery == DeliveryArg::Irqfd, NO_IRQFD),
        ("--hand-over", args.hand_over.is_some(), NO_IRQFD),
        ("--guest-idle hlt-noexit", args.guest_idle == IdleArg::HltNoexit, NO_EXIT),
        ("--overcommit", args.boot.overcommit.is_some(), NO_EXIT),
        ("--halt-poll", args.halt_poll.is_some(), "halts no vCPU in KVM"),
    ]
}

fn measure(args: &RunArgs, choice: &Choice) -> Result<Report> {
    if args.duration.is_zero() {
        return Err(Error::new("--duration 0: nothing would be measured"));
    }
    if !args.device.is_empty() {
        return devices::measure(args);
    }
    let Prepared { places, clock, interrupted, mut machine } = prepare(args, choice)?;
    let mut log = args.hlog.as_deref().map(|path| Hlog::create(path, choice.accelerator)).transpose()?;
    let running = args.guest == GuestArg::Builtin;
    machine.idle = if running { name(args.guest_idle) } else { "none".into() };
    (machine.delivery, machine.source) = (name(args.delivery), name(args.source));
    let config = config(args, choice.accelerator, &places, running);
    let (session, mut signaller) = Session::start(&config, clock)?;
    machine.warnings.extend_from_slice(session.warnings());
    let mut placed = places.vcpus.clone();
    if args.delivery != DeliveryArg::Irqfd {
        placed.push(places.poller);
    }
    machine.warnings.extend(crate::pin::not_isolated(&placed));
    machine.pinned = places.poller.cpu.is_some() && places.vcpus.iter().all(|vcpu| vcpu.cpu.is_some());

    let mut all = Injected::default();
    if !args.warm_up.is_zero() {
        let mut unused = None;
        let (_, figures) =
            phase(&session, &mut signaller, args, &config, args.warm_up, &interrupted, &mut unused)?;
        all.add(&figures);
    }
    let began = Instant::now();
    let (produced, mut figures) =
        phase(&session, &mut signaller, args, &config, args.duration, &interrupted, &mut log)?;
    let seconds = began.elapsed().as_secs_f64();
    all.add(&figures);
    figures.add(&produced.figures);
    let guest_began = session.began();
    machine.warnings.extend(session.poller().and_then(PollerThread::complaint));
    let stopped = session.stop();
    if config.delivery == Delivery::Irqfd {
        // The kernel takes every signal of a bound eventfd, one interrupt each; what is left was not taken.
        for (vector, sent) in produced.sent.iter().enumerate() {
            let dropped = signaller.left_over(vector).min(*sent);
            figures.ledger[vector] = Outcome { delivered: sent - dropped, dropped, ..Outcome::default() };
        }
    }
    let handled = running.then_some(&produced.handled[..]);
    let mut report = Report::new(&figures, &produced.sent, handled, machine);
    report.seconds = seconds;
    report.guest_began_tsc = guest_began;
    report.interrupted = interrupted.load(Ordering::Relaxed);
    report.lapic = stopped.as_ref().ok().and_then(|stopped| all.lapics(stopped));
    if let Some(log) = log {
        log.finish()?;
    }
    if let Err(error) = stopped {
        // What was measured until then is not lost.
        eprint!("{}", report.table());
        return Err(error);
    }
    Ok(report)
}

/// What was injected since the guest began, the warm-up's too: what LAPICs counted is compared with it.
#[derive(Debug, Default)]
struct Injected {
    total: Outcome,
    spurious: u64,
}

impl Injected {
    fn add(&mut self, figures: &Figures) {
        self.total += figures.total();
        self.spurious += figures.spurious;
    }

    /// The software LAPICs' account, whole: with what their senders found requested already, and what they injected last.
    fn lapics(mut self, stopped: &Stopped) -> Option<LapicReport> {
        stopped.figures.iter().for_each(|figures| self.add(figures));
        let mut counts = stopped.lapics?;
        counts.coalesced += self.total.coalesced;
        Some(LapicReport { counts, accepted: self.total.delivered + self.spurious })
    }
}

/// What every run begins with.
struct Prepared {
    places: place::Places,
    clock: Clock,
    interrupted: Arc<AtomicBool>,
    machine: Machine,
}

fn prepare(args: &RunArgs, choice: &Choice) -> Result<Prepared> {
    let places = place::place(args)?;
    let interrupted = interrupts()?;
    let clock = Clock::calibrate()?;
    let mut machine = Machine::this(choice.accelerator, clock);
    machine.warnings.extend(choice.warning());
    match sched::lock_memory() {
        Ok(()) => machine.locked = true,
        Err(error) => machine.warnings.push(error.to_string().replace("\n  ", "; ")),
    }
    // The threads made from here on inherit it; the poller and the vCPUs move on to their own.
    let house = Placement { cpu: places.housekeeping, fifo: Some(false) };
    house.apply("housekeeping")?;
    Ok(Prepared { places, clock, interrupted, machine })
}

fn config(args: &RunArgs, accelerator: Accelerator, places: &place::Places, running: bool) -> SessionConfig {
    SessionConfig {
        accelerator,
        vectors: args.vectors(),
        signals: match args.source {
            SourceArg::Eventfd => Signals::Eventfd,
            SourceArg::Doorbell => Signals::Doorbell,
        },
        delivery: match args.delivery {
            DeliveryArg::Polled => Delivery::Poller(Backend::AIO),
            DeliveryArg::Blocking => Delivery::Poller(Backend::EpollBlock),
            DeliveryArg::Irqfd => Delivery::Irqfd,
        },
        running,
        idle: match args.guest_idle {
            IdleArg::Hlt => Idle::Halt,
            IdleArg::Spin => Idle::Spin,
            IdleArg::HltNoexit => Idle::HaltNoExit,
        },
        vcpus: args.cpus.as_ref().map(|cpus| cpus.boot),
        vcpu_placement: places.vcpus.clone(),
        poller_placement: places.poller,
        halt_poll_ns: args.halt_poll,
        each_vector: true,
    }
}

fn name(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
}

/// Set by the first SIGINT or SIGTERM; the second ends the process.
fn interrupts() -> Result<Arc<AtomicBool>> {
    const SECOND: i32 = 130;
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, SECOND, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .map_err(|e| Error::os("handling SIGINT and SIGTERM", &e))?;
    }
    Ok(flag)
}

/// Produces for `duration`, shows and logs meanwhile, and waits until every signal is accounted for.
fn phase(
    session: &Session,
    signaller: &mut Signaller,
    args: &RunArgs,
    config: &SessionConfig,
    duration: Duration,
    interrupted: &AtomicBool,
    log: &mut Option<Hlog>,
) -> Result<(Produced, Figures)> {
    let progress = Progress::default();
    // A short run that nobody watches needs no second buffer.
    let (mut total, mut spare) = (None, None);
    let slow_before = slow_path(session);
    let live =
        (!args.quiet && !args.json && std::io::stderr().is_terminal()).then(|| Live::new(args.vectors()));
    let began = Instant::now();
    let mut logged = Duration::ZERO;
    let mut take = |total: &mut Option<Box<Figures>>, log: &mut Option<Hlog>| -> Result<()> {
        let empty = spare.take().unwrap_or_else(|| session.empty_figures());
        let Some(mut figures) = session.take_figures(empty) else { return Ok(()) };
        if let Some(log) = log {
            let now = began.elapsed();
            log.add(&figures, logged, now.saturating_sub(logged))?;
            logged = now;
        }
        match total {
            None => *total = Some(figures),
            Some(total) => {
                total.add(&figures);
                figures.reset();
                spare = Some(figures);
            }
        }
        Ok(())
    };
    let plan = (args.interval, duration);
    let produced = std::thread::scope(|scope| -> Result<Produced> {
        let body = || produce(session, signaller, config.delivery, plan, true, &progress);
        let producer = crate::pin::thread("producer").spawn_scoped(scope, body);
        let producer = producer.map_err(|e| Error::os("starting the producer", &e))?;
        while !producer.is_finished() {
            std::thread::sleep(REFRESH.min(duration / 4));
            if interrupted.load(Ordering::Relaxed) || session.has_failed() {
                progress.stop.store(true, Ordering::Relaxed);
            }
            if session.poller().is_some() && (live.is_some() || log.is_some()) {
                if let Err(error) = take(&mut total, log) {
                    progress.stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                if let (Some(live), Some(total)) = (&live, &total) {
                    live.show(
                        total,
                        config.accelerator.signal_to_accepted(),
                        progress.sent.load(Ordering::Relaxed),
                    );
                }
            }
        }
        producer.join().map_err(|_| Error::new("the producer panicked"))
    })?;
    if session.poller().is_some() {
        settle(session, &produced, &slow_before, &mut total, |total| take(total, log))?;
    }
    if let Some(log) = log {
        log.add(&produced.figures, Duration::ZERO, began.elapsed())?;
    }
    Ok((produced, *total.unwrap_or_else(|| session.empty_figures())))
}

fn slow_path(session: &Session) -> Vec<Outcome> {
    let slow =
        |slot| session.interrupts().map_or(Outcome::default(), |interrupts| interrupts.slow_path(slot));
    (0..session.vectors()).map(slow).collect()
}

/// Takes figures until every signal is delivered, merged or dropped; what the deferred worker did is added.
fn settle(
    session: &Session,
    produced: &Produced,
    slow_before: &[Outcome],
    total: &mut Option<Box<Figures>>,
    mut take: impl FnMut(&mut Option<Box<Figures>>) -> Result<()>,
) -> Result<()> {
    let sent: u64 = produced.sent.iter().sum();
    let began = Instant::now();
    loop {
        take(total)?;
        let slow = slow_path(session);
        let done: u64 =
            slow.iter().zip(slow_before).map(|(now, before)| now.signals() - before.signals()).sum();
        let seen = total.as_ref().map_or(0, |total| total.total().signals());
        if seen + done >= sent || began.elapsed() > SETTLE {
            let total = total.get_or_insert_with(|| session.empty_figures());
            for ((ledger, now), before) in total.ledger.iter_mut().zip(&slow).zip(slow_before) {
                *ledger += now.since(*before);
            }
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
