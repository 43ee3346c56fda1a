//! `overhead`: what measuring itself costs.

use crate::common::{Bench, Findings, OutputArgs, cost_line};
use crate::measure::float;
use crate::model::Overhead;
use crate::table;
use pollvisor::clock::Clock;
use pollvisor::error::Result;
use std::hint::black_box;
use std::process::ExitCode;

/// The flags of `overhead`.
#[derive(Debug, clap::Args)]
pub struct OverheadArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// The least of several tries: what disturbs only adds.
fn least(clock: Clock, turn: impl Fn()) -> f64 {
    const TURNS: u32 = 100_000;
    const TRIES: usize = 5;
    let once = || {
        let began = clock.now();
        (0..TURNS).for_each(|_| turn());
        float(clock.ns(clock.now() - began)) / f64::from(TURNS)
    };
    (0..TRIES).map(|_| once()).fold(f64::INFINITY, f64::min)
}

/// Measures it.
#[must_use]
pub fn measure(clock: Clock) -> Overhead {
    let timestamp_ns = least(clock, || {
        black_box(clock.now());
    });
    Overhead { timestamp_ns, empty_loop_ns: least(clock, || black_box(())) }
}

/// Measures and prints.
///
/// # Errors
/// Without an invariant TSC.
pub fn run(args: &OverheadArgs) -> Result<ExitCode> {
    let bench = Bench::begin(&args.output)?;
    if !args.output.files.json {
        let overhead = measure(bench.clock);
        println!("{}; an empty loop's turn {:.2} ns", cost_line(&overhead), overhead.empty_loop_ns);
    }
    bench.finish(Findings::default(), table::latency)
}
