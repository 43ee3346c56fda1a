//! KVM's VFIO device: what tells KVM which devices a VM has, and them which VM they are in.

use crate::error::Result;
use crate::sys::ioctl as io;
use kvm_bindings as kb;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The pseudo device `KVM_DEV_TYPE_VFIO`, one for each VM. With a file of VFIO added, KVM treats DMA as the devices
/// do (cache coherency) and device drivers that need it find the VM.
#[derive(Debug)]
pub struct KvmVfio(OwnedFd);

impl KvmVfio {
    /// Makes it.
    ///
    /// # Errors
    /// The kernel's; EBUSY when the VM has one, ENODEV when KVM was built without it.
    pub fn new(vm: BorrowedFd<'_>) -> Result<Self> {
        let mut device =
            kb::kvm_create_device { type_: kb::kvm_device_type_KVM_DEV_TYPE_VFIO, ..Default::default() };
        // SAFETY: one plain struct.
        unsafe { io::write(vm, &io::KVM_CREATE_DEVICE, &raw mut device) }.map_err(|e| {
            e.context("KVM's VFIO device")
                .remedy_for(libc::ENODEV, "a kernel built with CONFIG_KVM_VFIO")
                .remedy_for(libc::EBUSY, "a VM has only one; use the one that was made first")
        })?;
        // SAFETY: just made, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(device.fd.cast_signed()) }))
    }

    /// Adds a group, or a device opened by its own file, before it is bound.
    ///
    /// # Errors
    /// The kernel's; EEXIST when it is there, EINVAL when the file is not VFIO's.
    pub fn add(&self, file: BorrowedFd<'_>) -> Result<()> {
        self.set(kb::KVM_DEV_VFIO_FILE_ADD, file).map_err(|e| e.context("adding a VFIO file to the VM"))
    }

    /// Takes it away again.
    ///
    /// # Errors
    /// The kernel's; ENOENT when it was not added.
    pub fn remove(&self, file: BorrowedFd<'_>) -> Result<()> {
        self.set(kb::KVM_DEV_VFIO_FILE_DEL, file).map_err(|e| e.context("taking a VFIO file from the VM"))
    }

    fn set(&self, attr: u32, file: BorrowedFd<'_>) -> Result<()> {
        let file = file.as_raw_fd();
        let argument = kb::kvm_device_attr {
            group: kb::KVM_DEV_VFIO_FILE,
            attr: attr.into(),
            addr: (&raw const file).expose_provenance() as u64,
            ..Default::default()
        };
        // SAFETY: the kernel reads one number at the address, which lives until then.
        unsafe { io::read(self.0.as_fd(), &io::KVM_SET_DEVICE_ATTR, &raw const argument) }.map(drop)
    }
}
