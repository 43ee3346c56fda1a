//! The way into the guest, as the core sees it.

use crate::route::{Chip, Msi};

/// Who drives a chip's pin. A pin's level is the OR over its sources, kept by whoever implements [`Inject`] in one
/// step with the pin write (race 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LineSource {
    /// Edge events: raised and lowered at once (`KVM_USERSPACE_IRQ_SOURCE_ID`).
    Edge,
    /// Level events of all resampling irqfds (`KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID`).
    Resample,
}

/// Why an interrupt did not arrive. It is dropped and counted; there is nobody to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectError {
    /// No LAPIC took it: those it goes to are switched off, or do not take its delivery mode.
    Blocked,
    /// The kernel refused, with this error number; with EPERM (1) there is no LAPIC that it goes to.
    Failed(i32),
}

/// How a LAPIC took a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Its vector was requested already in every LAPIC that took it: one handler run serves both. Also false where the
    /// LAPIC does not tell, as KVM's does not.
    pub coalesced: bool,
}

/// Delivers interrupts. Called by pollers (`msi` only), by the deferred worker, and by control threads that lower a
/// line. All of them are in a grace period's way, and `set_routes` waits for them: must not block.
pub trait Inject {
    /// Sends a message.
    ///
    /// # Errors
    /// When no LAPIC accepted it.
    fn msi(&self, msi: &Msi) -> Result<Accepted, InjectError>;

    /// Sets one source's level on a chip's pin.
    ///
    /// # Errors
    /// When there is no such chip.
    fn pin(&self, chip: Chip, pin: u32, level: bool, source: LineSource) -> Result<(), InjectError>;
}
