//! QEMU's educational device (docs/specs/edu.rst): a register that raises its interrupt, and a DMA engine.

use super::{Access, Device, Kind, checked, get, set, wait};
use pollvisor::error::{Error, Result};
use std::time::Duration;

const STATUS: u64 = 0x24;
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;

const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;
const INTERRUPT: u64 = 4;

const BUFFER: u64 = 0x4_0000;
const BUFFER_SIZE: u64 = 4096;
/// It has 28 address lines.
const ADDRESSES: u64 = 1 << 28;

/// The device. Its status outlives resets and closes: [`Device::quiet`] clears it.
#[derive(Debug, Default)]
pub struct Edu(());

/// Which way a transfer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From memory to the device's buffer.
    ToDevice,
    /// From the device's buffer to memory.
    ToMemory,
}

/// One transfer of its DMA engine.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    /// Which way.
    pub direction: Direction,
    /// The address in memory; all of the transfer below 2^28.
    pub address: u64,
    /// Where in the device's buffer of 4096 bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// Whether the end raises the interrupt (status 0x100).
    pub interrupt: bool,
}

impl Edu {
    /// One that is not set up.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a transfer; it takes about 100 ms.
    ///
    /// # Errors
    /// When it leaves the buffer (QEMU would abort) or the 28 bits of address (QEMU would cut them off).
    pub fn start(&mut self, io: &mut dyn Access, transfer: Transfer) -> Result<()> {
        let Transfer { direction, address, offset, length, interrupt } = transfer;
        let within = |from: u64, all: u64| from.checked_add(length).is_some_and(|end| end <= all);
        if !within(offset, BUFFER_SIZE) || !within(address, ADDRESSES) {
            return Err(Error::new(format!(
                "edu cannot transfer {length} bytes between {address:#x} and {offset:#x} in its buffer"
            )));
        }
        let (mut command, mut source, mut destination) = (RUN, address, BUFFER + offset);
        if direction == Direction::ToMemory {
            (source, destination) = (destination, source);
            command |= TO_MEMORY;
        }
        if interrupt {
            command |= INTERRUPT;
        }
        io.write(0, SOURCE, 8, source);
        io.write(0, DESTINATION, 8, destination);
        io.write(0, COUNT, 8, length);
        io.write(0, COMMAND, 8, command);
        Ok(())
    }

    /// Makes a transfer and waits for its end. Whether the memory could be reached does not show here.
    ///
    /// # Errors
    /// As for [`Edu::start`], and when it does not end.
    pub fn dma(&mut self, io: &mut dyn Access, transfer: Transfer) -> Result<()> {
        self.start(io, transfer)?;
        wait("edu's DMA", Duration::from_millis(5), || io.read(0, COMMAND, 8) & RUN == 0)
    }
}

impl Device for Edu {
    fn name(&self) -> &'static str {
        "edu"
    }

    fn vectors(&self, kind: Kind) -> u16 {
        if kind == Kind::Msix { 0 } else { 1 }
    }

    fn counts_exactly(&self) -> bool {
        true
    }

    fn set_up(&mut self, io: &mut dyn Access, _kind: Kind, _memory: u64) -> Result<()> {
        self.quiet(io)
    }

    fn raise(&mut self, io: &mut dyn Access, vector: u16) -> Result<()> {
        checked(self.name(), vector, 1)?;
        set(io, RAISE, 1);
        Ok(())
    }

    fn acknowledge(&mut self, io: &mut dyn Access, _vector: u16) -> Result<()> {
        let status = get(io, STATUS);
        set(io, ACKNOWLEDGE, status);
        Ok(())
    }

    fn silence(&self) -> Option<(u64, u32)> {
        Some((ACKNOWLEDGE, u32::MAX))
    }

    fn quiet(&mut self, io: &mut dyn Access) -> Result<()> {
        wait("edu's DMA", Duration::from_millis(5), || io.read(0, COMMAND, 8) & RUN == 0)?;
        set(io, ACKNOWLEDGE, u32::MAX);
        Ok(())
    }
}
