//! Firmware's role: where the BARs go before the guest runs.

use super::bar::{BarKind, PAGE};
use crate::error::{Error, Result};
use std::ops::Range;
use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};

/// The guest's addresses that are there for BARs.
#[derive(Debug)]
pub struct Windows {
    mmio32: Window,
    mmio64: Window,
    io: Window,
}

#[derive(Debug)]
struct Window {
    range: Range<u64>,
    /// None for an empty window.
    free: Option<AddressAllocator>,
}

impl Windows {
    /// Memory below 4 GiB, memory above it, ports. Each may be empty.
    ///
    /// # Errors
    /// `mmio32` does not end below 4 GiB.
    pub fn new(mmio32: Range<u64>, mmio64: Range<u64>, io: Range<u16>) -> Result<Self> {
        if mmio32.end > 1 << 32 {
            return Err(Error::new(format!("a 32-bit window for BARs that ends at {:#x}", mmio32.end)));
        }
        let io = u64::from(io.start)..u64::from(io.end);
        Ok(Self { mmio32: Window::new(mmio32)?, mmio64: Window::new(mmio64)?, io: Window::new(io)? })
    }

    /// An address for a BAR: naturally aligned, in memory never in a page with another BAR. A 64-bit BAR goes below
    /// 4 GiB while it fits there.
    ///
    /// # Errors
    /// `size` is not a power of two, or no gap is large enough.
    pub fn allocate(&mut self, kind: BarKind, size: u64) -> Result<u64> {
        if !size.is_power_of_two() {
            return Err(Error::new(format!("a BAR of {size:#x} bytes: not a power of two")));
        }
        let found = match kind {
            BarKind::Io => self.io.allocate(size),
            BarKind::Memory32 => self.mmio32.allocate(size.max(PAGE)),
            BarKind::Memory64 => {
                let size = size.max(PAGE);
                self.mmio32.allocate(size).or_else(|| self.mmio64.allocate(size))
            }
        };
        let window = || match kind {
            BarKind::Io => format!("{:#x?}", self.io.range),
            BarKind::Memory32 => format!("{:#x?}", self.mmio32.range),
            BarKind::Memory64 => format!("{:#x?} and {:#x?}", self.mmio32.range, self.mmio64.range),
        };
        found.ok_or_else(|| {
            Error::new(format!("no room for a BAR of {size:#x} bytes ({kind:?}) in {}", window()))
                .remedy("pass fewer devices, or make the guest's window larger")
        })
    }

    /// Gives back what [`Self::allocate`] found for the same kind and size.
    ///
    /// # Errors
    /// Nothing was allocated there.
    pub fn free(&mut self, kind: BarKind, address: u64, size: u64) -> Result<()> {
        let (window, size) = match kind {
            BarKind::Io => (&mut self.io, size),
            _ if self.mmio32.range.contains(&address) => (&mut self.mmio32, size.max(PAGE)),
            _ => (&mut self.mmio64, size.max(PAGE)),
        };
        let range = size
            .checked_sub(1)
            .and_then(|last| RangeInclusive::new(address, address.checked_add(last)?).ok());
        let freed = window.free.as_mut().zip(range).map(|(free, range)| free.free(&range));
        match freed {
            Some(Ok(())) => Ok(()),
            _ => Err(Error::new(format!("no BAR of {size:#x} bytes ({kind:?}) at {address:#x} to free"))),
        }
    }

    /// Whether `size` bytes at `address` are in a window for BARs of this kind. A guest may write any address into a
    /// BAR, its memory's and the interrupt controllers' too; what is not in a window is better not mapped.
    #[must_use]
    pub fn contains(&self, kind: BarKind, address: u64, size: u64) -> bool {
        let within = |window: &Window| {
            address >= window.range.start
                && address.checked_add(size).is_some_and(|end| end <= window.range.end)
        };
        match kind {
            BarKind::Io => within(&self.io),
            BarKind::Memory32 => within(&self.mmio32),
            BarKind::Memory64 => within(&self.mmio32) || within(&self.mmio64),
        }
    }
}

impl Window {
    fn new(range: Range<u64>) -> Result<Self> {
        let free = match range.end.checked_sub(range.start) {
            None | Some(0) => None,
            Some(size) => {
                let refused = |error| Error::new(format!("a window for BARs of {range:#x?}: {error}"));
                Some(AddressAllocator::new(range.start, size).map_err(refused)?)
            }
        };
        Ok(Self { range, free })
    }

