//! The registers: what each is called, which bits of it can be written, and what reading and writing them does. Who may do
//! so in which form is `access`'s.

use super::{DFR_RESET, Eoi, Fault, Interrupt, Lapic, Lvt, Mode, SVR_ENABLED, Time};
use crate::ioapic::VectorSet;
use crate::sync::PostedVcpu;

/// Version 0x14, LVT entries 0 to 5.
const VERSION: u32 = 0x0005_0014;
/// EOI broadcasts can be suppressed.
const VERSION_EOI_SUPPRESSION: u32 = 1 << 24;
/// SVR: EOIs are not broadcast.
pub(super) const SVR_NO_EOI_BROADCAST: u32 = 1 << 12;
const SVR_VECTOR_AND_FOCUS: u32 = 0x2ff;

/// A register, by its number: the MMIO offset divided by 16, the MSR less 0x800.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Id,
    Version,
    Tpr,
    /// Arbitration priority: reads 0.
    Apr,
    Ppr,
    Eoi,
    /// Remote read: reads 0.
    Rrd,
    Ldr,
    Dfr,
    Svr,
    Isr(usize),
    Tmr(usize),
    Irr(usize),
    Esr,
    IcrLow,
    IcrHigh,
    Lvt(Lvt),
    InitialCount,
    CurrentCount,
    Divide,
    SelfIpi,
}

/// What a guest's write owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an IPI to deliver, or an EOI to pass on"]
pub enum Written {
    /// Nothing.
    Nothing,
    /// An interrupt ended.
    Eoi(Eoi),
    /// [`deliver`](super::deliver) this.
    Ipi(Interrupt),
}

impl Register {
    pub(super) const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0x02 => Self::Id,
            0x03 => Self::Version,
            0x08 => Self::Tpr,
            0x09 => Self::Apr,
            0x0a => Self::Ppr,
            0x0b => Self::Eoi,
            0x0c => Self::Rrd,
            0x0d => Self::Ldr,
            0x0e => Self::Dfr,
            0x0f => Self::Svr,
            0x10..=0x17 => Self::Isr((number - 0x10) as usize),
            0x18..=0x1f => Self::Tmr((number - 0x18) as usize),
            0x20..=0x27 => Self::Irr((number - 0x20) as usize),
            0x28 => Self::Esr,
            0x30 => Self::IcrLow,
            0x31 => Self::IcrHigh,
            0x32 => Self::Lvt(Lvt::Timer),
            0x33 => Self::Lvt(Lvt::Thermal),
            0x34 => Self::Lvt(Lvt::Performance),
            0x35 => Self::Lvt(Lvt::Lint0),
            0x36 => Self::Lvt(Lvt::Lint1),
            0x37 => Self::Lvt(Lvt::Error),
            0x38 => Self::InitialCount,
            0x39 => Self::CurrentCount,
            0x3e => Self::Divide,
            0x3f => Self::SelfIpi,
            _ => return None,
        })
    }

    /// The bits that a write defines. The others are ignored in xAPIC mode and fault in x2APIC mode, but for
    /// [`read_only`](Self::read_only).
    pub(super) const fn writable(self, eoi_suppression: bool) -> u32 {
        match self {
            Self::Tpr | Self::SelfIpi => 0xff,
            Self::Ldr | Self::IcrHigh => 0xff00_0000,
            Self::Dfr => 0xf000_0000,
            Self::Svr if eoi_suppression => SVR_VECTOR_AND_FOCUS | SVR_ENABLED | SVR_NO_EOI_BROADCAST,
            Self::Svr => SVR_VECTOR_AND_FOCUS | SVR_ENABLED,
            Self::IcrLow => 0x000c_cfff,
            Self::Lvt(lvt) => lvt.writable(),
            Self::InitialCount => u32::MAX,
            Self::Divide => 0b1011,
            _ => 0,
        }
    }

    /// Bits that are no register's to write and are not reserved either: a write drops them in both modes.
    pub(super) const fn read_only(self) -> u32 {
        match self {
            Self::IcrLow => super::icr::DELIVERY_STATUS,
            Self::Lvt(lvt) => lvt.read_only(),
            _ => 0,
        }
    }
}

