//! Loads kernel, initramfs and command line, and tells the kernel of them: by the 64-bit boot protocol
//! (Documentation/arch/x86/boot.rst) or by PVH's start info (xen/include/public/arch-x86/hvm/start_info.h).

use super::image::{self, Format};
use super::memory::{below_hole, ram};
use super::{ACPI, COMMAND_LINE, COMMAND_LINE_SIZE, HIGH, LOW_END, START_INFO, ZERO_PAGE, put};
use crate::error::{Error, Result};
use crate::platform::ECAM_BASE;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{BzImage, Elf, KernelLoader, PvhBootCapability};
use std::fs::File;
use std::path::{Path, PathBuf};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

const RAM: u32 = 1;
const RESERVED: u32 = 2;
const PAGE: u64 = 4096;
/// Module list and memory map of PVH, behind its start info.
const MODULES: u64 = START_INFO + 0x100;
const MEMORY_MAP: u64 = START_INFO + 0x200;

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// A bzImage, or an ELF file with a PVH note.
    pub kernel: PathBuf,
    /// What the kernel unpacks as its first root.
    pub initramfs: Option<PathBuf>,
    /// The kernel's parameters.
    pub cmdline: String,
}

/// Where the first vCPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// In 64-bit mode, the zero page in RSI.
    Long(u64),
    /// In 32-bit mode, the start info in EBX.
    Pvh(u64),
}

/// Puts everything into the guest's memory. `rsdp`: where ACPI's tables begin.
///
/// # Errors
/// What cannot be read, is broken, or does not fit.
pub fn load(memory: &GuestMemoryMmap, boot: &Boot, rsdp: u64) -> Result<Entry> {
    let open = |path: &Path| File::open(path).map_err(|e| Error::os("opening it", &e));
    let of_kernel = |e: Error| e.context(format!("the kernel {}", boot.kernel.display()));
    let mut kernel = open(&boot.kernel).map_err(of_kernel)?;
    let end = below_hole(memory);
    let loaded = load_kernel(memory, &mut kernel, end).map_err(of_kernel)?;
    let mut limit = COMMAND_LINE_SIZE - 1;
    if let Some(header) = &loaded.header {
        limit = limit.min(usize::try_from(header.cmdline_size).unwrap_or(limit));
    }
    if boot.cmdline.len() > limit || boot.cmdline.contains('\0') {
        return Err(Error::new(format!("--cmdline: {} bytes; the kernel takes {limit}", boot.cmdline.len())));
    }
    put(memory, "the command line", COMMAND_LINE, &[boot.cmdline.as_bytes(), &[0]].concat())?;
    let initramfs = match &boot.initramfs {
        None => None,
        Some(path) => {
            let top = loaded.initrd_max.map_or(end, |max| end.min(max));
            let placed = open(path).and_then(|mut file| place(memory, &mut file, loaded.end, top));
            Some(placed.map_err(|e| e.context(format!("the initramfs {}", path.display())))?)
        }
    };
    match loaded.header {
        Some(header) => zero_page(memory, header, initramfs, rsdp)?,
        None => start_info(memory, initramfs, rsdp)?,
    }
    Ok(loaded.entry)
}

struct Loaded {
    entry: Entry,
    /// Of a bzImage.
    header: Option<setup_header>,
    /// The first byte that the kernel does not need while it starts.
    end: u64,
    /// Initramfs addresses that the kernel can take.
    initrd_max: Option<u64>,
}

fn load_kernel(memory: &GuestMemoryMmap, file: &mut File, end: u64) -> Result<Loaded> {
    match image::format(file)? {
        Format::Elf => load_elf(memory, file, end),
        Format::BzImage => load_bzimage(memory, file, end),
    }
}

fn load_elf(memory: &GuestMemoryMmap, file: &mut File, end: u64) -> Result<Loaded> {
    image::check_segments(file, end)?;
    let loaded = Elf::load(memory, None, file, Some(GuestAddress(HIGH)));
    let loaded = loaded.map_err(|e| Error::new(e.to_string()))?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) if (HIGH..end).contains(&entry.0) => {
            Ok(Loaded { entry: Entry::Pvh(entry.0), header: None, end: loaded.kernel_end, initrd_max: None })
        }
        _ => {
            Err(Error::new("an ELF file without a PVH note")
                .remedy("a kernel with CONFIG_PVH, or its bzImage"))
        }
    }
}

/// The entry of the 64-bit protocol, behind the load address.
const ENTRY_64: u64 = 0x200;
const XLF_KERNEL_64: u16 = 1;
/// The protocol that has `xloadflags`.
const VERSION: u16 = 0x20c;

