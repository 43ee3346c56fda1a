//! Saving and restoring, in the shape of `struct kvm_ioapic_state`.

use super::{Effects, Entry, Ioapic, PINS, Pin, PinSet, VectorSet};

/// Where every PC has it.
pub(super) const DEFAULT_BASE: u64 = 0xfec0_0000;

/// What KVM's `KVM_GET_IRQCHIP` tells of an I/O APIC, field by field. The levels of the sources are not in it, nor
/// what a rewritten entry delivered before: after a restore the owners raise their lines again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Where the window is; kept, not used.
    pub base_address: u64,
    /// The select register.
    pub ioregsel: u32,
    /// The ID, not shifted.
    pub id: u32,
    /// Lines that are up, without edges already delivered.
    pub irr: u32,
    /// The redirection entries.
    pub redirtbl: [u64; PINS],
}

impl Ioapic {
    /// The state at this moment.
    #[must_use]
    pub fn save(&self) -> State {
        State {
            base_address: self.base_address,
            ioregsel: self.select,
            id: self.id,
            irr: self.irr.bits() & !self.irr_delivered.bits(),
            redirtbl: self.entries.map(Entry::bits),
        }
    }

    /// Takes over `state`, and raises every pin of its IRR: what is deliverable has to be injected.
    pub fn restore(&mut self, state: &State) -> Effects {
        let (before, exits) = (self.entries, self.exits());
        self.base_address = state.base_address;
        self.select = state.ioregsel;
        self.id = state.id;
        self.entries = state.redirtbl.map(Entry::from_bits);
        self.irr = PinSet::EMPTY;
        self.irr_delivered = PinSet::EMPTY;
        self.acking = PinSet::EMPTY;
        for pin in Pin::all() {
            let entry = self.entries[pin.index()];
            let service = &mut self.in_service[pin.index()];
            *service = VectorSet::EMPTY;
            if entry.is_level() && entry.remote_irr() && entry.delivery_mode().has_eoi() {
                service.insert(entry.vector());
            }
            // A delivery from before is nobody's now: `refused` must not find it.
            self.serial[pin.index()] = self.serial[pin.index()].wrapping_add(1);
        }
        let mut effects = Effects::default();
        for pin in PinSet::from_bits(state.irr).iter() {
            let line = self.set_level(pin, true);
            effects.push(line);
        }
        effects.routes = self.routes_changed(&before);
        effects.eoi_vectors_changed = self.exits() != exits;
        effects
    }

    /// Power-on: every entry masked, nothing pending. The sources keep their levels; raise them again to be seen.
    pub fn reset(&mut self) -> Effects {
        let mut fresh = Self::new(self.version).save();
        fresh.base_address = self.base_address;
        self.eois_in_a_row = [0; PINS];
        self.restore(&fresh)
    }
}
