//! The table itself: a list per GSI and the way back from a pin, in fixed memory.

use super::{
    Chip, EntryFault, FLAG_VALID_DEVID, IOAPIC_PINS, Irqchip, MAX_PER_GSI, MAX_ROUTES, Msi, PIC_PINS,
    RawRoute, RouteError, TYPE_IRQCHIP, TYPE_MSI, Target,
};
use crate::ids::Gsi;
use heapless::Vec;

const CHIPS: usize = 3;
const PINS: usize = IOAPIC_PINS as usize;
const NONE: u16 = u16::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    target: Target,
    /// The entry before this one of the same GSI.
    next: u16,
}

/// All routes of a VM. Empty at birth, which is legal: every GSI is then unrouted.
#[derive(Debug)]
pub struct RouteTable {
    entries: Vec<Entry, MAX_ROUTES>,
    /// The last entry of each GSI.
    heads: [u16; MAX_ROUTES],
    /// (chip, pin) → GSI; the last writer wins. End-of-interrupt uses it.
    reverse: [[u16; PINS]; CHIPS],
}

impl RouteTable {
    /// A table without routes.
    #[must_use]
    pub fn new() -> Self {
        Self { entries: Vec::new(), heads: [NONE; MAX_ROUTES], reverse: [[NONE; PINS]; CHIPS] }
    }

    /// Replaces the content by `routes`, all checked. On an error the content is unspecified: build in a table
    /// that is not in use.
    ///
    /// `x2apic` says that addresses are in KVM's x2APIC format (`KVM_X2APIC_API_USE_32BIT_IDS`).
    ///
    /// # Errors
    /// Every mistake of `KVM_SET_GSI_ROUTING`, the first one in the list.
    pub fn build(
        &mut self,
        irqchip: Irqchip,
        x2apic: bool,
        flags: u32,
        routes: &[RawRoute],
    ) -> Result<(), RouteError> {
        if irqchip == Irqchip::None {
            return Err(RouteError::NoIrqchip);
        }
        if routes.len() > MAX_ROUTES {
            return Err(RouteError::TooMany { count: routes.len() });
        }
        if flags != 0 {
            return Err(RouteError::TableFlags(flags));
        }
        self.entries.clear();
        self.heads = [NONE; MAX_ROUTES];
        self.reverse = [[NONE; PINS]; CHIPS];
        for (index, raw) in routes.iter().enumerate() {
            self.add(irqchip, x2apic, raw).map_err(|fault| RouteError::Entry { index, fault })?;
        }
        Ok(())
    }

    fn add(&mut self, irqchip: Irqchip, x2apic: bool, raw: &RawRoute) -> Result<(), EntryFault> {
        let gsi = u16::try_from(raw.gsi)
            .ok()
            .filter(|gsi| usize::from(*gsi) < MAX_ROUTES)
            .ok_or(EntryFault::GsiRange(raw.gsi))?;
        let target = check(irqchip, x2apic, raw)?;
        for other in self.targets(Gsi(raw.gsi)) {
            match (other, target) {
                (Target::Pin { chip: a, .. }, Target::Pin { chip: b, .. }) if a != b => {}
                (Target::Pin { .. }, Target::Pin { .. }) => return Err(EntryFault::ChipTwice),
                _ => return Err(EntryFault::MsiShared),
            }
        }
        if let Target::Pin { chip, pin } = target {
            self.reverse[chip as usize][pin as usize] = gsi;
        }
        let head = &mut self.heads[usize::from(gsi)];
        let place = u16::try_from(self.entries.len()).map_err(|_| EntryFault::GsiRange(raw.gsi))?;
        self.entries.push(Entry { target, next: *head }).map_err(|_| EntryFault::GsiRange(raw.gsi))?;
        *head = place;
        Ok(())
    }

    /// Where `gsi` goes, the last entry first; nothing for one beyond the table (race 18).
    pub fn targets(&self, gsi: Gsi) -> impl Iterator<Item = Target> + '_ {
        let mut at = usize::try_from(gsi.0).ok().and_then(|i| self.heads.get(i)).copied().unwrap_or(NONE);
        core::iter::from_fn(move || {
            let entry = self.entries.get(usize::from(at))?;
            at = entry.next;
            Some(entry.target)
        })
    }

    /// A copy of where `gsi` goes, for use after the table may have changed.
    #[must_use]
    pub fn resolve(&self, gsi: Gsi) -> Vec<Target, MAX_PER_GSI> {
        self.targets(gsi).collect()
    }

    /// What an irqfd on `gsi` may cache: its MSI, if that is its only route.
    #[must_use]
    pub fn cacheable(&self, gsi: Gsi) -> Option<Msi> {
        let mut targets = self.targets(gsi);
        match (targets.next(), targets.next()) {
            (Some(Target::Msi(msi)), None) => Some(msi),
            _ => None,
        }
    }

    /// The GSI that drives `pin` of `chip`, for an end of interrupt.
    #[must_use]
    pub fn gsi_of(&self, chip: Chip, pin: u32) -> Option<Gsi> {
        let gsi = *self.reverse[chip as usize].get(usize::try_from(pin).ok()?)?;
        (gsi != NONE).then_some(Gsi(u32::from(gsi)))
    }

    /// How many routes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Default for RouteTable {
    fn default() -> Self {
        Self::new()
    }
}

/// One entry by itself: its flags, type and payload.
fn check(irqchip: Irqchip, x2apic: bool, raw: &RawRoute) -> Result<Target, EntryFault> {
    let allowed = if raw.kind == TYPE_MSI { FLAG_VALID_DEVID } else { 0 };
    if raw.flags & !allowed != 0 {
        return Err(EntryFault::Flags(raw.flags));
    }
    match raw.kind {
        TYPE_MSI => {
            let [address_lo, address_hi, data, devid] = raw.words;
            if x2apic && address_hi & 0xff != 0 {
                return Err(EntryFault::AddressHi(address_hi));
            }
            let devid = (raw.flags & FLAG_VALID_DEVID != 0).then_some(devid);
            Ok(Target::Msi(Msi { address_lo, address_hi, data, devid }))
        }
        TYPE_IRQCHIP => {
            if irqchip == Irqchip::Split {
                return Err(EntryFault::ChipOnSplit);
            }
            let [chip, pin, ..] = raw.words;
            let (chip, pins) = match chip {
                0 => (Chip::PicMaster, PIC_PINS),
                1 => (Chip::PicSlave, PIC_PINS),
                2 => (Chip::Ioapic, IOAPIC_PINS),
                other => return Err(EntryFault::UnknownChip(other)),
            };
            if pin >= pins {
                return Err(EntryFault::PinRange(pin));
            }
            Ok(Target::Pin { chip, pin })
        }
        other => Err(EntryFault::UnknownType(other)),
    }
}
