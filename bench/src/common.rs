//! What every subcommand has: its output's flags, the clock, Ctrl-C, and the end, which is a report and an exit code.

use crate::measure::float;
use crate::measure::watch::{Hit, Watch};
use crate::model::{Overhead, PathResult, Results};
use crate::output::trace::{Event, trace};
use crate::output::{self, Extra, Outputs};
use crate::threshold::{Threshold, ThresholdArgs};
use crate::{overhead, table};
use pollvisor::accel::{Accelerator, Choice, choose};
use pollvisor::cli::AccelArg;
use pollvisor::clock::Clock;
use pollvisor::error::{Error, Result};
use pollvisor::flight::Flight;
use pollvisor::machine::Machine;
use pollvisor::pin::available;
use serde::Serialize;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Bad use or failure, as rtla has it.
pub const FAILED: u8 = 1;
/// A latency was beyond the threshold, as rtla has it.
pub const HIT: u8 = 2;

/// The flags of every result.
#[derive(Debug, Clone, clap::Args)]
pub struct OutputArgs {
    /// What takes the interrupts
    #[arg(long, value_enum, default_value_t = AccelArg::Auto)]
    pub accel: AccelArg,
    /// What is made of the results.
    #[command(flatten)]
    pub files: output::FileArgs,
    /// No progress line
    #[arg(short, long)]
    pub quiet: bool,
    /// What is all right, and what to do where it is not.
    #[command(flatten)]
    pub threshold: ThresholdArgs,
}

/// A goal, and what was measured.
#[derive(Debug, Serialize)]
pub struct Goal {
    /// What.
    pub goal: String,
    /// What was measured.
    pub measured: f64,
    /// The most it may be; `None`: see `at_least`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// The least it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// Whether it is met.
    pub met: bool,
}

impl Goal {
    /// One that is met up to `most`.
    pub fn at_most(goal: impl Into<String>, measured: f64, most: f64) -> Self {
        Self { goal: goal.into(), measured, at_most: Some(most), at_least: None, met: measured <= most }
    }

    /// One that is met from `least` on.
    pub fn at_least(goal: impl Into<String>, measured: f64, least: f64) -> Self {
        Self { goal: goal.into(), measured, at_most: None, at_least: Some(least), met: measured >= least }
    }
}

/// How a median grows: p50 = a n^exponent.
#[derive(Debug, Serialize)]
pub struct Growth {
    /// Whose.
    pub path: String,
    /// With what: `vectors` or `producers`.
    pub with: &'static str,
    /// By least squares on logarithms.
    pub exponent: f64,
    /// The last p50 by the first.
    pub ratio: f64,
}

/// What a subcommand found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Every path.
    pub paths: Vec<PathResult>,
    /// What could not be measured, and why.
    pub errors: Vec<String>,
    /// What a reader should know.
    pub warnings: Vec<String>,
    /// Goals.
    pub goals: Vec<Goal>,
    /// Exponents.
    pub growth: Vec<Growth>,
}

/// The model's results, and what this run made of them.
#[derive(Debug)]
pub struct Report {
    /// What was found.
    pub results: Results,
    /// What was asked of it.
    pub goals: Vec<Goal>,
    /// How it grows.
    pub growth: Vec<Growth>,
}

/// One run of a subcommand.
#[derive(Debug)]
pub struct Bench {
    /// What takes the interrupts.
    pub choice: Choice,
    /// The clock of all figures.
    pub clock: Clock,
    /// The CPUs of this process, before any thread was pinned.
    pub cpus: Vec<usize>,
    /// What is all right.
    pub threshold: Threshold,
    interrupted: Arc<AtomicBool>,
    began: SystemTime,
    started: Instant,
    source: String,
    output: OutputArgs,
    outputs: Outputs,
}

impl Bench {
    /// Begins.
    ///
    /// # Errors
    /// Without an invariant TSC.
    pub fn begin(output: &OutputArgs) -> Result<Self> {
        Self::begin_with(output, None)
    }

    /// Begins, with this source of all signals.
    ///
    /// # Errors
    /// Without an invariant TSC.
    pub fn begin_with(output: &OutputArgs, source: Option<String>) -> Result<Self> {
        let source = source.unwrap_or_else(|| "every source".into());
        // From here on Ctrl-C ends it with a report.
        let interrupted = interrupts()?;
        // What cannot be written, or not be compared, is known before anything is measured.
        let outputs = Outputs::open(&output.files)?;
        let threshold = Threshold::new(&output.threshold)?;
        let choice = choose(output.accel)?;
        let clock = Clock::calibrate()?;
        outputs.check_machine(&value(machine(&choice, clock, &source))?)?;
        Ok(Self {
            choice,
            outputs,
            source,
            threshold,
            interrupted,
            cpus: available(),
            clock,
            began: SystemTime::now(),
            started: Instant::now(),
            output: output.clone(),
        })
    }

