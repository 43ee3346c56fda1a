//! `overhead`: what measuring itself costs.

use crate::common::{Bench, Findings, OutputArgs, cost_line};
use crate::measure::float;
use crate::model::Overhead;
use crate::table;
use pollvisor::accel::Accelerator;
use pollvisor::clock::Clock;
use pollvisor::error::Result;
use pollvisor::record::{Figures, Recorder};
use pollvisor::sys::fd::EventFd;
use pollvisor_core::ids::{Generation, SourceId};
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::poll::Observer;
use pollvisor_core::source::{Drained, Fired};
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;

/// The flags of `overhead`.
#[derive(Debug, clap::Args)]
pub struct OverheadArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// The least of several tries: what disturbs only adds.
fn least(clock: Clock, mut turn: impl FnMut()) -> f64 {
    const TURNS: u32 = 100_000;
    const TRIES: usize = 5;
    let mut once = || {
        let began = clock.now();
        (0..TURNS).for_each(|_| turn());
        float(clock.ns(clock.now() - began)) / f64::from(TURNS)
    };
    (0..TRIES).map(|_| once()).fold(f64::INFINITY, f64::min)
}

/// What a poller's recorder takes for an event, with a flight recorder or without.
fn event(clock: Clock, accelerator: Accelerator, flight: bool) -> Result<f64> {
    let figures = Figures::new(&[], 1, false);
    let figures = if flight { figures.with_flight() } else { figures };
    let wake = || EventFd::new().map(Arc::new);
    let mut recorder = Recorder::new(clock, accelerator, figures, (wake()?, wake()?));
    let fired = Fired { id: SourceId { index: 0, generation: Generation(0) }, token: 0, hang_up: false };
    let outcome = Outcome { delivered: 1, ..Outcome::default() };
    let now = clock.now();
    Ok(least(clock, || {
        recorder.delivered(black_box(&fired), now, now, Drained { signals: 1, stamp: now }, outcome);
    }))
}

/// Measures it.
#[must_use]
pub fn measure(clock: Clock, accelerator: Accelerator) -> Overhead {
    let timestamp_ns = least(clock, || {
        black_box(clock.now());
    });
    let both = event(clock, accelerator, true).and_then(|with| Ok(with - event(clock, accelerator, false)?));
    Overhead {
        timestamp_ns,
        empty_loop_ns: least(clock, || black_box(())),
        recorder_ns: both.ok().map(|ns| ns.max(0.0)),
    }
}

/// Measures and prints.
///
/// # Errors
/// Without an invariant TSC.
pub fn run(args: &OverheadArgs) -> Result<ExitCode> {
    let bench = Bench::begin(&args.output)?;
    if !args.output.files.json {
        let overhead = measure(bench.clock, bench.accelerator());
        println!("{}; an empty loop's turn {:.2} ns", cost_line(&overhead), overhead.empty_loop_ns);
        if let Some(ns) = overhead.recorder_ns {
            println!(
                "--on-threshold trace: {ns:.1} ns more for each interrupt, after its injection; else nothing"
            );
        }
    }
    bench.finish(Findings::default(), table::latency)
}
