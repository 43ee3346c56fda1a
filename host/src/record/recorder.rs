//! The poller's observer: notes what each delivery took.

use super::{Exchange, Figures, SHORTEST_GAP_NS, Sample, Stage};
use crate::accel::Accelerator;
use crate::clock::Clock;
use crate::flight;
use crate::sys::fd::EventFd;
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::poll::Observer;
use pollvisor_core::source::{Drained, Fired};
use std::sync::Arc;
use std::time::Duration;

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
    /// The names of its stages on this accelerator.
    seen_to_injected: Stage,
    signal_to_accepted: Stage,
}

impl Recorder {
    /// A recorder that starts with `figures`; `wake_deferred` and `wake_shutdown` wake the workers.
    #[must_use]
    pub fn new(
        clock: Clock,
        accelerator: Accelerator,
        figures: Figures,
        (wake_deferred, wake_shutdown): (Arc<EventFd>, Arc<EventFd>),
    ) -> Self {
        let (figures, exchange) = (Box::new(figures), Exchange::new());
        let shortest_gap = clock.cycles(Duration::from_nanos(SHORTEST_GAP_NS));
        Self {
            clock,
            figures,
            exchange,
            wake_deferred,
            wake_shutdown,
            last_idle: 0,
            shortest_gap,
            seen_to_injected: accelerator.seen_to_injected(),
            signal_to_accepted: accelerator.signal_to_accepted(),
        }
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
        if let Some(empty) = self.exchange.asked() {
            self.last_idle = 0;
            self.exchange.answer(std::mem::replace(&mut self.figures, empty));
        }
    }

    /// The thread slept of its own will: that is no gap.
    pub fn slept(&mut self) {
        self.last_idle = 0;
    }

    /// The thread ends: what it has, and what nobody fetched.
    #[must_use]
    pub fn finish(self) -> Figures {
        match self.exchange.take() {
            Some(mut all) => {
                all.add(&self.figures);
                *all
            }
            None => *self.figures,
        }
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
        figures.record(vector, self.seen_to_injected, self.clock.ns(injected - seen));
        if stamp == 0 {
            figures.unstamped += 1;
        } else if seen < stamp {
            figures.negative += 1;
        } else {
            let accepted = self.clock.ns(injected - stamp);
            figures.record(vector, Stage::SignalToSeen, self.clock.ns(seen - stamp));
            figures.record(vector, self.signal_to_accepted, accepted);
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
        if let Some(ledger) = self.figures.ledger.get_mut(fired.id.slot()) {
            *ledger += outcome;
        }
        if drained.signals == 0 {
            // Nothing was injected for a source that is gone, nor where no LAPIC took it.
            self.figures.spurious += outcome.spurious;
            return;
        }
        if self.figures.samples.capacity() > 0 {
            let last = if drained.signals > 1 { self.clock.now() } else { injected };
            let (slot, signals) = (fired.id.slot(), drained.signals);
            self.figures.keep(Sample { slot, signals, outcome, seen, injected, last });
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
    use pollvisor_core::inject::Accepted;

    fn deliver(recorder: &mut Recorder, signals: u64) {
        let fired = Fired { id: SourceId { index: 3, generation: Generation(0) }, token: 0, hang_up: false };
        let outcome = Outcome::of(signals, Some(Accepted::default()));
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
        let mut recorder = Recorder::new(clock, Accelerator::Kvm, figures(), (wake(), wake()));
        let nap = Duration::from_millis(5);
        let longest = |figures: &Figures| figures.gaps.as_ref().map(hdrhistogram::Histogram::max);
        recorder.turn();
        std::thread::sleep(nap);
        recorder.slept();
        assert_eq!(longest(&swap(&mut recorder, figures())), Some(0), "it says that it slept");
        recorder.turn();
        std::thread::sleep(nap);
        let taken = longest(&swap(&mut recorder, figures()));
        assert!(taken.is_some_and(|ns| ns >= 4_000_000), "{taken:?}");
    }

    /// What LAPICs counted is compared with it: an event for which nothing was injected is not in it.
    #[test]
    fn only_what_a_lapic_accepted_is_spurious() {
        let wake = || Arc::new(EventFd::new().expect("an eventfd"));
        let figures = || Figures::new(&[], 4, false);
        let mut recorder =
            Recorder::new(Clock::from_khz(1_000_000), Accelerator::Software, figures(), (wake(), wake()));
        deliver(&mut recorder, 0);
        let gone = Fired { id: SourceId { index: 3, generation: Generation(0) }, token: 0, hang_up: false };
        recorder.delivered(&gone, 2000, 2000, Drained::default(), Outcome::default());
        recorder.delivered(&gone, 2000, 3500, Drained::default(), Outcome::of(0, None));
        assert_eq!(swap(&mut recorder, figures()).spurious, 1);
    }

    /// Who asked for figures may have given up before they came: nothing of them is lost.
    #[test]
    fn an_answer_that_came_too_late_is_in_the_next() {
        let wake = || Arc::new(EventFd::new().expect("an eventfd"));
        let figures = || Figures::new(&[], 4, false);
        let mut recorder =
            Recorder::new(Clock::from_khz(1_000_000), Accelerator::Software, figures(), (wake(), wake()));
        let exchange = recorder.exchange().clone();
        for _ in 0..2 {
            deliver(&mut recorder, 1);
            assert!(exchange.ask(Box::new(figures())));
            recorder.turn();
        }
        assert_eq!(exchange.take().expect("an answer").total().delivered, 2);
        assert!(exchange.take().is_none());
        deliver(&mut recorder, 1);
        assert!(exchange.ask(Box::new(figures())));
        recorder.turn();
        assert_eq!(recorder.finish().total().delivered, 1, "nor at the end");
    }

    #[test]
    fn the_flight_recorder_comes_and_goes_with_the_figures() {
        let wake = || Arc::new(EventFd::new().expect("an eventfd"));
        let clock = Clock::from_khz(1_000_000);
        let figures = || Figures::new(&Stage::ALL, 4, false);
        let mut recorder = Recorder::new(clock, Accelerator::Kvm, figures(), (wake(), wake()));
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
