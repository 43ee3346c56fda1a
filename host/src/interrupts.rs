//! A VM's interrupts: the core's irqfds with descriptors, pollers and workers around them. Defines no state of its own
//! but who has which descriptor.
//!
//! ```text
//!  attach(source, gsi, port) ──► core: claim, hook ──► port: Hook ──► poller: armed
//!  detach(id)                ──► core: off the list ──► shutdown worker: unhook, flush, release
//! ```

use crate::accel::Injector;
use crate::clock::Clock;
use crate::complaints::Wait;
use crate::error::{Error, Result};
use crate::record::{Figures, Recorder};
use crate::source::{Command, MAX_REGIONS, Port};
use crate::sys::doorbell::{Consumer, Region};
use crate::sys::fd::EventFd;
use crate::workers::{Watch, Workers};
use pollvisor_core::ids::{EventKey, Gsi, SourceId};
use pollvisor_core::irqfd::{Assign, AssignError, Bindings, Host, Irqfds, Outcome, Slot};
use pollvisor_core::route::{Chip, Irqchip, RawRoute};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The eventfds bound by this process, over all its VMs (race 11). Other processes' polled bindings cannot be seen; their
/// in-kernel ones, and ours, the kernel keeps apart.
static BINDINGS: LazyLock<Box<Bindings>> = LazyLock::new(|| Box::new(Bindings::new()));

/// Something that signals.
#[derive(Debug, Clone)]
pub enum Source {
    /// An eventfd.
    Event(Arc<EventFd>),
    /// A bell of a region that was added to the lane ([`Interrupts::add_region`]).
    Bell(BellRegion, usize),
}

/// A region that a lane watches.
#[derive(Debug, Clone)]
pub struct BellRegion {
    region: Arc<Region>,
    number: usize,
}

/// What to bind, and how.
#[derive(Debug)]
pub struct Attach<'a> {
    /// What signals.
    pub source: Source,
    /// Where it goes.
    pub gsi: Gsi,
    /// On this lane.
    pub port: &'a Arc<Port>,
    /// The eventfd to signal at the guest's ack: makes it a level.
    pub resample: Option<Arc<EventFd>>,
    /// The slot to count it in, if that is free.
    pub slot: Option<u32>,
}

