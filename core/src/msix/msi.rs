//! The plain MSI capability: up to 32 vectors out of one address and one 16-bit data register, with or without a
//! mask for each.
//!
//! ```text
//!                   2        4        8          C        10       14
//!  32-bit           control  address  data
//!  32-bit, masks    control  address  data       mask     pending
//!  64-bit           control  address  (high)     data
//!  64-bit, masks    control  address  (high)     data     mask     pending
//! ```
//! The rules for events are [MSI-X's](super), without a function mask; a vector that the guest did not allocate is
//! refused by name, for the device to choose a lower one.

use super::table::{copy_in, copy_out};
use super::{Access, Fire, Message, MsixError, Route, Signal};
use crate::Errno;

/// The most vectors a function can have.
pub const MAX_VECTORS: usize = 32;

/// The longest layout: 64-bit with masks.
const BYTES: usize = 24;
const CONTROL: usize = 2;
const ADDRESS: usize = 4;

const ENABLE: u16 = 1;
const MULTIPLE_ENABLE: u16 = 7 << 4;
const WIDE: u16 = 1 << 7;
const MASKABLE: u16 = 1 << 8;

/// What the function is built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    vectors_log2: u8,
    wide: bool,
    maskable: bool,
}

/// A number of vectors that is not 1, 2, 4, 8, 16 or 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCount(pub u8);

impl BadCount {
    /// As Linux would say it.
    #[must_use]
    pub const fn errno(self) -> Errno {
        Errno::EINVAL
    }
}

impl core::fmt::Display for BadCount {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} MSI vectors: a power of two, at most {MAX_VECTORS}", self.0)
    }
}

impl Shape {
    /// `vectors` requested, a 64-bit address or not, masks or not.
    ///
    /// # Errors
    /// [`BadCount`].
    pub const fn new(vectors: u8, wide: bool, maskable: bool) -> Result<Self, BadCount> {
        if !vectors.is_power_of_two() || vectors as usize > MAX_VECTORS {
            return Err(BadCount(vectors));
        }
        let mut vectors_log2 = 0;
        while 1 << vectors_log2 < vectors {
            vectors_log2 += 1;
        }
        Ok(Self { vectors_log2, wide, maskable })
    }

    /// How many bytes the capability has, its two header bytes included.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match (self.wide, self.maskable) {
            (false, false) => 10,
            (true, false) => 14,
            (false, true) => 20,
            (true, true) => 24,
        }
    }

    const fn data(self) -> usize {
        if self.wide { 12 } else { 8 }
    }

    const fn masks(self) -> usize {
        self.data() + 4
    }

    /// A bit for each vector the function has.
    const fn all(self) -> u32 {
        u32::MAX >> (32 - (1u32 << self.vectors_log2))
    }
}

/// What the host owes after a guest's write: first the routes, then the interrupts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "routes to write and interrupts to send"]
pub struct MsiWritten {
    /// Whether it was written.
    pub access: Access,
    /// These vectors go elsewhere now.
    pub routes: heapless::Vec<Route, MAX_VECTORS>,
    /// These were pending and are due.
    pub fire: heapless::Vec<Fire, MAX_VECTORS>,
    /// So many pending vectors went with the disabling, or with being allocated no longer.
    pub dropped: u32,
}

/// A function's MSI capability. A lock of the caller's goes around it.
#[derive(Clone, Debug)]
pub struct Msi {
    shape: Shape,
    enabled: bool,
    /// The guest's; at most the shape's.
    allocated_log2: u8,
    address: u64,
    data: u16,
    masks: u32,
    pending: u32,
}

impl Msi {
    /// Disabled, everything zero.
    #[must_use]
    pub const fn new(shape: Shape) -> Self {
        Self { shape, enabled: false, allocated_log2: 0, address: 0, data: 0, masks: 0, pending: 0 }
    }

    /// The device has an event for `vector`.
    ///
    /// # Errors
    /// [`MsixError::Vector`] when the function is not built with so many.
    pub fn signal(&mut self, vector: u16) -> Result<Signal, MsixError> {
        let bit = self.bit(vector)?;
        Ok(if !self.enabled {
            Signal::Disabled
        } else if bit & self.allocated() == 0 {
            Signal::NotAllocated
        } else if bit & self.masks == 0 {
            Signal::Fire(Fire { vector, message: self.message(vector) })
        } else if bit & self.pending != 0 {
            Signal::Merged
        } else {
            self.pending |= bit;
            Signal::Pended
        })
    }

    /// The reason for a pending event is gone: unmasking sends nothing then. Whether there was one.
    ///
    /// # Errors
    /// [`MsixError::Vector`] when the function is not built with so many.
    pub fn satisfied(&mut self, vector: u16) -> Result<bool, MsixError> {
        let bit = self.bit(vector)?;
        let was = self.pending & bit != 0;
        self.pending &= !bit;
        Ok(was)
    }

    /// Where `vector` goes at this moment.
    ///
    /// # Errors
    /// [`MsixError::Vector`] when the function is not built with so many.
    pub fn route(&self, vector: u16) -> Result<Route, MsixError> {
        let live = self.bit(vector)? & self.live() != 0;
        Ok(Route { vector, message: live.then(|| self.message(vector)) })
    }

