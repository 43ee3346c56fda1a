//! pollvisor's pollers: one VM, any number of them, eventfds or doorbells.

use super::accepting::{Accepting, Injected};
use super::trigger::{self, Trigger, poller_of};
use super::{Config, Path, Way, gsi, routes};
use crate::measure::{add, matching::Taken};
use kvm_bindings::KVM_IRQFD_FLAG_DEASSIGN;
use pollvisor::accel::Vm;
use pollvisor::clock::Clock;
use pollvisor::error::{Error, Result};
use pollvisor::flight::Flight;
use pollvisor::interrupts::{BellRegion, Interrupts, Running, Source};
use pollvisor::pin::Placement;
use pollvisor::poller::PollerThread;
use pollvisor::record::Figures;
use pollvisor::source::{Backend, Lane};
use pollvisor::sys::fd::EventFd;
use pollvisor_core::ids::SourceId;
use pollvisor_core::route::Irqchip;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// See the module's text. In the order in which it has to go.
pub struct Lanes {
    attached: Vec<SourceId>,
    pollers: Vec<PollerThread>,
    /// Empty figures to give for full ones, one per poller.
    #[allow(clippy::vec_box, reason = "these boxes go to the pollers")]
    spare: Vec<Box<Figures>>,
    /// The last events of each poller, where they are kept.
    flights: Vec<Flight>,
    interrupts: Running,
    accepting: Accepting,
    blocking: bool,
    /// What the pollers were told, as far as it was taken.
    injected: Injected,
    vectors: usize,
    spare_source: Spare,
}

