//! The control side of a lane.

use crate::error::Result;
use crate::sys::aio::Canceller;
use crate::sys::doorbell::Consumer;
use crate::sys::fd::EventFd;
use crossbeam_queue::ArrayQueue;
use pollvisor_core::ids::SourceId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// Doorbell regions that a lane can watch.
pub const MAX_REGIONS: usize = 16;

const QUEUE: usize = 64;

/// What a control thread asks of a lane.
#[derive(Debug)]
pub enum Command {
    /// Watch an eventfd.
    Hook {
        /// For this irqfd.
        id: SourceId,
        /// The eventfd; the poller's share of it.
        event: Arc<EventFd>,
    },
    /// Watch a region of doorbells.
    Region {
        /// Its number on this lane, counted up from 0.
        number: usize,
        /// The poller's side, made ready.
        consumer: Box<Consumer>,
        /// Who listens to each bell: nobody yet.
        listeners: Box<[Option<SourceId>]>,
    },
    /// Watch a doorbell.
    HookBell {
        /// For this irqfd.
        id: SourceId,
        /// The region's number.
        region: usize,
        /// The bell.
        bell: usize,
    },
    /// Watch an irqfd's source no more.
    Unhook {
        /// The irqfd.
        id: SourceId,
    },
}

/// Where a source is, as the poller last said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Hooked {
    /// Not watched.
    Idle = 0,
    /// Watched.
    Watched = 1,
    /// Not reported any more, but still armed in the kernel: to be cancelled by a control thread.
    Closing = 2,
}

/// See the module's text.
#[derive(Debug)]
pub struct Port {
    commands: ArrayQueue<Command>,
    /// Whether a command may wait: all that an idle pass looks at.
    waiting: AtomicBool,
    /// Whether a poller still takes commands.
    alive: AtomicBool,
    /// Per slot, a [`Hooked`]. Written by the poller.
    hooked: Box<[AtomicU8]>,
    /// Per slot, when the oldest signal that was not taken was made, in TSC cycles; 0: none, or not said.
    stamps: Box<[AtomicU64]>,
    /// Per slot, how to cancel its poll.
    cancellers: Box<[Canceller]>,
    /// Wakes a poller that blocks; `None` for one that spins.
    wake: Option<EventFd>,
    /// System calls of the poller that failed.
    faults: AtomicU64,
}

impl Port {
    pub(super) fn new(slots: usize, cancellers: Box<[Canceller]>, blocking: bool) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            commands: ArrayQueue::new(QUEUE),
            waiting: AtomicBool::new(false),
            alive: AtomicBool::new(true),
            hooked: (0..slots).map(|_| AtomicU8::new(Hooked::Idle as u8)).collect(),
            stamps: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            cancellers,
            wake: blocking.then(EventFd::new).transpose()?,
            faults: AtomicU64::new(0),
        }))
    }

    /// Sends a command, waiting with `relax` while the queue is full. Dropped when the poller is gone.
    pub fn send(&self, mut command: Command, relax: impl Fn()) {
        while let Err(back) = self.commands.push(command) {
            if !self.is_alive() {
                return;
            }
            command = back;
            relax();
        }
        // Release: pairs with the Acquire swap in `receive`.
        self.waiting.store(true, Ordering::Release);
        if let Some(wake) = &self.wake {
            wake.signal(1);
        }
    }

    /// Up to `most` commands, one by one to `f`. With none: one load.
    #[inline]
    pub(super) fn receive(&self, most: usize, mut f: impl FnMut(Command)) {
        if !self.waiting.load(Ordering::Relaxed) {
            return;
        }
        // Acquire: pairs with the Release in `send`. Cleared before the queue is looked at, so that a command pushed
        // meanwhile sets it again.
        self.waiting.swap(false, Ordering::AcqRel);
        for _ in 0..most {
            match self.commands.pop() {
                Some(command) => f(command),
                None => return,
            }
        }
        self.waiting.store(true, Ordering::Relaxed);
    }

    /// What wakes a blocking poller.
    #[must_use]
    pub fn wake(&self) -> Option<&EventFd> {
        self.wake.as_ref()
    }

    /// Waits until `id`, for which [`Command::Unhook`] was sent, is watched no more; cancels its poll if need be.
    pub fn wait_unhooked(&self, id: SourceId, relax: impl Fn()) {
        let mut cancelled = false;
        // Acquire: pairs with the Release in `set`.
        while self.is_alive() {
            match self.hooked[id.slot()].load(Ordering::Acquire) {
                state if state == Hooked::Idle as u8 => return,
                state if state == Hooked::Closing as u8 && !cancelled => {
                    if let Some(canceller) = self.cancellers.get(id.slot()) {
                        canceller.cancel();
                    }
                    cancelled = true;
                }
                _ => relax(),
            }
        }
    }

    pub(super) fn set(&self, slot: usize, state: Hooked) {
        // Release: the poller is done with what it had before; pairs with the Acquire in `wait_unhooked`.
        self.hooked[slot].store(state as u8, Ordering::Release);
    }

    /// Before an eventfd is signalled: notes the time, unless an older signal still waits to be taken. One producer
    /// per source.
    #[inline]
    pub fn stamp(&self, slot: usize, now: u64) {
        let stamp = &self.stamps[slot];
        // Relaxed: the system call that signals orders it before the poller's look.
        if stamp.load(Ordering::Relaxed) == 0 {
            stamp.store(now, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn take_stamp(&self, slot: usize) -> u64 {
        // After the drain. A signal made between the two finds the old stamp and sets none: it is reported without a
        // time rather than with a wrong one.
        let stamp = self.stamps[slot].load(Ordering::Relaxed);
        self.stamps[slot].store(0, Ordering::Relaxed);
        stamp
    }

    /// Whether a poller still takes commands.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        // Acquire: pairs with the Release in `close`.
        self.alive.load(Ordering::Acquire)
    }

    pub(super) fn close(&self) {
        self.alive.store(false, Ordering::Release);
    }

    pub(super) fn fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// System calls of the poller that failed and should not have.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }
}
