//! What one thread measured since somebody last asked.

use super::stages::{LONGEST_NS, Stage, Stages};
use crate::flight::Flight;
use hdrhistogram::Histogram;
use pollvisor_core::irqfd::Outcome;

/// One event as a thread dealt with it: for whoever keeps the times of the signals himself. The signals of a slot are
/// numbered by adding up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Whose it was.
    pub slot: usize,
    /// Signals that were in it.
    pub signals: u64,
    /// What became of them; nothing of those that went to the deferred worker.
    pub outcome: Outcome,
    /// When it was seen, in TSC cycles.
    pub seen: u64,
    /// When the injecting call had returned: the first signal's interrupt.
    pub injected: u64,
    /// When the second one had returned: the further signals' interrupt. The same with one signal.
    pub last: u64,
}

/// One thread's figures since they were last taken.
#[derive(Debug, Clone)]
pub struct Figures {
    /// The last events one by one, where somebody wants that. Figures that have it turn it on where they are recorded.
    pub flight: Option<Flight>,
    /// All vectors together.
    pub stages: Stages,
    /// Each vector by itself, less precisely; empty where nobody wants that.
    pub vectors: Vec<Stages>,
    /// What became of each vector's signals.
    pub ledger: Vec<Outcome>,
    /// The last signal → accepted of each vector, in nanoseconds.
    pub latest: Vec<u64>,
    /// Events without a signal in them: an interrupt for nothing.
    pub spurious: u64,
    /// Deliveries whose signal's time is not known.
    pub unstamped: u64,
    /// Signals seen before they were made: clocks that disagree.
    pub negative: u64,
    /// Events handed to the deferred worker.
    pub deferred: u64,
    /// The events one by one, as many as there is room for; see [`keeping`](Self::keeping).
    pub samples: Vec<Sample>,
    /// Events that there was no room for.
    pub lost: u64,
    /// Times between two idle passes, in nanoseconds, from [`SHORTEST_GAP_NS`] on; see [`keeping`](Self::keeping).
    pub gaps: Option<Histogram<u64>>,
}

/// A shorter time between two idle passes is not a gap: nothing interrupted them.
pub const SHORTEST_GAP_NS: u64 = 500;

const DIGITS: u8 = 3;
const VECTOR_DIGITS: u8 = 2;

impl Figures {
    /// Empty figures of `vectors` vectors. `each`: a histogram for every vector, too.
    #[must_use]
    pub fn new(stages: &[Stage], vectors: usize, each: bool) -> Self {
        Self {
            flight: None,
            stages: Stages::new(stages, DIGITS),
            vectors: (0..if each { vectors } else { 0 })
                .map(|_| Stages::new(stages, VECTOR_DIGITS))
                .collect(),
            ledger: vec![Outcome::default(); vectors],
            latest: vec![0; vectors],
            spurious: 0,
            unstamped: 0,
            negative: 0,
            deferred: 0,
            samples: Vec::new(),
            lost: 0,
            gaps: None,
        }
    }

    /// With room for so many events one by one, and, if `gaps`, the times between idle passes, which cost one look at the
    /// clock each.
    #[must_use]
    pub fn keeping(mut self, samples: usize, gaps: bool) -> Self {
        self.samples = Vec::with_capacity(samples);
        self.gaps = gaps.then(|| Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).ok()).flatten();
        self
    }

    pub(super) fn keep(&mut self, sample: Sample) {
        if self.samples.len() < self.samples.capacity() {
            self.samples.push(sample);
        } else if self.samples.capacity() > 0 {
            self.lost += 1;
        }
    }

    /// Records one latency of one vector.
    #[inline]
    pub fn record(&mut self, vector: usize, stage: Stage, ns: u64) {
        self.stages.record(stage, ns);
        if let Some(stages) = self.vectors.get_mut(vector) {
            stages.record(stage, ns);
        }
    }

    /// These, with a flight recorder.
    #[must_use]
    pub fn with_flight(mut self) -> Self {
        self.flight = Some(Flight::new());
        self
    }

    /// Adds another thread's figures, of the same vectors.
    pub fn add(&mut self, other: &Self) {
        match (&mut self.flight, &other.flight) {
            (Some(mine), Some(theirs)) => mine.add(theirs),
            (None, Some(theirs)) => self.flight = Some(theirs.clone()),
            _ => {}
        }
        self.stages.add(&other.stages);
        for (mine, theirs) in self.vectors.iter_mut().zip(&other.vectors) {
            mine.add(theirs);
        }
        for (mine, theirs) in self.ledger.iter_mut().zip(&other.ledger) {
            *mine += *theirs;
        }
        for (mine, theirs) in self.latest.iter_mut().zip(&other.latest) {
            *mine = if *theirs == 0 { *mine } else { *theirs };
        }
        self.spurious += other.spurious;
        self.unstamped += other.unstamped;
        self.negative += other.negative;
        self.deferred += other.deferred;
        self.samples.extend_from_slice(&other.samples);
        self.lost += other.lost;
        match (&mut self.gaps, &other.gaps) {
            (Some(mine), Some(theirs)) => {
                let _same_bounds = mine.add(theirs);
            }
            (None, Some(theirs)) => self.gaps = Some(theirs.clone()),
            _ => {}
        }
    }

    /// Back to nothing, without giving memory back.
    pub fn reset(&mut self) {
        self.flight.iter_mut().for_each(Flight::clear);
        self.stages.reset();
        self.vectors.iter_mut().for_each(Stages::reset);
        self.ledger.fill(Outcome::default());
        self.latest.fill(0);
        (self.spurious, self.unstamped, self.negative, self.deferred) = (0, 0, 0, 0);
        self.samples.clear();
        self.lost = 0;
        self.gaps.iter_mut().for_each(Histogram::reset);
    }

    /// What became of all vectors' signals.
    #[must_use]
    pub fn total(&self) -> Outcome {
        let mut total = Outcome::default();
        self.ledger.iter().for_each(|outcome| total += *outcome);
        total
    }
}
