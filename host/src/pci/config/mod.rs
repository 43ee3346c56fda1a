//! A function's configuration space in front of the real device's.
//!
//! Each byte is a [`Cell`]: which of its bits are kept here, which of those the guest can write, and whether writes go
//! to the device. Sizing, 64-bit pairs, read-only bits and rebuilt capability chains are nothing but cells; what is
//! not, is below: the messages' registers ([`pollvisor_core::msix`]), the power state, and the effects of a write.
//!
//! What the guest sees, by region:
//!
//! | bytes | |
//! |---|---|
//! | command | kept here and told the device: I/O, memory, bus master, parity, SERR, INTx disable |
//! | BARs, ROM BAR, interrupt line | kept here; the device's BARs are the host's business |
//! | the rest of the header | the device's, read-only; status says that there are capabilities if any is shown |
//! | capabilities | those of [`caps`], at the device's places; everything else reads as zero and drops writes |
//!
//! Power management: the power state is kept here and the device stays in D0, so it never loses its state under
//! mappings that are still there; No_Soft_Reset says so. Outside D0 no BAR is decoded. The upper byte of its control
//! register (PME, data select) goes to the device.

mod caps;
mod cell;
mod device;
mod header;

use super::aligned;
use super::bar::{Bar, BarKind};
use crate::error::{Error, Result};
use cell::Cell;
use device::Device;
use pollvisor_core::msix::msi::{Msi, MsiWritten};
use pollvisor_core::msix::{ControlWritten, Entry, Msix};
use std::ops::Range;

/// How many bytes a function's configuration space has.
pub const CONFIG_SIZE: u16 = 4096;
/// The expansion ROM's index among the BARs, as in VFIO's regions.
pub const ROM: u8 = 6;

const COMMAND: usize = 0x04;
const COMMAND_IO: u16 = 1;
const COMMAND_MEMORY: u16 = 2;

/// The real device's configuration space.
pub trait HostConfig {
    /// Reads 1, 2 or 4 bytes, naturally aligned.
    ///
    /// # Errors
    /// The device cannot be asked, or has gone.
    fn read(&self, offset: u16, data: &mut [u8]) -> Result<()>;
    /// Writes 1, 2 or 4 bytes, naturally aligned.
    ///
    /// # Errors
    /// The device cannot be asked, or has gone.
    fn write(&self, offset: u16, data: &[u8]) -> Result<()>;
    /// How many bytes there are: 256 or 4096.
    fn size(&self) -> u16;
}

/// What of the device the guest is to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The expansion ROM.
    pub rom: bool,
    /// The interrupt pin.
    pub intx: bool,
}

/// Where in the BARs something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The BAR's index.
    pub bar: u8,
    /// Bytes from its beginning.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

impl Place {
    /// The bytes of `bar` it takes, if it is there.
    #[must_use]
    pub fn within(&self, bar: u8) -> Option<Range<u64>> {
        (self.bar == bar).then(|| self.offset..self.offset.saturating_add(self.size))
    }
}

/// The function's MSI-X.
#[derive(Debug)]
pub struct MsixCap {
    /// Table, pending bits and control register.
    pub function: Msix<Box<[Entry]>>,
    /// Where the table is.
    pub table: Place,
    /// Where the pending bits are.
    pub pba: Place,
}

/// What follows from a write. The registers themselves are written; the host owes the rest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "mappings, routes and a reset may be due"]
pub struct Written {
    /// [`ConfigSpace::decoded`] says something new of some BAR.
    pub decode_changed: bool,
    /// The MSI registers were written.
    pub msi: Option<MsiWritten>,
    /// The MSI-X control register was written.
    pub msix: Option<ControlWritten>,
    /// The command register was written: before, after.
    pub command: Option<(u16, u16)>,
    /// The guest asks for a function-level reset. The device was not told.
    pub reset: bool,
    /// The first write that the device did not take.
    pub error: Option<Error>,
}

/// A function's configuration space. A lock of the caller's goes around it.
#[derive(Debug)]
pub struct ConfigSpace {
    cells: Box<[Cell]>,
    /// By index; the last is the ROM's.
    bars: [Option<Bar>; 7],
    /// With the capability's place and length.
    msi: Option<(usize, usize, Msi)>,
    /// With the control register's place.
    msix: Option<(usize, MsixCap)>,
    /// Where the power state is, and a bit for each that the device has.
    power: Option<(usize, u8)>,
}

