//! On, off, x2APIC; reset, INIT, SIPI and NMI (SDM 4.3, 4.7, 12.1, 12.5).
//!
//! ```text
//!  off ──────► xAPIC ──────► x2APIC
//!   ▲            │             │      nothing else: #GP
//!   └────────────┴─────────────┘      off resets the registers
//! ```

use super::lvt::{ENTRIES, MASKED, RECEIVED_ILLEGAL};
use super::{DFR_RESET, Fault, Lapic, Mode, Role, SVR_RESET, Timer, Written};
use crate::ioapic::VectorSet;
use crate::sync::{Events, PostedVcpu};

/// Where the register page is after a reset.
pub(super) const DEFAULT_BASE: u64 = 0xfee0_0000;
const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;
/// Bits 51:12.
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Something that comes beside the IRR, for the vCPU to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the vCPU acts on it"]
pub enum Event {
    /// The processor resets itself; its APIC has. An application processor waits for [`Startup`](Self::Startup).
    Init,
    /// The processor starts at `vector << 12`.
    Startup {
        /// The SIPI's vector.
        vector: u8,
    },
    /// Handle a non-maskable interrupt, and say [`Lapic::nmi_done`] when its handler returned.
    Nmi,
}

impl Mode {
    /// Whether a guest may go from one to the other.
    #[must_use]
    pub const fn valid_transition(from: Self, to: Self) -> bool {
        !matches!((from, to), (Self::Off, Self::X2Apic) | (Self::X2Apic, Self::XApic))
    }
}

/// The low and the high half.
#[allow(clippy::cast_possible_truncation, reason = "one half of a word")]
pub(super) const fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

impl Lapic {
    /// The APIC base register.
    #[must_use]
    pub const fn apic_base(&self) -> u64 {
        let mode = match self.mode {
            Mode::Off => 0,
            Mode::XApic => BASE_ENABLED,
            Mode::X2Apic => BASE_ENABLED | BASE_X2APIC,
        };
        let bsp = match self.role {
            Role::Bsp => BASE_BSP,
            Role::Ap => 0,
        };
        self.base | mode | bsp
    }

    /// Where the guest has its register page.
    #[must_use]
    pub const fn base_address(&self) -> u64 {
        self.base
    }

    /// The mode.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn set_apic_base(&mut self, vcpu: &PostedVcpu, value: u64) -> Result<Written, Fault> {
        if value & !(BASE_ADDRESS | BASE_ENABLED | BASE_X2APIC | BASE_BSP) != 0 {
            return Err(Fault);
        }
        let mode = match (value & BASE_ENABLED != 0, value & BASE_X2APIC != 0) {
            (false, false) => Mode::Off,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
            (false, true) => return Err(Fault),
        };
        if !Mode::valid_transition(self.mode, mode) {
            return Err(Fault);
        }
        self.base = value & BASE_ADDRESS;
        let old = core::mem::replace(&mut self.mode, mode);
        match (old, mode) {
            (Mode::XApic, Mode::X2Apic) => {
                self.ldr = 0;
                self.icr_high = 0;
            }
            (Mode::XApic | Mode::X2Apic, Mode::Off) => self.reset_registers(),
            _ => {}
        }
        vcpu.publish(self.address().bits());
        if mode == Mode::Off {
            // After the address says so: what is posted behind this is discarded by the next harvest.
            self.counts.discarded += u64::from(vcpu.posted().discard());
        }
        Ok(Written::Nothing)
    }

    /// The machine is reset: everything as new, but for the counts and what the host set up. The vCPU's thread.
    pub fn reset(&mut self, vcpu: &PostedVcpu) {
        self.reset_registers();
        self.mode = Mode::XApic;
        self.base = DEFAULT_BASE;
        self.forget_events();
        vcpu.publish(self.address().bits());
        if let Some(harvest) = vcpu.posted().harvest() {
            self.discard(&harvest);
        }
    }

    /// Everything that a reset, an INIT and switching off have in common. ID, mode and base are not.
    fn reset_registers(&mut self) {
        self.counts.discarded += u64::from(self.irr.len());
        (self.irr, self.isr, self.tmr) = (VectorSet::EMPTY, VectorSet::EMPTY, VectorSet::EMPTY);
        (self.tpr, self.svr, self.ldr, self.dfr) = (0, SVR_RESET, 0, DFR_RESET);
        (self.esr, self.errors, self.icr_low, self.icr_high) = (0, 0, 0, 0);
        self.lvt = [MASKED; ENTRIES];
        self.timer = Timer::RESET;
    }

    fn forget_events(&mut self) {
        self.waits_for_sipi = self.role == Role::Ap;
        self.init_pending = false;
        self.startup = None;
        self.nmi_pending = false;
        self.nmi_blocked = false;
    }

    /// What came beside the IRR, in the order in which the vCPU has to see it.
    pub(super) fn accept_events(&mut self, vcpu: &PostedVcpu, events: Events) {
        if events.init() {
            self.reset_registers();
            self.forget_events();
            self.init_pending = true;
            vcpu.publish(self.address().bits());
        } else if events.nmi() {
            self.nmi_pending = true;
        }
        // To a processor that does not wait for it, a SIPI is nothing.
        if let Some(vector) = events.sipi().filter(|_| self.waits_for_sipi) {
            self.waits_for_sipi = false;
            self.startup = Some(vector);
        }
        if events.illegal_vector() && !events.init() && self.mode != Mode::Off {
            self.error(RECEIVED_ILLEGAL);
        }
    }

    /// The next thing, if there is one, that the vCPU has to do before it takes interrupts. After each
    /// [`harvest`](Self::harvest), until there is nothing.
    pub fn event(&mut self) -> Option<Event> {
        if core::mem::take(&mut self.init_pending) {
            return Some(Event::Init);
        }
        if let Some(vector) = self.startup.take() {
            return Some(Event::Startup { vector });
        }
        if self.nmi_pending && !self.nmi_blocked && !self.waits_for_sipi {
            self.nmi_pending = false;
            self.nmi_blocked = true;
            return Some(Event::Nmi);
        }
        None
    }

    /// The handler of an [`Event::Nmi`] returned (IRET). One that came meanwhile is next.
    pub fn nmi_done(&mut self) {
        self.nmi_blocked = false;
    }

    /// Whether the vCPU does nothing before a start-up IPI.
    #[must_use]
    pub const fn waits_for_sipi(&self) -> bool {
        self.waits_for_sipi
    }
}
