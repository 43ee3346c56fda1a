//! The end of an interrupt: whom it is acknowledged to, what goes out again, and which vectors must exit.
//!
//! ```text
//!  vCPU                                   device's owner, on another thread
//!  eoi(v): Acked { pins }                 │
//!    notify the owners ──────────────────►│ set_line(pin, s, 0), unmask the device
//!                                         │ fires at once: set_line(pin, s, 1) ─► InService, kept in the IRR
//!  eoi_done(Acked): remote IRR := 0       │
//!    IRR still set ─► Deliver             │ not lost, not delivered twice
//! ```

use super::{Effects, Ioapic, Line, Pin, PinSet, VectorSet};

/// So many EOIs in a row that find the line up make the next delivery wait, as KVM has it: a guest that does not
/// quiet its device still makes slow progress.
const STORM: u16 = 10_000;

/// The first half of an EOI. Tell the owners of [`pins`](Self::pins), then hand it to [`Ioapic::eoi_done`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "remote IRR stays set, and the line dead, until eoi_done"]
pub struct Acked {
    vector: u8,
    /// Their entry has the vector now.
    current: PinSet,
    /// They delivered it, before their entry was rewritten.
    earlier: PinSet,
    exits_changed: bool,
}

impl Acked {
    /// The vector.
    #[must_use]
    pub const fn vector(&self) -> u8 {
        self.vector
    }

    /// The pins whose owners are to be told, lowest first: an ack lowers their line and unmasks their device.
    #[must_use]
    pub const fn pins(&self) -> PinSet {
        PinSet::from_bits(self.current.bits() | self.earlier.bits())
    }
}

impl Ioapic {
    /// A vCPU sent the EOI of `vector` (KVM's EOI exit, or the EOI register). See [`Acked`].
    pub fn eoi(&mut self, vector: u8) -> Acked {
        let before = self.exits();
        let (mut current, mut earlier) = (PinSet::EMPTY, PinSet::EMPTY);
        for pin in Pin::all() {
            if self.in_service[pin.index()].remove(vector) {
                earlier.insert(pin);
            }
            if self.entries[pin.index()].vector() == vector {
                current.insert(pin);
                self.acking.insert(pin);
            }
        }
        Acked { vector, current, earlier, exits_changed: self.exits() != before }
    }

    /// The second half of an EOI, after the owners were told: remote IRR goes, and a level that is still up goes
    /// out again. A pin that was delivered anew in between is left alone.
    pub fn eoi_done(&mut self, acked: Acked) -> Effects {
        let mut effects = Effects { eoi_vectors_changed: acked.exits_changed, ..Effects::default() };
        for pin in acked.current.iter() {
            if !self.acking.contains(pin) {
                continue;
            }
            self.acking.remove(pin);
            let entry = self.entries[pin.index()].with_remote_irr(false);
            self.entries[pin.index()] = entry;
            let in_a_row = &mut self.eois_in_a_row[pin.index()];
            if entry.is_masked() || !entry.is_level() || !self.irr.contains(pin) {
                *in_a_row = 0;
                continue;
            }
            *in_a_row += 1;
            if *in_a_row >= STORM {
                *in_a_row = 0;
                effects.delayed = true;
                continue;
            }
            let line = self.service(pin);
            effects.push(line);
        }
        effects
    }

    /// What [`Effects::delayed`] asked for: delivers every level that is up and not in service.
    pub fn inject_delayed(&mut self) -> Effects {
        let mut effects = Effects::default();
        for pin in Pin::all() {
            let entry = self.entries[pin.index()];
            if entry.is_level() && self.irr.contains(pin) && !entry.remote_irr() {
                let line = self.service(pin);
                effects.push(line);
            }
        }
        effects
    }

    /// The vectors whose EOI has to reach [`eoi`](Self::eoi): those of level entries, masked or not, those of pins
    /// with a resampler, and those delivered by an entry that was rewritten since (race 21).
    #[must_use]
    pub fn eoi_vectors(&self) -> VectorSet {
        let mut vectors = VectorSet::EMPTY;
        for pin in Pin::all() {
            if self.awaits_eoi(pin) {
                vectors.insert(self.entries[pin.index()].vector());
            }
            vectors.add_all(&self.in_service[pin.index()]);
        }
        vectors
    }

    /// Those of [`eoi_vectors`](Self::eoi_vectors) that no level [`route`](Self::route) carries. A split irqchip
    /// makes exits out of level routes alone, so each wants a route that is never fired, with
    /// [`eoi_route`](super::eoi_route)'s message, on a reserved GSI above the pins.
    #[must_use]
    pub fn unrouted_eoi_vectors(&self) -> VectorSet {
        let mut vectors = self.eoi_vectors();
        for entry in self.entries.iter().filter(|entry| entry.is_level() && !entry.is_masked()) {
            vectors.remove(entry.vector());
        }
        vectors
    }

    /// Both sets, to see whether either changed.
    pub(super) fn exits(&self) -> (VectorSet, VectorSet) {
        (self.eoi_vectors(), self.unrouted_eoi_vectors())
    }

    /// Whether somebody waits for the EOI of what `pin` delivers by its entry.
    pub(super) fn awaits_eoi(&self, pin: Pin) -> bool {
        self.entries[pin.index()].is_level() || self.resamplers.contains(pin)
    }
}

impl Effects {
    /// Keeps the delivery of `line`, if it is one: at most one a pin, so that there is always room.
    pub(super) fn push(&mut self, line: Line) {
        if let Line::Deliver(deliver) = line {
            let full = self.deliver.push(deliver);
            debug_assert!(full.is_ok(), "two deliveries of one pin in one call");
        }
    }
}
