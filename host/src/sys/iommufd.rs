//! `/dev/iommu`: I/O address spaces for devices opened by their own files (`iommufd.h`).

use super::ioctl as io;
use super::sized;
use super::vfio::{DmaAccess, IovaRange, host_range};
use crate::error::{Error, Result};
use iommufd_bindings as ib;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use vm_memory::GuestRegionMmap;

/// An open `/dev/iommu`. Its address spaces and their mappings go with it.
#[derive(Debug)]
pub struct Iommufd(File);

/// An I/O address space of one [`Iommufd`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoasId(pub u32);

/// Where an address space can map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IovaRanges {
    /// The ranges, fewer with every device attached.
    pub ranges: Vec<IovaRange>,
    /// What start and length of a mapping have to be multiples of, in bytes.
    pub alignment: u64,
}

impl Iommufd {
    /// Opens it.
    ///
    /// # Errors
    /// Without it or without permission: with the remedy.
    pub fn open() -> Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/iommu").map_err(|error| {
            Error::os("opening /dev/iommu", &error)
                .remedy_for(
                    libc::ENOENT,
                    "load iommufd (modprobe iommufd; the kernel needs CONFIG_IOMMUFD), or open the device by its group",
                )
                .remedy_for(libc::ENODEV, "load iommufd (modprobe iommufd)")
                .remedy_for(libc::EACCES, "give yourself access to /dev/iommu (sudo chown $USER /dev/iommu)")
        })?;
        Ok(Self(file))
    }

    /// A new, empty I/O address space.
    ///
    /// # Errors
    /// ENOMEM and the like.
    pub fn alloc_ioas(&self) -> Result<IoasId> {
        // SAFETY: no pointers.
        let made =
            unsafe { sized::call(self.as_fd(), &io::IOMMU_IOAS_ALLOC, ib::iommu_ioas_alloc::default()) };
        Ok(IoasId(made?.out_ioas_id))
    }

    /// Lets the devices of an address space reach a region of the guest's memory at I/O address `iova`.
    ///
    /// # Errors
    /// The kernel's: ENOENT without such a space, EEXIST where something is mapped, EINVAL outside its ranges or
    /// unaligned, ENOMEM at the limit of locked memory.
    pub fn map(&self, ioas: IoasId, region: &GuestRegionMmap, iova: u64, access: DmaAccess) -> Result<()> {
        let (user_va, length) = host_range(region)?;
        let mut flags = ib::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
        if access.reads() {
            flags |= ib::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
        }
        if access.writes() {
            flags |= ib::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
        }
        let argument =
            ib::iommu_ioas_map { flags, ioas_id: ioas.0, user_va, length, iova, ..Default::default() };
        // SAFETY: the range is the region's own mapping, see `host_range`.
        let mapped = unsafe { sized::call(self.as_fd(), &io::IOMMU_IOAS_MAP, argument) };
        mapped.map(drop).map_err(|e| {
            e.context(format!("letting devices reach {length:#x} bytes at I/O address {iova:#x}")).remedy_for(
                libc::ENOMEM,
                "raise the limit of locked memory above the guest's size (ulimit -l)",
            )
        })
    }

    /// Takes back all mappings inside `size` bytes at `iova`; how many bytes that were.
    ///
    /// # Errors
    /// The kernel's; ENOENT when nothing is mapped there or a mapping would be cut in two.
    pub fn unmap(&self, ioas: IoasId, iova: u64, size: u64) -> Result<u64> {
        let argument = ib::iommu_ioas_unmap { ioas_id: ioas.0, iova, length: size, ..Default::default() };
        // SAFETY: no pointers.
        let done = unsafe { sized::call(self.as_fd(), &io::IOMMU_IOAS_UNMAP, argument) };
        done.map(|done| done.length)
            .map_err(|e| e.context(format!("taking back {size:#x} bytes at I/O address {iova:#x}")))
    }

    /// Where an address space can map now.
    ///
    /// # Errors
    /// The kernel's; ENOENT without such a space.
    pub fn iova_ranges(&self, ioas: IoasId) -> Result<IovaRanges> {
        let mut room = 32;
        for _ in 0..4 {
            let mut found = vec![ib::iommu_iova_range::default(); room];
            let mut argument = ib::iommu_ioas_iova_ranges {
                size: u32::try_from(size_of::<ib::iommu_ioas_iova_ranges>()).unwrap_or(0),
                ioas_id: ioas.0,
                num_iovas: u32::try_from(room).unwrap_or(0),
                allowed_iovas: found.as_mut_ptr().expose_provenance() as u64,
                ..Default::default()
            };
            // SAFETY: the array has room for as many ranges as `num_iovas` says.
            let answer = unsafe { io::write(self.as_fd(), &io::IOMMU_IOAS_IOVA_RANGES, &raw mut argument) };
            let count = usize::try_from(argument.num_iovas).unwrap_or(usize::MAX);
            match answer {
                Ok(_) if count <= room => {
                    let range = |r: &ib::iommu_iova_range| IovaRange { first: r.start, last: r.last };
                    let ranges = found[..count].iter().map(range).collect();
                    return Ok(IovaRanges { ranges, alignment: argument.out_iova_alignment });
                }
                // EMSGSIZE: it says how many there are.
                Err(e) if e.errno() != Some(libc::EMSGSIZE) => return Err(e),
                _ if count <= room || count > LIMIT => break,
                _ => room = count,
            }
        }
        Err(Error::new("IOMMU_IOAS_IOVA_RANGES: the kernel cannot say how many ranges there are"))
    }

    /// Frees an address space that no device is attached to.
    ///
    /// # Errors
    /// The kernel's; EBUSY while one is, ENOENT without such a space.
    pub fn destroy(&self, ioas: IoasId) -> Result<()> {
        let argument = ib::iommu_destroy { id: ioas.0, ..Default::default() };
        // SAFETY: no pointers.
        let gone = unsafe { sized::call(self.as_fd(), &io::IOMMU_DESTROY, argument) };
        gone.map(drop).map_err(|e| e.context(format!("freeing I/O address space {}", ioas.0)))
    }
}

/// More ranges than any machine has.
const LIMIT: usize = 1 << 16;

impl AsFd for Iommufd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
