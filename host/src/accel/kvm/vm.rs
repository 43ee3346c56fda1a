//! A VM and its virtual CPUs, set up for the interrupt path: split irqchip, x2APIC, LAPICs that accept.

use crate::accel::{Idle, VmConfig};
use crate::boot::cpuid::withdraw_invariant_tsc;
use crate::chips::SplitIoapic;
use crate::clock::kernel_trusts_tsc;
use crate::error::{Error, Result};
use crate::sys::kvm::{Kvm, VcpuFd, VmFd};
use kvm_bindings as kb;
use pollvisor_core::ids::{Gsi, VcpuId};
use pollvisor_core::inject::{Accepted, Inject, InjectError, LineSource};
use pollvisor_core::route::{Chip, IOAPIC_PINS, Irqchip, Msi, PIC_PINS, RawRoute};
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::GuestMemoryMmap;

/// A VM.
#[derive(Debug)]
pub struct Vm {
    kvm: Kvm,
    fd: Arc<VmFd>,
    irqchip: Irqchip,
}

/// On a split irqchip the first GSI after the pins' that is reserved, like theirs: a level route on a reserved GSI makes
/// KVM exit on its vector's EOI. For vectors that no pin's route carries.
pub const EOI_GSI: u32 = IOAPIC_PINS;
/// How many such GSIs there are. KVM keeps the number of all reserved ones in a byte, and cuts off what is more.
pub const EOI_GSIS: u32 = 255 - EOI_GSI;

/// What a guest with CPUs of its own keeps.
pub const OWN_IDLE: u32 =
    kb::KVM_X86_DISABLE_EXITS_HLT | kb::KVM_X86_DISABLE_EXITS_MWAIT | kb::KVM_X86_DISABLE_EXITS_PAUSE;

/// Where KVM wants three free pages, below the LAPIC's.
const TSS: u32 = 0xfffb_d000;

impl Vm {
    /// A VM with the guest's memory in it, without vCPUs.
    ///
    /// # Errors
    /// When KVM is not there, or lacks something the interrupt path needs.
    pub fn new(config: &VmConfig, memory: Option<Arc<GuestMemoryMmap>>) -> Result<Self> {
        let kvm = Kvm::open()?;
        if let Some(missing) = kvm.missing() {
            return Err(
                Error::new(format!("this kernel's KVM has no {missing}")).remedy("a newer host kernel")
            );
        }
        let mut fd = kvm.create_vm()?;
        fd.set_tss_address(TSS)?;
        let kept = match config.idle {
            Idle::Halt | Idle::Spin => 0,
            Idle::HaltNoExit => kb::KVM_X86_DISABLE_EXITS_HLT,
            Idle::Own => {
                OWN_IDLE & kvm.capability(kb::KVM_CAP_X86_DISABLE_EXITS) | kb::KVM_X86_DISABLE_EXITS_HLT
            }
        };
        if kept != 0 {
            if kvm.capability(kb::KVM_CAP_X86_DISABLE_EXITS) & kb::KVM_X86_DISABLE_EXITS_HLT == 0 {
                return Err(Error::new(
                    "this host cannot keep HLT inside the guest (KVM_CAP_X86_DISABLE_EXITS)",
                )
                .remedy("--guest-idle hlt or spin, and no --overcommit cpu-pm=on"));
            }
            fd.enable(kb::KVM_CAP_X86_DISABLE_EXITS, [u64::from(kept), 0, 0, 0])?;
        }
        if let Some(limit) = config.halt_poll_ns {
            fd.enable(kb::KVM_CAP_HALT_POLL, [u64::from(limit), 0, 0, 0])?;
        }
        match config.irqchip {
            Irqchip::None => {}
            Irqchip::Split => {
                fd.enable(kb::KVM_CAP_SPLIT_IRQCHIP, [u64::from(EOI_GSI + EOI_GSIS), 0, 0, 0])?
            }
            Irqchip::Kernel => fd.create_irqchip()?,
        }
        if config.irqchip != Irqchip::None {
            let api = kb::KVM_X2APIC_API_USE_32BIT_IDS | kb::KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
            fd.enable(kb::KVM_CAP_X2APIC_API, [u64::from(api), 0, 0, 0])?;
        }
        if let Some(memory) = memory {
            fd.map_memory(memory)?;
        }
        Ok(Self { kvm, fd: Arc::new(fd), irqchip: config.irqchip })
    }

