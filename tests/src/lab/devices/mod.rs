//! What a guest's driver would do to make these devices interrupt: by their own registers and queues, over [`Access`],
//! so that the same code runs with registers mapped into a process and with accesses made by a guest's CPU.

mod e1000e;
mod edu;
mod igb;
mod mtty;
mod nvme;

pub use e1000e::E1000e;
pub use edu::{Direction, Edu, Transfer};
pub use igb::Igb;
pub use mtty::Mtty;
pub use nvme::Nvme;

use pollvisor::error::{Error, Result};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// One way to a device's registers and to memory as it sees it.
pub trait Access {
    /// Reads `size` bytes (1, 2, 4 or 8) of a BAR (0 to 5).
    fn read(&mut self, bar: u8, offset: u64, size: u8) -> u64;
    /// Writes `size` bytes (1, 2, 4 or 8) of a BAR (0 to 5), after all that was written to memory before.
    fn write(&mut self, bar: u8, offset: u64, size: u8, value: u64);
    /// Reads memory at an address of the device's (in a guest: a guest-physical address).
    fn read_memory(&mut self, address: u64, data: &mut [u8]);
    /// Writes memory at an address of the device's.
    fn write_memory(&mut self, address: u64, data: &[u8]);
}

/// How a PCI device signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Messages from a table in a BAR.
    Msix,
    /// Messages from the configuration space.
    Msi,
    /// The level-triggered pin.
    Intx,
}

/// A device and how to make it interrupt.
///
/// The order: interrupts of `kind` turned on outside (VFIO or the guest's configuration space), bus mastering too,
/// [`Device::set_up`], then per interrupt [`Device::raise`], its arrival, [`Device::acknowledge`].
pub trait Device {
    /// What it is called.
    fn name(&self) -> &'static str;
    /// How many vectors can be raised by themselves; 0: the device has no interrupts of this kind.
    fn vectors(&self, kind: Kind) -> u16;
    /// Whether one `raise`, acknowledged, is one interrupt. If not it is at least one, and a late one may follow.
    fn counts_exactly(&self) -> bool;
    /// How many bytes of memory `set_up` wants, a multiple of 4096; 0: none.
    fn memory(&self) -> usize {
        0
    }
    /// Makes it ready to raise interrupts of `kind`, from any state. `memory`: where the bytes of
    /// [`Device::memory`] are, page-aligned. Interrupts of vector 0 may come from this already.
    ///
    /// # Errors
    /// When the device does not get ready.
    fn set_up(&mut self, io: &mut dyn Access, kind: Kind, memory: u64) -> Result<()>;
    /// Raises `vector`, below [`Device::vectors`].
    ///
    /// # Errors
    /// When there is no such vector, or too much is unacknowledged.
    fn raise(&mut self, io: &mut dyn Access, vector: u16) -> Result<()>;
    /// Raises `vector` `times` over, as fast as the device takes it. Arrivals may merge.
    ///
    /// # Errors
    /// As for `raise`.
    fn raise_many(&mut self, io: &mut dyn Access, vector: u16, times: u16) -> Result<()> {
        (0..times).try_for_each(|_| self.raise(io, vector))
    }
    /// What the driver's handler does: the cause of `vector` is taken back, and a pin with no other cause falls.
    ///
    /// # Errors
    /// When what the interrupt announced went wrong.
    fn acknowledge(&mut self, io: &mut dyn Access, vector: u16) -> Result<()>;
    /// What a handler writes before its end of interrupt, so that the pin falls: a register of BAR 0, and 32 bits. None: the
    /// pin is no level, but a pulse.
    fn silence(&self) -> Option<(u64, u32)>;
    /// After [`Device::acknowledge`]: undoes what [`Device::silence`] did beside that.
    fn listen_again(&mut self, io: &mut dyn Access) {
        let _ = io;
    }
    /// Leaves it with nothing pending and nothing that could be raised; `set_up` is needed afterwards.
    ///
    /// # Errors
    /// When the device does not stop.
    fn quiet(&mut self, io: &mut dyn Access) -> Result<()>;
}

/// The device with these PCI numbers, if it is known here.
#[must_use]
pub fn identify(vendor: u16, device: u16) -> Option<Box<dyn Device>> {
    Some(match (vendor, device) {
        (0x8086, 0x10c9) => Box::new(Igb::new()),
        (0x8086, 0x10d3) => Box::new(E1000e::new()),
        (0x1234, 0x11e8) => Box::new(Edu::new()),
        (0x1b36, 0x0010) => Box::new(Nvme::new()),
        (0x4348, 0x3253) => Box::new(Mtty::new()),
        _ => return None,
    })
}

/// A 32-bit register of BAR 0.
fn get(io: &mut dyn Access, register: u64) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "four bytes were read")]
    let value = io.read(0, register, 4) as u32;
    value
}

fn set(io: &mut dyn Access, register: u64, value: u32) {
    io.write(0, register, 4, u64::from(value));
}

/// The vector as an index below `vectors`.
fn checked(name: &str, vector: u16, vectors: u16) -> Result<()> {
    if vector < vectors {
        return Ok(());
    }
    Err(Error::new(format!("{name} has no vector {vector} as it is set up, only {vectors}")))
}

/// Looks every `pause` until `done`, for five seconds at most.
fn wait(what: &str, pause: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while !done() {
        if began.elapsed() > Duration::from_secs(5) {
            return Err(Error::new(format!("{what}: not within 5 s")));
        }
        sleep(pause);
    }
    Ok(())
}
