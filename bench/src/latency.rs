//! `latency`: chosen paths, one after the other, under a load that does not wait for them, or under one that does.

use crate::common::{Bench, Findings, OutputArgs};
use crate::drive::{DriveArgs, Rate, drive};
use crate::measure::schedule::Shape;
use crate::table;
use crate::way::Path;
use pollvisor::error::{Error, Result};
use std::process::ExitCode;

/// The flags of `latency`.
#[derive(Debug, clap::Args)]
pub struct LatencyArgs {
    /// Which paths
    #[arg(long = "path", value_enum, value_delimiter = ',', default_values_t = [Path::PolledEventfd, Path::PolledDoorbell], value_name = "PATH,...")]
    paths: Vec<Path>,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    drive: DriveArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The flags that say when signals are made.
#[derive(Debug, Clone, clap::Args)]
pub struct LoadArgs {
    /// Signals in a second, over all producers
    #[arg(long, default_value_t = 20_000.0, value_parser = rate, value_name = "N")]
    rate: f64,
    /// The schedule: latencies are from the planned times, whatever became of the producer
    #[arg(long, value_enum, default_value_t = Shape::Fixed)]
    schedule: Shape,
    /// Signals at once, to one vector after the other
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096), value_name = "N")]
    burst: u32,
    /// No schedule: each signal so long after the last one as the rate says. What is late delays the next, and hides
    #[arg(long, conflicts_with_all = ["schedule", "burst"])]
    closed: bool,
}

/// A rate, from one a minute to ten million a second.
pub fn rate(text: &str) -> std::result::Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (1.0 / 60.0..=1e7).contains(&rate) { Ok(rate) } else { Err("from 0.0167 to 10000000 a second".into()) }
}

impl LoadArgs {
    /// The load they mean.
    #[must_use]
    pub fn rate(&self) -> Rate {
        if self.closed {
            Rate::Closed(self.rate)
        } else {
            Rate::Open(self.schedule, self.rate, usize::try_from(self.burst).unwrap_or(1))
        }
    }
}

/// Measures and prints.
///
/// # Errors
/// When no path could be measured.
pub fn run(args: &LatencyArgs) -> Result<ExitCode> {
    let bench = Bench::begin(&args.output)?;
    let mut findings = Findings::default();
    drive_all(&bench, &args.drive, &args.paths, args.load.rate(), &mut findings)?;
    bench.finish(findings, table::latency)
}

/// Drives paths one after the other; one that fails is an error among the findings. Ends early on Ctrl-C, and when the
/// threshold is hit.
///
/// # Errors
/// When all failed: the first one's.
pub fn drive_all(
    bench: &Bench,
    args: &DriveArgs,
    paths: &[Path],
    rate: Rate,
    findings: &mut Findings,
) -> Result<()> {
    let mut first: Option<Error> = None;
    for path in paths {
        match drive(bench, args, *path, rate) {
            Ok(driven) => {
                findings.paths.push(driven.result);
                findings.warnings.extend(driven.warnings);
            }
            Err(error) => {
                let error = error.context(path.key());
                findings.errors.push(error.to_string());
                first = first.or(Some(error));
            }
        }
        if bench.is_over() {
            break;
        }
    }
    first.filter(|_| findings.paths.is_empty()).map_or(Ok(()), Err)
}
