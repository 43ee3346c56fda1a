//! A device by plain VFIO, its BARs mapped, with memory at the addresses where the device sees it: what the scenarios
//! below the VMM use.

use super::devices::{self, Access, Device, Kind};
use pollvisor::error::{Error, Result};
use pollvisor::pci::Bdf;
use pollvisor::sys::fd::EventFd;
use pollvisor::sys::iommufd::{IoasId, Iommufd};
use pollvisor::sys::mem::Mapping;
use pollvisor::sys::vfio::{
    self, Area, Container, DmaAccess, Group, IrqAction, IrqData, RegionInfo, SetIrqs,
};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, MmapRegion};

/// `VFIO_PCI_CONFIG_REGION_INDEX`.
const CONFIG: u32 = 7;
/// The command register, and in it memory decoding and bus mastering.
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 6;
/// `VFIO_TYPE1v2_IOMMU`.
const TYPE1V2: u32 = 3;

/// How a device is got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Its group, in a container.
    Group,
    /// Its own file and `/dev/iommu`.
    File,
}

#[derive(Debug)]
enum Space {
    Container { container: Container, _group: Group },
    Ioas { iommufd: Iommufd, ioas: IoasId },
}

/// An open device, memory decoding and bus mastering on.
#[derive(Debug)]
pub struct Assigned {
    bars: Vec<Vec<(Area, Mapping)>>,
    config: RegionInfo,
    device: vfio::Device,
    space: Space,
    memory: Vec<GuestRegionMmap>,
}

impl Assigned {
    /// Opens the device at `address`.
    ///
    /// # Errors
    /// VFIO's.
    pub fn open(address: Bdf, by: By) -> Result<Self> {
        let sysfs = PathBuf::from(format!("/sys/bus/pci/devices/{address}"));
        let (device, space) = match by {
            By::Group => in_container(&sysfs, address)?,
            By::File => in_ioas(&sysfs)?,
        };
        let config = device.region(CONFIG)?;
        let mut command = [0; 2];
        device.read(&config, COMMAND, &mut command)?;
        let command = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
        device.write(&config, COMMAND, &command.to_le_bytes())?;
        let bars = (0..6).map(|bar| map_bar(&device, bar)).collect::<Result<_>>()?;
        Ok(Self { bars, config, device, space, memory: Vec::new() })
    }

    /// The driver for it.
    ///
    /// # Errors
    /// When its PCI numbers are not known here.
    pub fn driver(&self) -> Result<Box<dyn Device>> {
        let mut numbers = [0; 4];
        self.device.read(&self.config, 0, &mut numbers)?;
        let [a, b, c, d] = numbers;
        let (vendor, device) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        devices::identify(vendor, device)
            .ok_or_else(|| Error::new(format!("no driver here for a device {vendor:04x}:{device:04x}")))
    }

    /// Makes `size` zero bytes that the device sees at `address`, both multiples of 4096.
    ///
    /// # Errors
    /// VFIO's.
    pub fn add_memory(&mut self, address: u64, size: usize, access: DmaAccess) -> Result<()> {
        let what = || format!("{size:#x} bytes of memory at {address:#x}");
        // Shared: before Linux 6.2 a private page mapped for reading only, and not written yet, stays zero for the
        // device whatever is written to it later (the pin holds the zero page, the write makes a copy).
        let (access_here, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_ANONYMOUS | libc::MAP_SHARED);
        let mapping = MmapRegion::build(None, size, access_here, flags)
            .map_err(|e| Error::new(format!("{}: {e}", what())))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(address))
            .ok_or_else(|| Error::new(format!("{}: the addresses end before", what())))?;
        self.map(&region, access)?;
        self.memory.push(region);
        Ok(())
    }

    /// Lets the device see what [`Assigned::hide`] hid, with another right if wanted.
    ///
    /// # Errors
    /// VFIO's, and when there is no memory at `address`.
    pub fn show(&self, address: u64, access: DmaAccess) -> Result<()> {
        self.map(self.region(address)?.0, access)
    }

    /// Takes memory away from the device; it stays readable here.
    ///
    /// # Errors
    /// VFIO's, and when there is no memory at `address`.
    pub fn hide(&self, address: u64) -> Result<()> {
        let (region, _) = self.region(address)?;
        let (start, size) = (region.start_addr().0, region.len());
        let hidden = match &self.space {
            Space::Container { container, .. } => container.unmap(start, size)?,
            Space::Ioas { iommufd, ioas } => iommufd.unmap(*ioas, start, size)?,
        };
        if hidden != size {
            return Err(Error::new(format!("{hidden:#x} bytes taken back at {start:#x}, not {size:#x}")));
        }
        Ok(())
    }

    fn map(&self, region: &GuestRegionMmap, access: DmaAccess) -> Result<()> {
        let address = region.start_addr().0;
        match &self.space {
            Space::Container { container, .. } => container.map(region, address, access),
            Space::Ioas { iommufd, ioas } => iommufd.map(*ioas, region, address, access),
        }
    }

    fn region(&self, address: u64) -> Result<(&GuestRegionMmap, MemoryRegionAddress)> {
        let inside = |region: &&GuestRegionMmap| {
            address >= region.start_addr().0 && address - region.start_addr().0 < region.len()
        };
        let region = self.memory.iter().find(inside);
        let region = region.ok_or_else(|| Error::new(format!("no memory at {address:#x}")))?;
        Ok((region, MemoryRegionAddress(address - region.start_addr().0)))
    }

    /// How many interrupts of a kind VFIO says there are.
    ///
    /// # Errors
    /// VFIO's.
    pub fn interrupts(&self, kind: Kind) -> Result<u32> {
        Ok(self.device.irq(index(kind))?.count)
    }

    /// Turns interrupts of a kind on, vector by vector to these eventfds; none: off.
    ///
    /// # Errors
    /// VFIO's, and when there are fewer vectors.
    pub fn signal(&self, kind: Kind, events: &[EventFd]) -> Result<()> {
        let fds: Vec<_> = events.iter().map(|event| Some(event.as_fd())).collect();
        let data = if fds.is_empty() { IrqData::None } else { IrqData::Events(&fds) };
        let count = u32::try_from(fds.len()).unwrap_or(u32::MAX);
        match self.device.set_irqs(index(kind), 0, count, IrqAction::Trigger, data)? {
            SetIrqs::Done => Ok(()),
            SetIrqs::Only(vectors) => Err(Error::new(format!("{count} vectors: only {vectors} to be had"))),
        }
    }

    /// Lets the pin fire again.
    ///
    /// # Errors
    /// VFIO's.
    pub fn unmask(&self) -> Result<()> {
        match self.device.set_irqs(index(Kind::Intx), 0, 1, IrqAction::Unmask, IrqData::None)? {
            SetIrqs::Done => Ok(()),
            SetIrqs::Only(_) => Err(Error::new("unmasking the pin: an answer that makes no sense")),
        }
    }

    fn register(&self, bar: u8, offset: u64, size: u8) -> (&Mapping, usize) {
        let size = u64::from(size);
        let inside = |(area, _): &&(Area, Mapping)| {
            area.offset <= offset
                && offset.checked_add(size).is_some_and(|end| end <= area.offset + area.size)
        };
        let found = self.bars.get(usize::from(bar)).and_then(|areas| areas.iter().find(inside));
        let (area, mapping) = found.unwrap_or_else(|| panic!("BAR {bar} is not mapped at {offset:#x}"));
        (mapping, usize::try_from(offset - area.offset).expect("64-bit addresses"))
    }
}

