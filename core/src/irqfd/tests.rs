//! One thread, a scripted host: every result, every refusal, every counter.

extern crate std;

mod lifecycle;
mod random;
mod resample;

use super::*;
use crate::inject::{Accepted, InjectError, LineSource};
use crate::poll::{Observer, Poller};
use crate::route::RawRoute;
use crate::source::{Drained, Fired, Source};
use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

#[derive(Debug, Default)]
struct Fd {
    counter: u64,
    hung_up: bool,
    armed: bool,
    watched: Option<SourceId>,
}

/// A VM, its eventfds, and all that happened. Level-checked sources; the workers run as soon as they are woken.
struct Vm {
    irqfds: Box<Irqfds<Vec<Slot>>>,
    bindings: Rc<Bindings>,
    fds: RefCell<BTreeMap<u64, Fd>>,
    /// Interrupts by vector.
    msis: RefCell<BTreeMap<u8, u64>>,
    /// Every pin write.
    pins: RefCell<Vec<(Chip, u32, bool, LineSource)>>,
    /// Every resample signal.
    resampled: RefCell<Vec<u64>>,
    ledger: Cell<Outcome>,
    released: RefCell<Vec<u64>>,
    /// Whether no LAPIC accepts anything.
    blocked: Cell<bool>,
    /// Whether hooking fails.
    no_room: Cell<bool>,
    wakes: Cell<(u64, u64)>,
    idle: Cell<u32>,
}

impl Vm {
    fn new(slots: usize, irqchip: Irqchip) -> Self {
        Self::beside(&Rc::new(Bindings::new()), slots, irqchip)
    }

    /// A VM of the same process as another one.
    fn beside(bindings: &Rc<Bindings>, slots: usize, irqchip: Irqchip) -> Self {
        let slots: Vec<_> = (0..slots).map(|_| Slot::new()).collect();
        Self {
            irqfds: Box::new(Irqfds::new(slots, irqchip, true)),
            bindings: Rc::clone(bindings),
            fds: RefCell::default(),
            msis: RefCell::default(),
            pins: RefCell::default(),
            resampled: RefCell::default(),
            ledger: Cell::default(),
            released: RefCell::default(),
            blocked: Cell::new(false),
            no_room: Cell::new(false),
            wakes: Cell::default(),
            idle: Cell::default(),
        }
    }

    fn assign(&self, key: u64, gsi: u32) -> Result<SourceId, AssignError> {
        self.irqfds.assign(
            self,
            self,
            Assign { key: EventKey(key), gsi: Gsi(gsi), resample: None, slot: None },
        )
    }

    fn assign_at(&self, key: u64, slot: u32) -> Result<SourceId, AssignError> {
        let request = Assign { key: EventKey(key), gsi: Gsi(5), resample: None, slot: Some(slot) };
        self.irqfds.assign(self, self, request)
    }

    fn assign_level(&self, key: u64, gsi: u32) -> Result<SourceId, AssignError> {
        let resample = Some(EventKey(key + 1000));
        self.irqfds.assign(self, self, Assign { key: EventKey(key), gsi: Gsi(gsi), resample, slot: None })
    }

    fn deassign(&self, key: u64, gsi: u32) -> usize {
        self.irqfds.deassign(self, EventKey(key), Gsi(gsi))
    }

    fn routes(&self, routes: &[RawRoute]) {
        self.irqfds.set_routes(self, 0, routes).unwrap();
    }

    fn signal(&self, key: u64, times: u64) {
        self.fds.borrow_mut().entry(key).or_default().counter += times;
    }

    fn hang_up(&self, key: u64) {
        self.fds.borrow_mut().entry(key).or_default().hung_up = true;
    }

    fn counter(&self, key: u64) -> u64 {
        self.fds.borrow().get(&key).map_or(0, |fd| fd.counter)
    }

    /// Passes until there is nothing to see.
    fn poll(&self) {
        let mut poller = Poller::new(&self.irqfds).unwrap();
        while poller.pass(&mut &*self, self, &mut &*self) > 0 {}
    }

    fn work(&self) -> usize {
        let mut reader = self.irqfds.grace().register().unwrap();
        reader.online();
        self.irqfds.run_deferred(&reader, self, |_, outcome| self.account(outcome))
    }

    fn shut_down(&self) -> usize {
        self.irqfds.shutdown_worker().map_or(0, |mut worker| worker.run(self, self))
    }

    fn account(&self, outcome: Outcome) {
        let mut ledger = self.ledger.get();
        ledger += outcome;
        self.ledger.set(ledger);
    }

    fn vector(&self, vector: u8) -> u64 {
        self.msis.borrow().get(&vector).copied().unwrap_or(0)
    }
}

