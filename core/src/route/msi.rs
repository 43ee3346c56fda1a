//! The message of a message-signalled interrupt.

/// An MSI as the kernel's routing and `KVM_SIGNAL_MSI` have it (Intel SDM 11.11, KVM API 4.57).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Msi {
    /// Bits 31:0 of the address; 19:12 are destination bits 7:0.
    pub address_lo: u32,
    /// Bits 63:32 of the address; with KVM's x2APIC format, 31:8 are destination bits 31:8 and 7:0 are zero.
    pub address_hi: u32,
    /// Data: bits 7:0 the vector, 10:8 the delivery mode.
    pub data: u32,
    /// The device that sends it, where the interrupt controller asks (not on x86).
    pub devid: Option<u32>,
}

impl Msi {
    /// A fixed, physical, edge interrupt with `vector` for the APIC `destination`, in KVM's x2APIC format.
    #[must_use]
    pub const fn fixed(destination: u32, vector: u8) -> Self {
        Self {
            address_lo: 0xfee0_0000 | (destination & 0xff) << 12,
            address_hi: destination & !0xff,
            data: vector as u32,
            devid: None,
        }
    }

    /// The APIC it goes to: `address_lo[19:12] | address_hi[31:8]`.
    #[must_use]
    pub const fn destination(&self) -> u32 {
        (self.address_lo >> 12 & 0xff) | (self.address_hi & !0xff)
    }

    /// The vector in the data.
    #[must_use]
    pub const fn vector(&self) -> u8 {
        (self.data & 0xff) as u8
    }
}

/// The form of a cached route: three words for the latch of an irqfd.
pub(crate) const WORDS: usize = 3;

const KIND_NONE: u64 = 0;
const KIND_MSI: u64 = 1;
const HAS_DEVID: u64 = 1 << 8;

/// A route as an irqfd caches it: an MSI, or nothing that can be delivered at once.
#[inline]
pub(crate) fn pack(route: Option<Msi>) -> [u64; WORDS] {
    match route {
        None => [0, KIND_NONE << 32, 0],
        Some(msi) => {
            let kind = KIND_MSI | if msi.devid.is_some() { HAS_DEVID } else { 0 };
            [
                u64::from(msi.address_lo) | u64::from(msi.address_hi) << 32,
                u64::from(msi.data) | kind << 32,
                u64::from(msi.devid.unwrap_or(0)),
            ]
        }
    }
}

/// The inverse of [`pack`].
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "halves of a word")]
pub(crate) fn unpack(words: [u64; WORDS]) -> Option<Msi> {
    let kind = words[1] >> 32;
    if kind & 0xff != KIND_MSI {
        return None;
    }
    Some(Msi {
        address_lo: words[0] as u32,
        address_hi: (words[0] >> 32) as u32,
        data: words[1] as u32,
        devid: (kind & HAS_DEVID != 0).then_some(words[2] as u32),
    })
}
