//! irqfds: an event source bound to a GSI, and the one race-free way it goes away.
//!
//! ```text
//!  poller                       control threads                       workers
//!  event ── active? ── MSI ──►  assign   deassign   set_routes        deferred: resolves, injects (may be slow)
//!     └── else defer ─────────────────────────────────────────────►   shutdown: unhook, flush, free
//! ```
//! * [`Irqfds::event`] is all a poller calls: two loads decide, three more read the route. No lock, no wait.
//! * Everything that changes the set of active irqfds, or a route copy, does so under one lock, `list`.
//! * Whoever takes an irqfd off the list owns its shutdown; the shutdown worker carries it out alone.
//!
//! Two CPUs, the two races that matter:
//! ```text
//!  assign                    event                         deassign            poller
//!  hook source               signal → Allocated → defer    Listed→Deactivated  loads Listed, reads the route
//!  take what was pending                                   queue, wait         injects
//!  lock: copy route, List    signal → Listed → inject      unhook, grace ◄──── tick: the pass is over
//! ```
//! *assign/event*: a signal before the hook is taken by `assign` and deferred, one between hook and list is deferred,
//! one after it is injected; none is lost. What `assign` took may still be reported: a signal after the injection
//! for that empty event would be drained as if it were the one injected for, so the first event of such an irqfd is
//! deferred too (*fresh*). To list it is the last thing `assign` does with it, so its shutdown, which may begin at that
//! moment, meets no assigner (races 6 and 10). *deassign/event*: the grace period outlasts every pass that saw it
//! active.
//!
//! Source: `virt/kvm/eventfd.c`. Differences: D1 (the copy is never blanked), D2 (the grace period covers the slow
//! path too), D3 (a reader never waits). And, found by comparing with it step by step (`pollvisor-tests`, `differential`):
//! * Signals that were pending at `assign` are taken when they are delivered. The kernel delivers them and leaves the
//!   count, so that it would deliver them again to the next irqfd.
//! * A refused `assign` touches no line. The kernel's joins the resampler before it finds the eventfd busy, and leaving
//!   it as the last one lowers the GSI's line, whoever raised it.
//! * A closed descriptor is no hang-up by itself, for the poller keeps the eventfd: its owner calls [`Irqfds::hang_up`].

mod assign;
mod bindings;
mod deferred;
mod resample;
mod shutdown;
mod slot;
mod state;
#[cfg(all(test, not(loom)))]
mod tests;

pub use assign::{Assign, AssignError, FLAG_DEASSIGN, FLAG_RESAMPLE};
pub use bindings::{Bindings, MAX_BINDINGS};
pub use deferred::Outcome;
pub use resample::MAX_RESAMPLERS;
pub use shutdown::ShutdownWorker;
pub use slot::Slot;
pub use state::{Event, Illegal, State};

use crate::ids::{EventKey, Gsi, SourceId};
use crate::inject::Inject;
use crate::prim::{AtomicBool, AtomicU64, Mutation, Ordering, planted};
use crate::route::{Chip, Irqchip, Msi, RawRoute, RouteError, RouteTable, pack, unpack};
use crate::sync::{Gate, Grace, PENDING_BITS, PendingSet, Rcu, Reader, SpinLock};
use slot::NONE;

/// What the machinery asks of the side that owns descriptors, threads and time. Called by control threads and the
/// shutdown worker only, never with a lock held.
pub trait Host {
    /// The register of bound eventfds, one for all VMs.
    fn bindings(&self) -> &Bindings;
    /// Lets a poller watch the source. Signals from here on are reported; those before it may be.
    ///
    /// # Errors
    /// `NoMemory` when no poller has room.
    fn hook(&self, id: SourceId, key: EventKey) -> Result<(), AssignError>;
    /// Takes the signals made before [`hook`](Self::hook) that the poller will *not* report: 0 for a source that is
    /// looked at when it is hooked. Where the two cannot be told apart it may take later ones with them.
    fn take_pending(&self, id: SourceId, key: EventKey) -> u64;
    /// Stops the poller from watching the source; on return it starts no new pass on it. Undelivered signals stay
    /// in the source.
    fn unhook(&self, id: SourceId);
    /// Nobody uses the source any more: its descriptor may be closed.
    fn release(&self, id: SourceId, key: EventKey);
    /// Signals a resample eventfd.
    fn signal(&self, key: EventKey);
    /// There is work for the deferred worker.
    fn wake_deferred(&self);
    /// There is work for the shutdown worker.
    fn wake_shutdown(&self);
    /// Called while waiting for another thread.
    fn relax(&self);
}

