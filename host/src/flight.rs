//! The flight recorder: the last events of a poller one by one, where histograms only keep how many there were of each.
//!
//! A ring of fixed size with one writer, the poller; it goes to the reader as part of the figures, by the exchange of
//! [`crate::record`], so nobody reads what is being written. No lock, no allocation: an
//! event costs one look at the clock and 48 bytes stored, and where nobody records, one comparison.

/// How many events are kept.
pub const EVENTS: usize = 4096;

/// One interrupt's way through a poller; times in nanoseconds of the host's counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Event {
    /// Which vector.
    pub vector: u32,
    /// When it was signalled; 0 when the source does not say.
    pub signal_ns: u64,
    /// When the poller saw it.
    pub seen_ns: u64,
    /// When the injecting call returned.
    pub injected_ns: u64,
    /// When its source was drained.
    pub drained_ns: u64,
    /// How many signals were in it; 0 when it was spurious.
    pub signals: u64,
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Flight {
    ring: Box<[Event]>,
    /// Events since it was cleared; the next one's place is this, modulo the size.
    count: usize,
}

impl Default for Flight {
    fn default() -> Self {
        Self::new()
    }
}

impl Flight {
    /// An empty one, its memory touched.
    #[must_use]
    pub fn new() -> Self {
        let mut ring = vec![Event::default(); EVENTS].into_boxed_slice();
        // Memory that is only zero is not there yet: a store to each page gets it.
        ring.iter_mut().for_each(|event| *std::hint::black_box(event) = Event::default());
        Self { ring, count: 0 }
    }

    /// Records an event; the oldest goes when there is no room.
    #[inline]
    pub fn push(&mut self, event: Event) {
        self.ring[self.count % EVENTS] = event;
        self.count += 1;
    }

    /// What is there, the oldest first.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        let (newer, older) = self.ring.split_at(if self.count < EVENTS { 0 } else { self.count % EVENTS });
        older.iter().chain(newer).take(self.count)
    }

    /// How many events went because there was no room.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.count.saturating_sub(EVENTS)
    }

    /// Adds what was recorded later.
    pub fn add(&mut self, later: &Self) {
        self.count += later.lost();
        // What is not known any more pushes nothing out, but what follows it does.
        later.events().for_each(|event| self.push(*event));
    }

    /// Forgets everything, without giving memory back.
    pub fn clear(&mut self) {
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder(signals: std::ops::Range<u64>) -> Flight {
        let mut flight = Flight::new();
        signals.for_each(|signals| flight.push(Event { signals, ..Event::default() }));
        flight
    }

    fn signals(flight: &Flight) -> Vec<u64> {
        flight.events().map(|event| event.signals).collect()
    }

    #[test]
    fn the_last_events_are_kept_in_order() {
        for (count, first, lost) in
            [(0, 0, 0), (10, 0, 0), (4096, 0, 0), (4097, 1, 1), (20_000, 15_904, 15_904)]
        {
            let flight = recorder(0..count);
            assert_eq!(signals(&flight), (first..count).collect::<Vec<_>>());
            assert_eq!(flight.lost(), lost);
        }
    }

    #[test]
    fn a_cleared_one_is_empty() {
        let mut flight = recorder(0..5000);
        flight.clear();
        assert_eq!((signals(&flight), flight.lost()), (Vec::new(), 0));
        flight.push(Event::default());
        assert_eq!(signals(&flight), [0]);
    }

    #[test]
    fn added_ones_are_as_if_one_had_recorded_it_all() {
        for (middle, end) in [(0, 0), (10, 20), (10, 5000), (5000, 5010), (9000, 20_000), (4096, 8192)] {
            let mut flight = recorder(0..middle);
            flight.add(&recorder(middle..end));
            assert_eq!(signals(&flight), signals(&recorder(0..end)), "{middle} {end}");
            assert_eq!(flight.lost(), recorder(0..end).lost());
        }
    }
}