impl Source for &Vm {
    fn next(&mut self) -> Option<Fired> {
        self.fds.borrow_mut().iter_mut().find_map(|(key, fd)| {
            let id = fd.watched.filter(|_| fd.armed && (fd.counter > 0 || fd.hung_up))?;
            fd.armed = false;
            Some(Fired { id, token: *key, hang_up: fd.hung_up })
        })
    }

    fn drain(&mut self, fired: &Fired) -> Drained {
        let signals = core::mem::take(&mut self.fds.borrow_mut().get_mut(&fired.token).unwrap().counter);
        Drained { signals, stamp: 0 }
    }

    fn rearm(&mut self, fired: &Fired) {
        self.fds.borrow_mut().get_mut(&fired.token).unwrap().armed = true;
    }

    fn flush(&mut self) {}
}

impl Inject for Vm {
    fn msi(&self, msi: &Msi) -> Result<Accepted, InjectError> {
        if self.blocked.get() {
            return Err(InjectError::Blocked);
        }
        *self.msis.borrow_mut().entry(msi.vector()).or_default() += 1;
        Ok(Accepted::default())
    }

    fn pin(&self, chip: Chip, pin: u32, level: bool, source: LineSource) -> Result<(), InjectError> {
        self.pins.borrow_mut().push((chip, pin, level, source));
        Ok(())
    }
}

impl Observer for &Vm {
    fn now(&mut self) -> u64 {
        0
    }

    fn delivered(&mut self, _: &Fired, _: u64, _: u64, drained: Drained, outcome: Outcome) {
        assert!(outcome.signals() <= drained.signals);
        self.account(outcome);
    }

    fn deferred(&mut self, _: &Fired, _: u64, _: bool) {}

    fn hung_up(&mut self, _: &Fired) {}
}

impl Host for Vm {
    fn bindings(&self) -> &Bindings {
        &self.bindings
    }

    fn hook(&self, id: SourceId, key: EventKey) -> Result<(), AssignError> {
        if self.no_room.get() {
            return Err(AssignError::NoMemory);
        }
        let mut fds = self.fds.borrow_mut();
        let fd = fds.entry(key.0).or_default();
        (fd.watched, fd.armed) = (Some(id), true);
        Ok(())
    }

    fn take_pending(&self, _: SourceId, _: EventKey) -> u64 {
        0
    }

    fn unhook(&self, id: SourceId) {
        for fd in self.fds.borrow_mut().values_mut().filter(|fd| fd.watched == Some(id)) {
            (fd.watched, fd.armed) = (None, false);
        }
    }

    fn release(&self, _: SourceId, key: EventKey) {
        self.released.borrow_mut().push(key.0);
    }

    fn signal(&self, key: EventKey) {
        self.resampled.borrow_mut().push(key.0);
    }

    fn wake_deferred(&self) {
        let (deferred, shutdown) = self.wakes.get();
        self.wakes.set((deferred + 1, shutdown));
        self.work();
    }

    fn wake_shutdown(&self) {
        let (deferred, shutdown) = self.wakes.get();
        self.wakes.set((deferred, shutdown + 1));
    }

    fn relax(&self) {
        self.idle.set(if self.shut_down() > 0 { 0 } else { self.idle.get() + 1 });
        assert!(self.idle.get() < 100, "one thread waits, and nothing will happen");
    }
}

fn msi(gsi: u32, vector: u8) -> RawRoute {
    RawRoute::msi(Gsi(gsi), Msi::fixed(0, vector))
}

fn pin(gsi: u32, pin: u32) -> RawRoute {
    RawRoute::pin(Gsi(gsi), Chip::Ioapic, pin)
}

#[test]
fn every_state_and_event() {
    use Event::{Abandon, Allocate, Deactivate, Drain, Free as Give, List, Unhook};
    use State::{Allocated, Deactivated, Drained, Free, Listed, Unhooked};
    let legal = [
        (Free, Allocate, Allocated),
        (Allocated, Abandon, Free),
        (Allocated, List, Listed),
        (Listed, Deactivate, Deactivated),
        (Deactivated, Unhook, Unhooked),
        (Unhooked, Drain, Drained),
        (Drained, Give, Free),
    ];
    for state in State::ALL {
        assert_eq!(State::from_bits(state as u64), state);
        for event in Event::ALL {
            let expected = legal.iter().find(|(s, e, _)| (*s, *e) == (state, event)).map(|(.., next)| *next);
            assert_eq!(state.next(event), expected.ok_or(Illegal { state, event }));
        }
    }
}

#[test]
fn an_interrupt_without_a_signal_is_spurious_where_a_lapic_took_it() {
    let taken = Some(Accepted { coalesced: true });
    assert_eq!(Outcome::of(0, taken), Outcome { spurious: 1, coalesced: 1, ..Outcome::default() });
    assert_eq!(Outcome::of(0, None), Outcome::default());
    assert_eq!(
        Outcome::of(3, taken),
        Outcome { delivered: 1, merged: 2, coalesced: 1, ..Outcome::default() }
    );
}
