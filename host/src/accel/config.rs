//! How a VM is made, whatever runs it.

use pollvisor_core::route::Irqchip;

/// How the guest idles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// HLT comes back to KVM, which lets the CPU sleep.
    Halt,
    /// HLT stays in the guest (`KVM_X86_DISABLE_EXITS_HLT`): the CPU is the guest's.
    HaltNoExit,
    /// HLT, MWAIT and PAUSE stay in the guest, as far as this host can keep them there; HLT it must.
    Own,
    /// The guest never halts.
    Spin,
}

/// How a VM is made.
#[derive(Debug, Clone, Copy)]
pub struct VmConfig {
    /// Where the interrupt chips live.
    pub irqchip: Irqchip,
    /// What HLT does.
    pub idle: Idle,
    /// How long KVM polls before it lets a halted vCPU's CPU sleep, in nanoseconds; `None`: the host's setting.
    pub halt_poll_ns: Option<u32>,
}
