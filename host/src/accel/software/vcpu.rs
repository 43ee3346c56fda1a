//! A vCPU of the software machine: its number, its LAPIC, and what other threads see of that.

use crate::error::{Error, Result};
use pollvisor_core::ids::VcpuId;
use pollvisor_core::lapic::{Lapic, Mode, Role};
use pollvisor_core::sync::{Posted, PostedVcpu};
use serde::Serialize;
use std::ops::AddAssign;
use std::sync::Arc;

/// What became of the interrupts that LAPICs accepted: `accepted = taken + coalesced + pending + discarded`, where what
/// senders found requested already is part of `coalesced`, once they are asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LapicCounts {
    /// Handed to a vCPU.
    pub taken: u64,
    /// Requested when they were already: one handler run serves both.
    pub coalesced: u64,
    /// Requested, and not taken yet.
    pub pending: u64,
    /// Lost on purpose: by INIT, a reset, or when a LAPIC was switched off.
    pub discarded: u64,
}

impl LapicCounts {
    /// All that were accepted.
    #[must_use]
    pub const fn accepted(&self) -> u64 {
        self.taken + self.coalesced + self.pending + self.discarded
    }
}

impl AddAssign for LapicCounts {
    fn add_assign(&mut self, other: Self) {
        self.taken += other.taken;
        self.coalesced += other.coalesced;
        self.pending += other.pending;
        self.discarded += other.discarded;
    }
}

/// See the module's text. Whoever has it is the owner of its LAPIC.
#[derive(Debug)]
pub struct Vcpu {
    id: VcpuId,
    lapic: Lapic,
    vcpus: Arc<[PostedVcpu]>,
}

impl Vcpu {
    pub(super) fn new(id: VcpuId, vcpus: Arc<[PostedVcpu]>) -> Self {
        let mut lapic = Lapic::new(id.0, Role::Bsp);
        lapic.set_up(&vcpus[id.0 as usize], Mode::X2Apic, true);
        Self { id, lapic, vcpus }
    }

    pub(super) fn id(&self) -> VcpuId {
        self.id
    }

    pub(super) fn all(&self) -> &Arc<[PostedVcpu]> {
        &self.vcpus
    }

    fn own(&self) -> &PostedVcpu {
        &self.vcpus[self.id.0 as usize]
    }

    pub(super) fn posted(&self) -> &Posted {
        self.own().posted()
    }

    /// Takes over what was posted.
    ///
    /// # Errors
    /// INIT, start-up or NMI: a vCPU that runs no code has no answer to them.
    #[inline]
    pub(super) fn harvest(&mut self) -> Result<()> {
        self.lapic.harvest(&self.vcpus[self.id.0 as usize]);
        match self.lapic.event() {
            None => Ok(()),
            Some(event) => {
                Err(Error::new(format!("vCPU {}: {event:?}, and no guest code to handle it", self.id.0)))
            }
        }
    }

    /// The highest vector that waits and may be taken.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u8> {
        self.lapic.take()
    }

    /// Ends the interrupt in service. No I/O APIC is there to tell.
    #[inline]
    pub(super) fn end_of_interrupt(&mut self) {
        let _edge = self.lapic.eoi();
    }

    /// Whether `vector` waits in its LAPIC, or in front of it.
    #[must_use]
    pub fn is_requested(&self, vector: u8) -> bool {
        self.lapic.is_requested(self.own(), vector)
    }

    /// Takes all waiting interrupts out of its LAPIC; they are counted as discarded. INIT does that and more; here nothing
    /// else changes.
    pub fn clear_requests(&mut self) {
        let Self { id, lapic, vcpus } = self;
        lapic.discard_requests(&vcpus[id.0 as usize]);
    }

    /// What became of its interrupts; what senders found requested already is not in it.
    #[must_use]
    pub fn counts(&self) -> LapicCounts {
        let counts = self.lapic.counts();
        LapicCounts {
            taken: counts.taken,
            coalesced: counts.coalesced,
            pending: self.lapic.pending(self.own()).into(),
            discarded: counts.discarded,
        }
    }
}
