//! What firmware and a boot loader do for a guest: memory laid out, a kernel in it, tables, CPUs ready to enter.
//!
//! ```text
//!  0x500 GDT   0x6000 start info   0x7000 zero page   0x9000 page tables   0x2_0000 command line   0xe_0000 ACPI   0xf_fff0 reset
//!  1 MiB .. kernel .. initramfs .. 3 GiB        4 GiB .. the rest of the memory
//! ```
//! * [`memory`] the guest's memory; `prefault` makes it beforehand
//! * [`load`] kernel, initramfs and command line, and what the kernel is told of them
//! * [`image`] what is checked of an ELF file before it is loaded
//! * [`acpi`] the machine's tables
//! * [`cpuid`] what a vCPU says it is
//! * [`cpu`] a vCPU's state at the first instruction

pub mod acpi;
pub mod cpu;
pub mod cpuid;
pub mod image;
pub mod load;
pub mod memory;
mod prefault;

/// The end of what firmware calls conventional memory; below are this module's tables.
pub(crate) const LOW_END: u64 = 0xa_0000;
/// Where ACPI's tables are.
pub(crate) const ACPI: std::ops::Range<u64> = 0xe_0000..RESET_VECTOR;
/// Where a processor begins after a reset, and where Linux jumps to make one: on hardware-reduced ACPI without EFI it
/// does not try the reset register (`reboot_init` in arch/x86/kernel/reboot.c).
const RESET_VECTOR: u64 = 0xf_fff0;
/// Where kernels may begin.
pub(crate) const HIGH: u64 = 0x10_0000;
const GDT: u64 = 0x500;
const START_INFO: u64 = 0x6000;
const ZERO_PAGE: u64 = 0x7000;
const PAGE_TABLES: u64 = 0x9000;
const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes for the command line, its final zero included: more than any kernel takes.
const COMMAND_LINE_SIZE: usize = 0x1_0000;

use crate::error::{Error, Result};
use crate::legacy::{RESET, RESET_PORT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Writes what stands for firmware: at the reset vector, code that asks for a reset by ACPI's register.
///
/// # Errors
/// When there is no memory.
pub(crate) fn put_firmware(memory: &GuestMemoryMmap) -> Result<()> {
    let [low, high] = RESET_PORT.to_le_bytes();
    // mov dx, RESET_PORT; mov al, RESET; out dx, al; hlt; jmp to the hlt
    put(memory, "the reset vector", RESET_VECTOR, &[0xba, low, high, 0xb0, RESET, 0xee, 0xf4, 0xeb, 0xfd])
}

/// Writes a table or a file's contents into the guest's memory.
fn put(memory: &GuestMemoryMmap, what: &str, at: u64, bytes: &[u8]) -> Result<()> {
    memory.write_slice(bytes, GuestAddress(at)).map_err(|e| Error::new(format!("{what} at {at:#x}: {e}")))
}