impl ConfigSpace {
    /// The space in front of `host`, whose BARs have `bar_sizes` (0: absent; so is the upper half of a 64-bit one) and
    /// whose expansion ROM has `rom_size` bytes.
    ///
    /// # Errors
    /// The device does not answer, is not an endpoint with a type 0 header, or contradicts itself: chains of
    /// capabilities that loop, capabilities cut short, BARs whose size is not a power of two, an MSI-X table outside
    /// its BAR.
    pub fn new(host: &dyn HostConfig, bar_sizes: [u64; 6], rom_size: u64, options: &Options) -> Result<Self> {
        let mut space = Self {
            cells: vec![Cell::HIDDEN; usize::from(CONFIG_SIZE)].into_boxed_slice(),
            bars: [const { None }; 7],
            msi: None,
            msix: None,
            power: None,
        };
        let device = Device(host);
        header::show(&mut space, &device, options)?;
        header::bars(&mut space, &device, bar_sizes, if options.rom { rom_size } else { 0 })?;
        caps::standard(&mut space, &device)?;
        caps::extended(&mut space, &device)?;
        Ok(space)
    }

    /// The guest reads 1 to 4 bytes; all of `data` is filled. What the device does not answer is all ones, and so is
    /// what lies outside or is longer.
    pub fn read(&self, host: &dyn HostConfig, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        if data.len() > 4 {
            return;
        }
        for (at, range) in aligned(u64::from(offset), data.len()) {
            let (Ok(at), Some(piece)) = (u16::try_from(at), data.get_mut(range)) else { return };
            let first = usize::from(at);
            let Some(cells) = self.cells.get(first..first + piece.len()) else { return };
            let asks = cells.iter().any(|cell| cell.emulated != 0xff);
            if asks && host.read(at, piece).is_err() {
                piece.fill(0xff);
                continue;
            }
            for ((at, cell), byte) in (first..).zip(cells).zip(piece) {
                *byte = (*byte & !cell.emulated) | (self.own(at, *cell) & cell.emulated);
            }
        }
    }

    /// The guest writes 1 to 4 bytes; longer writes are dropped. Every register in them is written as a whole, the
    /// device is told what is the device's, and the effects are those of the access as a whole.
    pub fn write(&mut self, host: &dyn HostConfig, offset: u16, data: &[u8]) -> Written {
        let mut written = Written::default();
        if data.len() > 4 {
            return written;
        }
        let first = usize::from(offset);
        let (command, decoded) = (self.command(), self.all_decoded());
        let power = self.power.and_then(|(at, _)| self.cells.get(at)).copied();
        for (cell, byte) in self.cells.iter_mut().skip(first).zip(data) {
            cell.own = (cell.own & !cell.writable) | (byte & cell.writable);
            written.reset |= byte & cell.resets != 0;
        }
        if let (Some((at, states)), Some(before)) = (self.power, power)
            && let Some(cell) = self.cells.get_mut(at)
            && states & 1 << (cell.own & 3) == 0
        {
            *cell = before;
        }
        self.follow();
        if let Some((at, length, msi)) = &mut self.msi
            && let Some((from, data)) = overlap(first, data, *at + 2..*at + *length)
        {
            written.msi = Some(msi.write(from + 2, data));
        }
        if let Some((at, msix)) = &mut self.msix
            && let Some((from, data)) = overlap(first, data, *at..*at + 2)
        {
            written.msix = Some(msix.function.write_control(from, data));
        }
        let mut result = Ok(());
        if overlap(first, data, COMMAND..COMMAND + 2).is_some() {
            written.command = Some((command, self.command()));
            result = self.tell_command(host);
        }
        written.error = result.and(self.pass(host, offset, data)).err();
        written.decode_changed = decoded != self.all_decoded();
        written
    }

    /// The BAR `index`, 0 to 5 or [`ROM`], if there is one. The upper half of a 64-bit one is none.
    #[must_use]
    pub fn bar(&self, index: u8) -> Option<&Bar> {
        self.bars.get(usize::from(index))?.as_ref()
    }

    /// Firmware's role, before the guest runs: writes an address into a BAR, as far as the register has its bits.
    pub fn place(&mut self, index: u8, address: u64) {
        let Some(bar) = self.bar(index) else { return };
        let ((first, length), masks) = (header::registers(bar), bar.mask().to_le_bytes());
        let cells = self.cells.iter_mut().skip(first).take(length);
        for ((cell, byte), mask) in cells.zip(address.to_le_bytes()).zip(masks) {
            cell.own = (cell.own & !mask) | (byte & mask);
        }
        self.follow();
    }

