//! The guest's memory: from 0, with a hole for devices below 4 GiB.

use super::HIGH;
use crate::cli::MemoryArg;
use crate::error::{Error, Result};
use crate::platform::{MMIO32, MMIO64};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const FOUR_GIB: u64 = 1 << 32;
/// Less than this boots no kernel.
const LEAST: u64 = 64 << 20;

/// Where memory of `size` bytes goes: address and length of each piece.
///
/// # Errors
/// When it is too small, too large, or not whole pages of `page` bytes.
pub fn pieces(size: u64, page: u64) -> Result<Vec<(u64, u64)>> {
    let most = MMIO32.start + (MMIO64.start - FOUR_GIB);
    if !(LEAST..=most).contains(&size) || !size.is_multiple_of(page) {
        return Err(Error::new(format!(
            "--memory: {size} bytes; {} to {} MiB in whole pages of {} KiB go",
            LEAST >> 20,
            most >> 20,
            page >> 10
        )));
    }
    let low = size.min(MMIO32.start);
    let high = (size > low).then(|| (FOUR_GIB, size - low));
    Ok([(0, low)].into_iter().chain(high).collect())
}

/// Makes a guest's memory as asked.
///
/// # Errors
/// What cannot be had, and what to do about it.
pub fn allocate(wanted: &MemoryArg) -> Result<GuestMemoryMmap> {
    let pieces = pieces(wanted.size, wanted.hugepage.unwrap_or(4096))?;
    let ranges: Vec<_> = pieces
        .iter()
        .map(|(at, size)| (GuestAddress(*at), usize::try_from(*size).unwrap_or(usize::MAX)))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).map_err(|e| {
        Error::new(format!("{} MiB of memory for the guest: {e}", wanted.size >> 20))
            .remedy("--memory with less")
    })
}

/// The pieces of a guest's memory.
pub fn ram(memory: &GuestMemoryMmap) -> impl Iterator<Item = (u64, u64)> {
    memory.iter().map(|region| (region.start_addr().raw_value(), region.len()))
}

/// Where the memory below the hole ends.
#[must_use]
pub fn below_hole(memory: &GuestMemoryMmap) -> u64 {
    let low = memory.find_region(GuestAddress(HIGH));
    low.map_or(HIGH, |region| region.last_addr().raw_value() + 1)
}
