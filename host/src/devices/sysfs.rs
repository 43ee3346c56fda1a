//! Attributes, links and folders of sysfs.

use crate::error::{Error, Result};
use std::io::Write as _;
use std::path::Path;
use std::str::FromStr;

/// How an attribute is written. The product passes [`write()`]; a test passes one that also does what the kernel would.
pub(super) type Write<'a> = &'a mut dyn FnMut(&Path, &str) -> std::io::Result<()>;

/// Writes an attribute by one `write`. Never makes a file: sysfs would answer EACCES where ENOENT is meant.
pub(super) fn write(path: &Path, text: &str) -> std::io::Result<()> {
    std::fs::OpenOptions::new().write(true).truncate(true).open(path)?.write_all(text.as_bytes())
}

/// The failure to write `text` to `path`.
pub(super) fn write_error(path: &Path, text: &str, error: &std::io::Error) -> Error {
    const ROOT: &str = "run it as root (sudo)";
    Error::os(format!("writing `{}` to {}", text.trim_end(), path.display()), error)
        .remedy_for(libc::EACCES, ROOT)
        .remedy_for(libc::EPERM, ROOT)
        .remedy_for(libc::EROFS, "run it outside of the container: /sys is mounted read-only here")
}

/// An attribute without its line end; `None` when it is not there.
pub(super) fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_string())
}

/// An attribute that is a decimal number.
pub(super) fn number<T: FromStr>(path: impl AsRef<Path>) -> Option<T> {
    read(path)?.parse().ok()
}

/// An attribute like `0x8086`.
pub(super) fn hex(path: impl AsRef<Path>) -> Option<u32> {
    u32::from_str_radix(read(path)?.strip_prefix("0x")?, 16).ok()
}

/// The last component of where a link points.
pub(super) fn link_name(path: impl AsRef<Path>) -> Option<String> {
    Some(std::fs::read_link(path).ok()?.file_name()?.to_str()?.to_string())
}

/// The names in a folder, sorted; none when it is not there.
pub(super) fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<_> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// A file that has to be readable for an answer to be safe.
pub(super) fn must_read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::os(format!("reading {}", path.display()), &e))
}
