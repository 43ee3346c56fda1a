//! The address word: all that a sender asks about an APIC before it posts, in one word that is never torn.

use super::Mode;
use crate::sync::PostedVcpu;

/// "Everybody" for an APIC in xAPIC mode. In x2APIC mode it is one APIC's ID.
pub const XAPIC_BROADCAST: u32 = 0xff;
/// "Everybody" in both modes, physical or logical (SDM 12.9).
pub const X2APIC_BROADCAST: u32 = u32::MAX;

/// Whom an interrupt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The APIC with this ID.
    Physical(u32),
    /// The APICs with this logical destination (MDA).
    Logical(u32),
    /// Shorthand: all of them.
    All,
    /// Shorthand: all but the one with this ID.
    AllBut(u32),
}

const LOGICAL_ID_SHIFT: u32 = 32;
const CLUSTER: u64 = 1 << 40;
const NO_MODEL: u64 = 1 << 41;
const ENABLED: u64 = 1 << 42;
const X2APIC: u64 = 1 << 43;
const SOFTWARE_ENABLED: u64 = 1 << 44;

/// What an APIC answers to: mode, software enable, destination model, logical ID, ID.
///
/// | 63:45 | 44 | 43 | 42 | 41 | 40 | 39:32 | 31:0 |
/// |---|---|---|---|---|---|---|---|
/// | 0 | SVR\[8\] | x2APIC | on | DFR neither | DFR cluster | LDR\[31:24\] | ID |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(u64);

impl Address {
    /// As after a reset: xAPIC mode, software-disabled, flat, no logical ID.
    #[must_use]
    pub const fn reset(id: u32) -> Self {
        Self::new(id, Mode::XApic, false, 0, u32::MAX)
    }

    /// As of an APIC that is switched off, or not there yet: it takes nothing, no NMI, INIT or SIPI either.
    #[must_use]
    pub const fn off(id: u32) -> Self {
        Self::new(id, Mode::Off, false, 0, u32::MAX)
    }

    /// By the registers as xAPIC mode has them; in x2APIC mode the logical ID follows from the ID, and `ldr` and `dfr` are
    /// not looked at.
    #[must_use]
    pub(super) const fn new(id: u32, mode: Mode, software_enabled: bool, ldr: u32, dfr: u32) -> Self {
        let mode = match mode {
            Mode::Off => 0,
            Mode::XApic => ENABLED,
            Mode::X2Apic => ENABLED | X2APIC,
        };
        let model = match dfr >> 28 {
            0xf => 0,
            0x0 => CLUSTER,
            _ => NO_MODEL,
        };
        let on = if software_enabled { SOFTWARE_ENABLED } else { 0 };
        Self(id as u64 | ((ldr >> 24) as u64) << LOGICAL_ID_SHIFT | model | mode | on)
    }

    /// What this vCPU's APIC published last.
    #[inline]
    #[must_use]
    pub fn of(vcpu: &PostedVcpu) -> Self {
        Self(vcpu.address())
    }

    /// The word, for [`PostedVcpu::new`] and [`PostedVcpu::publish`].
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The ID, all 32 bits.
    #[inline]
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
    pub const fn id(self) -> u32 {
        self.0 as u32
    }

    /// The mode.
    #[must_use]
    pub const fn mode(self) -> Mode {
        if self.0 & ENABLED == 0 {
            Mode::Off
        } else if self.0 & X2APIC == 0 {
            Mode::XApic
        } else {
            Mode::X2Apic
        }
    }

    /// Whether it takes anything at all.
    #[inline]
    #[must_use]
    pub const fn is_on(self) -> bool {
        self.0 & ENABLED != 0
    }

    /// Whether it takes interrupts with a vector: on, and SVR\[8\] set.
    #[inline]
    #[must_use]
    pub const fn is_software_enabled(self) -> bool {
        self.0 & (ENABLED | SOFTWARE_ENABLED) == ENABLED | SOFTWARE_ENABLED
    }

    /// The x2APIC logical ID that goes with an ID: `id[19:4] << 16 | 1 << id[3:0]`.
    #[must_use]
    pub const fn x2apic_logical_id(id: u32) -> u32 {
        (id >> 4 & 0xffff) << 16 | 1 << (id & 0xf)
    }

    /// Whether an interrupt for `destination` is for this APIC. One that is off is nobody's.
    #[must_use]
    pub const fn matches(self, destination: Destination) -> bool {
        let everybody = match self.mode() {
            Mode::Off => return false,
            Mode::XApic => [XAPIC_BROADCAST, X2APIC_BROADCAST],
            Mode::X2Apic => [X2APIC_BROADCAST; 2],
        };
        match destination {
            Destination::All => true,
            Destination::AllBut(id) => id != self.id(),
            Destination::Physical(id) | Destination::Logical(id)
                if id == everybody[0] || id == everybody[1] =>
            {
                true
            }
            // An APIC with more than 8 bits of ID is found by them in xAPIC mode too, as in KVM: how else to start it.
            Destination::Physical(id) => id == self.id(),
            Destination::Logical(mda) => self.has_logical(mda),
        }
    }

    const fn has_logical(self, mda: u32) -> bool {
        if self.0 & X2APIC != 0 {
            let mine = Self::x2apic_logical_id(self.id());
            return mine >> 16 == mda >> 16 && mine & mda & 0xffff != 0;
        }
        let mine = (self.0 >> LOGICAL_ID_SHIFT & 0xff) as u32;
        if mda > 0xff || self.0 & NO_MODEL != 0 {
            false
        } else if self.0 & CLUSTER != 0 {
            mine >> 4 == mda >> 4 && mine & mda & 0xf != 0
        } else {
            mine & mda != 0
        }
    }
}
