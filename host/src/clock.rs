//! The clock of every measurement: the time-stamp counter, calibrated once.

use crate::error::{Error, Result};
use crate::sys::kvm::Kvm;
use crate::sys::tsc;
use std::time::{Duration, Instant};

/// Converts TSC cycles to nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    khz: u64,
    /// Nanoseconds per cycle, times 2^32.
    scale: u64,
}

impl Clock {
    /// Finds the counter's rate: from CPUID where it says so, else from KVM, which has it from the kernel, else by
    /// measuring it against the kernel's clock for about 60 ms.
    ///
    /// # Errors
    /// When the counter is not invariant: then no figure would mean anything.
    pub fn calibrate() -> Result<Self> {
        // The kernel's own verdict covers guests whose CPUID hides the invariant bit.
        let source =
            std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        let source = source.unwrap_or_default();
        if tsc::cpuid(0x8000_0007).edx & INVARIANT == 0 && !matches!(source.trim(), "tsc" | "kvm-clock") {
            return Err(Error::new("the TSC is not invariant here, so it cannot time anything").remedy(
                "enable invariant TSC in the firmware, or pass it through to this VM; see /proc/cpuinfo nonstop_tsc",
            ));
        }
        let ratio = tsc::cpuid(0x15);
        let khz = if ratio.eax != 0 && ratio.ebx != 0 && ratio.ecx != 0 {
            u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax) / 1000
        } else {
            from_kvm().unwrap_or_else(measure)
        };
        Ok(Self::from_khz(khz))
    }

    /// A clock where the counter is not invariant: its figures are not to be trusted, and have to say so.
    #[must_use]
    pub fn uncertain() -> Self {
        Self::from_khz(measure())
    }

    /// A clock of known rate.
    #[must_use]
    pub fn from_khz(khz: u64) -> Self {
        let khz = khz.max(1);
        Self { khz, scale: u64::try_from((1_000_000u128 << 32) / u128::from(khz)).unwrap_or(u64::MAX) }
    }

    /// Cycles per millisecond.
    #[must_use]
    pub fn khz(&self) -> u64 {
        self.khz
    }

    /// The time now, in cycles.
    #[inline(always)]
    #[must_use]
    pub fn now(&self) -> u64 {
        tsc::now()
    }

    /// `cycles` in nanoseconds.
    #[inline(always)]
    #[must_use]
    pub fn ns(&self, cycles: u64) -> u64 {
        u64::try_from((u128::from(cycles) * u128::from(self.scale)) >> 32).unwrap_or(u64::MAX)
    }

    /// A duration in cycles.
    #[must_use]
    pub fn cycles(&self, duration: Duration) -> u64 {
        u64::try_from(duration.as_nanos() * u128::from(self.khz) / 1_000_000).unwrap_or(u64::MAX)
    }
}

const INVARIANT: u32 = 1 << 8;

/// The rate by which the kernel itself keeps time (`kvm_arch.default_tsc_khz`), from a VM that is gone at once.
fn from_kvm() -> Option<u64> {
    Kvm::open().ok()?.create_vm().ok()?.tsc_khz().ok().filter(|khz| *khz != 0)
}

/// Whether the host's kernel would keep time by its TSC: it strikes one that is off its list (`clocksource_mark_unstable`).
#[must_use]
pub fn kernel_trusts_tsc() -> bool {
    let list = "/sys/devices/system/clocksource/clocksource0/available_clocksource";
    std::fs::read_to_string(list).is_ok_and(|list| list.split_whitespace().any(|source| source == "tsc"))
}

/// The median of several short comparisons with the kernel's clock; each is bracketed so that a preemption shows.
fn measure() -> u64 {
    let mut rates: Vec<u64> = (0..5)
        .map(|_| {
            let (start, began) = (tsc::now(), Instant::now());
            std::thread::sleep(Duration::from_millis(12));
            let (end, took) = (tsc::now(), began.elapsed());
            u64::try_from(u128::from(end - start) * 1_000_000 / took.as_nanos().max(1)).unwrap_or(0)
        })
        .collect();
    rates.sort_unstable();
    rates[rates.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_is_exact_to_a_nanosecond_a_second() {
        let clock = Clock::from_khz(2_596_000);
        assert_eq!(clock.ns(2_596_000_000), 1_000_000_000 - 1);
        assert_eq!(clock.cycles(Duration::from_secs(1)), 2_596_000_000);
        assert_eq!(clock.ns(0), 0);
    }

    #[test]
    fn calibration_agrees_with_the_kernels_clock() {
        let clock = Clock::calibrate().expect("an invariant TSC");
        let (start, began) = (clock.now(), Instant::now());
        std::thread::sleep(Duration::from_millis(50));
        let (ns, real) = (clock.ns(clock.now() - start), began.elapsed().as_nanos());
        let real = u64::try_from(real).expect("short");
        assert!(ns.abs_diff(real) < real / 50, "{ns} against {real}");
        if let Some(khz) = from_kvm() {
            assert!(khz.abs_diff(measure()) < khz / 500, "{khz} by KVM");
        }
    }
}
