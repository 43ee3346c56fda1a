//! What a thread of the interrupt path measured, kept to itself until somebody asks.
//!
//! ```text
//!  reporter                              poller (owns `Recorder`)
//!  exchange.offer(empty buffers) ──────► between passes: swaps it for the full ones
//!  exchange.take() ◄──────────────────── hands the full ones back
//! ```
//! Nobody interrupts the poller to read, and it neither allocates nor frees: buffers go round.

use crate::clock::Clock;
use crate::flight::{self, Flight};
use crate::sys::fd::EventFd;
use crossbeam_queue::ArrayQueue;
use hdrhistogram::Histogram;
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::poll::Observer;
use pollvisor_core::source::{Drained, Fired};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The longest latency that is recorded, in nanoseconds; a longer one counts as this.
pub const LONGEST_NS: u64 = 60_000_000_000;

/// A stretch of an interrupt's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// From the signal to the poller's first sight of it.
    SignalToSeen,
    /// From there to the end of the injecting call.
    SeenToInjected,
    /// From the signal until the in-kernel LAPIC has the interrupt.
    SignalToAccepted,
    /// From the signal to the first instruction of the guest's handler.
    SignalToHandler,
}

impl Stage {
    /// All, in the order of an interrupt's way.
    pub const ALL: [Self; 4] =
        [Self::SignalToSeen, Self::SeenToInjected, Self::SignalToAccepted, Self::SignalToHandler];

    /// The key in JSON.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::SignalToSeen => "signal_to_seen",
            Self::SeenToInjected => "seen_to_injected",
            Self::SignalToAccepted => "signal_to_accepted",
            Self::SignalToHandler => "signal_to_handler",
        }
    }

    /// The name in a table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SignalToSeen => "signal → seen",
            Self::SeenToInjected => "seen → injected",
            Self::SignalToAccepted => "signal → accepted",
            Self::SignalToHandler => "signal → handler",
        }
    }
}

