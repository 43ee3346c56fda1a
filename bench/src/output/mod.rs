//! What is made of a run's results: a table, JSON, HdrHistogram's two file formats, a page, and a comparison.
//!
//! [`Outputs::open`] comes before the run and [`Outputs::finish`] after it, however it ended: a file that cannot be written
//! is known before anything is measured, and one that fails later takes no other with it.

pub mod baseline;
mod figures;
pub mod hgrm;
pub mod hlog;
pub mod html;
pub mod json;
pub mod machine;
mod plot;
#[cfg(test)]
mod readers;
mod rows;
#[cfg(test)]
pub mod sample;
mod svg;
pub mod table;
pub mod trace;

use crate::model::Results;
use baseline::Baseline;
use figures::{COLUMNS, STAGES, float, keys, measured, microseconds};
use pollvisor::error::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the results go. The table goes to stdout, unless JSON does.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct FileArgs {
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
    /// The subcommand's own table, in place of the one with every path's percentiles.
    pub table: Option<String>,
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
    pub fn open(args: &FileArgs) -> Result<Self> {
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
            let table = extra.table.clone().unwrap_or_else(|| table::table(results));
            print(&(table + &extra.text))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn args(edit: impl FnOnce(&mut FileArgs)) -> FileArgs {
        let mut args = FileArgs { json: true, ..FileArgs::default() };
        edit(&mut args);
        args
    }

    #[test]
    fn a_file_that_cannot_be_written_is_refused_before_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("none").join("x");
        for edit in [
            |a: &mut FileArgs, p: &Path| a.html = Some(p.into()),
            |a: &mut FileArgs, p: &Path| a.hlog = Some(p.into()),
            |a: &mut FileArgs, p: &Path| a.baseline = Some(p.into()),
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
}
