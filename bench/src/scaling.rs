//! `scaling`: how a path's median grows with vectors, in interleaved rounds, and with producers, by a schedule.

use crate::common::{Bench, Findings, Goal, Growth, OutputArgs};
use crate::drive::{DriveArgs, Rate, drive};
use crate::measure::float;
use crate::measure::schedule::Shape;
use crate::measure::stats::{exponent, median};
use crate::rounds::{Field, Turn};
use crate::table;
use crate::way::{Cpus, Path};
use pollvisor::accel::Accelerator;
use pollvisor::error::Result;
use std::process::ExitCode;
use std::time::Duration;

/// The flags of `scaling`.
#[derive(Debug, clap::Args)]
pub struct ScalingArgs {
    /// Which paths [default: irqfd,polled_eventfd,polled_doorbell; without KVM direct in place of irqfd]
    #[arg(long = "path", value_enum, value_delimiter = ',', value_name = "PATH,...")]
    paths: Vec<Path>,
    /// Numbers of vectors, with one producer
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 512, 4096], value_name = "N,...")]
    sizes: Vec<usize>,
    /// Interleaved rounds
    #[arg(long, default_value_t = 51, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    rounds: u32,
    /// Up to so many producers, with --vectors vectors, at --rate; each twice as many as the last
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16), value_name = "N")]
    most_producers: u32,
    /// Signals in a second of all producers together
    #[arg(long, default_value_t = 20_000.0, value_parser = crate::latency::rate, value_name = "N")]
    rate: f64,
    #[command(flatten)]
    drive: DriveArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Measures and prints.
///
/// # Errors
/// What kept it from being done.
pub fn run(args: &ScalingArgs) -> Result<ExitCode> {
    let bench = Bench::begin(&args.output)?;
    let mut findings = Findings::default();
    let paths = match (&args.paths[..], bench.accelerator()) {
        ([], Accelerator::Kvm) => &[Path::Irqfd, Path::PolledEventfd, Path::PolledDoorbell][..],
        ([], Accelerator::Software) => &[Path::Direct, Path::PolledEventfd, Path::PolledDoorbell],
        (given, accelerator) => {
            given.iter().try_for_each(|path| path.must_be_on(accelerator))?;
            given
        }
    };
    by_vectors(&bench, args, paths, &mut findings)?;
    by_producers(&bench, args, paths, &mut findings);
    bench.finish(findings, table::sizes)
}

fn growth(path: String, with: &'static str, points: &[(f64, f64)]) -> Option<Growth> {
    let (first, last) = (points.first()?, points.last()?);
    let exponent = exponent(points)?;
    Some(Growth { path, with, exponent, ratio: last.1 / first.1.max(1.0) })
}

fn by_vectors(bench: &Bench, args: &ScalingArgs, paths: &[Path], findings: &mut Findings) -> Result<()> {
    const SAMPLES: u32 = 50;
    const PACE: Duration = Duration::from_micros(50);
    let cpus = Cpus::of(&bench.cpus, 1)?;
    cpus.producer(0).apply("the producer")?;
    let turn = Turn { samples: SAMPLES, pace: bench.clock.cycles(PACE) };
    let mut sizes = args.sizes.clone();
    sizes.sort_unstable();
    sizes.dedup();
    // One path after the other: all at once would have more eventfds bound than a process may.
    for path in paths.iter().copied() {
        let mut field = Field::new(bench, &[path], &sizes, cpus.pollers[0], args.drive.per_context, turn);
        field.run(bench, args.rounds, turn);
        let point = |size: &usize| (float(*size as u64), median(field.p50s(path, *size)));
        let points: Vec<_> = sizes.iter().map(point).filter(|point| point.1 > 0.0).collect();
        findings.growth.extend(growth(path.name(bench.accelerator()), "vectors", &points));
        let most = match path {
            Path::PolledDoorbell => Some(1.5),
            Path::PolledEventfd => Some(2.0),
            _ => None,
        };
        let (few, many) = (sizes.first().copied().unwrap_or(0), sizes.last().copied().unwrap_or(0));
        if let (Some(most), Some(ratio)) = (most, field.ratio((path, many), (path, few))) {
            let goal = format!("{}, {many} / {few} vectors", path.name(bench.accelerator()));
            findings.goals.push(Goal::at_most(goal, ratio, most));
        }
        let (found, errors) = field.finish();
        findings.paths.extend(found);
        findings.errors.extend(errors);
    }
    Ok(())
}

fn by_producers(bench: &Bench, args: &ScalingArgs, paths: &[Path], findings: &mut Findings) {
    for path in paths {
        let (mut points, mut producers) = (Vec::new(), 1);
        while producers <= args.most_producers as usize && !bench.is_over() {
            let drive_args = DriveArgs { producers, ..args.drive.clone() };
            match drive(bench, &drive_args, *path, Rate::Open(Shape::Fixed, args.rate, 1), None) {
                Ok(driven) => {
                    points.push((float(producers as u64), driven.result.p50_ns));
                    findings.paths.push(driven.result);
                    findings.warnings.extend(driven.warnings);
                }
                Err(error) => {
                    let what = format!("{} with {producers} producers", path.key());
                    findings.errors.push(error.context(what).to_string());
                }
            }
            producers *= 2;
        }
        findings.growth.extend(growth(path.name(bench.accelerator()), "producers", &points));
    }
}
