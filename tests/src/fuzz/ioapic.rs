//! The I/O APIC: whatever the guest reads and writes, the devices raise and the vCPUs end. Its registers are compared
//! with plain words; what goes out is asked whether it may, and what stays in whether it must.

use super::bytes::Bytes;
use pollvisor_core::ioapic::{
    Access, Deliver, Effects, Ioapic, IoapicError, Line, PINS, Pin, Trigger, VectorSet, Version, Written,
};

const REMOTE_IRR: u64 = 1 << 14;
const READ_ONLY: u64 = 1 << 12 | REMOTE_IRR;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;

/// The reference.
struct Plain {
    /// The entries; remote IRR as the deliveries and their ends make it.
    entries: [u64; PINS],
    sources: [u64; PINS],
    /// Lines that are up, and edges among them that went out.
    irr: u32,
    delivered: u32,
    select: u32,
    id: u32,
    /// Pins that may have a level up and undelivered: nobody took it, or a storm holds it back.
    excused: [bool; PINS],
}

struct Chip {
    chip: Ioapic,
    plain: Plain,
    version: Version,
    /// The latest deliveries that a local APIC may still refuse.
    sent: Vec<Deliver>,
    /// Pins delivered since this was last emptied.
    anew: Vec<Pin>,
}

/// Any accesses, lines and ends of interrupts.
///
/// # Panics
/// When the chip disagrees with the reference.
pub fn ioapic(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let version = if bytes.bool() { Version::V20 } else { Version::V11 };
    let plain = Plain {
        entries: [MASKED; PINS],
        sources: [0; PINS],
        irr: 0,
        delivered: 0,
        select: 0,
        id: 0,
        excused: [false; PINS],
    };
    let mut chip = Chip { chip: Ioapic::new(version), plain, version, sent: Vec::new(), anew: Vec::new() };
    for _ in 0..400 {
        if bytes.is_empty() {
            break;
        }
        chip.step(&mut bytes);
        chip.compare();
    }
}

fn pin(n: u8) -> Pin {
    Pin::new(n).expect("below 24")
}

/// Few of the vectors, so that they meet.
fn vector(bytes: &mut Bytes<'_>) -> u8 {
    match bytes.u8() {
        any @ 0xf0.. => any,
        few => 0x30 + few % 4,
    }
}

/// Mostly the first pins, so that they meet.
fn a_pin(bytes: &mut Bytes<'_>) -> u8 {
    match bytes.u8() {
        any @ 0xc0.. => any % 24,
        few => few % 3,
    }
}

