//! The two threads off the hot path: one delivers what pollers deferred, one shuts irqfds down and hears of dead
//! producers. Two, because a shutdown waits for the deliveries.

use crate::error::{Error, Result};
use crate::interrupts::Interrupts;
use crate::sys::fd::{EpollEvent, EventFd};
use pollvisor_core::ids::SourceId;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Both threads. Dropping it ends them, after what is queued.
#[derive(Debug)]
pub(crate) struct Workers {
    stop: Arc<AtomicBool>,
    wakes: [Arc<EventFd>; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    pub(crate) fn start(interrupts: &Arc<Interrupts>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let wakes = [interrupts.wake_deferred_fd().clone(), interrupts.wake_shutdown_fd().clone()];
        let mut workers = Self { stop: stop.clone(), wakes, threads: Vec::new() };
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let thread = crate::pin::thread(name).spawn(body);
            thread.map_err(|e| Error::os(format!("starting {name}"), &e))
        };
        let (this, its_stop) = (interrupts.clone(), stop.clone());
        workers.threads.push(spawn("pv-deferred", Box::new(move || deferred(&this, &its_stop)))?);
        let this = interrupts.clone();
        workers.threads.push(spawn("pv-shutdown", Box::new(move || shutdown(&this, &stop)))?);
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // In the order of need: the shutdown worker may still wait for the deferred one.
        for (wake, thread) in self.wakes.iter().rev().zip(self.threads.drain(..).rev()) {
            wake.signal(1);
            let _ended = thread.join();
        }
    }
}

fn deferred(interrupts: &Interrupts, stop: &AtomicBool) {
    let irqfds = interrupts.irqfds();
    let Some(mut reader) = irqfds.grace().register() else { return };
    let wake = interrupts.wake_deferred_fd();
    loop {
        let ending = stop.load(Ordering::Acquire) && interrupts.shutdown_is_over();
        let _wakes = wake.take();
        reader.online();
        while irqfds.run_deferred(&reader, interrupts.inject(), |id, outcome| interrupts.account(id, outcome))
            > 0
        {
            reader.tick();
        }
        reader.offline();
        if ending {
            return;
        }
        wake.wait(if stop.load(Ordering::Acquire) { 1 } else { -1 });
    }
}

fn shutdown(interrupts: &Interrupts, stop: &AtomicBool) {
    let wake = interrupts.wake_shutdown_fd();
    if let Some(mut worker) = interrupts.irqfds().shutdown_worker() {
        let mut events = [EpollEvent { events: 0, u64: 0 }; 16];
        loop {
            let ending = stop.load(Ordering::Acquire);
            let _wakes = wake.take();
            worker.run(interrupts, interrupts.inject());
            if ending {
                break;
            }
            let count = interrupts.watch().epoll.wait(&mut events, -1);
            for event in &events[..count] {
                interrupts.watch().died(event.u64, interrupts);
            }
        }
    }
    interrupts.end_shutdown();
}

/// Producers whose death is a hang-up: a pidfd, or a socket to them, becomes readable.
#[derive(Debug)]
pub(crate) struct Watch {
    epoll: crate::sys::fd::Epoll,
    watched: Mutex<Vec<(OwnedFd, Vec<SourceId>)>>,
}

const WAKE: u64 = u64::MAX;

impl Watch {
    pub(crate) fn new(wake: &EventFd) -> Result<Self> {
        let epoll = crate::sys::fd::Epoll::new()?;
        epoll.add(wake.as_fd(), WAKE)?;
        Ok(Self { epoll, watched: Mutex::new(Vec::new()) })
    }

    pub(crate) fn add(&self, fd: OwnedFd, sources: Vec<SourceId>) -> Result<()> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        self.epoll.add(fd.as_fd(), u64::from(fd.as_raw_fd().unsigned_abs()))?;
        watched.push((fd, sources));
        Ok(())
    }

    fn died(&self, token: u64, interrupts: &Interrupts) {
        if token == WAKE {
            return;
        }
        let gone = {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            let at = watched.iter().position(|(fd, _)| u64::from(fd.as_raw_fd().unsigned_abs()) == token);
            at.map(|at| watched.swap_remove(at))
        };
        if let Some((fd, sources)) = gone {
            self.epoll.remove(fd.as_fd());
            for id in sources {
                interrupts.irqfds().hang_up(interrupts, id);
            }
        }
    }
}
