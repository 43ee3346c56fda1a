//! Mappings.

use crate::error::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A shared, readable and writable mapping, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    address: *mut u8,
    length: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; whoever makes references into it keeps their rules.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` only gives the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of `fd` from its start.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(fd: BorrowedFd<'_>, length: usize) -> Result<Self> {
        // SAFETY: a new mapping, where the kernel likes; it overlaps nothing.
        let address = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(Error::last_os(format!("mapping {length} bytes")));
        }
        Ok(Self { address: address.cast(), length })
    }

    /// Where it is; page-aligned.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        self.address
    }

    /// How long it is, in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nothing borrowed from it is left.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}

/// A file in memory whose size nobody can change, so that reading it through a mapping cannot fail.
#[derive(Debug)]
pub struct SealedMemory(OwnedFd);

const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;

impl SealedMemory {
    /// A new one of `length` zero bytes, closed on exec.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub fn new(length: usize) -> Result<Self> {
        let what = || format!("making {length} bytes of shared memory");
        // SAFETY: a constant name.
        let fd =
            unsafe { libc::memfd_create(c"pollvisor".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(Error::last_os(what()));
        }
        // SAFETY: just made, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let file = std::fs::File::from(fd);
        file.set_len(length as u64).map_err(|e| Error::os(what(), &e))?;
        // SAFETY: no pointers.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) } != 0 {
            return Err(Error::last_os("sealing shared memory"));
        }
        Ok(Self(file.into()))
    }

    /// Takes over memory that another process made, if its size is sealed; with that size.
    ///
    /// # Errors
    /// When it is not sealed: a producer could then cut it off under our feet.
    pub fn from_fd(fd: OwnedFd) -> Result<(Self, usize)> {
        // SAFETY: no pointers.
        let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & SEALS != SEALS {
            return Err(Error::new("shared memory whose size is not sealed (F_SEAL_SHRINK, F_SEAL_GROW)")
                .remedy("make the region with `Region::new` and pass its descriptor on"));
        }
        let file = std::fs::File::from(fd);
        let length = file.metadata().map_err(|e| Error::os("looking at shared memory", &e))?.len();
        let length = usize::try_from(length).map_err(|_| Error::new("shared memory of impossible size"))?;
        Ok((Self(file.into()), length))
    }
}

impl AsFd for SealedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