/// Histograms of one source of latencies, in nanoseconds. `None` where the stage is not measured.
#[derive(Debug, Clone)]
pub struct Stages([Option<Histogram<u64>>; 4]);

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
        Self([0, 1, 2, 3].map(|i| histogram(&Stage::ALL[i])))
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

    fn reset(&mut self) {
        for histogram in self.0.iter_mut().flatten() {
            histogram.reset();
        }
    }
}

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

    fn keep(&mut self, sample: Sample) {
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

/// Where full figures are swapped for empty ones.
#[derive(Debug)]
pub struct Exchange {
    empty: ArrayQueue<Box<Figures>>,
    full: ArrayQueue<Box<Figures>>,
    wanted: AtomicBool,
}

impl Exchange {
    fn new() -> Arc<Self> {
        Arc::new(Self { empty: ArrayQueue::new(1), full: ArrayQueue::new(1), wanted: AtomicBool::new(false) })
    }

    /// Asks for what was measured, giving empty figures for it. False when somebody asked and was not answered yet.
    pub fn ask(&self, empty: Box<Figures>) -> bool {
        let asked = self.empty.push(empty).is_ok();
        // Release: pairs with the Acquire in `Recorder::turn`.
        self.wanted.store(true, Ordering::Release);
        asked
    }

    /// The answer, once it is there.
    pub fn take(&self) -> Option<Box<Figures>> {
        self.full.pop()
    }
}

/// The poller's observer: its clock, its figures, its way to wake the workers.
#[derive(Debug)]
pub struct Recorder {
    clock: Clock,
    figures: Box<Figures>,
    exchange: Arc<Exchange>,
    wake_deferred: Arc<EventFd>,
    wake_shutdown: Arc<EventFd>,
    /// When the last pass ended, in cycles; 0: it was not an idle one.
    last_idle: u64,
    /// [`SHORTEST_GAP_NS`] in cycles.
    shortest_gap: u64,
}

impl Recorder {
    /// A recorder that starts with `figures`.
    #[must_use]
    pub fn new(
        clock: Clock,
        figures: Figures,
        wake_deferred: Arc<EventFd>,
        wake_shutdown: Arc<EventFd>,
    ) -> Self {
        let (figures, exchange) = (Box::new(figures), Exchange::new());
        let shortest_gap = clock.cycles(Duration::from_nanos(SHORTEST_GAP_NS));
        Self { clock, figures, exchange, wake_deferred, wake_shutdown, last_idle: 0, shortest_gap }
    }

    /// Where to ask for the figures.
    #[must_use]
    pub fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }

    /// Between passes: answers whoever asked. One load when nobody did.
    #[inline]
    pub fn turn(&mut self) {
        if self.figures.gaps.is_some() {
            self.note_gap();
        }
        // Acquire: pairs with the Release in `ask`.
        if self.exchange.wanted.load(Ordering::Acquire)
            && let Some(empty) = self.exchange.empty.pop()
        {
            self.exchange.wanted.store(false, Ordering::Relaxed);
            self.last_idle = 0;
            let full = std::mem::replace(&mut self.figures, empty);
            // The last answer was taken before this was asked, so there is room.
            let _room = self.exchange.full.push(full);
        }
    }

    /// The thread slept of its own will: that is no gap.
    pub fn slept(&mut self) {
        self.last_idle = 0;
    }

    /// The thread ends: what it has.
    #[must_use]
    pub fn finish(self) -> Figures {
        *self.figures
    }

    fn note_gap(&mut self) {
        let now = self.clock.now();
        let gap = now.saturating_sub(self.last_idle);
        if self.last_idle != 0
            && gap >= self.shortest_gap
            && let Some(gaps) = &mut self.figures.gaps
        {
            gaps.saturating_record(self.clock.ns(gap));
        }
        self.last_idle = now;
    }

    #[inline]
    fn note(&mut self, fired: &Fired, stamp: u64, seen: u64, injected: u64) {
        let vector = fired.id.slot();
        let figures = &mut self.figures;
        figures.record(vector, Stage::SeenToInjected, self.clock.ns(injected - seen));
        if stamp == 0 {
            figures.unstamped += 1;
        } else if seen < stamp {
            figures.negative += 1;
        } else {
            let accepted = self.clock.ns(injected - stamp);
            figures.record(vector, Stage::SignalToSeen, self.clock.ns(seen - stamp));
            figures.record(vector, Stage::SignalToAccepted, accepted);
            if let Some(latest) = figures.latest.get_mut(vector) {
                *latest = accepted;
            }
        }
    }

    /// One event into the flight recorder; out of the way of those who have none.
    #[cold]
    fn fly(&mut self, fired: &Fired, seen: u64, injected: u64, drained: Drained) {
        let clock = self.clock;
        if let Some(flight) = &mut self.figures.flight {
            flight.push(flight::Event {
                vector: u32::try_from(fired.id.slot()).unwrap_or(u32::MAX),
                signal_ns: clock.ns(drained.stamp),
                seen_ns: clock.ns(seen),
                injected_ns: clock.ns(injected),
                drained_ns: clock.ns(clock.now()),
                signals: drained.signals,
            });
        }
    }
}

impl Observer for Recorder {
    #[inline(always)]
    fn now(&mut self) -> u64 {
        self.clock.now()
    }

    #[inline]
    fn delivered(&mut self, fired: &Fired, seen: u64, injected: u64, drained: Drained, outcome: Outcome) {
        self.last_idle = 0;
        if self.figures.flight.is_some() {
            self.fly(fired, seen, injected, drained);
        }
        if drained.signals == 0 {
            self.figures.spurious += 1;
            return;
        }
        if self.figures.samples.capacity() > 0 {
            let last = if drained.signals > 1 { self.clock.now() } else { injected };
            let (slot, signals) = (fired.id.slot(), drained.signals);
            self.figures.keep(Sample { slot, signals, outcome, seen, injected, last });
        }
        if let Some(ledger) = self.figures.ledger.get_mut(fired.id.slot()) {
            *ledger += outcome;
        }
        if outcome.delivered > 0 {
            self.note(fired, drained.stamp, seen, injected);
        }
    }

