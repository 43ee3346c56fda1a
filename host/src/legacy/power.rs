//! ACPI's sleep and reset registers, pvpanic's, and the power button.

use super::ending::{End, Ending};
use super::{PANIC_PORT, POWER_GSI, POWER_PORT, RESET, RESET_PORT, S5_TYPE, edge};
use crate::bus::{Buses, Device};
use crate::error::Result;
use crate::interrupts::Interrupts;
use std::sync::Arc;

/// `SLP_EN` with S5 in `SLP_TYP` (ACPI 6.5, 4.8.3.7).
const SLEEP_S5: u8 = 1 << 5 | S5_TYPE << 2;
const SLEEP_BITS: u8 = 1 << 5 | 7 << 2;
/// `PVPANIC_PANICKED`, the one event that is offered.
const PANICKED: u8 = 1;

/// The registers. They say what the guest wants, and hold nothing.
#[derive(Debug)]
pub struct Power(Arc<Ending>);

impl Power {
    /// Puts them on the bus.
    ///
    /// # Errors
    /// When something is there.
    pub fn add(buses: &Buses, ending: &Arc<Ending>) -> Result<()> {
        buses.add_ports(POWER_PORT, 3, Arc::new(Self(ending.clone())))?;
        buses.add_ports(PANIC_PORT, 1, Arc::new(Panic(ending.clone())))
    }
}

impl Device for Power {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [value, ..]) if value & SLEEP_BITS == SLEEP_S5 => self.0.end(End::Shutdown),
            (at, &[RESET, ..]) if at == u64::from(RESET_PORT - POWER_PORT) => self.0.end(End::Reboot),
            _ => {}
        }
    }
}

#[derive(Debug)]
struct Panic(Arc<Ending>);

impl Device for Panic {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(PANICKED);
    }
    fn write(&self, _: u64, data: &[u8]) {
        if data.first().is_some_and(|event| event & PANICKED != 0) {
            self.0.end(End::Panic);
        }
    }
}

/// Presses the power button. A guest that does not listen does nothing.
pub fn press_button(interrupts: &Interrupts) {
    let _nobody_listens = edge(interrupts, POWER_GSI);
}

#[cfg(test)]
mod tests {
    use super::super::Wish;
    use super::*;
    use crate::sys::kvm::Exit;
    use std::time::Duration;

    fn written(port: u16, data: &[u8]) -> Wish {
        let (buses, ending) = (Buses::default(), Arc::new(Ending::default()));
        Power::add(&buses, &ending).expect("free");
        buses.serve(&mut Exit::PortWrite { port, size: data.len(), data });
        ending.wait(Duration::ZERO)
    }

    #[test]
    fn registers_end_a_guest_only_with_their_values() {
        assert_eq!(written(POWER_PORT, &[0x34]), Wish::Ended(End::Shutdown));
        assert_eq!(written(RESET_PORT, &[1]), Wish::Ended(End::Reboot));
        assert_eq!(written(PANIC_PORT, &[1]), Wish::Ended(End::Panic));
        for (port, value) in [(POWER_PORT, 0x14), (POWER_PORT, 0x30), (RESET_PORT, 0), (POWER_PORT + 1, 0x34)]
        {
            assert_eq!(written(port, &[value]), Wish::Nothing, "{port:#x} {value:#x}");
        }
        assert_eq!(written(PANIC_PORT, &[2]), Wish::Nothing);
    }
}
