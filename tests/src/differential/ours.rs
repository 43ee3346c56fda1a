//! Our side: the core's `route`, `irqfd` and `poll` over the host's lane and injector, all on one thread.
//!
//! There are no threads that could make two runs of one seed differ. Whoever waits drives what it waits for:
//!
//! ```text
//!  deassign ─► relax ─► shutdown worker ─► unhook ─► relax ─► lane obeys, poller passes, deferred worker runs
//! ```
//! The poller and the deferred worker are online only within their own turn, as the threads are while they sleep.

use super::compare::View;
use super::machine::Machine;
use super::ops::{RESAMPLES, World};
use pollvisor::accel::kvm::KvmInject;
use pollvisor::error::{Error, Result};
use pollvisor::source::{Backend, Command, Lane, Port};
use pollvisor::sys::fd::EventFd;
use pollvisor_core::ids::{EventKey, Gsi, SourceId};
use pollvisor_core::inject::{Inject, LineSource};
use pollvisor_core::irqfd::{Assign, AssignError, Bindings, Host, Irqfds, Outcome, ShutdownWorker, Slot};
use pollvisor_core::poll::{Observer, Poller};
use pollvisor_core::route::{Chip, RawRoute, Target};
use pollvisor_core::source::{Drained, Fired};
use pollvisor_core::sync::Reader;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A VM's irqfds.
pub type Table = Irqfds<Box<[Slot]>>;

const SLOTS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);

/// The eventfds of our side by what they are, all worlds'.
pub type Known = RefCell<HashMap<EventKey, Arc<EventFd>>>;

/// A table for `world`.
#[must_use]
pub fn table(world: World) -> Box<Table> {
    Box::new(Irqfds::new((0..SLOTS).map(|_| Slot::new()).collect(), world.irqchip(), true))
}

/// One VM of our side with everything that serves it.
pub struct Ours<'a> {
    world: World,
    machine: RefCell<Machine>,
    inject: KvmInject,
    irqfds: &'a Table,
    bindings: &'a Bindings,
    known: &'a Known,
    port: Arc<Port>,
    lane: RefCell<Lane>,
    poller: RefCell<Poller<'a, Box<[Slot]>>>,
    deferred: RefCell<Reader<'a>>,
    shutdown: RefCell<ShutdownWorker<'a, Box<[Slot]>>>,
    /// Signals that the poller saw.
    seen: Cell<u64>,
    /// Signals made for what was bound.
    made: Cell<u64>,
}

