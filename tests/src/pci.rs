//! Real devices without the hardware: configuration spaces of our writing, and beside each what a guest has to see.

mod checked;
mod devices;

pub use checked::Checked;
pub use devices::{Device, conventional, e1000e, igb};

use pollvisor::pci::HostConfig;
use pollvisor::{Error, Result};
use std::cell::{Cell, RefCell};

/// How a device answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Present,
    /// All ones, and writes are lost, as what has been pulled out.
    Vanished,
    /// With errors.
    Failing,
}

/// A device whose registers are memory, all of them writable: what must not be written is for the caller to compare.
#[derive(Debug)]
pub struct Scripted {
    /// The registers.
    pub bytes: RefCell<Vec<u8>>,
    /// How it answers from now on.
    pub mood: Cell<Mood>,
    /// The accesses that wrote something, in order.
    pub writes: RefCell<Vec<(u16, Vec<u8>)>>,
}

impl Scripted {
    /// A device with these registers, 256 or 4096 bytes of them.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: RefCell::new(bytes), mood: Cell::new(Mood::Present), writes: RefCell::new(Vec::new()) }
    }

    fn check(&self, offset: u16, length: usize) -> Result<usize> {
        let at = usize::from(offset);
        assert!(matches!(length, 1 | 2 | 4) && at.is_multiple_of(length), "{offset:#x}, {length} bytes");
        if self.mood.get() == Mood::Failing || at + length > self.bytes.borrow().len() {
            return Err(Error::new(format!("no register at {offset:#x}")));
        }
        Ok(at)
    }
}

impl HostConfig for Scripted {
    fn read(&self, offset: u16, data: &mut [u8]) -> Result<()> {
        let at = self.check(offset, data.len())?;
        data.copy_from_slice(&self.bytes.borrow()[at..at + data.len()]);
        if self.mood.get() == Mood::Vanished {
            data.fill(0xff);
        }
        Ok(())
    }

    fn write(&self, offset: u16, data: &[u8]) -> Result<()> {
        let at = self.check(offset, data.len())?;
        if self.mood.get() == Mood::Present {
            self.bytes.borrow_mut()[at..at + data.len()].copy_from_slice(data);
            self.writes.borrow_mut().push((offset, data.to_vec()));
        }
        Ok(())
    }

    fn size(&self) -> u16 {
        u16::try_from(self.bytes.borrow().len()).expect("at most 4096")
    }
}
