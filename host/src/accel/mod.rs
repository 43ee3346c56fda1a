//! What runs a guest: KVM, or the software machine. The one seam between them: chosen once, before anything is made;
//! from there on a branch on an enum, no virtual call.
//!
//! | | [`Accelerator::Kvm`] | [`Accelerator::Software`] |
//! |---|---|---|
//! | LAPIC | KVM's | [`pollvisor_core::lapic`], with [`pollvisor_core::sync::Posted`] in front |
//! | a message | `KVM_SIGNAL_MSI` | two stores into the target's posted-interrupt descriptor |
//! | a vCPU | `KVM_RUN` | a thread that takes vectors and writes the built-in guest's record: no guest instruction runs |
//!
//! Sources, pollers, irqfds, routes and recorders are the very same code on both. What only KVM can do asks for it by
//! [`Vm::kvm`].

mod choice;
mod config;
mod injector;
pub mod kvm;
pub mod software;
mod vm;

pub use choice::{Choice, choose};
pub use config::{Idle, VmConfig};
pub use injector::Injector;
pub use vm::{RunningVcpu, Started, Vcpu, Vm};

use crate::record::Stage;
use serde::Serialize;

/// What runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Linux KVM.
    Kvm,
    /// The software machine: a software LAPIC, and threads that stand in for vCPUs.
    Software,
}

impl Accelerator {
    /// Its name in JSON and on the command line.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Software => "software",
        }
    }

    /// The first line of every result.
    #[must_use]
    pub const fn headline(self) -> &'static str {
        match self {
            Self::Kvm => "accelerator: KVM",
            Self::Software => "SIMULATED: software LAPIC, no guest code ran; not comparable with KVM",
        }
    }

    /// From the first sight of a signal to the end of its injection.
    #[must_use]
    pub const fn seen_to_injected(self) -> Stage {
        match self {
            Self::Kvm => Stage::SeenToInjected,
            Self::Software => Stage::SeenToPosted,
        }
    }

    /// From the signal until the LAPIC has the interrupt.
    #[must_use]
    pub const fn signal_to_accepted(self) -> Stage {
        match self {
            Self::Kvm => Stage::SignalToAccepted,
            Self::Software => Stage::SignalToPosted,
        }
    }

    /// From the signal until the vCPU takes the interrupt.
    #[must_use]
    pub const fn signal_to_handler(self) -> Stage {
        match self {
            Self::Kvm => Stage::SignalToHandler,
            Self::Software => Stage::SignalToStandin,
        }
    }
}
