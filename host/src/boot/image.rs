//! What an ELF file says of itself, checked before the loader believes it.

use super::HIGH;
use crate::error::{Error, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of a program header (ELF-64, `Elf64_Phdr`), and of those that are loaded the type.
const PROGRAM_HEADER: u64 = 56;
const LOAD: u32 = 1;
const MAX_HEADERS: u16 = 64;

/// What a kernel file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An ELF file, such as vmlinux.
    Elf,
    /// A bzImage, such as a distribution's vmlinuz.
    BzImage,
}

fn number<const N: usize>(file: &File, at: u64) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at)
        .map_err(|_| Error::new("the file is cut off").remedy("copy it again"))?;
    Ok(bytes)
}

/// What `file` is, by its first bytes.
///
/// # Errors
/// When it is neither.
pub fn format(file: &File) -> Result<Format> {
    if number::<4>(file, 0)? == *b"\x7fELF" {
        return Ok(Format::Elf);
    }
    if number::<4>(file, 0x202)? == *b"HdrS" {
        return Ok(Format::BzImage);
    }
    Err(Error::new("this is neither a bzImage nor an ELF file")
        .remedy("a kernel for x86-64, such as /boot/vmlinuz-$(uname -r)"))
}

/// That every loaded segment is in memory that is the kernel's: `HIGH` up to `end`, and in the file.
///
/// # Errors
/// What is wrong with which segment.
pub fn check_segments(file: &File, end: u64) -> Result<()> {
    const X86_64: u16 = 62;
    let length = file.metadata().map_err(|e| Error::os("looking at it", &e))?.len();
    let machine = u16::from_le_bytes(number(file, 18)?);
    if machine != X86_64 {
        return Err(Error::new(format!("an ELF file for machine {machine}, not x86-64 (62)")));
    }
    let table = u64::from_le_bytes(number(file, 32)?);
    let count = u16::from_le_bytes(number(file, 56)?);
    if count == 0 || count > MAX_HEADERS || table > length {
        return Err(Error::new(format!("an ELF file with {count} program headers at {table:#x}")));
    }
    for n in 0..u64::from(count) {
        let at = table + n * PROGRAM_HEADER;
        let field = |offset| number::<8>(file, at + offset).map(u64::from_le_bytes);
        let (offset, physical, in_file, in_memory) = (field(8)?, field(24)?, field(32)?, field(40)?);
        if offset.checked_add(in_file).is_none_or(|end| end > length) {
            return Err(Error::new(format!("segment {n} ends behind the file's end: it is cut off")));
        }
        if u32::from_le_bytes(number(file, at)?) != LOAD {
            continue;
        }
        let last = physical.checked_add(in_memory.max(in_file));
        if physical < HIGH || last.is_none_or(|last| last > end) {
            return Err(Error::new(format!(
                "segment {n} goes to {physical:#x}, {in_memory:#x} bytes: memory for kernels is {HIGH:#x} to {end:#x}"
            ))
            .remedy("more memory, or a kernel that is not linked for other addresses"));
        }
    }
    Ok(())
}
