//! A VM and its vCPUs, of either accelerator.

use super::kvm::VcpuThread;
use super::software::{self, SoftwareVm, StandIn};
use super::{Accelerator, Idle, Injector, VmConfig, kvm};
use crate::error::{Error, Result};
use crate::guest::{Bare, Guest, Role};
use crate::pin::Placement;
use crate::sys::kvm::VcpuFd;

use pollvisor_core::ids::VcpuId;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// A VM whose LAPICs accept messages.
#[derive(Debug)]
pub enum Vm {
    /// KVM's.
    Kvm(kvm::Vm),
    /// The software machine's.
    Software(SoftwareVm),
}

/// A vCPU that does not run. Its LAPIC accepts; it is in x2APIC mode, switched on.
#[derive(Debug)]
pub enum Vcpu {
    /// KVM's.
    Kvm(VcpuFd),
    /// The software machine's, its LAPIC with it.
    Software(Box<software::Vcpu>),
}

/// A vCPU's thread. Dropping it stops it.
#[derive(Debug)]
pub enum RunningVcpu {
    /// In `KVM_RUN`.
    Kvm(VcpuThread),
    /// One that stands in.
    StandIn(StandIn),
}

/// A vCPU that was started.
#[derive(Debug)]
pub struct Started {
    /// Its thread.
    pub vcpu: RunningVcpu,
    /// What is to be taken off the times it writes, in cycles, to make them the host's.
    pub tsc_offset: u64,
    /// What a user should know of it.
    pub warnings: Vec<String>,
}

impl Vm {
    /// A VM for up to `vcpus` vCPUs, with the guest's memory in it.
    ///
    /// # Errors
    /// When KVM is not there or lacks something that the interrupt path needs; on the software machine, what only KVM has.
    pub fn new(
        accelerator: Accelerator,
        config: &VmConfig,
        memory: Option<Arc<GuestMemoryMmap>>,
        vcpus: u32,
    ) -> Result<Self> {
        match accelerator {
            Accelerator::Kvm => kvm::Vm::new(config, memory).map(Self::Kvm),
            Accelerator::Software => SoftwareVm::new(vcpus).map(Self::Software),
        }
    }

    /// What runs it.
    #[must_use]
    pub const fn accelerator(&self) -> Accelerator {
        match self {
            Self::Kvm(_) => Accelerator::Kvm,
            Self::Software(_) => Accelerator::Software,
        }
    }

    /// KVM's VM, for what only KVM can do: irqfds, GSI routes of its own.
    ///
    /// # Errors
    /// On the software machine, which has none.
    pub fn kvm(&self) -> Result<&kvm::Vm> {
        match self {
            Self::Kvm(vm) => Ok(vm),
            Self::Software(_) => {
                Err(Error::new("the software machine has no in-kernel irqfd").remedy("--accel kvm"))
            }
        }
    }

    /// A vCPU that accepts interrupts; each ID once, below the number the VM was made for.
    ///
    /// # Errors
    /// The kernel's; on the software machine EEXIST and EINVAL, as the kernel has it.
    pub fn create_vcpu(&self, id: VcpuId) -> Result<Vcpu> {
        match self {
            Self::Kvm(vm) => vm.create_vcpu(id).map(Vcpu::Kvm),
            Self::Software(vm) => vm.create_vcpu(id).map(|vcpu| Vcpu::Software(Box::new(vcpu))),
        }
    }

    /// The way into this VM's guest.
    ///
    /// # Errors
    /// The kernel's, where it has chips of its own whose pins are to be driven one by one.
    pub fn injector(&self) -> Result<Injector> {
        match self {
            Self::Kvm(vm) => vm.injector().map(Injector::Kvm),
            Self::Software(vm) => Ok(Injector::Software(vm.posting())),
        }
    }
}

impl Vcpu {
    /// Whether `vector` waits in its LAPIC.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_requested(&self, vector: u8) -> Result<bool> {
        match self {
            Self::Kvm(vcpu) => Ok(kvm::requested(&vcpu.lapic()?, vector)),
            Self::Software(vcpu) => Ok(vcpu.is_requested(vector)),
        }
    }

    /// Takes all waiting interrupts out of its LAPIC.
    ///
    /// # Errors
    /// The kernel's.
    pub fn clear_requests(&mut self) -> Result<()> {
        match self {
            Self::Kvm(vcpu) => kvm::clear_requests(vcpu),
            Self::Software(vcpu) => {
                vcpu.clear_requests();
                Ok(())
            }
        }
    }

    /// What its software LAPIC counted; `None` of KVM's, which does not tell.
    #[must_use]
    pub fn counts(&self) -> Option<software::LapicCounts> {
        match self {
            Self::Kvm(_) => None,
            Self::Software(vcpu) => Some(vcpu.counts()),
        }
    }

    /// Runs the built-in guest on it, on a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot be placed; the kernel's.
    pub fn start(self, guest: &Guest, idle: Idle, placement: Placement) -> Result<Started> {
        match self {
            Self::Kvm(vcpu) => {
                guest.prepare(&vcpu, if idle == Idle::Spin { Role::Spin } else { Role::Halt })?;
                // The guest's clock is to be the host's; where it cannot be set, it is converted.
                let set = vcpu.set_tsc_offset(0);
                let tsc_offset = vcpu.tsc_offset().unwrap_or(0);
                let failed = set
                    .err()
                    .map(|error| format!("the guest's TSC offset cannot be set ({error}); it is converted"));
                let thread = VcpuThread::start(vcpu, placement, Arc::new(Bare))?;
                let warnings = failed.into_iter().chain(thread.lacking().iter().cloned()).collect();
                Ok(Started { vcpu: RunningVcpu::Kvm(thread), tsc_offset, warnings })
            }
            Self::Software(vcpu) => {
                let thread = StandIn::start(*vcpu, guest.clone(), idle == Idle::Spin, placement)?;
                let warnings = thread.lacking().to_vec();
                Ok(Started { vcpu: RunningVcpu::StandIn(thread), tsc_offset: 0, warnings })
            }
        }
    }
}

impl RunningVcpu {
    /// Whether it ended by itself, which a vCPU does only on an error.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        match self {
            Self::Kvm(thread) => thread.has_ended(),
            Self::StandIn(thread) => thread.has_ended(),
        }
    }

    /// Stops it. What its software LAPIC counted; `None` of KVM's, which does not tell.
    ///
    /// # Errors
    /// What made it end by itself.
    pub fn stop(self) -> Result<Option<software::LapicCounts>> {
        match self {
            Self::Kvm(thread) => thread.stop().map(|()| None),
            Self::StandIn(thread) => thread.stop().map(Some),
        }
    }
}
