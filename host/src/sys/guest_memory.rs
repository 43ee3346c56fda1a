//! What the kernel is asked to do with the guest's memory: huge pages, there before they are touched, there to stay.

use crate::error::{Error, Result};
use std::ffi::{c_int, c_long};
use std::ops::Range;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Make every page now (`MADV_POPULATE_WRITE`, Linux 5.14).
    Populate,
    /// Make huge pages of it where it can, or never.
    HugePages(bool),
    /// Keep it in memory (`mlock`).
    Lock,
}

impl Advice {
    fn name(self) -> &'static str {
        match self {
            Self::Populate => "making its pages (MADV_POPULATE_WRITE)",
            Self::HugePages(true) => "asking for huge pages (MADV_HUGEPAGE)",
            Self::HugePages(false) => "refusing huge pages (MADV_NOHUGEPAGE)",
            Self::Lock => "locking it (mlock)",
        }
    }
}

/// NUMA nodes, as many as a kernel can have (`MAX_NUMNODES`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Nodes([u64; WORDS]);

const WORDS: usize = 16;
/// One more than the last node's number.
pub const MAX_NODES: usize = WORDS * 64;

impl Nodes {
    /// These nodes; `None` for a number that no kernel knows.
    #[must_use]
    pub fn of(numbers: &[usize]) -> Option<Self> {
        let mut nodes = Self::default();
        for number in numbers {
            *nodes.0.get_mut(number / 64)? |= 1 << (number % 64);
        }
        Some(nodes)
    }

    /// Their numbers, lowest first.
    #[must_use]
    pub fn numbers(&self) -> Vec<usize> {
        (0..MAX_NODES).filter(|node| self.0[node / 64] >> (node % 64) & 1 != 0).collect()
    }
}

/// Lets pages of a region that are made from now on come from `nodes` alone (`MPOL_BIND`).
///
/// # Errors
/// The kernel's: EINVAL when none of the nodes has memory, EPERM when this process may not use them, ENOSYS without NUMA.
pub fn bind(region: &GuestRegionMmap, nodes: &Nodes) -> Result<()> {
    const MPOL_BIND: c_int = 2;
    // The kernel takes one less than it is told (`get_nodes` of mm/mempolicy.c).
    let bits = MAX_NODES + 1;
    let length = usize::try_from(region.len()).unwrap_or(usize::MAX);
    // SAFETY: the range is the region's, and what is in it stays; the kernel reads `bits` bits of the mask.
    let result: c_long = unsafe {
        libc::syscall(libc::SYS_mbind, region.as_ptr(), length, MPOL_BIND, nodes.0.as_ptr(), bits, 0)
    };
    if result != 0 {
        return Err(Error::last_os(format!(
            "the guest's memory: binding it to the NUMA nodes {:?} (mbind)",
            nodes.numbers()
        )));
    }
    Ok(())
}

/// Private memory of `size` bytes; of hugetlbfs's pages of `page` bytes if given, all of them reserved then.
///
/// # Errors
/// The kernel's; ENOMEM when there are not enough such pages.
pub fn map(size: usize, page: Option<u64>) -> Result<MmapRegion> {
    let kind = match page {
        None => libc::MAP_NORESERVE,
        Some(page) => {
            libc::MAP_HUGETLB | i32::try_from(page.trailing_zeros()).unwrap_or(0) << libc::MAP_HUGE_SHIFT
        }
    };
    let access = libc::PROT_READ | libc::PROT_WRITE;
    MmapRegion::build(None, size, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | kind).map_err(|error| {
        match error {
            vm_memory::mmap::MmapRegionError::Mmap(error) => Error::os("mapping it", &error),
            other => Error::new(format!("mapping it: {other}")),
        }
    })
}

/// Asks for `range` of a region, in bytes from its start.
///
/// # Errors
/// The kernel's; when the range is not the region's.
pub fn advise(region: &GuestRegionMmap, range: Range<usize>, advice: Advice) -> Result<()> {
    let length = range.len();
    let inside = range.start <= range.end && u64::try_from(range.end).is_ok_and(|end| end <= region.len());
    if !inside {
        return Err(Error::new(format!("{range:#x?} is not in memory of {:#x} bytes", region.len())));
    }
    let address = region.as_ptr().wrapping_add(range.start).cast();
    // SAFETY: the range is the region's, as just checked. None of these calls changes what is in it, or unmaps it.
    let result = unsafe {
        match advice {
            Advice::Populate => libc::madvise(address, length, libc::MADV_POPULATE_WRITE),
            Advice::HugePages(true) => libc::madvise(address, length, libc::MADV_HUGEPAGE),
            Advice::HugePages(false) => libc::madvise(address, length, libc::MADV_NOHUGEPAGE),
            Advice::Lock => libc::mlock(address, length),
        }
    };
    if result != 0 {
        return Err(Error::last_os(format!("the guest's memory: {}", advice.name())));
    }
    Ok(())
}
