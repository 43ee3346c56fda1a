//! `/dev/vfio/N`: devices that the IOMMU cannot tell apart.

use super::{Container, Device};
use crate::error::{Error, Result};
use crate::sys::{ioctl as io, sized};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use vfio_bindings::bindings::vfio as vb;

/// A group.
#[derive(Debug)]
pub struct Group {
    file: File,
    number: u32,
}

/// What state a group is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupStatus {
    /// Every device of it is with VFIO or without a driver.
    pub viable: bool,
    /// It is in a container.
    pub container_set: bool,
}

impl Group {
    /// Opens group `number`, the last part of a device's `iommu_group` link in sysfs.
    ///
    /// # Errors
    /// When there is none, without permission, while another has it open: with the remedy.
    pub fn open(number: u32) -> Result<Self> {
        let path = format!("/dev/vfio/{number}");
        let file = File::options().read(true).write(true).open(&path).map_err(|error| {
            let access = format!("give yourself access to the group (sudo chown $USER {path})");
            Error::os(format!("opening {path}"), &error)
                .remedy_for(
                    libc::ENOENT,
                    "bind a device of the group to vfio-pci (driverctl set-override 0000:01:00.0 vfio-pci); the IOMMU \
                     has to be on in the firmware and in the kernel",
                )
                .remedy_for(libc::EACCES, &access)
                .remedy_for(libc::EPERM, &access)
                .remedy_for(libc::EBUSY, "stop the other process that has the group or a device of it open")
        })?;
        Ok(Self { file, number })
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether it can be used, and whether it is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn status(&self) -> Result<GroupStatus> {
        let argument = vb::vfio_group_status::default();
        // SAFETY: no pointers.
        let status = unsafe { sized::call(self.as_fd(), &io::VFIO_GROUP_GET_STATUS, argument) };
        let flags = status.map_err(|e| self.told(e))?.flags;
        Ok(GroupStatus {
            viable: flags & vb::VFIO_GROUP_FLAGS_VIABLE != 0,
            container_set: flags & vb::VFIO_GROUP_FLAGS_CONTAINER_SET != 0,
        })
    }

    /// Joins a container.
    ///
    /// # Errors
    /// The kernel's; EINVAL when it is in one, EPERM when it is not viable.
    pub fn set_container(&self, container: &Container) -> Result<()> {
        let fd = container.as_fd().as_raw_fd();
        // SAFETY: the kernel reads one number.
        let set = unsafe { io::read(self.as_fd(), &io::VFIO_GROUP_SET_CONTAINER, &raw const fd) };
        set.map(drop).map_err(|e| {
            self.told(e).remedy_for(
                libc::EPERM,
                "bind every device of the group, bridges aside, to vfio-pci; without interrupt remapping, see \
                 vfio_iommu_type1's allow_unsafe_interrupts",
            )
        })
    }

    /// Leaves its container.
    ///
    /// # Errors
    /// The kernel's; EINVAL when it is in none, EBUSY while a device of it is open.
    pub fn unset_container(&self) -> Result<()> {
        io::value(self.as_fd(), &io::VFIO_GROUP_UNSET_CONTAINER, 0).map(drop).map_err(|e| self.told(e))
    }

    /// Opens a device of it, by its name in sysfs (`0000:01:00.0`). The group has to be in a container whose kind is
    /// set.
    ///
    /// # Errors
    /// The kernel's; ENODEV when no such device is in the group.
    pub fn device(&self, name: &str) -> Result<Device> {
        let path = CString::new(name)
            .map_err(|_| Error::new(format!("the device name {name:?} has a NUL in it")))?;
        // SAFETY: the kernel reads a string that ends.
        let fd = unsafe { io::read(self.as_fd(), &io::VFIO_GROUP_GET_DEVICE_FD, path.as_ptr()) };
        let fd = fd.map_err(|e| {
            self.told(e).context(format!("opening device {name}")).remedy_for(
                libc::ENODEV,
                "name it as sysfs does (0000:01:00.0); it has to be in this group and bound to vfio-pci",
            )
        })?;
        // SAFETY: just made, and nobody else has it.
        Ok(Device::from_fd(unsafe { OwnedFd::from_raw_fd(fd) }, name))
    }

    fn told(&self, error: Error) -> Error {
        error.context(format!("group {}", self.number))
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
