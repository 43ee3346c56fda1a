//! `/dev/vfio/vfio`: an I/O address space that groups join.

use super::chain::{self, IommuInfo};
use super::dma::{DmaAccess, host_range};
use crate::error::{Error, Result};
use crate::sys::{ioctl as io, sized};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use vfio_bindings::bindings::vfio as vb;
use vm_memory::GuestRegionMmap;

/// A container.
#[derive(Debug)]
pub struct Container(File);

impl Container {
    /// A new, empty one.
    ///
    /// # Errors
    /// Without VFIO, without permission, or with another API version: with the remedy.
    pub fn open() -> Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/vfio/vfio").map_err(|error| {
            Error::os("opening /dev/vfio/vfio", &error)
                .remedy_for(libc::ENOENT, "load VFIO (modprobe vfio-pci); in a container, pass /dev/vfio in")
                .remedy_for(libc::ENODEV, "load VFIO (modprobe vfio-pci vfio_iommu_type1)")
                .remedy_for(
                    libc::EACCES,
                    "give yourself access to /dev/vfio/vfio (sudo chmod 666 /dev/vfio/vfio)",
                )
        })?;
        let container = Self(file);
        let version = io::value(container.as_fd(), &io::VFIO_GET_API_VERSION, 0)?;
        if u32::try_from(version) != Ok(vb::VFIO_API_VERSION) {
            return Err(Error::new(format!(
                "VFIO has API version {version}, this needs {}",
                vb::VFIO_API_VERSION
            )));
        }
        Ok(container)
    }

    /// Whether an extension (`VFIO_TYPE1v2_IOMMU` and the like) is there.
    #[must_use]
    pub fn has(&self, extension: u32) -> bool {
        io::value(self.as_fd(), &io::VFIO_CHECK_EXTENSION, extension as usize).is_ok_and(|value| value > 0)
    }

    /// Chooses the kind of IOMMU, a `VFIO_*_IOMMU`. A group has to be in the container.
    ///
    /// # Errors
    /// The kernel's; EINVAL without a group, EPERM without interrupt remapping.
    pub fn set_iommu(&self, kind: u32) -> Result<()> {
        let set = io::value(self.as_fd(), &io::VFIO_SET_IOMMU, kind as usize);
        set.map(drop).map_err(|e| {
            e.remedy_for(
                libc::EPERM,
                "enable interrupt remapping in the firmware; or, if you trust the guest with the host's interrupts, \
                 load vfio_iommu_type1 with allow_unsafe_interrupts=1",
            )
            .remedy_for(libc::EINVAL, "put a group into the container first, and choose a kind only once")
            .remedy_for(libc::ENODEV, "load the IOMMU driver (modprobe vfio_iommu_type1)")
        })
    }

    /// What the IOMMU can map. A kind has to be set.
    ///
    /// # Errors
    /// The kernel's; a malformed answer.
    pub fn info(&self) -> Result<IommuInfo> {
        let bytes =
            sized::info(self.as_fd(), &io::VFIO_IOMMU_GET_INFO, vb::vfio_iommu_type1_info::default())?;
        chain::iommu(&bytes).map_err(|e| Error::new(format!("VFIO_IOMMU_GET_INFO: {e}")))
    }

    /// Lets the devices of the container reach a region of the guest's memory at I/O address `iova`.
    ///
    /// # Errors
    /// The kernel's: EEXIST where something is mapped, EINVAL outside the IOMMU's ranges or unaligned, ENOMEM at the
    /// limit of locked memory, ENOSPC when no entries are left.
    pub fn map(&self, region: &GuestRegionMmap, iova: u64, access: DmaAccess) -> Result<()> {
        let (vaddr, size) = host_range(region)?;
        let mut flags = 0;
        if access.reads() {
            flags |= vb::VFIO_DMA_MAP_FLAG_READ;
        }
        if access.writes() {
            flags |= vb::VFIO_DMA_MAP_FLAG_WRITE;
        }
        let argument = vb::vfio_iommu_type1_dma_map { flags, vaddr, iova, size, ..Default::default() };
        // SAFETY: the range is the region's own mapping, see `host_range`.
        let mapped = unsafe { sized::call(self.as_fd(), &io::VFIO_IOMMU_MAP_DMA, argument) };
        mapped.map(drop).map_err(|e| {
            e.context(format!("letting devices reach {size:#x} bytes at I/O address {iova:#x}"))
                .remedy_for(
                    libc::ENOMEM,
                    "raise the limit of locked memory above the guest's size (ulimit -l)",
                )
                .remedy_for(libc::ENOSPC, "use larger regions, or raise vfio_iommu_type1's dma_entry_limit")
        })
    }

    /// Takes back all mappings inside `size` bytes at `iova`; how many bytes that were.
    ///
    /// # Errors
    /// The kernel's; EINVAL when a mapping would be cut in two.
    pub fn unmap(&self, iova: u64, size: u64) -> Result<u64> {
        let argument = vb::vfio_iommu_type1_dma_unmap { iova, size, ..Default::default() };
        // SAFETY: no pointers, and without flags no data follows.
        let done = unsafe { sized::call(self.as_fd(), &io::VFIO_IOMMU_UNMAP_DMA, argument) };
        done.map(|done| done.size)
            .map_err(|e| e.context(format!("taking back {size:#x} bytes at I/O address {iova:#x}")))
    }
}

impl AsFd for Container {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
