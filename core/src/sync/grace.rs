//! Grace periods: "whoever used the old one has stopped", without the users ever waiting or locking.
//!
//! Quiescent-state based. Each poller and worker is a [`Reader`] with a word of its own. It is *online* while it
//! may hold something that a control thread wants to take away, and says once per pass, by [`Reader::tick`],
//! that it holds nothing any more.
//!
//! ```text
//!  control thread                              reader (poller)
//!  publish the new / unhook the old            online: seen := epoch (Release); fence(SeqCst) ─┐
//!  fence(SeqCst) ──────────────────────────────── one of the two fences is first ──────────────┘
//!  target := ++epoch        (Release)          pass: uses what it finds
//!  for each reader: wait until                 tick: e := epoch (Acquire: sees the new one if e ≥ target)
//!    seen == 0 or seen ≥ target (Acquire) ◄────      seen := e  (Release: its pass is over)
//! ```
//! *Online race:* if the control thread's fence comes first, the reader's later loads see the new state and it
//! need not be waited for. If the reader's fence comes first, the control thread sees it online and waits.
//!
//! *Offline and online again:* a control thread that waits may miss the moment offline and see the new epoch at
//! once. The store in `online` is a Release for that: it stands for all that was used before, by this reader or,
//! through `taken`, by the seat's owners before it.

use super::CachePadded;
use crate::prim::{AtomicBool, AtomicU64, Mutation, Ordering, fence, model_failed, planted, spin_loop};

/// How many readers can be registered at once.
pub const READERS: usize = if cfg!(loom) { 2 } else { 64 };

/// Seats beside those, for control threads that read once and leave. Pollers cannot use them up, so whoever finds
/// them taken waits for other control threads only.
const BRIEF: usize = if cfg!(loom) { 1 } else { 8 };

const OFFLINE: u64 = 0;

#[derive(Debug)]
struct Seat {
    taken: AtomicBool,
    /// `OFFLINE`, or the epoch in which this reader was last quiescent.
    seen: AtomicU64,
}

/// A domain of readers. See the module's text.
#[derive(Debug)]
pub struct Grace {
    epoch: CachePadded<AtomicU64>,
    seats: [CachePadded<Seat>; READERS + BRIEF],
}

impl Grace {
    /// A domain without readers.
    #[must_use]
    pub fn new() -> Self {
        Self {
            epoch: CachePadded::new(AtomicU64::new(1)),
            seats: core::array::from_fn(|_| {
                CachePadded::new(Seat { taken: AtomicBool::new(false), seen: AtomicU64::new(OFFLINE) })
            }),
        }
    }

    /// A new reader, offline; `None` when all [`READERS`] seats are taken.
    pub fn register(&self) -> Option<Reader<'_>> {
        self.sit(&self.seats[..READERS])
    }

    /// A reader that is online already, for a control thread that looks something up and drops it. Calls `relax`
    /// while as many as there are places for do the same.
    pub fn read_briefly(&self, mut relax: impl FnMut()) -> Reader<'_> {
        loop {
            if let Some(mut reader) = self.sit(&self.seats[READERS..]) {
                reader.online();
                return reader;
            }
            relax();
        }
    }

    fn sit<'a>(&'a self, seats: &'a [CachePadded<Seat>]) -> Option<Reader<'a>> {
        let free = |seat: &&CachePadded<Seat>| {
            // Acquire: pairs with the Release in `Reader::drop`.
            seat.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let seat = seats.iter().find(free)?;
        Some(Reader { grace: self, seat, at: OFFLINE })
    }

    /// Waits until every reader online now has ticked or gone offline, calling `relax` between looks.
    ///
    /// What the caller published before is what readers use after; what they used before, they use no more.
    pub fn synchronize(&self, mut relax: impl FnMut()) {
        // SeqCst: pairs with the fence in `online`.
        fence(Ordering::SeqCst);
        // Release: pairs with the Acquire load of the epoch in `tick` and `online`.
        let target = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        if planted(Mutation::GraceNoWait) {
            return;
        }
        for seat in &self.seats {
            loop {
                // Acquire: pairs with the Release stores in `online`, `tick` and `offline`.
                let seen = seat.seen.load(Ordering::Acquire);
                if seen == OFFLINE || seen >= target {
                    break;
                }
                relax();
            }
        }
    }

    /// [`synchronize`](Self::synchronize), spinning.
    pub fn synchronize_spinning(&self) {
        self.synchronize(spin_loop);
    }
}

impl Default for Grace {
    fn default() -> Self {
        Self::new()
    }
}

/// One reader of a [`Grace`] domain. References obtained through it borrow it, and [`tick`](Self::tick) and
/// [`offline`](Self::offline) need it exclusively, so none outlives its pass.
#[derive(Debug)]
pub struct Reader<'a> {
    grace: &'a Grace,
    seat: &'a Seat,
    at: u64,
}

impl Reader<'_> {
    /// Starts to be waited for. Needed before anything protected is used.
    pub fn online(&mut self) {
        // Acquire: pairs with the Release increment in `synchronize`.
        self.at = self.grace.epoch.load(Ordering::Acquire);
        // Release: pairs with the Acquire load in `synchronize`, for what was used before the last `offline`.
        let order = if planted(Mutation::GraceOnlineRelaxed) { Ordering::Relaxed } else { Ordering::Release };
        self.seat.seen.store(self.at, order);
        if !planted(Mutation::GraceNoFence) {
            // SeqCst: pairs with the fence in `synchronize`.
            fence(Ordering::SeqCst);
        }
    }

    /// Says that nothing obtained before is in use any more. One shared load, and a store only when a control
    /// thread is waiting: free enough for every pass.
    #[inline(always)]
    pub fn tick(&mut self) {
        // Acquire: pairs with the Release increment in `synchronize`.
        let now = self.grace.epoch.load(Ordering::Acquire);
        if now != self.at {
            self.at = now;
            // Release: pairs with the Acquire load in `synchronize`.
            self.seat.seen.store(now, Ordering::Release);
        }
    }

    /// Stops being waited for, before sleeping.
    pub fn offline(&mut self) {
        self.at = OFFLINE;
        // Release: pairs with the Acquire load in `synchronize`.
        self.seat.seen.store(OFFLINE, Ordering::Release);
    }

    /// Whether this reader is online.
    #[must_use]
    pub fn is_online(&self) -> bool {
        self.at != OFFLINE
    }

    /// Whether this reader belongs to `grace`.
    #[must_use]
    pub fn is_of(&self, grace: &Grace) -> bool {
        core::ptr::eq(self.grace, grace)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if model_failed() {
            return;
        }
        self.offline();
        // Release: pairs with the Acquire in `register`.
        self.seat.taken.store(false, Ordering::Release);
    }
}