/// What a poller does with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Inject this now.
    Msi(Msi),
    /// Hand it to the deferred worker: inactive, fresh, not an MSI, or its route is being replaced at this moment.
    Defer,
    /// The handle's irqfd is gone.
    Stale,
}

/// Under the lock: the free slots, and those whose shutdown is owed.
#[derive(Debug)]
struct List {
    free: u32,
    queue_head: u32,
    queue_tail: u32,
    /// Shutdowns ever queued.
    queued: u64,
    /// No slot at or above this was ever used.
    high: u32,
}

/// All irqfds of a VM, its routes, and the work they owe. `S` is the storage, at most [`PENDING_BITS`] slots.
#[derive(Debug)]
pub struct Irqfds<S> {
    // --- the pollers' ---
    slots: S,
    deferred: PendingSet,
    hangups: PendingSet,
    // --- everybody's ---
    routes: Rcu<RouteTable>,
    irqchip: Irqchip,
    x2apic: bool,
    // --- control ---
    list: SpinLock<List>,
    resamplers: resample::Resamplers,
    /// Inside: threads in `assign`. Closed by `release`.
    life: Gate,
    /// Shutdowns ever carried out, in order.
    completed: AtomicU64,
    /// Whether somebody is the shutdown worker.
    has_worker: AtomicBool,
}

impl<S: AsRef<[Slot]>> Irqfds<S> {
    /// A VM's interrupts: no routes, no irqfds. `x2apic` is KVM's x2APIC address format.
    ///
    /// # Panics
    /// With more than [`PENDING_BITS`] slots.
    pub fn new(slots: S, irqchip: Irqchip, x2apic: bool) -> Self {
        let count = slots.as_ref().len();
        assert!(count <= PENDING_BITS, "{count} irqfds; at most {PENDING_BITS}");
        let mut next = NONE;
        for (index, slot) in slots.as_ref().iter().enumerate().rev() {
            slot.next.store(next, Ordering::Relaxed);
            next = u32::try_from(index).unwrap_or(NONE);
        }
        Self {
            slots,
            deferred: PendingSet::new(),
            hangups: PendingSet::new(),
            routes: Rcu::new(RouteTable::new(), RouteTable::new()),
            irqchip,
            x2apic,
            list: SpinLock::new(List { free: next, queue_head: NONE, queue_tail: NONE, queued: 0, high: 0 }),
            resamplers: resample::Resamplers::default(),
            life: Gate::new(),
            completed: AtomicU64::new(0),
            has_worker: AtomicBool::new(false),
        }
    }

    fn slots(&self) -> &[Slot] {
        self.slots.as_ref()
    }

    /// The domain that this VM's pollers and its deferred worker register with.
    pub fn grace(&self) -> &Grace {
        self.routes.grace()
    }

    /// What chips there are to route to.
    pub fn irqchip(&self) -> Irqchip {
        self.irqchip
    }

    /// How many irqfds fit.
    pub fn capacity(&self) -> usize {
        self.slots().len()
    }

    /// The state of the handle's irqfd; `Free` for a stale handle.
    pub fn state(&self, id: SourceId) -> State {
        match self.slots().get(id.slot()) {
            Some(slot) if slot.generation() == id.generation => slot.state(),
            _ => State::Free,
        }
    }

    /// An event of `id`'s source: what to do with it. The poller's only call; never waits.
    #[inline]
    pub fn event(&self, id: SourceId) -> Delivery {
        let Some(slot) = self.slots().get(id.slot()) else { return Delivery::Stale };
        if slot.word() == Slot::active_word(id.generation) {
            // Busy: the route is being replaced right now, and replaced again; the worker resolves it.
            if let Ok(words) = slot.route.read()
                && let Some(msi) = unpack(words)
            {
                return Delivery::Msi(msi);
            }
            return Delivery::Defer;
        }
        if slot.generation() == id.generation { Delivery::Defer } else { Delivery::Stale }
    }

