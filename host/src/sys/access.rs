//! What this process may do with a file, asked without opening it.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether a file is there and may be read and written. Opening a VFIO group to find out would keep others from it.
#[must_use]
pub fn may_read_and_write(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: a string that ends with a zero and outlives the call.
    unsafe { libc::access(path.as_ptr(), libc::R_OK | libc::W_OK) == 0 }
}
