//! What is made of a run's results: a table, JSON, HdrHistogram's two file formats, a page, and a comparison.
//!
//! [`Outputs::open`] comes before the run and [`Outputs::finish`] after it, however it ended: a file that cannot be written
//! is known before anything is measured, and one that fails later takes no other with it.

pub mod baseline;
pub mod hgrm;
pub mod hlog;
pub mod html;
pub mod json;
pub mod machine;
mod plot;
#[cfg(test)]
mod readers;
#[cfg(test)]
mod sample;
mod svg;
pub mod table;
pub mod trace;

use crate::model::{Ledger, Load, PathResult, Results, Stage};
use baseline::Baseline;
use pollvisor::error::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the results go. The table goes to stdout, unless JSON does.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct OutputArgs {
    /// Print JSON (its schema is bench/schema.json) where a table would be
    #[arg(long)]
    pub json: bool,
    /// Write a page with plots, in one file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write an HdrHistogram interval log, tagged by path and stage
    #[arg(long, value_name = "FILE")]
    pub hlog: Option<PathBuf>,
    /// Write HdrHistogram percentile distributions, a file for each path and stage, into this folder
    #[arg(long, value_name = "DIR")]
    pub hgrm: Option<PathBuf>,
    /// Compare with the JSON of an earlier run, and fail if something got worse
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Compare with a baseline of another machine all the same
    #[arg(long, requires = "baseline")]
    pub force: bool,
}

/// What a subcommand made of its results.
#[derive(Debug, Clone, Default)]
pub struct Extra {
    /// Further properties of the JSON document: those that the schema names, such as `goals`.
    pub json: serde_json::Map<String, serde_json::Value>,
    /// The same for people, below the table; ends with a newline, unless it is empty.
    pub text: String,
}

/// A file that was opened before the run.
#[derive(Debug)]
struct Target {
    flag: &'static str,
    path: PathBuf,
    file: File,
}

/// The outputs of one run, ready to be written.
#[derive(Debug)]
pub struct Outputs {
    json: bool,
    html: Option<Target>,
    hlog: Option<Target>,
    hgrm: Option<PathBuf>,
    baseline: Option<Baseline>,
    force: bool,
}

impl Outputs {
    /// Reads the baseline and creates the files, before anything is measured.
    ///
    /// # Errors
    /// What cannot be read or written, or that two outputs are one file.
    pub fn open(args: &OutputArgs) -> Result<Self> {
        // The baseline first: it could be a file that is about to be overwritten.
        let baseline = args.baseline.as_deref().map(Baseline::read).transpose()?;
        let html = args.html.as_deref().map(|path| Target::create("--html", path)).transpose()?;
        let hlog = args.hlog.as_deref().map(|path| Target::create("--hlog", path)).transpose()?;
        if let (Some(html), Some(hlog)) = (&html, &hlog)
            && html.is_same_file(hlog)
        {
            return Err(Error::new(format!("--html and --hlog are one file, {}", html.path.display()))
                .remedy("two names"));
        }
        args.hgrm.as_deref().map(hgrm::prepare).transpose()?;
        Ok(Self { json: args.json, html, hlog, hgrm: args.hgrm.clone(), baseline, force: args.force })
    }

    /// Refuses a baseline of another machine than `machine`, which saves making the run.
    ///
    /// # Errors
    /// What differs.
    pub fn check_machine(&self, machine: &serde_json::Value) -> Result<()> {
        self.baseline.as_ref().map_or(Ok(()), |baseline| baseline.check(machine, self.force))
    }

    /// Writes everything; whether something got significantly worse than the baseline.
    ///
    /// # Errors
    /// What could not be written, all of it; the rest has been.
    pub fn finish(self, results: &Results, extra: &Extra) -> Result<bool> {
        self.finish_to(results, extra, &mut std::io::stdout().lock())
    }

    fn finish_to(self, results: &Results, extra: &Extra, out: &mut impl Write) -> Result<bool> {
        let mut print = |text: &str| {
            out.write_all(text.as_bytes())
                .and_then(|()| out.flush())
                .map_err(|e| Error::os("writing the result to stdout", &e))
        };
        let mut failed = Vec::new();
        let mut note = |made: Result<()>| failed.extend(made.err());
        note(if self.json {
            json::json(results, extra).and_then(|text| print(&text))
        } else {
            print(&(table::table(results) + &extra.text))
        });
        if let Some(target) = self.html {
            note(target.write(html::html(results, extra).as_bytes()));
        }
        if let Some(target) = self.hlog {
            note(hlog::hlog(results).and_then(|text| target.write(text.as_bytes())));
        }
        if let Some(folder) = &self.hgrm {
            note(hgrm::write(results, folder));
        }
        let mut worse = false;
        if let Some(baseline) = &self.baseline {
            note(baseline.compare(results, self.force).and_then(|comparison| {
                worse = comparison.worse;
                // stdout holds one JSON document and nothing else.
                if self.json {
                    eprint!("{}", comparison.table)
                } else {
                    print(&comparison.table)?
                }
                Ok(())
            }));
        }
        match failed.len() {
            0 => Ok(worse),
            1 => Err(failed.remove(0)),
            _ => Err(Error::new(failed.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))),
        }
    }
}

