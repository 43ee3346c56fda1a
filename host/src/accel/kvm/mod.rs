//! KVM: VMs and vCPUs set up for the interrupt path, and the way into their guests.

mod vcpu;
mod vm;

pub use vcpu::{Exits, VcpuThread};
pub use vm::{
    EOI_GSI, EOI_GSIS, KvmInject, OWN_IDLE, Vm, clear_requests, host_halt_poll_ns, line_of, pin_routes,
    requested,
};
