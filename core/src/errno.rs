//! The error numbers that the specification names, so that a caller can compare with the kernel's.

use core::fmt;

/// An error number by its Linux value and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i32)]
#[allow(clippy::upper_case_acronyms, reason = "the names are Linux's")]
pub enum Errno {
    /// Not permitted.
    EPERM = 1,
    /// Bad file descriptor.
    EBADF = 9,
    /// Try again.
    EAGAIN = 11,
    /// Out of memory, here: of a fixed table's capacity.
    ENOMEM = 12,
    /// Bad address.
    EFAULT = 14,
    /// Device or resource busy.
    EBUSY = 16,
    /// Exists already.
    EEXIST = 17,
    /// No such device, or it is going.
    ENODEV = 19,
    /// Invalid argument.
    EINVAL = 22,
    /// Not an operation of this object.
    ENOTTY = 25,
    /// No space left.
    ENOSPC = 28,
    /// Too many users.
    EUSERS = 87,
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
