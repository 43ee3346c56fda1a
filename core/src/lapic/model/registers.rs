//! The model's registers: the table, and what reading and writing them does.

use super::{Apic, Form};
use crate::ids::Trigger;
use crate::lapic::{Destination, Interrupt, Request};
extern crate std;
use std::collections::BTreeSet;

/// Readable and writable, by one form of access.
type Rights = (bool, bool);
const NONE: Rights = (false, false);
const RO: Rights = (true, false);
const WO: Rights = (false, true);
const RW: Rights = (true, true);

/// Number; rights by memory; rights by MSR; bits that can be written; bits that a write drops without a fault.
type Row = (u32, Rights, Rights, u32, u32);
const ROWS: [Row; 24] = [
    (0x02, RO, RO, 0, 0),
    (0x03, RO, RO, 0, 0),
    (0x08, RW, RW, 0xff, 0),
    (0x09, RO, NONE, 0, 0),
    (0x0a, RO, RO, 0, 0),
    (0x0b, RW, WO, 0, 0),
    (0x0c, RO, NONE, 0, 0),
    (0x0d, RW, RO, 0xff00_0000, 0),
    (0x0e, RW, NONE, 0xf000_0000, 0),
    (0x0f, RW, RW, 0x3ff, 0),
    (0x28, RW, RW, 0, 0),
    (0x30, RW, RW, 0xc_cfff, 0x1000),
    (0x31, RW, NONE, 0xff00_0000, 0),
    (0x32, RW, RW, 0x7_00ff, 0x1000),
    (0x33, RW, RW, 0x1_07ff, 0x1000),
    (0x34, RW, RW, 0x1_07ff, 0x1000),
    (0x35, RW, RW, 0x1_a7ff, 0x5000),
    (0x36, RW, RW, 0x1_a7ff, 0x5000),
    (0x37, RW, RW, 0x1_00ff, 0x1000),
    (0x38, RW, RW, u32::MAX, 0),
    (0x39, RO, RO, 0, 0),
    (0x3e, RW, RW, 0xb, 0),
    (0x3f, NONE, WO, 0xff, 0),
    // The first of IRR, ISR and TMR stands for all: they are compared as sets.
    (0x20, RO, RO, 0, 0),
];

fn row(number: u32) -> Row {
    let of_sets = if (0x10..0x28).contains(&number) { 0x20 } else { number };
    ROWS.into_iter().find(|row| row.0 == of_sets).unwrap_or((number, NONE, NONE, 0, 0))
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lapic) enum Did {
    Nothing,
    Fault,
    /// The vector that ended, and whether it is broadcast.
    Ended(u8, bool),
    Sent(Interrupt),
}

impl Apic {
    /// A register's value, whoever asks.
    pub fn value(&self, number: u32) -> Option<u32> {
        let word = |set: &BTreeSet<u8>, first: u32| {
            let bits = set.iter().filter(|vector| u32::from(**vector) / 32 == number - first);
            bits.fold(0, |word, vector| word | 1 << (vector % 32))
        };
        let msr = self.form == Form::Msr;
        Some(match number {
            0x02 => self.id << if msr { 0 } else { 24 },
            0x03 => 0x5_0014,
            0x0a => self.ppr(),
            0x0d if msr => self.id / 16 * 65536 + (1 << (self.id % 16)),
            0x10..=0x17 => word(&self.isr, 0x10),
            0x18..=0x1f => word(&self.tmr, 0x18),
            0x20..=0x27 => word(&self.irr, 0x20),
            _ if row(number).1 == NONE && row(number).2 == NONE => return None,
            _ => self.registers[number as usize],
        })
    }

    pub fn read_memory(&mut self, number: u32) -> u32 {
        if self.form != Form::Memory {
            return u32::MAX;
        }
        if !row(number).1.0 {
            self.error(7);
            return 0;
        }
        self.value(number).unwrap_or(0)
    }

    pub fn read_msr(&self, number: u32) -> Option<u64> {
        if self.form != Form::Msr || !row(number).2.0 {
            return None;
        }
        let high = if number == 0x30 { u64::from(self.registers[0x31]) << 32 } else { 0 };
        self.value(number).map(|low| high | u64::from(low))
    }

    pub fn write_memory(&mut self, number: u32, value: u32) -> Did {
        let (.., mask, _) = row(number);
        match row(number).1 {
            _ if self.form != Form::Memory => Did::Nothing,
            NONE => {
                self.error(7);
                Did::Nothing
            }
            (_, true) if number != 0x32 || value >> 17 & 3 != 3 => self.write(number, value & mask),
            _ => Did::Nothing,
        }
    }

