//! The way into the software LAPICs: a message is matched against the address words, and posted.

use crate::sys::futex;
use pollvisor_core::inject::{Accepted, Inject, InjectError, LineSource};
use pollvisor_core::lapic::{self, Delivery};
use pollvisor_core::route::{Chip, Msi};
use pollvisor_core::sync::PostedVcpu;
use std::sync::Arc;

/// See the module's text. Any thread may post; a post waits for nobody, and is a system call (`futex_wake`) only where the
/// target has halted.
#[derive(Debug, Clone)]
pub struct Posting {
    vcpus: Arc<[PostedVcpu]>,
}

impl Posting {
    pub(super) fn new(vcpus: Arc<[PostedVcpu]>) -> Self {
        Self { vcpus }
    }
}

impl Inject for Posting {
    #[inline]
    fn msi(&self, msi: &Msi) -> Result<Accepted, InjectError> {
        match lapic::deliver_msi(&self.vcpus, msi, |wake| futex::wake(wake.word())) {
            Delivery::Accepted { apics, coalesced } => Ok(Accepted { coalesced: coalesced == apics }),
            Delivery::Blocked => Err(InjectError::Blocked),
        }
    }

    /// There is no chip with pins.
    fn pin(&self, _: Chip, _: u32, _: bool, _: LineSource) -> Result<(), InjectError> {
        Err(InjectError::Failed(libc::ENXIO))
    }
}
