//! What other VMMs are made of: an event loop of somebody else's crate that sleeps. VM and injection are the same as ours, so
//! that the loops are compared. Its thread is on the poller's CPU.

mod event_manager;
mod tokio;
mod uring;

use super::accepting::{Accepting, Injected};
use super::{Config, Path, Trigger, Way, message};
use crate::measure::matching::Taken;
use pollvisor::accel::Injector;
use pollvisor::clock::Clock;
use pollvisor::error::{Error, Result};
use pollvisor::pin::Placement;
use pollvisor::record::Sample;
use pollvisor::sys::{fd::EventFd, sched};
use pollvisor_core::inject::Inject;
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::route::Msi;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

/// What the loop's thread and whoever asks it share.
struct Shared {
    clock: Clock,
    inject: Injector,
    messages: Vec<Msi>,
    events: Vec<Arc<EventFd>>,
    /// Ends the loop.
    stop: AtomicBool,
    wake: Arc<EventFd>,
    room: usize,
    taken: Mutex<Taken>,
}

impl Shared {
    /// What every loop does with an eventfd that is said to be readable: read it, inject. False: nothing was in it.
    fn deliver(&self, vector: usize) -> bool {
        let seen = self.clock.now();
        let signals = self.events[vector].take();
        if signals == 0 {
            return false;
        }
        let accepted = self.inject.msi(&self.messages[vector]).ok();
        let injected = self.clock.now();
        let outcome = Outcome::of(signals, accepted);
        let mut taken = self.taken();
        taken.outcome += outcome;
        if taken.samples.len() < self.room {
            taken.samples.push(Sample { slot: vector, signals, outcome, seen, injected, last: injected });
        } else if self.room > 0 {
            taken.lost += 1;
        }
        true
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

struct Rival {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
    thread_id: u32,
    accepting: Accepting,
    injected: Injected,
    lacking: Vec<String>,
}

pub fn start(config: &Config, clock: Clock) -> Result<(Box<dyn Way>, Vec<Trigger>)> {
    let accepting = Accepting::new(config.accelerator, config.vectors)?;
    let (events, triggers) = config.events(clock)?;
    let shared = Arc::new(Shared {
        clock,
        inject: accepting.vm.injector()?,
        messages: (0..config.vectors).map(|vector| message(vector, config.vectors)).collect(),
        events,
        stop: AtomicBool::new(false),
        wake: Arc::new(EventFd::new()?),
        room: config.samples,
        taken: Mutex::new(Taken { samples: Vec::with_capacity(config.samples), ..Taken::default() }),
    });
    let body = match config.path {
        Path::Tokio => tokio::run,
        Path::IoUring => uring::run,
        _ => event_manager::run,
    };
    let (ready, started) = mpsc::sync_channel(1);
    let placement = Placement { cpu: config.cpus.first().copied(), fifo: None };
    let (its, who) = (shared.clone(), config.path.key());
    let run = move || {
        let placed = placement.apply(who).map(|lacking| (lacking, sched::thread_id()));
        let told = ready.clone();
        let result = placed.and_then(|placed| {
            body(&its, &|| {
                // The receiver waits for exactly this.
                let _ = told.send(Ok(placed.clone()));
            })
        });
        if let Err(error) = &result {
            let _ = ready.try_send(Err(error.clone()));
        }
        result
    };
    let thread = std::thread::Builder::new().name(who.to_string()).spawn(run);
    let thread = thread.map_err(|e| Error::os(format!("starting the thread of {who}"), &e))?;
    let (lacking, thread_id) = match started.recv() {
        Ok(placed) => placed?,
        Err(_) => return Err(Error::new(format!("{who} ended before it began"))),
    };
    let injected = Injected::default();
    let way = Rival { shared, thread: Some(thread), thread_id, accepting, injected, lacking };
    Ok((Box::new(way), triggers))
}

impl Rival {
    fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.signal(1);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(Error::new("a rival's thread panicked")))
    }
}

impl Way for Rival {
    fn take(&mut self) -> Result<Taken> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.end()?;
            return Err(Error::new("a rival's thread ended by itself"));
        }
        let empty = Taken { samples: Vec::with_capacity(self.shared.room), ..Taken::default() };
        let taken = std::mem::replace(&mut *self.shared.taken(), empty);
        self.injected += taken.outcome;
        Ok(taken)
    }

    fn is_requested(&self, vector: usize) -> Result<bool> {
        self.accepting.is_requested(vector)
    }

    fn clear_requests(&mut self) -> Result<()> {
        self.accepting.clear_requests()
    }

    fn threads(&self) -> Vec<u32> {
        vec![self.thread_id]
    }

    fn warnings(&self) -> Vec<String> {
        self.lacking.clone()
    }

    fn coalesced(&self) -> Option<u64> {
        self.accepting.coalesced(self.injected)
    }

    fn stop(mut self: Box<Self>) -> Result<()> {
        self.end()?;
        let taken = std::mem::take(&mut *self.shared.taken());
        self.injected += taken.outcome;
        self.accepting.check(self.injected)
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let _result = self.end();
    }
}
