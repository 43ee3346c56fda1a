//! A producer's thread: makes signals by its plan, and between them watches for gaps in its own time.

use crate::measure::histogram;
use crate::measure::matching::Sent;
use crate::measure::schedule::{Schedule, Shape};
use crate::way::Trigger;
use hdrhistogram::Histogram;
use pollvisor::clock::Clock;
use pollvisor::error::Result;
use pollvisor::record::SHORTEST_GAP_NS;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// When signals are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// By a schedule that does not wait.
    Open {
        /// Its shape.
        shape: Shape,
        /// Signals in a second, of this producer.
        per_second: f64,
        /// Signals at once, to one vector after the other.
        burst: usize,
    },
    /// So many cycles after the last.
    Closed(u64),
    /// So many cycles apart by a schedule, 0 for at once; not logged, only counted.
    Flood(u64),
}

/// What one producer is to do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// When signals are made.
    pub pace: Pace,
    /// From when, in TSC cycles.
    pub start: u64,
    /// Until when.
    pub end: u64,
    /// Makes a Poisson schedule another one than other producers'.
    pub seed: u64,
}

/// What a producer shares with the collector: the signals it has made since they were last taken.
#[derive(Debug)]
pub struct Log {
    made: Mutex<Vec<Sent>>,
    room: usize,
}

impl Log {
    /// Nothing, with room for so many until they are taken.
    #[must_use]
    pub fn new(room: usize) -> Self {
        Self { made: Mutex::new(Vec::with_capacity(room)), room }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Sent>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was made.
    #[must_use]
    pub fn take(&self) -> Vec<Sent> {
        let empty = Vec::with_capacity(self.room);
        std::mem::replace(&mut *self.lock(), empty)
    }
}

/// What a producer did, beside its log.
#[derive(Debug)]
pub struct Produced {
    /// Signals that are not in the log.
    pub counted: u64,
    /// Planned ones it did not get round to.
    pub unmade: u64,
    /// Interruptions of its waiting, in nanoseconds.
    pub gaps: Histogram<u64>,
    /// When it was done, in TSC cycles.
    pub ended: u64,
}

/// How far a producer may be behind its schedule at the end, in milliseconds.
const GRACE_MS: u64 = 500;

/// Carries the plan out, until its end or `stop`, or until its device is gone, which says why itself.
///
/// # Errors
/// Never.
pub fn produce(
    trigger: &mut Trigger,
    plan: &Plan,
    clock: Clock,
    log: &Log,
    stop: &AtomicBool,
) -> Result<Produced> {
    let mut done = Produced { counted: 0, unmade: 0, gaps: histogram()?, ended: 0 };
    let stopped = || stop.load(Ordering::Relaxed);
    wait(clock, plan.start, &mut done.gaps, stop);
    match plan.pace {
        Pace::Flood(cycles) => {
            let mut next = plan.start;
            loop {
                let now = clock.now();
                if stopped() || now >= plan.end {
                    break;
                }
                if now >= next {
                    next += cycles;
                    if trigger.signal(None).is_err() {
                        break;
                    }
                    done.counted += 1;
                }
            }
        }
        Pace::Closed(cycles) => {
            while !stopped() && clock.now() < plan.end {
                let Ok(sent) = trigger.signal(None) else { break };
                log.lock().push(sent);
                wait(clock, sent.made + cycles, &mut done.gaps, stop);
            }
        }
        Pace::Open { shape, per_second, burst } => {
            let times = crate::measure::float(burst as u64);
            let schedule = Schedule::new(shape, clock, plan.start, per_second / times, plan.seed);
            let late = plan.end + clock.khz() * GRACE_MS;
            'plan: for planned in schedule.take_while(|planned| *planned < plan.end) {
                if stopped() {
                    break;
                }
                if clock.now() > late {
                    done.unmade += burst as u64;
                    continue;
                }
                wait(clock, planned, &mut done.gaps, stop);
                for _ in 0..burst {
                    let Ok(sent) = trigger.signal(Some(planned)) else { break 'plan };
                    log.lock().push(sent);
                }
            }
        }
    }
    done.ended = clock.now();
    Ok(done)
}

/// Notes what was taken from a spinning thread between two looks at the clock.
#[inline]
pub fn gap(clock: Clock, last: u64, now: u64, gaps: &mut Histogram<u64>) {
    let gap = clock.ns(now.saturating_sub(last));
    if gap >= SHORTEST_GAP_NS {
        gaps.saturating_record(gap);
    }
}

/// Spins until it is time; what interrupts that is a gap.
fn wait(clock: Clock, until: u64, gaps: &mut Histogram<u64>, stop: &AtomicBool) {
    let mut last = clock.now();
    while last < until {
        let now = clock.now();
        gap(clock, last, now, gaps);
        last = now;
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}
