//! MSI-X: whatever the guest reads and writes and the device signals, byte for byte against a plain table.

use super::bytes::Bytes;
use pollvisor_core::msix::{Access, Entry, Fire, Message, Mode, Msix, MsixError, Route, Signal};

/// The reference: the bytes of the table, a flag for each vector, and two bits of the control register.
struct Plain {
    table: Vec<u8>,
    pending: Vec<bool>,
    enabled: bool,
    masked: bool,
}

impl Plain {
    fn new(vectors: usize) -> Self {
        let mut plain = Self {
            table: vec![0; 16 * vectors],
            pending: vec![false; vectors],
            enabled: false,
            masked: false,
        };
        plain.reset();
        plain
    }

    fn reset(&mut self) {
        self.table.fill(0);
        self.table.iter_mut().skip(12).step_by(16).for_each(|control| *control = 1);
        self.pending.fill(false);
        (self.enabled, self.masked) = (false, false);
    }

    fn open(&self) -> bool {
        self.enabled && !self.masked
    }

    /// Where a vector goes, if anywhere.
    fn message(&self, vector: usize) -> Option<Message> {
        let entry = &self.table[16 * vector..][..16];
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes"));
        let message = Message { address_lo: word(0), address_hi: word(4), data: word(8) };
        (self.open() && entry[12] == 0).then_some(message)
    }

    fn set(&mut self, at: usize, value: u8) {
        self.table[at] = match at % 16 {
            0 => value & 0xfc,
            12 => value & 1,
            13.. => 0,
            _ => value,
        };
    }

    fn pba(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.pending.len().div_ceil(64) * 8];
        for (vector, _) in self.pending.iter().enumerate().filter(|(_, pending)| **pending) {
            bytes[vector / 8] |= 1 << (vector % 8);
        }
        bytes
    }

    fn control(&self) -> u16 {
        let size = u16::try_from(self.pending.len() - 1).expect("at most 2048");
        size | u16::from(self.masked) << 14 | u16::from(self.enabled) << 15
    }
}

struct Pair {
    msix: Msix<Vec<Entry>>,
    plain: Plain,
}

/// Any accesses, signals and resets.
///
/// # Panics
/// When the function disagrees with the reference.
pub fn msix(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let vectors = match bytes.below(8) {
        0 => [63, 64, 65, 130][usize::from(bytes.below(4))],
        _ => 1 + usize::from(bytes.below(5)),
    };
    let msix = Msix::new(vec![Entry::RESET; vectors]).expect("1 to 2048 vectors");
    let mut pair = Pair { msix, plain: Plain::new(vectors) };
    for _ in 0..400 {
        if bytes.is_empty() {
            break;
        }
        pair.step(&mut bytes);
        pair.compare();
    }
}

fn access(size: usize, offset: u64, length: usize) -> Access {
    match length {
        1..=8 if offset < size as u64 => Access::Done,
        1..=8 => Access::Outside,
        _ => Access::BadLength,
    }
}

impl Pair {
    fn vector(&self, bytes: &mut Bytes<'_>) -> u16 {
        let vectors = u32::from(self.msix.vectors());
        u16::try_from(bytes.near(&[2, vectors.saturating_sub(2), vectors]) & 0xffff).expect("16 bits")
    }

