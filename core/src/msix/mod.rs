//! Emulated MSI-X (table, pending bits, control register) and, in [`msi`], plain MSI.
//!
//! The device says "vector n" ([`Msix::signal`]), the guest reads and writes bytes. Nothing is sent from here:
//! what is due comes back as a [`Fire`], what the host's routing has to follow as a [`Route`].
//!
//! ```text
//!              signal                      guest unmasks (vector, function)
//!  disabled ── dropped: the guest has not asked for messages
//!  enabled, unmasked ── Fire
//!  enabled, masked ──── pending := 1 ────► pending := 0, Fire, exactly once, with the message of that moment
//!                       (again: merged)    guest disables ─► pending := 0, counted: it asked to hear no more
//! ```
//! So a pending bit is set only while MSI-X is enabled and the vector masked, by itself or with the function; or
//! between an unmasking of the whole function and the host's [`Msix::next_due`] for the vector.
//!
//! Bytes are bytes: the specification defines aligned DWORD and QWORD accesses only; here every access of 1 to 8
//! bytes at any offset does to each byte what its place says, and is compared before and after as a whole. A
//! vector whose address changes in four single-byte writes passes through four messages, as hardware would.

pub mod msi;
mod table;

#[cfg(all(test, not(loom)))]
mod msi_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub use table::{Access, Entry, TableWritten};

use crate::Errno;
use core::fmt;

/// The most vectors a function can have.
pub const MAX_VECTORS: usize = 2048;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

/// A message-signalled interrupt: what is written where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Message {
    /// Address, low half.
    pub address_lo: u32,
    /// Address, high half.
    pub address_hi: u32,
    /// Data.
    pub data: u32,
}

impl From<Message> for crate::route::Msi {
    fn from(Message { address_lo, address_hi, data }: Message) -> Self {
        Self { address_lo, address_hi, data, devid: None }
    }
}

/// A call of the host's or the device's that cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsixError {
    /// A table has 1 to 2048 vectors.
    TableSize(usize),
    /// The function does not have this vector.
    Vector(u16),
}

impl MsixError {
    /// As Linux would say it.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::TableSize(_) | Self::Vector(_) => Errno::EINVAL,
        }
    }
}

impl fmt::Display for MsixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TableSize(n) => write!(f, "{n} vectors: a table has 1 to {MAX_VECTORS}"),
            Self::Vector(n) => write!(f, "the function has no vector {n}"),
        }
    }
}

/// Send this, now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an interrupt that nobody sends is lost"]
pub struct Fire {
    /// The vector.
    pub vector: u16,
    /// Its message at this moment.
    pub message: Message,
}

/// Where a vector goes from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the routing table has to follow"]
pub struct Route {
    /// The vector.
    pub vector: u16,
    /// Its message; none while it is masked or MSI-X is off, when events have to come to [`Msix::signal`].
    pub message: Option<Message>,
}

/// What became of a device's event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it may hold an interrupt to send"]
pub enum Signal {
    /// Send this.
    Fire(Fire),
    /// Masked: kept until the guest unmasks.
    Pended,
    /// Masked and pending already: one interrupt, not two.
    Merged,
    /// The guest has not enabled these messages: gone.
    Disabled,
    /// Plain MSI only: the guest allocated fewer vectors than that; the device may signal a lower one.
    NotAllocated,
}

/// What the control register says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No messages at all.
    Disabled,
    /// Enabled; every vector masked with the function.
    FunctionMasked,
    /// Enabled; each vector by its own mask.
    Enabled,
}

/// What the host owes after a write of the control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "routes and pending interrupts may have to follow"]
pub struct ControlWritten {
    /// Before.
    pub before: Mode,
    /// Now.
    pub after: Mode,
    /// Every vector's [`Msix::route`] may say something new: write them, then...
    pub routes_changed: bool,
    /// ...ask [`Msix::next_due`] until it has no more.
    pub due: bool,
    /// So many pending vectors went with the disabling.
    pub dropped: u16,
}

/// An MSI-X function: `S` is where the entries are, the caller's array, slice or box. A lock of the caller's goes
/// around it.
#[derive(Clone, Debug)]
pub struct Msix<S> {
    entries: S,
    mode: Mode,
    /// Kept apart from `mode`: the bit is writable while MSI-X is off.
    function_masked: bool,
}

impl<S: AsRef<[Entry]> + AsMut<[Entry]>> Msix<S> {
    /// A disabled function with as many vectors as `entries`; what they hold is reset.
    ///
    /// # Errors
    /// [`MsixError::TableSize`].
    pub fn new(mut entries: S) -> Result<Self, MsixError> {
        let size = entries.as_ref().len();
        if size == 0 || size > MAX_VECTORS {
            return Err(MsixError::TableSize(size));
        }
        entries.as_mut().fill(Entry::RESET);
        Ok(Self { entries, mode: Mode::Disabled, function_masked: false })
    }

