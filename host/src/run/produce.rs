//! The producer: signals the vectors in turn, and watches the guest's handlers.

use crate::guest::Guest;
use crate::record::{Figures, Stage};
use crate::session::{Delivery, Session, Signaller};
use crate::sys::sched;
use pollvisor_core::ids::VcpuId;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Below this an interval is spun out; above it is slept.
const SLEEP_FROM: Duration = Duration::from_micros(50);

/// What a producer shares with whoever shows its progress.
#[derive(Debug, Default)]
pub struct Progress {
    /// Signals made.
    pub sent: AtomicU64,
    /// Asks it to end.
    pub stop: AtomicBool,
}

/// What a producer did.
#[derive(Debug)]
pub struct Produced {
    /// Signals per vector.
    pub sent: Vec<u64>,
    /// What it measured itself: the handlers, and with an in-kernel irqfd the acceptance.
    pub figures: Figures,
    /// Handler runs per vector.
    pub handled: Vec<u64>,
}

/// Signals every `interval` for `duration`, or until asked to end. A schedule missed is not made up for.
pub fn produce(
    session: &Session,
    signaller: &mut Signaller,
    delivery: Delivery,
    (interval, duration): (Duration, Duration),
    each_vector: bool,
    progress: &Progress,
) -> Produced {
    sched::timer_slack(1);
    let clock = session.clock();
    let stages = match delivery {
        Delivery::Irqfd => &[Stage::SignalToAccepted, Stage::SignalToHandler][..],
        Delivery::Poller(_) => &[Stage::SignalToHandler][..],
    };
    let stages = if session.guest().is_some() { stages } else { &stages[..stages.len() - 1] };
    let vectors = session.vectors();
    let mut sent = vec![0; vectors];
    let mut figures = Figures::new(stages, vectors, each_vector);
    let mut handlers = Handlers::new(session);
    let end = clock.now().saturating_add(clock.cycles(duration));
    let step = clock.cycles(interval);
    let mut next = clock.now();
    let mut vector = 0;
    while !progress.stop.load(Ordering::Relaxed) {
        if next >= end {
            break;
        }
        handlers.look(vector, &mut figures);
        let (made, done) = signaller.signal(vector);
        sent[vector] += 1;
        progress.sent.fetch_add(1, Ordering::Relaxed);
        handlers.signalled(vector, made);
        if delivery == Delivery::Irqfd {
            let ns = clock.ns(done.saturating_sub(made));
            figures.record(vector, Stage::SignalToAccepted, ns);
            figures.latest[vector] = ns;
        }
        vector = if vector + 1 == vectors { 0 } else { vector + 1 };
        next = (next + step).max(clock.now());
        pause_until(session, next, interval);
    }
    handlers.finish(&mut figures);
    Produced { sent, figures, handled: handlers.runs }
}

fn pause_until(session: &Session, next: u64, interval: Duration) {
    let clock = session.clock();
    loop {
        let left = next.saturating_sub(clock.now());
        if left == 0 {
            return;
        }
        if interval >= SLEEP_FROM {
            std::thread::sleep(Duration::from_nanos(clock.ns(left)));
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Matches handler runs with the signals that caused them: the first run after a signal is that signal's.
#[derive(Debug)]
struct Handlers<'a> {
    session: &'a Session,
    guest: Option<&'a Guest>,
    /// Runs seen so far, from the guest's start.
    seen: Vec<u64>,
    /// Runs since this watch began.
    runs: Vec<u64>,
    /// When the oldest signal without a run was made; 0: none.
    oldest: Vec<u64>,
}

impl<'a> Handlers<'a> {
    fn new(session: &'a Session) -> Self {
        let vectors = session.vectors();
        let mut handlers = Self {
            session,
            guest: session.guest(),
            seen: vec![0; vectors],
            runs: vec![0; vectors],
            oldest: vec![0; vectors],
        };
        for vector in 0..vectors {
            handlers.seen[vector] = handlers.handled(vector);
        }
        handlers
    }

    fn target(&self, vector: usize) -> (VcpuId, u8) {
        self.session.target(vector)
    }

    fn handled(&self, vector: usize) -> u64 {
        let (vcpu, idt) = self.target(vector);
        self.guest.map_or(0, |guest| guest.handled(vcpu, idt))
    }

    fn signalled(&mut self, vector: usize, made: u64) {
        if self.guest.is_some() && self.oldest[vector] == 0 {
            self.oldest[vector] = made;
        }
    }

    fn look(&mut self, vector: usize, figures: &mut Figures) {
        let Some(guest) = self.guest else { return };
        let handled = self.handled(vector);
        let first = self.seen[vector];
        if handled == first {
            return;
        }
        let (vcpu, idt) = self.target(vector);
        let ran = guest.handler_time(vcpu, idt, first).wrapping_sub(self.session.tsc_offset());
        let made = std::mem::take(&mut self.oldest[vector]);
        // More runs than the guest keeps times for: the first one's time is overwritten.
        if handled - first > crate::sys::guest_code::TIMES || made == 0 {
            figures.unstamped += 1;
        } else if ran < made {
            figures.negative += 1;
        } else {
            figures.record(vector, Stage::SignalToHandler, self.session.clock().ns(ran - made));
        }
        self.seen[vector] = handled;
        self.runs[vector] += handled - first;
    }

    /// Waits for the last handlers, up to a tenth of a second since anything moved.
    fn finish(&mut self, figures: &mut Figures) {
        let mut moved = Instant::now();
        while self.oldest.iter().any(|made| *made != 0) && moved.elapsed() < Duration::from_millis(100) {
            for vector in 0..self.seen.len() {
                let before = self.seen[vector];
                self.look(vector, figures);
                if self.seen[vector] != before {
                    moved = Instant::now();
                }
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
