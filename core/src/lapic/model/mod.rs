//! A model of several local APICs on one bus, as plain as it can be: sets of vectors, a table of registers, a timer that
//! counts cycle by cycle. Written from the manual's tables, not from the code beside it.
extern crate std;

mod registers;

pub(super) use registers::Did;

use super::{Destination, Event, Interrupt, Request};
use crate::ids::Trigger;
use std::collections::BTreeSet;
use std::vec::Vec;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Off,
    Memory,
    Msr,
}

#[derive(Clone, Debug)]
pub(super) struct Apic {
    pub id: u32,
    pub form: Form,
    /// Plain registers, by number.
    pub registers: [u32; 0x40],
    pub irr: BTreeSet<u8>,
    pub isr: BTreeSet<u8>,
    pub tmr: BTreeSet<u8>,
    pub posted_edge: BTreeSet<u8>,
    pub posted_level: BTreeSet<u8>,
    pub deadline: u64,
    pub waits: bool,
    errors: u32,
    /// Bus cycles since the count changed.
    cycles: u32,
    posted_nmi: bool,
    posted_init: bool,
    posted_sipi: Option<u8>,
    posted_illegal: bool,
    events: Vec<Event>,
    nmi: bool,
    handles_nmi: bool,
    /// Interrupts accepted over the bus, and those of them that found their bit set.
    pub accepted: u64,
    pub merged: u64,
    pub taken: u64,
}

impl Apic {
    pub fn new(id: u32) -> Self {
        let mut apic = Self {
            id,
            form: Form::Memory,
            registers: [0; 0x40],
            irr: BTreeSet::new(),
            isr: BTreeSet::new(),
            tmr: BTreeSet::new(),
            posted_edge: BTreeSet::new(),
            posted_level: BTreeSet::new(),
            deadline: 0,
            waits: id != 0,
            errors: 0,
            cycles: 0,
            posted_nmi: false,
            posted_init: false,
            posted_sipi: None,
            posted_illegal: false,
            events: Vec::new(),
            nmi: false,
            handles_nmi: false,
            accepted: 0,
            merged: 0,
            taken: 0,
        };
        apic.reset();
        apic
    }

    fn reset(&mut self) {
        self.registers = [0; 0x40];
        self.registers[0x0e] = u32::MAX;
        self.registers[0x0f] = 0xff;
        self.registers[0x32..0x38].fill(0x1_0000);
        (self.irr, self.isr, self.tmr) = Default::default();
        (self.errors, self.cycles, self.deadline) = (0, 0, 0);
    }

    fn enabled(&self) -> bool {
        self.form != Form::Off && self.registers[0x0f] & 0x100 != 0
    }

    /// The priority class below which, or in which, nothing is taken; and the register.
    pub fn ppr(&self) -> u32 {
        let served = self.isr.last().map_or(0, |vector| u32::from(*vector));
        let tpr = self.registers[8];
        if tpr / 16 >= served / 16 { tpr } else { served / 16 * 16 }
    }

    pub fn take(&mut self) -> Option<u8> {
        let vector = *self.irr.last()?;
        if self.waits || u32::from(vector) / 16 <= self.ppr() / 16 {
            return None;
        }
        self.irr.remove(&vector);
        self.isr.insert(vector);
        self.taken += 1;
        Some(vector)
    }

    pub fn end(&mut self) -> Did {
        match self.isr.pop_last() {
            Some(vector) => Did::Ended(vector, self.tmr.contains(&vector)),
            None => Did::Nothing,
        }
    }

    fn error(&mut self, bit: u32) {
        let quiet = self.errors == 0;
        self.errors |= 1 << bit;
        if quiet {
            self.local(0x37);
        }
    }

    /// A vector of an LVT entry.
    fn local(&mut self, entry: usize) {
        let entry = self.registers[entry];
        if entry & 0x1_0000 == 0 {
            self.own(entry.to_le_bytes()[0]);
        }
    }

    fn own(&mut self, vector: u8) {
        if !self.enabled() {
            return;
        }
        if vector < 16 {
            self.error(6);
        } else {
            self.irr.insert(vector);
            self.tmr.remove(&vector);
        }
    }

    fn deadline_mode(&self) -> bool {
        self.registers[0x32] >> 17 & 3 == 2
    }

