//! Fixtures on real KVM: guests whose LAPICs only accept, on whatever CPUs the machine has.

use pollvisor::accel::Accelerator;
use pollvisor::clock::Clock;
use pollvisor::pin::{Placement, available};
use pollvisor::record::Figures;
use pollvisor::session::{Delivery, Session, SessionConfig, Signaller, Signals};
use pollvisor::source::Backend;
use pollvisor::vm::Idle;
use pollvisor_core::irqfd::Outcome;
use std::time::{Duration, Instant};

/// Why there is nothing to test on here, if so. Printed by the tests that are skipped for it.
#[must_use]
pub fn no_kvm() -> Option<String> {
    pollvisor::sys::kvm::Kvm::open().err().map(|error| error.to_string())
}

/// Leaves a test that needs KVM, saying why, where there is none.
#[macro_export]
macro_rules! needs_kvm {
    () => {
        if let Some(why) = $crate::rig::no_kvm() {
            println!("SKIPPED: {why}");
            return;
        }
    };
}

/// A session without running vCPUs. The poller has the last CPU, like everywhere.
#[must_use]
pub fn accepting(vectors: usize, signals: Signals, delivery: Delivery) -> (Session, Signaller) {
    let config = SessionConfig {
        accelerator: Accelerator::Kvm,
        vectors,
        signals,
        delivery,
        running: false,
        idle: Idle::Halt,
        vcpus: None,
        vcpu_placement: Vec::new(),
        poller_placement: Placement { cpu: available().last().copied(), fifo: Some(false) },
        halt_poll_ns: None,
        each_vector: false,
    };
    let clock = Clock::calibrate().expect("a clock");
    Session::start(&config, clock).expect("a session")
}

/// By AIO, as a user gets it.
pub const POLLED: Delivery = Delivery::Poller(Backend::AIO);

/// What became of a vector's signals: what its poller and the deferred worker say together.
#[must_use]
pub fn outcome(session: &Session, figures: &Figures, vector: usize) -> Outcome {
    let mut outcome = figures.ledger[vector];
    if let Some(interrupts) = session.interrupts() {
        outcome += interrupts.slow_path(vector);
    }
    outcome
}

/// Takes figures until `signals` are accounted for, or nothing has moved for five seconds. What there is then.
pub fn settle(session: &Session, total: &mut Figures, signals: u64) -> u64 {
    let done =
        |total: &Figures| (0..session.vectors()).map(|v| outcome(session, total, v).signals()).sum::<u64>();
    let (mut before, mut moved) = (0, Instant::now());
    loop {
        if let Some(figures) = session.take_figures(session.empty_figures()) {
            total.add(&figures);
        }
        let now = done(total);
        if now != before {
            (before, moved) = (now, Instant::now());
        }
        if now >= signals || moved.elapsed() > Duration::from_secs(5) {
            return now;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
