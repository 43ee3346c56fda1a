//! The stretches of an interrupt's way, and how long they took.

use hdrhistogram::Histogram;

/// The longest latency that is recorded, in nanoseconds; a longer one counts as this.
pub const LONGEST_NS: u64 = 60_000_000_000;

/// A stretch of an interrupt's way. The software machine's stages have names of their own, so that nobody takes one
/// figure for the other; only `SignalToSeen` is one thing in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// From the signal to the poller's first sight of it.
    SignalToSeen,
    /// From there to the end of the injecting call.
    SeenToInjected,
    /// From there until the interrupt is in the software LAPIC's posted-interrupt descriptor.
    SeenToPosted,
    /// From the signal until the in-kernel LAPIC has the interrupt.
    SignalToAccepted,
    /// From the signal until the software LAPIC's descriptor has the interrupt.
    SignalToPosted,
    /// From the signal to the first instruction of the guest's handler.
    SignalToHandler,
    /// From the signal until the thread that stands in for a vCPU has taken the vector.
    SignalToStandin,
}

impl Stage {
    /// All, in the order of an interrupt's way.
    pub const ALL: [Self; 7] = [
        Self::SignalToSeen,
        Self::SeenToInjected,
        Self::SeenToPosted,
        Self::SignalToAccepted,
        Self::SignalToPosted,
        Self::SignalToHandler,
        Self::SignalToStandin,
    ];

    /// The key in JSON.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::SignalToSeen => "signal_to_seen",
            Self::SeenToInjected => "seen_to_injected",
            Self::SeenToPosted => "seen_to_posted",
            Self::SignalToAccepted => "signal_to_accepted",
            Self::SignalToPosted => "signal_to_posted",
            Self::SignalToHandler => "signal_to_handler",
            Self::SignalToStandin => "signal_to_standin",
        }
    }

    /// The name in a table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SignalToSeen => "signal → seen",
            Self::SeenToInjected => "seen → injected",
            Self::SeenToPosted => "seen → posted",
            Self::SignalToAccepted => "signal → accepted",
            Self::SignalToPosted => "signal → posted",
            Self::SignalToHandler => "signal → handler",
            Self::SignalToStandin => "signal → stand-in",
        }
    }
}

/// Histograms of one source of latencies, in nanoseconds. `None` where the stage is not measured.
#[derive(Debug, Clone)]
pub struct Stages([Option<Histogram<u64>>; Stage::ALL.len()]);

impl Stages {
    /// Empty histograms for `stages`, with this many significant digits, their memory touched.
    #[must_use]
    pub fn new(stages: &[Stage], digits: u8) -> Self {
        let histogram = |stage: &Stage| {
            let wanted = stages.contains(stage);
            let mut histogram =
                wanted.then(|| Histogram::new_with_bounds(1, LONGEST_NS, digits).ok()).flatten();
            // Writes every counter once, so that no page is missing on the hot path.
            if let Some(histogram) = &mut histogram {
                histogram.reset();
            }
            histogram
        };
        Self(Stage::ALL.map(|stage| histogram(&stage)))
    }

    /// Records one latency.
    #[inline]
    pub fn record(&mut self, stage: Stage, ns: u64) {
        if let Some(histogram) = &mut self.0[stage as usize] {
            histogram.saturating_record(ns);
        }
    }

    /// The histogram of a stage, if it is measured.
    #[must_use]
    pub fn get(&self, stage: Stage) -> Option<&Histogram<u64>> {
        self.0[stage as usize].as_ref()
    }

    /// Adds another's figures; its stages join.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            match (mine.as_mut(), theirs) {
                (Some(mine), Some(theirs)) => {
                    let _same_bounds = mine.add(theirs);
                }
                (None, Some(theirs)) => *mine = Some(theirs.clone()),
                _ => {}
            }
        }
    }

    pub(super) fn reset(&mut self) {
        for histogram in self.0.iter_mut().flatten() {
            histogram.reset();
        }
    }
}
