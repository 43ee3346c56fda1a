//! What the loom models share: an event source as the kernel has it, a host, an injector that watches, a ledger.
//!
//! What is modelled, and so takes part in loom's interleavings, is loom's: the source's lock, the device's state, and
//! what is a mistake from some moment on (loom tries both orders only of what it sees). What only records is `std`'s:
//! no thread switch happens inside it.

mod eventfd;

pub use eventfd::{Eventfd, Hook, KernelIrqfd};

use loom::sync::atomic::{AtomicBool as ModelBool, AtomicU32 as ModelU32};
use pollvisor_core::ids::{EventKey, Gsi, SourceId};
use pollvisor_core::inject::{Accepted, Inject, InjectError, LineSource};
use pollvisor_core::irqfd::{Assign, AssignError, Bindings, Host, Irqfds, Outcome, Slot};
use pollvisor_core::poll::{Observer, Poller};
use pollvisor_core::prim::{Mutation, plant};
use pollvisor_core::route::{Chip, Irqchip, Msi, RawRoute};
use pollvisor_core::source::{Drained, Fired};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

/// Runs `model` with at most `bound` preemptions, every interleaving of them; `LOOM_MAX_PREEMPTIONS` overrides.
pub fn check(bound: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(bound);
    builder.max_branches = 20_000;
    builder.check(model);
}

/// [`check`] with a mistake planted: it has to fail.
pub fn check_broken(mutation: Mutation, bound: usize, model: impl Fn() + Sync + Send + 'static) {
    struct Unplant;
    impl Drop for Unplant {
        fn drop(&mut self) {
            plant(None);
        }
    }
    let _unplant = Unplant;
    plant(Some(mutation));
    check(bound, model);
}

/// Every signal's end, and what the guest saw.
#[derive(Debug, Default)]
pub struct Ledger {
    delivered: AtomicU64,
    merged: AtomicU64,
    dropped: AtomicU64,
    /// The newest device state that an interrupt's handler saw.
    seen: AtomicU64,
    /// Interrupts injected.
    pub injected: AtomicU64,
    /// From here on this vector is a mistake.
    forbidden: ModelU32,
    /// From here on this pin is a mistake, if not 0.
    pub forbidden_pin: ModelU32,
    /// From here on every interrupt is a mistake.
    closed: ModelBool,
    /// The vector of the last interrupt.
    pub vector: AtomicU32,
    /// The line of resampling irqfds.
    pub level: ModelBool,
    /// `Host::release` calls.
    pub released: AtomicU64,
    /// Whose resample eventfd was signalled.
    pub resampled: std::sync::Mutex<Vec<EventKey>>,
}

impl Ledger {
    fn add(&self, outcome: Outcome) {
        self.delivered.fetch_add(outcome.delivered, SeqCst);
        self.merged.fetch_add(outcome.merged, SeqCst);
        self.dropped.fetch_add(outcome.dropped, SeqCst);
    }

    /// Delivered, merged and dropped.
    pub fn total(&self) -> u64 {
        self.delivered.load(SeqCst) + self.merged.load(SeqCst) + self.dropped.load(SeqCst)
    }
}

/// A VM with one eventfd, and the machinery under test.
#[derive(Debug)]
pub struct World<const N: usize> {
    /// The machinery.
    pub irqfds: Irqfds<[Slot; N]>,
    /// The eventfd.
    pub fd: Eventfd,
    /// What happened.
    pub ledger: Ledger,
    bindings: Bindings,
    /// Whether a thread of its own is the deferred worker at the moment.
    worker: AtomicBool,
    /// Whether whoever wakes the deferred worker does its job at once.
    inline_worker: bool,
}

/// The eventfd's name.
pub const KEY: EventKey = EventKey(7);
/// The GSI it is bound to.
pub const GSI: Gsi = Gsi(1);

/// The message with this vector, as a whole table.
pub fn route(gsi: Gsi, vector: u8) -> [RawRoute; 1] {
    [RawRoute::msi(gsi, Msi::fixed(vector.into(), vector))]
}

