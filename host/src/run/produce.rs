//! The producer: signals the vectors in turn, and watches the guest's handlers.

use super::handlers::{Handlers, Targets};
use crate::clock::Clock;
use crate::record::{Figures, Stage};
use crate::session::{Delivery, Session, Signaller};
use crate::sys::sched;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

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
    let accelerator = session.accelerator();
    let accepted = (delivery == Delivery::Irqfd).then_some(accelerator.signal_to_accepted());
    let handler = session.guest().map(|_| accelerator.signal_to_handler());
    let stages: Vec<Stage> = accepted.into_iter().chain(handler).collect();
    let vectors = session.vectors();
    let mut sent = vec![0; vectors];
    let mut figures = Figures::new(&stages, vectors, each_vector);
    let mut handlers = Handlers::new(Targets::of(session));
    let end = clock.now().saturating_add(clock.cycles(duration));
    let step = clock.cycles(interval);
    let mut next = clock.now();
    let mut vector = 0;
    while !progress.stop.load(Ordering::Relaxed) {
        if next >= end {
            break;
        }
        handlers.look(vector, &mut figures);
        handlers.announce(vector);
        let (made, done) = signaller.signal(vector);
        sent[vector] += 1;
        progress.sent.fetch_add(1, Ordering::Relaxed);
        handlers.signalled(vector, made);
        if delivery == Delivery::Irqfd {
            let ns = clock.ns(done.saturating_sub(made));
            figures.record(vector, accelerator.signal_to_accepted(), ns);
            figures.latest[vector] = ns;
        }
        vector = if vector + 1 == vectors { 0 } else { vector + 1 };
        next = (next + step).max(clock.now());
        pause_until(clock, next, interval);
    }
    handlers.finish(&mut figures);
    Produced { sent, figures, handled: handlers.vectors.iter().map(|vector| vector.runs).collect() }
}

/// Waits until a time of the clock.
pub(super) fn pause_until(clock: Clock, next: u64, interval: Duration) {
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
