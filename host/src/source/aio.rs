//! Eventfds watched through Linux AIO poll: no system call while idle.
//!
//! A slot's poll has a fixed place: context `slot / per`, number `slot % per`. Few sources per context keep re-arms
//! and signals off one another's lock; few contexts keep an idle look short. By `pollvisor-bench paths --per-context` 8
//! to 512 differ by a tenth at most; one source a context costs half as much again at 512.
//!
//! Race 47: a signal that meets a re-arm of its context, a window of some tens of nanoseconds, is completed by a kworker
//! of the *signaller's* CPU. Its delay is that CPU's scheduling, whatever the poller does, so it is bounded as long as
//! nobody signals on the poller's own CPU: producers do not run there, and device interrupts are to be kept off it.

use super::port::{Hooked, Port, Taken};
use crate::error::Result;
use crate::sys::aio::{Canceller, Context, Submitted};
use crate::sys::fd::EventFd;
use pollvisor_core::ids::{Generation, SourceId};
use pollvisor_core::poll::BATCH;
use pollvisor_core::source::{Drained, Fired};
use std::os::fd::AsFd;
use std::sync::Arc;

/// Sources that share a context.
pub const DEFAULT_PER_CONTEXT: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Poll {
    Off,
    Armed,
    /// Reported; armed again after its drain.
    Fired,
    /// Armed, and unhooked: its completion is the end.
    Closing,
}

#[derive(Debug)]
struct Entry {
    id: SourceId,
    event: Option<Arc<EventFd>>,
    poll: Poll,
    taken: Taken,
}

#[derive(Debug)]
pub(super) struct AioSource {
    contexts: Vec<Context>,
    per: usize,
    entries: Box<[Entry]>,
    /// Sources per context, and the contexts that have any: the others are not looked at.
    hooked: Box<[usize]>,
    busy: Vec<usize>,
    /// The place in `busy` to look at next, and how many are left to look at in this pass.
    cursor: usize,
    left: usize,
    /// Contexts with something to submit.
    dirty: heapless::Vec<usize, BATCH>,
}

impl AioSource {
    pub(super) fn new(slots: usize, per: usize) -> Result<Self> {
        let per = per.clamp(1, slots.max(1));
        let contexts: Vec<_> = (0..slots.div_ceil(per)).map(|_| Context::new(per)).collect::<Result<_>>()?;
        let off = || Entry {
            id: SourceId { index: u32::MAX, generation: Generation(0) },
            event: None,
            poll: Poll::Off,
            taken: Taken::NONE,
        };
        Ok(Self {
            left: 0,
            hooked: vec![0; contexts.len()].into(),
            busy: Vec::with_capacity(contexts.len()),
            contexts,
            per,
            entries: (0..slots).map(|_| off()).collect(),
            cursor: 0,
            dirty: heapless::Vec::new(),
        })
    }

    pub(super) fn cancellers(&self) -> Box<[Canceller]> {
        (0..self.entries.len())
            .map(|slot| self.contexts[slot / self.per].canceller(slot % self.per))
            .collect()
    }

    pub(super) fn hook(&mut self, id: SourceId, event: Arc<EventFd>, port: &Port) {
        let slot = id.slot();
        let number = slot / self.per;
        self.hooked[number] += 1;
        if self.hooked[number] == 1 {
            self.busy.push(number);
        }
        self.contexts[number].arm(slot % self.per, event.as_fd(), slot as u64);
        let taken = port.first_stamp(slot);
        self.entries[slot] = Entry { id, event: Some(event), poll: Poll::Armed, taken };
        self.submit(number, port);
        port.set(slot, Hooked::Watched);
    }

    pub(super) fn unhook(&mut self, id: SourceId, port: &Port) {
        let slot = id.slot();
        let armed = self.entries[slot].poll == Poll::Armed;
        if armed && !self.contexts[slot / self.per].withdraw(slot % self.per) {
            self.entries[slot].poll = Poll::Closing;
            port.set(slot, Hooked::Closing);
        } else {
            self.off(slot, port);
        }
    }

    /// Arms what a context has to arm.
    fn submit(&mut self, number: usize, port: &Port) {
        loop {
            match self.contexts[number].submit() {
                Submitted::All => return,
                Submitted::Later => {
                    port.fault();
                    port.call_again();
                    return;
                }
                Submitted::Refused(slot) => {
                    port.fault();
                    // Nothing is armed, so nothing is to be cancelled when it is unhooked.
                    self.entries[usize::try_from(slot).unwrap_or(usize::MAX)].poll = Poll::Off;
                }
            }
        }
    }

