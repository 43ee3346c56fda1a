//! The reference: what the text of the specification says of one pin, in plain booleans, with no thought of speed.
extern crate std;

use super::{PINS, State};
use std::vec::Vec;

#[derive(Clone, Debug, Default)]
pub struct ModelPin {
    pub vector: u8,
    pub mode: u8,
    pub logical: bool,
    pub status: bool,
    pub active_low: bool,
    pub remote_irr: bool,
    pub level: bool,
    pub masked: bool,
    pub reserved: u32,
    pub high: u32,
    pub sources: Vec<u8>,
    pub irr: bool,
    pub sent: bool,
    /// Level (or resampled) deliveries whose EOI is outstanding.
    pub owed: Vec<u8>,
    pub resampler: bool,
    /// The latest delivery is why its vector is in `owed`.
    pub owes_anew: bool,
}

/// A delivery, as much of it as the model says: pin, vector, level.
pub type Sent = (usize, u8, bool);

#[derive(Clone, Debug)]
pub struct Model {
    pub pins: Vec<ModelPin>,
    pub select: u32,
    pub id: u32,
}

impl ModelPin {
    pub fn set(&mut self, bits: u64) {
        let b = |n: u32| bits >> n & 1 == 1;
        self.vector = u8::try_from(bits & 0xff).unwrap();
        self.mode = u8::try_from(bits >> 8 & 7).unwrap();
        (self.logical, self.status, self.active_low) = (b(11), b(12), b(13));
        (self.remote_irr, self.level, self.masked) = (b(14), b(15), b(16));
        self.reserved = u32::try_from(bits >> 17 & 0x7fff).unwrap();
        self.high = u32::try_from(bits >> 32).unwrap();
    }

    pub fn bits(&self) -> u64 {
        let b = |on: bool, n: u32| u64::from(on) << n;
        u64::from(self.vector)
            + (u64::from(self.mode) << 8)
            + b(self.logical, 11)
            + b(self.status, 12)
            + b(self.active_low, 13)
            + b(self.remote_irr, 14)
            + b(self.level, 15)
            + b(self.masked, 16)
            + (u64::from(self.reserved) << 17)
            + (u64::from(self.high) << 32)
    }

    fn guest_writes(&mut self, high: bool, value: u32) {
        let (status, remote_irr) = (self.status, self.remote_irr);
        let old = self.bits();
        self.set(if high {
            old & 0xffff_ffff | u64::from(value) << 32
        } else {
            old >> 32 << 32 | u64::from(value)
        });
        self.status = status;
        self.remote_irr = remote_irr && self.level;
    }
}

impl Model {
    pub fn new() -> Self {
        let pin = ModelPin { masked: true, ..ModelPin::default() };
        Self { pins: (0..PINS).map(|_| pin.clone()).collect(), select: 0, id: 0 }
    }

    pub fn save(&self) -> State {
        let mut state = State {
            base_address: 0xfec0_0000,
            ioregsel: self.select,
            id: self.id,
            irr: 0,
            redirtbl: [0; PINS],
        };
        for (n, pin) in self.pins.iter().enumerate() {
            state.redirtbl[n] = pin.bits();
            if pin.irr && !pin.sent {
                state.irr |= 1 << n;
            }
        }
        state
    }

    fn attempt(&mut self, n: usize) -> Option<Sent> {
        let pin = &mut self.pins[n];
        if pin.masked || pin.level && pin.remote_irr {
            return None;
        }
        if pin.level {
            pin.remote_irr = true;
        } else {
            pin.sent = true;
        }
        pin.owes_anew = (pin.level || pin.resampler) && pin.mode < 2 && !pin.owed.contains(&pin.vector);
        if pin.owes_anew {
            pin.owed.push(pin.vector);
        }
        Some((n, pin.vector, pin.level))
    }

    fn up(&mut self, n: usize) -> Option<Sent> {
        let pin = &mut self.pins[n];
        let rising = !pin.irr;
        pin.irr = true;
        if !pin.level {
            pin.sent = false;
        }
        if pin.level || rising { self.attempt(n) } else { None }
    }

    pub fn line(&mut self, n: usize, source: u8, up: bool) -> Option<Sent> {
        let pin = &mut self.pins[n];
        pin.sources.retain(|other| *other != source);
        if up {
            pin.sources.push(source);
        }
        if pin.sources.is_empty() {
            pin.irr = false;
            return None;
        }
        self.up(n)
    }

    /// What went out, and whether the resampler was asked instead.
    pub fn window(&mut self, value: u32) -> (Option<Sent>, bool) {
        if self.select == 0 {
            self.id = value >> 24 & 0xf;
        }
        if self.select < 0x10 || self.select >= 0x40 {
            return (None, false);
        }
        let n = (self.select as usize - 0x10) / 2;
        self.pins[n].guest_writes(self.select % 2 == 1, value);
        let pin = &mut self.pins[n];
        if !pin.level || !pin.irr || pin.masked || pin.remote_irr {
            (None, false)
        } else if pin.resampler {
            pin.irr = false;
            (None, true)
        } else {
            (self.attempt(n), false)
        }
    }

    pub fn eoi_pins(&self, vector: u8) -> Vec<usize> {
        (0..PINS).filter(|n| self.pins[*n].vector == vector || self.pins[*n].owed.contains(&vector)).collect()
    }

    /// `between`: what the acknowledged owners do before the second half.
    pub fn eoi(&mut self, vector: u8, between: &[(usize, u8, bool)]) -> Vec<Sent> {
        let mut sent = Vec::new();
        let mut mine: Vec<usize> = (0..PINS).filter(|n| self.pins[*n].vector == vector).collect();
        for pin in &mut self.pins {
            pin.owed.retain(|owed| *owed != vector);
        }
        for (n, source, up) in between {
            if let Some(anew) = self.line(*n, *source, *up) {
                mine.retain(|m| m != n);
                sent.push(anew);
            }
        }
        for n in mine {
            self.pins[n].remote_irr = false;
            if self.pins[n].level && self.pins[n].irr {
                sent.extend(self.attempt(n));
            }
        }
        sent
    }

    pub fn restore(&mut self, state: &State) -> Vec<Sent> {
        (self.select, self.id) = (state.ioregsel, state.id);
        for (pin, bits) in self.pins.iter_mut().zip(state.redirtbl) {
            pin.set(bits);
            (pin.irr, pin.sent) = (false, false);
            pin.owed.clear();
            if pin.level && pin.remote_irr && pin.mode < 2 {
                pin.owed.push(pin.vector);
            }
        }
        (0..PINS).filter_map(|n| if state.irr >> n & 1 == 1 { self.up(n) } else { None }).collect()
    }

    pub fn refused(&mut self, (n, vector, level): Sent) {
        if level {
            self.pins[n].remote_irr = false;
            let anew = self.pins[n].owes_anew;
            self.pins[n].owed.retain(|owed| *owed != vector || !anew);
        }
    }

    pub fn exits(&self) -> Vec<u8> {
        let now = self.pins.iter().filter(|pin| pin.level || pin.resampler).map(|pin| pin.vector);
        let mut all: Vec<u8> = now.chain(self.pins.iter().flat_map(|pin| pin.owed.clone())).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}