    /// A place and what is written there: any, or one of the fields.
    fn place<'a>(&self, bytes: &mut Bytes<'a>) -> (u64, &'a [u8]) {
        let choice = bytes.u8();
        let entry = 16 * u64::from(self.vector(bytes));
        match choice & 7 {
            0 => (bytes.u64(), bytes.take(usize::from(choice >> 4))),
            1..3 => (entry + u64::from(choice >> 4), bytes.take(8)),
            3 => (entry + 8, bytes.take(8)),
            4 => (entry, bytes.take(4)),
            _ => (entry + 12, if choice & 8 == 0 { &[0, 0, 0, 0] } else { &[1, 0, 0, 0] }),
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(16) {
            0..4 => self.signal(self.vector(bytes)),
            4 => self.satisfied(self.vector(bytes)),
            5..9 => {
                let (offset, data) = self.place(bytes);
                self.write_table(offset, data);
            }
            9 => {
                let (offset, data) = self.place(bytes);
                self.read(offset, data.len(), bytes.bool());
            }
            10 => {
                let (offset, data) = self.place(bytes);
                let want = match access(self.plain.pba().len(), offset, data.len()) {
                    Access::Done => Access::ReadOnly,
                    other => other,
                };
                assert_eq!(self.msix.write_pba(offset, data), want);
            }
            11..13 => {
                let high = bytes.u8();
                self.control(1, &[high]);
            }
            13 => {
                let offset = if bytes.bool() { u64::from(bytes.below(4)) } else { bytes.u64() };
                let length = usize::from(bytes.below(10));
                self.control(offset, bytes.take(length));
            }
            14 => self.next_due(self.vector(bytes)),
            _ => {
                let was = self.plain.pending.iter().filter(|pending| **pending).count();
                assert_eq!(usize::from(self.msix.reset().dropped), was);
                self.plain.reset();
            }
        }
    }

    fn signal(&mut self, vector: u16) {
        let at = usize::from(vector);
        let got = self.msix.signal(vector);
        let Some(pending) = self.plain.pending.get(at).copied() else {
            return assert_eq!(got, Err(MsixError::Vector(vector)));
        };
        let want = match self.plain.message(at) {
            _ if !self.plain.enabled => Signal::Disabled,
            Some(message) => Signal::Fire(Fire { vector, message }),
            None if pending => Signal::Merged,
            None => Signal::Pended,
        };
        self.plain.pending[at] = matches!(want, Signal::Merged | Signal::Pended);
        assert_eq!(got, Ok(want));
    }

    fn satisfied(&mut self, vector: u16) {
        let was = self.plain.pending.get_mut(usize::from(vector)).map(core::mem::take);
        assert_eq!(self.msix.satisfied(vector), was.ok_or(MsixError::Vector(vector)));
    }

    fn write_table(&mut self, offset: u64, data: &[u8]) {
        let got = self.msix.write_table(offset, data);
        let size = self.plain.table.len();
        assert_eq!(got.access, access(size, offset, data.len()));
        let (mut routes, mut fires) = (Vec::new(), Vec::new());
        if got.access == Access::Done {
            let offset = usize::try_from(offset).expect("inside the table");
            let touched = offset..(offset + data.len()).min(size);
            let vectors = touched.start / 16..touched.end.div_ceil(16);
            let before: Vec<_> = vectors.clone().map(|vector| self.plain.message(vector)).collect();
            touched.zip(data).for_each(|(at, byte)| self.plain.set(at, *byte));
            for (at, before) in vectors.zip(before) {
                let vector = u16::try_from(at).expect("at most 2048");
                let message = self.plain.message(at);
                routes.extend((message != before).then_some(Route { vector, message }));
                if let Some(message) = message.filter(|_| self.plain.pending[at]) {
                    self.plain.pending[at] = false;
                    fires.push(Fire { vector, message });
                }
            }
        }
        assert_eq!((&got.routes[..], &got.fire[..]), (&routes[..], &fires[..]));
    }

    /// Reads the table, or the pending bits.
    fn read(&self, offset: u64, length: usize, table: bool) {
        let all = if table { self.plain.table.clone() } else { self.plain.pba() };
        let mut data = vec![0xa5; length];
        let got = if table {
            self.msix.read_table(offset, &mut data)
        } else {
            self.msix.read_pba(offset, &mut data)
        };
        assert_eq!(got, access(all.len(), offset, length));
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = all.iter().skip(start).chain(core::iter::repeat(&0)).take(length);
        let zeros = got != Access::Done;
        assert!(data.iter().zip(there).all(|(got, want)| *got == if zeros { 0 } else { *want }));
    }

    fn control(&mut self, offset: u64, data: &[u8]) {
        let before = self.plain.open();
        let high = match offset {
            0 => data.get(1),
            1 => data.first(),
            _ => None,
        };
        if let (1..=8, Some(high)) = (data.len(), high) {
            (self.plain.masked, self.plain.enabled) = (high & 0x40 != 0, high & 0x80 != 0);
        }
        let mut dropped = 0;
        if !self.plain.enabled {
            dropped = self.plain.pending.iter_mut().map(core::mem::take).filter(|was| *was).count();
        }
        let written = self.msix.write_control(offset, data);
        let due =
            (0..self.plain.pending.len()).any(|n| self.plain.pending[n] && self.plain.message(n).is_some());
        assert_eq!((usize::from(written.dropped), written.due), (dropped, due));
        assert_eq!(written.routes_changed, before != self.plain.open());
    }

    fn next_due(&mut self, from: u16) {
        let vectors = usize::from(from)..self.plain.pending.len();
        let due = vectors.into_iter().find(|n| self.plain.pending[*n] && self.plain.message(*n).is_some());
        let want = due.and_then(|at| {
            self.plain.pending[at] = false;
            let vector = u16::try_from(at).ok()?;
            Some(Fire { vector, message: self.plain.message(at)? })
        });
        assert_eq!(self.msix.next_due(from), want);
    }

    fn compare(&self) {
        let mode = match (self.plain.enabled, self.plain.masked) {
            (false, _) => Mode::Disabled,
            (true, true) => Mode::FunctionMasked,
            (true, false) => Mode::Enabled,
        };
        assert_eq!((self.msix.mode(), self.msix.control()), (mode, self.plain.control()));
        for (vector, at) in (0..self.msix.vectors()).zip(0..) {
            assert_eq!(self.msix.route(vector), Ok(Route { vector, message: self.plain.message(at) }));
        }
        for offset in (0..self.plain.pba().len() as u64).step_by(8) {
            self.read(offset, 8, false);
        }
    }
}
