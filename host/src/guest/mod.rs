//! The built-in guest: 64-bit from its first instruction, one handler for every vector, a record page per vCPU.
//!
//! ```text
//!   0x1000 GDT   0x2000 IDT   0x3000 PML4, PDPT, 4 PDs (4 GiB, identity)   0x10000 code
//!   0x40000 + 4 KiB n: stack of vCPU n     2 MiB + 32 KiB n: records of vCPU n     4 MiB to 8 MiB: for devices
//! ```

pub mod driver;
pub mod puppet;
pub mod scribble;

use crate::accel::kvm::Exits;
use crate::error::{Error, Result};
use crate::sys::guest_code::{FAULT_PORT, GATE_SIZE, GATES, NUMBER, RECORD_SIZE, RUNS, RUNS_KEPT, image};
use crate::sys::kvm::{Exit, VcpuFd};
use kvm_bindings as kb;
use pollvisor_core::ids::VcpuId;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// vCPUs that fit.
pub const MAX_VCPUS: u32 = 64;
/// The first vector a device may use: below are the processor's own.
pub const FIRST_VECTOR: u8 = 0x20;
/// Vectors for devices on one vCPU: 0xff is the spurious one.
pub const VECTORS_PER_VCPU: u32 = 0xff - FIRST_VECTOR as u32;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const PML4: u64 = 0x3000;
const PDPT: u64 = 0x4000;
const PDS: u64 = 0x5000;
const CODE: u64 = 0x1_0000;
/// Where the code of [`scribble`] goes, and what it reads.
const SCRIBBLE: u64 = 0x2_0000;
const SCRIBBLE_TABLE: u64 = 0x2_1000;
const STACKS: u64 = 0x4_0000;
const STACK_SIZE: u64 = 0x1000;
const RECORDS: u64 = 0x20_0000;
const RECORDS_SIZE: u64 = 256 * RECORD_SIZE;
/// The guest's memory, in bytes.
pub const MEMORY: usize = 8 << 20;
/// Memory that the guest itself leaves alone: for devices.
pub const SCRATCH: std::ops::Range<u64> = 4 << 20..8 << 20;

const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 16;

/// The guest's memory, with everything in it.
#[derive(Debug, Clone)]
pub struct Guest {
    memory: Arc<GuestMemoryMmap>,
}

/// What a vCPU of the built-in guest does between interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Halts.
    Halt = 0,
    /// Spins.
    Spin = 1,
    /// Makes the accesses that its [`Puppet`](puppet::Puppet) asks for, and halts.
    Puppet = 2,
}

fn outside(error: impl std::fmt::Display) -> Error {
    Error::new(format!("guest memory: {error}"))
}

