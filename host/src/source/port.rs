//! The control side of a lane.

use crate::error::Result;
use crate::sys::aio::Canceller;
use crate::sys::doorbell::Consumer;
use crate::sys::fd::EventFd;
use crossbeam_queue::ArrayQueue;
use pollvisor_core::ids::SourceId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};

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

/// Where a source is, as the poller last said; or that it was asked to watch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Hooked {
    /// Not watched.
    Idle = 0,
    /// Watched.
    Watched = 1,
    /// Not reported any more, but still armed in the kernel: to be cancelled by a control thread.
    Closing = 2,
    /// The poller was asked to watch it. Said by who asked: whoever waits for the end of a source that was hooked a moment
    /// ago must not take the slot's last owner's end for it.
    Asked = 3,
}

/// Signals whose times are kept.
const KEPT: u32 = 3;

/// When the oldest signals of a source that were not drained yet were made. A poller that comes late finds the time of the
/// first one, however many came since: the longest waits are the ones that must not be missing. Written by the producer
/// and, after the injection, by the poller; in one line, which therefore goes once each way.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Stamps {
    /// Signals noted so far. The producer's.
    noted: AtomicU64,
    /// Signals drained so far: what was kept of those may be overwritten. The poller's.
    drained: AtomicU64,
    /// At n modulo `KEPT`, signal n. The producer's; it writes none that was not drained.
    kept: [Stamp; KEPT as usize],
}

#[derive(Debug, Default)]
struct Stamp {
    /// Whose time it is: its number plus 1.
    whose: AtomicU64,
    /// In TSC cycles.
    time: AtomicU64,
}

impl Stamps {
    #[inline]
    fn note(&self, now: u64) {
        // Relaxed: this is its only writer.
        let number = self.noted.load(Ordering::Relaxed);
        // Acquire: pairs with the Release in `of`, whose look at the place was before.
        if number < self.drained.load(Ordering::Acquire) + u64::from(KEPT) {
            let stamp = self.kept(number);
            stamp.time.store(now, Ordering::Relaxed);
            stamp.whose.store(number + 1, Ordering::Relaxed);
        }
        // Release: pairs with the Acquire in `of`.
        self.noted.store(number + 1, Ordering::Release);
    }

    #[inline]
    fn prepare(&self) {
        self.noted.store(self.noted.load(Ordering::Relaxed), Ordering::Relaxed);
        // SeqCst, with no partner: it is there to wait until the store has its line.
        fence(Ordering::SeqCst);
    }

    /// The time of signal `first`, of which and its followers `signals` were drained: 0 when it was not kept. `None`:
    /// fewer were noted than were drained, so the numbers do not match.
    #[inline]
    fn of(&self, first: u64, signals: u64) -> Option<u64> {
        // Acquire: pairs with the Release in `note`.
        if self.noted.load(Ordering::Acquire) < first + signals {
            return None;
        }
        let stamp = self.kept(first);
        let known = signals > 0 && stamp.whose.load(Ordering::Relaxed) == first + 1;
        let time = if known { stamp.time.load(Ordering::Relaxed) } else { 0 };
        // Release: pairs with the Acquire in `note`.
        self.drained.store(first + signals, Ordering::Release);
        Some(time)
    }

    fn kept(&self, number: u64) -> &Stamp {
        &self.kept[usize::try_from(number % u64::from(KEPT)).unwrap_or(0)]
    }
}

/// The poller's count of a source's drained signals; `None`: it has no stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken(Option<u64>);

impl Taken {
    pub(super) const NONE: Self = Self(None);
}

