//! A routine for the built-in guest that makes random accesses as fast as the processor can, for tests of what a guest
//! can do to its VMM.
//!
//! Position-independent 64-bit code. `rdi`: the table that [`TABLE_WORDS`] begins, in the guest's memory:
//!
//! ```text
//!   +0   the generator's state (xorshift64*, not 0)      +8   accesses to make      +16  how many places
//!   +24  the places, four words each: base, mask of the offset, what it is (0 memory, 1 ports, 2 the LAPIC's EOI),
//!        and where its shapes are in the table
//!        shapes: sixteen of two words; a value is (random AND first) OR second
//! ```
//! What is accessed hangs on the state alone, so a run can be made again. Interrupts come in between two accesses; their
//! handlers keep nothing of rax, rcx, rdx and r8 to r10.

use std::arch::global_asm;

global_asm!(
    ".pushsection .rodata",
    ".balign 16",
    ".globl pollvisor_scribble_start",
    "pollvisor_scribble_start:",
    "    mov r12, [rdi]",
    "    mov r13, [rdi + 8]",
    "    lea r15, [rdi + 24]",
    "    mov rbp, rdi",
    "2:  cli",
    "    dec r13",
    "    js 9f",
    // The place, its address in rsi.
    "    call 8f",
    "    mov esi, eax",
    "    shr rax, 32",
    "    imul rax, [rbp + 16]",
    "    shr rax, 32",
    "    shl rax, 5",
    "    lea r11, [r15 + rax]",
    "    and rsi, [r11 + 8]",
    "    add rsi, [r11]",
    // What to do in r8, the value in rax.
    "    call 8f",
    "    mov r8, rax",
    "    call 8f",
    "    mov r9d, r8d",
    "    and r9d, 15",
    "    shl r9d, 4",
    "    add r9, [r11 + 24]",
    "    and rax, [rbp + r9]",
    "    or rax, [rbp + r9 + 8]",
    "    shr r8, 32",
    "    mov r9d, r8d",
    "    and r9d, 3", // the size: 4, 1, 2, 8
    "    cmp qword ptr [r11 + 16], 1",
    "    je 5f",
    "    ja 7f",
    "    test r8d, 0x300", // one in four reads
    "    jz 4f",
    "    cmp r9d, 1",
    "    je 31f",
    "    ja 3f",
    "    mov [rsi], eax",
    "    jmp 6f",
    "31: mov [rsi], al",
    "    jmp 6f",
    "3:  cmp r9d, 2",
    "    ja 33f",
    "    mov [rsi], ax",
    "    jmp 6f",
    "33: mov [rsi], rax",
    "    jmp 6f",
    "4:  cmp r9d, 1",
    "    je 41f",
    "    ja 42f",
    "    mov eax, [rsi]",
    "    jmp 6f",
    "41: mov al, [rsi]",
    "    jmp 6f",
    "42: cmp r9d, 2",
    "    ja 43f",
    "    mov ax, [rsi]",
    "    jmp 6f",
    "43: mov rax, [rsi]",
    "    jmp 6f",
    "5:  mov edx, esi",
    "    test r8d, 0x300",
    "    jz 52f",
    "    cmp r9d, 1",
    "    je 51f",
    "    ja 53f",
    "    out dx, eax",
    "    jmp 6f",
    "51: out dx, al",
    "    jmp 6f",
    "53: out dx, ax",
    "    jmp 6f",
    "52: cmp r9d, 1",
    "    je 54f",
    "    ja 55f",
    "    in eax, dx",
    "    jmp 6f",
    "54: in al, dx",
    "    jmp 6f",
    "55: in ax, dx",
    "6:  sti",
    "    nop",
    "    jmp 2b",
    "7:  mov ecx, 0x80b", // x2APIC EOI
    "    xor eax, eax",
    "    xor edx, edx",
    "    wrmsr",
    "    jmp 6b",
    // The next random word in rax.
    "8:  mov rax, r12",
    "    shr rax, 12",
    "    xor r12, rax",
    "    mov rax, r12",
    "    shl rax, 25",
    "    xor r12, rax",
    "    mov rax, r12",
    "    shr rax, 27",
    "    xor r12, rax",
    "    movabs rax, 0x2545f4914f6cdd1d",
    "    imul rax, r12",
    "    ret",
    "9:  ret",
    ".globl pollvisor_scribble_end",
    "pollvisor_scribble_end:",
    ".popsection",
);

unsafe extern "C" {
    static pollvisor_scribble_start: u8;
    static pollvisor_scribble_end: u8;
}

/// The code, to be copied anywhere into guest memory.
#[must_use]
pub fn image() -> &'static [u8] {
    let (start, end) = (&raw const pollvisor_scribble_start, &raw const pollvisor_scribble_end);
    // SAFETY: two labels around constant bytes in one section, in this order.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// Words of the table before its places.
pub const TABLE_WORDS: usize = 3;
/// Words of a place.
pub const PLACE_WORDS: usize = 4;
/// Shapes that a place chooses from.
pub const SHAPES: usize = 16;
