use super::*;
use proptest::prelude::*;

const PAGE: u64 = 4096;
const CAPS: u32 = vb::VFIO_REGION_INFO_FLAG_CAPS;
const MMAP: u32 = vb::VFIO_REGION_INFO_FLAG_MMAP;
const SPARSE: u16 = 1;
const TYPE: u16 = 2;
const MSIX: u16 = 3;
const DMA_AVAIL: u16 = 3;

/// Capabilities one behind the other from `first` on: id, version, next, then what is in it.
fn chain(first: usize, capabilities: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, (id, body)) in capabilities.iter().enumerate() {
        let end = first + bytes.len() + CAP_HEADER + body.len();
        let next = if number + 1 == capabilities.len() { 0 } else { u32::try_from(end).unwrap() };
        bytes.extend(id.to_ne_bytes());
        bytes.extend(1u16.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes.extend(body);
    }
    bytes
}

fn set(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

/// An answer about region 2, of `size` bytes at 2 << 40.
fn answer(flags: u32, size: u64, capabilities: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    set(&mut bytes, 4, flags);
    set(&mut bytes, 8, 2);
    set(&mut bytes, 12, 32);
    bytes[16..24].copy_from_slice(&size.to_ne_bytes());
    bytes[24..32].copy_from_slice(&(2u64 << 40).to_ne_bytes());
    bytes.extend(chain(32, capabilities));
    let argsz = u32::try_from(bytes.len()).unwrap();
    set(&mut bytes, 0, argsz);
    bytes
}

fn counted(count: u32, pairs: &[(u64, u64)]) -> Vec<u8> {
    let mut body = count.to_ne_bytes().to_vec();
    body.extend([0; 4]);
    body.extend(pairs.iter().flat_map(|pair| [pair.0, pair.1]).flat_map(u64::to_ne_bytes));
    body
}

fn areas(areas: &[(u64, u64)]) -> (u16, Vec<u8>) {
    (SPARSE, counted(u32::try_from(areas.len()).unwrap(), areas))
}

fn refusal(bytes: &[u8]) -> ChainError {
    region(bytes, PAGE).unwrap_err()
}

#[test]
fn regions_without_capabilities() {
    let info = region(&answer(0x3, 0x100, &[]), PAGE).unwrap();
    assert_eq!((info.index, info.size, info.offset), (2, 0x100, 2 << 40));
    assert_eq!((info.readable, info.writable, info.mappable, info.msix_mappable), (true, true, false, false));
    assert_eq!((info.areas, info.kind), (vec![], None));
    let info = region(&answer(MMAP | 0x1, 0x2000, &[]), PAGE).unwrap();
    assert_eq!((info.readable, info.writable, info.mappable), (true, false, true));
    assert_eq!(info.areas, [Area { offset: 0, size: 0x2000 }]);
    let absent = region(&answer(MMAP, 0, &[]), PAGE).unwrap();
    assert_eq!(absent.areas, []);
}

#[test]
fn regions_with_capabilities() {
    let kind = [0x8000_8086u32, 5].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let sparse = areas(&[(0, PAGE), (0x2000, 0), (0x3000, 2 * PAGE)]);
    let all = [(99, vec![1, 2, 3, 4]), sparse.clone(), (TYPE, kind), (MSIX, vec![])];
    let info = region(&answer(CAPS | MMAP, 0x5000, &all), PAGE).unwrap();
    assert_eq!(info.areas, [Area { offset: 0, size: PAGE }, Area { offset: 0x3000, size: 2 * PAGE }]);
    assert_eq!((info.kind, info.msix_mappable), (Some((0x8000_8086, 5)), true));
    let not_mappable = region(&answer(CAPS, 0x5000, std::slice::from_ref(&sparse)), PAGE).unwrap();
    assert_eq!(not_mappable.areas, []);
    let flag_missing = region(&answer(MMAP, 0x5000, &[sparse]), PAGE).unwrap();
    assert_eq!(flag_missing.areas, [Area { offset: 0, size: 0x5000 }]);
}

#[test]
fn argsz_of_another_size() {
    for argsz in [0, 31, 33, u32::MAX] {
        let mut bytes = answer(0, PAGE, &[]);
        set(&mut bytes, 0, argsz);
        assert!(matches!(refusal(&bytes), ChainError::Argsz { .. }), "{argsz}");
    }
    for length in 0..32 {
        assert!(matches!(refusal(&answer(0, PAGE, &[])[..length]), ChainError::Argsz { .. }));
    }
}

#[test]
fn chains_that_lead_astray() {
    let two = [(MSIX, vec![]), (MSIX, vec![])];
    let first = |offset| {
        let mut bytes = answer(CAPS, PAGE, &two);
        set(&mut bytes, 12, offset);
        refusal(&bytes)
    };
    let next = |from: usize, offset| {
        let mut bytes = answer(CAPS, PAGE, &two);
        set(&mut bytes, from + 4, offset);
        refusal(&bytes)
    };
    assert_eq!(first(0), ChainError::InsideHeader { offset: 0 });
    assert_eq!(first(28), ChainError::InsideHeader { offset: 28 });
    assert_eq!(first(48), ChainError::OutsideBuffer { offset: 48, length: 48 });
    assert_eq!(first(44), ChainError::OutsideBuffer { offset: 44, length: 48 });
    assert!(matches!(first(u32::MAX), ChainError::OutsideBuffer { .. }));
    assert_eq!(first(34), ChainError::Misaligned { offset: 34 });
    assert_eq!(next(32, 4), ChainError::InsideHeader { offset: 4 });
    assert_eq!(next(32, 44), ChainError::OutsideBuffer { offset: 44, length: 48 });
    assert_eq!(next(32, 39), ChainError::Misaligned { offset: 39 });
    assert_eq!(next(32, 32), ChainError::NotIncreasing { at: 32, next: 32 });
    assert_eq!(next(32, 36), ChainError::NotIncreasing { at: 32, next: 36 });
    assert_eq!(next(40, 32), ChainError::NotIncreasing { at: 40, next: 32 });
}

#[test]
fn capabilities_that_are_too_short() {
    let one = |capability| refusal(&answer(CAPS | MMAP, 0x4000, &[capability]));
    assert_eq!(one((SPARSE, vec![0; 4])), ChainError::Truncated { id: SPARSE, length: 12, needed: 16 });
    assert_eq!(one((TYPE, vec![0; 4])), ChainError::Truncated { id: TYPE, length: 12, needed: 16 });
    let pages = [(0, PAGE)];
    assert_eq!(one((SPARSE, counted(2, &pages))), ChainError::Count { id: SPARSE, count: 2, length: 16 });
    let many = counted(u32::MAX, &pages);
    assert_eq!(one((SPARSE, many)), ChainError::Count { id: SPARSE, count: u32::MAX, length: 16 });
    // The second capability is not the first one's array.
    let two = [(SPARSE, counted(1, &[])), (99, vec![0; 16])];
    let error = refusal(&answer(CAPS | MMAP, 0x4000, &two));
    assert_eq!(error, ChainError::Count { id: SPARSE, count: 1, length: 0 });
}

#[test]
fn areas_that_are_not_the_regions() {
    let one = |offset, size| {
        (Area { offset, size }, refusal(&answer(CAPS | MMAP, 0x4000, &[areas(&[(offset, size)])])))
    };
    for (offset, length) in [(0x4000, PAGE), (0x3000, 2 * PAGE), (!0xfff, PAGE), (0, u64::MAX)] {
        let (area, error) = one(offset, length);
        assert_eq!(error, ChainError::AreaOutside { area, size: 0x4000 });
    }
    let area = Area { offset: 0, size: PAGE };
    let short = answer(CAPS | MMAP, PAGE - 1, &[areas(&[(0, PAGE)])]);
    assert_eq!(refusal(&short), ChainError::AreaOutside { area, size: PAGE - 1 });
    for (offset, length) in [(1, PAGE), (0, 1), (0x800, 0x800)] {
        let (area, error) = one(offset, length);
        assert_eq!(error, ChainError::AreaMisaligned { area });
    }
}

#[test]
fn a_region_beyond_any_file() {
    for size in [u64::MAX, i64::MAX.cast_unsigned()] {
        assert_eq!(refusal(&answer(0, size, &[])), ChainError::RegionOutside { offset: 2 << 40, size });
    }
}

/// An answer about an IOMMU with 4 KiB and 2 MiB pages.
fn iommu_answer(flags: u32, capabilities: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    set(&mut bytes, 4, flags);
    set(&mut bytes, 8, 0x20_1000);
    set(&mut bytes, 16, 24);
    bytes.extend(chain(24, capabilities));
    let argsz = u32::try_from(bytes.len()).unwrap();
    set(&mut bytes, 0, argsz);
    bytes
}

#[test]
fn iommus() {
    let nothing = IommuInfo { page_sizes: 0, ranges: vec![], dma_entries: None };
    assert_eq!(iommu(&iommu_answer(0, &[])), Ok(nothing.clone()));
    assert_eq!(iommu(&iommu_answer(1, &[])), Ok(IommuInfo { page_sizes: 0x20_1000, ..nothing }));
    let ranges = [(0, 0xfedf_ffff), (0xfef0_0000, u64::MAX)];
    let all = [(DMA_AVAIL, 65_535u32.to_ne_bytes().to_vec()), (1, counted(2, &ranges)), (2, vec![])];
    let info = iommu(&iommu_answer(3, &all)).unwrap();
    assert_eq!(info.dma_entries, Some(65_535));
    assert_eq!(info.ranges, ranges.map(|(first, last)| IovaRange { first, last }));

    let refused = |capability| iommu(&iommu_answer(3, &[capability])).unwrap_err();
    assert_eq!(refused((DMA_AVAIL, vec![])), ChainError::Truncated { id: DMA_AVAIL, length: 8, needed: 12 });
    assert_eq!(refused((1, counted(1, &[]))), ChainError::Count { id: 1, count: 1, length: 0 });
    let range = IovaRange { first: 2, last: 1 };
    assert_eq!(refused((1, counted(1, &[(2, 1)]))), ChainError::RangeReversed { range });
    assert_eq!(iommu(&[]), Err(ChainError::Argsz { argsz: 0, length: 0 }));
}

/// An answer whose size is right, so that what follows is looked at, with small numbers in between.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![0u32..8, 0u32..128, any::<u32>()];
    prop::collection::vec(word, 8..40).prop_map(|mut words| {
        words[0] = u32::try_from(words.len() * 4).unwrap();
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    })
}

proptest! {
    #[test]
    fn any_bytes_give_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200), header in 0usize..64, first: u32) {
        let _ = (region(&bytes, PAGE), iommu(&bytes), capabilities(&bytes, header, first % 256));
        let _ = capabilities(&bytes, header, first);
    }

    #[test]
    fn what_is_accepted_can_be_used(mut bytes in plausible(), flags in 0u32..16) {
        set(&mut bytes, 4, flags);
        if let Ok(region) = region(&bytes, PAGE) {
            for area in &region.areas {
                prop_assert!(area.size > 0 && area.offset + area.size <= region.size);
            }
            prop_assert!(i64::try_from(region.offset + region.size).is_ok());
        }
        if let Ok(iommu) = iommu(&bytes) {
            prop_assert!(iommu.ranges.iter().all(|range| range.first <= range.last));
        }
    }
}
