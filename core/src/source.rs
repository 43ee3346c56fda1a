//! Where events come from, as a poller sees it.

use crate::ids::SourceId;

/// One event: this source has signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fired {
    /// The irqfd the source is hooked to.
    pub id: SourceId,
    /// The source's own note, passed back to it.
    pub token: u64,
    /// Whether the producer hung up.
    pub hang_up: bool,
}

/// What was in a fired source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// How many signals.
    pub signals: u64,
    /// When the first was made, by the source's own account in the observer's unit of time; 0: it does not say. Asked
    /// for after the injection only: the line it is on was written by the producer last.
    pub stamp: u64,
}

/// A set of event sources that one poller watches. One thread's; nothing in it is shared with another poller.
///
/// The contract that keeps every signal: an event is reported once, its source stays quiet until
/// [`rearm`](Self::rearm), and one re-armed with signals still in it is reported again.
pub trait Source {
    /// The next event, the sources taking turns. No system call when there is none.
    fn next(&mut self) -> Option<Fired>;

    /// Takes the signals of a fired source.
    fn drain(&mut self, fired: &Fired) -> Drained;

    /// Lets a drained source fire again.
    fn rearm(&mut self, fired: &Fired);

    /// The end of a pass: what `rearm` collected takes effect here at the latest.
    fn flush(&mut self);
}