fn load_bzimage(memory: &GuestMemoryMmap, file: &mut File, end: u64) -> Result<Loaded> {
    let mut header = setup_header::default();
    file_at(file, 0x1f1, header.as_mut_slice())?;
    let (version, flags, preferred) = (header.version, header.xloadflags, header.pref_address);
    let (sectors, paragraphs, needed) = (header.setup_sects, header.syssize, u64::from(header.init_size));
    if version < VERSION || flags & XLF_KERNEL_64 == 0 {
        return Err(
            Error::new("a bzImage without a 64-bit entry").remedy("a kernel for x86-64, Linux 3.8 or newer")
        );
    }
    let length = file.metadata().map_err(|e| Error::os("looking at it", &e))?.len();
    let setup = (u64::from(if sectors == 0 { 4 } else { sectors }) + 1) * 512;
    let whole = setup + u64::from(paragraphs) * 16;
    if length < whole {
        return Err(Error::new(format!("{length} bytes of {whole}: it is cut off")).remedy("copy it again"));
    }
    let last = preferred.checked_add(needed.max(length - setup));
    let Some(last) = last.filter(|last| preferred >= HIGH && *last <= end) else {
        return Err(Error::new(format!(
            "it needs {needed:#x} bytes of memory from {preferred:#x} on, and memory ends at {end:#x}"
        ))
        .remedy("--memory size=256M, or more"));
    };
    let loaded = BzImage::load(memory, Some(GuestAddress(preferred)), file, None);
    let loaded = loaded.map_err(|e| Error::new(e.to_string()))?;
    let header = loaded.setup_header.ok_or_else(|| Error::new("a bzImage without a header"))?;
    let max = u64::from(header.initrd_addr_max) + 1;
    Ok(Loaded {
        entry: Entry::Long(preferred + ENTRY_64),
        header: Some(header),
        end: last,
        initrd_max: Some(max),
    })
}

fn file_at(file: &File, at: u64, bytes: &mut [u8]) -> Result<()> {
    use std::os::unix::fs::FileExt;
    file.read_exact_at(bytes, at).map_err(|_| Error::new("the file is cut off").remedy("copy it again"))
}

/// Reads a file to the highest place that it fits in; where, and how long it is.
fn place(memory: &GuestMemoryMmap, file: &mut File, from: u64, top: u64) -> Result<(u64, u64)> {
    let size = file.metadata().map_err(|e| Error::os("looking at it", &e))?.len();
    let room = top.saturating_sub(from);
    let at = top.checked_sub(size).map(|at| at & !(PAGE - 1)).filter(|at| *at >= from && size > 0);
    let at = at.ok_or_else(|| {
        let error = Error::new(format!(
            "{size} bytes; there is room for 1 to {room} between the kernel and {top:#x}"
        ));
        error.remedy("more memory: --memory size=1G")
    })?;
    let count = usize::try_from(size).unwrap_or(usize::MAX);
    memory
        .read_exact_volatile_from(GuestAddress(at), file, count)
        .map_err(|e| Error::new(format!("reading it: {e}")))?;
    Ok((at, size))
}

/// What is where, below 4 GiB and above: (address, size, type).
fn map(memory: &GuestMemoryMmap) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, LOW_END, RAM),
        (ACPI.start, HIGH - ACPI.start, RESERVED),
        (HIGH, below_hole(memory) - HIGH, RAM),
        (ECAM_BASE, crate::pci::ECAM_SIZE, RESERVED),
    ];
    map.extend(ram(memory).filter(|(at, _)| *at > HIGH).map(|(at, size)| (at, size, RAM)));
    map
}

fn zero_page(
    memory: &GuestMemoryMmap,
    header: setup_header,
    initramfs: Option<(u64, u64)>,
    rsdp: u64,
) -> Result<()> {
    const UNKNOWN_LOADER: u8 = 0xff;
    let low = |n: u64| u32::try_from(n).unwrap_or(0);
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
    params.hdr.type_of_loader = UNKNOWN_LOADER;
    params.hdr.cmd_line_ptr = low(COMMAND_LINE);
    if let Some((at, size)) = initramfs {
        params.hdr.ramdisk_image = low(at);
        params.hdr.ramdisk_size = low(size);
    }
    for (n, (addr, size, kind)) in map(memory).into_iter().enumerate() {
        params.e820_table[n] = boot_e820_entry { addr, size, r#type: kind };
        params.e820_entries += 1;
    }
    put(memory, "the zero page", ZERO_PAGE, params.as_slice())
}

fn start_info(memory: &GuestMemoryMmap, initramfs: Option<(u64, u64)>, rsdp: u64) -> Result<()> {
    const MAGIC: u32 = 0x336e_c578;
    let entry = |(addr, size, type_)| hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
    let entries: Vec<_> = map(memory).into_iter().map(entry).collect();
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: initramfs.is_some().into(),
        modlist_paddr: MODULES,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(entries.len()).unwrap_or(0),
        ..Default::default()
    };
    put(memory, "the start info", START_INFO, info.as_slice())?;
    if let Some((paddr, size)) = initramfs {
        let module = hvm_modlist_entry { paddr, size, ..Default::default() };
        put(memory, "the module list", MODULES, module.as_slice())?;
    }
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.as_slice().to_vec()).collect();
    put(memory, "the memory map", MEMORY_MAP, &bytes)
}

#[cfg(test)]
mod tests;
