//! The built-in guest's instructions: an interrupt handler that says when it ran, and nothing else.
//!
//! Position-independent 64-bit code, copied into guest memory as it is. `rbx` holds the vCPU's record page for good;
//! every vector has a 128-byte record in it:
//!
//! ```text
//!   +0   how often its handler ran
//!   +8   the number of the last signal made, written by the producer before it signals
//!   +64  for the last 4 runs, by run number modulo 4: the TSC at the first instruction, and the number seen at +8
//! ```
//! Each of the 256 gates is 16 bytes apart. RDTSC is the first instruction, before anything is saved: the main loop
//! keeps nothing in rax, rcx, rdx. The count is stored after the time, so that who sees the count sees the time.

use std::arch::global_asm;

global_asm!(
    ".pushsection .rodata",
    ".balign 64",
    ".globl pollvisor_guest_start",
    "pollvisor_guest_start:",
    // +0: the entry. rdi: 0 = halt, else spin.
    "    inc qword ptr [rbx]", // record 0, which no vector uses: the guest runs
    "    sti",
    "    test rdi, rdi",
    "    jnz 2f",
    "1:  hlt",
    "    jmp 1b",
    "2:  pause",
    "    jmp 2b",
    ".balign 64",
    ".rept 256",
    ".balign 16",
    "    rdtsc",
    "    mov ecx, 0x7f7f7f7f", // the vector: see `image`
    "    jmp 3f",
    ".endr",
    ".balign 16",
    "3:  cmp ecx, 32",
    "    jb 4f",
    "    shl rdx, 32",
    "    or rax, rdx",
    "    shl ecx, 7",
    "    mov rdx, [rbx + rcx]",
    "    and edx, 3",
    "    shl edx, 4",
    "    add rdx, rcx",
    "    mov [rbx + rdx + 64], rax",
    "    mov rax, [rbx + rcx + 8]",
    "    mov [rbx + rdx + 72], rax",
    "    inc qword ptr [rbx + rcx]",
    "    mov ecx, 0x80b", // x2APIC EOI
    "    xor eax, eax",
    "    xor edx, edx",
    "    wrmsr",
    "    iretq",
    // An exception: tell the VMM its number, and stay.
    "4:  mov eax, ecx",
    "    out 0xf4, al",
    "5:  hlt",
    "    jmp 5b",
    ".globl pollvisor_guest_end",
    "pollvisor_guest_end:",
    ".popsection",
);

unsafe extern "C" {
    static pollvisor_guest_start: u8;
    static pollvisor_guest_end: u8;
}

/// The code, to be copied to a 16-byte aligned guest address. Each gate is given its vector here.
#[must_use]
pub fn image() -> Vec<u8> {
    const IMMEDIATE: usize = 3;
    let (start, end) = (&raw const pollvisor_guest_start, &raw const pollvisor_guest_end);
    // SAFETY: two labels around constant bytes in one section, in this order.
    let mut code = unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }.to_vec();
    let gates = code[GATES..].chunks_exact_mut(GATE_SIZE);
    for (vector, gate) in (0u32..256).zip(gates) {
        gate[IMMEDIATE..IMMEDIATE + 4].copy_from_slice(&vector.to_le_bytes());
    }
    code
}

/// Where the first gate is in the image; gate n is 16 n bytes further.
pub const GATES: usize = 64;
/// Bytes between gates.
pub const GATE_SIZE: usize = 16;
/// Bytes per vector in the record page.
pub const RECORD_SIZE: u64 = 128;
/// Where in a record the producer's number is.
pub const NUMBER: u64 = 8;
/// Where in a record the runs are: a time and a number each.
pub const RUNS: u64 = 64;
/// Runs kept per vector.
pub const RUNS_KEPT: u64 = 4;
/// The I/O port on which an exception is told.
pub const FAULT_PORT: u16 = 0xf4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_where_they_are_said_to_be() {
        let image = image();
        for gate in 0..256usize {
            let at = GATES + gate * GATE_SIZE;
            assert_eq!(image[at..at + 3], [0x0f, 0x31, 0xb9], "rdtsc; mov ecx, imm32 at gate {gate}");
            assert_eq!(usize::from(image[at + 3]), gate);
        }
        assert!(image.len() < 0x8000);
    }
}
