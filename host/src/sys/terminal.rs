//! The user's terminal, raw while a guest has it.

use crate::error::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A terminal in raw mode. Dropping it sets it back to what it was.
#[derive(Debug)]
pub struct RawTerminal {
    fd: OwnedFd,
    before: libc::termios,
}

impl RawTerminal {
    /// Makes the terminal raw; none when `fd` is not one. What is written to it is still processed (`OPOST`), so that
    /// lines begin at the left.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter(fd: BorrowedFd<'_>) -> Result<Option<Self>> {
        // SAFETY: a struct of numbers, for which zeroes are valid; the kernel fills it.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: writes one struct.
        if unsafe { libc::tcgetattr(fd.as_raw_fd(), &raw mut before) } != 0 {
            return Ok(None);
        }
        let fd = fd.try_clone_to_owned().map_err(|e| Error::os("the terminal's descriptor", &e))?;
        let mut raw = before;
        // SAFETY: changes one struct.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        raw.c_oflag = before.c_oflag;
        // SAFETY: reads one struct.
        if unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, &raw const raw) } != 0 {
            return Err(Error::last_os("making the terminal raw"));
        }
        Ok(Some(Self { fd, before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // SAFETY: reads one struct. A terminal that is gone needs nothing.
        unsafe { libc::tcsetattr(self.fd.as_raw_fd(), libc::TCSANOW, &raw const self.before) };
    }
}
