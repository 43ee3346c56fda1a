//! Fixtures of the interrupt path: guests whose LAPICs only accept, by each accelerator, on whatever CPUs the machine has.

use pollvisor::accel::{Accelerator, Vm};
use pollvisor::accel::{Idle, VmConfig};
use pollvisor::clock::Clock;
use pollvisor::pin::{Placement, available};
use pollvisor::record::Figures;
use pollvisor::session::{Delivery, Session, SessionConfig, Signaller, Signals};
use pollvisor::source::Backend;
use pollvisor_core::irqfd::Outcome;
use std::time::{Duration, Instant};

/// What runs a guest's virtual CPUs and takes its interrupts. The one place that knows how to ask for which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The kernel's.
    Kvm,
    /// Threads of this process, where there is no other.
    Software,
}

impl Accel {
    /// Every test of the path is run on each of these.
    pub const ALL: [Self; 2] = [Self::Kvm, Self::Software];

    /// Its name, as the command has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Software => "software",
        }
    }

    /// Why this machine does not have it; `None`: it has.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Kvm => pollvisor::sys::kvm::Kvm::open().err().map(|error| error.to_string()),
            Self::Software => None,
        }
    }

    /// The command's flags that ask for it.
    #[must_use]
    pub const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Kvm => &["--accel", "kvm"],
            Self::Software => &["--accel", "software"],
        }
    }

    /// As the library has it.
    #[must_use]
    pub const fn accelerator(self) -> Accelerator {
        match self {
            Self::Kvm => Accelerator::Kvm,
            Self::Software => Accelerator::Software,
        }
    }

    /// A virtual machine for one vCPU, without memory.
    #[must_use]
    pub fn vm(self, config: &VmConfig) -> Vm {
        Vm::new(self.accelerator(), config, None, 1).expect("a VM")
    }
}

/// A session without running vCPUs. The poller has the last CPU, like everywhere.
#[must_use]
pub fn accepting(accel: Accel, vectors: usize, signals: Signals, delivery: Delivery) -> (Session, Signaller) {
    let config = SessionConfig {
        accelerator: accel.accelerator(),
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
