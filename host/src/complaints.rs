//! What is said on standard error only so often: mistakes that a guest can bring about any number of times, for it must not
//! fill its host's log; and waits that last.

use crate::error::Error;
use std::cell::Cell;
use std::fmt::Display;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Complaints about one device that are printed.
const SAID: u32 = 16;

/// Counts what was said of one device.
#[derive(Debug, Default)]
pub struct Complaints(AtomicU32);

impl Complaints {
    /// Says it on standard error, while there is not too much of it.
    pub fn say(&self, who: &dyn Display, error: &Error) {
        if let Some(number) = self.next() {
            let rest = if number == SAID { " (what follows of this kind is not shown)" } else { "" };
            eprintln!("pollvisor: {who}: {error}{rest}");
        }
    }

    /// The number of the next one, from 1; none when it is not to be said.
    fn next(&self) -> Option<u32> {
        let more = |said| (said < SAID).then_some(said + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|said| said + 1)
    }
}

/// A wait that should be over soon. Whoever wonders why nothing goes on is told what for, once.
#[derive(Debug)]
pub struct Wait {
    began: Instant,
    patience: Duration,
    said: Cell<bool>,
}

impl Wait {
    /// Begins to wait, at most `patience` in silence.
    #[must_use]
    pub fn begin(patience: Duration) -> Self {
        Self { began: Instant::now(), patience, said: Cell::new(false) }
    }

    /// Says for what, if it is time to; whether it did.
    pub fn goes_on(&self, what: impl FnOnce() -> String) -> bool {
        let due = !self.said.get() && self.began.elapsed() > self.patience;
        if due {
            self.said.set(true);
            eprintln!("pollvisor: waiting for {:?} now for {}", self.patience, what());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_does_not_fill_the_log() {
        let complaints = Complaints::default();
        let said = (0..1000).filter_map(|_| complaints.next());
        assert!(said.eq(1..=SAID));
    }

    #[test]
    fn a_long_wait_is_said_once() {
        let short = Wait::begin(Duration::from_secs(1000));
        assert!(!short.goes_on(|| panic!("nothing to say yet")));
        let long = Wait::begin(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(1));
        assert!(long.goes_on(|| "a test".to_string()));
        assert!(!long.goes_on(|| panic!("it was said")));
    }
}