    /// What takes the interrupts.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.choice.accelerator
    }

    /// Whether the first Ctrl-C has come: to end, and to report what there is.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Whether to end, and to report what there is: the first Ctrl-C has come, or a latency beyond the threshold.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_interrupted() || self.threshold.is_over()
    }

    /// A watch for latencies beyond the threshold, with the last events of `threads` where those are asked for.
    #[must_use]
    pub fn watch(&self, threads: usize) -> Watch {
        Watch::new(self.threshold.ns(), if self.threshold.records() { threads } else { 0 })
    }

    /// Deals with a latency beyond the threshold, if there was one since it was last asked and the run goes on.
    /// `threads` deliver, or produce where the kernel delivers.
    pub fn check(&self, name: &str, watch: &mut Watch, flights: &[Flight], threads: usize) {
        if self.threshold.is_over() {
            return;
        }
        let Some(hit) = watch.take_hit() else { return };
        self.threshold.act(|| {
            let events = watch.events(flights, threads, self.clock);
            let mut about = about(name, hit, self.threshold.ns(), self.clock, &events);
            about["accelerator"] = self.accelerator().key().into();
            trace(name, &events, &about)
        });
    }

    /// The line that says how far it is; nothing with `--quiet` or `--json`.
    pub fn progress(&self, line: &str) {
        if !self.output.quiet && !self.output.files.json {
            eprint!("\r{line:<70}");
        }
    }

    /// Prints everything; the exit code.
    ///
    /// # Errors
    /// When nothing at all was measured: why.
    pub fn finish(
        self,
        mut findings: Findings,
        table: fn(&[PathResult]) -> comfy_table::Table,
    ) -> Result<ExitCode> {
        self.progress("");
        self.progress("\r");
        findings.errors.extend(self.threshold.failures());
        let accelerator = self.accelerator();
        let mut machine = machine(&self.choice, self.clock, &self.source);
        findings.warnings.sort_unstable();
        findings.warnings.dedup();
        machine.warnings.append(&mut findings.warnings);
        let line = machine.line();
        let warnings = machine.warnings.clone();
        let machine = value(machine)?;
        let results = Results {
            format: 1,
            command: std::env::args().collect::<Vec<_>>().join(" "),
            began: rfc3339(self.began),
            seconds: self.started.elapsed().as_secs_f64(),
            machine,
            overhead: overhead::measure(self.clock, accelerator),
            paths: findings.paths,
            interrupted: self.is_interrupted(),
            errors: findings.errors,
        };
        let report = Report { results, goals: findings.goals, growth: findings.growth };
        if accelerator == Accelerator::Software {
            eprintln!("{}", accelerator.headline());
        }
        let mut text = table::findings(&report) + &line + "\n";
        warnings.iter().for_each(|warning| text.push_str(&format!("note: {warning}\n")));
        let extra =
            Extra { json: more(&report)?, text, table: Some(table::text(&report, accelerator, table)) };
        let worse = self.outputs.finish(&report.results, &extra)?;
        if self.threshold.is_hit() {
            eprintln!("pollvisor-bench: a latency was beyond {} ns", self.threshold.ns());
            return Ok(ExitCode::from(HIT));
        }
        Ok(ExitCode::from(if report.results.errors.is_empty() && !worse { 0 } else { FAILED }))
    }
}

/// What a trace is of. An event that was recorded too long before the look at it is no more among them.
fn about(name: &str, hit: Hit, threshold: u64, clock: Clock, events: &[Event]) -> serde_json::Value {
    let seen = clock.ns(hit.seen);
    let recorded = |event: &Event| usize::try_from(event.vector) == Ok(hit.vector) && event.seen_ns == seen;
    serde_json::json!({"path": name, "threshold_ns": threshold, "latency_ns": hit.ns, "vector": hit.vector,
        "seen_ns": seen, "recorded": events.iter().any(recorded)})
}

/// The machine that figures are made on.
fn machine(choice: &Choice, clock: Clock, source: &str) -> Machine {
    let mut machine = Machine::this(choice.accelerator, clock);
    machine.warnings.extend(choice.warning());
    (machine.delivery, machine.source) = ("every path".into(), source.into());
    machine.idle = "none".into();
    machine.pinned = true;
    machine
}

fn value(of: impl Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(of).map_err(|e| Error::new(format!("writing JSON: {e}")))
}

/// What the JSON document has beside the results.
fn more(report: &Report) -> Result<serde_json::Map<String, serde_json::Value>> {
    let mut more = serde_json::Map::new();
    if !report.goals.is_empty() {
        more.insert("goals".into(), value(&report.goals)?);
    }
    if !report.growth.is_empty() {
        more.insert("growth".into(), value(&report.growth)?);
    }
    Ok(more)
}

/// What measuring costs.
#[must_use]
pub fn cost_line(overhead: &Overhead) -> String {
    format!("one timestamp costs {:.1} ns, in every figure and not taken off", overhead.timestamp_ns)
}

/// Set by the first SIGINT or SIGTERM; the second ends the process.
fn interrupts() -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    const SECOND: i32 = 130;
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, SECOND, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .map_err(|e| Error::os("handling SIGINT and SIGTERM", &e))?;
    }
    Ok(flag)
}

/// A time as RFC 3339 has it, in UTC.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's days_from_civil, the other way round; from 0000-03-01, in eras of 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + next;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// A quantile of a histogram as a float.
#[must_use]
pub fn quantile(histogram: &hdrhistogram::Histogram<u64>, quantile: f64) -> f64 {
    float(histogram.value_at_quantile(quantile))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