    /// Hands `signals` of `id` to the deferred worker; true when it wants waking. Callers are inside a pass, or
    /// inside `assign`, so the slot cannot be freed meanwhile.
    pub fn defer(&self, id: SourceId, signals: u64) -> bool {
        // Release: pairs with the swap in `run_deferred`. Not left to the Release in `add`: a bit that an earlier
        // owner of the slot left behind may bring the worker here before that one.
        let order = if planted(Mutation::DeferRelaxed) { Ordering::Relaxed } else { Ordering::Release };
        self.slots()[id.slot()].owed.fetch_add(signals, order);
        self.deferred.add(id.slot())
    }

    /// The source hung up, says the poller that watches it, inside a pass; the shutdown worker wants waking. A stale
    /// handle is ignored: the slot's next owner has not hung up. No lock is taken.
    pub fn hang_up_from_poller(&self, id: SourceId) -> bool {
        let current = self.slots().get(id.slot()).is_some_and(|slot| slot.generation() == id.generation);
        if current {
            self.hangups.add(id.slot());
        }
        current
    }

    /// An event of `id` has been drained, and its source not been armed again.
    #[inline]
    pub(crate) fn settled(&self, id: SourceId) {
        if let Some(slot) = self.slots().get(id.slot()) {
            slot.settled();
        }
    }

    /// The source's producer is gone: the irqfd is deactivated, if it still is this handle's and active. Does not
    /// wait for the shutdown.
    pub fn hang_up<H: Host>(&self, host: &H, id: SourceId) -> bool {
        let Some(slot) = self.slots().get(id.slot()) else { return false };
        let elected = {
            let mut list = self.list.lock();
            let current = slot.is_active(id.generation) || planted(Mutation::ShutdownNoElection);
            current && self.deactivate(&mut list, id.index)
        };
        if elected {
            host.wake_shutdown();
        }
        elected
    }

    /// Takes every irqfd of (`key`, `gsi`) off the list and waits until every queued shutdown is done. How many
    /// matched: none is not a mistake.
    pub fn deassign<H: Host>(&self, host: &H, key: EventKey, gsi: Gsi) -> usize {
        self.deassign_where(host, |slot, _| slot.key() == key && slot.gsi() == gsi)
    }

    /// [`deassign`](Self::deassign) of one irqfd by its handle. False when it was not active any more; its shutdown
    /// is over all the same when this returns.
    pub fn deassign_id<H: Host>(&self, host: &H, id: SourceId) -> bool {
        let ticket = {
            let mut list = self.list.lock();
            let slot = self.slots().get(id.slot());
            let elected =
                slot.is_some_and(|s| s.is_active(id.generation)) && self.deactivate(&mut list, id.index);
            (elected, list.queued)
        };
        self.flush_shutdowns(host, ticket.1);
        ticket.0
    }

    /// The VM goes: no assign succeeds any more, every irqfd is shut down, and all that is over on return.
    pub fn release<H: Host>(&self, host: &H) -> usize {
        self.life.close();
        self.life.drain(|| host.relax());
        self.deassign_where(host, |_, _| true)
    }

    fn deassign_where<H: Host>(&self, host: &H, matches: impl Fn(&Slot, u32) -> bool) -> usize {
        let mut count = 0;
        let ticket = {
            let mut list = self.list.lock();
            for index in 0..list.high {
                let slot = &self.slots()[index as usize];
                if slot.state() == State::Listed && matches(slot, index) && self.deactivate(&mut list, index)
                {
                    count += 1;
                }
            }
            list.queued
        };
        if count > 0 || !planted(Mutation::DeassignOwnOnly) {
            self.flush_shutdowns(host, ticket);
        }
        count
    }

