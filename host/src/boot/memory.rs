//! The guest's memory: from 0, with a hole for devices below 4 GiB.

use super::HIGH;
use super::prefault::{Progress, prefault};
use crate::cli::MemoryArg;
use crate::error::{Error, Result};
use crate::pin::parse_list;
use crate::platform::{MMIO32, MMIO64};
use crate::sys::guest_memory::{Advice, Nodes, advise, bind, map};
use std::path::Path;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

const FOUR_GIB: u64 = 1 << 32;
/// Less than this boots no kernel.
const LEAST: u64 = 64 << 20;
const NODES: &str = "/sys/devices/system/node";

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
    let page = wanted.hugepage.unwrap_or(4096);
    let pieces = pieces(wanted.size, page)?;
    wanted.nodes.as_ref().map_or(Ok(()), check_nodes)?;
    let progress = Progress::new(wanted.size);
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
        if let Some(nodes) = &wanted.nodes {
            bind(&region, nodes)?;
        }
        // Huge pages are reserved on the host as a whole: that a node has none left shows only when they are made, and the
        // guest would die of it.
        if wanted.prefault || wanted.nodes.is_some() && wanted.hugepage.is_some() {
            prefault(&region, size, page, &progress).map_err(|e| {
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

/// That the nodes are there, and have memory.
fn check_nodes(wanted: &Nodes) -> Result<()> {
    let list = ["has_memory", "online"]
        .iter()
        .find_map(|name| std::fs::read_to_string(Path::new(NODES).join(name)).ok());
    let there = list.and_then(|list| parse_list(list.trim()).ok()).unwrap_or_default();
    match wanted.numbers().iter().find(|node| !there.contains(node)) {
        None => Ok(()),
        Some(node) if there.is_empty() => {
            Err(Error::new(format!("--memory host_numa_node={node}: this kernel has no NUMA nodes"))
                .remedy("leave host_numa_node= out"))
        }
        Some(node) => Err(Error::new(format!(
            "--memory host_numa_node={node}: this host has no such node with memory, only {there:?}"
        ))
        .remedy("one of these; a device's is in /sys/bus/pci/devices/*/numa_node")),
    }
}

/// What there is of the memory that could not be had.
fn lacking(wanted: &MemoryArg, error: Error) -> Error {
    let error = error.context(format!("{} MiB of memory for the guest", wanted.size >> 20));
    let Some(page) = wanted.hugepage else {
        return error.remedy_for(libc::ENOMEM, "--memory with less, or a host with more");
    };
    let (count, size) = (wanted.size.div_ceil(page), page >> 10);
    let free = free_pages(Path::new(NODES), size);
    let free = if free.is_empty() { "this kernel has none of this size".into() } else { free.join(", ") };
    let bound = wanted.nodes.map(|nodes| nodes.numbers());
    let from = bound.as_ref().map_or(String::new(), |nodes| format!(" of NUMA nodes {nodes:?}"));
    let folder = match bound.as_deref() {
        Some([node, ..]) => format!("{NODES}/node{node}"),
        _ => "/sys/kernel/mm".into(),
    };
    error.context(format!("{count} huge pages of {} MiB{from}; {free}", page >> 20)).remedy(format!(
        "echo {count} > {folder}/hugepages/hugepages-{size}kB/nr_hugepages, or at boot hugepagesz={}M hugepages={count}",
        page >> 20
    ))
}

/// How many huge pages of `page` bytes nobody has or reserved: of these nodes, or of the host.
#[must_use]
pub fn free_huge(page: u64, nodes: Option<Nodes>) -> u64 {
    let read = |folder: &Path, name: &str| -> u64 {
        let text = std::fs::read_to_string(folder.join(format!("hugepages-{}kB", page >> 10)).join(name));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    let host = Path::new("/sys/kernel/mm/hugepages");
    let reserved = read(host, "resv_hugepages");
    let free = match nodes {
        None => read(host, "free_hugepages"),
        Some(nodes) => {
            let node = |node| read(&Path::new(NODES).join(format!("node{node}/hugepages")), "free_hugepages");
            nodes.numbers().into_iter().map(node).sum()
        }
    };
    free.saturating_sub(reserved)
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

    /// What the kernel says of the memory at an address, in `/proc/self/numa_maps`.
    fn policy(address: usize) -> Option<String> {
        let maps = std::fs::read_to_string("/proc/self/numa_maps").ok()?;
        let line = maps.lines().find(|line| line.starts_with(&format!("{address:x} ")))?;
        Some(line.to_string())
    }

    #[test]
    #[ignore = "needs NUMA nodes; where they are, .ci/run runs the ignored ones"]
    fn memory_comes_from_its_nodes() {
        let wanted = |nodes| MemoryArg { prefault: true, nodes: Nodes::of(nodes), ..MemoryArg::of(64 << 20) };
        let memory = allocate(&wanted(&[0])).expect("64 MiB of node 0");
        let region = memory.iter().next().expect("one");
        // All of its pages, and of no other node.
        let line = policy(region.as_ptr() as usize).expect("/proc/self/numa_maps");
        assert!(line.contains(" bind:0 ") && line.contains(" N0=16384"), "{line}");
        assert!(!line.contains(" N1="), "{line}");
        for missing in [&[1023][..], &[0, 1023]] {
            let error = allocate(&wanted(missing)).expect_err("there is no such node").to_string();
            assert!(error.contains("host_numa_node=1023: this host has no such node"), "{error}");
        }
        let huge = MemoryArg { hugepage: Some(1 << 30), ..MemoryArg { size: 63 << 30, ..wanted(&[0]) } };
        let error = allocate(&huge).expect_err("63 GiB of huge pages").to_string();
        assert!(error.contains("of NUMA nodes [0]") && error.contains("node0/hugepages"), "{error}");
    }

    #[test]
    fn too_few_huge_pages_are_told_by_node() {
        let wanted = MemoryArg { hugepage: Some(1 << 30), ..MemoryArg::of(63 << 30) };
        let error = allocate(&wanted).expect_err("63 GiB of huge pages").to_string();
        assert!(error.contains("63 huge pages of 1024 MiB") && error.contains("nr_hugepages"), "{error}");
    }
}