impl Target {
    fn create(flag: &'static str, path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| {
            Error::os(format!("creating {}", path.display()), &e)
                .remedy(format!("{flag} with a file in a writable folder"))
        })?;
        Ok(Self { flag, path: path.to_path_buf(), file })
    }

    fn is_same_file(&self, other: &Self) -> bool {
        let place = |file: &File| file.metadata().ok().filter(|m| m.is_file()).map(|m| (m.dev(), m.ino()));
        place(&self.file).is_some_and(|ours| Some(ours) == place(&other.file))
    }

    fn write(mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| {
            Error::os(format!("writing {}", self.path.display()), &e)
                .remedy(format!("free some space, or leave out {}", self.flag))
        })
    }
}

/// The stages in the order of an interrupt's way, with their names; then what is of the producer alone.
const STAGES: [(&str, &str); 7] = [
    ("signal_to_seen", "signal → seen"),
    ("seen_to_injected", "seen → injected"),
    ("signal_to_accepted", "signal → accepted"),
    ("signal_to_handler", "signal → handler"),
    ("producer", "producer's cost"),
    ("producer_late", "producer's lateness"),
    ("producer_gaps", "gaps on its core"),
];
/// The key of what an open loop's latencies would be without the wait for their turn.
const UNCORRECTED: &str = "uncorrected";
/// The key of the gaps on the poller's core.
const GAPS: &str = "gaps";

impl PathResult {
    /// The stage that the percentiles of the path itself are of.
    fn main_stage(&self) -> Option<(&'static str, &Stage)> {
        let of = |at: usize| {
            let stage = self.stages.get(STAGES[at].0).filter(|stage| stage.count > 0)?;
            Some((STAGES[at].1, stage))
        };
        of(2).or_else(|| of(3))
    }

    /// Every distribution that was measured, by its key.
    fn distributions(&self) -> Vec<(&str, &Stage)> {
        let known = STAGES.iter().filter_map(|(key, _)| Some((*key, self.stages.get(*key)?)));
        let others = self.stages.iter().filter(|(key, _)| STAGES.iter().all(|(known, _)| key != known));
        known
            .chain(others.map(|(key, stage)| (key.as_str(), stage)))
            .chain(self.uncorrected.as_ref().map(|stage| (UNCORRECTED, stage)))
            .chain(self.gaps.as_ref().map(|stage| (GAPS, stage)))
            .filter(|(_, stage)| stage.count > 0)
            .collect()
    }

    /// The cells of its own percentiles, marked as those of a stage; dashes where there was no latency to measure.
    fn own_cells(&self) -> [String; 3] {
        let stage = self.main_stage().map(|(_, stage)| stage);
        [(self.p50_ns, 2), (self.p99_ns, 100), (self.p999_ns, 1000)].map(|(ns, beyond)| {
            let mark = if stage.is_some_and(|stage| stage.is_thin(beyond)) { "*" } else { "" };
            measured(ns) + mark
        })
    }

    /// The load, for people.
    fn load_name(&self) -> String {
        match &self.load {
            Load::Closed => "closed".into(),
            Load::Open { per_second, schedule } => format!("open, {} /s {schedule}", grouped(*per_second)),
        }
    }

    /// How many vectors, and producers where there are several.
    fn size(&self) -> String {
        if self.producers == 1 {
            self.vectors.to_string()
        } else {
            format!("{} × {} producers", self.vectors, self.producers)
        }
    }
}

/// A name for each path's files and tags: letters, digits, `_` and `-`, and none twice.
fn keys(results: &Results) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for path in &results.paths {
        let mut key = format!("{}-{}", path.path, path.vectors);
        if path.producers != 1 {
            key.push_str(&format!("x{}", path.producers));
        }
        if let Load::Open { per_second, schedule } = &path.load {
            key.push_str(&format!("-open_{per_second:.0}_{schedule}"));
        }
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let mut key: String = key.chars().map(plain).collect();
        while keys.contains(&key) {
            key.push_str("-again");
        }
        keys.push(key);
    }
    keys
}

/// Nanoseconds as microseconds, to two or three figures; a dash where there are none.
fn microseconds(ns: f64) -> String {
    match ns {
        ns if !ns.is_finite() => "-".into(),
        ns if ns < 1000.0 => format!("{:.3}", ns / 1000.0),
        ns if ns < 10_000.0 => format!("{:.2}", ns / 1000.0),
        ns if ns < 100_000.0 => format!("{:.1}", ns / 1000.0),
        ns => format!("{:.0}", ns / 1000.0),
    }
}

/// The same of what cannot be nothing: 0 is what was not measured.
fn measured(ns: f64) -> String {
    microseconds(if ns > 0.0 { ns } else { f64::NAN })
}

/// A count as a float: exact up to 2⁵³.
#[allow(clippy::cast_precision_loss, reason = "for display, and for ratios")]
fn float(count: u64) -> f64 {
    count as f64
}

