//! What the kernel says about a region and about an IOMMU: a struct, then a chain of capabilities.
//!
//! Pure functions over the bytes. `vfio_info_cap_add` appends, so in a chain every offset is larger than the one
//! before, and a capability ends where the next one begins; what breaks that is refused.

use std::fmt;
use std::mem::offset_of;
use vfio_bindings::bindings::vfio as vb;

/// Part of a region, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub size: u64,
}

/// What a region is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionInfo {
    /// Its index.
    pub index: u32,
    /// It can be read.
    pub readable: bool,
    /// It can be written.
    pub writable: bool,
    /// It, or at least its `areas`, can be mapped.
    pub mappable: bool,
    /// Its size in bytes, 0 when the device does not have it.
    pub size: u64,
    /// Where it begins in the device's file.
    pub offset: u64,
    /// What of it can be mapped. Page-aligned, but for one that is the whole of a region below a page.
    pub areas: Vec<Area>,
    /// The MSI-X table can be mapped with what is around it.
    pub msix_mappable: bool,
    /// Type and subtype of a region beyond the bus's own, `VFIO_REGION_TYPE_*`.
    pub kind: Option<(u32, u32)>,
}

/// A range of I/O addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IovaRange {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// What an IOMMU can map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuInfo {
    /// The page sizes, a bit for each; 0 when it does not say.
    pub page_sizes: u64,
    /// Where, as far as it says; empty when it does not.
    pub ranges: Vec<IovaRange>,
    /// How many more mappings there can be, where it says.
    pub dma_entries: Option<u32>,
}

/// Why an answer of the kernel's was refused. Offsets and lengths in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "a variant says what its fields are")]
pub enum ChainError {
    /// The size in it is less than the struct, or more than there is.
    Argsz { argsz: usize, length: usize },
    /// A capability in the struct itself.
    InsideHeader { offset: usize },
    /// A capability that begins, or whose header ends, behind the end.
    OutsideBuffer { offset: usize, length: usize },
    /// A capability at an odd place.
    Misaligned { offset: usize },
    /// A capability at or before the end of the header of the one that leads to it: a loop, or an overlap.
    NotIncreasing { at: usize, next: usize },
    /// A capability without all of its fields.
    Truncated { id: u16, length: usize, needed: usize },
    /// An array that is longer than its capability.
    Count { id: u16, count: u32, length: usize },
    /// An area beyond its region's end.
    AreaOutside { area: Area, size: u64 },
    /// An area that does not begin and end with a page.
    AreaMisaligned { area: Area },
    /// A range that ends before it begins.
    RangeReversed { range: IovaRange },
    /// A region beyond the largest offset of a file.
    RegionOutside { offset: u64, size: u64 },
}

/// One capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability<'a> {
    /// What it is about.
    pub id: u16,
    /// Which layout it has.
    pub version: u16,
    /// All of it, its header too, up to the next one.
    pub bytes: &'a [u8],
}

const CAP_HEADER: usize = size_of::<vb::vfio_info_cap_header>();

/// The capabilities behind a struct of `header` bytes, in `info` from offset `first` on.
///
/// # Errors
/// A chain that leaves the buffer, goes backwards, or is misaligned.
pub fn capabilities(info: &[u8], header: usize, first: u32) -> Result<Vec<Capability<'_>>, ChainError> {
    let mut found = Vec::new();
    let mut at = in_bytes(first);
    check_offset(info, header, at)?;
    loop {
        let next = in_bytes(u32_at(info, at + offset_of!(vb::vfio_info_cap_header, next)));
        let end = if next == 0 { info.len() } else { next };
        if next != 0 {
            check_offset(info, header, next)?;
            if next < at + CAP_HEADER {
                return Err(ChainError::NotIncreasing { at, next });
            }
        }
        found.push(Capability {
            id: u16_at(info, at + offset_of!(vb::vfio_info_cap_header, id)),
            version: u16_at(info, at + offset_of!(vb::vfio_info_cap_header, version)),
            bytes: &info[at..end],
        });
        if next == 0 {
            return Ok(found);
        }
        at = next;
    }
}

