//! Interprocessor interrupts: the ICR and the SELF IPI register (SDM 6.1, 12.9, 12.11).

use super::lvt::{REDIRECTABLE, SENT_ILLEGAL};
use super::{Destination, FIRST_VECTOR, Interrupt, Lapic, Mode, Request, Written};
use crate::ids::Trigger;

/// Reads 0: an IPI is on its way before the write returns.
pub(super) const DELIVERY_STATUS: u32 = 1 << 12;
const LOGICAL: u32 = 1 << 11;
const LEVEL_ASSERT: u32 = 1 << 14;
const TRIGGER_LEVEL: u32 = 1 << 15;

impl Lapic {
    /// A write of the ICR's low half: sends.
    ///
    /// IPIs are edges (D: table 6-1; KVM honours the trigger bit). SMI, ExtINT and the reserved mode send nothing.
    pub(super) fn send(&mut self, low: u32) -> Written {
        self.icr_low = low;
        let [vector, mode, ..] = low.to_le_bytes();
        let mode = mode & 7;
        let to_self = low >> 18 & 3 == 1;
        if mode == 1 && self.mode == Mode::X2Apic {
            self.error(REDIRECTABLE);
            return Written::Nothing;
        }
        let request = match mode {
            0 | 1 if to_self => {
                self.send_to_self(vector);
                return Written::Nothing;
            }
            0 | 1 if vector < FIRST_VECTOR => {
                self.error(SENT_ILLEGAL);
                return Written::Nothing;
            }
            0 | 1 => Request::Vector { vector, trigger: Trigger::Edge },
            4 if to_self => {
                self.nmi_pending = true;
                return Written::Nothing;
            }
            4 => Request::Nmi,
            // The INIT level de-assert, which processors since the Pentium 4 ignore.
            5 if low & (TRIGGER_LEVEL | LEVEL_ASSERT) == TRIGGER_LEVEL => return Written::Nothing,
            // Table 6-3: not to oneself.
            5 | 6 if to_self => return Written::Nothing,
            5 => Request::Init,
            6 => Request::Sipi(vector),
            _ => return Written::Nothing,
        };
        let destination = match low >> 18 & 3 {
            2 => Destination::All,
            3 => Destination::AllBut(self.id),
            _ => {
                let id = if self.mode == Mode::X2Apic { self.icr_high } else { self.icr_high >> 24 };
                if low & LOGICAL != 0 { Destination::Logical(id) } else { Destination::Physical(id) }
            }
        };
        Written::Ipi(Interrupt { destination, lowest_priority: mode == 1, request })
    }

    /// A self IPI: in the IRR before the write returns. It does not pass the descriptor.
    pub(super) fn send_to_self(&mut self, vector: u8) {
        if vector < FIRST_VECTOR {
            self.error(SENT_ILLEGAL);
        }
        self.accept_local(vector);
    }
}