    /// Whether the guest has switched it on.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// How many vectors the guest allocated.
    #[must_use]
    pub const fn vectors_allocated(&self) -> u16 {
        1 << self.allocated_log2
    }

    /// The guest reads at `offset` from the capability's first byte; `data` is always filled. The two header bytes
    /// are configuration space's and read as zero here.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        let registers = self.registers();
        copy_out(registers.get(..self.shape.bytes()).unwrap_or(&registers), offset, data)
    }

    /// The guest writes `data` at `offset` from the capability's first byte.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> MsiWritten {
        let before = self.clone();
        let mut registers = self.registers();
        let mut length = self.shape.bytes();
        if self.shape.maskable {
            // Pending bits are read-only.
            length -= 4;
        }
        let access = match registers.get_mut(..length) {
            Some(writable) => copy_in(writable, offset, data),
            None => Access::Outside,
        };
        let access = match access {
            Access::Outside if offset < self.shape.bytes() as u64 => Access::ReadOnly,
            other => other,
        };
        if access == Access::Done {
            self.take(&registers);
        }
        self.settle(&before, access)
    }

    /// The function is reset: disabled, everything zero.
    pub fn reset(&mut self) -> MsiWritten {
        let before = self.clone();
        let pending = self.pending;
        *self = Self { pending, ..Self::new(self.shape) };
        self.settle(&before, Access::Done)
    }

    /// What follows from the difference to `before`.
    fn settle(&mut self, before: &Self, access: Access) -> MsiWritten {
        let gone = if self.enabled { self.pending & !self.allocated() } else { self.pending };
        self.pending &= !gone;
        let due = self.pending & self.live();
        self.pending &= !due;
        let mut written = MsiWritten {
            access,
            routes: heapless::Vec::new(),
            fire: heapless::Vec::new(),
            dropped: gone.count_ones(),
        };
        for vector in 0..1u16 << self.shape.vectors_log2 {
            let bit = 1u32 << vector;
            let goes = |msi: &Self| (msi.live() & bit != 0).then(|| msi.message(vector));
            let message = goes(self);
            if message != goes(before) {
                // At most one of each a vector, and there is room for every vector.
                let _always_room = written.routes.push(Route { vector, message });
            }
            if let (Some(message), true) = (message, due & bit != 0) {
                let _always_room = written.fire.push(Fire { vector, message });
            }
        }
        written
    }

    fn registers(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let mut put = |at: usize, value: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(at).zip(value) {
                *to = *from;
            }
        };
        let mut control = u16::from(self.shape.vectors_log2) << 1 | u16::from(self.allocated_log2) << 4;
        for (bit, on) in [(ENABLE, self.enabled), (WIDE, self.shape.wide), (MASKABLE, self.shape.maskable)] {
            control |= if on { bit } else { 0 };
        }
        put(CONTROL, &control.to_le_bytes());
        // In the short layout the data register goes over the address's high half, which is zero.
        put(ADDRESS, &self.address.to_le_bytes());
        put(self.shape.data(), &self.data.to_le_bytes());
        if self.shape.maskable {
            put(self.shape.masks(), &self.masks.to_le_bytes());
            put(self.shape.masks() + 4, &self.pending.to_le_bytes());
        }
        bytes
    }

    /// The writable parts of `bytes`.
    fn take(&mut self, bytes: &[u8; BYTES]) {
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let half = |at: usize| u16::from_le_bytes([byte(at), byte(at + 1)]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let control = half(CONTROL);
        self.enabled = control & ENABLE != 0;
        // More than the function has is as many as it has.
        let [wanted, _] = ((control & MULTIPLE_ENABLE) >> 4).to_le_bytes();
        self.allocated_log2 = wanted.min(self.shape.vectors_log2);
        let high = if self.shape.wide { word(ADDRESS + 4) } else { 0 };
        self.address = u64::from(high) << 32 | u64::from(word(ADDRESS) & !3);
        self.data = half(self.shape.data());
        if self.shape.maskable {
            self.masks = word(self.shape.masks()) & self.shape.all();
        }
    }

    /// The one message with the vector's number in the data bits that the guest gave away.
    fn message(&self, vector: u16) -> Message {
        let low = self.vectors_allocated() - 1;
        let [a, b, c, d, e, f, g, h] = self.address.to_le_bytes();
        Message {
            address_lo: u32::from_le_bytes([a, b, c, d]),
            address_hi: u32::from_le_bytes([e, f, g, h]),
            data: u32::from((self.data & !low) | (vector & low)),
        }
    }

    fn bit(&self, vector: u16) -> Result<u32, MsixError> {
        match 1u32.checked_shl(u32::from(vector)) {
            Some(bit) if bit & self.shape.all() != 0 => Ok(bit),
            _ => Err(MsixError::Vector(vector)),
        }
    }

    const fn allocated(&self) -> u32 {
        u32::MAX >> (32 - (1u32 << self.allocated_log2))
    }

    /// The vectors whose events go out at once.
    const fn live(&self) -> u32 {
        if self.enabled { self.allocated() & !self.masks } else { 0 }
    }
}
