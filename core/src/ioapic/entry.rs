//! One redirection entry: what each bit means, and the message it implies.

use crate::ids::Trigger;
use crate::msix::Message;

const VECTOR: u64 = 0xff;
const LOGICAL: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const ACTIVE_LOW: u64 = 1 << 13;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// What a write of the guest's leaves as it is.
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;

/// Where local APICs listen; the destination goes into bits 19:12.
const MSI_BASE: u32 = 0xfee0_0000;
const MSI_LOGICAL: u32 = 1 << 2;
/// "Asserted"; means something in a level message only.
const MSI_ASSERT: u32 = 1 << 14;
const MSI_LEVEL: u32 = 1 << 15;

/// What the local APIC is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, to every destination.
    Fixed,
    /// The vector, to the destination of the lowest priority.
    LowestPriority,
    /// A system management interrupt.
    Smi,
    /// A non-maskable interrupt.
    Nmi,
    /// Reset of the destination.
    Init,
    /// An external controller supplies the vector.
    ExtInt,
    /// The two encodings that the datasheet reserves (3 and 6): passed on as they are.
    Reserved(u8),
}

impl DeliveryMode {
    /// Whether the interrupt has a vector that the guest will send an EOI for.
    #[must_use]
    pub const fn has_eoi(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// A redirection entry as the register holds it: reserved bits keep what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// Masked, edge, everything else zero.
    pub const RESET: Self = Self(MASKED);

    /// The entry with these bits, read-only ones included.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// All bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The low half.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
    pub const fn low(self) -> u32 {
        self.0 as u32
    }

    /// The high half.
    #[must_use]
    pub const fn high(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The entry after the guest wrote its low half: delivery status and remote IRR stay, and an edge entry has
    /// no remote IRR (guests without an EOI register clear it this way).
    #[must_use]
    pub const fn with_low(self, value: u32) -> Self {
        let written = (self.0 & (!0xffff_ffff | READ_ONLY)) | (value as u64 & !READ_ONLY);
        Self(written).settled()
    }

    /// The entry after the guest wrote its high half.
    #[must_use]
    pub const fn with_high(self, value: u32) -> Self {
        Self((self.0 & 0xffff_ffff) | ((value as u64) << 32)).settled()
    }

    const fn settled(self) -> Self {
        match self.trigger() {
            Trigger::Edge => Self(self.0 & !REMOTE_IRR),
            Trigger::Level => self,
        }
    }

    pub(super) const fn with_remote_irr(self, set: bool) -> Self {
        if set { Self(self.0 | REMOTE_IRR) } else { Self(self.0 & !REMOTE_IRR) }
    }

    /// The vector.
    #[must_use]
    pub const fn vector(self) -> u8 {
        (self.0 & VECTOR) as u8
    }

    /// The delivery mode.
    #[must_use]
    pub const fn delivery_mode(self) -> DeliveryMode {
        match ((self.0 >> 8) & 7) as u8 {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            7 => DeliveryMode::ExtInt,
            other => DeliveryMode::Reserved(other),
        }
    }

    /// Whether the destination is a logical one.
    #[must_use]
    pub const fn is_logical(self) -> bool {
        self.0 & LOGICAL != 0
    }

    /// Whether the guest says the line is active low. Recorded, nothing more: lines here are asserted or not.
    #[must_use]
    pub const fn is_active_low(self) -> bool {
        self.0 & ACTIVE_LOW != 0
    }

    /// Whether a level interrupt was delivered and its EOI has not come.
    #[must_use]
    pub const fn remote_irr(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    /// Edge or level.
    #[must_use]
    pub const fn trigger(self) -> Trigger {
        if self.0 & LEVEL == 0 { Trigger::Edge } else { Trigger::Level }
    }

    /// Whether the entry is level-triggered.
    #[must_use]
    pub const fn is_level(self) -> bool {
        self.0 & LEVEL != 0
    }

    /// Whether the guest masked it.
    #[must_use]
    pub const fn is_masked(self) -> bool {
        self.0 & MASKED != 0
    }

    /// The destination: 8 bits, the extended ones are not implemented.
    #[must_use]
    pub const fn destination(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// The message that a delivery by this entry is.
    #[must_use]
    pub const fn message(self) -> Message {
        let logical = if self.is_logical() { MSI_LOGICAL } else { 0 };
        let level = if self.is_level() { MSI_LEVEL | MSI_ASSERT } else { 0 };
        Message {
            address_lo: MSI_BASE | (self.destination() as u32) << 12 | logical,
            address_hi: 0,
            data: level | (self.low() & 0x7ff),
        }
    }
}

/// A level message with this vector to everybody, never to be sent: a route with it on a GSI of its own makes
/// KVM exit on the vector's EOI (see [`Ioapic::unrouted_eoi_vectors`](super::Ioapic::unrouted_eoi_vectors)).
///
/// To everybody in KVM's x2APIC format: without the high half it would go to the APIC 0xff alone where
/// `KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK` is on.
#[must_use]
pub const fn eoi_route(vector: u8) -> Message {
    Message {
        address_lo: MSI_BASE | 0xff << 12,
        address_hi: 0xffff_ff00,
        data: MSI_LEVEL | MSI_ASSERT | vector as u32,
    }
}
