//! The slow path: `irqfd_inject`. One worker, which may block, resolves what a poller could not deliver at once.

use super::resample::set_level;
use super::slot::Slot;
use super::{Irqfds, SourceId};
use crate::inject::{Inject, LineSource};
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
}

impl Outcome {
    /// `signals` that became one interrupt, or none.
    #[must_use]
    pub const fn of(signals: u64, accepted: bool) -> Self {
        if accepted {
            Self { delivered: 1, merged: signals.saturating_sub(1), dropped: 0 }
        } else {
            Self { delivered: 0, merged: 0, dropped: signals }
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
fn pulse(targets: &Vec<Target, MAX_PER_GSI>, inject: &impl Inject) -> bool {
    let mut any = false;
    for level in [true, false] {
        for target in targets {
            any |= match *target {
                Target::Pin { chip, pin } => inject.pin(chip, pin, level, LineSource::Edge).is_ok() && level,
                Target::Msi(msi) => level && inject.msi(&msi).is_ok(),
            };
        }
    }
    any
}