impl<'a> Ours<'a> {
    /// Without routes, and nothing bound.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(
        world: World,
        irqfds: &'a Table,
        bindings: &'a Bindings,
        known: &'a Known,
        backend: Backend,
    ) -> Result<Self> {
        let machine = Machine::new(world.irqchip())?;
        let inject = machine.vm().injector()?;
        let lane = Lane::new(backend, SLOTS)?;
        let taken = || Error::new("a table serves one side");
        let mut poller = Poller::new(irqfds).ok_or_else(taken)?;
        poller.pause();
        Ok(Self {
            world,
            machine: RefCell::new(machine),
            inject,
            irqfds,
            bindings,
            known,
            port: lane.port().clone(),
            lane: RefCell::new(lane),
            poller: RefCell::new(poller),
            deferred: RefCell::new(irqfds.grace().register().ok_or_else(taken)?),
            shutdown: RefCell::new(irqfds.shutdown_worker().ok_or_else(taken)?),
            seen: Cell::new(0),
            made: Cell::new(0),
        })
    }

    /// The VM.
    #[must_use]
    pub fn machine(&self) -> &RefCell<Machine> {
        &self.machine
    }

    /// What there is to see.
    ///
    /// # Errors
    /// The kernel's.
    pub fn view(&self, resamples: &[EventFd; RESAMPLES]) -> Result<View> {
        View::of(&self.machine.borrow(), self.world, resamples, None)
    }

    /// `KVM_SET_GSI_ROUTING`; an error number or 0.
    #[must_use]
    pub fn set_routes(&self, flags: u32, routes: &[RawRoute]) -> i32 {
        self.irqfds.set_routes(self, flags, routes).map_or_else(|e| e.errno() as i32, |()| 0)
    }

    /// Binds an eventfd with `pending` signals in it.
    ///
    /// # Errors
    /// Those of the core.
    pub fn assign(&self, request: Assign, pending: u64) -> std::result::Result<SourceId, AssignError> {
        let id = self.irqfds.assign(self, &self.inject, request)?;
        self.expect(pending);
        Ok(id)
    }

    /// The core's checks of the flags.
    ///
    /// # Errors
    /// Those of the core.
    pub fn check_flags(&self, flags: u32) -> std::result::Result<(), AssignError> {
        self.irqfds.check_flags(flags)
    }

    /// Unbinds every match; how many.
    #[must_use]
    pub fn deassign(&self, key: EventKey, gsi: Gsi) -> usize {
        self.irqfds.deassign(self, key, gsi)
    }

    /// The source's producer is gone.
    #[must_use]
    pub fn hang_up(&self, id: SourceId) -> bool {
        self.irqfds.hang_up(self, id)
    }

    /// Lowers the resampling source of every pin that `gsi` drives.
    pub fn lower(&self, gsi: Gsi) {
        for target in self.irqfds.lookup(self, |routes| routes.resolve(gsi)) {
            if let Target::Pin { chip, pin } = target {
                let _lowered = self.inject.pin(chip, pin, false, LineSource::Resample);
            }
        }
    }

    /// The guest is about to end a level interrupt: whoever owns the pins is told first, as the kernel's chip does it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end(&self, vector: u8) -> Result<()> {
        let entries = super::compare::entries(&self.machine.borrow().chip(super::compare::IOAPIC)?);
        for (pin, entry) in (0..).zip(entries) {
            if entry & 0xff == u64::from(vector) {
                let _resampled = self.irqfds.ack_pin(self, &self.inject, Chip::Ioapic, pin);
            }
        }
        let mut machine = self.machine.borrow_mut();
        machine.serve(vector)?;
        machine.end().map(drop)
    }

    /// So many signals were made for what is bound here.
    pub fn expect(&self, signals: u64) {
        self.made.set(self.made.get() + signals);
    }

    /// Goes on until nothing is left to do.
    ///
    /// # Errors
    /// When a signal is not seen.
    pub fn settle(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            self.relax();
            let events = self.turn();
            if events == 0 && self.seen.get() == self.made.get() && self.irqfds.nothing_deferred() {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                let (seen, made) = (self.seen.get(), self.made.get());
                return Err(Error::new(format!("of {made} signals {seen} were seen")));
            }
        }
    }

    /// One turn of the poller and one of the deferred worker; the poller's events.
    fn turn(&self) -> usize {
        let (Ok(mut poller), Ok(mut lane), Ok(mut reader)) =
            (self.poller.try_borrow_mut(), self.lane.try_borrow_mut(), self.deferred.try_borrow_mut())
        else {
            return 0;
        };
        poller.resume();
        lane.obey();
        let events = poller.pass(&mut *lane, &self.inject, &mut Count(&self.seen));
        poller.pause();
        reader.online();
        self.irqfds.run_deferred(&reader, &self.inject, |_, _: Outcome| {});
        reader.offline();
        events
    }
}

/// Counts what the poller takes.
struct Count<'a>(&'a Cell<u64>);

impl Observer for Count<'_> {
    fn now(&mut self) -> u64 {
        0
    }
    fn delivered(&mut self, _: &Fired, _: u64, _: u64, _: Drained, outcome: Outcome) {
        // Of signals that came together some may have been deferred, and are not in this outcome.
        self.0.set(self.0.get() + outcome.signals());
    }
    fn deferred(&mut self, _: &Fired, signals: u64, _: bool) {
        self.0.set(self.0.get() + signals);
    }
    fn hung_up(&mut self, _: &Fired) {}
}

impl Host for Ours<'_> {
    fn bindings(&self) -> &Bindings {
        self.bindings
    }

    fn hook(&self, id: SourceId, key: EventKey) -> std::result::Result<(), AssignError> {
        let event = self.known.borrow().get(&key).cloned().ok_or(AssignError::Fault)?;
        self.port.send(Command::Hook { id, event }, || self.relax());
        Ok(())
    }

    /// The lane looks at an eventfd when it hooks it.
    fn take_pending(&self, _: SourceId, _: EventKey) -> u64 {
        0
    }

    fn unhook(&self, id: SourceId) {
        self.port.send(Command::Unhook { id }, || self.relax());
        self.port.wait_unhooked(id, || self.relax());
    }

    fn release(&self, _: SourceId, _: EventKey) {}

    fn signal(&self, key: EventKey) {
        if let Some(event) = self.known.borrow().get(&key) {
            event.signal(1);
        }
    }

    fn wake_deferred(&self) {}

    fn wake_shutdown(&self) {}

    fn relax(&self) {
        self.turn();
        if let Ok(mut worker) = self.shutdown.try_borrow_mut() {
            worker.run(self, &self.inject);
        }
    }
}
