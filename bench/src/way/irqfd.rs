//! The kernel's own way: `KVM_IRQFD`. The interrupt is injected inside the producer's write.

use super::{Config, Trigger, Way, gsi, routes, target};
use crate::measure::matching::Taken;
use kvm_bindings::KVM_IRQFD_FLAG_DEASSIGN;
use pollvisor::clock::Clock;
use pollvisor::error::{Error, Result};
use pollvisor::session::vcpus_for;
use pollvisor::sys::fd::EventFd;
use pollvisor::sys::kvm::VcpuFd;
use pollvisor::vm::{Idle, Vm, VmConfig, requested};
use pollvisor_core::ids::VcpuId;
use pollvisor_core::route::Irqchip;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

/// A VM whose LAPICs accept, and its vCPUs, which do not run.
#[derive(Debug)]
pub struct Accepting {
    pub vcpus: Vec<VcpuFd>,
    pub vm: Vm,
    pub vectors: usize,
}

impl Accepting {
    /// One with room for so many vectors.
    pub fn new(vectors: usize) -> Result<Self> {
        let config = VmConfig { irqchip: Irqchip::Split, idle: Idle::Halt, halt_poll_ns: None };
        let vm = Vm::new(&config, None)?;
        let vcpus = (0..vcpus_for(vectors)).map(|id| vm.create_vcpu(VcpuId(id))).collect::<Result<_>>()?;
        Ok(Self { vcpus, vm, vectors })
    }

    /// See [`Way::is_requested`].
    pub fn is_requested(&self, vector: usize) -> Result<bool> {
        let (vcpu, idt) = target(vector, self.vectors);
        let fd = self.vcpus.get(vcpu.0 as usize).ok_or_else(|| Error::new("no such vCPU"))?;
        Ok(requested(&fd.lapic()?, idt))
    }
}

struct Irqfd {
    accepting: Accepting,
    events: Vec<Arc<EventFd>>,
}

pub fn start(config: &Config, clock: Clock) -> Result<(Box<dyn Way>, Vec<Trigger>)> {
    let accepting = Accepting::new(config.vectors)?;
    accepting.vm.fd().set_gsi_routing(0, &routes(config.vectors))?;
    let (events, triggers) = config.events(clock)?;
    let way = Irqfd { accepting, events };
    way.bind(0)?;
    Ok((Box::new(way), triggers))
}

impl Irqfd {
    fn bind(&self, flags: u32) -> Result<()> {
        for (vector, event) in self.events.iter().enumerate() {
            self.accepting.vm.fd().irqfd(event.as_fd().as_raw_fd(), gsi(vector), flags, None)?;
        }
        Ok(())
    }
}

impl Way for Irqfd {
    fn take(&mut self) -> Result<Taken> {
        Ok(Taken::default())
    }

    fn is_requested(&self, vector: usize) -> Result<bool> {
        self.accepting.is_requested(vector)
    }

    fn threads(&self) -> Vec<u32> {
        Vec::new()
    }

    fn left_over(&self, vector: usize) -> u64 {
        self.events[vector].take()
    }

    fn stop(self: Box<Self>) -> Result<()> {
        self.bind(KVM_IRQFD_FLAG_DEASSIGN)
    }
}
