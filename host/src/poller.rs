//! The one busy loop: a pinned thread that makes the core's passes over its lane.

use crate::error::{Error, Result};
use crate::interrupts::Interrupts;
use crate::pin::Placement;
use crate::record::{Exchange, Figures, Recorder};
use crate::source::{Lane, Port};
use crate::sys::{fd::EventFd, sched};
use pollvisor_core::irqfd::Slot;
use pollvisor_core::poll::Poller;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What others may know of a running poller.
#[derive(Debug, Default)]
pub struct Vital {
    /// What it is to do: [`RUN`], [`PARK`] or [`STOP`].
    wish: AtomicU32,
    /// Whether it is parked.
    parked: AtomicBool,
    /// Passes made; a measure of how quick an idle look is.
    passes: AtomicU64,
    /// The kernel's number of the thread, for whoever wants to watch its system calls.
    thread: AtomicU32,
}

/// A poller's thread. Dropping it stops it.
#[derive(Debug)]
pub struct PollerThread {
    thread: Option<JoinHandle<Result<Figures>>>,
    vital: Arc<Vital>,
    port: Arc<Port>,
    exchange: Arc<Exchange>,
    lacking: Vec<String>,
}

const RUN: u32 = 0;
const PARK: u32 = 1;
const STOP: u32 = 2;

/// Idle passes between two notes of how many there were.
const NOTE_EVERY: u64 = 1024;

impl PollerThread {
    /// Starts a poller on a lane of `interrupts`, recording into `figures`. Returns once it is in place.
    ///
    /// # Errors
    /// When it cannot be placed as asked, or all reader seats are taken.
    pub fn start(
        interrupts: &Arc<Interrupts>,
        mut lane: Lane,
        figures: Figures,
        placement: Placement,
        name: &str,
    ) -> Result<Self> {
        let vital = Arc::new(Vital::default());
        let port = lane.port().clone();
        let mut recorder = interrupts.recorder(figures);
        let exchange = recorder.exchange().clone();
        let (ready, started) = mpsc::sync_channel(1);
        let (its_vital, interrupts, who) = (vital.clone(), interrupts.clone(), name.to_string());
        let body = move || -> Result<Figures> {
            let vital = its_vital;
            // Before anybody can ask for it.
            vital.thread.store(sched::thread_id(), Ordering::Release);
            let placed = placement.apply(&who);
            let failed = placed.as_ref().err().cloned();
            // The receiver waits for exactly this.
            let _ = ready.send(placed);
            if let Some(error) = failed {
                return Err(error);
            }
            if lane.is_blocking() {
                blocking(&interrupts, &mut lane, &mut recorder, &vital)?;
            } else {
                polling(&interrupts, &mut lane, &mut recorder, &vital)?;
            }
            Ok(recorder.finish())
        };
        let thread = crate::pin::thread(name).spawn(body);
        let thread = thread.map_err(|e| Error::os(format!("starting the thread of {name}"), &e))?;
        let lacking = match started.recv() {
            Ok(placed) => placed?,
            Err(_) => return Err(Error::new(format!("{name} ended before it began"))),
        };
        Ok(Self { thread: Some(thread), vital, port, exchange, lacking })
    }

