//! Eventfds watched through epoll: the fallback where there is no AIO, and the way that blocks.
//!
//! Level-triggered, looked at once per pass: what was reported and not drained yet would be reported again.

use super::port::{Hooked, Port, Taken};
use crate::error::Result;
use crate::sys::fd::{Epoll, EpollEvent, EventFd};
use pollvisor_core::ids::SourceId;
use pollvisor_core::poll::BATCH;
use pollvisor_core::source::{Drained, Fired};
use std::os::fd::AsFd;
use std::sync::Arc;

const WAKE: u64 = u64::MAX;

#[derive(Debug)]
struct Entry {
    id: SourceId,
    event: Arc<EventFd>,
    taken: Taken,
}

#[derive(Debug)]
pub(super) struct EpollSource {
    epoll: Epoll,
    entries: Box<[Option<Entry>]>,
    events: [EpollEvent; BATCH],
    at: usize,
    count: usize,
    looked: bool,
}

impl EpollSource {
    pub(super) fn new(slots: usize) -> Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            entries: (0..slots).map(|_| None).collect(),
            events: [EpollEvent { events: 0, u64: 0 }; BATCH],
            at: 0,
            count: 0,
            looked: false,
        })
    }

    pub(super) fn watch_wake(&self, port: &Port) -> Result<()> {
        port.wake().map_or(Ok(()), |wake| self.epoll.add(wake.as_fd(), WAKE))
    }

    pub(super) fn hook(&mut self, id: SourceId, event: Arc<EventFd>, port: &Port) {
        if self.epoll.add(event.as_fd(), u64::from(id.index)).is_err() {
            port.fault();
        }
        self.entries[id.slot()] = Some(Entry { id, event, taken: port.first_stamp(id.slot()) });
        port.set(id.slot(), Hooked::Watched);
    }

    pub(super) fn unhook(&mut self, id: SourceId, port: &Port) {
        if let Some(entry) = self.entries[id.slot()].take() {
            self.epoll.remove(entry.event.as_fd());
        }
        port.set(id.slot(), Hooked::Idle);
    }

    #[inline]
    pub(super) fn next(&mut self, port: &Port) -> Option<Fired> {
        if !self.looked {
            self.fill(0);
        }
        while self.at < self.count {
            let event = self.events[self.at];
            self.at += 1;
            let token = event.u64;
            if token == WAKE {
                let _wakes = port.wake().map(EventFd::take);
                continue;
            }
            let slot = usize::try_from(token).unwrap_or(usize::MAX);
            if let Some(Some(Entry { id, .. })) = self.entries.get(slot) {
                let hang_up = event.events & libc::EPOLLHUP.cast_unsigned() != 0;
                return Some(Fired { id: *id, token, hang_up });
            }
        }
        self.looked = false;
        None
    }

    /// Waits until something is there to be reported. Only between passes.
    pub(super) fn wait(&mut self) {
        if self.at == self.count {
            self.fill(-1);
        }
    }

    fn fill(&mut self, timeout: i32) {
        self.count = self.epoll.wait(&mut self.events, timeout);
        self.at = 0;
        self.looked = true;
    }

    #[inline]
    pub(super) fn drain(&mut self, fired: &Fired, port: &Port) -> Drained {
        let slot = fired.id.slot();
        let Some(entry) = &mut self.entries[slot] else { return Drained::default() };
        let signals = entry.event.take();
        Drained { signals, stamp: port.take_stamp(slot, &mut entry.taken, signals) }
    }

    pub(super) fn flush(&mut self) {
        // A full batch ended the pass early: what is left of it comes first in the next one.
        self.looked = self.at < self.count;
    }
}
