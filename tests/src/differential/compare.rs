//! What both sides are compared by.

use super::machine::{IRR, ISR, Machine, TMR};
use super::ops::{RESAMPLES, World};
use pollvisor::error::Result;
use pollvisor::sys::fd::EventFd;
use pollvisor::sys::kvm::ChipBytes;
use std::fmt;

/// The I/O APIC among the chips; 0 and 1 are the PICs.
pub const IOAPIC: u32 = 2;
/// `struct kvm_ioapic_state`: base, select, id, irr, padding, the entries.
const ENTRIES: usize = 24;

/// A LAPIC's ISR, TMR and IRR, a bit per vector.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Interrupts([[u32; 8]; 3]);

impl Interrupts {
    /// Of this machine's vCPU.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(machine: &Machine) -> Result<Self> {
        let page = machine.lapic()?;
        let mut lapic = Self::default();
        for (set, base) in lapic.0.iter_mut().zip([ISR, TMR, IRR]) {
            for (n, word) in set.iter_mut().enumerate() {
                let at = base + 16 * n;
                *word = u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
            }
        }
        Ok(lapic)
    }

    /// How many vectors wait.
    #[must_use]
    pub fn requested(&self) -> u32 {
        self.0[2].iter().map(|word| word.count_ones()).sum()
    }
}

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, set) in ["ISR", "TMR", "IRR"].iter().zip(&self.0) {
            write!(f, "{name}")?;
            for vector in (0..256).filter(|v| set[v / 32] & 1 << (v % 32) != 0) {
                write!(f, " {vector:#x}")?;
            }
            f.write_str("; ")?;
        }
        Ok(())
    }
}

/// A world at the end of a step. Reading it takes the counts of the resample eventfds.
#[derive(Clone, PartialEq, Eq)]
pub struct View {
    lapic: Interrupts,
    chips: Option<[ChipBytes; 3]>,
    resampled: [u64; RESAMPLES],
}

impl View {
    /// Of this machine; `hidden` is a vector that the test uses for itself.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(
        machine: &Machine,
        world: World,
        resamples: &[EventFd; RESAMPLES],
        hidden: Option<u8>,
    ) -> Result<Self> {
        let mut lapic = Interrupts::default();
        if world != World::Bare {
            lapic = Interrupts::of(machine)?;
            if let Some(vector) = hidden {
                lapic.0.iter_mut().for_each(|set| set[usize::from(vector / 32)] &= !(1 << (vector % 32)));
            }
        }
        let chips = match world {
            World::Kernel => Some([machine.chip(0)?, machine.chip(1)?, machine.chip(IOAPIC)?]),
            _ => None,
        };
        let resampled = resamples.each_ref().map(EventFd::take);
        Ok(Self { lapic, chips, resampled })
    }

    /// Whether the LAPIC has anything to forget.
    #[must_use]
    pub fn is_marked(&self) -> bool {
        self.lapic != Interrupts::default()
    }

    /// The I/O APIC's entries, where there is one in the kernel.
    #[must_use]
    pub fn entries(&self) -> Option<[u64; 24]> {
        self.chips.as_ref().map(|chips| entries(&chips[2]))
    }

    /// How many signals came back.
    #[must_use]
    pub fn resampled(&self) -> u64 {
        self.resampled.iter().sum()
    }

    /// How many vectors wait.
    #[must_use]
    pub fn requested(&self) -> u32 {
        self.lapic.requested()
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}resampled {:?}", self.lapic, self.resampled)?;
        if let Some([master, slave, ioapic]) = &self.chips {
            write!(f, "\n    PICs {:x?} {:x?}", &master[..16], &slave[..16])?;
            write!(f, "\n    I/O APIC {:x?}", &ioapic[..ENTRIES])?;
            for (pin, entry) in entries(ioapic).iter().enumerate() {
                write!(f, "{}{pin}:{entry:x}", if pin % 6 == 0 { "\n     " } else { " " })?;
            }
        }
        Ok(())
    }
}

/// The entries in an I/O APIC's saved state.
#[must_use]
pub fn entries(ioapic: &ChipBytes) -> [u64; 24] {
    let mut entries = [0; 24];
    for (entry, bytes) in entries.iter_mut().zip(ioapic[ENTRIES..].chunks_exact(8)) {
        *entry = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    entries
}

/// Writes one entry by the saved state.
///
/// # Errors
/// The kernel's.
pub fn program(machine: &Machine, pin: u8, entry: u64) -> Result<()> {
    let mut state = machine.chip(IOAPIC)?;
    let at = ENTRIES + 8 * usize::from(pin);
    state[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    machine.set_chip(IOAPIC, &state)
}