fn check_offset(info: &[u8], header: usize, offset: usize) -> Result<(), ChainError> {
    if offset < header {
        return Err(ChainError::InsideHeader { offset });
    }
    if offset.checked_add(CAP_HEADER).is_none_or(|end| end > info.len()) {
        return Err(ChainError::OutsideBuffer { offset, length: info.len() });
    }
    // Kernels before 6.6 align to what the one before leaves, a multiple of 4; later ones to 8.
    if !offset.is_multiple_of(4) {
        return Err(ChainError::Misaligned { offset });
    }
    Ok(())
}

impl Capability<'_> {
    fn needs(&self, needed: usize) -> Result<(), ChainError> {
        let length = self.bytes.len();
        if length < needed { Err(ChainError::Truncated { id: self.id, length, needed }) } else { Ok(()) }
    }

    /// The pairs of an array that follows `header` bytes, with their number in the 32 bits at `count`.
    fn pairs(&self, header: usize, count: usize) -> Result<impl Iterator<Item = (u64, u64)>, ChainError> {
        self.needs(header)?;
        let count = u32_at(self.bytes, count);
        let array = &self.bytes[header..];
        if in_bytes(count).checked_mul(16).is_none_or(|bytes| bytes > array.len()) {
            return Err(ChainError::Count { id: self.id, count, length: array.len() });
        }
        Ok(array.chunks_exact(16).take(in_bytes(count)).map(|pair| (u64_at(pair, 0), u64_at(pair, 8))))
    }
}

/// What `VFIO_DEVICE_GET_REGION_INFO` answered, with pages of `page` bytes.
///
/// # Errors
/// Any of [`ChainError`].
pub fn region(info: &[u8], page: u64) -> Result<RegionInfo, ChainError> {
    type Info = vb::vfio_region_info;
    let info = answered(info, size_of::<Info>())?;
    let flags = u32_at(info, offset_of!(Info, flags));
    let has = |flag| flags & flag != 0;
    let mut region = RegionInfo {
        index: u32_at(info, offset_of!(Info, index)),
        readable: has(vb::VFIO_REGION_INFO_FLAG_READ),
        writable: has(vb::VFIO_REGION_INFO_FLAG_WRITE),
        mappable: has(vb::VFIO_REGION_INFO_FLAG_MMAP),
        size: u64_at(info, offset_of!(Info, size)),
        offset: u64_at(info, offset_of!(Info, offset)),
        areas: Vec::new(),
        msix_mappable: false,
        kind: None,
    };
    if region.offset.checked_add(region.size).is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(ChainError::RegionOutside { offset: region.offset, size: region.size });
    }
    let mut areas = None;
    if has(vb::VFIO_REGION_INFO_FLAG_CAPS) {
        let first = u32_at(info, offset_of!(Info, cap_offset));
        for capability in capabilities(info, size_of::<Info>(), first)? {
            match u32::from(capability.id) {
                vb::VFIO_REGION_INFO_CAP_SPARSE_MMAP => {
                    areas = Some(sparse(&capability, region.size, page)?);
                }
                vb::VFIO_REGION_INFO_CAP_TYPE => {
                    type Type = vb::vfio_region_info_cap_type;
                    capability.needs(size_of::<Type>())?;
                    let word = |at| u32_at(capability.bytes, at);
                    region.kind = Some((word(offset_of!(Type, type_)), word(offset_of!(Type, subtype))));
                }
                vb::VFIO_REGION_INFO_CAP_MSIX_MAPPABLE => region.msix_mappable = true,
                _ => {}
            }
        }
    }
    if region.mappable {
        let whole = Area { offset: 0, size: region.size };
        region.areas = areas.unwrap_or_else(|| vec![whole]);
        region.areas.retain(|area| area.size != 0);
    }
    Ok(region)
}

fn sparse(capability: &Capability<'_>, size: u64, page: u64) -> Result<Vec<Area>, ChainError> {
    type Sparse = vb::vfio_region_info_cap_sparse_mmap;
    let pairs = capability.pairs(size_of::<Sparse>(), offset_of!(Sparse, nr_areas))?;
    let checked = |(offset, length)| {
        let area = Area { offset, size: length };
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(ChainError::AreaOutside { area, size });
        }
        if !offset.is_multiple_of(page) || !length.is_multiple_of(page) {
            return Err(ChainError::AreaMisaligned { area });
        }
        Ok(area)
    };
    pairs.map(checked).collect()
}

