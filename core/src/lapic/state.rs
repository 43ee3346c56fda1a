//! The interrupts' state as a whole, to be looked at, compared and restored.

use super::registers::Register;
use super::{FIRST_VECTOR, Lapic, Time};
use crate::ioapic::VectorSet;

/// What waits, what is in service, and which of them are levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// Requested, not taken; without what is posted and not harvested.
    pub irr: VectorSet,
    /// Taken, no EOI yet.
    pub isr: VectorSet,
    /// Accepted last as a level.
    pub tmr: VectorSet,
}

impl Interrupts {
    /// Without vectors that an APIC does not take.
    fn legal(self) -> Self {
        let legal = |set: VectorSet| {
            let mut words = set.words();
            words[0] &= !((1 << FIRST_VECTOR) - 1);
            VectorSet::from_words(words)
        };
        Self { irr: legal(self.irr), isr: legal(self.isr), tmr: legal(self.tmr) }
    }
}

impl Lapic {
    /// IRR, ISR and TMR.
    #[must_use]
    pub const fn interrupts(&self) -> Interrupts {
        Interrupts { irr: self.irr, isr: self.isr, tmr: self.tmr }
    }

    /// Sets IRR, ISR and TMR; vectors below 16 are left out. The counts stay right: what waits and did not before is local,
    /// what waited and does not any more is discarded.
    pub fn restore(&mut self, interrupts: Interrupts) {
        let Interrupts { irr, isr, tmr } = interrupts.legal();
        for (new, old) in irr.words().into_iter().zip(self.irr.words()) {
            self.counts.local += u64::from((new & !old).count_ones());
            self.counts.discarded += u64::from((old & !new).count_ones());
        }
        (self.irr, self.isr, self.tmr) = (irr, isr, tmr);
    }

    /// The register at this offset of the page, as a debugger sees it: in every mode, without a fault, an error noted or a
    /// timer that expires by it. `None` where there is none.
    #[must_use]
    pub fn register(&self, offset: u32, now: Time) -> Option<u32> {
        if !offset.is_multiple_of(16) {
            return None;
        }
        Register::from_number(offset / 16).map(|register| self.value(register, now))
    }
}
