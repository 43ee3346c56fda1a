//! KVM's side: a VM with a split irqchip, a few vCPUs, and guest code of a few instructions at a time.
//!
//! No vCPU is in `KVM_RUN` between steps. The gates of the IDT `out` their vector and send no EOI: what a vCPU takes is seen,
//! and stays in service.

use super::steps::{EXITING, IDS};
use kvm_bindings as kb;
use pollvisor::accel::kvm::Vm;
use pollvisor::accel::{Idle, VmConfig};
use pollvisor::error::{Error, Result};
use pollvisor::sys::kvm::{Exit, Lapic, VcpuFd};
use pollvisor_core::ids::{Gsi, VcpuId};
use pollvisor_core::lapic::Mode;
use pollvisor_core::route::{Irqchip, Msi, RawRoute};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 0x1_0000;
const GATES: u64 = 0x1000;
const GATE_SIZE: u64 = 16;
const IDT: u64 = 0x3000;
const GDT: u64 = 0x3800;
pub const RESULT: u64 = 0x8000;
pub const STACK: u64 = 0xf000;
const CODE_SELECTOR: u16 = 8;

const TPR: usize = 0x80;
/// In a LAPIC's page.
pub const ISR: usize = 0x100;
/// Behind the ISR.
pub const TMR: usize = 0x180;

/// A gate was passed; the vector is in al.
pub const GATE_PORT: u16 = 0x10;
/// A routine is over.
pub const DONE_PORT: u16 = 0x11;
/// RFLAGS: interrupts are let in.
pub const IF: u64 = 1 << 9;
const MSR_TSC: u32 = 0x10;
const GENERAL_PROTECTION: u8 = 13;

/// What a vCPU is made to do: each ends by `out DONE_PORT, al`. 32-bit, flat, no paging, IF = 0 but for `Take`, which has it from
/// the start: what waits is injected before the first instruction.
#[derive(Debug, Clone, Copy)]
pub enum Routine {
    /// Nothing: KVM carries out what it put off until the guest runs.
    Nothing,
    /// Lets an interrupt in.
    Take,
    /// Stores so many bytes.
    Store(usize),
    /// Loads so many bytes.
    Load(usize),
    /// WRMSR.
    WriteMsr,
    /// Halts with interrupts let in: for a LAPIC that is not in the kernel.
    Halt,
}

impl Routine {
    const ALL: [(Self, &'static [u8]); 10] = [
        (Self::Nothing, &[]),
        (Self::Take, &[0x90, 0xfa]),           // nop; cli
        (Self::Store(4), &[0x89, 0x07]),       // mov [edi], eax
        (Self::Store(2), &[0x66, 0x89, 0x07]), // mov [edi], ax
        (Self::Store(1), &[0x88, 0x07]),       // mov [edi], al
        (Self::Load(4), &[0x8b, 0x07]),        // mov eax, [edi]
        (Self::Load(2), &[0x0f, 0xb7, 0x07]),  // movzx eax, word [edi]
        (Self::Load(1), &[0x0f, 0xb6, 0x07]),  // movzx eax, byte [edi]
        (Self::WriteMsr, &[0x0f, 0x30]),       // wrmsr
        (Self::Halt, &[0xfb, 0xf4]),           // sti; hlt
    ];
    /// mov [RESULT], eax; out DONE_PORT, al
    const END: [u8; 7] = [0xa3, 0x00, 0x80, 0x00, 0x00, 0xe6, 0x11];

    const fn index(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Take => 1,
            Self::Store(bytes) => 4 - bytes.trailing_zeros() as u64,
            Self::Load(bytes) => 7 - bytes.trailing_zeros() as u64,
            Self::WriteMsr => 8,
            Self::Halt => 9,
        }
    }

    /// Where its code is.
    pub const fn address(self) -> u64 {
        0x4000 + 0x20 * self.index()
    }
}

/// What a routine came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// The gate that was passed in place of the routine's end.
    pub vector: Option<u8>,
    /// Vectors whose EOI came out.
    pub exits: Vec<u8>,
    /// eax at the end.
    pub eax: u32,
}

