//! Where events come from, as a poller sees it.

use crate::ids::SourceId;

/// One event: this source has signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fired {
    /// The irqfd the source is hooked to.
    pub id: SourceId,
    /// The source's own note, passed back to it.
    pub token: u64,
    /// When it was signalled, by the source's own account in the observer's unit of time; 0: it does not say.
    pub stamp: u64,
    /// Whether the producer hung up.
    pub hang_up: bool,
}

/// A set of event sources that one poller watches. One thread's; nothing in it is shared with another poller.
///
/// The contract that keeps every signal: an event is reported once, its source stays quiet until
/// [`rearm`](Self::rearm), and one re-armed with signals still in it is reported again.
pub trait Source {
    /// The next event, the sources taking turns. No system call when there is none.
    fn next(&mut self) -> Option<Fired>;

    /// Takes the signals of a fired source; how many.
    fn drain(&mut self, fired: &Fired) -> u64;

    /// Lets a drained source fire again.
    fn rearm(&mut self, fired: &Fired);

    /// The end of a pass: what `rearm` collected takes effect here at the latest.
    fn flush(&mut self);
}
