//! The clock: the time-stamp counter.

use std::arch::x86_64::{__cpuid, _rdtsc, CpuidResult};

/// The counter now, in cycles. Not serialising: a few loads may drift across it, about 10 ns either way.
#[inline(always)]
#[must_use]
pub fn now() -> u64 {
    // SAFETY: RDTSC is in every x86-64, and Linux leaves CR4.TSD clear.
    unsafe { _rdtsc() }
}

/// A CPUID leaf; zeroes where the processor has none.
#[must_use]
pub fn cpuid(leaf: u32) -> CpuidResult {
    if __cpuid(leaf & 0x8000_0000).eax < leaf {
        return CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    }
    __cpuid(leaf)
}
