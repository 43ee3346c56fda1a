//! The only place that knows whether this is a real machine or a loom model.
//!
//! Everything concurrent in this crate takes its atomics, cells, locks and spin hints from here. Under
//! `--cfg loom` they are loom's, so the very code that ships is the code that is model-checked.

#[cfg(not(loom))]
mod imp {
    pub use core::hint::spin_loop;
    pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

    /// `core::cell::UnsafeCell` with loom's closure interface.
    #[derive(Debug)]
    pub struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        /// Wraps `value`.
        pub fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }
        /// Runs `f` on a shared pointer.
        #[inline(always)]
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }
        /// Runs `f` on an exclusive pointer.
        #[inline(always)]
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }

    /// Whether a model has failed and is being torn down, so that destructors leave its atomics alone: never, outside
    /// a model.
    #[inline(always)]
    #[must_use]
    pub const fn model_failed() -> bool {
        false
    }

    /// Whether a loom test planted this mistake: never, outside a model.
    #[inline(always)]
    #[must_use]
    pub const fn planted(_: super::Mutation) -> bool {
        false
    }
}

#[cfg(loom)]
mod imp {
    pub use loom::cell::UnsafeCell;
    pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

    /// Lets loom run somebody else: whoever spins waits for another thread.
    pub fn spin_loop() {
        loom::thread::yield_now();
    }

    /// Whether a model has failed and is being torn down: its atomics cannot be used any more.
    #[must_use]
    pub fn model_failed() -> bool {
        std::thread::panicking()
    }

    std::thread_local! {
        static PLANTED: core::cell::Cell<Option<super::Mutation>> = const { core::cell::Cell::new(None) };
    }

    /// Plants one mistake for the models this thread runs from here on (`None`: none).
    pub fn plant(mutation: Option<super::Mutation>) {
        PLANTED.with(|p| p.set(mutation));
    }

    /// Whether this mistake is planted. Loom runs a model's threads on the thread that called it.
    #[must_use]
    pub fn planted(mutation: super::Mutation) -> bool {
        PLANTED.with(core::cell::Cell::get) == Some(mutation)
    }
}

pub use imp::*;

/// Mistakes that a loom test plants to see its model fail. Each names a rule the code keeps; outside loom
/// [`planted`] is the constant `false` and nothing of this is left in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mutation {
    /// `latch`: the writer publishes a copy before it has written it.
    LatchPublishEarly,
    /// `latch`: the reader does not look at the sequence again.
    LatchNoRecheck,
    /// `grace`: a reader that comes online makes no fence.
    GraceNoFence,
    /// `grace`: a reader that comes online does not release what it did before it was offline.
    GraceOnlineRelaxed,
    /// `grace`: `synchronize` does not wait.
    GraceNoWait,
    /// `gate`: `close` does not stop new entrants.
    GateCloseOpen,
    /// `pending`: the worker looks at the set and clears it in two steps (race 1).
    PendingTakeInTwo,
    /// `poll`: make the source ready again before its signals are taken.
    RearmBeforeDrain,
    /// `poll`: a count above one does not inject again (race 46).
    NoSecondInject,
    /// `irqfd`: assign does not look for an event already pending.
    AssignNoPendingCheck,
    /// `irqfd`: assign does not mark an irqfd whose signals it took itself.
    AssignNotFresh,
    /// `irqfd`: assign looks for a pending event after it listed the irqfd (races 6, 10).
    AssignPendingLate,
    /// `irqfd`: assign copies the route before it takes the lock that lists the irqfd (race 14).
    AssignCopyUnlocked,
    /// `irqfd`: signals are handed to the deferred worker without a Release of their own.
    DeferRelaxed,
    /// `irqfd`: every caller that finds the irqfd queues its shutdown (race 5).
    ShutdownNoElection,
    /// `irqfd`: a deassign that took nothing off the list waits for nobody else's shutdown (race 8).
    DeassignOwnOnly,
    /// `irqfd`: a hang-up reported during assign does not wait for the irqfd to be listed (race 10).
    HangUpNoWait,
    /// `irqfd`: shutdown does not wait for the passes that may have seen the irqfd active.
    ShutdownNoGrace,
    /// `irqfd`: shutdown frees without waiting for the deferred worker (races 2, 8).
    ShutdownNoFlush,
    /// `irqfd`: the last resampling irqfd out lowers the line when the next one may be in already.
    ResampleLowerLate,
    /// `irqfd`: an ack finds out whom to signal before it lowers the line.
    AckMembersFirst,
    /// `irqfd`: a line is lowered by a route looked up before, when it may be another GSI's already (D2).
    LowerAfterLookup,
    /// `route`: `set_routes` returns without a grace period (D2).
    RouteNoGrace,
    /// `route`: the irqfd copies are refreshed outside the lock that lists an irqfd (race 14).
    RouteRefreshUnlocked,
    /// `mediated`: whoever finds a child that is being removed removes it too.
    MediatedNoElection,
    /// `mediated`: the sweep does not wait for those inside the gate (race 32).
    MediatedNoDrain,
    /// `mediated`: the sweep stops at the first complaint (race 35).
    MediatedSweepStops,
    /// `mediated`: a failed create keeps its instance.
    MediatedFailedCreateLeaks,
    /// `line`: what a transition owes is done after the lock is dropped (race 27).
    IntxOwedUnlocked,
    /// `line`: a trigger is looked at in one critical section and used in the next (races 26, 29).
    SlotPeeked,
    /// `group`: UNSET drops the count and clears the pointer under the lock twice (race 39).
    GroupUnsetTwice,
    /// `group`: close does not look whose opening it closes (race 43).
    GroupCloseUnchecked,
    /// `group`: open finds a group that is going (race 40).
    GroupOpenUnlisted,
    /// `group`: the last detach takes the driver without waiting for container calls (race 37).
    ContainerNoDrain,
    /// `posted`: ON is set without a Release, so what it announces is not seen.
    OnRelaxed,
    /// `posted`: the owner ignores what C held and sleeps on what it made of it.
    SleepBlind,
    /// `posted`: nobody is told to wake a sleeping owner.
    WakeDropped,
    /// `posted`: every post over SLEEP wakes, not the first one alone.
    WakeAlways,
    /// `posted`: a harvest clears the request to park.
    HarvestClearsStop,
    /// `posted`: an NMI, INIT or SIPI is announced without a Release.
    AnnounceRelaxed,
    /// `posted`: a request to park, and its end, are made without a Release.
    StopRelaxed,
    /// `posted`: a request to park leaves the wake to the sender that was told to.
    StopTrustsOn,
    /// `lapic`: vectors that are in the IRR already are not counted.
    CountNotIrr,
    /// `lapic`: an edge posted with a level of its vector takes the level's place.
    EdgeWins,
    /// `lapic`: an INIT leaves what was posted before it.
    InitKeepsPir,
    /// `posted`: ON is set before the bit that it announces.
    OnBeforePir,
    /// `posted`: a harvest clears ON after it took the maps.
    ClearOnLate,
    /// `posted`: SLEEP is a word of its own.
    SleepApart,
    /// `posted`: a post that finds its bit set by a load makes no read-modify-write.
    PirPeek,
    /// `posted`: a harvest looks at a map and clears it in two steps.
    PirTakeInTwo,
    /// `posted`: a post that merges does not set ON.
    MergedNoOn,
    /// `lapic`: the address word is published in two steps.
    AddressInTwo,
}