    /// How many vectors there are.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.entries().len()).unwrap_or(u16::MAX)
    }

    /// What the control register says.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// The device has an event for `vector`.
    ///
    /// # Errors
    /// [`MsixError::Vector`].
    pub fn signal(&mut self, vector: u16) -> Result<Signal, MsixError> {
        let mode = self.mode;
        let entry = self.entry_mut(vector)?;
        Ok(match mode {
            Mode::Disabled => Signal::Disabled,
            Mode::Enabled if !entry.is_masked() => {
                // Due already, and the host has not come for it yet: this one is it.
                entry.set_pending(false);
                Signal::Fire(Fire { vector, message: entry.message() })
            }
            _ if entry.is_pending() => Signal::Merged,
            _ => {
                entry.set_pending(true);
                Signal::Pended
            }
        })
    }

    /// The reason for a pending event is gone (the guest served the device while the vector was masked): unmasking
    /// sends nothing then. Whether there was one.
    ///
    /// # Errors
    /// [`MsixError::Vector`].
    pub fn satisfied(&mut self, vector: u16) -> Result<bool, MsixError> {
        let entry = self.entry_mut(vector)?;
        let was = entry.is_pending();
        entry.set_pending(false);
        Ok(was)
    }

    /// Where `vector` goes at this moment.
    ///
    /// # Errors
    /// [`MsixError::Vector`].
    pub fn route(&self, vector: u16) -> Result<Route, MsixError> {
        let entry = self.entries().get(usize::from(vector)).ok_or(MsixError::Vector(vector))?;
        Ok(Route { vector, message: self.effective(entry) })
    }

    /// The next vector from `from` on that is pending and masked no longer, taken out of the pending set. The lock
    /// may be given back between two calls: what has been masked again by then stays pending.
    pub fn next_due(&mut self, from: u16) -> Option<Fire> {
        if self.mode != Mode::Enabled {
            return None;
        }
        let entries = self.entries.as_mut().iter_mut();
        let (vector, entry) =
            (0u16..).zip(entries).skip(usize::from(from)).find(|(_, e)| e.is_pending() && !e.is_masked())?;
        entry.set_pending(false);
        Some(Fire { vector, message: entry.message() })
    }

    /// The control register: 10:0 the table's size less one, 14 function mask, 15 enable.
    #[must_use]
    pub fn control(&self) -> u16 {
        let mask = if self.function_masked { FUNCTION_MASK } else { 0 };
        let enable = if self.mode == Mode::Disabled { 0 } else { ENABLE };
        enable | mask | (self.vectors().wrapping_sub(1) & 0x7ff)
    }

    /// The guest reads the control register from its byte `offset` (0 or 1) on; beyond it there is nothing.
    pub fn read_control(&self, offset: u64, data: &mut [u8]) -> Access {
        table::copy_out(&self.control().to_le_bytes(), offset, data)
    }

    /// The guest writes the control register from its byte `offset` on; bytes beyond it are nobody's.
    pub fn write_control(&mut self, offset: u64, data: &[u8]) -> ControlWritten {
        let mut bytes = self.control().to_le_bytes();
        let _nothing_to_report: Access = table::copy_in(&mut bytes, offset, data);
        let value = u16::from_le_bytes(bytes);
        let before = self.mode;
        self.function_masked = value & FUNCTION_MASK != 0;
        self.mode = match (value & ENABLE != 0, self.function_masked) {
            (false, _) => Mode::Disabled,
            (true, true) => Mode::FunctionMasked,
            (true, false) => Mode::Enabled,
        };
        let mut dropped = 0;
        if self.mode == Mode::Disabled {
            for entry in self.entries.as_mut().iter_mut().filter(|entry| entry.is_pending()) {
                entry.set_pending(false);
                dropped += 1;
            }
        }
        ControlWritten {
            before,
            after: self.mode,
            routes_changed: (before == Mode::Enabled) != (self.mode == Mode::Enabled),
            due: self.mode == Mode::Enabled
                && self.entries().iter().any(|e| e.is_pending() && !e.is_masked()),
            dropped,
        }
    }

    /// The function is reset: disabled, every vector masked, nothing pending.
    pub fn reset(&mut self) -> ControlWritten {
        let written = self.write_control(0, &[0, 0]);
        self.entries.as_mut().fill(Entry::RESET);
        written
    }

    fn entries(&self) -> &[Entry] {
        self.entries.as_ref()
    }

    fn entry_mut(&mut self, vector: u16) -> Result<&mut Entry, MsixError> {
        self.entries.as_mut().get_mut(usize::from(vector)).ok_or(MsixError::Vector(vector))
    }

    fn effective(&self, entry: &Entry) -> Option<Message> {
        (self.mode == Mode::Enabled && !entry.is_masked()).then(|| entry.message())
    }
}
