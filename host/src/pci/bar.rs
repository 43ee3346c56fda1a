//! Base address registers: what they decode, and what of them the guest may reach without an exit.

use std::ops::Range;

/// The size of what is mapped into a guest.
pub const PAGE: u64 = 4096;

/// What a base address register decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes two registers.
    Memory64,
}

/// A base address register, or the expansion ROM's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bar {
    /// 0 to 5, the first of two registers; [`super::ROM`].
    pub index: u8,
    /// What is decoded.
    pub kind: BarKind,
    /// Reads have no side effects, and writes may be merged.
    pub prefetchable: bool,
    /// Bytes, a power of two.
    pub size: u64,
    /// What the register holds; whether it is decoded is [`super::ConfigSpace::decoded`]'s answer.
    pub address: u64,
}

impl Bar {
    /// The address bits that can be written.
    #[must_use]
    pub fn mask(&self) -> u64 {
        let all = match self.kind {
            BarKind::Io => 0xffff,
            BarKind::Memory32 => 0xffff_ffff,
            BarKind::Memory64 => u64::MAX,
        };
        all & !(self.size - 1)
    }

    /// Whether the address is none: zero, or what sizing leaves there. Between the two writes that size a 64-bit
    /// register it is the low pattern below 4 GiB, where the processors' own registers are.
    pub(super) fn is_unplaced(&self) -> bool {
        self.address == 0 || self.address == self.mask() || self.address == self.mask() & 0xffff_ffff
    }
}

/// What becomes of a BAR's bytes; ranges of offsets into it, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pages {
    /// Whole pages that can be mapped into the guest.
    pub mapped: Vec<Range<u64>>,
    /// The rest: each access has to be carried out by the VMM.
    pub trapped: Vec<Range<u64>>,
}

/// What of a BAR of `size` bytes can be mapped: the whole pages in one of VFIO's mappable `areas`, without those that
/// `emulated` (the MSI-X table, the pending bits) touches. Nothing, if the BAR is `excluded`.
#[must_use]
pub fn pages(size: u64, areas: &[Range<u64>], emulated: &[Range<u64>], excluded: bool) -> Pages {
    let mut holes: Vec<_> = emulated.iter().filter(|hole| !hole.is_empty()).collect();
    holes.sort_by_key(|hole| hole.start);
    let mut areas: Vec<_> = areas.iter().filter(|_| !excluded).collect();
    areas.sort_by_key(|area| area.start);
    let mut pages = Pages::default();
    let (mut from, mut rest) = (0, 0);
    let mut map = |piece: Range<u64>| {
        if !piece.is_empty() {
            pages.trapped.extend(Some(rest..piece.start).filter(|gap| !gap.is_empty()));
            rest = piece.end;
            pages.mapped.push(piece);
        }
    };
    for area in areas {
        from = from.max(area.start.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX));
        let end = whole(area.end.min(size));
        for hole in &holes {
            if hole.end > from && hole.start < end {
                map(from..whole(hole.start));
                from = hole.end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
            }
        }
        map(from..end);
        from = from.max(end);
    }
    pages.trapped.extend(Some(rest..size).filter(|gap| !gap.is_empty()));
    pages
}

fn whole(offset: u64) -> u64 {
    offset - offset % PAGE
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of one range are meant")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_table_s_page_is_trapped() {
        let got = pages(0x8000, &[0..0x8000], &[0x3000..0x3050, 0x3800..0x3808], false);
        assert_eq!(got, Pages { mapped: vec![0..0x3000, 0x4000..0x8000], trapped: vec![0x3000..0x4000] });
        let got = pages(0x8000, &[0..0x8000], &[], true);
        assert_eq!(got, Pages { mapped: vec![], trapped: vec![0..0x8000] });
        // As VFIO says it when it leaves out the table itself.
        let got = pages(0x8000, &[0x4000..0x8000, 0..0x3000], &[0x2ff8..0x3008], false);
        assert_eq!(got, Pages { mapped: vec![0..0x2000, 0x4000..0x8000], trapped: vec![0x2000..0x4000] });
        // Less than a page, and what nobody should say.
        assert_eq!(pages(0x100, &[0..0x100], &[], false), Pages { mapped: vec![], trapped: vec![0..0x100] });
        let odd = pages(0x3000, &[u64::MAX - 1..u64::MAX, 1..u64::MAX], &[u64::MAX - 1..u64::MAX], false);
        assert_eq!(odd, Pages { mapped: vec![0x1000..0x3000], trapped: vec![0..0x1000] });
    }

    fn ranges(most: usize) -> impl Strategy<Value = Vec<Range<u64>>> {
        let edge = || prop_oneof![(0..20u64).prop_map(|n| n * PAGE), 0..20 * PAGE];
        prop::collection::vec((edge(), edge()).prop_map(|(a, b)| a.min(b)..a.max(b)), 0..=most)
    }

    proptest! {
        #[test]
        fn exactly_the_whole_pages_outside_the_tables(
            log2 in 4..17u32, areas in ranges(4), emulated in ranges(2), excluded: bool,
        ) {
            let size = 1u64 << log2;
            let got = pages(size, &areas, &emulated, excluded);
            // Mapped and trapped together are the BAR, each byte once.
            let mut all: Vec<_> = got.mapped.iter().chain(&got.trapped).cloned().collect();
            all.sort_by_key(|piece| piece.start);
            let end = all.iter().fold(0, |end, piece| {
                assert!(piece.start == end && !piece.is_empty(), "{got:x?}");
                piece.end
            });
            prop_assert_eq!(end, size);
            for piece in &got.mapped {
                prop_assert!(piece.start % PAGE == 0 && piece.end % PAGE == 0);
            }
            for page in (0..size).step_by(4096) {
                let touched = emulated.iter().any(|r| !r.is_empty() && r.start < page + PAGE && page < r.end);
                let whole = page + PAGE <= size && areas.iter().any(|r| r.start <= page && page + PAGE <= r.end);
                let mapped = got.mapped.iter().any(|r| r.contains(&page));
                prop_assert_eq!(mapped, whole && !touched && !excluded, "page {:#x}: {:x?}", page, got);
            }
        }
    }
}
