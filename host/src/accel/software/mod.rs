//! The software machine: local APICs of [`pollvisor_core::lapic`], each with a posted-interrupt descriptor in front, and
//! threads that stand in for vCPUs. It runs no guest instruction. It needs no privilege and no `/dev/kvm`: the path from a
//! signal to a LAPIC is the very same code as with KVM, and can be measured and tested anywhere.
//!
//! ```text
//!  poller: msi ──► address word of the target: matches?  pir[v] |= bit   C |= ON ──► SLEEP was set: futex_wake
//!  stand-in:       harvest → IRR   take → ISR   record (TSC first)   EOI   ◄── nothing to take: futex_wait, or spin
//! ```

mod posting;
mod standin;
mod vcpu;

pub use posting::Posting;
pub use standin::StandIn;
pub use vcpu::{LapicCounts, Vcpu};

use crate::error::{Error, Result};
use crate::guest::MAX_VCPUS;
use pollvisor_core::ids::VcpuId;
use pollvisor_core::lapic::{Lapic, Role};
use pollvisor_core::sync::PostedVcpu;
use std::sync::{Arc, Mutex, PoisonError};

/// A VM of the software machine.
#[derive(Debug)]
pub struct SoftwareVm {
    /// What senders see of each vCPU, by its number, which is its APIC ID.
    vcpus: Arc<[PostedVcpu]>,
    /// Which were created.
    created: Mutex<Vec<bool>>,
}

impl SoftwareVm {
    /// One for up to `vcpus` vCPUs, none of which is there yet: nobody accepts.
    ///
    /// # Errors
    /// EINVAL for more than [`MAX_VCPUS`], or none.
    pub fn new(vcpus: u32) -> Result<Self> {
        if vcpus == 0 || vcpus > MAX_VCPUS {
            return Err(Error::new(format!("{vcpus} vCPUs; 1 to {MAX_VCPUS} fit (EINVAL)")));
        }
        let created = Mutex::new(vec![false; vcpus as usize]);
        // Switched off until its vCPU is made: a LAPIC that is not there accepts nothing.
        let posted = |id| Lapic::new(id, Role::Ap).posted_vcpu();
        Ok(Self { vcpus: (0..vcpus).map(posted).collect(), created })
    }

    /// A vCPU whose LAPIC is in x2APIC mode, switched on, and accepts; it does not run.
    ///
    /// # Errors
    /// EINVAL for one beyond those that the VM was made for, EEXIST for one that is there.
    pub fn create_vcpu(&self, id: VcpuId) -> Result<Vcpu> {
        let mut created = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        let count = created.len();
        let place = created.get_mut(id.0 as usize);
        let place =
            place.ok_or_else(|| Error::new(format!("vCPU {}: 0 to {} fit (EINVAL)", id.0, count - 1)))?;
        if std::mem::replace(place, true) {
            return Err(Error::new(format!("vCPU {}: there is one already (EEXIST)", id.0)));
        }
        Ok(Vcpu::new(id, self.vcpus.clone()))
    }

    /// The way into its LAPICs.
    #[must_use]
    pub fn posting(&self) -> Posting {
        Posting::new(self.vcpus.clone())
    }
}
