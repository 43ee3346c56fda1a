//! The two ways to the registers, memory and MSRs, and what each refuses (SDM 4.1, 12.1).

use super::registers::{Register, Written};
use super::{Fault, Lapic, Mode, Time, lvt::ILLEGAL_REGISTER, mode};
use crate::sync::PostedVcpu;

/// Bytes of the register page.
pub const PAGE: u64 = 0x1000;

/// The x2APIC registers' MSRs.
const FIRST_MSR: u32 = 0x800;
const LAST_MSR: u32 = 0x8ff;
/// `IA32_APIC_BASE`.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// `IA32_TSC_DEADLINE`.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;

impl Lapic {
    /// The guest reads `data.len()` bytes at `offset` of the APIC page. Registers answer to 1, 2 and 4 bytes inside their
    /// first dword; all else there reads as zeros, and all of it as ones unless this is xAPIC mode.
    pub fn read_mmio(&mut self, offset: u64, data: &mut [u8], now: Time) {
        if self.mode != Mode::XApic {
            data.fill(0xff);
            return;
        }
        self.advance(now);
        data.fill(0);
        let Some(register) = self.mapped(offset) else { return };
        let start = (offset & 0xf) as usize;
        let value = self.value(register, now).to_le_bytes();
        if let (1 | 2 | 4, Some(bytes)) = (data.len(), value.get(start..start + data.len())) {
            data.copy_from_slice(bytes);
        }
    }

    /// The guest writes `data` at `offset` of the APIC page. Registers take aligned writes of 4 bytes.
    pub fn write_mmio(&mut self, vcpu: &PostedVcpu, offset: u64, data: &[u8], now: Time) -> Written {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return Written::Nothing };
        if self.mode != Mode::XApic || offset & 0xf != 0 {
            return Written::Nothing;
        }
        self.advance(now);
        let Some(register) = self.mapped(offset) else { return Written::Nothing };
        let value = u32::from_le_bytes(bytes) & register.writable(self.eoi_suppression);
        // Memory cannot fault: a timer mode that is none leaves the entry as it is.
        self.store(vcpu, register, value, now).unwrap_or(Written::Nothing)
    }

    /// The register of the page, or an error in the ESR.
    fn mapped(&mut self, offset: u64) -> Option<Register> {
        let number = u32::try_from(offset / 16).unwrap_or(u32::MAX);
        match Register::from_number(number) {
            None | Some(Register::SelfIpi) => {
                self.error(ILLEGAL_REGISTER);
                None
            }
            register => register,
        }
    }

    /// The guest reads one of the APIC's MSRs: 0x800 to 0x8ff, [`MSR_APIC_BASE`], [`MSR_TSC_DEADLINE`].
    ///
    /// # Errors
    /// #GP for what cannot be read, and for other MSRs.
    pub fn read_msr(&mut self, msr: u32, now: Time) -> Result<u64, Fault> {
        self.advance(now);
        match msr {
            MSR_APIC_BASE => return Ok(self.apic_base()),
            MSR_TSC_DEADLINE => return Ok(self.timer.deadline()),
            _ => {}
        }
        match self.register_of(msr)? {
            Register::Eoi | Register::SelfIpi => Err(Fault),
            Register::IcrLow => Ok(u64::from(self.icr_high) << 32 | u64::from(self.icr_low)),
            register => Ok(self.value(register, now).into()),
        }
    }

    /// The guest writes one of the MSRs that [`read_msr`](Self::read_msr) names.
    ///
    /// # Errors
    /// #GP, with nothing changed, for what cannot be written, for reserved bits, and for other MSRs.
    pub fn write_msr(
        &mut self,
        vcpu: &PostedVcpu,
        msr: u32,
        value: u64,
        now: Time,
    ) -> Result<Written, Fault> {
        self.advance(now);
        match msr {
            MSR_APIC_BASE => return self.set_apic_base(vcpu, value),
            MSR_TSC_DEADLINE => {
                self.set_deadline(value, now);
                return Ok(Written::Nothing);
            }
            _ => {}
        }
        let register = self.register_of(msr)?;
        let [low, high] = mode::halves(value);
        let writable = match register {
            Register::Ldr => 0,
            register => register.writable(self.eoi_suppression),
        };
        let takes_writes = writable != 0 || matches!(register, Register::Eoi | Register::Esr);
        if !takes_writes || low & !(writable | register.read_only()) != 0 {
            return Err(Fault);
        }
        match register {
            Register::IcrLow => self.icr_high = high,
            _ if high != 0 => return Err(Fault),
            _ => {}
        }
        self.store(vcpu, register, low & writable, now)
    }

    /// The register that an MSR is, in x2APIC mode.
    fn register_of(&self, msr: u32) -> Result<Register, Fault> {
        if self.mode != Mode::X2Apic || !(FIRST_MSR..=LAST_MSR).contains(&msr) {
            return Err(Fault);
        }
        match Register::from_number(msr - FIRST_MSR) {
            None | Some(Register::Apr | Register::Rrd | Register::Dfr | Register::IcrHigh) => Err(Fault),
            Some(register) => Ok(register),
        }
    }
}
