//! Priorities: what is taken when, and what an EOI ends (SDM 8.3 to 8.5).

use super::{Lapic, registers::SVR_NO_EOI_BROADCAST};
use crate::ioapic::VectorSet;
use crate::prim::{Mutation, planted};
use crate::sync::{Harvest, POSTED_WORDS};

/// The end of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an I/O APIC that is not told leaves a level line dead"]
pub struct Eoi {
    /// Its vector.
    pub vector: u8,
    /// The I/O APICs are to be told: [`crate::ioapic::Ioapic::eoi`].
    pub broadcast: bool,
}

impl Lapic {
    /// The processor priority: no vector of this class or a lower one is taken.
    #[inline]
    #[must_use]
    pub fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= in_service >> 4 { self.tpr } else { in_service & 0xf0 }
    }

    /// The vector that [`take`](Self::take) would take.
    #[inline]
    #[must_use]
    pub fn takeable(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (vector >> 4 > self.ppr() >> 4 && !self.waits_for_sipi).then_some(vector)
    }

    /// Takes the next interrupt into service. Whether the vCPU lets interrupts in (IF) the caller knows.
    #[inline]
    pub fn take(&mut self) -> Option<u8> {
        let vector = self.takeable()?;
        self.irr.remove(vector);
        self.isr.insert(vector);
        self.counts.taken += 1;
        Some(vector)
    }

    /// Ends the highest interrupt in service; `None` when there is none.
    #[inline]
    pub fn eoi(&mut self) -> Option<Eoi> {
        let vector = self.isr.highest()?;
        self.isr.remove(vector);
        let wanted = self.tmr.contains(vector) || self.eoi_exits.contains(vector);
        Some(Eoi { vector, broadcast: wanted && self.svr & SVR_NO_EOI_BROADCAST == 0 })
    }

    /// Moves a harvest into IRR and TMR. A level wins over an edge: an EOI too many hurts nobody, a missed one is a dead line.
    #[inline]
    pub(super) fn request(&mut self, harvest: &Harvest) {
        let (mut irr, mut tmr) = (self.irr.words(), self.tmr.words());
        for word in 0..POSTED_WORDS {
            let (edge, level) = (harvest.edge[word], harvest.level[word]);
            let in_irr = if planted(Mutation::CountNotIrr) { 0 } else { (edge | level) & irr[word] };
            self.counts.coalesced += u64::from((edge & level).count_ones() + in_irr.count_ones());
            irr[word] |= edge | level;
            let (clear, set) =
                if planted(Mutation::EdgeWins) { (edge, level & !edge) } else { (edge, level) };
            tmr[word] = tmr[word] & !clear | set;
        }
        self.irr = VectorSet::from_words(irr);
        self.tmr = VectorSet::from_words(tmr);
    }

    /// Counts a harvest as lost on purpose.
    pub(super) fn discard(&mut self, harvest: &Harvest) {
        let words = harvest.edge.iter().chain(&harvest.level);
        self.counts.discarded += words.map(|word| u64::from(word.count_ones())).sum::<u64>();
    }
}