    pub fn write_msr(&mut self, number: u32, value: u64) -> Did {
        let (.., rights, mask, dropped) = row(number);
        let [low, high] = [value & 0xffff_ffff, value >> 32].map(|half| u32::try_from(half).expect("half"));
        let reserved = low & !(mask | dropped) != 0 || high != 0 && number != 0x30;
        if self.form != Form::Msr || !rights.1 || reserved || number == 0x32 && value >> 17 & 3 == 3 {
            return Did::Fault;
        }
        if number == 0x30 {
            self.registers[0x31] = high;
        }
        self.write(number, low & mask)
    }

    fn write(&mut self, number: u32, value: u32) -> Did {
        match number {
            0x0b => return self.end(),
            0x0e => self.registers[0x0e] = value | 0x0fff_ffff,
            0x28 => self.registers[0x28] = core::mem::take(&mut self.errors),
            0x30 => {
                self.registers[0x30] = value;
                return self.command(value);
            }
            0x32 => {
                let before = self.deadline_mode();
                self.registers[0x32] = value;
                if before != self.deadline_mode() {
                    (self.registers[0x38], self.registers[0x39], self.deadline) = (0, 0, 0);
                }
            }
            0x38 if self.deadline_mode() => {}
            0x38 => {
                (self.registers[0x38], self.registers[0x39]) = (value, value);
                self.cycles = 0;
            }
            0x3e => (self.registers[0x3e], self.cycles) = (value, 0),
            0x3f => self.own_ipi(value.to_le_bytes()[0]),
            _ => self.registers[number as usize] = value,
        }
        if self.registers[0x0f] & 0x100 == 0 {
            self.registers[0x32..0x38].iter_mut().for_each(|entry| *entry |= 0x1_0000);
        }
        Did::Nothing
    }

    fn own_ipi(&mut self, vector: u8) {
        if vector < 16 {
            self.error(5);
        }
        self.own(vector);
    }

    fn command(&mut self, value: u32) -> Did {
        let vector = value.to_le_bytes()[0];
        let (mode, shorthand, msr) = (value >> 8 & 7, value >> 18, self.form == Form::Msr);
        let destination = self.registers[0x31] >> if msr { 0 } else { 24 };
        let request = match (mode, shorthand) {
            (1, _) if msr => {
                self.error(4);
                return Did::Nothing;
            }
            (0 | 1, 1) => {
                self.own_ipi(vector);
                return Did::Nothing;
            }
            (0 | 1, _) if vector < 16 => {
                self.error(5);
                return Did::Nothing;
            }
            (4, 1) => {
                self.nmi = true;
                return Did::Nothing;
            }
            (0 | 1, _) => Request::Vector { vector, trigger: Trigger::Edge },
            (4, _) => Request::Nmi,
            (5, 0 | 2 | 3) if value & 0xc000 != 0x8000 => Request::Init,
            (6, 0 | 2 | 3) => Request::Sipi(vector),
            _ => return Did::Nothing,
        };
        let destination = match shorthand {
            0 if value & 0x800 == 0 => Destination::Physical(destination),
            0 => Destination::Logical(destination),
            2 => Destination::All,
            _ => Destination::AllBut(self.id),
        };
        Did::Sent(Interrupt { destination, lowest_priority: mode == 1, request })
    }

    pub fn write_base(&mut self, value: u64) -> Did {
        let to = match value >> 10 & 3 {
            0 => Form::Off,
            2 => Form::Memory,
            3 => Form::Msr,
            _ => return Did::Fault,
        };
        if value & 0x2ff != 0 || value >> 52 != 0 {
            return Did::Fault;
        }
        match (self.form, to) {
            (Form::Off, Form::Msr) | (Form::Msr, Form::Memory) => return Did::Fault,
            (Form::Memory, Form::Msr) => (self.registers[0x0d], self.registers[0x31]) = (0, 0),
            (Form::Off, _) | (_, Form::Memory | Form::Msr) => {}
            (_, Form::Off) => {
                self.reset();
                (self.posted_edge, self.posted_level) = Default::default();
                self.posted_illegal = false;
            }
        }
        self.form = to;
        Did::Nothing
    }

    pub fn write_deadline(&mut self, value: u64, tsc: u64) {
        if self.deadline_mode() {
            self.deadline = value;
            self.pass(0, tsc);
        }
    }
}
