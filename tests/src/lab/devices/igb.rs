//! Intel 82576 (datasheet 321027, chapter 8.8). The legacy registers are used at their old places, 0xc0 and on: QEMU
//! has nothing at their new ones, 0x1500 to 0x150c.

use super::{Access, Device, Kind, checked, get, set};
use pollvisor::error::Result;

const ICR: u64 = 0xc0;
const ICS: u64 = 0xc8;
const IMS: u64 = 0xd0;
const IMC: u64 = 0xd8;
const GPIE: u64 = 0x1514;
const EICS: u64 = 0x1520;
const EIMS: u64 = 0x1524;
const EIMC: u64 = 0x1528;
const EIAC: u64 = 0x152c;
const EIAM: u64 = 0x1530;
const EICR: u64 = 0x1580;

/// Multiple MSI-X vectors, PBA support, non-selective clear of ICR.
const MULTIPLE_MSIX: u32 = 1 << 31 | 1 << 4 | 1;
const VECTORS: u16 = 10;
/// The cause raised without MSI-X: "transmit descriptor written back". Nothing else raises it here.
const TXDW: u32 = 1;

/// The 82576. With MSI-X EICS raises a vector; else ICS raises a cause.
#[derive(Debug)]
pub struct Igb(Kind);

impl Igb {
    /// One that is not set up.
    #[must_use]
    pub fn new() -> Self {
        Self(Kind::Intx)
    }
}

impl Default for Igb {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for Igb {
    fn name(&self) -> &'static str {
        "igb"
    }

    fn vectors(&self, kind: Kind) -> u16 {
        if kind == Kind::Msix { VECTORS } else { 1 }
    }

    fn counts_exactly(&self) -> bool {
        true
    }

    fn set_up(&mut self, io: &mut dyn Access, kind: Kind, _memory: u64) -> Result<()> {
        self.quiet(io)?;
        self.0 = kind;
        if kind == Kind::Msix {
            let all = (1 << VECTORS) - 1;
            set(io, GPIE, MULTIPLE_MSIX);
            set(io, EIAM, 0);
            set(io, EIAC, all);
            set(io, EIMS, all);
        } else {
            set(io, IMS, TXDW);
        }
        Ok(())
    }

    fn raise(&mut self, io: &mut dyn Access, vector: u16) -> Result<()> {
        checked(self.name(), vector, self.vectors(self.0))?;
        if self.0 == Kind::Msix {
            set(io, EICS, 1 << vector)
        } else {
            set(io, ICS, TXDW)
        }
        Ok(())
    }

    fn acknowledge(&mut self, io: &mut dyn Access, _vector: u16) -> Result<()> {
        // With MSI-X the message took the cause back: EIAC.
        if self.0 != Kind::Msix {
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
        set(io, EIMC, u32::MAX);
        set(io, IMC, u32::MAX);
        set(io, EICR, u32::MAX);
        set(io, GPIE, 0);
        get(io, ICR);
        Ok(())
    }
}
