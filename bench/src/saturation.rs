//! `saturation`: interrupts in a second of one poller's core, as fast as it goes, every signal accounted for.

use crate::common::{Bench, Findings, Goal, OutputArgs};
use crate::drive::{DriveArgs, Rate};
use crate::latency::drive_all;
use crate::measure::float;
use crate::table;
use crate::way::Path;
use pollvisor::accel::Accelerator;
use pollvisor::error::Result;
use std::process::ExitCode;

/// The flags of `saturation`.
#[derive(Debug, clap::Args)]
pub struct SaturationArgs {
    /// Which paths
    #[arg(long = "path", value_enum, value_delimiter = ',', default_values_t = [Path::PolledEventfd, Path::PolledDoorbell], value_name = "PATH,...")]
    paths: Vec<Path>,
    /// Signals in a second that are offered, one rate after the other; 0 for as fast as it goes
    #[arg(long, value_delimiter = ',', default_values_t = [0.0], value_parser = offered, value_name = "N,...")]
    offered: Vec<f64>,
    #[command(flatten)]
    drive: DriveArgs,
    #[command(flatten)]
    output: OutputArgs,
}

fn offered(text: &str) -> std::result::Result<f64, String> {
    if text == "0" { Ok(0.0) } else { crate::latency::rate(text) }
}

/// Measures and prints.
///
/// # Errors
/// When no path could be measured.
pub fn run(args: &SaturationArgs) -> Result<ExitCode> {
    let bench = Bench::begin(&args.output)?;
    let mut findings = Findings::default();
    for offered in &args.offered {
        drive_all(&bench, &args.drive, &args.paths, Rate::Flood(*offered), None, &mut findings)?;
        if bench.is_over() {
            break;
        }
    }
    findings.paths.sort_by(|one, other| one.path.cmp(&other.path));
    for (path, least) in [(Path::PolledDoorbell, 1_000_000.0), (Path::PolledEventfd, 300_000.0)] {
        // The bounds are of KVM, whose injection is most of it.
        if bench.accelerator() == Accelerator::Software {
            continue;
        }
        let found = findings.paths.iter().filter(|found| found.path == path.name(bench.accelerator()));
        let best =
            found.map(|found| found.per_second / float(args.drive.pollers as u64)).max_by(f64::total_cmp);
        if let Some(rate) = best {
            let goal = format!("{}: interrupts a second and poller", path.key());
            findings.goals.push(Goal::at_least(goal, rate, least));
        }
    }
    bench.finish(findings, table::rates)
}