    /// Tries again what the kernel had no memory for.
    pub(super) fn retry(&mut self, port: &Port) {
        for number in 0..self.contexts.len() {
            if self.contexts[number].has_batch() {
                self.submit(number, port);
            }
        }
    }

    fn off(&mut self, slot: usize, port: &Port) {
        let entry = &mut self.entries[slot];
        entry.poll = Poll::Off;
        if entry.event.take().is_some() {
            let number = slot / self.per;
            self.hooked[number] -= 1;
            if self.hooked[number] == 0 {
                self.busy.retain(|context| *context != number);
                (self.cursor, self.left) = (0, 0);
            }
        }
        port.set(slot, Hooked::Idle);
    }

    #[inline]
    pub(super) fn next(&mut self, port: &Port) -> Option<Fired> {
        while self.left > 0 {
            let context = self.busy[self.cursor];
            while let Some(completion) = self.contexts[context].pop() {
                let slot = usize::try_from(completion.data).unwrap_or(usize::MAX);
                let entry = &mut self.entries[slot];
                if entry.poll == Poll::Closing {
                    self.off(slot, port);
                    if self.left == 0 {
                        break;
                    }
                    continue;
                }
                entry.poll = Poll::Fired;
                let hang_up = completion.events & i64::from(libc::POLLHUP) != 0;
                return Some(Fired { id: entry.id, token: completion.data, hang_up });
            }
            self.cursor = if self.cursor + 1 >= self.busy.len() { 0 } else { self.cursor + 1 };
            self.left = self.left.saturating_sub(1);
        }
        self.left = self.busy.len();
        None
    }

    #[inline]
    pub(super) fn drain(&mut self, fired: &Fired, port: &Port) -> Drained {
        let slot = fired.id.slot();
        let signals = self.entries[slot].event.as_ref().map_or(0, |event| event.take());
        let stamp = port.take_stamp(slot, &mut self.entries[slot].taken, signals);
        Drained { signals, stamp }
    }

    #[inline]
    pub(super) fn rearm(&mut self, fired: &Fired) {
        let slot = fired.id.slot();
        let context = slot / self.per;
        self.entries[slot].poll = Poll::Armed;
        if !self.contexts[context].has_batch() {
            let _room = self.dirty.push(context);
        }
        self.contexts[context].rearm(slot % self.per);
    }

    #[inline]
    pub(super) fn flush(&mut self, port: &Port) {
        while let Some(context) = self.dirty.pop() {
            self.submit(context, port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel without memory makes an event late, not lost, and its source can be unhooked meanwhile.
    #[test]
    fn what_cannot_be_armed_now_is_armed_later() {
        let mut source = AioSource::new(2, 16).expect("AIO");
        let port = Port::new(2, source.cancellers(), false).expect("a port");
        let events = [(); 2].map(|()| Arc::new(EventFd::new().expect("an eventfd")));
        let id = |index| SourceId { index, generation: Generation(0) };
        source.contexts[0].no_memory = 3;
        for (index, event) in (0..).zip(&events) {
            source.hook(id(index), event.clone(), &port);
            event.signal(1);
        }
        assert_eq!((source.next(&port), source.next(&port), port.faults()), (None, None, 2));
        source.unhook(id(1), &port);
        port.wait_unhooked(id(1), || panic!("nothing is armed"));
        let mut again = 0;
        while port.receive(1, |_| ()) {
            source.retry(&port);
            again += 1;
        }
        assert_eq!(again, 2, "one that failed and one that did not");
        // A pass may be over before it looks.
        let mut next = || std::iter::repeat_with(|| source.next(&port)).take(2).flatten().next();
        let fired = next().expect("the first one's signal");
        assert_eq!((fired.id, source.drain(&fired, &port).signals), (id(0), 1));
        // And the same for one that is armed again.
        source.contexts[0].no_memory = 1;
        source.rearm(&fired);
        source.flush(&port);
        events[0].signal(1);
        assert_eq!((source.next(&port), source.next(&port)), (None, None));
        assert!(port.receive(1, |_| ()));
        source.retry(&port);
        assert!(
            std::iter::repeat_with(|| source.next(&port)).take(2).flatten().any(|fired| fired.id == id(0))
        );
    }
}
