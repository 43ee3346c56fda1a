//! Mistakes that a guest can bring about any number of times, and that are said only so often: it must not fill its
//! host's log.

use crate::error::Error;
use std::fmt::Display;
use std::sync::atomic::{AtomicU32, Ordering};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_does_not_fill_the_log() {
        let complaints = Complaints::default();
        let said = (0..1000).filter_map(|_| complaints.next());
        assert!(said.eq(1..=SAID));
    }
}