    #[cold]
    fn deferred(&mut self, fired: &Fired, signals: u64, wake: bool) {
        self.figures.deferred += 1;
        self.last_idle = 0;
        let (slot, outcome) = (fired.id.slot(), Outcome::default());
        self.figures.keep(Sample { slot, signals, outcome, seen: 0, injected: 0, last: 0 });
        if wake {
            self.wake_deferred.signal(1);
        }
    }

    #[cold]
    fn hung_up(&mut self, _: &Fired) {
        self.wake_shutdown.signal(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollvisor_core::ids::{Generation, SourceId};

    fn deliver(recorder: &mut Recorder, signals: u64) {
        let fired = Fired { id: SourceId { index: 3, generation: Generation(0) }, token: 0, hang_up: false };
        let outcome = Outcome { delivered: signals.min(1), ..Outcome::default() };
        recorder.delivered(&fired, 2000, 3500, Drained { signals, stamp: 1000 }, outcome);
    }

    fn swap(recorder: &mut Recorder, empty: Figures) -> Box<Figures> {
        let exchange = recorder.exchange().clone();
        assert!(exchange.ask(Box::new(empty)));
        recorder.turn();
        exchange.take().expect("an answer")
    }

    #[test]
    fn what_is_taken_from_a_thread_is_a_gap_and_what_it_sleeps_is_none() {
        let wake = || Arc::new(EventFd::new().expect("an eventfd"));
        let clock = Clock::calibrate().expect("a clock");
        let figures = || Figures::new(&[], 0, false).keeping(0, true);
        let mut recorder = Recorder::new(clock, figures(), wake(), wake());
        let nap = Duration::from_millis(5);
        let longest = |figures: &Figures| figures.gaps.as_ref().map(Histogram::max);
        recorder.turn();
        std::thread::sleep(nap);
        recorder.slept();
        assert_eq!(longest(&swap(&mut recorder, figures())), Some(0), "it says that it slept");
        recorder.turn();
        std::thread::sleep(nap);
        let taken = longest(&swap(&mut recorder, figures()));
        assert!(taken.is_some_and(|ns| ns >= 4_000_000), "{taken:?}");
    }

    #[test]
    fn the_flight_recorder_comes_and_goes_with_the_figures() {
        let wake = || Arc::new(EventFd::new().expect("an eventfd"));
        let clock = Clock::from_khz(1_000_000);
        let figures = || Figures::new(&Stage::ALL, 4, false);
        let mut recorder = Recorder::new(clock, figures(), wake(), wake());
        deliver(&mut recorder, 1);
        assert!(swap(&mut recorder, figures().with_flight()).flight.is_none());
        deliver(&mut recorder, 2);
        deliver(&mut recorder, 0);
        let mut full = swap(&mut recorder, figures());
        let events: Vec<_> = full.flight.as_ref().expect("it was on").events().copied().collect();
        assert_eq!(events.iter().map(|event| event.signals).collect::<Vec<_>>(), [2, 0]);
        let flight::Event { vector, signal_ns, seen_ns, injected_ns, drained_ns, .. } = events[0];
        // A conversion may be a nanosecond short.
        let near = |ns: u64, expected: u64| ns == expected || ns + 1 == expected;
        assert!(vector == 3 && near(signal_ns, 1000) && near(seen_ns, 2000) && near(injected_ns, 3500));
        assert!(drained_ns > injected_ns, "the host runs for longer than that");
        deliver(&mut recorder, 1);
        assert!(recorder.finish().flight.is_none());
        let mut sum = figures();
        sum.add(&full);
        assert_eq!(sum.flight.as_ref().map(|flight| flight.events().count()), Some(2));
        full.reset();
        assert_eq!(full.flight.as_ref().map(|flight| flight.events().count()), Some(0));
    }
}