/// What `VFIO_IOMMU_GET_INFO` of a type 1 IOMMU answered.
///
/// # Errors
/// Any of [`ChainError`] but those about areas and regions.
pub fn iommu(info: &[u8]) -> Result<IommuInfo, ChainError> {
    type Info = vb::vfio_iommu_type1_info;
    let info = answered(info, size_of::<Info>())?;
    let flags = u32_at(info, offset_of!(Info, flags));
    let sizes = u64_at(info, offset_of!(Info, iova_pgsizes));
    let says_sizes = flags & vb::VFIO_IOMMU_INFO_PGSIZES != 0;
    let mut iommu =
        IommuInfo { page_sizes: if says_sizes { sizes } else { 0 }, ranges: Vec::new(), dma_entries: None };
    if flags & vb::VFIO_IOMMU_INFO_CAPS == 0 {
        return Ok(iommu);
    }
    for capability in capabilities(info, size_of::<Info>(), u32_at(info, offset_of!(Info, cap_offset)))? {
        match u32::from(capability.id) {
            vb::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                type Ranges = vb::vfio_iommu_type1_info_cap_iova_range;
                let pairs = capability.pairs(size_of::<Ranges>(), offset_of!(Ranges, nr_iovas))?;
                let checked = |(first, last)| {
                    let range = IovaRange { first, last };
                    if first > last { Err(ChainError::RangeReversed { range }) } else { Ok(range) }
                };
                iommu.ranges = pairs.map(checked).collect::<Result<_, _>>()?;
            }
            vb::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => {
                type Available = vb::vfio_iommu_type1_info_dma_avail;
                capability.needs(size_of::<Available>())?;
                iommu.dma_entries = Some(u32_at(capability.bytes, offset_of!(Available, avail)));
            }
            _ => {}
        }
    }
    Ok(iommu)
}

/// As much of `info` as its `argsz`, the first field of both structs, says that there is.
fn answered(info: &[u8], header: usize) -> Result<&[u8], ChainError> {
    let length = info.len();
    let argsz = if length < 4 { 0 } else { in_bytes(u32_at(info, 0)) };
    if argsz < header || argsz > length {
        return Err(ChainError::Argsz { argsz, length });
    }
    Ok(&info[..argsz])
}

fn in_bytes(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// `N` bytes at `at`; its callers checked that they are there, zeroes otherwise.
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes_at(bytes, at))
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Argsz { argsz, length } => write!(f, "argsz is {argsz} in an answer of {length} bytes"),
            Self::InsideHeader { offset } => {
                write!(f, "a capability at {offset}, inside the struct before the chain")
            }
            Self::OutsideBuffer { offset, length } => {
                write!(f, "a capability at {offset} in an answer of {length} bytes")
            }
            Self::Misaligned { offset } => write!(f, "a capability at {offset}, not a multiple of 4"),
            Self::NotIncreasing { at, next } => {
                write!(f, "the capability at {at} leads back to {next}")
            }
            Self::Truncated { id, length, needed } => {
                write!(f, "capability {id} has {length} bytes, it needs {needed}")
            }
            Self::Count { id, count, length } => {
                write!(f, "capability {id} says it has {count} elements, in {length} bytes")
            }
            Self::AreaOutside { area, size } => write!(
                f,
                "a mappable area of {:#x} bytes at {:#x} in a region of {size:#x} bytes",
                area.size, area.offset
            ),
            Self::AreaMisaligned { area } => write!(
                f,
                "a mappable area of {:#x} bytes at {:#x}, which are not whole pages",
                area.size, area.offset
            ),
            Self::RangeReversed { range } => {
                write!(f, "I/O addresses from {:#x} to {:#x}", range.first, range.last)
            }
            Self::RegionOutside { offset, size } => {
                write!(f, "a region of {size:#x} bytes at {offset:#x}, beyond the end of any file")
            }
        }
    }
}

impl std::error::Error for ChainError {}

#[cfg(test)]
mod tests;
