//! A gate: many go in and out, one closes it and waits until nobody is inside.
//!
//! ```text
//!  entrant                                   closer
//!  state += 1 if not CLOSED   (Acquire)      state |= CLOSED       (AcqRel) — from here nobody gets in
//!  ... works on the object ...               spin until count == 0 (Acquire, pairs with leave)
//!  state -= 1                 (Release)      takes the object down
//! ```
//! Both steps are read-modify-writes of one word, so an entrant either is counted before the gate closes, and
//! is waited for, or finds it closed. Entering never blocks: a queued closer makes it fail.

use crate::prim::{AtomicUsize, Mutation, Ordering, model_failed, planted};

const CLOSED: usize = 1 << (usize::BITS - 1);

/// See the module's text.
#[derive(Debug)]
pub struct Gate {
    state: AtomicUsize,
}

/// Proof of being inside a [`Gate`]; dropping it leaves.
#[derive(Debug)]
#[must_use = "dropping it leaves the gate at once"]
pub struct Inside<'a> {
    gate: &'a Gate,
}

impl Gate {
    /// An open gate with nobody inside.
    #[must_use]
    pub fn new() -> Self {
        Self { state: AtomicUsize::new(0) }
    }

    /// Goes in, unless the gate is closed or closing.
    pub fn try_enter(&self) -> Option<Inside<'_>> {
        let mut seen = self.state.load(Ordering::Relaxed);
        loop {
            if seen & CLOSED != 0 {
                return None;
            }
            // Acquire: pairs with the Release in `open`, so that an entrant sees the object as the opener left it.
            match self.state.compare_exchange_weak(seen, seen + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(Inside { gate: self }),
                Err(now) => seen = now,
            }
        }
    }

    /// Closes the gate; true for the one caller that did it. Those inside are not waited for: see [`drain`].
    ///
    /// [`drain`]: Gate::drain
    pub fn close(&self) -> bool {
        if planted(Mutation::GateCloseOpen) {
            return true;
        }
        // AcqRel: Acquire for the work of those who already left, Release for what the closer did before.
        self.state.fetch_or(CLOSED, Ordering::AcqRel) & CLOSED == 0
    }

    /// Waits until nobody is inside, calling `relax` between looks. Only meaningful on a closed gate.
    pub fn drain(&self, mut relax: impl FnMut()) {
        // Acquire: pairs with the Release of the last one to leave.
        while self.state.load(Ordering::Acquire) & !CLOSED != 0 {
            relax();
        }
    }

    /// Opens a closed and drained gate for the next owner of the object.
    pub fn open(&self) {
        // Release: pairs with the Acquire in `try_enter`.
        self.state.fetch_and(!CLOSED, Ordering::Release);
    }

    /// Whether the gate is closed at this moment.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) & CLOSED != 0
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if model_failed() {
            return;
        }
        // Release: pairs with the Acquire in `drain`.
        self.gate.state.fetch_sub(1, Ordering::Release);
    }
}