impl Ran {
    /// Whether it ended in a #GP.
    #[must_use]
    pub fn faulted(&self) -> bool {
        self.vector == Some(GENERAL_PROTECTION)
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Kernel {
    vm: Vm,
    vcpus: Vec<VcpuFd>,
    memory: Arc<GuestMemoryMmap>,
    flat: kb::kvm_sregs,
    tsc: u64,
    /// See [`Kernel::ends_by_itself`].
    auto_eoi: bool,
    /// See [`Kernel::tpr`].
    low_tpr: bool,
}

pub fn outside(error: impl std::fmt::Display) -> Error {
    Error::new(format!("guest memory: {error}"))
}

/// The guest's memory, with all routines and gates in it.
///
/// # Errors
/// ENOMEM.
pub fn image() -> Result<GuestMemoryMmap> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).map_err(outside)?;
    let put = |bytes: &[u8], at: u64| memory.write_slice(bytes, GuestAddress(at)).map_err(outside);
    for (routine, code) in Routine::ALL {
        put(&[code, &Routine::END].concat(), routine.address())?;
    }
    for vector in 0..=u8::MAX {
        let at = GATES + GATE_SIZE * u64::from(vector);
        // mov al, vector; out GATE_PORT, al; hlt
        put(&[0xb0, vector, 0xe6, 0x10, 0xf4], at)?;
        let [a, b, ..] = at.to_le_bytes();
        let [c, d] = CODE_SELECTOR.to_le_bytes();
        put(&[a, b, c, d, 0, 0x8e, 0, 0], IDT + 8 * u64::from(vector))?;
    }
    let segments = [0u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    put(&segments.map(u64::to_le_bytes).concat(), GDT)?;
    Ok(memory)
}

/// Flat 32-bit segments, no paging.
pub fn flat(sregs: kb::kvm_sregs) -> kb::kvm_sregs {
    let data = kb::kvm_segment {
        limit: u32::MAX,
        selector: 16,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let table = |base, limit| kb::kvm_dtable { base, limit, ..Default::default() };
    kb::kvm_sregs {
        cs: kb::kvm_segment { selector: CODE_SELECTOR, type_: 11, ..data },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        gdt: table(GDT, 0x17),
        idt: table(IDT, 0x7ff),
        cr0: sregs.cr0 | 1,
        ..sregs
    }
}

impl Kernel {
    /// vCPUs with [`IDS`] whose LAPICs are in `mode` and software-enabled; the EOIs of [`EXITING`] come out.
    ///
    /// # Errors
    /// When KVM is not there, or lacks something.
    pub fn new(mode: Mode) -> Result<Self> {
        let memory = Arc::new(image()?);
        let config = VmConfig { irqchip: Irqchip::Split, idle: Idle::Halt, halt_poll_ns: None };
        let vm = Vm::new(&config, Some(memory.clone()))?;
        // Else KVM leaves LINT0 of the first vCPU in ExtINT mode, unmasked, where the manual has it masked.
        vm.fd()
            .enable(kb::KVM_CAP_DISABLE_QUIRKS, [u64::from(kb::KVM_X86_QUIRK_LINT0_REENABLED), 0, 0, 0])?;
        let mut vcpus = Vec::new();
        for id in IDS {
            let mut cpuid = vm.kvm().supported_cpuid()?;
            for entry in &mut cpuid {
                match entry.function {
                    1 => {
                        entry.ebx = entry.ebx & 0x00ff_ffff | id << 24;
                        // x2APIC, TSC deadline.
                        entry.ecx |= 1 << 21 | 1 << 24;
                    }
                    0xb | 0x1f => entry.edx = id,
                    _ => {}
                }
            }
            let vcpu = vm.create_bare_vcpu(VcpuId(id), &cpuid)?;
            vcpu.make_runnable()?;
            let mut sregs = flat(vcpu.sregs()?);
            if mode == Mode::X2Apic {
                sregs.apic_base |= 1 << 10;
            }
            vcpu.set_sregs(&sregs)?;
            let mut page = vcpu.lapic()?;
            page[0xf1] |= 1;
            vcpu.set_lapic(&page)?;
            vcpus.push(vcpu);
        }
        let flat = vcpus[0].sregs()?;
        let tsc = vcpus[0].msr(MSR_TSC)?.ok_or_else(|| Error::new("KVM does not tell the guest's TSC"))?;
        // By ID, so that they match in both modes.
        let messages = EXITING.into_iter().flat_map(|vector| {
            IDS.map(|id| Msi { data: u32::from(vector) | 3 << 14, ..Msi::fixed(id, vector) })
        });
        let routes: Vec<RawRoute> =
            (0..).zip(messages).map(|(gsi, message)| RawRoute::msi(Gsi(gsi), message)).collect();
        vm.fd().set_gsi_routing(0, &routes)?;
        let mut this = Self { vm, vcpus, memory, flat, tsc, auto_eoi: false, low_tpr: true };
        for vcpu in 0..IDS.len() {
            this.run(vcpu, Routine::Nothing, 0, 0)?;
        }
        this.probe()?;
        Ok(this)
    }

    /// Whether this KVM ends an interrupt as it delivers it: no guest code sent an EOI, and yet the vector is not in service
    /// when the handler's first instruction runs, and the exit for its EOI comes. KVM on VMX and SVM does not; one that
    /// emulates the guest's instructions may. [`take`](Self::take) then puts the vector where it belongs.
    #[must_use]
    pub fn ends_by_itself(&self) -> bool {
        self.auto_eoi
    }

    /// Finds that out, and leaves the LAPIC as it was.
    fn probe(&mut self) -> Result<()> {
        let vector = EXITING[0];
        self.msi(&Msi::fixed(IDS[0], vector))?;
        let ran = self.run(0, Routine::Take, 0, 0)?;
        if ran.vector != Some(vector) {
            return Err(Error::new(format!("vector {vector:#x} was not taken by an idle vCPU: {ran:x?}")));
        }
        self.auto_eoi = self.vcpus[0].lapic()?[ISR..TMR].iter().all(|byte| *byte == 0);
        // The exit may come before the handler's first instruction is over, or when the guest runs next.
        let mut exits = ran.exits;
        exits.extend(self.run(0, Routine::Nothing, 0, 0)?.exits);
        if exits != if self.auto_eoi { vec![vector] } else { Vec::new() } {
            return Err(Error::new(format!("{vector:#x} was taken, no EOI sent; ended: {exits:x?}")));
        }
        self.change(0, |page| page[ISR..TMR].fill(0))?;
        self.run(0, Routine::Nothing, 0, 0)?;
        const BOTH_HALVES: u8 = 0x2f;
        self.change(0, |page| page[TPR] = BOTH_HALVES)?;
        self.run(0, Routine::Nothing, 0, 0)?;
        self.low_tpr = self.vcpus[0].lapic()?[TPR] == BOTH_HALVES;
        self.change(0, |page| page[TPR] = 0)?;
        self.run(0, Routine::Nothing, 0, 0).map(drop)
    }

    /// A TPR that this KVM keeps (28).
    #[must_use]
    pub const fn tpr(&self, value: u64) -> u64 {
        if self.low_tpr { value } else { value & !0xf }
    }

    /// The vCPU's handle.
    #[must_use]
    pub fn vcpu(&self, vcpu: usize) -> &VcpuFd {
        &self.vcpus[vcpu]
    }

    /// Lets one interrupt in.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take(&mut self, vcpu: usize) -> Result<Ran> {
        let mut ran = self.run(vcpu, Routine::Take, 0, 0)?;
        if let Some(vector) = ran.vector.filter(|vector| *vector >= super::known::FIRST && self.auto_eoi) {
            self.change(vcpu, |page| {
                page[ISR + usize::from(vector / 32) * 16 + usize::from(vector % 32 / 8)] |= 1 << (vector % 8);
            })?;
            // Takes the exit of an EOI that nobody sent.
            ran.exits.extend(self.run(vcpu, Routine::Nothing, 0, 0)?.exits);
            ran.exits.retain(|ended| *ended != vector);
        }
        Ok(ran)
    }

    /// The guest's TSC when all began.
    #[must_use]
    pub fn tsc(&self) -> u64 {
        self.tsc
    }

    /// Whether an APIC accepted the message.
    ///
    /// # Errors
    /// The kernel's.
    pub fn msi(&self, msi: &Msi) -> Result<bool> {
        match self.vm.fd().signal_msi(msi) {
            Ok(accepted) => Ok(accepted),
            // Known difference 10.
            Err(libc::EPERM) => Ok(false),
            Err(errno) => {
                Err(Error::os(format!("injecting {msi:x?}"), &std::io::Error::from_raw_os_error(errno)))
            }
        }
    }

    /// The vCPU does `routine`. `address` is in edi and ecx, `value` in eax, edx is 0.
    ///
    /// # Errors
    /// The kernel's, and any exit that is not expected.
    pub fn run(&mut self, vcpu: usize, routine: Routine, address: u32, value: u32) -> Result<Ran> {
        let vcpu = &mut self.vcpus[vcpu];
        vcpu.set_regs(&kb::kvm_regs {
            rip: routine.address(),
            rax: value.into(),
            rcx: address.into(),
            rdi: address.into(),
            rsp: STACK,
            rflags: if matches!(routine, Routine::Take) { IF | 2 } else { 2 },
            ..Default::default()
        })?;
        let mut ran = Ran::default();
        loop {
            match vcpu.run()? {
                Exit::PortWrite { port: DONE_PORT, .. } => break,
                Exit::PortWrite { port: GATE_PORT, data, .. } => {
                    ran.vector = data.first().copied();
                    break;
                }
                Exit::IoapicEoi { vector } => ran.exits.push(vector),
                Exit::Interrupted => {}
                other => return Err(Error::new(format!("unexpected exit {other:x?} in {routine:?}"))),
            }
        }
        ran.eax = self.memory.read_obj(GuestAddress(RESULT)).map_err(outside)?;
        Ok(ran)
    }

    /// Rewrites the LAPIC's page.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&self, vcpu: usize, f: impl FnOnce(&mut Lapic)) -> Result<()> {
        let mut page = self.vcpus[vcpu].lapic()?;
        f(&mut page);
        self.vcpus[vcpu].set_lapic(&page)
    }

