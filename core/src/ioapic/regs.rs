//! The register window as the guest sees it: a select register, a data register behind it, and on version 0x20 an
//! EOI register.

use super::{Acked, Deliver, Entry, Ioapic, PINS, Pin, PinSet};

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;
const LENGTH: u64 = 0x100;

const ID: u32 = 0;
const VERSION: u32 = 1;
const ARBITRATION: u32 = 2;
const REDIRECTION: u32 = 0x10;

/// Which chip the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 0x11, the 82093AA's and KVM's: no EOI register.
    V11,
    /// 0x20: an EOI register at offset 0x40.
    V20,
}

impl Version {
    const fn number(self) -> u32 {
        match self {
            Self::V11 => 0x11,
            Self::V20 => 0x20,
        }
    }
}

/// What became of a guest's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A register answered.
    Done,
    /// Not 16-byte aligned: reads as zero, writes nothing.
    Misaligned,
    /// Aligned, but there is no register: reads as zero, writes nothing.
    NoRegister,
    /// A length other than 1, 2, 4 or 8: reads as zeros, writes nothing.
    BadLength,
    /// Beyond the 256 bytes of the window; not this device's.
    Outside,
}

/// What the host owes after a guest's write.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a write can deliver, change routes and end an interrupt"]
pub struct Written {
    /// Whether a register took it.
    pub access: Access,
    /// Inject this.
    pub deliver: Option<Deliver>,
    /// Ask this pin's device whether it still wants anything, instead of injecting (race 20).
    pub resample: Option<Pin>,
    /// [`Ioapic::route`] says something new for these pins.
    pub routes: PinSet,
    /// [`Ioapic::eoi_vectors`] or [`Ioapic::unrouted_eoi_vectors`] says something new.
    pub eoi_vectors_changed: bool,
    /// The EOI register was written.
    pub eoi: Option<Acked>,
}

impl Written {
    const fn nothing(access: Access) -> Self {
        Self {
            access,
            deliver: None,
            resample: None,
            routes: PinSet::EMPTY,
            eoi_vectors_changed: false,
            eoi: None,
        }
    }
}

/// Which entry an index register names, and whether its high half.
fn redirection(select: u32) -> Option<(Pin, bool)> {
    let number = u8::try_from(select.checked_sub(REDIRECTION)? / 2).ok()?;
    Some((Pin::new(number).ok()?, select & 1 != 0))
}

impl Ioapic {
    /// The guest reads at `offset` from the base; `data` is as long as its access and always filled.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        data.fill(0);
        if offset >= LENGTH {
            return Access::Outside;
        }
        if !matches!(data.len(), 1 | 2 | 4 | 8) {
            return Access::BadLength;
        }
        let value = match offset {
            SELECT => self.select,
            WINDOW => self.read_indirect(),
            // The EOI register is write-only.
            EOI if self.version == Version::V20 => 0,
            other => return no_register(other),
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
        Access::Done
    }

    /// The guest writes `data` at `offset` from the base: of 8 bytes the low 4 count.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Written {
        if offset >= LENGTH {
            return Written::nothing(Access::Outside);
        }
        let value = match *data {
            [a, b, c, d] | [a, b, c, d, _, _, _, _] => u32::from_le_bytes([a, b, c, d]),
            [a, b] => u32::from(u16::from_le_bytes([a, b])),
            [a] => u32::from(a),
            _ => return Written::nothing(Access::BadLength),
        };
        match offset {
            SELECT => {
                self.select = value & 0xff;
                Written::nothing(Access::Done)
            }
            WINDOW => self.write_indirect(value),
            EOI if self.version == Version::V20 => {
                let [vector, ..] = value.to_le_bytes();
                Written { eoi: Some(self.eoi(vector)), ..Written::nothing(Access::Done) }
            }
            other => Written::nothing(no_register(other)),
        }
    }

    fn read_indirect(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => (self.id & 0xf) << 24,
            VERSION => 23 << 16 | self.version.number(),
            select => match redirection(select) {
                Some((pin, false)) => self.entries[pin.index()].low(),
                Some((pin, true)) => self.entries[pin.index()].high(),
                None => u32::MAX,
            },
        }
    }

    fn write_indirect(&mut self, value: u32) -> Written {
        match self.select {
            ID => {
                self.id = (value >> 24) & 0xf;
                Written::nothing(Access::Done)
            }
            VERSION | ARBITRATION => Written::nothing(Access::Done),
            select => match redirection(select) {
                Some((pin, false)) => self.replace(pin, self.entries[pin.index()].with_low(value)),
                Some((pin, true)) => self.replace(pin, self.entries[pin.index()].with_high(value)),
                None => Written::nothing(Access::NoRegister),
            },
        }
    }

    /// The guest rewrote an entry: what was pending behind it may be due now.
    fn replace(&mut self, pin: Pin, entry: Entry) -> Written {
        let (route, exits) = (self.route(pin), self.exits());
        self.entries[pin.index()] = entry;
        let mut written = Written::nothing(Access::Done);
        if self.route(pin) != route {
            written.routes.insert(pin);
        }
        written.eoi_vectors_changed = self.exits() != exits;
        let due = entry.is_level() && self.irr.contains(pin) && !entry.is_masked() && !entry.remote_irr();
        if due && self.resamplers.contains(pin) {
            self.irr.remove(pin);
            written.resample = Some(pin);
        } else if due {
            written.deliver = self.service(pin).deliver();
        }
        written
    }

    /// Every pin whose route differs from `before`'s.
    pub(super) fn routes_changed(&self, before: &[Entry; PINS]) -> PinSet {
        let mut changed = PinSet::EMPTY;
        for (pin, old) in Pin::all().zip(before) {
            let route = (!old.is_masked()).then(|| old.message());
            changed.set(pin, self.route(pin) != route);
        }
        changed
    }
}

const fn no_register(offset: u64) -> Access {
    if offset & 0xf == 0 { Access::NoRegister } else { Access::Misaligned }
}
