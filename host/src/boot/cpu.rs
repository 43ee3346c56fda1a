//! A vCPU's state at the kernel's first instruction. All but the first wait for INIT and SIPI, as they come from KVM.
//!
//! Model-specific registers are KVM's business: there is no filter, and no exit for them. What KVM and CPUID do not offer is
//! #GP to the guest, as on a processor that does not have it, and Linux's probing takes it so (`rdmsr_safe`). A host whose
//! KVM ignores unknown ones instead (`kvm.ignore_msrs=1`) does so for this guest, too.

use super::load::Entry;
use super::{GDT, PAGE_TABLES, START_INFO, ZERO_PAGE, put};
use crate::error::Result;
use crate::sys::kvm::VcpuFd;
use kvm_bindings as kb;
use vm_memory::GuestMemoryMmap;

/// `__BOOT_CS` and `__BOOT_DS` of the 64-bit boot protocol.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
const MTRR_DEFAULT: u32 = 0x2ff;
/// MTRRs on, no ranges, all memory write-back.
const WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets the registers that firmware leaves so on every CPU (Intel SDM 2.1, 12.11.2).
///
/// # Errors
/// The kernel's, or with the MSR that KVM refused.
pub fn prepare(vcpu: &VcpuFd) -> Result<()> {
    vcpu.set_msrs(&[(MISC_ENABLE, FAST_STRINGS), (MTRR_DEFAULT, WRITE_BACK)])
}

/// Sets the first vCPU to begin at `entry`.
///
/// # Errors
/// The kernel's.
pub fn enter(memory: &GuestMemoryMmap, vcpu: &VcpuFd, entry: Entry) -> Result<()> {
    let long = matches!(entry, Entry::Long(_));
    // Null, null, code, data, task (Intel SDM 3.4.5).
    let code: u64 = if long { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
    let gdt = [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];
    put(memory, "the GDT", GDT, &gdt.map(u64::to_le_bytes).concat())?;
    let mut sregs = vcpu.sregs()?;
    let flat = kb::kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kb::kvm_segment { selector: CODE, type_: 11, l: long.into(), db: (!long).into(), ..flat };
    let data = kb::kvm_segment { selector: DATA, type_: 3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kb::kvm_segment { selector: TASK, type_: 11, limit: 0x67, present: 1, ..Default::default() };
    sregs.gdt = kb::kvm_dtable { base: GDT, limit: 39, ..Default::default() };
    sregs.idt = kb::kvm_dtable::default();
    const PE: u64 = 1;
    const ET: u64 = 1 << 4;
    const PG: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    const LME_LMA: u64 = 1 << 8 | 1 << 10;
    (sregs.cr0, sregs.cr4) = (PE | ET, 0);
    let mut regs = kb::kvm_regs { rflags: 2, ..Default::default() };
    match entry {
        Entry::Long(rip) => {
            page_tables(memory)?;
            (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (PE | ET | PG, PAGE_TABLES, PAE, LME_LMA);
            (regs.rip, regs.rsi) = (rip, ZERO_PAGE);
        }
        Entry::Pvh(rip) => (regs.rip, regs.rbx) = (rip, START_INFO),
    }
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)
}

/// The first 4 GiB, each address to itself, in pages of 2 MiB.
fn page_tables(memory: &GuestMemoryMmap) -> Result<()> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let (pointers, directories) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
    let bytes = |entries: &[u64]| entries.iter().flat_map(|entry| entry.to_le_bytes()).collect::<Vec<_>>();
    let large: Vec<_> = (0..4 * 512).map(|n| n << 21 | LARGE | PRESENT_WRITABLE).collect();
    put(memory, "page tables", PAGE_TABLES, &bytes(&[pointers | PRESENT_WRITABLE]))?;
    let four = [0, 1, 2, 3].map(|n| (directories + n * 0x1000) | PRESENT_WRITABLE);
    put(memory, "page tables", pointers, &bytes(&four))?;
    put(memory, "page tables", directories, &bytes(&large))
}
