//! The kernel's sample of a mediated device (samples/vfio-mdev/mtty.c): a 16550 in eight ports, whose sender is wired to its
//! receiver.

use super::{Access, Device, Kind, checked};
use pollvisor::error::{Error, Result};

const DATA: u64 = 0;
const INTERRUPTS: u64 = 1;
/// Read: what interrupts. Written: the FIFO's control.
const CAUSE: u64 = 2;
const LINE: u64 = 3;
const MODEM: u64 = 4;
const STATUS: u64 = 5;

const RECEIVED: u8 = 1;
const SENT: u8 = 2;
const MODEM_CHANGED: u8 = 8;
/// The FIFO on, both sides emptied, an interrupt at the first byte.
const FIFO: u8 = 7;
const OUT2: u8 = 8;
const HAS_DATA: u8 = 1;

/// The device. Its interrupt is a pulse on whatever it is set up as: what comes while its INTx is masked is lost, in the device.
#[derive(Debug, Default)]
pub struct Mtty {
    raised: u64,
}

/// The three causes, in turn.
#[derive(Debug, Clone, Copy)]
enum Cause {
    Received(u8),
    Sent,
    Modem,
}

impl Mtty {
    /// One that is not set up.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn cause(&self) -> Cause {
        match self.raised % 3 {
            0 => Cause::Received(u8::try_from(self.raised % 251).unwrap_or(0)),
            1 => Cause::Sent,
            _ => Cause::Modem,
        }
    }
}

fn get(io: &mut dyn Access, register: u64) -> u8 {
    u8::try_from(io.read(0, register, 1)).unwrap_or(0xff)
}

fn set(io: &mut dyn Access, register: u64, value: u8) {
    io.write(0, register, 1, value.into());
}

impl Device for Mtty {
    fn name(&self) -> &'static str {
        "mtty"
    }

    /// VFIO offers MSI too, but the configuration space has no capability to set it up by.
    fn vectors(&self, kind: Kind) -> u16 {
        u16::from(kind == Kind::Intx)
    }

    fn counts_exactly(&self) -> bool {
        true
    }

    fn set_up(&mut self, io: &mut dyn Access, _kind: Kind, _memory: u64) -> Result<()> {
        self.quiet(io)?;
        set(io, INTERRUPTS, RECEIVED | MODEM_CHANGED);
        Ok(())
    }

    fn raise(&mut self, io: &mut dyn Access, vector: u16) -> Result<()> {
        checked(self.name(), vector, 1)?;
        match self.cause() {
            Cause::Received(byte) => set(io, DATA, byte),
            // Nothing is being sent, so it interrupts as soon as it may.
            Cause::Sent => set(io, INTERRUPTS, RECEIVED | SENT | MODEM_CHANGED),
            Cause::Modem => set(io, MODEM, OUT2),
        }
        Ok(())
    }

    fn acknowledge(&mut self, io: &mut dyn Access, _vector: u16) -> Result<()> {
        let cause = self.cause();
        self.raised += 1;
        let found = get(io, CAUSE) & 0xf;
        let told = |what: String| Err(Error::new(format!("mtty: {cause:?}: {what}")));
        match cause {
            Cause::Received(byte) => {
                let (status, data) = (get(io, STATUS), get(io, DATA));
                if found != 4 || status & HAS_DATA == 0 || data != byte || get(io, STATUS) & HAS_DATA != 0 {
                    return told(format!("cause {found:#x}, status {status:#x}, received {data:#x}"));
                }
            }
            Cause::Sent => {
                set(io, INTERRUPTS, RECEIVED | MODEM_CHANGED);
                if found != 2 {
                    return told(format!("cause {found:#x}"));
                }
            }
            // It says nothing of this one.
            Cause::Modem => set(io, MODEM, 0),
        }
        Ok(())
    }

    fn silence(&self) -> Option<(u64, u32)> {
        None
    }

    fn quiet(&mut self, io: &mut dyn Access) -> Result<()> {
        set(io, LINE, 0);
        set(io, INTERRUPTS, 0);
        set(io, MODEM, 0);
        set(io, CAUSE, FIFO);
        Ok(())
    }
}
