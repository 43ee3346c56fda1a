//! Where the kernel that this runs on keeps the data of each CPU: a guest's crash on such an address is told by it
//! (`drive/fault.rs`).

use pollvisor::error::{Error, Result};
use std::fs::{File, read_to_string};
use std::os::unix::fs::FileExt;

/// Where the direct map begins in a kernel without address-space randomization, as QEMU enters the lab's
/// (Linux, `Documentation/arch/x86/x86_64/mm.rst`).
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;

/// One area for each CPU, all of the same size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Areas {
    /// Where each begins: what the CPU has as GS base.
    pub starts: Vec<u64>,
    /// Bytes of each.
    pub size: u64,
}

impl Areas {
    /// Reads them out of the kernel's memory.
    ///
    /// # Errors
    /// When this kernel has no `/proc/kcore` or names the symbols otherwise.
    pub fn read() -> Result<Self> {
        let symbols = read_to_string("/proc/kallsyms").map_err(|e| Error::os("/proc/kallsyms", &e))?;
        let kcore = File::open("/proc/kcore").map_err(|e| Error::os("/proc/kcore", &e))?;
        let word = |address: u64| {
            let offset = file_offset(&kcore, address)?;
            read::<8>(&kcore, offset).map(u64::from_le_bytes)
        };
        let offsets = symbol(&symbols, "__per_cpu_offset")?;
        let size = word(symbol(&symbols, "pcpu_unit_size")?)? & u64::from(u32::MAX);
        let cpus = (0u64..)
            .take_while(|cpu| std::path::Path::new(&format!("/sys/devices/system/cpu/cpu{cpu}")).exists());
        let starts = cpus.map(|cpu| word(offsets + 8 * cpu)).collect::<Result<_>>()?;
        Ok(Self { starts, size })
    }

    /// Whether an address lies in one of them.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        self.starts.iter().any(|start| (*start..start.saturating_add(self.size)).contains(&address))
    }

    /// Whether a guest with this much memory, in bytes, has none at this address of its direct map.
    #[must_use]
    pub fn is_beyond(&self, address: u64, memory: u64) -> bool {
        address.checked_sub(DIRECT_MAP).is_some_and(|physical| physical >= memory)
    }

    /// For a line of text; [`Self::parse`] reads it.
    #[must_use]
    pub fn line(&self) -> String {
        let starts: Vec<String> = self.starts.iter().map(|start| format!("{start:x}")).collect();
        format!("{:x} {}", self.size, starts.join(" "))
    }

    /// Out of such a line.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let words = line.split_whitespace().map(|word| u64::from_str_radix(word, 16));
        let mut words = words.collect::<std::result::Result<Vec<_>, _>>().ok()?.into_iter();
        Some(Self { size: words.next()?, starts: words.collect() })
    }
}

fn symbol(symbols: &str, name: &str) -> Result<u64> {
    let line = symbols.lines().find(|line| line.split_whitespace().nth(2) == Some(name));
    let address = line.and_then(|line| u64::from_str_radix(line.split_whitespace().next()?, 16).ok());
    address.filter(|address| *address != 0).ok_or_else(|| Error::new(format!("no {name} in /proc/kallsyms")))
}

fn read<const N: usize>(file: &File, offset: u64) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset).map_err(|e| Error::os("/proc/kcore", &e))?;
    Ok(bytes)
}

/// Where an address of the kernel lies in the file, by its ELF program headers.
fn file_offset(kcore: &File, address: u64) -> Result<u64> {
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    let header = read::<64>(kcore, 0)?;
    let (table, count) = (word(&header, 32), u16::from_le_bytes([header[56], header[57]]));
    for number in 0..u64::from(count) {
        let segment = read::<56>(kcore, table + 56 * number)?;
        let (offset, start, size) = (word(&segment, 8), word(&segment, 16), word(&segment, 40));
        if let Some(within) = address.checked_sub(start).filter(|within| *within < size) {
            return Ok(offset + within);
        }
    }
    Err(Error::new(format!("/proc/kcore does not have {address:#x}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_in_a_line() {
        let areas = Areas { starts: vec![0xffff_8880_3dc0_0000, 0xffff_8880_3dd0_0000], size: 0x10_0000 };
        assert_eq!(Areas::parse(&areas.line()), Some(areas.clone()));
        assert_eq!(Areas::parse("x"), None);
        assert!(areas.contains(0xffff_8880_3ddf_ffff) && !areas.contains(0xffff_8880_3de0_0000));
        assert!(areas.is_beyond(0xffff_8880_3dc0_0000, 256 << 20));
        assert!(!areas.is_beyond(0xffff_8880_3dc0_0000, 1 << 30));
    }

    #[test]
    fn addresses_that_are_hidden_are_none() {
        let text = "0000000000000000 D __per_cpu_offset\nffffffff82a1b2c0 d pcpu_unit_size\n";
        assert!(symbol(text, "__per_cpu_offset").is_err());
        assert_eq!(symbol(text, "pcpu_unit_size").ok(), Some(0xffff_ffff_82a1_b2c0));
    }
}
