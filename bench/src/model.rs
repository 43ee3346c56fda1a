//! What a benchmark run found: plain data, from which every output is made.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use pollvisor::error::{Error, Result};
pub use pollvisor::run::Ledger;
use pollvisor::run::StageFigures;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::{AddAssign, Deref};

/// One run of the benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// The number of this layout: 1.
    pub format: u32,
    /// The command line.
    pub command: String,
    /// When it began: RFC 3339, UTC.
    pub began: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Where it ran: `pollvisor::machine::Machine`.
    pub machine: serde_json::Value,
    /// What measuring itself costs.
    pub overhead: Overhead,
    /// Every path at every size.
    pub paths: Vec<PathResult>,
    /// Whether it was ended by Ctrl-C.
    pub interrupted: bool,
    /// What could not be measured, and why.
    pub errors: Vec<String>,
}

/// What measuring itself costs; it is in every figure, and not taken off.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overhead {
    /// One look at the clock, in nanoseconds.
    pub timestamp_ns: f64,
    /// One turn of a loop that does nothing, in nanoseconds.
    pub empty_loop_ns: f64,
    /// One event into the flight recorder, in nanoseconds; in no figure unless `--on-threshold trace` turned it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorder_ns: Option<f64>,
}

/// One path, at one number of vectors and producers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PathResult {
    /// Its name.
    pub path: String,
    /// How many vectors.
    pub vectors: usize,
    /// How many producers.
    pub producers: usize,
    /// How many interleaved rounds.
    pub rounds: usize,
    /// How signals were made.
    pub load: Load,
    /// Median of signal to accepted, in nanoseconds.
    pub p50_ns: f64,
    /// Its 99th percentile.
    pub p99_ns: f64,
    /// Its 99.9th percentile.
    pub p999_ns: f64,
    /// Median of what one signal costs its producer, in nanoseconds.
    pub producer_p50_ns: f64,
    /// Median over the rounds of p50 by the in-kernel irqfd's p50 of the same round; absent on the software machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_to_irqfd: Option<f64>,
    /// Its 95 % bootstrap interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_ci95: Option<[f64; 2]>,
    /// Median over the rounds of p50 by that of the same round where the producer injects itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_to_direct: Option<f64>,
    /// Its 95 % bootstrap interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_to_direct_ci95: Option<[f64; 2]>,
    /// Delivered interrupts, warm-up and all, whose vector the LAPIC had requested already; absent where it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coalesced: Option<u64>,
    /// What became of every signal.
    pub ledger: Ledger,
    /// Every stage, by its key.
    pub stages: BTreeMap<String, Stage>,
    /// Open loop: from the actual signal, not the planned one.
    pub uncorrected: Option<Stage>,
    /// Delivered interrupts in a second.
    pub per_second: f64,
    /// CPU time per interrupt, in nanoseconds.
    pub cpu_ns_per_interrupt: Option<f64>,
    /// TSC gaps on the poller's core.
    pub gaps: Option<Stage>,
    /// Context switches while it was measured, of the process; in rounds of the producer and of who delivers.
    pub context_switches: Option<u64>,
    /// Those of the threads that deliver; none where the kernel does, inside the producer's write.
    #[serde(default)]
    pub delivery_switches: Option<Switches>,
    /// What the hypervisor took meanwhile, in nanoseconds over all CPUs.
    pub steal_ns: Option<u64>,
}

/// Context switches of threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switches {
    /// They waited for something.
    pub voluntary: u64,
    /// Somebody else had their CPU.
    pub involuntary: u64,
}

impl AddAssign for Switches {
    fn add_assign(&mut self, other: Self) {
        self.voluntary += other.voluntary;
        self.involuntary += other.involuntary;
    }
}

/// How signals were made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Load {
    /// The next signal after the last: what is late delays the next, and hides.
    Closed,
    /// By a schedule that does not wait.
    Open {
        /// Signals in a second.
        per_second: f64,
        /// `fixed` or `poisson`.
        schedule: String,
    },
}

/// A distribution of times, in nanoseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stage {
    /// Its figures; zeroes when it is empty.
    #[serde(flatten)]
    pub figures: StageFigures,
    /// All of it: base64 of the HdrHistogram V2 deflate serialisation.
    pub histogram: String,
}

impl Deref for Stage {
    type Target = StageFigures;
    fn deref(&self) -> &StageFigures {
        &self.figures
    }
}

impl Stage {
    /// The summary of a histogram, and the histogram.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let mut bytes = Vec::new();
        // Writing to memory does not fail; a histogram too large to encode would leave the text empty.
        if V2DeflateSerializer::new().serialize(histogram, &mut bytes).is_err() {
            bytes.clear();
        }
        let figures = StageFigures::of(histogram).unwrap_or_default();
        Self { figures, histogram: BASE64_STANDARD.encode(&bytes) }
    }

    /// The histogram.
    ///
    /// # Errors
    /// When the text is not one.
    pub fn decode(&self) -> Result<Histogram<u64>> {
        let bytes = BASE64_STANDARD.decode(&self.histogram);
        let bytes = bytes.map_err(|e| Error::new(format!("a histogram's base64: {e}")))?;
        let histogram = Deserializer::new().deserialize(&mut bytes.as_slice());
        histogram.map_err(|e| Error::new(format!("a histogram's HdrHistogram encoding: {e:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_survives_being_written() {
        let mut histogram = Histogram::new_with_bounds(1, 10_000_000_000, 3).unwrap();
        for value in (1..=100_000u64).map(|n| n * 37) {
            histogram.record(value).unwrap();
        }
        let stage = Stage::of(&histogram);
        assert_eq!(stage.count, 100_000);
        assert_eq!(stage.p50_ns, histogram.value_at_quantile(0.5));
        assert_eq!(stage.decode().unwrap(), histogram);
        let mut broken = stage.clone();
        broken.histogram.truncate(stage.histogram.len() / 2 / 4 * 4);
        assert!(broken.decode().is_err());
        broken.histogram = "?".into();
        assert!(broken.decode().is_err());
    }
}
