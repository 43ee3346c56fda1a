//! A device: what it has, its registers, its reset; and how it is got without a group.

use super::chain::{self, Area, RegionInfo};
use crate::error::{Error, Result};
use crate::sys::iommufd::{IoasId, Iommufd};
use crate::sys::mem::{Mapping, page_size};
use crate::sys::{ioctl as io, sized};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use vfio_bindings::bindings::vfio as vb;

/// A device that VFIO has.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
    name: String,
}

/// What a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// It can be reset.
    pub reset: bool,
    /// It is a PCI device, with VFIO's fixed indices.
    pub pci: bool,
    /// How many region indices it has.
    pub num_regions: u32,
    /// How many interrupt indices it has.
    pub num_irqs: u32,
}

impl Device {
    /// Takes over a descriptor of a VFIO device; `name` is for messages.
    #[must_use]
    pub fn from_fd(fd: OwnedFd, name: impl Into<String>) -> Self {
        Self { fd, name: name.into() }
    }

    /// Opens a device's own file, `/dev/vfio/devices/vfioN`. It does nothing until it is bound.
    ///
    /// # Errors
    /// When there is none, without permission, while its group is open: with the remedy.
    pub fn open_cdev(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::options().read(true).write(true).open(path).map_err(|error| {
            Error::os(format!("opening {name}"), &error)
                .remedy_for(
                    libc::ENOENT,
                    "bind the device to vfio-pci; its file is named by the folder vfio-dev beside it in sysfs (the \
                     kernel needs CONFIG_VFIO_DEVICE_CDEV)",
                )
                .remedy_for(libc::EACCES, &format!("give yourself access to it (sudo chown $USER {name})"))
                .remedy_for(libc::EBUSY, "stop the process that has the device or its group open")
        })?;
        Ok(Self::from_fd(file.into(), name))
    }

    /// Its name, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes a device opened by its own file usable, in the security context of `iommufd`; its number there.
    ///
    /// # Errors
    /// The kernel's; EINVAL when it is bound, EPERM without interrupt remapping.
    pub fn bind_iommufd(&self, iommufd: &Iommufd) -> Result<u32> {
        let iommufd = iommufd.as_fd().as_raw_fd();
        let argument = vb::vfio_device_bind_iommufd { iommufd, ..Default::default() };
        // SAFETY: without flags no pointer is read.
        let bound = unsafe { sized::call(self.as_fd(), &io::VFIO_DEVICE_BIND_IOMMUFD, argument) };
        Ok(bound.map_err(|e| self.told(e))?.out_devid)
    }

    /// Puts a bound device into an I/O address space, out of the one it may be in.
    ///
    /// # Errors
    /// The kernel's; ENOENT when there is no such space.
    pub fn attach(&self, ioas: IoasId) -> Result<()> {
        let argument = vb::vfio_device_attach_iommufd_pt { pt_id: ioas.0, ..Default::default() };
        // SAFETY: no pointers.
        let attached = unsafe { sized::call(self.as_fd(), &io::VFIO_DEVICE_ATTACH_IOMMUFD_PT, argument) };
        attached.map(drop).map_err(|e| self.told(e))
    }

    /// Takes a bound device out of its I/O address space: its DMA is blocked.
    ///
    /// # Errors
    /// The kernel's.
    pub fn detach(&self) -> Result<()> {
        let argument = vb::vfio_device_detach_iommufd_pt::default();
        // SAFETY: no pointers.
        let detached = unsafe { sized::call(self.as_fd(), &io::VFIO_DEVICE_DETACH_IOMMUFD_PT, argument) };
        detached.map(drop).map_err(|e| self.told(e))
    }

    /// What it has.
    ///
    /// # Errors
    /// The kernel's.
    pub fn info(&self) -> Result<DeviceInfo> {
        let argument = vb::vfio_device_info::default();
        // SAFETY: no pointers.
        let info = unsafe { sized::call(self.as_fd(), &io::VFIO_DEVICE_GET_INFO, argument) };
        let info = info.map_err(|e| self.told(e))?;
        Ok(DeviceInfo {
            reset: info.flags & vb::VFIO_DEVICE_FLAGS_RESET != 0,
            pci: info.flags & vb::VFIO_DEVICE_FLAGS_PCI != 0,
            num_regions: info.num_regions,
            num_irqs: info.num_irqs,
        })
    }

