//! Sets of pins and of vectors.

use super::{IoapicError, PINS};
use core::fmt;

/// One of the I/O APIC's inputs; on a split irqchip also the GSI of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin(u8);

impl Pin {
    /// The pin of this number.
    ///
    /// # Errors
    /// [`IoapicError::Pin`] from 24 on.
    pub const fn new(number: u8) -> Result<Self, IoapicError> {
        if (number as usize) < PINS { Ok(Self(number)) } else { Err(IoapicError::Pin(number)) }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }

    pub(super) const fn bit(self) -> u32 {
        1 << self.0
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        PinSet(PinSet::EVERY).iter()
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IOAPIC pin {}", self.0)
    }
}

/// Some of the 24 pins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinSet(u32);

impl PinSet {
    /// None.
    pub const EMPTY: Self = Self(0);
    pub(super) const EVERY: u32 = (1 << PINS) - 1;

    /// The pins whose bits are set; bits from 24 on are nobody's.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & Self::EVERY)
    }

    /// A bit for each pin.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether there is no pin in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `pin` is in it.
    #[must_use]
    pub const fn contains(self, pin: Pin) -> bool {
        self.0 & pin.bit() != 0
    }

    /// The pins, lowest first.
    pub fn iter(self) -> impl Iterator<Item = Pin> {
        (0u8..24).map(Pin).filter(move |pin| self.contains(*pin))
    }

    pub(super) const fn insert(&mut self, pin: Pin) {
        self.0 |= pin.bit();
    }

    pub(super) const fn remove(&mut self, pin: Pin) {
        self.0 &= !pin.bit();
    }

    pub(super) const fn set(&mut self, pin: Pin, on: bool) {
        if on { self.insert(pin) } else { self.remove(pin) }
    }
}

/// Some of the 256 vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VectorSet([u64; 4]);

impl VectorSet {
    /// None.
    pub const EMPTY: Self = Self([0; 4]);

    const fn place(vector: u8) -> (usize, u64) {
        ((vector / 64) as usize, 1 << (vector % 64))
    }

    /// Whether `vector` is in it.
    #[must_use]
    pub const fn contains(&self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        self.0[word] & bit != 0
    }

    /// Whether there is no vector in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        matches!(self.0, [0, 0, 0, 0])
    }

    /// The vectors, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=u8::MAX).filter(|vector| self.contains(*vector))
    }

    /// The set with these vectors, 64 a word, vector 0 in bit 0 of the first.
    #[must_use]
    pub const fn from_words(words: [u64; 4]) -> Self {
        Self(words)
    }

    /// A bit for each vector, as in [`from_words`](Self::from_words).
    #[must_use]
    pub const fn words(&self) -> [u64; 4] {
        self.0
    }

    /// How many vectors are in it.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The highest vector in it.
    #[inline]
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "a vector is below 256")]
    pub fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|word| *word != 0)?;
        Some(word as u8 * 64 + self.0[word].ilog2() as u8)
    }

    /// Puts `vector` in; whether it was not in before.
    pub(crate) const fn insert(&mut self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        let was = self.0[word] & bit != 0;
        self.0[word] |= bit;
        !was
    }

    /// Takes `vector` out; whether it was in.
    pub(crate) const fn remove(&mut self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        let was = self.0[word] & bit != 0;
        self.0[word] &= !bit;
        was
    }

    pub(super) fn add_all(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine |= theirs;
        }
    }
}
