//! The guest's memory: from 0, with a hole for devices below 4 GiB.

use super::HIGH;
use crate::cli::MemoryArg;
use crate::error::{Error, Result};
use crate::platform::{MMIO32, MMIO64};
use crate::sys::guest_memory::{Advice, advise, map};
use std::path::Path;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

const FOUR_GIB: u64 = 1 << 32;
/// Less than this boots no kernel.
const LEAST: u64 = 64 << 20;

/// Where memory of `size` bytes goes: address and length of each piece.
///
/// # Errors
/// When it is too small, too large, or not whole pages of `page` bytes.
pub fn pieces(size: u64, page: u64) -> Result<Vec<(u64, u64)>> {
    let most = MMIO32.start + (MMIO64.start - FOUR_GIB);
    if !(LEAST..=most).contains(&size) || !size.is_multiple_of(page) {
        return Err(Error::new(format!(
            "--memory: {size} bytes; {} to {} MiB in whole pages of {} KiB go",
            LEAST >> 20,
            most >> 20,
            page >> 10
        )));
    }
    let low = size.min(MMIO32.start);
    let high = (size > low).then(|| (FOUR_GIB, size - low));
    Ok([(0, low)].into_iter().chain(high).collect())
}

/// Makes a guest's memory as asked.
///
/// # Errors
/// What cannot be had, and what to do about it.
pub fn allocate(wanted: &MemoryArg) -> Result<GuestMemoryMmap> {
    let pieces = pieces(wanted.size, wanted.hugepage.unwrap_or(4096))?;
    let mut regions = Vec::new();
    for (at, size) in pieces {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mapping = map(size, wanted.hugepage).map_err(|e| lacking(wanted, e))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(at));
        let region =
            region.ok_or_else(|| Error::new(format!("memory at {at:#x}: the addresses end before")))?;
        if let Some(thp) = wanted.thp {
            let advised = advise(&region, 0..size, Advice::HugePages(thp));
            advised.map_err(|e| {
                e.remedy_for(libc::EINVAL, "a kernel with CONFIG_TRANSPARENT_HUGEPAGE, or no thp=")
            })?;
        }
        if wanted.prefault {
            prefault(&region, size).map_err(|e| {
                lacking(wanted, e).remedy_for(libc::EINVAL, "Linux 5.14 or newer, or no prefault=on")
            })?;
        }
        if wanted.mlock {
            let locked = advise(&region, 0..size, Advice::Lock);
            let remedy =
                "raise the memlock limit (ulimit -l unlimited) or grant CAP_IPC_LOCK, or no mlock=on";
            locked.map_err(|e| e.remedy_for(libc::ENOMEM, remedy).remedy_for(libc::EPERM, remedy))?;
        }
        regions.push(region);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|e| Error::new(format!("the guest's memory: {e}")))
}

/// Has every page made, by as many threads as this process has CPUs: a page takes the kernel longer to clear than to find.
fn prefault(region: &GuestRegionMmap, size: usize) -> Result<()> {
    const STEP: usize = 1 << 30;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let part = size.div_ceil(threads).next_multiple_of(STEP >> 9);
    std::thread::scope(|scope| {
        let starts = (0..size).step_by(part);
        let work = |from: usize| move || advise(region, from..size.min(from + part), Advice::Populate);
        let running: Vec<_> = starts.map(|from| scope.spawn(work(from))).collect();
        running.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(Error::new("a thread that made pages panicked")))
        })
    })
}

/// What there is of the memory that could not be had.
fn lacking(wanted: &MemoryArg, error: Error) -> Error {
    let error = error.context(format!("{} MiB of memory for the guest", wanted.size >> 20));
    let Some(page) = wanted.hugepage else {
        return error.remedy_for(libc::ENOMEM, "--memory with less, or a host with more");
    };
    let (count, size) = (wanted.size.div_ceil(page), page >> 10);
    let free = free_pages(Path::new("/sys/devices/system/node"), size);
    let free = if free.is_empty() { "this kernel has none of this size".into() } else { free.join(", ") };
    error.context(format!("{count} huge pages of {} MiB; {free}", page >> 20)).remedy(format!(
        "echo {count} > /sys/kernel/mm/hugepages/hugepages-{size}kB/nr_hugepages, or at boot hugepagesz={}M hugepages={count}",
        page >> 20
    ))
}

/// Free pages of `size` KiB, node by node.
fn free_pages(nodes: &Path, size: u64) -> Vec<String> {
    let mut free = Vec::new();
    for node in 0..1024 {
        let folder = nodes.join(format!("node{node}/hugepages/hugepages-{size}kB"));
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        if let (Some(there), Some(all)) = (read("free_hugepages"), read("nr_hugepages")) {
            free.push(format!("node {node} has {} free of {}", there.trim(), all.trim()));
        }
    }
    free
}

/// The pieces of a guest's memory.
pub fn ram(memory: &GuestMemoryMmap) -> impl Iterator<Item = (u64, u64)> {
    memory.iter().map(|region| (region.start_addr().raw_value(), region.len()))
}

/// Where the memory below the hole ends.
#[must_use]
pub fn below_hole(memory: &GuestMemoryMmap) -> u64 {
    let low = memory.find_region(GuestAddress(HIGH));
    low.map_or(HIGH, |region| region.last_addr().raw_value() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_goes_around_the_hole() {
        let gib = 1 << 30;
        assert_eq!(pieces(gib, 4096), Ok(vec![(0, gib)]));
        assert_eq!(pieces(3 * gib, 4096), Ok(vec![(0, 3 * gib)]));
        assert_eq!(pieces(4 * gib, gib), Ok(vec![(0, 3 * gib), (4 * gib, gib)]));
        assert_eq!(pieces(63 * gib, 4096), Ok(vec![(0, 3 * gib), (4 * gib, 60 * gib)]));
        for wrong in [0, 1 << 20, 63 * gib + 4096, (1 << 28) + 1, u64::MAX] {
            assert!(pieces(wrong, 4096).is_err(), "{wrong}");
        }
        assert!(pieces(gib + (1 << 20), 1 << 21).is_err());
    }

    #[test]
    fn all_of_it_can_be_made_beforehand() {
        let wanted = MemoryArg { prefault: true, thp: Some(false), ..MemoryArg::of(64 << 20) };
        let memory = allocate(&wanted).expect("64 MiB");
        assert_eq!(below_hole(&memory), 64 << 20);
        memory.write_obj(7u8, GuestAddress((64 << 20) - 1)).expect("the last byte");
    }

    #[test]
    fn too_few_huge_pages_are_told_by_node() {
        let wanted = MemoryArg { hugepage: Some(1 << 30), ..MemoryArg::of(63 << 30) };
        let error = allocate(&wanted).expect_err("63 GiB of huge pages").to_string();
        assert!(error.contains("63 huge pages of 1024 MiB") && error.contains("nr_hugepages"), "{error}");
    }
}