/// A request without resampling.
pub const fn plain(gsi: Gsi) -> Assign {
    Assign { key: KEY, gsi, resample: None, slot: None }
}

impl<const N: usize> World<N> {
    /// A VM whose [`GSI`] sends vector 0x40.
    pub fn new(hook: Hook) -> Self {
        let world = Self {
            irqfds: Irqfds::new(std::array::from_fn(|_| Slot::new()), Irqchip::Kernel, true),
            fd: Eventfd::new(hook),
            ledger: Ledger::default(),
            bindings: Bindings::new(),
            worker: AtomicBool::new(false),
            inline_worker: true,
        };
        world.irqfds.set_routes(&world, 0, &route(GSI, 0x40)).expect("a good table");
        world
    }

    /// The deferred worker runs when the model says so, and not as soon as it is woken.
    pub fn with_worker_thread(mut self) -> Self {
        self.inline_worker = false;
        self
    }

    /// Binds the eventfd to [`GSI`].
    pub fn assign(&self) -> SourceId {
        self.irqfds.assign(self, self, plain(GSI)).expect("nobody else has it")
    }

    /// A poller that makes `passes` passes and leaves.
    pub fn poll(&self, passes: usize) {
        let mut poller = Poller::new(&self.irqfds).expect("a seat");
        for _ in 0..passes {
            poller.pass(&mut &self.fd, self, &mut &self.ledger);
        }
    }

    /// Polls until there is nothing to see.
    pub fn poll_dry(&self) {
        let mut poller = Poller::new(&self.irqfds).expect("a seat");
        while poller.pass(&mut &self.fd, self, &mut &self.ledger) > 0 {}
    }

    /// The deferred worker wakes once.
    pub fn work(&self) {
        self.worker.store(true, SeqCst);
        let mut reader = self.irqfds.grace().register().expect("a seat");
        reader.online();
        self.irqfds.run_deferred(&reader, self, |_, outcome| self.ledger.add(outcome));
        reader.tick();
        drop(reader);
        self.worker.store(false, SeqCst);
    }

    /// The shutdown worker, if it is nobody at the moment, does what there is to do; how much it was.
    pub fn shut_down(&self) -> usize {
        self.irqfds.shutdown_worker().map_or(0, |mut worker| worker.run(self, self))
    }

    /// From here on this vector must not arrive.
    pub fn forbid(&self, vector: u8) {
        self.ledger.forbidden.store(vector.into(), SeqCst);
    }

    /// From here on nothing must arrive.
    pub fn close(&self) {
        self.ledger.closed.store(true, SeqCst);
    }

    /// Everything settled: no signal is without an end, no edge without a later interrupt.
    pub fn assert_settled(&self) {
        let written = self.fd.written.load(SeqCst);
        assert!(self.irqfds.nothing_deferred());
        let total = self.ledger.total() + self.fd.kernel.taken.load(SeqCst);
        assert_eq!(total, written, "signals and their ends differ: {:?}", self.ledger);
        let seen = self.ledger.seen.load(SeqCst).max(self.fd.kernel.seen.load(SeqCst));
        assert_eq!(seen, written, "an edge was lost: {:?}", self.ledger);
        let injected = self.ledger.injected.load(SeqCst);
        assert!(self.ledger.delivered.load(SeqCst) <= injected, "delivered what was not injected");
    }

    /// Nothing is left of `shutdowns` irqfds: each was shut down once, and the signals it did not take are in the source.
    pub fn assert_gone(&self, shutdowns: u64) {
        assert_eq!(self.ledger.released.load(SeqCst), shutdowns, "shut down once each");
        assert!(self.bindings.is_empty(), "not shut down yet");
        let left = self.fd.with(|event| {
            assert_eq!(event.watched, None);
            event.counter
        });
        let written = self.fd.written.load(SeqCst);
        assert_eq!(self.ledger.total() + left, written, "signals and their ends differ: {:?}", self.ledger);
    }

