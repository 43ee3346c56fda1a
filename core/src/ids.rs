//! Names of things, each its own type, an interrupt's trigger mode, and handles that know when their object is gone.

use core::fmt;

/// A global system interrupt: an index into the VM's routing table. Not range-checked: one beyond the table is
/// an unrouted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(pub u32);

/// A virtual CPU by its index, from 0; also its x2APIC ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub u32);

/// How often a slot has been given to a new owner; wraps after 2^32 of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u32);

impl Generation {
    /// The next owner's generation.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// A handle to an irqfd: the slot and the generation that was in it. A stale one fails instead of touching the
/// slot's next owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId {
    /// The slot.
    pub index: u32,
    /// The slot's owner.
    pub generation: Generation,
}

impl SourceId {
    /// The slot as a table index.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> usize {
        self.index as usize
    }
}

/// An eventfd's identity, the same for every descriptor of it, unique on this host (Linux: `eventfd-id` in
/// `/proc/self/fdinfo`; a doorbell: its address).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventKey(pub u64);

/// An interrupt's trigger mode: bit 15 of an MSI's data, of an I/O APIC entry, of the ICR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A rising edge is one interrupt; nobody waits for its EOI.
    Edge,
    /// The line is an interrupt as long as it is up; one at a time, until the EOI.
    Level,
}

impl fmt::Display for Gsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GSI {}", self.0)
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "irqfd {}.{}", self.index, self.generation.0)
    }
}

impl fmt::Display for EventKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {:#x}", self.0)
    }
}
