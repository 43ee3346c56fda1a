//! The capabilities: which of them the guest sees, and as what.
//!
//! Shown at the device's own places, in chains of our own; what is not shown reads as zero. Standard ones: power
//! management, VPD, MSI, vendor-specific, PCI Express, MSI-X, advanced features; of those that can be there only once,
//! the first. Extended: the device serial number. Hidden are the rest, SR-IOV, ATS, PRI, PASID, ACS, Resizable BAR, AER
//! and power saving on the link among them: each takes a counterpart in the bus or the IOMMU that the guest has not.

use super::cell::Cell;
use super::device::Device;
use super::{ConfigSpace, MsixCap, Place, header};
use crate::error::{Error, Result};
use pollvisor_core::msix::msi::{Msi, Shape};
use pollvisor_core::msix::{Entry, Msix};
use std::ops::Range;

const POINTER: usize = 0x34;
const EXTENDED: usize = 0x100;
const END: usize = super::CONFIG_SIZE as usize;

const POWER: u8 = 0x01;
const VPD: u8 = 0x03;
const MSI: u8 = 0x05;
const VENDOR: u8 = 0x09;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;
const ADVANCED: u8 = 0x13;
const SERIAL_NUMBER: u16 = 0x0003;

/// PCI Express device types (PCI Express base specification, 7.5.3.2).
const ENDPOINT: u16 = 0;
const LEGACY_ENDPOINT: u16 = 1;
const INTEGRATED_ENDPOINT: u16 = 9;

/// The chain of standard capabilities, rebuilt.
pub(super) fn standard(space: &mut ConfigSpace, device: &Device<'_>) -> Result<()> {
    if !header::has_capabilities(device)? {
        return Ok(());
    }
    let mut chain: Vec<(u8, usize)> = Vec::new();
    let mut at = usize::from(device.u8(POINTER)? & !3);
    while at != 0 {
        if at < 0x40 || chain.iter().any(|(_, other)| *other == at) {
            return Err(broken(at));
        }
        chain.push((device.u8(at)?, at));
        at = usize::from(device.u8(at + 1)? & !3);
    }
    let mut pointer = POINTER;
    for (index, (id, at)) in chain.iter().enumerate() {
        let again = chain.iter().take(index).any(|(other, _)| other == id) && *id != VENDOR;
        let end = chain.iter().map(|(_, other)| *other).filter(|other| other > at).min().unwrap_or(EXTENDED);
        if again || !show(space, device, *id, *at..end)? {
            continue;
        }
        space.constant(pointer, &[u8::try_from(*at).unwrap_or(0)]);
        space.constant(*at, &[*id, 0]);
        pointer = at + 1;
    }
    if pointer != POINTER {
        header::show_capabilities(space);
    }
    Ok(())
}

/// The chain of extended capabilities, rebuilt: the serial number, or nothing.
pub(super) fn extended(space: &mut ConfigSpace, device: &Device<'_>) -> Result<()> {
    if usize::from(device.0.size()) < END {
        return Ok(());
    }
    let mut chain: Vec<(u32, usize)> = Vec::new();
    let mut at = EXTENDED;
    while at != 0 {
        if at < EXTENDED || chain.iter().any(|(_, other)| *other == at) {
            return Err(broken(at));
        }
        let head = device.u32(at)?;
        if chain.is_empty() && (head == 0 || head == u32::MAX) {
            return Ok(());
        }
        chain.push((head, at));
        at = usize::try_from(head >> 20 & 0xffc).unwrap_or(0);
    }
    let Some((head, at)) = chain.iter().find(|(head, _)| head & 0xffff == u32::from(SERIAL_NUMBER)) else {
        return Ok(());
    };
    let end = chain.iter().map(|(_, other)| *other).filter(|other| other > at).min().unwrap_or(END);
    fits("the device serial number", &(*at..end), 12)?;
    space.fill(*at..at + 12, Cell::SHOWN);
    if *at != EXTENDED {
        // A null capability, which only says where the next one is.
        let next = u32::try_from(*at).unwrap_or(0) << 20;
        space.constant(EXTENDED, &next.to_le_bytes());
    }
    space.constant(*at, &(head & 0x000f_ffff).to_le_bytes());
    Ok(())
}

fn broken(at: usize) -> Error {
    Error::new(format!("the device's capabilities loop, or lead out of their place, at {at:#x}"))
        .remedy("reset the device: its configuration space is damaged")
}

fn fits(name: &str, room: &Range<usize>, length: usize) -> Result<()> {
    if room.len() < length {
        let start = room.start;
        return Err(Error::new(format!("{name} capability at {start:#x}: not room for its {length} bytes")));
    }
    Ok(())
}

