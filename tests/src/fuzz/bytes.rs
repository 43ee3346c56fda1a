//! Reading decisions out of bytes. Whatever is missing is zero, so every input is a whole one.

/// What is left of an input.
#[derive(Debug)]
pub(super) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) const fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to so many.
    pub(super) fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        for (to, from) in array.iter_mut().zip(self.take(N)) {
            *to = *from;
        }
        array
    }

    pub(super) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub(super) fn bool(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A number below `end`, of one byte.
    pub(super) fn below(&mut self, end: u8) -> u8 {
        self.u8() % end
    }

    /// A number that is mostly within 2 of one of `edges`, where things happen, and sometimes any.
    pub(super) fn near(&mut self, edges: &[u32]) -> u32 {
        let choice = self.u8();
        if choice >= 0xf0 {
            return self.u32();
        }
        let edge = edges[usize::from(choice / 5) % edges.len()];
        edge.wrapping_add(u32::from(choice % 5)).wrapping_sub(2)
    }
}