    /// The handler of an NMI has returned, as far as the processor is concerned. Not by IRET: KVM's emulator, which runs the
    /// guest where the processor cannot, knows it in real mode only (`em_iret`).
    ///
    /// # Errors
    /// The kernel's.
    pub fn nmi_done(&self, vcpu: usize) -> Result<()> {
        let mut events = self.vcpus[vcpu].events()?;
        events.nmi.masked = 0;
        self.vcpus[vcpu].set_events(&events)
    }

    /// CR8 as the host sets it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_cr8(&self, vcpu: usize, value: u64) -> Result<()> {
        let sregs = self.vcpus[vcpu].sregs()?;
        self.vcpus[vcpu].set_sregs(&kb::kvm_sregs { cr8: value, ..sregs })
    }

    /// Lets KVM act on an INIT or a SIPI, and puts the vCPU back where routines run; the vector of a SIPI that started it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn settle(&self, vcpu: usize) -> Result<Settled> {
        let vcpu = &self.vcpus[vcpu];
        let waits = vcpu.mp_state()? == kb::KVM_MP_STATE_INIT_RECEIVED;
        let sregs = vcpu.sregs()?;
        let reset = sregs.cr0 & 1 == 0;
        let start = sregs.cs.selector;
        let started = (!reset && start != CODE_SELECTOR).then(|| start.to_be_bytes()[0]);
        if reset || started.is_some() {
            let kb::kvm_sregs { apic_base, cr8, .. } = sregs;
            vcpu.set_sregs(&kb::kvm_sregs { apic_base, cr8, ..self.flat })?;
        }
        Ok(Settled { waits, reset, started, apic_base: sregs.apic_base })
    }
}

/// See [`Kernel::settle`].
#[derive(Debug, Clone, Copy)]
pub struct Settled {
    /// It waits for a SIPI.
    pub waits: bool,
    /// An INIT was acted on.
    pub reset: bool,
    /// The vector by which it started just now.
    pub started: Option<u8>,
    /// The APIC base register.
    pub apic_base: u64,
}