    /// Where the BAR is decoded now: it is enabled (command register; a ROM's own bit), the function is in D0, and
    /// the address is neither zero nor what sizing leaves. Any other address is the guest's choice, its own memory's
    /// too.
    #[must_use]
    pub fn decoded(&self, index: u8) -> Option<u64> {
        let bar = self.bar(index)?;
        let enable = if bar.kind == BarKind::Io { COMMAND_IO } else { COMMAND_MEMORY };
        let asleep = self.power.is_some_and(|(at, _)| self.kept(at) & 3 != 0);
        let off = index == ROM && self.kept(header::registers(bar).0) & 1 == 0;
        (self.command() & enable != 0 && !asleep && !off && !bar.is_unplaced()).then_some(bar.address)
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        u16::from_le_bytes([self.kept(COMMAND), self.kept(COMMAND + 1)])
    }

    /// MSI-X, if the device has it.
    pub fn msix(&mut self) -> Option<&mut MsixCap> {
        self.msix.as_mut().map(|(_, msix)| msix)
    }

    /// MSI, if the device has it.
    pub fn msi(&mut self) -> Option<&mut Msi> {
        self.msi.as_mut().map(|(_, _, msi)| msi)
    }

    /// After a function-level reset: the command register, the BARs and the interrupt line are zero, MSI and MSI-X
    /// off and their vectors masked, the power state D0. The device's command register follows.
    pub fn reset(&mut self, host: &dyn HostConfig) -> Written {
        let (command, decoded) = (self.command(), self.all_decoded());
        for cell in &mut self.cells {
            cell.own &= !cell.writable;
        }
        self.follow();
        Written {
            decode_changed: decoded != self.all_decoded(),
            msi: self.msi().map(Msi::reset),
            msix: self.msix().map(|msix| msix.function.reset()),
            command: Some((command, self.command())),
            reset: false,
            error: self.tell_command(host).err(),
        }
    }

    /// What is kept of a byte.
    fn kept(&self, at: usize) -> u8 {
        self.cells.get(at).map_or(0, |cell| cell.own)
    }

    /// What the emulated bits of a byte read as.
    fn own(&self, at: usize, cell: Cell) -> u8 {
        let mut byte = [cell.own];
        if let Some((start, length, msi)) = &self.msi
            && (*start + 2..*start + *length).contains(&at)
        {
            let _always_inside = msi.read((at - start) as u64, &mut byte);
        }
        if let Some((start, msix)) = &self.msix
            && (*start..*start + 2).contains(&at)
        {
            let _always_inside = msix.function.read_control((at - start) as u64, &mut byte);
        }
        let [byte] = byte;
        byte
    }

    fn all_decoded(&self) -> [Option<u64>; 7] {
        [0, 1, 2, 3, 4, 5, ROM].map(|index| self.decoded(index))
    }

    /// The BARs' addresses follow their registers.
    fn follow(&mut self) {
        for bar in self.bars.iter_mut().flatten() {
            let (first, length) = header::registers(bar);
            let mut bytes = [0; 8];
            for (to, cell) in bytes.iter_mut().zip(self.cells.iter().skip(first)).take(length) {
                *to = cell.own;
            }
            bar.address = u64::from_le_bytes(bytes) & bar.mask();
        }
    }

    fn tell_command(&self, host: &dyn HostConfig) -> Result<()> {
        host.write(4, &self.command().to_le_bytes())
    }

    /// Tells the device what of a write is its own: in one piece where it can be, so that registers with side effects
    /// see the access that the guest made.
    fn pass(&self, host: &dyn HostConfig, offset: u16, data: &[u8]) -> Result<()> {
        let mut result = Ok(());
        for (at, range) in aligned(u64::from(offset), data.len()) {
            let (Ok(at), Some(piece)) = (u16::try_from(at), data.get(range)) else { break };
            let first = usize::from(at);
            let Some(cells) = self.cells.get(first..first + piece.len()) else { break };
            let mut bytes = [0; 4];
            for ((to, byte), cell) in bytes.iter_mut().zip(piece).zip(cells) {
                *to = byte & !cell.emulated;
            }
            let bytes = bytes.get(..piece.len()).unwrap_or_default();
            if cells.iter().all(|cell| cell.pass) {
                result = result.and(host.write(at, bytes));
                continue;
            }
            for ((at, byte), _) in (at..).zip(bytes).zip(cells).filter(|(_, cell)| cell.pass) {
                result = result.and(host.write(at, std::slice::from_ref(byte)));
            }
        }
        result
    }
}

/// The part of an access at `first` that lies in `registers`, by its offset there.
fn overlap(first: usize, data: &[u8], registers: Range<usize>) -> Option<(u64, &[u8])> {
    let from = first.max(registers.start);
    let to = (first + data.len()).min(registers.end);
    let part = data.get(from - first..to.checked_sub(first)?).filter(|part| !part.is_empty())?;
    Some(((from - registers.start) as u64, part))
}
