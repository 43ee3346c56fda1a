//! Watches for latencies beyond a threshold, and keeps the last events for a trace of what led to one.
//!
//! The pollers' flight recorders have what they saw, the matching when it was signalled; together they are the trace. Where
//! no poller of ours delivers, the matching has it all.

use crate::output::trace::Event;
use pollvisor::clock::Clock;
use pollvisor::flight::{EVENTS, Flight};
use std::collections::{HashMap, VecDeque};

/// A latency beyond the threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Whose.
    pub vector: usize,
    /// How long, in nanoseconds.
    pub ns: u64,
    /// When its event was seen, in TSC cycles.
    pub seen: u64,
}

/// One event; times in TSC cycles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recent {
    /// Whose.
    pub vector: usize,
    /// When its first signal was made.
    pub made: u64,
    /// When it was seen.
    pub seen: u64,
    /// When it was injected.
    pub injected: u64,
    /// How many signals were in it.
    pub signals: u64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Watch {
    limit: u64,
    worst: Option<Hit>,
    recent: VecDeque<Recent>,
    room: usize,
}

impl Watch {
    /// Beyond `limit` nanoseconds. `pollers`: whose last events are kept; 0: nobody's.
    #[must_use]
    pub fn new(limit: u64, pollers: usize) -> Self {
        Self { limit, worst: None, recent: VecDeque::new(), room: pollers * EVENTS }
    }

    /// A latency was found.
    pub fn latency(&mut self, vector: usize, ns: u64, seen: u64) {
        if ns > self.limit && self.worst.is_none_or(|worst| worst.ns < ns) {
            self.worst = Some(Hit { vector, ns, seen });
        }
    }

    /// An event was found.
    pub fn event(&mut self, event: Recent) {
        if self.room > 0 {
            if self.recent.len() == self.room {
                self.recent.pop_front();
            }
            self.recent.push_back(event);
        }
    }

    /// The longest latency beyond the threshold since it was last asked.
    pub fn take_hit(&mut self) -> Option<Hit> {
        self.worst.take()
    }

    /// The last events, with when they were signalled as far as that is known. Without `flights` those of the matching,
    /// whose vectors are delivered by `threads` in turn.
    #[must_use]
    pub fn events(&self, flights: &[Flight], threads: usize, clock: Clock) -> Vec<Event> {
        let number = |vector: usize| u32::try_from(vector).unwrap_or(u32::MAX);
        if flights.is_empty() {
            let event = |recent: &Recent| Event {
                poller: recent.vector % threads.max(1),
                vector: number(recent.vector),
                signal_ns: clock.ns(recent.made),
                seen_ns: clock.ns(recent.seen),
                injected_ns: clock.ns(recent.injected),
                drained_ns: clock.ns(recent.injected),
                signals: recent.signals,
            };
            return self.recent.iter().map(event).collect();
        }
        let key = |recent: &Recent| (number(recent.vector), clock.ns(recent.seen));
        let made: HashMap<_, _> =
            self.recent.iter().map(|recent| (key(recent), clock.ns(recent.made))).collect();
        let mut events = Vec::new();
        for (poller, flight) in flights.iter().enumerate() {
            for event in flight.events() {
                let mut event = Event::of(poller, event);
                if event.signal_ns == 0 {
                    event.signal_ns = made.get(&(event.vector, event.seen_ns)).copied().unwrap_or(0);
                }
                events.push(event);
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollvisor::flight;

    /// A cycle is a nanosecond.
    fn clock() -> Clock {
        Clock::from_khz(1_000_000)
    }

    fn recent(vector: usize, made: u64) -> Recent {
        Recent { vector, made, seen: made + 1000, injected: made + 2000, signals: 1 }
    }

    #[test]
    fn the_worst_beyond_the_threshold_is_told_once() {
        let mut watch = Watch::new(100, 0);
        watch.latency(1, 100, 7);
        assert_eq!(watch.take_hit(), None);
        [(2, 101), (3, 500), (4, 300)].into_iter().for_each(|(vector, ns)| watch.latency(vector, ns, 9));
        assert_eq!(watch.take_hit(), Some(Hit { vector: 3, ns: 500, seen: 9 }));
        assert_eq!(watch.take_hit(), None);
    }

    #[test]
    fn events_are_kept_only_where_asked_and_the_oldest_go() {
        let (mut none, mut one) = (Watch::new(0, 0), Watch::new(0, 1));
        for n in 0..EVENTS + 10 {
            none.event(recent(n, 1000));
            one.event(recent(n, 1000));
        }
        assert!(none.events(&[], 1, clock()).is_empty());
        let events = one.events(&[], 2, clock());
        assert_eq!((events.len(), events[0].vector, events[1].poller), (EVENTS, 10, 1));
        assert!(
            events.iter().all(|event| event.signal_ns < event.seen_ns && event.seen_ns < event.injected_ns)
        );
    }

    #[test]
    fn a_pollers_events_get_the_times_of_their_signals() {
        let mut watch = Watch::new(0, 1);
        watch.event(recent(5, 10_000));
        let at = clock().ns(11_000);
        let event = |vector, seen_ns, signal_ns| flight::Event {
            vector,
            signal_ns,
            seen_ns,
            injected_ns: seen_ns + 1000,
            drained_ns: seen_ns + 1500,
            signals: 1,
        };
        let mut flight = Flight::new();
        [event(5, at, 0), event(5, at + 7, 0), event(6, at, 0), event(5, at, 42)]
            .into_iter()
            .for_each(|event| flight.push(event));
        let events = watch.events(&[Flight::new(), flight], 1, clock());
        let signals: Vec<_> = events.iter().map(|event| (event.poller, event.signal_ns)).collect();
        assert_eq!(signals, [(1, clock().ns(10_000)), (1, 0), (1, 0), (1, 42)]);
    }
}