impl Chip {
    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(16) {
            0..4 => self.rewrite(bytes),
            4..9 => {
                let (n, source, up) = (a_pin(bytes), bytes.u8(), bytes.bool());
                self.line(n, if source < 0xe0 { source % 3 * 31 } else { source }, up);
            }
            9..12 => {
                let ended = vector(bytes);
                let acked = self.chip.eoi(ended);
                self.end(acked, bytes);
            }
            12 => self.refuse(bytes),
            13 => {
                let before = self.exits();
                let changed = self.chip.set_resampler(pin(a_pin(bytes)), bytes.bool());
                assert_eq!(changed, self.exits() != before);
            }
            14 => self.access(bytes),
            _ => match bytes.below(8) {
                0 => {
                    self.plain.entries = [MASKED; PINS];
                    (self.plain.select, self.plain.id) = (0, 0);
                    (self.plain.irr, self.plain.delivered) = (0, 0);
                    self.sent.clear();
                    let effects = self.chip.reset();
                    self.effects(&effects);
                }
                1..3 => self.migrate(),
                _ => {
                    let effects = self.chip.inject_delayed();
                    self.effects(&effects);
                }
            },
        }
    }

    /// A register by its number: the entries mostly.
    fn rewrite(&mut self, bytes: &mut Bytes<'_>) {
        let choice = bytes.u8();
        let (register, value) = match choice & 7 {
            0 => (bytes.u8(), bytes.u32()),
            1 => (0x11 + 2 * a_pin(bytes), bytes.u32()),
            _ => {
                let shape = u32::from(bytes.u8());
                let mode = (shape >> 3) & if shape & 4 == 0 { 0 } else { 7 };
                let masked = u32::from(choice & 0x30 == 0);
                (
                    0x10 + 2 * a_pin(bytes),
                    u32::from(vector(bytes)) | mode << 8 | (shape & 1) << 15 | masked << 16,
                )
            }
        };
        self.write(0, &[register], bytes);
        self.write(0x10, &value.to_le_bytes(), bytes);
    }

    /// Anywhere, anything.
    fn access(&mut self, bytes: &mut Bytes<'_>) {
        let choice = bytes.u8();
        let offset = match choice & 7 {
            0 => bytes.u64(),
            1..4 => u64::from(bytes.u8()),
            _ => u64::from(choice & 0x70),
        };
        let data = bytes.take(usize::from(choice >> 4));
        if choice & 8 == 0 {
            self.read(offset, data.len());
        } else {
            self.write(offset, data, bytes);
        }
    }

    fn expected(&self, offset: u64, length: usize) -> Access {
        match offset {
            0x100.. => Access::Outside,
            _ if !matches!(length, 1 | 2 | 4 | 8) => Access::BadLength,
            0 | 0x10 => Access::Done,
            0x40 if self.version == Version::V20 => Access::Done,
            _ if offset.is_multiple_of(16) => Access::NoRegister,
            _ => Access::Misaligned,
        }
    }

    fn read(&self, offset: u64, length: usize) {
        let mut data = vec![0xa5; length];
        let got = self.chip.read(offset, &mut data);
        assert_eq!(got, self.expected(offset, length));
        let value = match (got, offset, self.plain.select) {
            (Access::Done, 0, select) => select,
            (Access::Done, 0x10, 0 | 2) => self.plain.id << 24,
            (Access::Done, 0x10, 1) => 23 << 16 | if self.version == Version::V20 { 0x20 } else { 0x11 },
            (Access::Done, 0x10, select @ 0x10..0x40) => {
                let half = self.plain.entries[(select as usize - 0x10) / 2] >> (32 * (select % 2));
                u32::try_from(half & 0xffff_ffff).expect("a half")
            }
            (Access::Done, 0x10, _) => u32::MAX,
            _ => 0,
        };
        let want = value.to_le_bytes().into_iter().chain([0; 4]);
        assert!(got != Access::BadLength && got != Access::Outside || data.iter().all(|byte| *byte == 0));
        assert!(data.iter().copied().zip(want).all(|(got, want)| got == want), "{data:?} is not {value:#x}");
    }

    fn write(&mut self, offset: u64, data: &[u8], bytes: &mut Bytes<'_>) {
        let (routes, exits) = (self.routes(), self.exits());
        let Written { access, deliver, resample, routes: changed, eoi_vectors_changed, eoi } =
            self.chip.write(offset, data);
        let mut value = [0; 4];
        value.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u32::from_le_bytes(value);
        let missing = offset == 0x10 && matches!(self.plain.select, 3..0x10 | 0x40..);
        let want = match self.expected(offset, data.len()) {
            Access::Done if missing => Access::NoRegister,
            other => other,
        };
        assert_eq!(access, want);
        match (access, offset, self.plain.select) {
            (Access::Done, 0, _) => self.plain.select = value & 0xff,
            (Access::Done, 0x10, 0) => self.plain.id = value >> 24 & 15,
            (Access::Done, 0x10, select @ 0x10..0x40) => {
                let entry = &mut self.plain.entries[(select as usize - 0x10) / 2];
                *entry = match select % 2 {
                    0 => *entry & (!0xffff_ffff | READ_ONLY) | u64::from(value) & !READ_ONLY,
                    _ => *entry & 0xffff_ffff | u64::from(value) << 32,
                };
                if *entry & LEVEL == 0 {
                    *entry &= !REMOTE_IRR;
                }
            }
            _ => assert!(deliver.is_none() && resample.is_none(), "nothing was written"),
        }
        if let Some(pin) = resample {
            assert!(deliver.is_none());
            self.plain.irr &= !(1 << pin.number());
        }
        if eoi.is_none() {
            assert_eq!(eoi_vectors_changed, self.exits() != exits);
        }
        let now = self.routes();
        let differ = (0..24u8)
            .map(pin)
            .filter(|pin| now[usize::from(pin.number())] != routes[usize::from(pin.number())]);
        assert!(differ.eq(changed.iter()), "other routes changed than it says");
        self.sent(deliver);
        if let Some(acked) = eoi {
            assert_eq!((access, offset, acked.vector()), (Access::Done, 0x40, value.to_le_bytes()[0]));
            self.end(acked, bytes);
        }
    }

    fn line(&mut self, n: u8, source: u8, up: bool) {
        let exits = self.exits();
        let got = self.chip.set_line(pin(n), source, up);
        if source > 63 {
            return assert_eq!(got, Err(IoapicError::Source(source)));
        }
        let sources = &mut self.plain.sources[usize::from(n)];
        *sources = if up { *sources | 1 << source } else { *sources & !(1 << source) };
        let (entry, sources) = (self.plain.entries[usize::from(n)], *sources);
        if sources == 0 {
            self.plain.irr &= !(1 << n);
        } else {
            self.plain.irr |= 1 << n;
            if entry & LEVEL == 0 {
                self.plain.delivered &= !(1 << n);
            }
        }
        match got.expect("a source that exists") {
            Line::Lowered => assert_eq!(sources, 0),
            Line::Masked => assert!(sources != 0 && entry & MASKED != 0),
            Line::InService => {
                assert!(sources != 0 && entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL | REMOTE_IRR)
            }
            Line::Coalesced => assert!(sources != 0 && entry & LEVEL == 0),
            Line::Deliver(deliver) => {
                assert!(sources != 0 && deliver.pin == pin(n));
                self.sent(Some(deliver));
            }
        }
        // A delivered vector is waited for already, unless a local APIC may answer that it took none.
        assert_eq!(self.exits(), exits, "a line changes no exits");
    }

    /// The rest of an end of interrupt, the owners doing something in between.
    fn end(&mut self, acked: pollvisor_core::ioapic::Acked, bytes: &mut Bytes<'_>) {
        let ended = acked.vector();
        for n in 0..24u8 {
            let current = self.plain.entries[usize::from(n)].to_le_bytes()[0] == ended;
            assert!(!current || acked.pins().contains(pin(n)), "pin {n} is not told");
        }
        self.anew.clear();
        for _ in 0..bytes.below(3) {
            let (n, up) = (a_pin(bytes), bytes.bool());
            self.line(n, 0, up);
        }
        for n in 0..24u8 {
            let entry = &mut self.plain.entries[usize::from(n)];
            if entry.to_le_bytes()[0] == ended && !self.anew.contains(&pin(n)) {
                *entry &= !REMOTE_IRR;
            }
        }
        let effects = self.chip.eoi_done(acked);
        if effects.delayed {
            self.plain.excused = [true; PINS];
        }
        self.effects(&effects);
        assert!(effects.routes.is_empty(), "an end rewrites nothing");
    }

    /// No local APIC took one of the latest.
    fn refuse(&mut self, bytes: &mut Bytes<'_>) {
        let back = 1 + usize::from(bytes.below(4));
        let Some(at) = self.sent.len().checked_sub(back) else { return };
        let deliver = self.sent.remove(at);
        let n = usize::from(deliver.pin.number());
        let latest = !self.sent[at..].iter().any(|later| later.pin == deliver.pin);
        let before = self.exits();
        let changed = self.chip.refused(&deliver);
        assert_eq!(changed, self.exits() != before);
        if deliver.trigger == Trigger::Edge || !latest {
            assert!(!changed, "not the pin's latest");
        } else {
            self.plain.entries[n] &= !REMOTE_IRR;
            self.plain.excused[n] = true;
        }
    }

    fn migrate(&mut self) {
        let state = self.chip.save();
        assert_eq!(
            (state.redirtbl, state.ioregsel, state.id),
            (self.plain.entries, self.plain.select, self.plain.id)
        );
        (self.plain.irr, self.plain.delivered) = (state.irr, 0);
        let effects = self.chip.restore(&state);
        // What went out before is nobody's to refuse.
        self.sent.clear();
        assert!(effects.routes.is_empty(), "the entries are what they were");
        self.effects(&effects);
    }

    fn effects(&mut self, effects: &Effects) {
        for deliver in &effects.deliver {
            self.sent(Some(*deliver));
        }
    }

    /// Something goes out: whether it may.
    fn sent(&mut self, deliver: Option<Deliver>) {
        let Some(deliver) = deliver else { return };
        let n = usize::from(deliver.pin.number());
        let entry = self.plain.entries[n];
        assert_eq!(entry & MASKED, 0, "pin {n} is masked");
        assert_eq!(self.plain.irr >> n & 1, 1, "pin {n} is not up");
        assert_eq!(deliver.vector, entry.to_le_bytes()[0]);
        assert_eq!(Some(deliver.message), self.chip.route(deliver.pin));
        assert_eq!(deliver.trigger == Trigger::Level, entry & LEVEL != 0);
        if entry & LEVEL != 0 {
            assert_eq!(entry & REMOTE_IRR, 0, "pin {n} is in service");
            self.plain.entries[n] |= REMOTE_IRR;
        } else {
            self.plain.delivered |= 1 << n;
        }
        self.plain.excused[n] = false;
        self.anew.push(deliver.pin);
        self.sent.push(deliver);
        if self.sent.len() > 64 {
            self.sent.drain(..32);
        }
    }

    fn routes(&self) -> [Option<pollvisor_core::ioapic::Message>; PINS] {
        core::array::from_fn(|n| self.chip.route(pin(u8::try_from(n).expect("below 24"))))
    }

    fn exits(&self) -> (VectorSet, VectorSet) {
        (self.chip.eoi_vectors(), self.chip.unrouted_eoi_vectors())
    }

    fn compare(&mut self) {
        assert_eq!(self.chip.save().irr, self.plain.irr & !self.plain.delivered);
        let (vectors, unrouted) = self.exits();
        for n in 0..24u8 {
            let (at, entry) = (usize::from(n), self.plain.entries[usize::from(n)]);
            assert_eq!(self.chip.entry(pin(n)).bits(), entry, "entry {n}");
            assert_eq!(self.chip.is_asserted(pin(n)), self.plain.sources[at] != 0);
            assert!(entry & LEVEL == 0 || vectors.contains(entry.to_le_bytes()[0]), "its EOI would not exit");
            // No level is forgotten: up, open, not in service, and still inside.
            let waits = self.plain.irr >> n & 1 == 1 && entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL;
            assert!(!waits || self.plain.excused[at], "pin {n} is up and was not delivered");
            self.plain.excused[at] &= waits;
        }
        assert!(unrouted.iter().all(|vector| vectors.contains(vector)));
        self.read(0x10, 4);
    }
}
