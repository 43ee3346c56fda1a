//! The way into a guest, whatever runs it.

use super::Accelerator;
use super::software::Posting;
use crate::accel::kvm::KvmInject;
use pollvisor_core::inject::{Accepted, Inject, InjectError, LineSource};
use pollvisor_core::route::{Chip, Msi};

/// See the module's text. A branch, no virtual call: `msi` is on the poller's hot path.
#[derive(Debug)]
pub enum Injector {
    /// By `KVM_SIGNAL_MSI`.
    Kvm(KvmInject),
    /// By the target's posted-interrupt descriptor.
    Software(Posting),
}

impl Injector {
    /// Whose it is.
    #[must_use]
    pub const fn accelerator(&self) -> Accelerator {
        match self {
            Self::Kvm(_) => Accelerator::Kvm,
            Self::Software(_) => Accelerator::Software,
        }
    }
}

impl Inject for Injector {
    #[inline]
    fn msi(&self, msi: &Msi) -> Result<Accepted, InjectError> {
        match self {
            Self::Kvm(kvm) => kvm.msi(msi),
            Self::Software(posting) => posting.msi(msi),
        }
    }

    fn pin(&self, chip: Chip, pin: u32, level: bool, source: LineSource) -> Result<(), InjectError> {
        match self {
            Self::Kvm(kvm) => kvm.pin(chip, pin, level, source),
            Self::Software(posting) => posting.pin(chip, pin, level, source),
        }
    }
}