    /// Waits for the whole queue as it was, not only for the caller's own (race 8).
    fn flush_shutdowns<H: Host>(&self, host: &H, ticket: u64) {
        // Acquire: pairs with the Release in `ShutdownWorker::run`.
        if self.completed.load(Ordering::Acquire) >= ticket {
            return;
        }
        host.wake_shutdown();
        while self.completed.load(Ordering::Acquire) < ticket {
            host.relax();
        }
    }

    /// Off the list, onto the queue; true for the one caller that did it. The lock is held.
    fn deactivate(&self, list: &mut List, index: u32) -> bool {
        let slot = &self.slots()[index as usize];
        if slot.step(Event::Deactivate).is_err() && !planted(Mutation::ShutdownNoElection) {
            return false;
        }
        slot.next.store(NONE, Ordering::Relaxed);
        if list.queue_head == NONE {
            list.queue_head = index;
        } else {
            self.slots()[list.queue_tail as usize].next.store(index, Ordering::Relaxed);
        }
        list.queue_tail = index;
        list.queued += 1;
        true
    }

    /// Replaces all routes. On return nothing is delivered by an old one (D2); on an error nothing has changed.
    ///
    /// # Errors
    /// Every mistake of `KVM_SET_GSI_ROUTING`.
    pub fn set_routes<H: Host>(&self, host: &H, flags: u32, routes: &[RawRoute]) -> Result<(), RouteError> {
        self.routes.replace(
            |_, next| next.build(self.irqchip, self.x2apic, flags, routes),
            |next, switch| {
                let list = self.list.lock();
                switch();
                let high = list.high;
                if planted(Mutation::RouteRefreshUnlocked) {
                    drop(list);
                    self.refresh(next, high);
                } else {
                    self.refresh(next, high);
                }
            },
            || host.relax(),
        )
    }

    /// Brings every active irqfd's copy up to date. Those being assigned copy under the same lock when they are
    /// listed (race 14); those deactivated are deferred anyway (race 13).
    fn refresh(&self, table: &RouteTable, high: u32) {
        for slot in &self.slots()[..high as usize] {
            if slot.state() == State::Listed {
                Self::copy_route(slot, table);
            }
        }
    }

    /// The type is part of the comparison (race 15).
    fn copy_route(slot: &Slot, table: &RouteTable) {
        let words = pack(table.cacheable(slot.gsi()));
        if slot.route.read() != Ok(words) {
            slot.route.write(words);
        }
    }

    /// The guest acknowledged (ended) the interrupt of `pin`: lowers its line and signals its resamplers. False when
    /// nobody resamples it.
    pub fn ack_pin<H: Host>(&self, host: &H, inject: &impl Inject, chip: Chip, pin: u32) -> bool {
        let gsi = self.routes.read(&self.brief(host), |table| table.gsi_of(chip, pin));
        match gsi {
            Some(gsi) => self.ack(host, inject, gsi),
            None => false,
        }
    }

    /// The guest acknowledged `gsi`.
    pub fn ack<H: Host>(&self, host: &H, inject: &impl Inject, gsi: Gsi) -> bool {
        self.resamplers.ack(self.slots(), gsi, host, || self.lower(host, inject, gsi))
    }

    /// Looks something up in the current routes, from a control thread. `set_routes` waits while `f` runs.
    pub fn lookup<H: Host, R>(&self, host: &H, f: impl FnOnce(&RouteTable) -> R) -> R {
        self.routes.read(&self.brief(host), f)
    }

    /// A place in the grace domain for one lookup. Waits for others that look up; not to be taken with a lock held.
    fn brief<H: Host>(&self, host: &H) -> Reader<'_> {
        self.grace().read_briefly(|| host.relax())
    }

    /// Lowers the line of the resamplers of `gsi`, inside the lookup: a pin of an old route may be another GSI's as
    /// soon as `set_routes` returns (D2).
    fn lower<H: Host>(&self, host: &H, inject: &impl Inject, gsi: Gsi) {
        if planted(Mutation::LowerAfterLookup) {
            let targets = self.lookup(host, |table| table.resolve(gsi));
            resample::set_level(&targets, false, inject);
            return;
        }
        self.lookup(host, |table| resample::set_level(&table.resolve(gsi), false, inject));
    }
}
