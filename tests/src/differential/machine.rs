//! A VM with one vCPU and a guest of a few instructions: what it takes to end an interrupt or touch a register.
//!
//! The guest never takes an interrupt (IF is 0): what the LAPIC is asked for stays in its IRR to be looked at.
//! [`Machine::serve`] puts a vector in service by `KVM_SET_LAPIC`, [`Machine::end`] lets the guest end it.

use kvm_bindings as kb;
use pollvisor::accel::kvm::Vm;
use pollvisor::accel::{Idle, VmConfig};
use pollvisor::error::{Error, Result};
use pollvisor::sys::kvm::{ChipBytes, Exit, Lapic, VcpuFd, chip_bytes, chip_from};
use pollvisor_core::ids::VcpuId;
use pollvisor_core::route::Irqchip;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where the I/O APIC's registers are.
pub const IOAPIC_BASE: u32 = 0xfec0_0000;

const MEMORY: usize = 0x1_0000;
const RESULT: u64 = 0x8000;
const DONE: u16 = 0x10;

/// `out 0x10, al` ends each of them. 32-bit, flat, no paging.
const ROUTINES: [(u64, &[u8]); 6] = [
    (WRITE_4, &[0x89, 0x07, 0xe6, 0x10]),       // mov [edi], eax
    (WRITE_2, &[0x66, 0x89, 0x07, 0xe6, 0x10]), // mov [edi], ax
    (WRITE_1, &[0x88, 0x07, 0xe6, 0x10]),       // mov [edi], al
    (READ, &[0x8b, 0x07, 0xa3, 0x00, 0x80, 0x00, 0x00, 0xe6, 0x10]), // mov eax, [edi]; mov [RESULT], eax
    (NOTHING, &[0xe6, 0x10]),
    (END, &[0x0f, 0x30, 0xe6, 0x10]), // wrmsr
];
const WRITE_4: u64 = 0x1000;
const WRITE_2: u64 = 0x1100;
const WRITE_1: u64 = 0x1200;
const READ: u64 = 0x1300;
const END: u64 = 0x1400;
const NOTHING: u64 = 0x1500;
const X2APIC_EOI: u64 = 0x80b;

/// In a LAPIC's page: ISR, TMR and IRR, one after the other.
pub const ISR: usize = 0x100;
/// Whether the vector was asked for by a level.
pub const TMR: usize = 0x180;
/// Vectors that wait.
pub const IRR: usize = 0x200;
const IRR_END: usize = 0x280;

/// See the module's text.
#[derive(Debug)]
pub struct Machine {
    vm: Vm,
    vcpu: Option<VcpuFd>,
    memory: Arc<GuestMemoryMmap>,
    /// Whether EOIs can exit.
    exits: bool,
}

impl Machine {
    /// One with these chips; without any it has no vCPU either.
    ///
    /// # Errors
    /// When KVM is not there, or lacks something.
    pub fn new(irqchip: Irqchip) -> Result<Self> {
        let outside = |e: &dyn std::fmt::Display| Error::new(format!("guest memory: {e}"));
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).map_err(|e| outside(&e))?;
        for (at, code) in ROUTINES {
            memory.write_slice(code, GuestAddress(at)).map_err(|e| outside(&e))?;
        }
        let memory = Arc::new(memory);
        let config = VmConfig { irqchip, idle: Idle::Halt, halt_poll_ns: None };
        let vm = Vm::new(&config, Some(memory.clone()))?;
        let vcpu = (irqchip != Irqchip::None).then(|| vm.create_vcpu(VcpuId(0))).transpose()?;
        if let Some(vcpu) = &vcpu {
            let mut sregs = vcpu.sregs()?;
            let flat = kb::kvm_segment {
                limit: u32::MAX,
                selector: 16,
                type_: 3,
                present: 1,
                db: 1,
                s: 1,
                g: 1,
                ..Default::default()
            };
            sregs.cs = kb::kvm_segment { selector: 8, type_: 11, ..flat };
            (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (flat, flat, flat, flat, flat);
            sregs.cr0 |= 1;
            vcpu.set_sregs(&sregs)?;
        }
        Ok(Self { vm, vcpu, memory, exits: irqchip == Irqchip::Split })
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    fn vcpu(&self) -> Result<&VcpuFd> {
        self.vcpu.as_ref().ok_or_else(|| Error::new("this VM has no vCPU"))
    }

    /// The LAPIC's page.
    ///
    /// # Errors
    /// The kernel's.
    pub fn lapic(&self) -> Result<Lapic> {
        self.vcpu()?.lapic()
    }

    /// Rewrites the LAPIC's page.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&self, f: impl FnOnce(&mut Lapic)) -> Result<()> {
        let mut lapic = self.lapic()?;
        f(&mut lapic);
        self.vcpu()?.set_lapic(&lapic)
    }