/// Whether the guest sees the capability `id`; what it sees of it. `room` is until the next capability.
fn show(space: &mut ConfigSpace, device: &Device<'_>, id: u8, room: Range<usize>) -> Result<bool> {
    let at = room.start;
    match id {
        POWER => power(space, device, &room)?,
        VPD => {
            space.fill(at + 2..room.end.min(at + 8), Cell::PASSED);
        }
        MSI => msi(space, device, &room)?,
        VENDOR => {
            let length = usize::from(device.u8(at + 2)?);
            space.fill(at + 2..room.end.min(at + length.max(3)), Cell::PASSED);
        }
        EXPRESS => return express(space, device, &room),
        MSIX => msix(space, device, &room)?,
        ADVANCED => advanced(space, device, &room)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn power(space: &mut ConfigSpace, device: &Device<'_>, room: &Range<usize>) -> Result<()> {
    fits("the power management", room, 8)?;
    let at = room.start;
    let [_, high] = device.u16(at + 2)?.to_le_bytes();
    space.fill(at + 2..at + 8, Cell::PASSED);
    // The power state, and No_Soft_Reset.
    space.set(at + 4, Cell::register(8, 3));
    // D0 and D3hot, and what is said of D1 and D2.
    space.power = Some((at + 4, 0b1001 | high & 0b110));
    Ok(())
}

fn msi(space: &mut ConfigSpace, device: &Device<'_>, room: &Range<usize>) -> Result<()> {
    let at = room.start;
    let control = device.u16(at + 2)?;
    let vectors = 1u8 << (control >> 1 & 7);
    let wrong = |error| Error::new(format!("the MSI capability at {at:#x}: {error}"));
    let shape = Shape::new(vectors, control & 0x80 != 0, control & 0x100 != 0).map_err(wrong)?;
    fits("the MSI", room, shape.bytes())?;
    space.msi = Some((at, shape.bytes(), Msi::new(shape)));
    Ok(())
}

fn msix(space: &mut ConfigSpace, device: &Device<'_>, room: &Range<usize>) -> Result<()> {
    fits("the MSI-X", room, 12)?;
    let at = room.start;
    let vectors = usize::from(device.u16(at + 2)? & 0x7ff) + 1;
    let wrong = |why: String| Error::new(format!("the MSI-X capability at {at:#x}: {why}"));
    let function = Msix::new(vec![Entry::RESET; vectors].into_boxed_slice());
    let function = function.map_err(|error| wrong(error.to_string()))?;
    let mut place = |register: usize, what: &str, size: u64| {
        let value = device.u32(register)?;
        let [low, ..] = value.to_le_bytes();
        let place = Place { bar: low & 7, offset: u64::from(value & !7), size };
        let there =
            space.bar(place.bar).filter(|bar| bar.kind != super::BarKind::Io && place.bar != super::ROM);
        if there.is_none_or(|bar| place.offset + size > bar.size) {
            return Err(wrong(format!(
                "the {what} ({value:#x}, {size:#x} bytes) is not inside a memory BAR"
            )));
        }
        space.constant(register, &value.to_le_bytes());
        Ok(place)
    };
    let table = place(at + 4, "table", function.table_bytes())?;
    let pba = place(at + 8, "pending bits", function.pba_bytes())?;
    space.msix = Some((at + 2, MsixCap { function, table, pba }));
    Ok(())
}

/// An endpoint on a root bus has no link: as QEMU's `vfio_setup_pcie_cap`, it is shown as integrated into the root
/// complex, and a legacy endpoint without the capability.
fn express(space: &mut ConfigSpace, device: &Device<'_>, room: &Range<usize>) -> Result<bool> {
    let at = room.start;
    fits("the PCI Express", room, 12)?;
    let flags = device.u16(at + 2)?;
    let (version, kind) = (flags & 0xf, flags >> 4 & 0xf);
    if kind == LEGACY_ENDPOINT {
        return Ok(false);
    }
    if kind != ENDPOINT && kind != INTEGRATED_ENDPOINT {
        return Err(Error::new(format!("a PCI Express device of type {kind:#x}"))
            .remedy("only endpoints can be passed through, not ports, switches or bridges"));
    }
    let length = match (version, kind) {
        (0 | 1, ENDPOINT) => 0x14,
        (0 | 1, _) => 0x0c,
        _ => 0x3c,
    };
    let length = length.min(room.len());
    space.fill(at + 2..at + length, Cell::PASSED);
    space.constant(at + 2, &(flags & !0xf0 | INTEGRATED_ENDPOINT << 4).to_le_bytes());
    if kind == ENDPOINT {
        // Link capabilities, control, status; the same again for version 2.
        for link in [0x0c..0x14, 0x2c..0x34] {
            space.fill(at + link.start.min(length)..at + link.end.min(length), Cell::HIDDEN);
        }
    }
    // Function-level reset: asked for by device control's bit 15, if device capabilities' bit 28 is there.
    let resets = if device.u32(at + 4)? & 1 << 28 == 0 { 0 } else { 0x80 };
    space.set(at + 9, Cell { emulated: 0x80, resets, ..Cell::PASSED });
    Ok(true)
}

fn advanced(space: &mut ConfigSpace, device: &Device<'_>, room: &Range<usize>) -> Result<()> {
    fits("the advanced features", room, 6)?;
    let at = room.start;
    space.fill(at + 2..at + 6, Cell::SHOWN);
    let resets = device.u8(at + 3)? >> 1 & 1;
    space.set(at + 4, Cell { resets, ..Cell::HIDDEN });
    Ok(())
}

impl ConfigSpace {
    pub(super) fn set(&mut self, at: usize, to: Cell) {
        if let Some(cell) = self.cells.get_mut(at) {
            *cell = to;
        }
    }

    pub(super) fn fill(&mut self, range: Range<usize>, to: Cell) {
        for at in range {
            self.set(at, to);
        }
    }

    /// Bytes that never change.
    fn constant(&mut self, at: usize, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            self.set(at, Cell::register(*byte, 0));
        }
    }
}