    /// The handle to KVM's VM.
    #[must_use]
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// What KVM can do.
    #[must_use]
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// A vCPU as after a reset: all but the first wait for INIT and SIPI.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create_bare_vcpu(&self, id: VcpuId, cpuid: &[kb::kvm_cpuid_entry2]) -> Result<VcpuFd> {
        let vcpu = self.fd.create_vcpu(id).map_err(|e| e.context(format!("vCPU {}", id.0)))?;
        let mut cpuid = cpuid.to_vec();
        withdraw_invariant_tsc(&mut cpuid, kernel_trusts_tsc());
        vcpu.set_cpuid(&cpuid)?;
        Ok(vcpu)
    }

    /// A vCPU whose LAPIC is in x2APIC mode, switched on, and accepts interrupts; its registers are KVM's defaults.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create_vcpu(&self, id: VcpuId) -> Result<VcpuFd> {
        let mut cpuid = self.kvm.supported_cpuid()?;
        for entry in &mut cpuid {
            match entry.function {
                1 => {
                    entry.ebx = entry.ebx & 0x00ff_ffff | id.0 << 24;
                    entry.ecx |= X2APIC;
                }
                0xb | 0x1f => entry.edx = id.0,
                _ => {}
            }
        }
        let vcpu = self.create_bare_vcpu(id, &cpuid)?;
        if self.irqchip != Irqchip::None {
            let mut sregs = vcpu.sregs()?;
            sregs.apic_base |= APIC_ENABLED | APIC_X2APIC;
            vcpu.set_sregs(&sregs)?;
            let mut lapic = vcpu.lapic()?;
            lapic[SPURIOUS..SPURIOUS + 4].copy_from_slice(&(SOFTWARE_ENABLED | 0xff).to_le_bytes());
            vcpu.set_lapic(&lapic)?;
        }
        Ok(vcpu)
    }

    /// The way into this VM's guest.
    ///
    /// # Errors
    /// The kernel's, where it has chips of its own whose pins are to be driven one by one.
    pub fn injector(&self) -> Result<KvmInject> {
        let mut pins = Pins::None;
        if self.irqchip == Irqchip::Kernel {
            self.fd.set_gsi_routing(0, &pin_routes())?;
            pins = Pins::Kernel(Mutex::new([0; PINS]));
        }
        Ok(KvmInject { fd: self.fd.clone(), pins })
    }
}

const X2APIC: u32 = 1 << 21;
const APIC_ENABLED: u64 = 1 << 11;
const APIC_X2APIC: u64 = 1 << 10;
/// The spurious-interrupt vector register in the LAPIC's page (Intel SDM 12.9).
const SPURIOUS: usize = 0xf0;
const SOFTWARE_ENABLED: u32 = 1 << 8;

/// Whether `vector` waits in the interrupt request register of a LAPIC's page.
#[must_use]
pub fn requested(lapic: &crate::sys::kvm::Lapic, vector: u8) -> bool {
    const IRR: usize = 0x200;
    let at = IRR + usize::from(vector / 32) * 0x10 + usize::from(vector % 32 / 8);
    lapic[at] & 1 << (vector % 8) != 0
}

/// Takes all waiting interrupts out of a LAPIC, of a vCPU that does not run.
///
/// # Errors
/// The kernel's.
pub fn clear_requests(vcpu: &VcpuFd) -> Result<()> {
    const IRR: std::ops::Range<usize> = 0x200..0x280;
    let mut lapic = vcpu.lapic()?;
    lapic[IRR].fill(0);
    vcpu.set_lapic(&lapic)
}

