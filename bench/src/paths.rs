//! `paths`: from a signal until the LAPIC has the interrupt, by every path, at several numbers of vectors, side by side.

use crate::common::{Bench, Findings, Goal, OutputArgs};
use crate::rounds::{Field, Turn};
use crate::table;
use crate::way::{Cpus, HAS_RIVALS, Path, without_rivals};
use pollvisor::accel::Accelerator;
use pollvisor::error::Result;
use pollvisor::source::DEFAULT_PER_CONTEXT;
use std::process::ExitCode;
use std::time::Duration;

/// The flags of `paths`.
#[derive(Debug, clap::Args)]
pub struct PathsArgs {
    /// Numbers of vectors to measure at
    #[arg(long, value_delimiter = ',', default_values_t = [8, 64, 512], value_name = "N,...")]
    vectors: Vec<usize>,
    /// Interleaved rounds
    #[arg(long, default_value_t = 101, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    rounds: u32,
    /// Signals per path and round, and as many before to warm up
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(10..=100_000), value_name = "N")]
    samples: u32,
    /// Time between signals, in microseconds
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1_000_000), value_name = "US")]
    pace: u64,
    /// Eventfds that share an AIO context
    #[arg(long, default_value_t = DEFAULT_PER_CONTEXT, value_name = "N")]
    per_context: usize,
    /// Measure what other VMMs are made of, too: event-manager, tokio, io_uring (a build with `--features rivals`)
    #[arg(long)]
    rivals: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Measures and prints.
///
/// # Errors
/// What kept it from being done.
pub fn run(args: &PathsArgs) -> Result<ExitCode> {
    if args.rivals && !HAS_RIVALS {
        return Err(without_rivals("--rivals"));
    }
    let bench = Bench::begin(&args.output)?;
    let cpus = Cpus::of(&bench.cpus, 1)?;
    cpus.producer(0).apply("the producer")?;
    let turn = Turn { samples: args.samples, pace: bench.clock.cycles(Duration::from_micros(args.pace)) };
    let rivals = if args.rivals { &Path::RIVALS[..] } else { &[] };
    let paths = [&Path::OWN[..], rivals].concat();
    let mut field = Field::new(&bench, &paths, &args.vectors, cpus.pollers[0], args.per_context, turn);
    field.run(&bench, args.rounds, turn);
    let mut goals = goals(&field, bench.accelerator(), &args.vectors);
    let (paths, errors) = field.finish();
    for vectors in &args.vectors {
        let paid = |path: Path| {
            let name = path.name(Accelerator::Kvm);
            let found = paths.iter().find(|one| one.path == name && one.vectors == *vectors);
            found.map(|one| one.producer_p50_ns)
        };
        if let (Some(doorbell), Some(irqfd)) = (paid(Path::PolledDoorbell), paid(Path::Irqfd)) {
            let goal = format!("doorbell producer / irqfd write, {vectors} vectors");
            goals.push(Goal::at_most(goal, doorbell / irqfd.max(1.0), 1.0 / 20.0));
        }
    }
    bench.finish(Findings { paths, errors, goals, ..Findings::default() }, table::ratios)
}

fn goals(field: &Field, accelerator: Accelerator, sizes: &[usize]) -> Vec<Goal> {
    use Path::{BlockingEpoll, EventManager, Irqfd, PolledDoorbell, PolledEventfd, Tokio};
    let mut goals = Vec::new();
    let mut goal = |name: String, over: (Path, usize), under: (Path, usize), most: f64| {
        if let Some(ratio) = field.ratio(over, under) {
            goals.push(Goal::at_most(name, ratio, most));
        }
    };
    for n in sizes.iter().copied() {
        let most = if n <= 8 { 1.1 } else { 1.0 };
        for (name, over, under, most) in [
            ("polled eventfd / irqfd", PolledEventfd, Irqfd, 2.0),
            ("polled eventfd / blocking", PolledEventfd, BlockingEpoll, 1.0 / 18.0),
            ("polled eventfd / event-manager", PolledEventfd, EventManager, 1.0 / 20.0),
            ("polled eventfd / tokio", PolledEventfd, Tokio, 1.0 / 15.0),
            ("doorbell / irqfd", PolledDoorbell, Irqfd, most),
        ] {
            // The bounds hold with KVM's injection in both, which is most of it.
            if accelerator == Accelerator::Software {
                continue;
            }
            goal(format!("{name}, {n} vectors"), (over, n), (under, n), most);
        }
    }
    if let (Some(few), Some(many)) = (sizes.iter().min().copied(), sizes.iter().max().copied())
        && few != many
    {
        for (path, name) in [(PolledEventfd, "polled eventfd"), (PolledDoorbell, "doorbell")] {
            goal(format!("{name}, {many} / {few} vectors"), (path, many), (path, few), 1.35);
        }
    }
    goals
}
