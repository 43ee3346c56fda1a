//! The built-in guest's instructions: an interrupt handler that says when it ran, and nothing else.
//!
//! Position-independent 64-bit code, copied into guest memory as it is. `rbx` holds the vCPU's record page for good;
//! every vector has a 128-byte record in it:
//!
//! ```text
//!   +0   how often its handler ran
//!   +8   the number of the last signal made, written by the producer before it signals
//!   +16  for a gate that acknowledges its device: the address of a register, and at +24 the 32 bits to write there
//!   +64  for the last 4 runs, by run number modulo 4: the TSC at the first instruction, and the number seen at +8
//! ```
//! Each of the 256 gates is 16 bytes apart. RDTSC is the first instruction, before anything is saved: the main loop
//! keeps nothing in rax, rcx, rdx, nor in r8 to r10. The count is stored after the time, so that who sees the count
//! sees the time.
//!
//! Started as a puppet, the guest does one access after another that its mailbox asks for, and halts in between:
//!
//! ```text
//!   +128  what to do: 0 nothing, else the operation (1 load, 2 store, 3 in, 4 out, 5 call) << 4 | bytes; 0 again when done
//!   +136  the address or port       +144  the value
//! ```
//! The mailbox is in the record of vector 1, which no device uses.

use std::arch::global_asm;

global_asm!(
    ".pushsection .rodata",
    ".balign 64",
    ".globl pollvisor_guest_start",
    "pollvisor_guest_start:",
    // +0: the entry. rdi: 0 = halt, 1 = spin, 2 = puppet.
    "    inc qword ptr [rbx]", // record 0, which no vector uses: the guest runs
    "    cmp rdi, 2",
    "    je 20f",
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
    "    .byte 0xe9",          // jmp near, whatever the distance: see `acknowledging`
    "    .long 3f - . - 4",
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
    // A gate that acknowledges its device before it goes the common way.
    ".globl pollvisor_guest_acknowledge",
    "pollvisor_guest_acknowledge:",
    "    mov r8, rax",
    "    mov r9, rdx",
    "    mov r10, rcx",
    "    shl r10, 7",
    "    mov rdx, [rbx + r10 + 16]",
    "    mov eax, [rbx + r10 + 24]",
    "    mov [rdx], eax",
    "    mov rax, r8",
    "    mov rdx, r9",
    "    jmp 3b",
    // The puppet. Interrupts wait while it looks, so that the one that wakes it is not lost before the hlt.
    "20: cli",
    "    mov r11, [rbx + 128]",
    "    test r11, r11",
    "    jnz 21f",
    "    sti",
    "    hlt",
    "    jmp 20b",
    "21: mov rsi, [rbx + 136]",
    "    mov rdi, [rbx + 144]",
    "    mov edx, esi",
    "    mov rax, rdi",
    "    cmp r11d, 0x14",
    "    je 34f",
    "    cmp r11d, 0x24",
    "    je 44f",
    "    cmp r11d, 0x11",
    "    je 31f",
    "    cmp r11d, 0x12",
    "    je 32f",
    "    cmp r11d, 0x18",
    "    je 38f",
    "    cmp r11d, 0x21",
    "    je 41f",
    "    cmp r11d, 0x22",
    "    je 42f",
    "    cmp r11d, 0x28",
    "    je 48f",
    "    cmp r11d, 0x31",
    "    je 51f",
    "    cmp r11d, 0x32",
    "    je 52f",
    "    cmp r11d, 0x34",
    "    je 54f",
    "    cmp r11d, 0x41",
    "    je 61f",
    "    cmp r11d, 0x42",
    "    je 62f",
    "    cmp r11d, 0x44",
    "    je 64f",
    "    cmp r11d, 0x51",
    "    je 71f",
    "22: mov [rbx + 144], rdi",
    "    xor eax, eax",
    "    mov [rbx + 128], rax",
    "    sti",
    "    nop",
    "    jmp 20b",
    "31: movzx edi, byte ptr [rsi]",
    "    jmp 22b",
    "32: movzx edi, word ptr [rsi]",
    "    jmp 22b",
    "34: mov edi, [rsi]",
    "    jmp 22b",
    "38: mov rdi, [rsi]",
    "    jmp 22b",
    "41: mov [rsi], dil",
    "    jmp 22b",
    "42: mov [rsi], di",
    "    jmp 22b",
    "44: mov [rsi], edi",
    "    jmp 22b",
    "48: mov [rsi], rdi",
    "    jmp 22b",
    "51: in al, dx",
    "    movzx edi, al",
    "    jmp 22b",
    "52: in ax, dx",
    "    movzx edi, ax",
    "    jmp 22b",
    "54: in eax, dx",
    "    mov edi, eax",
    "    jmp 22b",
    "61: out dx, al",
    "    jmp 22b",
    "62: out dx, ax",
    "    jmp 22b",
    "64: out dx, eax",
    "    jmp 22b",
    "71: call rsi",
    "    jmp 22b",
    ".globl pollvisor_guest_end",
    "pollvisor_guest_end:",
    ".popsection",
);

unsafe extern "C" {
    static pollvisor_guest_start: u8;
    static pollvisor_guest_acknowledge: u8;
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

/// The jump that makes `vector`'s gate acknowledge its device first: where it is in the image, and its bytes.
#[must_use]
pub fn acknowledging(vector: u8) -> (usize, [u8; 5]) {
    const JUMP: usize = 7;
    let (start, to) = (&raw const pollvisor_guest_start, &raw const pollvisor_guest_acknowledge);
    // SAFETY: two labels in one section, in this order.
    let to = unsafe { to.offset_from_unsigned(start) };
    let at = GATES + usize::from(vector) * GATE_SIZE + JUMP;
    let [a, b, c, d] = u32::try_from(to - (at + 5)).unwrap_or(0).to_le_bytes();
    (at, [0xe9, a, b, c, d])
}

/// Where the first gate is in the image; gate n is 16 n bytes further.
pub const GATES: usize = 64;
/// Bytes between gates.
pub const GATE_SIZE: usize = 16;
/// Bytes per vector in the record page.
pub const RECORD_SIZE: u64 = 128;
/// Where in a record the producer's number is.
pub const NUMBER: u64 = 8;
/// Where in a record the address of the register is that acknowledges; what to write is 8 bytes further.
pub const ACKNOWLEDGE: u64 = 16;
/// Where in the record page the puppet's mailbox is: what to do, then the address, then the value.
pub const MAILBOX: u64 = RECORD_SIZE;
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
            assert_eq!(image[at + 7], 0xe9, "jmp rel32 at gate {gate}");
        }
        assert!(image.len() < 0x8000);
    }
}