    fn allocate(&mut self, size: u64) -> Option<u64> {
        let found = self.free.as_mut()?.allocate(size, size, AllocPolicy::FirstMatch);
        found.ok().map(|range| range.start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn windows() -> Windows {
        Windows::new(0xc000_0000..0xe000_0000, 1 << 40..1 << 41, 0xc000..0xd000).unwrap()
    }

    #[test]
    fn low_while_it_fits() {
        let mut windows = windows();
        assert_eq!(windows.allocate(BarKind::Memory32, 0x80), Ok(0xc000_0000));
        assert_eq!(windows.allocate(BarKind::Memory64, 0x10_0000), Ok(0xc010_0000));
        assert_eq!(windows.allocate(BarKind::Memory64, 1 << 32), Ok(1 << 40));
        assert_eq!(windows.allocate(BarKind::Memory64, 1 << 28), Ok(0xd000_0000));
        assert_eq!(windows.allocate(BarKind::Memory64, 1 << 28), Ok((1 << 40) + (1 << 32)));
        assert!(windows.allocate(BarKind::Memory32, 1 << 28).is_err());
        assert_eq!(windows.allocate(BarKind::Memory32, 0x80), Ok(0xc000_1000));
        assert_eq!(windows.allocate(BarKind::Io, 0x20), Ok(0xc000));
        assert_eq!(windows.allocate(BarKind::Io, 0x4), Ok(0xc020));
        for (kind, size) in
            [(BarKind::Io, 0x2000), (BarKind::Memory64, 1 << 63), (BarKind::Memory32, 0), (BarKind::Io, 3)]
        {
            assert!(windows.allocate(kind, size).is_err(), "{size:#x}");
        }
        assert_eq!(windows.free(BarKind::Memory64, 0xd000_0000, 1 << 28), Ok(()));
        assert!(windows.free(BarKind::Memory64, 0xd000_0000, 1 << 28).is_err());
        assert!(windows.free(BarKind::Memory64, u64::MAX, 1 << 28).is_err());
        assert!(windows.free(BarKind::Io, 0, 0).is_err());
        assert_eq!(windows.allocate(BarKind::Memory32, 1 << 28), Ok(0xd000_0000));
    }

    #[test]
    fn empty_and_wrong_windows() {
        let mut none = Windows::new(0..0, 5..5, 7..7).unwrap();
        for kind in [BarKind::Io, BarKind::Memory32, BarKind::Memory64] {
            assert!(none.allocate(kind, 16).is_err() && !none.contains(kind, 0, 1));
        }
        assert!(Windows::new(0..(1 << 32) + 1, 0..0, 0..0).is_err());
        assert!(Windows::new(0..1 << 32, 0..0, 0..0).is_ok());
    }

    #[test]
    fn places_outside_the_windows() {
        let windows = windows();
        assert!(windows.contains(BarKind::Memory32, 0xdfff_f000, 0x1000));
        assert!(!windows.contains(BarKind::Memory32, 0xdfff_f000, 0x2000));
        assert!(!windows.contains(BarKind::Memory32, 1 << 40, 0x1000));
        assert!(windows.contains(BarKind::Memory64, 1 << 40, 0x1000));
        assert!(!windows.contains(BarKind::Memory64, u64::MAX - 0xfff, 0x1000));
        assert!(windows.contains(BarKind::Io, 0xc000, 0x1000) && !windows.contains(BarKind::Io, 0xcf8, 8));
    }

    proptest! {
        #[test]
        fn never_twice_and_all_of_it_again(steps in prop::collection::vec((0..3u8, 0..31u32, 0..20usize), 0..200)) {
            let mut windows = windows();
            let mut held: Vec<(BarKind, u64, u64)> = Vec::new();
            for (kind, log2, which) in steps {
                if log2 >= 24 && !held.is_empty() {
                    let (kind, address, size) = held.swap_remove(which % held.len());
                    prop_assert_eq!(windows.free(kind, address, size), Ok(()));
                    continue;
                }
                let kind = [BarKind::Io, BarKind::Memory32, BarKind::Memory64][usize::from(kind)];
                let size = 1u64 << if kind == BarKind::Io { 2 + log2 % 9 } else { 4 + log2 };
                let Ok(address) = windows.allocate(kind, size) else { continue };
                prop_assert!(address % size == 0 && windows.contains(kind, address, size));
                for (other, at, long) in &held {
                    let apart = at + long <= address || address + size <= *at;
                    prop_assert!(apart || (*other == BarKind::Io) != (kind == BarKind::Io));
                }
                held.push((kind, address, size));
            }
            for (kind, address, size) in held {
                prop_assert_eq!(windows.free(kind, address, size), Ok(()));
            }
            prop_assert_eq!(windows.allocate(BarKind::Memory32, 1 << 29), Ok(0xc000_0000));
            prop_assert_eq!(windows.allocate(BarKind::Io, 1 << 12), Ok(0xc000));
        }
    }
}
