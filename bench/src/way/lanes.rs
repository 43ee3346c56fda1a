//! pollvisor's pollers: one VM, any number of them, eventfds or doorbells.

use super::irqfd::Accepting;
use super::trigger::{self, Trigger, poller_of};
use super::{Config, Path, Way, gsi, routes};
use crate::measure::{add, matching::Taken};
use pollvisor::clock::Clock;
use pollvisor::error::{Error, Result};
use pollvisor::interrupts::{BellRegion, Interrupts, Running, Source};
use pollvisor::pin::Placement;
use pollvisor::poller::PollerThread;
use pollvisor::record::Figures;
use pollvisor::source::{Backend, Lane};
use pollvisor::sys::fd::EventFd;
use pollvisor_core::ids::SourceId;
use pollvisor_core::route::Irqchip;
use std::collections::HashMap;
use std::sync::Arc;

/// See the module's text. In the order in which it has to go.
struct Lanes {
    attached: Vec<SourceId>,
    pollers: Vec<PollerThread>,
    /// Empty figures to give for full ones, one per poller.
    spare: Vec<Box<Figures>>,
    interrupts: Running,
    accepting: Accepting,
    blocking: bool,
}

pub fn start(config: &Config, clock: Clock) -> Result<(Box<dyn Way>, Vec<Trigger>)> {
    let (vectors, pollers) = (config.vectors, config.cpus.len());
    let backend = match config.path {
        Path::EpollWait0 => Backend::EpollSpin,
        Path::BlockingEpoll => Backend::EpollBlock,
        _ => Backend::Aio { per_context: config.per_context },
    };
    let accepting = Accepting::new(vectors)?;
    let interrupts = Interrupts::start(Irqchip::Split, accepting.vm.injector()?, clock, vectors)?;
    interrupts.set_routes(&routes(vectors))?;
    let figures = || Figures::new(&[], vectors, false).keeping(config.samples, config.gaps);
    let mut way = Lanes {
        attached: Vec::new(),
        pollers: Vec::new(),
        spare: (0..pollers).map(|_| Box::new(figures())).collect(),
        interrupts,
        accepting,
        blocking: backend == Backend::EpollBlock,
    };
    for (number, cpu) in config.cpus.iter().enumerate() {
        let placement = Placement { cpu: Some(*cpu), fifo: None };
        let (lane, name) = (Lane::new(backend, vectors)?, format!("poller {number}"));
        way.pollers.push(PollerThread::start(&way.interrupts, lane, figures(), placement, &name)?);
    }
    let triggers = if config.path == Path::PolledDoorbell {
        way.attach_bells(config, clock)?
    } else {
        way.attach_events(config, clock)?
    };
    Ok((Box::new(way), triggers))
}

impl Lanes {
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
        let events: Vec<_> =
            (0..config.vectors).map(|_| EventFd::new().map(Arc::new)).collect::<Result<_>>()?;
        for (vector, event) in events.iter().enumerate() {
            let poller = poller_of(vector, config.producers, self.pollers.len());
            self.attach(Source::Event(event.clone()), vector, poller)?;
        }
        Ok(trigger::events(clock, &events, config.producers))
    }

    fn attach_bells(&mut self, config: &Config, clock: Clock) -> Result<Vec<Trigger>> {
        let (triggers, mut bells) =
            trigger::bells(clock, config.vectors, config.producers, self.pollers.len())?;
        bells.sort_unstable_by_key(|bell| bell.vector);
        let mut watched: HashMap<usize, BellRegion> = HashMap::new();
        for bell in &bells {
            let key = bell.region.address();
            if !watched.contains_key(&key) {
                let port = self.pollers[bell.poller].port();
                watched.insert(key, self.interrupts.add_region(port, &bell.region)?);
            }
            self.attach(Source::Bell(watched[&key].clone(), bell.bell), bell.vector, bell.poller)?;
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
        for (poller, spare) in self.pollers.iter().zip(&mut self.spare) {
            let empty = std::mem::replace(spare, Box::new(Figures::new(&[], 0, false)));
            let Some(mut figures) = poller.take_figures(empty) else {
                return Err(Error::new("a poller does not answer")
                    .remedy("a CPU that is not starved; this may be a bug, too"));
            };
            taken.samples.extend_from_slice(&figures.samples);
            taken.outcome += figures.total();
            taken.lost += figures.lost;
            if let Some(gaps) = &figures.gaps {
                match &mut taken.gaps {
                    Some(all) => add(all, gaps)?,
                    all => *all = Some(gaps.clone()),
                }
            }
            figures.reset();
            *spare = figures;
        }
        Ok(taken)
    }

    fn is_requested(&self, vector: usize) -> Result<bool> {
        self.accepting.is_requested(vector)
    }

    fn threads(&self) -> Vec<u32> {
        self.pollers.iter().map(PollerThread::thread_id).collect()
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> =
            self.pollers.iter().flat_map(|poller| poller.lacking().iter().cloned()).collect();
        let faults: u64 = self.pollers.iter().map(|poller| poller.port().faults()).sum();
        if faults > 0 {
            warnings.push(format!("{faults} system calls of pollers failed: a bug, please report it"));
        }
        warnings
    }

    fn stop(mut self: Box<Self>) -> Result<()> {
        // A parked poller takes no commands, and detaching needs it.
        self.unpark();
        for id in self.attached.drain(..) {
            self.interrupts.detach(id);
        }
        for poller in self.pollers.drain(..) {
            poller.stop()?;
        }
        Ok(())
    }
}
