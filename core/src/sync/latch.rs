//! A seqcount latch: a small record that one writer replaces and readers never wait for (D3).
//!
//! User space cannot switch preemption off, so the writer of a plain seqcount may be descheduled half-way and
//! every reader would spin out its time slice. A latch keeps two copies; the parity of the sequence says which
//! one is *stable*, so that there is always one to read.
//!
//! ```text
//!  writer (under the irqfd lock)            reader (poller)
//!  seq := odd        readers → copy 1       s  := seq            (Acquire, pairs with the Release below)
//!  fence(Release) ──────────────┐           w  := copy[s & 1]    (Relaxed)
//!  copy[0] := new               │           fence(Acquire) ◄──── pairs with fence(Release): a reader that
//!  seq := even (Release) ► copy 0           seq == s ?           saw one new word sees the new sequence too
//!  fence(Release)                            yes: w is whole      no: again, at most RETRIES times
//!  copy[1] := new               (whole for readers at the next write's odd step)
//! ```
//! A reader is disturbed only when a step falls into its few loads, and an update has two. A writer that is
//! descheduled between steps disturbs nobody. The reader tries a bounded number of times and then answers
//! [`Busy`]: the event goes the slow way instead of waiting.

use crate::prim::{AtomicU64, Mutation, Ordering, fence, planted};

/// The writer was faster than the reader, several times over; take the slow path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// How often a reader tries before it gives up. Each failure needs a writer's step in some five loads.
const RETRIES: usize = if cfg!(loom) { 1 } else { 8 };

/// `N` words that are read whole or not at all. See the module's text for the protocol.
#[derive(Debug)]
pub struct Latch<const N: usize> {
    seq: AtomicU64,
    copies: [[AtomicU64; N]; 2],
}

impl<const N: usize> Latch<N> {
    /// A latch that holds `words`.
    pub fn new(words: [u64; N]) -> Self {
        Self { seq: AtomicU64::new(0), copies: [words.map(AtomicU64::new), words.map(AtomicU64::new)] }
    }

    /// Replaces the words. Writers exclude each other by a lock of the caller's; two at once would leave a
    /// mixed record (still no undefined behaviour: every word is an atomic).
    pub fn write(&self, words: [u64; N]) {
        // Relaxed: only a writer changes it, and the caller's lock orders writers.
        let even = self.seq.load(Ordering::Relaxed);
        for (half, copy) in self.copies.iter().enumerate() {
            let step = even + half as u64 + 1;
            if planted(Mutation::LatchPublishEarly) {
                self.seq.store(step + 1, Ordering::Release);
            } else {
                // Release: the copy written in the half before is whole for whoever reads this step (pairs
                // with the Acquire load in `read`).
                self.seq.store(step, Ordering::Release);
            }
            // Pairs with the fence in `read`: a reader that sees a word below sees this step.
            fence(Ordering::Release);
            for (slot, word) in copy.iter().zip(words) {
                slot.store(word, Ordering::Relaxed);
            }
        }
    }

    /// The words, whole; or [`Busy`] after a bounded number of tries. Never waits.
    #[inline]
    pub fn read(&self) -> Result<[u64; N], Busy> {
        for _ in 0..RETRIES {
            // Acquire: pairs with the Release stores in `write`.
            let before = self.seq.load(Ordering::Acquire);
            let copy = &self.copies[(before & 1) as usize];
            let words = core::array::from_fn(|i| copy[i].load(Ordering::Relaxed));
            // Pairs with the fence in `write`.
            fence(Ordering::Acquire);
            if planted(Mutation::LatchNoRecheck) || self.seq.load(Ordering::Relaxed) == before {
                return Ok(words);
            }
        }
        Err(Busy)
    }
}
