//! A VM whose LAPICs accept, and its vCPUs, which do not run.

use super::target;
use pollvisor::accel::{Accelerator, Vcpu, Vm};
use pollvisor::accel::{Idle, VmConfig};
use pollvisor::error::{Error, Result};
use pollvisor::record::Figures;
use pollvisor::session::vcpus_for;
use pollvisor_core::ids::VcpuId;
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::route::Irqchip;

/// See the module's text.
#[derive(Debug)]
pub struct Accepting {
    pub vcpus: Vec<Vcpu>,
    pub vm: Vm,
    pub vectors: usize,
}

/// What senders were told of their interrupts, from the first on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Injected {
    /// Accepted by a LAPIC.
    pub accepted: u64,
    /// Of these, requested already.
    pub coalesced: u64,
}

impl Injected {
    /// What a poller was told, spurious ones too.
    pub fn add(&mut self, figures: &Figures) {
        *self += figures.total();
        self.accepted += figures.spurious;
    }
}

impl std::ops::AddAssign<Outcome> for Injected {
    fn add_assign(&mut self, outcome: Outcome) {
        self.accepted += outcome.delivered;
        self.coalesced += outcome.coalesced;
    }
}

impl Accepting {
    /// One with room for so many vectors.
    pub fn new(accelerator: Accelerator, vectors: usize) -> Result<Self> {
        let config = VmConfig { irqchip: Irqchip::Split, idle: Idle::Halt, halt_poll_ns: None };
        let count = vcpus_for(vectors);
        let vm = Vm::new(accelerator, &config, None, count)?;
        let vcpus = (0..count).map(|id| vm.create_vcpu(VcpuId(id))).collect::<Result<_>>()?;
        Ok(Self { vcpus, vm, vectors })
    }

    /// See [`Way::is_requested`](super::Way::is_requested).
    pub fn is_requested(&self, vector: usize) -> Result<bool> {
        let (vcpu, idt) = target(vector, self.vectors);
        let vcpu = self.vcpus.get(vcpu.0 as usize).ok_or_else(|| Error::new("no such vCPU"))?;
        vcpu.is_requested(idt)
    }

    /// See [`Way::clear_requests`](super::Way::clear_requests).
    pub fn clear_requests(&mut self) -> Result<()> {
        self.vcpus.iter_mut().try_for_each(Vcpu::clear_requests)
    }

    /// See [`Way::coalesced`](super::Way::coalesced): what senders found requested, where LAPICs tell.
    pub fn coalesced(&self, injected: Injected) -> Option<u64> {
        (self.vm.accelerator() == Accelerator::Software).then_some(injected.coalesced)
    }

    /// That software LAPICs have all that was accepted; once nobody sends any more.
    ///
    /// # Errors
    /// Both counts, when they differ.
    pub fn check(&self, injected: Injected) -> Result<()> {
        if self.vm.accelerator() == Accelerator::Kvm {
            return Ok(());
        }
        let counted: u64 = self.vcpus.iter().filter_map(Vcpu::counts).map(|counts| counts.accepted()).sum();
        if counted + injected.coalesced == injected.accepted {
            return Ok(());
        }
        Err(Error::new(format!("the LAPICs account for {counted} interrupts beside {injected:?}"))
            .remedy("report this as a bug"))
    }
}