    /// The lane's control side.
    #[must_use]
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Where to ask for its figures.
    #[must_use]
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// What it measured since it was last asked; `None` when it does not answer within a second.
    #[must_use]
    pub fn take_figures(&self, empty: Box<Figures>) -> Option<Box<Figures>> {
        self.exchange.ask(empty);
        nudge(&self.port);
        let began = Instant::now();
        while began.elapsed().as_secs() < 1 {
            if let Some(figures) = self.exchange.take() {
                return Some(figures);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        None
    }

    /// What its placement lacks.
    #[must_use]
    pub fn lacking(&self) -> &[String] {
        &self.lacking
    }

    /// What went wrong on it, if anything did: its system calls that failed. Such a source is looked at later, or no more.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let faults = self.port.faults();
        let name = self.thread.as_ref().and_then(|thread| thread.thread().name()).unwrap_or("a poller");
        (faults > 0).then(|| {
            format!("{faults} system calls of {name} failed: the kernel had no memory, or it is a bug; please report it")
        })
    }

    /// Whether it ended by itself, which a poller does only on an error: nobody watches its sources then.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Passes made so far, to the nearest thousand.
    #[must_use]
    pub fn passes(&self) -> u64 {
        self.vital.passes.load(Ordering::Relaxed)
    }

    /// The kernel's number of its thread.
    #[must_use]
    pub fn thread_id(&self) -> u32 {
        self.vital.thread.load(Ordering::Acquire)
    }

    /// Lets a poller that spins give its CPU away, until [`unpark`](Self::unpark). Its sources keep their signals; control
    /// calls that need it wait. One that blocks anyway stays as it is.
    pub fn park(&self) {
        if self.port.wake().is_none() {
            self.vital.wish.store(PARK, Ordering::Release);
            self.wait_parked(true);
        }
    }

    /// Ends [`park`](Self::park); it polls again when this returns.
    pub fn unpark(&self) {
        self.vital.wish.store(RUN, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
        self.wait_parked(false);
    }

    fn wait_parked(&self, parked: bool) {
        // Acquire: pairs with the Release in `park_here`.
        while self.vital.parked.load(Ordering::Acquire) != parked
            && self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
        {
            std::thread::yield_now();
        }
    }

    /// Stops it and takes what it measured since it was last asked. Its sources are watched no more.
    ///
    /// # Errors
    /// When it ended by itself.
    pub fn stop(mut self) -> Result<Figures> {
        self.halt().unwrap_or_else(|| Err(Error::new("the poller was stopped already")))
    }

    fn halt(&mut self) -> Option<Result<Figures>> {
        self.vital.wish.store(STOP, Ordering::Release);
        self.port.wake().inspect(|wake| wake.signal(1));
        let thread = self.thread.take()?;
        thread.thread().unpark();
        let name = thread.thread().name().unwrap_or("a poller").to_string();
        Some(thread.join().unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            Err(Error::new(format!("{name} panicked, and nobody watches its sources: {text}"))
                .remedy("report this as a bug"))
        }))
    }
}

impl Drop for PollerThread {
    fn drop(&mut self) {
        let _figures = self.halt();
    }
}

fn seat(interrupts: &Interrupts) -> Result<Poller<'_, Box<[Slot]>>> {
    Poller::new(interrupts.irqfds()).ok_or_else(|| Error::new("too many pollers and workers on one VM"))
}

/// No system call, no lock and no allocation in here, as long as nothing happens; and no PAUSE: the core is the poller's
/// own, and one costs up to 50 ns of every interrupt's way.
fn polling(interrupts: &Interrupts, lane: &mut Lane, recorder: &mut Recorder, vital: &Vital) -> Result<()> {
    let mut poller = seat(interrupts)?;
    let mut passes = 0u64;
    loop {
        match vital.wish.load(Ordering::Relaxed) {
            RUN => {}
            PARK => {
                park_here(&mut poller, vital);
                recorder.slept();
            }
            _ => return Ok(()),
        }
        lane.obey();
        poller.pass(lane, interrupts.inject(), recorder);
        recorder.turn();
        passes += 1;
        if passes.is_multiple_of(NOTE_EVERY) {
            vital.passes.store(passes, Ordering::Relaxed);
        }
    }
}

/// Sleeps until the wish is another one; offline, so that no control thread waits for it.
#[cold]
fn park_here<S: AsRef<[Slot]>>(poller: &mut Poller<'_, S>, vital: &Vital) {
    poller.pause();
    // Release: pairs with the Acquire in `wait_parked`.
    vital.parked.store(true, Ordering::Release);
    while vital.wish.load(Ordering::Acquire) == PARK {
        std::thread::park();
    }
    poller.resume();
    vital.parked.store(false, Ordering::Release);
}

/// The way that sleeps: offline while it does, so that no control thread waits for it.
fn blocking(interrupts: &Interrupts, lane: &mut Lane, recorder: &mut Recorder, vital: &Vital) -> Result<()> {
    let mut poller = seat(interrupts)?;
    while vital.wish.load(Ordering::Relaxed) != STOP {
        poller.pause();
        lane.wait();
        poller.resume();
        lane.obey();
        poller.pass(lane, interrupts.inject(), recorder);
        recorder.turn();
        vital.passes.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Wakes the blocking poller behind `port`, so that it looks at its exchange.
pub fn nudge(port: &Port) {
    let _woken: Option<&EventFd> = port.wake().inspect(|wake| wake.signal(1));
}