/// See the module's text.
#[derive(Debug)]
pub struct Port {
    commands: ArrayQueue<Command>,
    /// Whether a command may wait: all that an idle pass looks at.
    waiting: AtomicBool,
    /// Whether a poller still takes commands.
    alive: AtomicBool,
    /// Per slot, a [`Hooked`]. Written by the poller; while idle, by who sends it a command to hook.
    hooked: Box<[AtomicU8]>,
    /// Per slot, when its last signals were made.
    stamps: Box<[Stamps]>,
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
            stamps: (0..slots).map(|_| Stamps::default()).collect(),
            cancellers,
            wake: blocking.then(EventFd::new).transpose()?,
            faults: AtomicU64::new(0),
        }))
    }

    /// Sends a command, waiting with `relax` while the queue is full. Dropped when the poller is gone.
    pub fn send(&self, mut command: Command, relax: impl Fn()) {
        if let Command::Hook { id, .. } | Command::HookBell { id, .. } = &command {
            self.set(id.slot(), Hooked::Asked);
        }
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

    /// Up to `most` commands, one by one to `f`. False: nobody called. With none: one load.
    #[inline]
    pub(super) fn receive(&self, most: usize, mut f: impl FnMut(Command)) -> bool {
        if !self.waiting.load(Ordering::Relaxed) {
            return false;
        }
        // Acquire: pairs with the Release in `send`. Cleared before the queue is looked at, so that a command pushed
        // meanwhile sets it again.
        self.waiting.swap(false, Ordering::AcqRel);
        for _ in 0..most {
            match self.commands.pop() {
                Some(command) => f(command),
                None => return true,
            }
        }
        self.waiting.store(true, Ordering::Relaxed);
        true
    }

    /// Whether a command may wait.
    pub(super) fn is_called(&self) -> bool {
        // Relaxed: a wake's system calls are between the sender's store and this, see `Lane::wait`.
        self.waiting.load(Ordering::Relaxed)
    }

    /// The poller's: the next [`receive`](Self::receive) says that somebody called.
    pub(super) fn call_again(&self) {
        self.waiting.store(true, Ordering::Relaxed);
    }

    /// What wakes a blocking poller.
    #[must_use]
    pub fn wake(&self) -> Option<&EventFd> {
        self.wake.as_ref()
    }

    /// Waits until `id`, which was attached, is watched: a signal made from then on has its time. Does not wait for a poller
    /// that is gone.
    pub fn wait_hooked(&self, id: SourceId, relax: impl Fn()) {
        // Acquire: pairs with the Release in `set`.
        while self.is_alive() && self.hooked[id.slot()].load(Ordering::Acquire) == Hooked::Asked as u8 {
            relax();
        }
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

    /// Before an eventfd is signalled: notes the time. For a source with one producer, every signal of which is noted
    /// and which is hooked before the first one.
    #[inline]
    pub fn stamp(&self, slot: usize, now: u64) {
        self.stamps[slot].note(now);
    }

    /// Before the time of a signal is taken: gets the line that [`stamp`](Self::stamp) writes, which the poller read last.
    /// Else the signal's first atomic instruction would wait for it, and a measurement would measure itself.
    #[inline]
    pub fn prepare_stamp(&self, slot: usize) {
        self.stamps[slot].prepare();
    }

    /// Where the stamps of a source that is hooked now begin.
    pub(super) fn first_stamp(&self, slot: usize) -> Taken {
        // One that was signalled before cannot be matched with its stamps.
        Taken((self.stamps[slot].noted.load(Ordering::Relaxed) == 0).then_some(0))
    }

    /// The stamp of the first of `signals` just drained; 0 when it is not known.
    #[inline]
    pub(super) fn take_stamp(&self, slot: usize, taken: &mut Taken, signals: u64) -> u64 {
        let Some(first) = taken.0 else { return 0 };
        let stamp = self.stamps[slot].of(first, signals);
        taken.0 = stamp.map(|_| first + signals);
        stamp.unwrap_or(0)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Backend, Lane};
    use pollvisor_core::ids::Generation;
    use pollvisor_core::source::Source;
    use std::time::{Duration, Instant};

    #[test]
    fn unhooking_waits_for_a_hook_that_the_poller_has_not_seen_yet() {
        for backend in [Backend::AIO, Backend::EpollSpin] {
            let mut lane = Lane::new(backend, 1).expect("a lane");
            let (port, event) = (lane.port().clone(), Arc::new(EventFd::new().expect("an eventfd")));
            for generation in 0..3 {
                let id = SourceId { index: 0, generation: Generation(generation) };
                let (port, event) = (port.clone(), event.clone());
                let control = std::thread::spawn(move || {
                    port.send(Command::Hook { id, event }, std::thread::yield_now);
                    port.send(Command::Unhook { id }, std::thread::yield_now);
                    port.wait_unhooked(id, std::thread::yield_now);
                });
                // A poller that does not get its CPU.
                std::thread::sleep(Duration::from_millis(20));
                assert!(!control.is_finished(), "nobody has unhooked it: {backend:?}, {generation}");
                let began = Instant::now();
                while !control.is_finished() && began.elapsed().as_secs() < 5 {
                    lane.obey();
                    assert_eq!(lane.next(), None);
                }
                assert!(control.is_finished(), "{backend:?}, {generation}");
            }
        }
    }

    /// More than a pass takes, all sent before it looks: their one wake is gone with the first of them.
    #[test]
    fn a_poller_that_sleeps_carries_out_all_that_it_was_sent() {
        const ALL: u32 = 40;
        let mut lane = Lane::new(Backend::EpollBlock, ALL as usize).expect("a lane");
        let port = lane.port().clone();
        let ids = (0..ALL).map(|index| SourceId { index, generation: Generation(0) });
        for id in ids.clone() {
            let event = Arc::new(EventFd::new().expect("an eventfd"));
            port.send(Command::Hook { id, event }, || panic!("the queue has room"));
        }
        let poller = std::thread::spawn(move || {
            while (0..ALL as usize)
                .any(|slot| lane.port().hooked[slot].load(Ordering::Acquire) == Hooked::Asked as u8)
            {
                lane.wait();
                lane.obey();
                assert_eq!(lane.next(), None);
            }
        });
        let began = Instant::now();
        while !poller.is_finished() {
            assert!(began.elapsed() < Duration::from_secs(20), "it sleeps over its commands");
            std::thread::sleep(Duration::from_millis(1));
        }
        poller.join().expect("a poller");
    }

    #[test]
    fn a_stamp_is_the_first_drained_signals_or_none() {
        let stamps = Stamps::default();
        assert_eq!(stamps.of(0, 0), Some(0));
        (1..=3).for_each(|time| stamps.note(time * 10));
        assert_eq!((stamps.of(0, 2), stamps.of(2, 1)), (Some(10), Some(30)));
        assert_eq!(stamps.of(2, 2), None, "more drained than noted");
        (4..=100).for_each(|time| stamps.note(time * 10));
        assert_eq!(stamps.of(3, 90), Some(40), "the first one, after many");
        assert_eq!(stamps.of(93, 1), Some(0), "one that was not kept");
        assert_eq!(stamps.of(94, 6), Some(0));
        stamps.note(7);
        assert_eq!(stamps.of(100, 1), Some(7), "and on it goes");
    }
}