impl Lapic {
    /// The register's value at `now`, for which [`advance`](Lapic::advance) was called.
    pub(super) fn value(&self, register: Register, now: Time) -> u32 {
        match register {
            Register::Id => match self.mode {
                Mode::X2Apic => self.id,
                _ => self.id << 24,
            },
            Register::Version if self.eoi_suppression => VERSION | VERSION_EOI_SUPPRESSION,
            Register::Version => VERSION,
            Register::Tpr => self.tpr.into(),
            Register::Ppr => self.ppr().into(),
            Register::Ldr => match self.mode {
                Mode::X2Apic => super::Address::x2apic_logical_id(self.id),
                _ => self.ldr,
            },
            Register::Dfr => self.dfr,
            Register::Svr => self.svr,
            Register::Isr(word) => dword(&self.isr, word),
            Register::Tmr(word) => dword(&self.tmr, word),
            Register::Irr(word) => dword(&self.irr, word),
            Register::Esr => self.esr,
            Register::IcrLow => self.icr_low,
            Register::IcrHigh => self.icr_high,
            Register::Lvt(lvt) => self.lvt[lvt as usize],
            Register::InitialCount => self.timer.initial(),
            Register::CurrentCount => self.timer.current(now),
            Register::Divide => self.timer.divide(),
            Register::Eoi | Register::SelfIpi | Register::Apr | Register::Rrd => 0,
        }
    }

    /// Writes a register with [`writable`](Register::writable) bits only.
    ///
    /// # Errors
    /// The timer mode that is none; nothing has changed then.
    pub(super) fn store(
        &mut self,
        vcpu: &PostedVcpu,
        register: Register,
        value: u32,
        now: Time,
    ) -> Result<Written, Fault> {
        match register {
            Register::Tpr => self.tpr = value.to_le_bytes()[0],
            Register::Eoi => return Ok(self.eoi().map_or(Written::Nothing, Written::Eoi)),
            Register::Ldr => self.ldr = value,
            Register::Dfr => self.dfr = value | (DFR_RESET >> 4),
            Register::Svr => self.set_svr(value),
            Register::Esr => self.esr = core::mem::take(&mut self.errors),
            Register::IcrLow => return Ok(self.send(value)),
            Register::IcrHigh => self.icr_high = value,
            Register::Lvt(lvt) => self.set_lvt(lvt, value)?,
            Register::InitialCount => self.set_initial_count(value, now),
            Register::Divide => self.timer.set_divide(value, now),
            Register::SelfIpi => self.send_to_self(value.to_le_bytes()[0]),
            _ => {}
        }
        if matches!(register, Register::Ldr | Register::Dfr | Register::Svr) {
            vcpu.publish(self.address().bits());
        }
        Ok(Written::Nothing)
    }

    pub(super) fn set_svr(&mut self, value: u32) {
        self.svr = value;
        self.mask_lvts_if_disabled();
    }

    /// The task priority as CR8 has it, in every mode (SDM 8.6.1).
    #[must_use]
    pub const fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// The guest writes CR8: bits 3:0 of the TPR become 0.
    ///
    /// # Errors
    /// A fault, with nothing changed, above 15.
    pub fn set_cr8(&mut self, value: u64) -> Result<(), Fault> {
        match u8::try_from(value) {
            Ok(priority @ 0..=15) => {
                self.tpr = priority << 4;
                Ok(())
            }
            _ => Err(Fault),
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "one half of a word")]
fn dword(set: &VectorSet, number: usize) -> u32 {
    (set.words()[number / 2] >> (number % 2 * 32)) as u32
}