    /// What its region `index` is; `VFIO_PCI_*_REGION_INDEX` of a PCI device.
    ///
    /// # Errors
    /// The kernel's, EINVAL when it has none (VGA, mostly); a malformed answer.
    pub fn region(&self, index: u32) -> Result<RegionInfo> {
        let what = |e: Error| self.told(e.context(format!("region {index}")));
        let asked = vb::vfio_region_info { index, ..Default::default() };
        let bytes = sized::info(self.as_fd(), &io::VFIO_DEVICE_GET_REGION_INFO, asked).map_err(what)?;
        let info = chain::region(&bytes, page_size() as u64).map_err(|e| what(Error::new(e.to_string())))?;
        if info.index != index {
            return Err(what(Error::new(format!("the kernel answered for region {}", info.index))));
        }
        Ok(info)
    }

    /// Resets it.
    ///
    /// # Errors
    /// The kernel's; ENOTTY or EINVAL when it cannot be reset.
    pub fn reset(&self) -> Result<()> {
        io::value(self.as_fd(), &io::VFIO_DEVICE_RESET, 0).map(drop).map_err(|e| self.told(e))
    }

    /// Reads `data.len()` bytes at `offset` of a region. An aligned power of two is one access.
    ///
    /// # Errors
    /// Beyond the region's end; what the kernel refuses (EIO while the device's memory decoding is off); fewer bytes.
    pub fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> Result<()> {
        let at = self.position(region, offset, data.len())?;
        // SAFETY: writes no more than the slice.
        let done = unsafe { libc::pread(self.fd.as_raw_fd(), data.as_mut_ptr().cast(), data.len(), at) };
        self.transferred("reading", region, offset, data.len(), done)
    }

    /// Writes `data` at `offset` of a region. An aligned power of two is one access.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> Result<()> {
        let at = self.position(region, offset, data.len())?;
        // SAFETY: reads no more than the slice.
        let done = unsafe { libc::pwrite(self.fd.as_raw_fd(), data.as_ptr().cast(), data.len(), at) };
        self.transferred("writing", region, offset, data.len(), done)
    }

    /// Maps an area of a region.
    ///
    /// # Errors
    /// The kernel's; an area that is not one of the region's, a region that cannot be both read and written.
    pub fn map(&self, region: &RegionInfo, area: Area) -> Result<Mapping> {
        let what =
            || format!("mapping {:#x} bytes at {:#x} of region {}", area.size, area.offset, region.index);
        let refused = |why| Err(self.told(Error::new(format!("{}: {why}", what()))));
        if !region.areas.contains(&area) {
            return refused("not one of its areas that can be mapped");
        }
        if !region.readable || !region.writable {
            return refused("it cannot be both read and written");
        }
        let (Some(offset), Ok(length)) = (region.offset.checked_add(area.offset), usize::try_from(area.size))
        else {
            return refused("beyond what can be addressed");
        };
        Mapping::at(self.as_fd(), offset, length).map_err(|e| self.told(e.context(what())))
    }

    fn position(&self, region: &RegionInfo, offset: u64, length: usize) -> Result<i64> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= region.size);
        let at = end.and_then(|_| region.offset.checked_add(offset)).and_then(|at| i64::try_from(at).ok());
        at.ok_or_else(|| {
            self.told(Error::new(format!(
                "{length} bytes at {offset:#x} of region {}, which has {:#x}",
                region.index, region.size
            )))
        })
    }

    fn transferred(
        &self,
        did: &str,
        region: &RegionInfo,
        offset: u64,
        length: usize,
        done: isize,
    ) -> Result<()> {
        let what =
            || format!("{}: {did} {length} bytes at {offset:#x} of region {}", self.name, region.index);
        match usize::try_from(done) {
            Ok(done) if done == length => Ok(()),
            Ok(done) => Err(Error::new(format!("{}: only {done} were", what()))),
            Err(_) => Err(Error::last_os(what())
                .remedy_for(libc::EIO, "switch the device's memory decoding on (command register, bit 1)")),
        }
    }

    pub(super) fn told(&self, error: Error) -> Error {
        error.context(&self.name)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
