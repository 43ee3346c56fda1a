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
        Self::at(fd, 0, length)
    }

    /// Maps `length` bytes of `fd` from byte `offset` on, which has to be page-aligned.
    ///
    /// # Errors
    /// The kernel's.
    pub fn at(fd: BorrowedFd<'_>, offset: u64, length: usize) -> Result<Self> {
        let what = || format!("mapping {length} bytes at {offset:#x}");
        let from = i64::try_from(offset)
            .map_err(|_| Error::new(format!("{}: beyond the end of any file", what())))?;
        // SAFETY: a new mapping, where the kernel likes; it overlaps nothing.
        let address = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, fd.as_raw_fd(), from)
        };
        if address == libc::MAP_FAILED {
            return Err(Error::last_os(what()));
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

    /// Reads 1, 2, 4 or 8 bytes at `offset` in one access, as device registers need it; in the host's byte order.
    ///
    /// The process gets SIGBUS when the file has no memory there (any more): a PCI device whose memory decoding is
    /// off, say.
    ///
    /// # Errors
    /// When that is not inside the mapping, not aligned to its size, or of another size.
    pub fn load(&self, offset: usize, data: &mut [u8]) -> Result<()> {
        let from = self.register(offset, data.len())?;
        // SAFETY: `register` checked size, bounds and alignment, and every bit pattern is a number.
        unsafe {
            match data.len() {
                1 => data.copy_from_slice(&[from.read_volatile()]),
                2 => data.copy_from_slice(&from.cast::<u16>().read_volatile().to_ne_bytes()),
                4 => data.copy_from_slice(&from.cast::<u32>().read_volatile().to_ne_bytes()),
                _ => data.copy_from_slice(&from.cast::<u64>().read_volatile().to_ne_bytes()),
            }
        }
        Ok(())
    }

    /// Writes 1, 2, 4 or 8 bytes at `offset` in one access; otherwise as [`load`](Self::load).
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn store(&self, offset: usize, data: &[u8]) -> Result<()> {
        let to = self.register(offset, data.len())?;
        // SAFETY: `register` checked bounds and alignment; who shares the mapping expects it to change.
        unsafe {
            match *data {
                [a] => to.write_volatile(a),
                [a, b] => to.cast::<u16>().write_volatile(u16::from_ne_bytes([a, b])),
                [a, b, c, d] => to.cast::<u32>().write_volatile(u32::from_ne_bytes([a, b, c, d])),
                [a, b, c, d, e, f, g, h] => {
                    to.cast::<u64>().write_volatile(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
                }
                _ => return Err(bad_access(offset, data.len(), self.length)),
            }
        }
        Ok(())
    }

    /// Where `size` bytes at `offset` are, if they can be accessed at once.
    fn register(&self, offset: usize, size: usize) -> Result<*mut u8> {
        let fits = offset.checked_add(size).is_some_and(|end| end <= self.length);
        if !matches!(size, 1 | 2 | 4 | 8) || !fits || !offset.is_multiple_of(size) {
            return Err(bad_access(offset, size, self.length));
        }
        Ok(self.address.wrapping_add(offset))
    }
}

fn bad_access(offset: usize, size: usize, length: usize) -> Error {
    let what = format!("accessing {size} bytes at {offset:#x} of a mapping of {length:#x} bytes at once");
    Error::new(what).remedy("1, 2, 4 or 8 bytes, aligned to their size, inside the mapping")
}

/// How many bytes a page has.
#[must_use]
pub fn page_size() -> usize {
    // SAFETY: no pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_access_of_a_register() {
        let memory = SealedMemory::new(2 * page_size()).unwrap();
        let all = Mapping::new(memory.as_fd(), 2 * page_size()).unwrap();
        let second = Mapping::at(memory.as_fd(), page_size() as u64, page_size()).unwrap();
        for size in [1, 2, 4, 8] {
            let bytes = [1, 2, 3, 4, 5, 6, 7, 8u8];
            second.store(size, &bytes[..size]).unwrap();
            let mut got = [0; 8];
            all.load(page_size() + size, &mut got[..size]).unwrap();
            assert_eq!(got[..size], bytes[..size]);
        }
    }

    #[test]
    fn accesses_that_are_refused() {
        let memory = SealedMemory::new(page_size()).unwrap();
        let mapping = Mapping::new(memory.as_fd(), page_size()).unwrap();
        for (offset, size) in [
            (0, 0),
            (0, 3),
            (0, 16),
            (1, 2),
            (4, 8),
            (page_size(), 1),
            (page_size() - 4, 8),
            (usize::MAX, 1),
            (usize::MAX - 3, 4),
        ] {
            assert!(mapping.load(offset, &mut [0; 16][..size]).is_err(), "{offset:#x} {size}");
            assert!(mapping.store(offset, &[0; 16][..size]).is_err(), "{offset:#x} {size}");
        }
        assert!(Mapping::at(memory.as_fd(), 1, 1).is_err());
        assert!(Mapping::at(memory.as_fd(), u64::MAX, 1).is_err());
    }
}
