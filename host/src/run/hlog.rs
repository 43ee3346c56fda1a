//! The HdrHistogram interval log (version 1.3), tagged by stage.

use crate::accel::Accelerator;
use crate::error::{Error, Result};
use crate::record::{Figures, Stage};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A log being written.
#[derive(Debug)]
pub struct Hlog {
    path: PathBuf,
    file: BufWriter<File>,
}

/// The unit of the "maximum" column: milliseconds of our nanoseconds.
const MAX_DIVISOR: f64 = 1_000_000.0;

impl Hlog {
    /// Creates the file, before anything is measured.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, accelerator: Accelerator) -> Result<Self> {
        let what = || format!("creating the histogram log {}", path.display());
        let file = File::create(path)
            .map_err(|e| Error::os(what(), &e).remedy("--hlog with a file in a writable folder"))?;
        let mut log = Self { path: path.to_path_buf(), file: BufWriter::new(file) };
        let now = SystemTime::now();
        IntervalLogWriterBuilder::new()
            .add_comment("pollvisor; latencies in nanoseconds, tagged by stage")
            .add_comment(accelerator.headline())
            .with_start_time(now)
            .with_base_time(now)
            .with_max_value_divisor(MAX_DIVISOR)
            .begin_log_with(&mut log.file, &mut V2DeflateSerializer::new())
            .map_err(|e| Error::os(what(), &e))?;
        Ok(log)
    }

    /// Adds what was measured from `start` to `start + length` after the log began.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, figures: &Figures, start: Duration, length: Duration) -> Result<()> {
        let mut serializer = V2DeflateSerializer::new();
        let mut lines = Vec::new();
        // A second header is only made in memory, and not copied: the crate writes intervals through a header's writer.
        let mut writer = IntervalLogWriterBuilder::new()
            .with_max_value_divisor(MAX_DIVISOR)
            .begin_log_with(&mut lines, &mut serializer)
            .map_err(|e| self.failed(&e))?;
        for stage in Stage::ALL {
            let Some(histogram) = figures.stages.get(stage).filter(|h| !h.is_empty()) else { continue };
            writer
                .write_histogram(histogram, start, length, Tag::new(stage.key()))
                .map_err(|e| self.failed(&std::io::Error::other(format!("{e:?}"))))?;
        }
        let text = String::from_utf8_lossy(&lines);
        for line in text.lines().filter(|line| line.starts_with("Tag=")) {
            writeln!(self.file, "{line}").map_err(|e| self.failed(&e))?;
        }
        Ok(())
    }

    /// Ends the log.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.file.flush().map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        Error::os(format!("writing the histogram log {}: {error}", self.path.display()), error)
            .remedy("free some space, or leave out --hlog")
    }
}
