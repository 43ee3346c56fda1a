//! `costs`: what the control plane costs its caller, and the data path meanwhile; what starting a guest costs.
//!
//! A signal is made, and at once, while the poller has it, the control call: so both are at work at the same time, on two
//! CPUs. The signals' latencies with each call are to be compared with those without any (`none`).

use crate::common::{Bench, Findings, OutputArgs};
use crate::measure::matching::Matching;
use crate::measure::{float, histogram};
use crate::model::{Load, PathResult, Stage};
use crate::rounds::{SETTLE, pause, result};
use crate::startup::startup;
use crate::table;
use crate::way::{self, Config, Cpus, Lanes, Path, Trigger, Way};
use hdrhistogram::Histogram;
use pollvisor::accel::Accelerator;
use pollvisor::error::{Error, Result};
use pollvisor::source::DEFAULT_PER_CONTEXT;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The flags of `costs`.
#[derive(Debug, clap::Args)]
pub struct CostsArgs {
    /// Vectors that are routed and signalled meanwhile
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=2048), value_name = "N")]
    vectors: u32,
    /// How often each call is made
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(10..=1_000_000), value_name = "N")]
    calls: u32,
    /// Time between calls, in microseconds
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000_000), value_name = "US")]
    pace: u64,
    /// Starts of a guest
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1000), value_name = "N")]
    starts: u32,
    /// The command whose start is measured [default: the one beside this]
    #[arg(long, value_name = "FILE")]
    pollvisor: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// A control call, or two that take turns, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    None,
    Routes,
    AttachDetach,
    HandOver,
}

impl Call {
    const ALL: [Self; 4] = [Self::None, Self::Routes, Self::AttachDetach, Self::HandOver];

    const fn names(self) -> (&'static str, [&'static str; 2]) {
        match self {
            Self::None => ("none", ["", ""]),
            Self::Routes => ("replace_routes", ["replace_routes", "replace_routes"]),
            Self::AttachDetach => ("attach_detach", ["attach", "detach"]),
            Self::HandOver => ("hand_over", ["to_kernel", "to_poller"]),
        }
    }
}

/// Measures and prints.
///
/// # Errors
/// What kept it from being done.
pub fn run(args: &CostsArgs) -> Result<ExitCode> {
    let bench = Bench::begin(&args.output)?;
    let mut findings = Findings::default();
    if args.starts > 0 {
        bench.progress("starting guests");
        match startup(&bench, args.pollvisor.as_deref(), args.starts) {
            Ok(start) => {
                findings.paths.push(start.result);
                findings.goals.extend(start.goals);
            }
            Err(error) => findings.errors.push(error.context("start-up").to_string()),
        }
    }
    let cpus = Cpus::of(&bench.cpus, 1)?;
    cpus.producer(0).apply("the producer")?;
    let vectors = usize::try_from(args.vectors).unwrap_or(1);
    let config = Config {
        accelerator: bench.accelerator(),
        path: Path::PolledEventfd,
        vectors,
        producers: 1,
        cpus: vec![cpus.pollers[0]],
        per_context: DEFAULT_PER_CONTEXT,
        samples: usize::try_from(args.calls).unwrap_or(0) * 2 + 1024,
        gaps: false,
        flight: bench.threshold.records(),
        device: None,
    };
    let (mut lanes, mut triggers) = Lanes::start(&config, 1, bench.clock)?;
    let mut trigger = triggers.pop().ok_or_else(|| Error::new("no producer"))?;
    for call in Call::ALL {
        if call == Call::HandOver && bench.accelerator() == Accelerator::Software {
            findings
                .warnings
                .push("hand_over is not measured: the software machine has no in-kernel irqfd".into());
            continue;
        }
        bench.progress(call.names().0);
        findings.paths.push(one(&bench, args, call, &mut lanes, &mut trigger)?);
        if bench.is_over() {
            break;
        }
    }
    Box::new(lanes).stop()?;
    bench.finish(findings, table::stages)
}

/// One kind of call, so many times, a signal before each.
fn one(
    bench: &Bench,
    args: &CostsArgs,
    call: Call,
    lanes: &mut Lanes,
    trigger: &mut Trigger,
) -> Result<PathResult> {
    const WARM_UP: u32 = 200;
    let clock = bench.clock;
    let pace = clock.cycles(Duration::from_micros(args.pace));
    let mut matching = Matching::new(clock, lanes.vectors(), false)?;
    matching.watch = bench.watch(1);
    let mut took: [Histogram<u64>; 2] = [histogram()?, histogram()?];
    let (began, mut gaps) = (Instant::now(), histogram()?);
    for number in 0..WARM_UP + args.calls {
        if bench.is_interrupted() {
            break;
        }
        let measured = number >= WARM_UP;
        let sent = if measured { trigger.signal(None)? } else { trigger.warm_up()? };
        let second = number % 2 == 1;
        let before = clock.now();
        match (call, second) {
            (Call::None, _) => {}
            (Call::Routes, _) => lanes.replace_routes()?,
            (Call::AttachDetach, false) => lanes.attach_spare()?,
            (Call::AttachDetach, true) => lanes.detach_spare()?,
            (Call::HandOver, false) => lanes.spare_to_kernel()?,
            (Call::HandOver, true) => lanes.spare_to_poller()?,
        }
        if measured {
            took[usize::from(second)].saturating_record(clock.ns(clock.now() - before));
        }
        matching.sent(&[sent]);
        pause(clock, sent.made + pace, &mut gaps);
    }
    let settling = Instant::now();
    while matching.open() > 0 && settling.elapsed() < SETTLE {
        matching.took(&lanes.take()?);
    }
    matching.run();
    matching.check()?;
    bench.check(call.names().0, &mut matching.watch, lanes.flights(), 1);
    lanes.put_spare_away()?;
    let (name, calls) = call.names();
    let mut result =
        result((Path::PolledEventfd, bench.accelerator()), lanes.vectors(), 1, Load::Closed, &matching.found);
    result.path = way::name_on(bench.accelerator(), &format!("costs/{name}"));
    result.ledger = matching.ledger;
    result.per_second = float(result.ledger.delivered) / began.elapsed().as_secs_f64().max(1e-9);
    if !gaps.is_empty() {
        result.stages.insert("producer_gaps".into(), Stage::of(&gaps));
    }
    let [first, second] = &mut took;
    if calls[0] == calls[1] {
        crate::measure::add(first, second)?;
        second.reset();
    }
    for (name, histogram) in calls.iter().zip(&took).filter(|(_, histogram)| !histogram.is_empty()) {
        if call != Call::None {
            result.stages.insert(format!("call/{name}"), Stage::of(histogram));
        }
    }
    Ok(result)
}
