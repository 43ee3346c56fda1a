//! The few old devices that a distribution's kernel finds: a serial port, registers to switch off and start again, and
//! one to tell of a panic.

mod ending;
mod power;
mod serial;

pub use ending::{End, Ending, Wish};
pub use power::{Power, press_button};
pub use serial::{Console, Serial};

/// The first serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its interrupt, by edge.
pub const SERIAL_GSI: u32 = 4;
/// ACPI's sleep control register; its status register is the next.
pub const POWER_PORT: u16 = 0x600;
/// ACPI's reset register.
pub const RESET_PORT: u16 = POWER_PORT + 2;
/// What resets, written there.
pub const RESET: u8 = 1;
/// The power button's interrupt, by edge.
pub const POWER_GSI: u32 = 9;
/// What S5 is called in the sleep control register.
pub const S5_TYPE: u8 = 5;
/// QEMU's pvpanic.
pub const PANIC_PORT: u16 = 0x505;

use crate::interrupts::Interrupts;
use pollvisor_core::inject::{Inject, InjectError, LineSource};
use pollvisor_core::route::Chip;

/// An edge on a pin of the I/O APIC. Blocked: the guest has it masked, or its processor has one waiting.
fn edge(interrupts: &Interrupts, gsi: u32) -> std::result::Result<(), InjectError> {
    let raised = interrupts.inject().pin(Chip::Ioapic, gsi, true, LineSource::Edge);
    interrupts.inject().pin(Chip::Ioapic, gsi, false, LineSource::Edge).and(raised)
}