const PINS: usize = 2 * PIC_PINS as usize + IOAPIC_PINS as usize;

const ALL_PINS: [(Chip, u32); PINS] = {
    let mut pins = [(Chip::Ioapic, 0); PINS];
    let mut at = 0;
    while at < PINS {
        #[allow(clippy::cast_possible_truncation, reason = "below 40")]
        let line = at as u32;
        pins[at] = match line {
            0..8 => (Chip::PicMaster, line),
            8..16 => (Chip::PicSlave, line - 8),
            _ => (Chip::Ioapic, line - 16),
        };
        at += 1;
    }
    pins
};

/// KVM's table for chips in the kernel: one GSI per pin, so that a pin can be driven alone. Our routes, not KVM's, say
/// what a GSI means.
#[must_use]
pub fn pin_routes() -> Vec<RawRoute> {
    ALL_PINS.map(|(chip, pin)| RawRoute::pin(line_of(chip, pin), chip, pin)).to_vec()
}

/// The GSI that a pin has in [`pin_routes`].
#[must_use]
pub fn line_of(chip: Chip, pin: u32) -> Gsi {
    Gsi(match chip {
        Chip::PicMaster => pin,
        Chip::PicSlave => PIC_PINS + pin,
        Chip::Ioapic => 2 * PIC_PINS + pin,
    })
}

/// Injects into a KVM guest: messages by `KVM_SIGNAL_MSI`, pins, where KVM has the chips, by `KVM_IRQ_LINE`.
#[derive(Debug)]
pub struct KvmInject {
    fd: Arc<VmFd>,
    pins: Pins,
}

/// Who has the chips' pins.
#[derive(Debug)]
enum Pins {
    /// Nobody.
    None,
    /// The kernel. Per pin the sources that raise it, one bit each.
    Kernel(Mutex<[u8; PINS]>),
    /// We.
    Split(Arc<SplitIoapic>),
}

impl KvmInject {
    /// The way into a guest whose I/O APIC is ours.
    #[must_use]
    pub fn with_ioapic(fd: Arc<VmFd>, chip: Arc<SplitIoapic>) -> Self {
        Self { fd, pins: Pins::Split(chip) }
    }
}

impl Inject for KvmInject {
    #[inline]
    fn msi(&self, msi: &Msi) -> std::result::Result<Accepted, InjectError> {
        match self.fd.signal_msi(msi) {
            Ok(true) => Ok(Accepted::default()),
            Ok(false) => Err(InjectError::Blocked),
            Err(errno) => Err(InjectError::Failed(errno)),
        }
    }

    fn pin(
        &self,
        chip: Chip,
        pin: u32,
        level: bool,
        source: LineSource,
    ) -> std::result::Result<(), InjectError> {
        let levels = match &self.pins {
            Pins::None => return Err(InjectError::Failed(libc::ENXIO)),
            Pins::Kernel(levels) => levels,
            Pins::Split(ioapic) => return ioapic.set_line(chip, pin, level, source),
        };
        let line = line_of(chip, pin);
        let bit = match source {
            LineSource::Edge => 1,
            LineSource::Resample => 2,
        };
        // The OR over the sources and the pin write are one step (race 4).
        let mut levels = levels.lock().unwrap_or_else(PoisonError::into_inner);
        let sources = &mut levels[line.0 as usize];
        *sources = if level { *sources | bit } else { *sources & !bit };
        let failed = |error: Error| InjectError::Failed(error.errno().unwrap_or(libc::EIO));
        self.fd.irq_line(line, *sources != 0).map_err(failed)
    }
}

/// Where the kernel says how long a halted vCPU is polled for.
#[must_use]
pub fn host_halt_poll_ns() -> Option<u64> {
    std::fs::read_to_string("/sys/module/kvm/parameters/halt_poll_ns").ok()?.trim().parse().ok()
}