// The scenarios are tests: an access that cannot be made ends them.
impl Access for Assigned {
    fn read(&mut self, bar: u8, offset: u64, size: u8) -> u64 {
        let (mapping, at) = self.register(bar, offset, size);
        let mut value = [0; 8];
        mapping.load(at, &mut value[..usize::from(size)]).expect("a register");
        u64::from_le_bytes(value)
    }

    fn write(&mut self, bar: u8, offset: u64, size: u8, value: u64) {
        let (mapping, at) = self.register(bar, offset, size);
        mapping.store(at, &value.to_le_bytes()[..usize::from(size)]).expect("a register");
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) {
        let (region, at) = self.region(address).expect("memory");
        region.read_slice(data, at).expect("memory");
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) {
        let (region, at) = self.region(address).expect("memory");
        region.write_slice(data, at).expect("memory");
    }
}

fn index(kind: Kind) -> u32 {
    match kind {
        Kind::Intx => 0,
        Kind::Msi => 1,
        Kind::Msix => 2,
    }
}

fn in_container(sysfs: &Path, address: Bdf) -> Result<(vfio::Device, Space)> {
    let link = sysfs.join("iommu_group");
    let target =
        std::fs::read_link(&link).map_err(|e| Error::os(format!("reading {}", link.display()), &e))?;
    let number = target.file_name().and_then(OsStr::to_str).and_then(|name| name.parse().ok());
    let number = number.ok_or_else(|| Error::new(format!("{} leads to no group", link.display())))?;
    let (container, group) = (Container::open()?, Group::open(number)?);
    if !group.status()?.viable {
        return Err(Error::new(format!("group {number} is not viable")));
    }
    group.set_container(&container)?;
    container.set_iommu(TYPE1V2)?;
    let device = group.device(&address.to_string())?;
    Ok((device, Space::Container { container, _group: group }))
}

fn in_ioas(sysfs: &Path) -> Result<(vfio::Device, Space)> {
    let folder = sysfs.join("vfio-dev");
    let entries =
        std::fs::read_dir(&folder).map_err(|e| Error::os(format!("reading {}", folder.display()), &e))?;
    let name = entries.flatten().map(|entry| entry.file_name()).next();
    let name = name.ok_or_else(|| Error::new(format!("{} is empty", folder.display())))?;
    let device = vfio::Device::open_cdev(&Path::new("/dev/vfio/devices").join(name))?;
    let iommufd = Iommufd::open()?;
    device.bind_iommufd(&iommufd)?;
    let ioas = iommufd.alloc_ioas()?;
    device.attach(ioas)?;
    Ok((device, Space::Ioas { iommufd, ioas }))
}

fn map_bar(device: &vfio::Device, bar: u32) -> Result<Vec<(Area, Mapping)>> {
    let region = device.region(bar)?;
    let areas = if region.mappable { &region.areas[..] } else { &[] };
    areas.iter().map(|area| Ok((*area, device.map(&region, *area)?))).collect()
}
