//! The local vector table: the interrupts that an APIC makes itself, and the errors it notes (SDM 5.1 to 5.3).

use super::{FIRST_VECTOR, Fault, Lapic, SVR_ENABLED};
use crate::sync::PostedVcpu;

/// An entry of the local vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lvt {
    /// The timer.
    Timer,
    /// The thermal sensor.
    Thermal,
    /// The performance counters: delivering masks the entry.
    Performance,
    /// The pin LINT0.
    Lint0,
    /// The pin LINT1.
    Lint1,
    /// The APIC's own errors.
    Error,
}

/// Entries of the table.
pub(super) const ENTRIES: usize = 6;
pub(super) const MASKED: u32 = 1 << 16;
const DELIVERY_STATUS: u32 = 1 << 12;
const POLARITY: u32 = 1 << 13;
const REMOTE_IRR: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;
const TIMER_MODE: u32 = 3 << 17;

/// ESR: an IPI with lowest priority, which x2APIC mode does not send.
pub(super) const REDIRECTABLE: u32 = 1 << 4;
/// ESR: an IPI with a vector below 16.
pub(super) const SENT_ILLEGAL: u32 = 1 << 5;
/// ESR: an interrupt with a vector below 16 came in, or an LVT entry with one fired.
pub(super) const RECEIVED_ILLEGAL: u32 = 1 << 6;
/// ESR: no such register (xAPIC mode).
pub(super) const ILLEGAL_REGISTER: u32 = 1 << 7;

/// How the timer counts: bits 18:17 of its LVT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl TimerMode {
    const fn of(entry: u32) -> Result<Self, Fault> {
        match (entry & TIMER_MODE) >> 17 {
            0 => Ok(Self::OneShot),
            1 => Ok(Self::Periodic),
            2 => Ok(Self::TscDeadline),
            _ => Err(Fault),
        }
    }
}

impl Lvt {
    pub(super) const fn writable(self) -> u32 {
        0xff | MASKED
            | match self {
                Self::Timer => TIMER_MODE,
                Self::Error => 0,
                Self::Thermal | Self::Performance => 0x700,
                Self::Lint0 | Self::Lint1 => 0x700 | POLARITY | LEVEL,
            }
    }

    pub(super) const fn read_only(self) -> u32 {
        match self {
            Self::Lint0 | Self::Lint1 => DELIVERY_STATUS | REMOTE_IRR,
            _ => DELIVERY_STATUS,
        }
    }
}

/// What a local interrupt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it may have been for nothing"]
pub enum LocalDelivery {
    /// It is in the IRR, latched as an NMI, or posted as an INIT.
    Accepted,
    /// The entry is masked, or its vector illegal: lost.
    Lost,
    /// The entry's delivery mode is one that this APIC does not do: SMI, ExtINT, a reserved one, and a fixed level by a LINT
    /// pin (D: as OpenVMM). Also for an entry that is not the platform's: timer and errors fire by themselves.
    Refused,
}

impl Lapic {
    /// The platform signals a local interrupt: a rising edge of a LINT pin, the thermal sensor, a performance counter. The
    /// vCPU's thread.
    pub fn signal(&mut self, vcpu: &PostedVcpu, source: Lvt) -> LocalDelivery {
        let entry = self.lvt[source as usize];
        let pin = matches!(source, Lvt::Lint0 | Lvt::Lint1);
        if matches!(source, Lvt::Timer | Lvt::Error) {
            return LocalDelivery::Refused;
        }
        if entry & MASKED != 0 {
            return LocalDelivery::Lost;
        }
        let delivery = match entry >> 8 & 7 {
            0 if pin && entry & LEVEL != 0 => return LocalDelivery::Refused,
            0 => self.fire(source),
            4 => {
                self.nmi_pending = true;
                LocalDelivery::Accepted
            }
            5 if pin => {
                // This thread is the one that would be woken.
                let _awake = vcpu.posted().post_init();
                LocalDelivery::Accepted
            }
            _ => return LocalDelivery::Refused,
        };
        if source == Lvt::Performance {
            self.lvt[source as usize] |= MASKED;
        }
        delivery
    }

    /// Puts an entry's vector into the IRR, unless it is masked.
    pub(super) fn fire(&mut self, source: Lvt) -> LocalDelivery {
        let entry = self.lvt[source as usize];
        if entry & MASKED == 0 && self.accept_local(entry.to_le_bytes()[0]) {
            LocalDelivery::Accepted
        } else {
            LocalDelivery::Lost
        }
    }

    /// An interrupt of this APIC to itself: an edge, into the IRR, without passing the descriptor. False when it is refused.
    pub(super) fn accept_local(&mut self, vector: u8) -> bool {
        if self.svr & SVR_ENABLED == 0 {
            return false;
        }
        if vector < FIRST_VECTOR {
            self.error(RECEIVED_ILLEGAL);
            return false;
        }
        self.counts.local += 1;
        if !self.irr.insert(vector) {
            self.counts.local_coalesced += 1;
        }
        self.tmr.remove(vector);
        true
    }

    /// Notes an error where the next write of the ESR finds it. The first since the last write is an interrupt.
    pub(super) fn error(&mut self, error: u32) {
        let first = self.errors == 0;
        self.errors |= error;
        if first {
            let _lost_if_masked = self.fire(Lvt::Error);
        }
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// The timer mode that is none; nothing has changed then.
    pub(super) fn set_lvt(&mut self, lvt: Lvt, value: u32) -> Result<(), Fault> {
        let old = self.timer_mode();
        if lvt == Lvt::Timer {
            let new = TimerMode::of(value)?;
            if (old == TimerMode::TscDeadline) != (new == TimerMode::TscDeadline) {
                self.timer.disarm();
            }
        }
        self.lvt[lvt as usize] = value;
        self.mask_lvts_if_disabled();
        Ok(())
    }

    /// While the APIC is software-disabled every entry is masked, and stays so when it is enabled again.
    pub(super) fn mask_lvts_if_disabled(&mut self) {
        if self.svr & SVR_ENABLED == 0 {
            for entry in &mut self.lvt {
                *entry |= MASKED;
            }
        }
    }

    pub(super) fn timer_mode(&self) -> TimerMode {
        // `set_lvt` lets no other in.
        TimerMode::of(self.lvt[Lvt::Timer as usize]).unwrap_or(TimerMode::OneShot)
    }

    pub(super) fn is_masked(&self, lvt: Lvt) -> bool {
        self.lvt[lvt as usize] & MASKED != 0
    }
}
