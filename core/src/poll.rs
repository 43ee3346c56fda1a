//! One pass of a poller: look, inject, then tidy up.
//!
//! ```text
//!  producer            poller
//!  signal ───────────► next      t(seen)
//!                      event     active? route?
//!                      inject    t(injected)      ── the critical path ends here ──
//!  signal ─ ─ ─ ─ ─ ─► drain → n                  n > 1: an edge may have come after the injection
//!                      inject once more                  ↳ race 46
//!                      rearm     level-checked: a signal after the drain fires again
//!                      tick      the grace period of this pass ends
//! ```
//! *Inject first, drain after*: the drain, a system call, is off the critical path, and no edge is lost. With a drain
//! before the injection an edge would be safe as well, but late. It rests on the first signal drained being the one
//! that made the source fire, so nobody else drains an active source; where `assign` has, the event is deferred.
//!
//! An event that reports a hang-up is deferred as well: it may have no signal at all, and is the last one.
//!
//! Bounded: at most [`BATCH`] events a pass, all injected before the first is drained. Fair: the source takes turns
//! among what it watches. The reader ticks once per pass, so a control thread waits for at most one.

use crate::inject::{Accepted, Inject};
use crate::irqfd::{Delivery, Irqfds, Outcome, Slot};
use crate::prim::{Mutation, planted};
use crate::source::{Drained, Fired, Source};
use crate::sync::Reader;
use heapless::Vec;

/// Events a pass takes at the most.
pub const BATCH: usize = if cfg!(loom) { 2 } else { 32 };

/// What a poller reports to, and its clock; the poller's own, shared with nobody.
pub trait Observer {
    /// The time, in whatever unit the observer reports.
    fn now(&mut self) -> u64;

    /// An event was delivered at once. `drained` is what was in its source; without signals the event was spurious, or
    /// its irqfd is gone and the source was left alone.
    fn delivered(&mut self, fired: &Fired, seen: u64, injected: u64, drained: Drained, outcome: Outcome);

    /// `signals` went to the deferred worker, which wants waking if `wake`.
    fn deferred(&mut self, fired: &Fired, signals: u64, wake: bool);

    /// The source's producer hung up; the shutdown worker wants waking.
    fn hung_up(&mut self, fired: &Fired);
}

#[derive(Clone, Copy)]
enum How {
    /// Injected; how it was accepted, or that it was not.
    Injected(Option<Accepted>),
    Deferred,
    Stale,
}

struct Seen {
    fired: Fired,
    how: How,
    seen: u64,
    injected: u64,
}

/// A poller of one VM: its place in the grace domain and the memory of a pass.
pub struct Poller<'a, S> {
    irqfds: &'a Irqfds<S>,
    reader: Reader<'a>,
    batch: Vec<Seen, BATCH>,
}

impl<'a, S: AsRef<[Slot]>> Poller<'a, S> {
    /// A poller, online from here on: whoever makes one must make passes. `None` when all reader seats are taken.
    pub fn new(irqfds: &'a Irqfds<S>) -> Option<Self> {
        let mut reader = irqfds.grace().register()?;
        reader.online();
        Some(Self { irqfds, reader, batch: Vec::new() })
    }

    /// Between passes: goes offline, to sleep. No control thread waits for this poller meanwhile.
    pub fn pause(&mut self) {
        self.reader.offline();
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&mut self) {
        self.reader.online();
    }

    /// One bounded pass; how many events it took.
    #[inline]
    pub fn pass(
        &mut self,
        source: &mut impl Source,
        inject: &impl Inject,
        observer: &mut impl Observer,
    ) -> usize {
        while !self.batch.is_full() {
            let Some(fired) = source.next() else { break };
            let seen = observer.now();
            let how = self.inject(&fired, inject);
            let injected = observer.now();
            let _room = self.batch.push(Seen { fired, how, seen, injected });
        }
        let count = self.batch.len();
        if count > 0 {
            for event in &self.batch {
                self.settle(event, source, inject, observer);
            }
            self.batch.clear();
            source.flush();
        }
        self.reader.tick();
        count
    }

    #[inline]
    fn inject(&self, fired: &Fired, inject: &impl Inject) -> How {
        match self.irqfds.event(fired.id) {
            Delivery::Msi(_) if fired.hang_up => How::Deferred,
            Delivery::Msi(msi) => How::Injected(inject.msi(&msi).ok()),
            Delivery::Defer => How::Deferred,
            Delivery::Stale => How::Stale,
        }
    }

    /// Takes the signals of an event, injects for those that came late, and makes the source ready again.
    fn settle(
        &self,
        event: &Seen,
        source: &mut impl Source,
        inject: &impl Inject,
        observer: &mut impl Observer,
    ) {
        let fired = &event.fired;
        if matches!(event.how, How::Stale) {
            // Left as it is, undrained: whoever has the source now reports what is in it.
            observer.delivered(fired, event.seen, event.seen, Drained::default(), Outcome::default());
            return;
        }
        if planted(Mutation::RearmBeforeDrain) {
            source.rearm(fired);
            source.flush();
        }
        let drained = source.drain(fired);
        let signals = drained.signals;
        match event.how {
            How::Injected(accepted) => {
                let mut outcome = Outcome::of(signals.min(1), accepted);
                if signals > 1 && planted(Mutation::NoSecondInject) {
                    outcome += Outcome { merged: signals - 1, ..Outcome::default() };
                } else if signals > 1 {
                    match self.inject(fired, inject) {
                        How::Injected(accepted) => outcome += Outcome::of(signals - 1, accepted),
                        How::Deferred => self.defer(fired, signals - 1, observer),
                        // Cannot be, inside one pass; counted, if the host breaks its promise.
                        How::Stale => outcome += Outcome::of(signals - 1, None),
                    }
                }
                observer.delivered(fired, event.seen, event.injected, drained, outcome);
            }
            How::Deferred => {
                self.defer(fired, signals, observer);
                self.irqfds.settled(fired.id);
            }
            How::Stale => {}
        }
        if fired.hang_up {
            // Not re-armed: it would hang up again at once. Its shutdown unhooks it.
            if self.irqfds.hang_up_from_poller(fired.id) {
                observer.hung_up(fired);
            }
        } else if !planted(Mutation::RearmBeforeDrain) {
            source.rearm(fired);
        }
    }

    fn defer(&self, fired: &Fired, signals: u64, observer: &mut impl Observer) {
        if signals > 0 {
            let wake = self.irqfds.defer(fired.id, signals);
            observer.deferred(fired, signals, wake);
        }
    }
}
