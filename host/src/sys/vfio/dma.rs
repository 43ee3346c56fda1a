//! What of the guest's memory a device may reach.

use crate::error::{Error, Result};
use vm_memory::{GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

/// What a device may do with memory mapped for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaAccess {
    /// Only read it.
    Read,
    /// Only write it.
    Write,
    /// Both.
    ReadWrite,
}

impl DmaAccess {
    /// Whether the device may read.
    #[must_use]
    pub fn reads(self) -> bool {
        self != Self::Write
    }

    /// Whether the device may write.
    #[must_use]
    pub fn writes(self) -> bool {
        self != Self::Read
    }
}

/// A region's address in this process and its length in bytes, for the kernel to map for a device.
///
/// Why mapping it is safe: the kernel pins the pages until they are unmapped or the address space is closed, so even
/// when the region goes first, the device writes to pages that nobody else has yet. While it is there, the device
/// changes memory under our feet, as the guest does: it is only accessed by vm-memory's volatile accessors, and no
/// reference is made into it. The concrete type matters: another `GuestMemoryRegion` could name any address.
///
/// # Errors
/// When the region has no address in this process.
pub fn host_range(region: &GuestRegionMmap) -> Result<(u64, u64)> {
    let host = region
        .get_host_address(MemoryRegionAddress(0))
        .map_err(|e| Error::new(format!("guest memory at {:#x}: {e}", region.start_addr().0)))?;
    Ok((host.expose_provenance() as u64, region.len()))
}
