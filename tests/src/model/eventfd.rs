//! An event source as the kernel has it.

use loom::sync::Mutex;
use loom::sync::atomic::AtomicU64 as ModelU64;
use pollvisor_core::ids::SourceId;
use pollvisor_core::source::{Drained, Fired, Source};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// How a source begins to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// It is looked at, and reported at once if there is something in it: AIO, epoll.
    Level,
    /// Only what is written from now on is reported: a bare wait queue.
    Edge,
}

#[derive(Debug, Default)]
pub(super) struct Event {
    pub(super) counter: u64,
    /// Whom the next write reports to, once.
    pub(super) armed: bool,
    /// The report, not yet read by the poller.
    pub(super) posted: bool,
    pub(super) watched: Option<SourceId>,
    pub(super) hung_up: bool,
    /// Bound in the kernel: a write is taken and injected in the writer's own context.
    in_kernel: bool,
}

impl Event {
    /// Asks for one report; at once if `look` and there is something.
    pub(super) fn arm(&mut self, look: bool) {
        self.posted = look && (self.counter > 0 || self.hung_up);
        self.armed = !self.posted;
    }
}

/// An eventfd with a one-shot poll request on it, each call of it one step, as the kernel's lock makes it.
#[derive(Debug)]
pub struct Eventfd {
    event: Mutex<Event>,
    pub(super) hook: Hook,
    /// What the device has to tell; written before each signal, read by the guest's handler.
    pub(super) state: ModelU64,
    pub(super) written: AtomicU64,
    /// What the kernel's own irqfd did with it.
    pub kernel: KernelIrqfd,
}

/// The ends that signals met in the kernel.
#[derive(Debug, Default)]
pub struct KernelIrqfd {
    /// Signals taken.
    pub taken: AtomicU64,
    /// Interrupts injected.
    pub injected: AtomicU64,
    /// The newest device state that an interrupt's handler saw.
    pub seen: AtomicU64,
}

impl Eventfd {
    pub(super) fn new(hook: Hook) -> Self {
        Self {
            event: Mutex::default(),
            hook,
            state: ModelU64::new(0),
            written: AtomicU64::new(0),
            kernel: KernelIrqfd::default(),
        }
    }

    pub(super) fn with<R>(&self, f: impl FnOnce(&mut Event) -> R) -> R {
        f(&mut self.event.lock().expect("no model thread panics inside"))
    }

    /// The device has something new to tell, and signals.
    pub fn signal(&self) {
        let state = self.written.fetch_add(1, SeqCst) + 1;
        self.state.store(state, SeqCst);
        self.with(|event| {
            event.counter += 1;
            event.posted |= core::mem::take(&mut event.armed);
            self.take_in_kernel(event);
        });
    }

    /// `KVM_IRQFD`: the kernel is the waiter from here on, and takes what is pending.
    pub fn bind_in_kernel(&self) {
        self.with(|event| {
            assert_eq!(event.watched, None, "two exclusive waiters");
            event.in_kernel = true;
            self.take_in_kernel(event);
        });
    }

    /// `KVM_IRQFD` with `DEASSIGN`: what is signalled from here on stays in the counter.
    pub fn unbind_from_kernel(&self) {
        self.with(|event| event.in_kernel = false);
    }

    fn take_in_kernel(&self, event: &mut Event) {
        if event.in_kernel && event.counter > 0 {
            self.kernel.taken.fetch_add(core::mem::take(&mut event.counter), SeqCst);
            self.kernel.injected.fetch_add(1, SeqCst);
            self.kernel.seen.fetch_max(self.state.load(SeqCst), SeqCst);
        }
    }

    /// The producer closes its end.
    pub fn hang_up(&self) {
        self.with(|event| {
            event.hung_up = true;
            event.posted |= core::mem::take(&mut event.armed);
        });
    }

    /// The producer opens it again.
    pub fn reopen(&self) {
        self.with(|event| event.hung_up = false);
    }

    pub(super) fn take(&self) -> u64 {
        self.with(|event| core::mem::take(&mut event.counter))
    }
}

impl Source for &Eventfd {
    fn next(&mut self) -> Option<Fired> {
        self.with(|event| {
            let id = event.watched?;
            core::mem::take(&mut event.posted).then_some(Fired { id, token: 0, hang_up: event.hung_up })
        })
    }

    fn drain(&mut self, _: &Fired) -> Drained {
        Drained { signals: self.take(), stamp: 0 }
    }

    fn rearm(&mut self, fired: &Fired) {
        self.with(|event| {
            if event.watched == Some(fired.id) {
                event.arm(true);
            }
        });
    }

    fn flush(&mut self) {}
}