#[derive(Debug)]
struct Request {
    source: Source,
    port: Arc<Port>,
    /// What is signalled at the guest's ack.
    resample: Option<EventKey>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Interrupts {
    /// Apart, because it is large: moving it about would make the starting thread's stack as large.
    irqfds: Box<Irqfds<Box<[Slot]>>>,
    inject: Injector,
    clock: Clock,
    wake_deferred: Arc<EventFd>,
    wake_shutdown: Arc<EventFd>,
    watch: Watch,
    /// What is being bound, by its key: claimed, so there is one each.
    requests: Mutex<HashMap<EventKey, Request>>,
    /// What each slot has.
    attached: Box<[Mutex<Option<Request>>]>,
    /// Eventfds that resamplers signal, and how many irqfds each has.
    resample: Mutex<HashMap<EventKey, (Arc<EventFd>, usize)>>,
    /// Regions per lane, by the port's address.
    regions: Mutex<HashMap<usize, usize>>,
    /// What the deferred worker delivered, per slot.
    slow: Mutex<Vec<Outcome>>,
    shutdown_over: AtomicBool,
}

/// The VM's interrupts, running: with its workers. Dropping it ends them.
#[derive(Debug)]
pub struct Running {
    interrupts: Arc<Interrupts>,
    _workers: Workers,
}

impl std::ops::Deref for Running {
    type Target = Arc<Interrupts>;
    fn deref(&self) -> &Arc<Interrupts> {
        &self.interrupts
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The VM dies: nothing is bound any more when the workers end.
        self.interrupts.irqfds.release(&*self.interrupts);
    }
}

/// How long a poller may take over a command before that is said.
const PATIENCE: Duration = Duration::from_secs(2);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interrupts {
    /// Interrupts of a VM with these chips, for up to `slots` irqfds, and their workers.
    ///
    /// # Errors
    /// When descriptors or threads run out.
    pub fn start(irqchip: Irqchip, inject: Injector, clock: Clock, slots: usize) -> Result<Running> {
        let wake_shutdown = Arc::new(EventFd::new()?);
        let interrupts = Arc::new(Self {
            irqfds: Box::new(Irqfds::new((0..slots).map(|_| Slot::new()).collect(), irqchip, true)),
            inject,
            clock,
            wake_deferred: Arc::new(EventFd::new()?),
            watch: Watch::new(&wake_shutdown)?,
            wake_shutdown,
            requests: Mutex::default(),
            attached: (0..slots).map(|_| Mutex::new(None)).collect(),
            resample: Mutex::default(),
            regions: Mutex::default(),
            slow: Mutex::new(vec![Outcome::default(); slots]),
            shutdown_over: AtomicBool::new(false),
        });
        let workers = Workers::start(&interrupts)?;
        Ok(Running { interrupts, _workers: workers })
    }

    /// The core's state.
    #[must_use]
    pub fn irqfds(&self) -> &Irqfds<Box<[Slot]>> {
        &self.irqfds
    }

    /// The way into the guest.
    #[must_use]
    pub fn inject(&self) -> &Injector {
        &self.inject
    }

    /// A poller's observer.
    #[must_use]
    pub fn recorder(&self, figures: Figures) -> Recorder {
        let wakes = (self.wake_deferred.clone(), self.wake_shutdown.clone());
        Recorder::new(self.clock, self.inject.accelerator(), figures, wakes)
    }

    /// Replaces the GSI routes; nothing is delivered by an old one when this returns.
    ///
    /// # Errors
    /// EINVAL and what is wrong.
    pub fn set_routes(&self, routes: &[RawRoute]) -> Result<()> {
        self.irqfds.set_routes(self, 0, routes).map_err(|e| Error::new(format!("GSI routes: {e} (EINVAL)")))
    }

    /// The guest ended the interrupt of a pin: its line is lowered and its resamplers signalled. False: nobody resamples it.
    pub fn ack_pin(&self, chip: Chip, pin: u32) -> bool {
        self.irqfds.ack_pin(self, &self.inject, chip, pin)
    }

    /// Lets the lane behind `port` watch a region; its bells can be attached then.
    ///
    /// # Errors
    /// When the lane has [`MAX_REGIONS`].
    pub fn add_region(&self, port: &Arc<Port>, region: &Arc<Region>) -> Result<BellRegion> {
        let mut regions = lock(&self.regions);
        let count = regions.entry(Arc::as_ptr(port) as usize).or_insert(0);
        if *count == MAX_REGIONS {
            return Err(Error::new(format!("a poller watches at most {MAX_REGIONS} doorbell regions")));
        }
        let number = *count;
        *count += 1;
        let consumer = Box::new(Consumer::new(region.clone()));
        let listeners = vec![None; region.bells()].into_boxed_slice();
        port.send(Command::Region { number, consumer, listeners }, std::thread::yield_now);
        Ok(BellRegion { region: region.clone(), number })
    }

    /// Binds a source to a GSI, on the lane behind `port`. Signals made before arrive, too.
    ///
    /// # Errors
    /// Those of [`AssignError`].
    pub fn attach(&self, source: Source, gsi: Gsi, port: &Arc<Port>) -> Result<SourceId> {
        self.attach_with(Attach { source, gsi, port, resample: None, slot: None })
    }

    /// [`attach`](Self::attach) with all there is to say.
    ///
    /// # Errors
    /// Those of [`AssignError`].
    pub fn attach_with(&self, attach: Attach<'_>) -> Result<SourceId> {
        let Attach { source, gsi, port, resample, slot } = attach;
        let key = source.key()?;
        let resample = resample.map(|event| event.key().map(|key| (key, event))).transpose()?;
        let resample_key = resample.as_ref().map(|(key, _)| *key);
        if let Some((key, event)) = resample {
            lock(&self.resample).entry(key).or_insert((event, 0)).1 += 1;
        }
        let result = self.assign(key, source, gsi, port, (resample_key, slot));
        if result.is_err() {
            self.forget_resample(resample_key);
        }
        result.map_err(|error| refused(gsi, error))
    }

    fn assign(
        &self,
        key: EventKey,
        source: Source,
        gsi: Gsi,
        port: &Arc<Port>,
        (resample, slot): (Option<EventKey>, Option<u32>),
    ) -> std::result::Result<SourceId, AssignError> {
        let request = Assign { key, gsi, resample, slot };
        {
            let mut requests = lock(&self.requests);
            if requests.contains_key(&key) {
                return Err(AssignError::Busy);
            }
            requests.insert(key, Request { source, port: port.clone(), resample });
        }
        let result = self.irqfds.assign(self, &self.inject, request);
        lock(&self.requests).remove(&key);
        result
    }

    /// One irqfd less has this resample event.
    fn forget_resample(&self, key: Option<EventKey>) {
        let Some(key) = key else { return };
        let mut resample = lock(&self.resample);
        if let Some((_, users)) = resample.get_mut(&key) {
            *users -= 1;
            let gone = if *users == 0 { resample.remove(&key) } else { None };
            // Closing may take its time, and not under the lock.
            drop(resample);
            drop(gone);
        }
    }

    /// Unbinds one irqfd; nothing of it is delivered any more when this returns. False: it had gone by itself.
    pub fn detach(&self, id: SourceId) -> bool {
        self.irqfds.deassign_id(self, id)
    }

    /// Takes the end of a process, or of a connection (`fd` becomes readable), as the hang-up of its sources.
    ///
    /// # Errors
    /// The kernel's, when `fd` cannot be watched.
    pub fn hang_up_with(&self, fd: OwnedFd, sources: Vec<SourceId>) -> Result<()> {
        self.watch.add(fd, sources)
    }

    /// What the deferred worker delivered for a slot so far.
    #[must_use]
    pub fn slow_path(&self, slot: usize) -> Outcome {
        lock(&self.slow)[slot]
    }

    /// The clock that figures are made with.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    pub(crate) fn account(&self, id: SourceId, outcome: Outcome) {
        lock(&self.slow)[id.slot()] += outcome;
    }