    /// Time passes, a cycle at a time.
    pub fn pass(&mut self, bus: u64, tsc: u64) {
        let divide = [2, 4, 8, 16, 32, 64, 128, 1];
        let code = self.registers[0x3e];
        let divide = divide[(code & 3 | code >> 1 & 4) as usize];
        for _ in 0..bus {
            if self.registers[0x39] == 0 {
                break;
            }
            self.cycles += 1;
            if self.cycles < divide {
                continue;
            }
            self.cycles = 0;
            self.registers[0x39] -= 1;
            if self.registers[0x39] == 0 {
                if self.registers[0x32] >> 17 & 3 == 1 {
                    self.registers[0x39] = self.registers[0x38];
                }
                self.local(0x32);
            }
        }
        if self.deadline != 0 && self.deadline <= tsc {
            self.deadline = 0;
            self.local(0x32);
        }
    }

    pub fn is_for(&self, destination: Destination) -> bool {
        let (id, logical) = match destination {
            _ if self.form == Form::Off => return false,
            Destination::All => return true,
            Destination::AllBut(id) => return id != self.id,
            Destination::Physical(id) => (id, false),
            Destination::Logical(id) => (id, true),
        };
        if id == u32::MAX || id == 0xff && self.form == Form::Memory {
            return true;
        }
        let mine = self.registers[0x0d] >> 24;
        match (logical, self.form, self.registers[0x0e] >> 28) {
            (false, ..) => id == self.id,
            (_, Form::Msr, _) => id / 65536 == self.id / 16 && id >> (self.id % 16) & 1 != 0,
            (_, _, 15) => id < 256 && mine & id != 0,
            (_, _, 0) => id < 256 && mine / 16 == id / 16 && mine & id & 15 != 0,
            _ => false,
        }
    }

    /// Posts; `None` when it is not accepted, else whether it merged.
    fn post(&mut self, request: Request) -> Option<bool> {
        match request {
            Request::Vector { .. } if !self.enabled() => return None,
            Request::Vector { vector: 0..16, .. } => {
                self.posted_illegal = true;
                return None;
            }
            Request::Vector { vector, trigger } => {
                let edge = trigger == Trigger::Edge;
                let map = if edge { &mut self.posted_edge } else { &mut self.posted_level };
                let merged = !map.insert(vector);
                self.accepted += 1;
                self.merged += u64::from(merged);
                return Some(merged);
            }
            Request::Nmi => self.posted_nmi = true,
            Request::Init => (self.posted_init, self.posted_sipi) = (true, None),
            Request::Sipi(vector) => self.posted_sipi = Some(vector),
        }
        Some(false)
    }

    pub fn harvest(&mut self) {
        let edge = core::mem::take(&mut self.posted_edge);
        let level = core::mem::take(&mut self.posted_level);
        let (nmi, init) = (core::mem::take(&mut self.posted_nmi), core::mem::take(&mut self.posted_init));
        let illegal = core::mem::take(&mut self.posted_illegal);
        if init {
            self.reset();
            self.events = [Event::Init].into();
            (self.nmi, self.handles_nmi, self.waits) = (false, false, self.id != 0);
        } else {
            self.nmi |= nmi;
        }
        if let Some(vector) = self.posted_sipi.take()
            && self.waits
        {
            self.waits = false;
            self.events.push(Event::Startup { vector });
        }
        if illegal && !init && self.form != Form::Off {
            self.error(6);
        }
        if !init && self.form != Form::Off {
            self.irr.extend(edge.union(&level));
            self.tmr.retain(|vector| !edge.contains(vector));
            self.tmr.extend(level);
        }
    }

    pub fn event(&mut self) -> Option<Event> {
        if !self.events.is_empty() {
            return Some(self.events.remove(0));
        }
        if !self.nmi || self.handles_nmi || self.waits {
            return None;
        }
        (self.nmi, self.handles_nmi) = (false, true);
        Some(Event::Nmi)
    }

    pub fn nmi_done(&mut self) {
        self.handles_nmi = false;
    }
}

/// Delivers; how many accepted, and how many of them merged.
pub(super) fn deliver(apics: &mut [Apic], interrupt: &Interrupt) -> (u32, u32) {
    let mut reached: Vec<_> = apics.iter_mut().filter(|apic| apic.is_for(interrupt.destination)).collect();
    let single = matches!(interrupt.destination, Destination::Physical(id) if id != u32::MAX);
    if interrupt.lowest_priority && !single {
        reached.retain(|apic| apic.enabled());
        let vector = match interrupt.request {
            Request::Vector { vector, .. } => usize::from(vector),
            _ => 0,
        };
        if !reached.is_empty() {
            reached = [reached.swap_remove(vector % reached.len())].into();
        }
    }
    let posts = reached.into_iter().filter_map(|apic| apic.post(interrupt.request));
    posts.fold((0, 0), |(apics, merged), post| (apics + 1, merged + u32::from(post)))
}
