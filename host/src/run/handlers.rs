//! Matches the guest's handler runs with the signals that caused them, exactly: a handler notes the number of the last
//! signal announced, so a run answers every signal up to that number that no run before it did, and its latency is
//! that of the oldest of them.

use crate::clock::Clock;
use crate::guest::Guest;
use crate::record::{Figures, Stage};
use crate::session::Session;
use crate::sys::guest_code::RUNS_KEPT;
use pollvisor_core::ids::VcpuId;
use std::time::{Duration, Instant};

/// Signals whose times are kept per vector.
const KEPT: usize = 64;

/// What is known of one vector's handler.
#[derive(Debug)]
pub(super) struct Watched {
    /// Runs since this watch began.
    pub runs: u64,
    /// Runs seen so far, from the guest's start.
    seen: u64,
    /// Signals announced, and answered, from the guest's start.
    announced: u64,
    answered: u64,
    /// Whether a run began before the signal it seemed to answer.
    early: bool,
    /// When signal n was made, at n modulo `KEPT`.
    times: [u64; KEPT],
}

/// Whose handlers run where.
#[derive(Debug)]
pub(super) struct Targets<'a> {
    /// The guest; none: no handler runs.
    pub guest: Option<&'a Guest>,
    /// Each vector's vCPU and gate.
    pub vectors: Vec<(VcpuId, u8)>,
    /// What is to be taken off the guest's time to make it the host's.
    pub tsc_offset: u64,
    pub clock: Clock,
    /// The stage that ends with the handler.
    pub stage: Stage,
}

impl<'a> Targets<'a> {
    /// Those of a session.
    pub fn of(session: &'a Session) -> Self {
        Self {
            guest: session.guest(),
            vectors: (0..session.vectors()).map(|vector| session.target(vector)).collect(),
            tsc_offset: session.tsc_offset(),
            clock: session.clock(),
            stage: session.accelerator().signal_to_handler(),
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Handlers<'a> {
    targets: Targets<'a>,
    pub vectors: Vec<Watched>,
}

fn place(number: u64) -> usize {
    usize::try_from(number % KEPT as u64).unwrap_or(0)
}

impl<'a> Handlers<'a> {
    pub fn new(targets: Targets<'a>) -> Self {
        let watch = |(vcpu, idt): &(VcpuId, u8)| {
            let known = |g: &Guest| (g.handled(*vcpu, *idt), g.announced(*vcpu, *idt));
            let (seen, announced) = targets.guest.map_or((0, 0), known);
            Watched { runs: 0, seen, announced, answered: announced, early: false, times: [0; KEPT] }
        };
        let vectors = targets.vectors.iter().map(watch).collect();
        Self { targets, vectors }
    }

    /// Before a signal is made.
    pub fn announce(&mut self, vector: usize) {
        let Some(guest) = self.targets.guest else { return };
        let (vcpu, idt) = self.targets.vectors[vector];
        let watched = &mut self.vectors[vector];
        watched.announced += 1;
        guest.announce(vcpu, idt, watched.announced);
    }

    /// After it was made.
    pub fn signalled(&mut self, vector: usize, made: u64) {
        let watched = &mut self.vectors[vector];
        watched.times[place(watched.announced)] = made;
    }

    /// Records the runs that are new.
    pub fn look(&mut self, vector: usize, figures: &mut Figures) {
        let Some(guest) = self.targets.guest else { return };
        let (vcpu, idt) = self.targets.vectors[vector];
        let handled = guest.handled(vcpu, idt);
        let watched = &mut self.vectors[vector];
        watched.runs += handled - watched.seen;
        // The slot of the run after the last may be being written.
        let known = watched.seen.max((handled + 1).saturating_sub(RUNS_KEPT));
        figures.unstamped += known - watched.seen;
        for run in known..handled {
            let (time, number) = guest.handler_run(vcpu, idt, run);
            let oldest = watched.answered + 1;
            if number < oldest {
                // Its signal was answered by the run before, which saw it announced already.
                continue;
            }
            let ran = time.wrapping_sub(self.targets.tsc_offset);
            let made = watched.times[place(oldest)];
            if ran < made {
                // The run of an older signal that was answered already; it began before this one was made, and read the
                // number after that was announced. Its own is to come: if it does not, the clocks disagree.
                watched.early = true;
                continue;
            }
            (watched.answered, watched.early) = (number, false);
            if watched.announced - oldest >= KEPT as u64 {
                figures.unstamped += 1;
            } else {
                figures.record(vector, self.targets.stage, self.targets.clock.ns(ran - made));
            }
        }
        watched.seen = handled;
    }

    /// Waits for the last handlers, up to a tenth of a second since anything moved.
    pub fn finish(&mut self, figures: &mut Figures) {
        if self.targets.guest.is_none() {
            return;
        }
        let mut moved = Instant::now();
        while self.vectors.iter().any(|v| v.answered < v.announced)
            && moved.elapsed() < Duration::from_millis(100)
        {
            for vector in 0..self.vectors.len() {
                let before = self.vectors[vector].seen;
                self.look(vector, figures);
                if self.vectors[vector].seen != before {
                    moved = Instant::now();
                }
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        let never = self.vectors.iter().filter(|v| v.early && v.answered < v.announced).count();
        figures.negative += never as u64;
    }
}
