//! What a guest's driver does to a PCI function, by a puppet's accesses: look for it, switch it on, set its interrupts up.

use super::puppet::Puppet;
use crate::chips::IOAPIC_BASE;
use crate::error::{Error, Result};
use crate::platform::{ECAM_BASE, intx_pin};
use pollvisor_core::ids::VcpuId;
use pollvisor_core::route::Msi;

const COMMAND: u16 = 4;
const STATUS: u16 = 6;
const BAR0: u16 = 0x10;
const CAPABILITIES: u16 = 0x34;
/// Memory, ports, bus mastering.
const DECODE_AND_MASTER: u64 = 7;
const INTX_OFF: u64 = 1 << 10;
const MSI: u8 = 5;
const MSIX: u8 = 0x11;
const ENTRY: u64 = 16;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;

/// A function in a slot of the guest's bus.
#[derive(Debug, Clone, Copy)]
pub struct Driver<'a> {
    puppet: &'a Puppet,
    slot: u8,
}

/// All functions on the bus: slot, vendor, device.
///
/// # Errors
/// Those of the puppet; so in all of these.
pub fn scan(puppet: &Puppet) -> Result<Vec<(u8, u16, u16)>> {
    let mut found = Vec::new();
    for slot in 0..crate::pci::SLOTS {
        let [a, b, c, d] = Driver::new(puppet, slot).config(0, 4)?.to_le_bytes()[..4] else { continue };
        let vendor = u16::from_le_bytes([a, b]);
        if vendor != u16::MAX {
            found.push((slot, vendor, u16::from_le_bytes([c, d])));
        }
    }
    Ok(found)
}

impl<'a> Driver<'a> {
    /// The function in `slot`.
    #[must_use]
    pub fn new(puppet: &'a Puppet, slot: u8) -> Self {
        Self { puppet, slot }
    }

    fn address(&self, offset: u16) -> u64 {
        ECAM_BASE + (u64::from(self.slot) << 15) + u64::from(offset)
    }

    /// Reads configuration space.
    ///
    /// # Errors
    /// Those of the puppet.
    pub fn config(&self, offset: u16, bytes: usize) -> Result<u64> {
        self.puppet.read(self.address(offset), bytes)
    }

    /// Writes configuration space.
    ///
    /// # Errors
    /// Those of the puppet.
    pub fn set_config(&self, offset: u16, bytes: usize, value: u64) -> Result<()> {
        self.puppet.write(self.address(offset), bytes, value)
    }

    /// Switches decoding and bus mastering on.
    ///
    /// # Errors
    /// Those of the puppet.
    pub fn enable(&self) -> Result<()> {
        let command = self.config(COMMAND, 2)?;
        self.set_config(COMMAND, 2, command | DECODE_AND_MASTER)
    }

    /// Where a memory BAR is, by its registers.
    ///
    /// # Errors
    /// Ports; those of the puppet.
    pub fn bar(&self, index: u8) -> Result<u64> {
        let register = BAR0 + 4 * u16::from(index);
        let low = self.config(register, 4)?;
        if low & 1 != 0 {
            return Err(Error::new(format!("BAR {index} is of ports")));
        }
        let high = if low & 4 != 0 { self.config(register + 4, 4)? } else { 0 };
        Ok(low & !0xf | high << 32)
    }

    /// Where a BAR of ports is, by its register; none: it is of memory.
    ///
    /// # Errors
    /// Those of the puppet.
    pub fn ports(&self, index: u8) -> Result<Option<u16>> {
        let low = self.config(BAR0 + 4 * u16::from(index), 4)?;
        Ok(u16::try_from(low & !3).ok().filter(|_| low & 1 != 0))
    }

    /// Where a capability is; none when the function does not have it.
    ///
    /// # Errors
    /// A chain that does not end; those of the puppet.
    pub fn capability(&self, id: u8) -> Result<Option<u16>> {
        if self.config(STATUS, 2)? & 0x10 == 0 {
            return Ok(None);
        }
        let mut at = u16::try_from(self.config(CAPABILITIES, 1)?).unwrap_or(0);
        for _ in 0..48 {
            if at == 0 {
                return Ok(None);
            }
            let header = self.config(at, 2)?;
            if header & 0xff == u64::from(id) {
                return Ok(Some(at));
            }
            at = u16::try_from(header >> 8).unwrap_or(0);
        }
        Err(Error::new(format!("slot {}: the capabilities do not end", self.slot)))
    }

    fn has(&self, id: u8) -> Result<u16> {
        self.capability(id)?.ok_or_else(|| {
            let name = if id == MSI { "MSI" } else { "MSI-X" };
            Error::new(format!("the device in slot {} has no {name}", self.slot))
        })
    }

    /// How many MSI-X vectors its table has.
    ///
    /// # Errors
    /// When it has none; those of the puppet.
    pub fn msix_vectors(&self) -> Result<u16> {
        let control = self.config(self.has(MSIX)? + 2, 2)?;
        Ok(u16::try_from(control & 0x7ff).unwrap_or(0) + 1)
    }

