//! A device's BARs in the guest: whole pages as memory slots, the rest and the MSI-X table by exits.

use super::Assigned;
use crate::bus;
use crate::error::{Error, Result};
use crate::pci::{BarKind, ConfigSpace, pages};
use crate::platform::Parts;
use crate::sys::mem::Mapping;
use crate::sys::vfio::{Area, Device, RegionInfo};
use std::sync::{Arc, Weak};

const BARS: u8 = 6;

/// See the module's text.
#[derive(Debug)]
pub struct Bars {
    bars: Vec<Bar>,
}

#[derive(Debug)]
struct Bar {
    index: u8,
    kind: BarKind,
    region: RegionInfo,
    pieces: Vec<(u64, Arc<Mapping>)>,
    placed: Option<Placed>,
}

#[derive(Debug)]
struct Placed {
    address: u64,
    slots: Vec<u32>,
    /// On the bus; not where something else is.
    on_bus: bool,
}

impl Bars {
    /// Maps what of the device's BARs can be mapped, but for those in `excluded`, into this process.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(
        device: &Device,
        regions: Vec<RegionInfo>,
        config: &mut ConfigSpace,
        excluded: &[u8],
    ) -> Result<Self> {
        let emulated = config.msix().map(|msix| [msix.table, msix.pba]);
        let mut bars = Vec::new();
        for (index, region) in (0..BARS).zip(regions) {
            let Some(bar) = config.bar(index) else { continue };
            let areas: Vec<_> =
                region.areas.iter().map(|area| area.offset..area.offset.saturating_add(area.size)).collect();
            let holes: Vec<_> = emulated.iter().flatten().filter_map(|place| place.within(index)).collect();
            let memory = bar.kind != BarKind::Io && region.readable && region.writable;
            let whole = pages(bar.size, &areas, &holes, excluded.contains(&index) || !memory);
            let map = |piece: &std::ops::Range<u64>| {
                let area = Area { offset: piece.start, size: piece.end - piece.start };
                Ok((piece.start, Arc::new(device.map(&region, area)?)))
            };
            let pieces = whole.mapped.iter().map(map).collect::<Result<_>>()?;
            bars.push(Bar { index, kind: bar.kind, region, pieces, placed: None });
        }
        Ok(Self { bars })
    }

    /// Follows what the configuration space decodes now. An address that is taken, the guest's memory, say, is not
    /// mapped: the first such mistake.
    ///
    /// # Errors
    /// What could not be mapped; everything else is.
    pub fn follow(&mut self, config: &ConfigSpace, parts: &Parts, device: &Weak<Assigned>) -> Result<()> {
        let wanted: Vec<_> = self.bars.iter().map(|bar| config.decoded(bar.index)).collect();
        // First away, then there: a BAR may move to where another one was.
        for (bar, wanted) in self.bars.iter_mut().zip(&wanted) {
            if bar.placed.as_ref().is_some_and(|placed| Some(placed.address) != *wanted) {
                bar.remove(parts)?;
            }
        }
        let mut result = Ok(());
        for (bar, wanted) in self.bars.iter_mut().zip(wanted) {
            if let (Some(address), None) = (wanted, &bar.placed) {
                result = result.and(bar.place(address, parts, device));
            }
        }
        result
    }

    /// Takes them all out of the guest.
    ///
    /// # Errors
    /// The kernel's; all of it has been tried.
    pub fn remove(&mut self, parts: &Parts) -> Result<()> {
        let mut result = Ok(());
        for bar in &mut self.bars {
            result = result.and(bar.remove(parts));
        }
        result
    }

    /// Where the rest of a BAR's registers are.
    #[must_use]
    pub fn region(&self, index: u8) -> Option<&RegionInfo> {
        self.bars.iter().find(|bar| bar.index == index).map(|bar| &bar.region)
    }

    /// A register that is mapped, to be accessed without the guest.
    #[must_use]
    pub fn mapped(&self, index: u8, offset: u64) -> Option<(Arc<Mapping>, usize)> {
        let bar = self.bars.iter().find(|bar| bar.index == index)?;
        let (start, piece) = bar.pieces.iter().rev().find(|(start, _)| *start <= offset)?;
        let at = usize::try_from(offset - start).ok().filter(|at| *at < piece.length())?;
        Some((piece.clone(), at))
    }
}

impl Bar {
    fn place(&mut self, address: u64, parts: &Parts, device: &Weak<Assigned>) -> Result<()> {
        let size = self.region.size;
        let what = |e: Error| e.context(format!("BAR {} at {address:#x}", self.index));
        if !parts.windows().contains(self.kind, address, size) {
            return Err(what(Error::new("the guest put it where no BAR can be; it is not decoded")));
        }
        let trap = Arc::new(Trap { device: device.clone(), bar: self.index });
        let mut placed = Placed { address, slots: Vec::new(), on_bus: false };
        let mut result = match (self.kind, u16::try_from(address), u16::try_from(size)) {
            (BarKind::Io, Ok(base), Ok(length)) => parts.buses.add_ports(base, length, trap),
            _ => parts.buses.add_memory(address, size, trap),
        };
        placed.on_bus = result.is_ok();
        for (offset, piece) in &self.pieces {
            if result.is_ok() {
                result = parts.vm.add_slot(address + offset, piece).map(|slot| placed.slots.push(slot));
            }
        }
        self.placed = Some(placed);
        if result.is_err() {
            let _taken_out = self.remove(parts);
        }
        result.map_err(|e| e.context(format!("BAR {} at {address:#x}", self.index)))
    }

    fn remove(&mut self, parts: &Parts) -> Result<()> {
        let Some(placed) = self.placed.take() else { return Ok(()) };
        if placed.on_bus {
            match (self.kind, u16::try_from(placed.address)) {
                (BarKind::Io, Ok(base)) => parts.buses.remove_ports(base),
                _ => parts.buses.remove_memory(placed.address),
            }
        }
        let mut result = Ok(());
        for slot in placed.slots {
            result = result.and(parts.vm.remove_slot(slot));
        }
        result
    }
}

/// What of a BAR is not mapped, on the guest's bus.
#[derive(Debug)]
struct Trap {
    device: Weak<Assigned>,
    bar: u8,
}

impl bus::Device for Trap {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.device.upgrade() {
            Some(device) => device.read_bar(self.bar, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(device) = self.device.upgrade() {
            device.write_bar(self.bar, offset, data);
        }
    }
}
