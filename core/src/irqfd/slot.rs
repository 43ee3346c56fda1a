//! One irqfd's memory: a line for the poller, a line for everybody else.

use super::state::{Event, Illegal, State};
use crate::ids::{EventKey, Generation, Gsi, SourceId};
use crate::prim::{AtomicU32, AtomicU64, Ordering};
use crate::route::{WORDS, pack};
use crate::sync::Latch;

/// No slot: the end of a chain.
pub(super) const NONE: u32 = u32::MAX;

/// In the word of a listed irqfd: `assign` took signals that the source may still report. The source's next event,
/// whose signals they may have been, is deferred: what a drain finds then need not be what made it fire, and could
/// be later than an injection made before the drain.
const FRESH: u64 = 1 << 7;

/// Storage for one irqfd. A caller makes a table of them; see [`super::Irqfds::new`].
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Slot {
    // --- the poller's line: read at every event, written by control threads under the irqfd lock ---
    /// `generation << 8 | FRESH? | state`.
    word: AtomicU64,
    /// The route, if it can be delivered at once.
    pub(super) route: Latch<WORDS>,

    // --- the slow path's line ---
    /// Signals that the deferred worker still has to deliver.
    pub(super) owed: AtomicU64,

    // --- written by `assign` before the slot is listed, constant until it is freed ---
    key: AtomicU64,
    resample: AtomicU64,
    gsi: AtomicU32,
    has_resample: AtomicU32,

    // --- under the irqfd lock ---
    /// The next slot of the free list or of the shutdown queue.
    pub(super) next: AtomicU32,
    // --- under the resampler lock ---
    /// The next member of this GSI's resampler.
    pub(super) next_member: AtomicU32,
}

impl Slot {
    /// A free slot.
    #[must_use]
    pub fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            route: Latch::new(pack(None)),
            owed: AtomicU64::new(0),
            key: AtomicU64::new(0),
            resample: AtomicU64::new(0),
            gsi: AtomicU32::new(0),
            has_resample: AtomicU32::new(0),
            next: AtomicU32::new(NONE),
            next_member: AtomicU32::new(NONE),
        }
    }

    /// For the test of a wrap: a free slot that has had many owners.
    #[cfg(all(test, not(loom)))]
    pub(super) fn start_at(&self, generation: Generation) {
        self.word.store(word(generation, State::Free), Ordering::Release);
    }

    /// The word an active irqfd of this generation has.
    #[inline(always)]
    pub(super) const fn active_word(generation: Generation) -> u64 {
        word(generation, State::Listed)
    }

    /// The word now. Acquire: pairs with the Release in [`step`](Self::step), so that a reader that sees an irqfd
    /// listed sees its route.
    #[inline(always)]
    pub(super) fn word(&self) -> u64 {
        self.word.load(Ordering::Acquire)
    }

    pub(super) fn state(&self) -> State {
        State::from_bits(self.word())
    }

    #[allow(clippy::cast_possible_truncation, reason = "the word holds a 32-bit generation above 8 bits")]
    pub(super) fn generation(&self) -> Generation {
        Generation((self.word() >> 8) as u32)
    }

    /// Whether the slot's irqfd is of this generation and active, fresh or not.
    pub(super) fn is_active(&self, generation: Generation) -> bool {
        self.word() & !FRESH == Self::active_word(generation)
    }

    /// Lists the irqfd as a fresh one; otherwise as `step(Event::List)`.
    pub(super) fn list_fresh(&self) -> Result<State, Illegal> {
        let state = self.state().next(Event::List)?;
        // Release: as in `step`.
        self.word.store(word(self.generation(), state) | FRESH, Ordering::Release);
        Ok(state)
    }

    /// The poller has drained an event of this irqfd and not armed the source again: nothing that `assign` took is
    /// still reported. Takes one bit away and leaves the others, so it cannot undo a `step` that it meets, and a
    /// `step` that overwrites it has no such bit.
    #[inline]
    pub(super) fn settled(&self) {
        if self.word() & FRESH != 0 {
            self.word.fetch_and(!FRESH, Ordering::Relaxed);
        }
    }

    /// The one setter of the state. Callers exclude each other by the irqfd lock or by owning the shutdown.
    pub(super) fn step(&self, event: Event) -> Result<State, Illegal> {
        let state = self.state().next(event)?;
        let generation = self.generation();
        let generation = if matches!(state, State::Free) { generation.next() } else { generation };
        // Release: pairs with the Acquire in `word`.
        self.word.store(word(generation, state), Ordering::Release);
        Ok(state)
    }

    pub(super) fn describe(&self, key: EventKey, gsi: Gsi, resample: Option<EventKey>) {
        // Relaxed: published by the Release in `step`, or by the irqfd lock.
        self.key.store(key.0, Ordering::Relaxed);
        self.gsi.store(gsi.0, Ordering::Relaxed);
        self.resample.store(resample.map_or(0, |key| key.0), Ordering::Relaxed);
        self.has_resample.store(resample.is_some().into(), Ordering::Relaxed);
    }

    pub(super) fn key(&self) -> EventKey {
        EventKey(self.key.load(Ordering::Relaxed))
    }

    pub(super) fn gsi(&self) -> Gsi {
        Gsi(self.gsi.load(Ordering::Relaxed))
    }

    pub(super) fn resample(&self) -> Option<EventKey> {
        (self.has_resample.load(Ordering::Relaxed) != 0)
            .then(|| EventKey(self.resample.load(Ordering::Relaxed)))
    }

    pub(super) fn id(&self, index: u32) -> SourceId {
        SourceId { index, generation: self.generation() }
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::new()
    }
}

#[inline(always)]
const fn word(generation: Generation, state: State) -> u64 {
    (generation.0 as u64) << 8 | state as u64
}
