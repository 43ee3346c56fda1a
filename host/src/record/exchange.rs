//! Where a poller's figures are swapped for empty ones, without either side waiting.

use super::Figures;
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where full figures are swapped for empty ones.
#[derive(Debug)]
pub struct Exchange {
    empty: ArrayQueue<Box<Figures>>,
    full: ArrayQueue<Box<Figures>>,
    wanted: AtomicBool,
}

impl Exchange {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { empty: ArrayQueue::new(1), full: ArrayQueue::new(1), wanted: AtomicBool::new(false) })
    }

    /// Asks for what was measured, giving empty figures for it. False when somebody asked and was not answered yet.
    pub fn ask(&self, empty: Box<Figures>) -> bool {
        let asked = self.empty.push(empty).is_ok();
        // Release: pairs with the Acquire in `asked`.
        self.wanted.store(true, Ordering::Release);
        asked
    }

    /// The poller's side: empty figures, when somebody asks. One load when nobody does.
    #[inline]
    pub(super) fn asked(&self) -> Option<Box<Figures>> {
        // Acquire: pairs with the Release in `ask`.
        if !self.wanted.load(Ordering::Acquire) {
            return None;
        }
        let empty = self.empty.pop()?;
        self.wanted.store(false, Ordering::Relaxed);
        Some(empty)
    }

    /// The poller's side: the answer.
    pub(super) fn answer(&self, full: Box<Figures>) {
        // An answer that came too late for who asked is still there: the next one takes both.
        if let Err(newer) = self.full.push(full) {
            let both = match self.full.pop() {
                Some(mut older) => {
                    older.add(&newer);
                    older
                }
                None => newer,
            };
            // Nobody else answers, so there is room.
            let _room = self.full.push(both);
        }
    }

    /// The answer, once it is there.
    pub fn take(&self) -> Option<Box<Figures>> {
        self.full.pop()
    }
}