    /// No interrupt was for nothing.
    pub fn assert_frugal(&self) {
        let written = self.fd.written.load(SeqCst);
        let injected = self.ledger.injected.load(SeqCst) + self.fd.kernel.injected.load(SeqCst);
        assert!(injected <= written, "an interrupt without a signal: {:?}", self.ledger);
    }

    /// What a poller does with an event that cannot be delivered at once.
    pub fn drain_and_defer(&self, id: SourceId) {
        let signals = self.fd.with(|event| {
            event.armed |= core::mem::take(&mut event.posted);
            core::mem::take(&mut event.counter)
        });
        self.irqfds.defer(id, signals);
    }

    /// [`assert_settled`](Self::assert_settled) after everything that is still on its way.
    pub fn settle(&self) {
        self.poll_dry();
        self.work();
        self.assert_settled();
    }

    fn interrupt(&self) {
        assert!(!self.ledger.closed.load(SeqCst), "an interrupt after its teardown returned");
        self.ledger.injected.fetch_add(1, SeqCst);
        self.ledger.seen.fetch_max(self.fd.state.load(SeqCst), SeqCst);
    }
}

impl<const N: usize> Inject for World<N> {
    fn msi(&self, msi: &Msi) -> Result<Accepted, InjectError> {
        let forbidden = self.ledger.forbidden.load(SeqCst);
        let vector = msi.vector().into();
        assert!(forbidden != vector, "an interrupt by a route replaced before");
        assert_eq!(msi.destination(), vector, "a torn message");
        self.ledger.vector.store(vector, SeqCst);
        self.interrupt();
        Ok(Accepted::default())
    }

    fn pin(&self, _: Chip, pin: u32, level: bool, source: LineSource) -> Result<(), InjectError> {
        let forbidden = self.ledger.forbidden_pin.load(SeqCst);
        assert!(forbidden == 0 || forbidden != pin, "a line moved by a route replaced before");
        if source == LineSource::Resample {
            self.ledger.level.store(level, SeqCst);
        }
        if level {
            self.interrupt();
        }
        Ok(())
    }
}

impl Observer for &Ledger {
    fn now(&mut self) -> u64 {
        0
    }

    fn delivered(&mut self, _: &Fired, _: u64, _: u64, drained: Drained, outcome: Outcome) {
        assert!(outcome.signals() <= drained.signals, "more ends than signals");
        self.add(outcome);
    }

    fn deferred(&mut self, _: &Fired, _: u64, _: bool) {}

    fn hung_up(&mut self, _: &Fired) {}
}

impl<const N: usize> Host for World<N> {
    fn bindings(&self) -> &Bindings {
        &self.bindings
    }

    fn hook(&self, id: SourceId, key: EventKey) -> Result<(), AssignError> {
        if key != KEY {
            return Ok(());
        }
        self.fd.with(|event| {
            event.watched = Some(id);
            event.arm(self.fd.hook == Hook::Level);
        });
        Ok(())
    }

    fn take_pending(&self, _: SourceId, key: EventKey) -> u64 {
        if key != KEY || self.fd.hook == Hook::Level { 0 } else { self.fd.take() }
    }

    fn unhook(&self, id: SourceId) {
        self.fd.with(|event| {
            if event.watched == Some(id) {
                event.watched = None;
                event.armed = false;
                event.posted = false;
            }
        });
    }

    fn release(&self, _: SourceId, _: EventKey) {
        self.ledger.released.fetch_add(1, SeqCst);
    }

    fn signal(&self, key: EventKey) {
        self.ledger.resampled.lock().expect("nothing panics inside").push(key);
    }

    fn wake_deferred(&self) {
        if self.inline_worker && !self.worker.load(SeqCst) {
            self.work();
        }
    }

    fn wake_shutdown(&self) {}

    fn relax(&self) {
        // Yielding lets the others run up to where they wait, so not without need: less would be explored.
        if self.shut_down() == 0 {
            loom::thread::yield_now();
        }
    }
}