impl Guest {
    /// Builds it.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new() -> Result<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).map_err(outside)?;
        let put = |at: u64, words: &[u64]| -> Result<()> {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            memory.write_slice(&bytes, GuestAddress(at)).map_err(outside)
        };
        // Null, 64-bit code, data (Intel SDM 3.4.5).
        put(GDT, &[0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff])?;
        let gates: Vec<u64> = (0..256).flat_map(|n| gate(CODE + (GATES + n * GATE_SIZE) as u64)).collect();
        put(IDT, &gates)?;
        const PRESENT_WRITABLE: u64 = 3;
        const LARGE: u64 = 1 << 7;
        put(PML4, &[PDPT | PRESENT_WRITABLE])?;
        put(PDPT, &[0, 1, 2, 3].map(|n| (PDS + n * 0x1000) | PRESENT_WRITABLE))?;
        put(PDS, &(0..4 * 512).map(|n| n << 21 | LARGE | PRESENT_WRITABLE).collect::<Vec<_>>())?;
        memory.write_slice(&image(), GuestAddress(CODE)).map_err(outside)?;
        Ok(Self { memory: Arc::new(memory) })
    }

    /// The memory to map into the VM.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// Sets a vCPU up to run it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn prepare(&self, vcpu: &VcpuFd, role: Role) -> Result<()> {
        let mut sregs = vcpu.sregs()?;
        let segment = kb::kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
        sregs.cs = kb::kvm_segment { selector: CODE_SELECTOR, type_: 11, l: 1, ..segment };
        let data = kb::kvm_segment { selector: DATA_SELECTOR, type_: 3, db: 1, ..segment };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.gdt = kb::kvm_dtable { base: GDT, limit: 23, ..Default::default() };
        sregs.idt = kb::kvm_dtable { base: IDT, limit: 4095, ..Default::default() };
        const PE_ET_NE_PG: u64 = 1 | 1 << 4 | 1 << 5 | 1 << 31;
        const PAE: u64 = 1 << 5;
        const LME_LMA: u64 = 1 << 8 | 1 << 10;
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (PE_ET_NE_PG, PML4, PAE, LME_LMA);
        vcpu.set_sregs(&sregs)?;
        vcpu.make_runnable()?;
        let id = u64::from(vcpu.id().0);
        vcpu.set_regs(&kb::kvm_regs {
            rip: CODE,
            rsp: STACKS + (id + 1) * STACK_SIZE,
            rbx: Self::records(vcpu.id()),
            rdi: role as u64,
            rflags: 2,
            ..Default::default()
        })
    }

    /// The guest-physical address of a vCPU's records.
    fn records(vcpu: VcpuId) -> u64 {
        RECORDS + u64::from(vcpu.0) * RECORDS_SIZE
    }

    fn record(vcpu: VcpuId, vector: u8) -> u64 {
        Self::records(vcpu) + u64::from(vector) * RECORD_SIZE
    }

    /// Whether the vCPU has executed its first instruction.
    #[must_use]
    pub fn is_running(&self, vcpu: VcpuId) -> bool {
        self.handled(vcpu, 0) > 0
    }

    /// How often the handler of `vector` ran on `vcpu`.
    #[must_use]
    pub fn handled(&self, vcpu: VcpuId, vector: u8) -> u64 {
        // Acquire: pairs with the guest's store of the count, after that of the time.
        self.memory.load(GuestAddress(Self::record(vcpu, vector)), Ordering::Acquire).unwrap_or(0)
    }

    /// Before signal `number` of a vector is made (the first is 1): tells the handler, which notes what it finds.
    pub fn announce(&self, vcpu: VcpuId, vector: u8, number: u64) {
        // Release: the signal that follows is a system call or a store that the guest sees later.
        let stored =
            self.memory.store(number, GuestAddress(Self::record(vcpu, vector) + NUMBER), Ordering::Release);
        debug_assert!(stored.is_ok(), "records are in the guest's memory");
    }

    /// The number of the last signal announced.
    #[must_use]
    pub fn announced(&self, vcpu: VcpuId, vector: u8) -> u64 {
        let at = Self::record(vcpu, vector) + NUMBER;
        self.memory.load(GuestAddress(at), Ordering::Relaxed).unwrap_or(0)
    }

    /// A vCPU's first instruction, of one that a thread stands in for.
    pub(crate) fn began(&self, vcpu: VcpuId) {
        self.count(vcpu, 0);
    }

    /// A run of the handler of `vector` at `time`, in TSC cycles, as the guest's own handler writes it. Of a vCPU that the
    /// calling thread stands in for.
    #[inline]
    pub(crate) fn handle(&self, vcpu: VcpuId, vector: u8, time: u64) {
        let at = Self::record(vcpu, vector);
        let run = at + RUNS + self.handled(vcpu, vector) % RUNS_KEPT * 16;
        // Acquire: pairs with the Release in `announce`, for the number of a signal whose post was seen.
        let number = self.memory.load::<u64>(GuestAddress(at + NUMBER), Ordering::Acquire).unwrap_or(0);
        let store = |at, value| {
            let stored = self.memory.store::<u64>(value, GuestAddress(at), Ordering::Relaxed);
            debug_assert!(stored.is_ok(), "records are in the guest's memory");
        };
        store(run, time);
        store(run + 8, number);
        self.count(vcpu, vector);
    }

    fn count(&self, vcpu: VcpuId, vector: u8) {
        let runs = self.handled(vcpu, vector) + 1;
        // Release: pairs with the Acquire in `handled`, for the run's time and number.
        let stored = self.memory.store(runs, GuestAddress(Self::record(vcpu, vector)), Ordering::Release);
        debug_assert!(stored.is_ok(), "records are in the guest's memory");
    }

    /// Of the handler's run number `run` (from 0), one of the last [`RUNS_KEPT`]: the guest's TSC at its first
    /// instruction, and the number of the last signal announced by then.
    #[must_use]
    pub fn handler_run(&self, vcpu: VcpuId, vector: u8, run: u64) -> (u64, u64) {
        let at = Self::record(vcpu, vector) + RUNS + run % RUNS_KEPT * 16;
        let load = |at| self.memory.load(GuestAddress(at), Ordering::Relaxed).unwrap_or(0);
        (load(at), load(at + 8))
    }
}

/// A 64-bit interrupt gate (Intel SDM 7.14.1).
fn gate(offset: u64) -> [u64; 2] {
    const PRESENT_INTERRUPT: u64 = 0x8e00 << 32;
    [
        offset & 0xffff | u64::from(CODE_SELECTOR) << 16 | PRESENT_INTERRUPT | (offset >> 16 & 0xffff) << 48,
        offset >> 32,
    ]
}

/// The exits of a vCPU that has nothing but its memory.
#[derive(Debug, Clone, Copy)]
pub struct Bare;

impl Exits for Bare {
    fn exit(&self, vcpu: VcpuId, exit: &mut Exit<'_>) -> Result<()> {
        match exit {
            Exit::Interrupted | Exit::IoapicEoi { .. } => Ok(()),
            Exit::PortWrite { port: FAULT_PORT, data, .. } => {
                let exception = data.first().copied().unwrap_or(0);
                Err(Error::new(format!("vCPU {}: the guest took exception {exception}", vcpu.0)))
            }
            other => Err(Error::new(format!("vCPU {}: unexpected exit {other:?}", vcpu.0))),
        }
    }
}
