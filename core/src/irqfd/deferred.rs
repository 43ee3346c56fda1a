//! The slow path: `irqfd_inject`. One worker, which may block, resolves what a poller could not deliver at once.

use super::resample::set_level;
use super::slot::Slot;
use super::{Irqfds, SourceId};
use crate::inject::{Accepted, Inject, LineSource};
use crate::prim::Ordering;
use crate::route::{MAX_PER_GSI, Target};
use crate::sync::Reader;
use heapless::Vec;

/// What became of signals. Everything sent ends in one of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Interrupts a LAPIC accepted.
    pub delivered: u64,
    /// Signals that share an interrupt with another one.
    pub merged: u64,
    /// Signals that led to none: unrouted, or refused.
    pub dropped: u64,
    /// Interrupts, spurious ones too, whose vector the LAPIC had requested already, where it tells.
    pub coalesced: u64,
    /// Interrupts a LAPIC accepted without a signal.
    pub spurious: u64,
}

impl Outcome {
    /// `signals` that became one interrupt, or none where no LAPIC accepted it.
    #[must_use]
    pub const fn of(signals: u64, accepted: Option<Accepted>) -> Self {
        match accepted {
            Some(Accepted { coalesced }) => Self {
                delivered: if signals > 0 { 1 } else { 0 },
                merged: signals.saturating_sub(1),
                dropped: 0,
                coalesced: coalesced as u64,
                spurious: if signals > 0 { 0 } else { 1 },
            },
            None => Self { delivered: 0, merged: 0, dropped: signals, coalesced: 0, spurious: 0 },
        }
    }

    /// What came since `before`, an earlier count of the same.
    #[must_use]
    pub const fn since(&self, before: Self) -> Self {
        Self {
            delivered: self.delivered - before.delivered,
            merged: self.merged - before.merged,
            dropped: self.dropped - before.dropped,
            coalesced: self.coalesced - before.coalesced,
            spurious: self.spurious - before.spurious,
        }
    }

    /// All signals in it.
    #[must_use]
    pub const fn signals(&self) -> u64 {
        self.delivered + self.merged + self.dropped
    }
}

impl core::ops::AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.merged += other.merged;
        self.dropped += other.dropped;
        self.coalesced += other.coalesced;
        self.spurious += other.spurious;
    }
}

impl<S: AsRef<[Slot]>> Irqfds<S> {
    /// Delivers everything deferred so far, as the routes are now; how many irqfds had something. The worker's loop
    /// is: run, tick, and when it returned 0, offline, sleep, online.
    ///
    /// An irqfd that is going is served too: its shutdown waits for that, and a signal that was accepted before
    /// is not lost. `reader` is of [`grace`](Self::grace) and online; injections end before its next tick (D2).
    pub fn run_deferred(
        &self,
        reader: &Reader<'_>,
        inject: &impl Inject,
        mut account: impl FnMut(SourceId, Outcome),
    ) -> usize {
        self.deferred.take(|index| {
            let slot = &self.slots()[index];
            // Acquire: pairs with the Release in `defer`. Release: pairs with the Acquire look of `shut_down`, which
            // then sees this worker online and waits for its tick.
            let signals = slot.owed.swap(0, Ordering::AcqRel);
            if signals == 0 {
                return;
            }
            let index = u32::try_from(index).unwrap_or(super::NONE);
            let id = slot.id(index);
            let targets = self.routes.read(reader, |table| table.resolve(slot.gsi()));
            let accepted = if slot.resample().is_some() {
                set_level(&targets, true, inject)
            } else {
                pulse(&targets, inject)
            };
            account(id, Outcome::of(signals, accepted));
        })
    }

    /// Whether nothing is deferred at this moment.
    pub fn nothing_deferred(&self) -> bool {
        self.deferred.is_empty()
    }
}

/// An edge: up and down again on a pin, one message on an MSI.
fn pulse(targets: &Vec<Target, MAX_PER_GSI>, inject: &impl Inject) -> Option<Accepted> {
    let mut any = None;
    for level in [true, false] {
        for target in targets {
            let accepted = match *target {
                Target::Pin { chip, pin } => {
                    let set = inject.pin(chip, pin, level, LineSource::Edge);
                    set.ok().filter(|()| level).map(|()| Accepted::default())
                }
                Target::Msi(msi) if level => inject.msi(&msi).ok(),
                Target::Msi(_) => None,
            };
            any = accepted.or(any);
        }
    }
    any
}
