//! The first 64 bytes: identity, command, BARs, interrupt line and pin.

use super::super::bar::{Bar, BarKind};
use super::cell::Cell;
use super::device::Device;
use super::{COMMAND, ConfigSpace, Options, ROM};
use crate::error::{Error, Result};

const STATUS: usize = 0x06;
const HEADER_TYPE: usize = 0x0e;
const BARS: usize = 0x10;
const ROM_BAR: usize = 0x30;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;

/// I/O, memory, bus master, parity response, SERR, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0547;
/// In status's low byte: there are capabilities.
const CAPABILITIES: u8 = 0x10;
const MULTIFUNCTION: u8 = 0x80;
/// The least an expansion ROM decodes.
const ROM_LEAST: u64 = 2048;

/// Where a BAR's register is, and how many bytes it has.
pub(super) fn registers(bar: &Bar) -> (usize, usize) {
    match (bar.index, bar.kind) {
        (ROM, _) => (ROM_BAR, 4),
        (index, BarKind::Memory64) => (BARS + 4 * usize::from(index), 8),
        (index, _) => (BARS + 4 * usize::from(index), 4),
    }
}

/// Everything but the BARs.
pub(super) fn show(space: &mut ConfigSpace, device: &Device<'_>, options: &Options) -> Result<()> {
    if device.u16(0)? == 0xffff {
        return Err(Error::new("the device does not answer: its vendor ID reads as ffff")
            .remedy("check with lspci that it is there and powered; a reset or a rescan may bring it back"));
    }
    let kind = device.u8(HEADER_TYPE)? & !MULTIFUNCTION;
    if kind != 0 {
        return Err(Error::new(format!("a device with a header of type {kind:#x}"))
            .remedy("only endpoints can be passed through, not bridges"));
    }
    // Identity, status, class, cache line, latency; CardBus CIS and subsystem; grant and latency.
    for range in [0..BARS, 0x28..ROM_BAR, 0x3e..0x40] {
        space.fill(range, Cell::SHOWN);
    }
    let [low, high] = COMMAND_WRITABLE.to_le_bytes();
    space.set(COMMAND, Cell::register(0, low));
    space.set(COMMAND + 1, Cell::register(0, high));
    space.set(STATUS, Cell { emulated: CAPABILITIES, ..Cell::SHOWN });
    space.set(HEADER_TYPE, Cell::HIDDEN);
    space.set(INTERRUPT_LINE, Cell::register(0, 0xff));
    let pin = if options.intx { device.u8(INTERRUPT_PIN)? } else { 0 };
    space.set(INTERRUPT_PIN, Cell::register(pin, 0));
    Ok(())
}

/// Whether the device says that it has capabilities.
pub(super) fn has_capabilities(device: &Device<'_>) -> Result<bool> {
    Ok(device.u8(STATUS)? & CAPABILITIES != 0)
}

/// The guest sees some.
pub(super) fn show_capabilities(space: &mut ConfigSpace) {
    space.set(STATUS, Cell { own: CAPABILITIES, emulated: CAPABILITIES, ..Cell::SHOWN });
}

/// The BARs, all of them unplaced.
pub(super) fn bars(space: &mut ConfigSpace, device: &Device<'_>, sizes: [u64; 6], rom: u64) -> Result<()> {
    let mut upper_half = false;
    for (index, size) in (0u8..).zip(sizes) {
        if std::mem::take(&mut upper_half) {
            if size != 0 {
                return Err(Error::new(format!(
                    "BAR {index} is the upper half of a 64-bit one and has a size"
                )));
            }
            continue;
        }
        if size == 0 {
            continue;
        }
        let register = device.u32(BARS + 4 * usize::from(index))?;
        let wrong = |why: &str| Error::new(format!("BAR {index} ({register:#x}, {size:#x} bytes): {why}"));
        let (kind, least, most) = match register & 7 {
            1 | 3 | 5 | 7 => (BarKind::Io, 4, 1 << 15),
            // Below 1 MiB, which nobody has asked for this century, is below 4 GiB.
            0 | 2 => (BarKind::Memory32, 16, 1 << 31),
            4 if index < 5 => (BarKind::Memory64, 16, 1 << 62),
            4 => return Err(wrong("a 64-bit one without an upper half")),
            _ => return Err(wrong("a reserved type")),
        };
        if !size.is_power_of_two() {
            return Err(wrong("the size is not a power of two"));
        }
        if !(least..=most).contains(&size) {
            return Err(wrong("no such BAR can have this size"));
        }
        upper_half = kind == BarKind::Memory64;
        let prefetchable = kind != BarKind::Io && register & 8 != 0;
        let kept = match kind {
            BarKind::Io => 1,
            BarKind::Memory32 => 0,
            BarKind::Memory64 => 4,
        };
        let kept = if prefetchable { kept | 8 } else { kept };
        add(space, Bar { index, kind, prefetchable, size, address: 0 }, kept, 0);
    }
    if rom != 0 {
        // What the firmware left of a ROM in memory has any size.
        let size = rom.max(ROM_LEAST).checked_next_power_of_two().filter(|size| *size <= 1 << 31);
        let size = size.ok_or_else(|| Error::new(format!("an expansion ROM of {rom:#x} bytes")))?;
        let bar = Bar { index: ROM, kind: BarKind::Memory32, prefetchable: false, size, address: 0 };
        add(space, bar, 0, 1);
    }
    Ok(())
}

/// `kept`: the read-only low bits; `writable`: those beside the address.
fn add(space: &mut ConfigSpace, bar: Bar, kept: u8, writable: u8) {
    let (first, length) = registers(&bar);
    for (at, mask) in (first..first + length).zip(bar.mask().to_le_bytes()) {
        space.set(at, Cell::register(0, mask));
    }
    if let Some(cell) = space.cells.get_mut(first) {
        cell.own |= kept;
        cell.writable |= writable;
    }
    if let Some(place) = space.bars.get_mut(usize::from(bar.index)) {
        *place = Some(bar);
    }
}
