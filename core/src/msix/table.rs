//! The table and the pending bits as the guest reads and writes them, byte by byte.

use super::{Fire, Message, Mode, Msix, Route};

const ENTRY_BYTES: usize = 16;
/// Where vector control is in an entry, and the one bit of it that is implemented.
const CONTROL: usize = 12;
const MASK: u8 = 1;
/// The longest access a processor makes.
const LONGEST: usize = 8;
/// So many entries can 8 bytes at any offset touch.
const TOUCHED: usize = 2;

/// What became of a guest's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every byte had its place, or those beyond the end read as zero and wrote nothing.
    Done,
    /// Read-only: nothing was written.
    ReadOnly,
    /// A length other than 1 to 8: reads as zeros, writes nothing.
    BadLength,
    /// No byte of it is in here: reads as zeros, writes nothing.
    Outside,
}

/// One vector: its message, its mask, and whether it is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    bytes: [u8; CONTROL],
    masked: bool,
    pending: bool,
}

impl Entry {
    /// Masked, all zero, not pending.
    pub const RESET: Self = Self { bytes: [0; CONTROL], masked: true, pending: false };

    /// The message.
    #[must_use]
    pub const fn message(&self) -> Message {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.bytes;
        Message {
            address_lo: u32::from_le_bytes([a, b, c, d]),
            address_hi: u32::from_le_bytes([e, f, g, h]),
            data: u32::from_le_bytes([i, j, k, l]),
        }
    }

    /// Whether the vector is masked by itself.
    #[must_use]
    pub const fn is_masked(&self) -> bool {
        self.masked
    }

    /// Whether an event waits for the unmask.
    #[must_use]
    pub const fn is_pending(&self) -> bool {
        self.pending
    }

    pub(super) const fn set_pending(&mut self, pending: bool) {
        self.pending = pending;
    }

    fn byte(&self, place: usize) -> u8 {
        match self.bytes.get(place) {
            Some(byte) => *byte,
            None if place == CONTROL => u8::from(self.masked),
            None => 0,
        }
    }

    /// Address bits 1:0 are zero, vector control has one bit: the rest of what is written there is not kept.
    fn set_byte(&mut self, place: usize, value: u8) {
        match self.bytes.get_mut(place) {
            Some(byte) => *byte = if place == 0 { value & !3 } else { value },
            None if place == CONTROL => self.masked = value & MASK != 0,
            None => {}
        }
    }
}

/// What the host owes after a guest's write of the table: first the routes, then the interrupts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "routes to write and interrupts to send"]
pub struct TableWritten {
    /// Whether it was written.
    pub access: Access,
    /// These vectors go elsewhere now.
    pub routes: heapless::Vec<Route, TOUCHED>,
    /// These were pending and are due.
    pub fire: heapless::Vec<Fire, TOUCHED>,
}

impl<S: AsRef<[Entry]> + AsMut<[Entry]>> Msix<S> {
    /// How many bytes the table has.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        u64::from(self.vectors()) * ENTRY_BYTES as u64
    }

    /// How many bytes the pending bits have: whole QWORDs.
    #[must_use]
    pub fn pba_bytes(&self) -> u64 {
        u64::from(self.vectors()).div_ceil(64) * 8
    }

    /// The guest reads the table at `offset`; `data` is always filled.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) -> Access {
        read(self.table_bytes(), offset, data, |at| {
            self.entries().get(at / ENTRY_BYTES).map_or(0, |entry| entry.byte(at % ENTRY_BYTES))
        })
    }

    /// The guest reads the pending bits at `offset`; `data` is always filled.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) -> Access {
        read(self.pba_bytes(), offset, data, |at| {
            let eight = self.entries().iter().skip(at * 8).take(8);
            eight.rev().fold(0, |byte, entry| byte << 1 | u8::from(entry.is_pending()))
        })
    }

    /// The guest writes the pending bits: nothing changes.
    pub fn write_pba(&mut self, offset: u64, data: &[u8]) -> Access {
        match check(self.pba_bytes(), offset, data.len()) {
            Access::Done => Access::ReadOnly,
            other => other,
        }
    }

    /// The guest writes the table at `offset`.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> TableWritten {
        let access = check(self.table_bytes(), offset, data.len());
        let mut written = TableWritten { access, routes: heapless::Vec::new(), fire: heapless::Vec::new() };
        let Ok(offset) = usize::try_from(offset) else { return written };
        if access != Access::Done {
            return written;
        }
        let (first, end) = (offset / ENTRY_BYTES, (offset + data.len()).div_ceil(ENTRY_BYTES));
        let (entries, enabled) = (self.entries.as_mut(), self.mode == Mode::Enabled);
        for (index, entry) in entries.iter_mut().enumerate().take(end).skip(first) {
            let before = *entry;
            for (at, byte) in (offset..).zip(data).filter(|(at, _)| at / ENTRY_BYTES == index) {
                entry.set_byte(at % ENTRY_BYTES, *byte);
            }
            let Ok(vector) = u16::try_from(index) else { continue };
            let goes = |entry: &Entry| (enabled && !entry.masked).then(|| entry.message());
            let message = goes(entry);
            if message != goes(&before) {
                // At most one of each an entry, and there is room for every entry.
                let _always_room = written.routes.push(Route { vector, message });
            }
            if let (Some(message), true) = (message, entry.pending) {
                entry.pending = false;
                let _always_room = written.fire.push(Fire { vector, message });
            }
        }
        written
    }
}

fn check(size: u64, offset: u64, length: usize) -> Access {
    if length == 0 || length > LONGEST {
        Access::BadLength
    } else if offset >= size {
        Access::Outside
    } else {
        Access::Done
    }
}

fn read(size: u64, offset: u64, data: &mut [u8], byte: impl Fn(usize) -> u8) -> Access {
    data.fill(0);
    let access = check(size, offset, data.len());
    if access == Access::Done {
        for (at, to) in (offset..size).zip(data) {
            *to = usize::try_from(at).map_or(0, &byte);
        }
    }
    access
}

/// A guest's read of a few registers that lie in `registers`.
pub(super) fn copy_out(registers: &[u8], offset: u64, data: &mut [u8]) -> Access {
    read(registers.len() as u64, offset, data, |at| registers.get(at).copied().unwrap_or(0))
}

/// A guest's write of them.
pub(super) fn copy_in(registers: &mut [u8], offset: u64, data: &[u8]) -> Access {
    let access = check(registers.len() as u64, offset, data.len());
    if let (Access::Done, Ok(offset)) = (access, usize::try_from(offset)) {
        for (to, from) in registers.iter_mut().skip(offset).zip(data) {
            *to = *from;
        }
    }
    access
}