/// A number without decimals, its thousands set apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        let left = digits.len() - at;
        if at > 0 && left.is_multiple_of(3) && !text.ends_with('-') {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

impl Ledger {
    /// Signals that are not accounted for: 0, or something is wrong.
    fn missing(&self) -> i128 {
        let Self { sent, delivered, merged, dropped } = self;
        i128::from(*sent) - i128::from(*delivered) - i128::from(*merged) - i128::from(*dropped)
    }
}

/// Percentiles in the order of the columns, with how many samples in how many lie beyond.
const COLUMNS: [(&str, u64); 6] =
    [("p50", 2), ("p90", 10), ("p99", 100), ("p99.9", 1000), ("p99.99", 10_000), ("p99.999", 100_000)];

impl Stage {
    fn percentiles(&self) -> [u64; 6] {
        [self.p50_ns, self.p90_ns, self.p99_ns, self.p999_ns, self.p9999_ns, self.p99999_ns]
    }

    /// Whether fewer than ten samples lie beyond the percentile that one in `beyond` exceeds.
    fn is_thin(&self, beyond: u64) -> bool {
        self.count / beyond < 10
    }

    /// The cells of the percentiles: microseconds, with a mark where fewer than ten samples lie beyond.
    fn cells(&self) -> Vec<String> {
        let cell = |(ns, (_, beyond)): (u64, (&str, u64))| {
            format!("{}{}", microseconds(float(ns)), if self.is_thin(beyond) { "*" } else { "" })
        };
        self.percentiles().into_iter().zip(COLUMNS).map(cell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(edit: impl FnOnce(&mut OutputArgs)) -> OutputArgs {
        let mut args = OutputArgs { json: true, ..OutputArgs::default() };
        edit(&mut args);
        args
    }

    #[test]
    fn a_file_that_cannot_be_written_is_refused_before_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("none").join("x");
        for edit in [
            |a: &mut OutputArgs, p: &Path| a.html = Some(p.into()),
            |a: &mut OutputArgs, p: &Path| a.hlog = Some(p.into()),
            |a: &mut OutputArgs, p: &Path| a.baseline = Some(p.into()),
        ] {
            let error = Outputs::open(&args(|a| edit(a, &nowhere))).unwrap_err().to_string();
            assert!(error.contains("none/x") && error.contains("ENOENT"), "{error}");
        }
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = Outputs::open(&args(|a| a.hgrm = Some(file.clone()))).unwrap_err().to_string();
        assert!(error.contains("file"), "{error}");
        let both = Outputs::open(&args(|a| (a.html, a.hlog) = (Some(file.clone()), Some(file.clone()))));
        assert!(both.unwrap_err().to_string().contains("one file"));
    }

    #[test]
    fn one_failed_write_loses_no_other_output() {
        let folder = tempfile::tempdir().unwrap();
        let (hlog, hgrm) = (folder.path().join("out.hlog"), folder.path().join("hgrm"));
        let outputs = Outputs::open(&args(|a| {
            // Takes everything at open, and nothing at write.
            a.html = Some("/dev/full".into());
            (a.hlog, a.hgrm) = (Some(hlog.clone()), Some(hgrm.clone()));
        }));
        let mut results = sample::results();
        results.interrupted = true;
        let error =
            outputs.unwrap().finish_to(&results, &Extra::default(), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("/dev/full") && error.contains("ENOSPC"), "{error}");
        assert!(std::fs::read_to_string(&hlog).unwrap().contains("Tag=irqfd-8:"));
        assert!(std::fs::read_dir(&hgrm).unwrap().count() > results.paths.len());
    }

    #[test]
    fn json_alone_goes_to_stdout_and_the_comparison_with_the_table() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("then.json");
        let mut out = Vec::new();
        let results = sample::results();
        Outputs::open(&args(|_| ())).unwrap().finish_to(&results, &Extra::default(), &mut out).unwrap();
        std::fs::write(&file, &out).unwrap();
        for json in [true, false] {
            let outputs =
                Outputs::open(&args(|a| (a.json, a.baseline) = (json, Some(file.clone())))).unwrap();
            outputs.check_machine(&results.machine).unwrap();
            assert!(outputs.check_machine(&serde_json::Value::Null).is_err());
            out.clear();
            assert!(!outputs.finish_to(&results, &Extra::default(), &mut out).unwrap());
            let text = String::from_utf8(out.clone()).unwrap();
            assert_eq!(json::parse(&text).is_ok(), json);
            assert_eq!(text.contains("then.json"), !json);
        }
    }

    #[test]
    fn names_are_plain_and_none_is_there_twice() {
        let mut results = sample::results();
        results.paths.truncate(1);
        results.paths[0].path = "../a b,\n".into();
        results.paths.push(results.paths[0].clone());
        assert_eq!(keys(&results), ["___a_b__-8", "___a_b__-8-again"]);
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!([0.0, 999.0, 1000.0, 1_234_567.0].map(grouped), ["0", "999", "1 000", "1 234 567"]);
        assert_eq!([9.9, 1234.0, 12_345.0, f64::NAN].map(microseconds), ["0.010", "1.23", "12.3", "-"]);
    }
}
