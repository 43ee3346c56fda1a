//! A byte of configuration space.

/// Where a byte's bits come from and where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    /// What is kept here.
    pub own: u8,
    /// Bits that read as `own` and never reach the device; the others are the device's.
    pub emulated: u8,
    /// Bits of `own` that the guest can write.
    pub writable: u8,
    /// Bits that ask for a reset when written as 1.
    pub resets: u8,
    /// Writes go to the device.
    pub pass: bool,
}

impl Cell {
    /// Reads as zero, drops writes.
    pub const HIDDEN: Self = Self::register(0, 0);
    /// The device's, read-only.
    pub const SHOWN: Self = Self { emulated: 0, ..Self::HIDDEN };
    /// The device's.
    pub const PASSED: Self = Self { pass: true, ..Self::SHOWN };

    /// Kept here: a value, and which of its bits can be written.
    pub const fn register(own: u8, writable: u8) -> Self {
        Self { own, emulated: 0xff, writable, resets: 0, pass: false }
    }
}