    /// The address of an MSI-X table's entry; of the pending bits.
    fn msix_place(&self, register: u16) -> Result<u64> {
        let place = self.config(self.has(MSIX)? + register, 4)?;
        let bar = u8::try_from(place & 7).unwrap_or(0);
        Ok(self.bar(bar)? + (place & !7))
    }

    /// Sets MSI-X up as Linux does: on with all masked, the entries, then the mask off.
    ///
    /// # Errors
    /// When it has none, or not so many vectors; those of the puppet.
    pub fn enable_msix(&self, targets: &[(VcpuId, u8)]) -> Result<()> {
        let at = self.has(MSIX)?;
        if targets.len() > usize::from(self.msix_vectors()?) {
            return Err(Error::new(format!("the device in slot {} has fewer MSI-X vectors", self.slot)));
        }
        self.set_config(at + 2, 2, 0xc000)?;
        for (vector, target) in (0..).zip(targets) {
            self.set_entry(vector, *target)?;
            self.mask(vector, false)?;
        }
        self.set_config(at + 2, 2, 0x8000)
    }

    /// Writes an entry's message, masked or not.
    ///
    /// # Errors
    /// Those of the puppet.
    pub fn set_entry(&self, vector: u16, (vcpu, gate): (VcpuId, u8)) -> Result<()> {
        let entry = self.msix_place(4)? + u64::from(vector) * ENTRY;
        let message = Msi::fixed(vcpu.0, gate);
        self.puppet.write(entry, 4, message.address_lo.into())?;
        self.puppet.write(entry + 4, 4, message.address_hi.into())?;
        self.puppet.write(entry + 8, 4, message.data.into())
    }

    /// Masks or unmasks an MSI-X vector.
    ///
    /// # Errors
    /// Those of the puppet.
    pub fn mask(&self, vector: u16, masked: bool) -> Result<()> {
        self.puppet.write(self.msix_place(4)? + u64::from(vector) * ENTRY + 12, 4, masked.into())
    }

    /// Whether an MSI-X vector's pending bit is set.
    ///
    /// # Errors
    /// Those of the puppet.
    pub fn pending(&self, vector: u16) -> Result<bool> {
        let word = self.puppet.read(self.msix_place(8)? + u64::from(vector / 32) * 4, 4)?;
        Ok(word >> (vector % 32) & 1 != 0)
    }

    /// Switches MSI-X off.
    ///
    /// # Errors
    /// When it has none; those of the puppet.
    pub fn disable_msix(&self) -> Result<()> {
        self.set_config(self.has(MSIX)? + 2, 2, 0)
    }

    /// Sets plain MSI up with one vector.
    ///
    /// # Errors
    /// When it has none; those of the puppet.
    pub fn enable_msi(&self, (vcpu, gate): (VcpuId, u8)) -> Result<()> {
        let at = self.has(MSI)?;
        let wide = self.config(at + 2, 2)? & 1 << 7 != 0;
        let message = Msi::fixed(vcpu.0, gate);
        self.set_config(at + 4, 4, message.address_lo.into())?;
        if wide {
            self.set_config(at + 8, 4, message.address_hi.into())?;
        }
        self.set_config(at + if wide { 12 } else { 8 }, 2, message.data.into())?;
        self.set_config(at + 2, 2, 1)
    }

    /// Switches plain MSI off.
    ///
    /// # Errors
    /// When it has none; those of the puppet.
    pub fn disable_msi(&self) -> Result<()> {
        self.set_config(self.has(MSI)? + 2, 2, 0)
    }

    /// Whether it has an interrupt pin.
    ///
    /// # Errors
    /// Those of the puppet.
    pub fn has_intx(&self) -> Result<bool> {
        Ok(self.config(0x3d, 1)? != 0)
    }

    /// Routes its line to a vCPU's gate, as a level, and lets it raise it.
    ///
    /// # Errors
    /// When it has none; those of the puppet.
    pub fn enable_intx(&self, (vcpu, gate): (VcpuId, u8)) -> Result<()> {
        if !self.has_intx()? {
            return Err(Error::new(format!("the device in slot {} has no INTx", self.slot)));
        }
        self.set_redirection(u64::from(gate) | LEVEL, u64::from(vcpu.0) << 24)?;
        let command = self.config(COMMAND, 2)?;
        self.set_config(COMMAND, 2, command & !INTX_OFF)
    }

    /// Masks its line at the I/O APIC.
    ///
    /// # Errors
    /// Those of the puppet.
    pub fn disable_intx(&self) -> Result<()> {
        self.set_redirection(MASKED, 0)
    }

    /// The redirection entry of its pin, the high half first: the entry is live with the low one.
    fn set_redirection(&self, low: u64, high: u64) -> Result<()> {
        let register = 0x10 + 2 * u64::from(intx_pin(self.slot));
        for (register, value) in [(register + 1, high), (register, low)] {
            self.puppet.write(IOAPIC_BASE, 4, register)?;
            self.puppet.write(IOAPIC_BASE + 0x10, 4, value)?;
        }
        Ok(())
    }
}
