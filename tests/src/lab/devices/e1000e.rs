//! Intel 82574 (datasheet 316080, chapter 10.2.4).
//!
//! QEMU sends every message again when the vector's throttling timer ends, at least 128 µs later: what arrives cannot
//! be counted.

use super::{Access, Device, Kind, checked, get, set};
use pollvisor::error::Result;

const CTRL_EXT: u64 = 0x18;
const ICR: u64 = 0xc0;
const ICS: u64 = 0xc8;
const IMS: u64 = 0xd0;
const IMC: u64 = 0xd8;
const EIAC: u64 = 0xdc;
const IVAR: u64 = 0xe4;
const EITR: u64 = 0xe8;

const VECTORS: u16 = 5;
/// The causes that have vectors: RxQ0, RxQ1, TxQ0, TxQ1, other.
const FIRST_QUEUE: u16 = 20;
const QUEUES: u32 = 0x1f << FIRST_QUEUE;
/// Causes to vectors 0 to 4, in that order, each valid (bit 3 of its nibble).
const STRAIGHT: u32 = 0xc_ba98;
/// PBA support, and with IAME EIAC leaves IMS alone.
const PBA_SUPPORT: u32 = 1 << 31;
const IAME: u32 = 1 << 27;
/// The cause raised without MSI-X: "transmit descriptor written back". Nothing else raises it here.
const TXDW: u32 = 1;

/// The 82574. ICS raises a cause, which with MSI-X has a vector of its own.
#[derive(Debug)]
pub struct E1000e(Kind);

impl E1000e {
    /// One that is not set up.
    #[must_use]
    pub fn new() -> Self {
        Self(Kind::Intx)
    }
}

impl Default for E1000e {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for E1000e {
    fn name(&self) -> &'static str {
        "e1000e"
    }

    fn vectors(&self, kind: Kind) -> u16 {
        if kind == Kind::Msix { VECTORS } else { 1 }
    }

    fn counts_exactly(&self) -> bool {
        false
    }

    fn set_up(&mut self, io: &mut dyn Access, kind: Kind, _memory: u64) -> Result<()> {
        self.quiet(io)?;
        self.0 = kind;
        let control = get(io, CTRL_EXT);
        if kind == Kind::Msix {
            set(io, IVAR, STRAIGHT);
            (0..VECTORS).for_each(|vector| set(io, EITR + 4 * u64::from(vector), 0));
            set(io, CTRL_EXT, control | PBA_SUPPORT | IAME);
            set(io, EIAC, QUEUES);
            set(io, IMS, QUEUES);
        } else {
            set(io, CTRL_EXT, control & !(PBA_SUPPORT | IAME));
            set(io, EIAC, 0);
            set(io, IMS, TXDW);
        }
        Ok(())
    }

    fn raise(&mut self, io: &mut dyn Access, vector: u16) -> Result<()> {
        checked(self.name(), vector, self.vectors(self.0))?;
        set(io, ICS, if self.0 == Kind::Msix { 1 << (FIRST_QUEUE + vector) } else { TXDW });
        Ok(())
    }

    fn acknowledge(&mut self, io: &mut dyn Access, _vector: u16) -> Result<()> {
        // With MSI-X the message took the cause back: EIAC.
        if self.0 != Kind::Msix {
            set(io, ICR, TXDW);
            get(io, ICR);
        }
        Ok(())
    }

    fn silence(&self) -> Option<(u64, u32)> {
        Some((IMC, TXDW))
    }

    fn listen_again(&mut self, io: &mut dyn Access) {
        set(io, IMS, TXDW);
    }

    fn quiet(&mut self, io: &mut dyn Access) -> Result<()> {
        set(io, IMC, u32::MAX);
        set(io, ICR, u32::MAX);
        get(io, ICR);
        Ok(())
    }
}