    /// Forgets what the LAPIC was asked for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forget(&self) -> Result<()> {
        self.change(|lapic| lapic[ISR..IRR_END].fill(0))
    }

    /// Puts `vector` in service, as a level interrupt, and nothing else.
    ///
    /// # Errors
    /// The kernel's.
    pub fn serve(&self, vector: u8) -> Result<()> {
        let (at, bit) = (usize::from(vector / 32) * 16 + usize::from(vector % 32 / 8), 1 << (vector % 8));
        self.change(|lapic| {
            lapic[ISR..IRR_END].fill(0);
            lapic[ISR + at] |= bit;
            lapic[TMR + at] |= bit;
        })
    }

    /// The guest ends the interrupt in service; the vector, if that came out as an exit.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end(&mut self) -> Result<Option<u8>> {
        // Where KVM emulates the guest, both instructions are done before the exit is.
        let exit = self.call(END, 0, 0)?;
        if self.exits && exit.is_none() { self.call(NOTHING, 0, 0) } else { Ok(exit) }
    }

    /// The guest runs, so that KVM carries out what it put off until then.
    ///
    /// # Errors
    /// The kernel's.
    pub fn visit(&mut self) -> Result<()> {
        self.call(NOTHING, 0, 0).map(drop)
    }

    /// Switches the LAPIC on or off by its software enable bit.
    ///
    /// # Errors
    /// The kernel's.
    pub fn switch_lapic(&self, on: bool) -> Result<()> {
        const SPURIOUS: usize = 0xf1;
        self.change(|lapic| lapic[SPURIOUS] = lapic[SPURIOUS] & !1 | u8::from(on))
    }

    /// The guest writes the low `length` bytes (1, 2 or 4) of `value`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&mut self, address: u32, value: u32, length: usize) -> Result<()> {
        let routine = match length {
            1 => WRITE_1,
            2 => WRITE_2,
            _ => WRITE_4,
        };
        self.call(routine, address, value).map(drop)
    }

    /// The guest reads 4 bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&mut self, address: u32) -> Result<u32> {
        self.call(READ, address, 0)?;
        self.memory.read_obj(GuestAddress(RESULT)).map_err(|e| Error::new(format!("guest memory: {e}")))
    }

    fn call(&mut self, routine: u64, address: u32, value: u32) -> Result<Option<u8>> {
        let vcpu = self.vcpu.as_mut().ok_or_else(|| Error::new("this VM has no vCPU"))?;
        // The last call's port access ends when the vCPU is entered again (KVM_RUN in the kernel's api.rst). Else it would end
        // after the registers below are set, and would step over an `out` at the same address.
        vcpu.set_immediate_exit(true);
        let other = vcpu.run().map(|exit| (exit != Exit::Interrupted).then(|| format!("{exit:?}")));
        vcpu.set_immediate_exit(false);
        if let Some(other) = other? {
            return Err(Error::new(format!("unexpected exit {other} before {routine:#x}")));
        }
        vcpu.set_regs(&kb::kvm_regs {
            rip: routine,
            rax: value.into(),
            rcx: X2APIC_EOI,
            rdi: address.into(),
            rflags: 2,
            ..Default::default()
        })?;
        let mut ended = None;
        loop {
            match vcpu.run()? {
                Exit::PortWrite { port: DONE, .. } => return Ok(ended),
                Exit::IoapicEoi { vector } => ended = Some(vector),
                Exit::Interrupted => {}
                other => return Err(Error::new(format!("unexpected exit {other:?} in {routine:#x}"))),
            }
        }
    }

    /// The state of a chip in the kernel.
    ///
    /// # Errors
    /// The kernel's.
    pub fn chip(&self, id: u32) -> Result<ChipBytes> {
        self.vm.fd().irqchip(id).map(|state| chip_bytes(&state))
    }

    /// Sets the state of a chip in the kernel.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_chip(&self, id: u32, bytes: &ChipBytes) -> Result<()> {
        self.vm.fd().set_irqchip(&chip_from(id, bytes))
    }
}