    pub(crate) fn wake_deferred_fd(&self) -> &Arc<EventFd> {
        &self.wake_deferred
    }

    pub(crate) fn wake_shutdown_fd(&self) -> &Arc<EventFd> {
        &self.wake_shutdown
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    pub(crate) fn shutdown_is_over(&self) -> bool {
        self.shutdown_over.load(Ordering::Acquire)
    }

    pub(crate) fn end_shutdown(&self) {
        self.shutdown_over.store(true, Ordering::Release);
        self.wake_deferred.signal(1);
    }
}

fn refused(gsi: Gsi, error: AssignError) -> Error {
    Error::new(format!("binding an event source to {gsi}: {error} ({})", error.errno()))
}

impl Source {
    /// What it is, host-wide.
    fn key(&self) -> Result<EventKey> {
        match self {
            Self::Event(event) => event.key(),
            Self::Bell(region, bell) if *bell < region.region.bells() => {
                // Mappings are page-aligned; eventfd IDs are small numbers.
                Ok(EventKey(1 << 63 | (region.region.address() as u64 | *bell as u64)))
            }
            Self::Bell(region, bell) => Err(Error::new(format!(
                "there is no doorbell {bell}; this region has {}",
                region.region.bells()
            ))),
        }
    }
}

impl Host for Interrupts {
    fn bindings(&self) -> &Bindings {
        &BINDINGS
    }

    fn hook(&self, id: SourceId, key: EventKey) -> std::result::Result<(), AssignError> {
        let request = lock(&self.requests).remove(&key).ok_or(AssignError::Fault)?;
        let command = match &request.source {
            Source::Event(event) => Command::Hook { id, event: event.clone() },
            Source::Bell(region, bell) => Command::HookBell { id, region: region.number, bell: *bell },
        };
        let port = request.port.clone();
        *lock(&self.attached[id.slot()]) = Some(request);
        port.send(command, || self.relax());
        Ok(())
    }

    /// Both kinds of source are looked at when the poller hooks them, so nothing is missed before.
    fn take_pending(&self, _: SourceId, _: EventKey) -> u64 {
        0
    }

    fn unhook(&self, id: SourceId) {
        let port = lock(&self.attached[id.slot()]).as_ref().map(|request| request.port.clone());
        if let Some(port) = port {
            let wait = Wait::begin(PATIENCE);
            let relax = || {
                self.relax();
                wait.goes_on(|| format!("the poller of {id} to let go of it: does it get its CPU?"));
            };
            port.send(Command::Unhook { id }, relax);
            port.wait_unhooked(id, relax);
        }
    }

    fn release(&self, id: SourceId, _: EventKey) {
        // Taken out first: closing may take its time, and not under the lock.
        let request = lock(&self.attached[id.slot()]).take();
        self.forget_resample(request.as_ref().and_then(|request| request.resample));
        drop(request);
    }

    fn signal(&self, key: EventKey) {
        let event = lock(&self.resample).get(&key).map(|(event, _)| event.clone());
        if let Some(event) = event {
            event.signal(1);
        }
    }

    fn wake_deferred(&self) {
        self.wake_deferred.signal(1);
    }

    fn wake_shutdown(&self) {
        self.wake_shutdown.signal(1);
    }

    fn relax(&self) {
        std::thread::yield_now();
    }
}