/// A poller that has to share its CPU may take longer to answer than a second.
fn wait_on(poller: &PollerThread) -> Option<Box<Figures>> {
    const MOST: Duration = Duration::from_secs(4);
    let began = Instant::now();
    while began.elapsed() < MOST {
        if let Some(figures) = poller.exchange().take() {
            return Some(figures);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// A further vector, quiet, that control calls are made with.
struct Spare {
    event: Arc<EventFd>,
    at: At,
}

/// Where the spare vector is.
enum At {
    Nowhere,
    Poller(SourceId),
    Kernel,
}

impl Lanes {
    /// Sets them up, with room for `spare` (0 or 1) further vectors.
    ///
    /// # Errors
    /// What this machine lacks.
    pub fn start(config: &Config, spare: usize, clock: Clock) -> Result<(Self, Vec<Trigger>)> {
        let (vectors, pollers) = (config.vectors, config.cpus.len());
        let slots = vectors + spare;
        let backend = match config.path {
            Path::EpollWait0 => Backend::EpollSpin,
            Path::BlockingEpoll => Backend::EpollBlock,
            _ => Backend::Aio { per_context: config.per_context },
        };
        let accepting = Accepting::new(config.accelerator, slots)?;
        let interrupts = Interrupts::start(Irqchip::Split, accepting.vm.injector()?, clock, slots)?;
        let figures = || {
            let figures = Figures::new(&[], slots, false).keeping(config.samples, config.gaps);
            if config.flight { figures.with_flight() } else { figures }
        };
        let mut way = Self {
            attached: Vec::new(),
            pollers: Vec::new(),
            spare: (0..pollers).map(|_| Box::new(figures())).collect(),
            flights: (0..if config.flight { pollers } else { 0 }).map(|_| Flight::new()).collect(),
            interrupts,
            accepting,
            blocking: backend == Backend::EpollBlock,
            injected: Injected::default(),
            vectors,
            spare_source: Spare { event: Arc::new(EventFd::new()?), at: At::Nowhere },
        };
        way.replace_routes()?;
        if let Vm::Kvm(vm) = &way.accepting.vm {
            vm.fd().set_gsi_routing(0, &routes(slots))?;
        }
        for (number, cpu) in config.cpus.iter().enumerate() {
            let placement = Placement { cpu: Some(*cpu), fifo: None };
            let (lane, name) = (Lane::new(backend, slots)?, format!("poller {number}"));
            way.pollers.push(PollerThread::start(&way.interrupts, lane, figures(), placement, &name)?);
        }
        let triggers = if config.path == Path::PolledDoorbell {
            way.attach_bells(config, clock)?
        } else {
            way.attach_events(config, clock)?
        };
        Ok((way, triggers))
    }

    /// Vectors that are signalled.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.vectors
    }

    /// Replaces all routes by the same ones.
    ///
    /// # Errors
    /// Never with these.
    pub fn replace_routes(&self) -> Result<()> {
        self.interrupts.set_routes(&routes(self.accepting.vectors))
    }

    /// Binds the spare vector to the first poller.
    ///
    /// # Errors
    /// When it is bound.
    pub fn attach_spare(&mut self) -> Result<()> {
        let source = Source::Event(self.spare_source.event.clone());
        let id = self.interrupts.attach(source, gsi(self.vectors), self.pollers[0].port())?;
        self.spare_source.at = At::Poller(id);
        Ok(())
    }

    /// Unbinds it.
    ///
    /// # Errors
    /// When it went by itself.
    pub fn detach_spare(&mut self) -> Result<()> {
        let At::Poller(id) = std::mem::replace(&mut self.spare_source.at, At::Nowhere) else { return Ok(()) };
        if self.interrupts.detach(id) { Ok(()) } else { Err(Error::new("the spare vector went by itself")) }
    }

    /// Hands it over: the poller gives it up, and the kernel takes what is pending and all that comes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn spare_to_kernel(&mut self) -> Result<()> {
        self.detach_spare()?;
        self.bind_spare(0)?;
        self.spare_source.at = At::Kernel;
        Ok(())
    }

    /// And back.
    ///
    /// # Errors
    /// The kernel's.
    pub fn spare_to_poller(&mut self) -> Result<()> {
        self.bind_spare(KVM_IRQFD_FLAG_DEASSIGN)?;
        self.attach_spare()
    }

    /// Wherever it is, it is nowhere afterwards.
    ///
    /// # Errors
    /// The kernel's.
    pub fn put_spare_away(&mut self) -> Result<()> {
        if matches!(self.spare_source.at, At::Kernel) {
            self.bind_spare(KVM_IRQFD_FLAG_DEASSIGN)?;
            self.spare_source.at = At::Nowhere;
        }
        self.detach_spare()
    }

    fn bind_spare(&self, flags: u32) -> Result<()> {
        let event = self.spare_source.event.as_fd().as_raw_fd();
        self.accepting.vm.kvm()?.fd().irqfd(event, gsi(self.vectors), flags, None)
    }

    /// Slots are taken in order, so slot `v` is vector `v`.
    fn attach(&mut self, source: Source, vector: usize, poller: usize) -> Result<()> {
        let id = self.interrupts.attach(source, gsi(vector), self.pollers[poller].port())?;
        if id.slot() != vector {
            return Err(Error::new(format!("vector {vector} is in slot {}", id.slot()))
                .remedy("report this as a bug"));
        }
        self.attached.push(id);
        Ok(())
    }

    fn attach_events(&mut self, config: &Config, clock: Clock) -> Result<Vec<Trigger>> {
        let (events, triggers) = config.events(clock)?;
        for (vector, event) in events.iter().enumerate() {
            let poller = poller_of(vector, config.producers, self.pollers.len());
            self.attach(Source::Event(event.clone()), vector, poller)?;
        }
        Ok(triggers)
    }

    fn attach_bells(&mut self, config: &Config, clock: Clock) -> Result<Vec<Trigger>> {
        let (triggers, mut bells) =
            trigger::bells(clock, config.vectors, config.producers, self.pollers.len())?;
        bells.sort_unstable_by_key(|bell| bell.vector);
        let mut watched: HashMap<usize, BellRegion> = HashMap::new();
        for bell in &bells {
            let key = bell.region.address();
            let region = match watched.entry(key) {
                Entry::Occupied(there) => there.get().clone(),
                Entry::Vacant(place) => {
                    let port = self.pollers[bell.poller].port();
                    place.insert(self.interrupts.add_region(port, &bell.region)?).clone()
                }
            };
            self.attach(Source::Bell(region, bell.bell), bell.vector, bell.poller)?;
        }
        Ok(triggers)
    }
}

impl Way for Lanes {
    fn park(&self) {
        self.pollers.iter().for_each(PollerThread::park);
    }

    fn unpark(&self) {
        if !self.blocking {
            self.pollers.iter().for_each(PollerThread::unpark);
        }
    }

    fn take(&mut self) -> Result<Taken> {
        let mut taken = Taken::default();
        for (number, (poller, spare)) in self.pollers.iter().zip(&mut self.spare).enumerate() {
            let empty = std::mem::replace(spare, Box::new(Figures::new(&[], 0, false)));
            let answer = poller.take_figures(empty).or_else(|| wait_on(poller));
            let Some(mut figures) = answer else {
                return Err(Error::new("a poller does not answer")
                    .remedy("a CPU that is not starved; this may be a bug, too"));
            };
            taken.samples.extend_from_slice(&figures.samples);
            self.injected.add(&figures);
            taken.outcome += figures.total();
            taken.lost += figures.lost;
            if let Some(gaps) = &figures.gaps {
                match &mut taken.gaps {
                    Some(all) => add(all, gaps)?,
                    all => *all = Some(gaps.clone()),
                }
            }
            if let (Some(flight), Some(theirs)) = (self.flights.get_mut(number), &figures.flight) {
                flight.add(theirs);
            }
            figures.reset();
            *spare = figures;
        }
        Ok(taken)
    }

    fn is_requested(&self, vector: usize) -> Result<bool> {
        self.accepting.is_requested(vector)
    }

    fn clear_requests(&mut self) -> Result<()> {
        self.accepting.clear_requests()
    }

    fn threads(&self) -> Vec<u32> {
        self.pollers.iter().map(PollerThread::thread_id).collect()
    }

    fn flights(&self) -> &[Flight] {
        &self.flights
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> =
            self.pollers.iter().flat_map(|poller| poller.lacking().iter().cloned()).collect();
        warnings.extend(self.pollers.iter().filter_map(PollerThread::complaint));
        warnings
    }

    fn coalesced(&self) -> Option<u64> {
        self.accepting.coalesced(self.injected)
    }

    fn stop(mut self: Box<Self>) -> Result<()> {
        // A parked poller takes no commands, and detaching needs it.
        self.unpark();
        for id in self.attached.drain(..) {
            self.interrupts.detach(id);
        }
        for poller in self.pollers.drain(..) {
            self.injected.add(&poller.stop()?);
        }
        for slot in 0..self.accepting.vectors {
            self.injected += self.interrupts.slow_path(slot);
        }
        self.accepting.check(self.injected)
    }
}
