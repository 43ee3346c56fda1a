//! A set of small numbers that pollers add to and one worker takes from: the hand-over to the slow path.
//!
//! ```text
//!  poller                                   worker
//!  owed[i] += n        (Relaxed)            taken := words[w].swap(0)   (Acquire)
//!  words[w] |= bit i   (Release) ─────────► owed[i].swap(0)             sees what was added before the bit
//! ```
//! A bit set after the swap is found by the next look; a second one for the same number merges, and the count
//! beside it (the caller's) says how many signals it stands for.

use super::CachePadded;
use crate::prim::{AtomicU64, Mutation, Ordering, planted};

const WORDS: usize = if cfg!(loom) { 1 } else { 64 };

/// Numbers below this can be in a [`PendingSet`].
pub const PENDING_BITS: usize = WORDS * 64;

/// See the module's text.
#[derive(Debug)]
pub struct PendingSet {
    /// Bit `w` set: `words[w]` may hold something.
    summary: CachePadded<AtomicU64>,
    words: CachePadded<[AtomicU64; WORDS]>,
}

impl PendingSet {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self {
            summary: CachePadded::new(AtomicU64::new(0)),
            words: CachePadded::new(core::array::from_fn(|_| AtomicU64::new(0))),
        }
    }

    /// Adds `index`; true when it was not in the set, so that the worker wants waking.
    ///
    /// # Panics
    /// When `index` is [`PENDING_BITS`] or more.
    pub fn add(&self, index: usize) -> bool {
        let word = index / 64;
        // Release: pairs with the Acquire swap in `take`, for the word here and the summary below.
        let before = self.words[word].fetch_or(1 << (index % 64), Ordering::Release);
        self.summary.fetch_or(1 << word, Ordering::Release);
        before & (1 << (index % 64)) == 0
    }

    /// Takes `index` out; true when it was in.
    pub fn remove(&self, index: usize) -> bool {
        // Acquire: as in `take`.
        self.words[index / 64].fetch_and(!(1 << (index % 64)), Ordering::Acquire) & (1 << (index % 64)) != 0
    }

    /// Takes everything out and hands each number to `f`; the number of them.
    pub fn take(&self, mut f: impl FnMut(usize)) -> usize {
        let mut count = 0;
        // Acquire: pairs with the Release in `add`.
        let mut summary = self.summary.swap(0, Ordering::Acquire);
        while summary != 0 {
            let word = summary.trailing_zeros() as usize;
            summary &= summary - 1;
            let mut bits = if planted(Mutation::PendingTakeInTwo) {
                let bits = self.words[word].load(Ordering::Acquire);
                self.words[word].store(0, Ordering::Relaxed);
                bits
            } else {
                self.words[word].swap(0, Ordering::Acquire)
            };
            while bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                count += 1;
                f(word * 64 + bit);
            }
        }
        count
    }

    /// Whether nothing is in the set at this moment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.summary.load(Ordering::Acquire) == 0
    }
}

impl Default for PendingSet {
    fn default() -> Self {
        Self::new()
    }
}
