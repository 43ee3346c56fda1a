//! The machine's ACPI tables: hardware-reduced, so that there is no SCI, no PM timer and no legacy chip to find.
//!
//! ```text
//!  RSDP ─► XSDT ─┬─ FADT ─► DSDT (PCI host bridge, serial port, power button, panic device)
//!                ├─ MADT    LAPICs, the I/O APIC
//!                └─ MCFG    ECAM
//! ```

use super::{ACPI, put};
use crate::chips::IOAPIC_BASE;
use crate::error::{Error, Result};
use crate::legacy::{PANIC_PORT, POWER_GSI, POWER_PORT, RESET, RESET_PORT, S5_TYPE, SERIAL_GSI, SERIAL_PORT};
use crate::pci::{ECAM_SIZE, SLOTS};
use crate::platform::{ECAM_BASE, MMIO32, MMIO64, PORTS, intx_pin};
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name,
    Notify, Package, PackageBuilder, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::{Aml, mcfg::MCFG, rsdp::Rsdp, sdt::Sdt, xsdt::XSDT};
use vm_memory::GuestMemoryMmap;

const OEM: [u8; 6] = *b"PLVSOR";
const TABLE: [u8; 8] = *b"POLLVSOR";
const REVISION: u32 = 1;
const LAPIC_BASE: u32 = 0xfee0_0000;

/// Writes the tables for `vcpus` vCPUs; where the RSDP is.
///
/// # Errors
/// When they do not fit.
pub fn write(memory: &GuestMemoryMmap, vcpus: u32) -> Result<u64> {
    let mut next = ACPI.start + 64;
    let mut place = |what: &str, table: Vec<u8>| -> Result<u64> {
        let at = next;
        next += (table.len() as u64).next_multiple_of(16);
        if next > ACPI.end {
            return Err(Error::new(format!("ACPI's tables for {vcpus} vCPUs do not fit {ACPI:#x?}")));
        }
        put(memory, what, at, &table)?;
        Ok(at)
    };
    let dsdt = place("the DSDT", dsdt())?;
    let tables = [("the FADT", fadt(dsdt)), ("the MADT", madt(vcpus)), ("the MCFG", mcfg())];
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    for (what, table) in tables {
        xsdt.add_entry(place(what, table)?);
    }
    let xsdt = place("the XSDT", bytes(&xsdt))?;
    put(memory, "the RSDP", ACPI.start, &bytes(&Rsdp::new(OEM, xsdt)))?;
    Ok(ACPI.start)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(port: u16) -> GAS {
    GAS::new(Space::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

fn fadt(dsdt: u64) -> Vec<u8> {
    const NO_VGA: u16 = 1 << 2;
    const NO_RTC: u16 = 1 << 5;
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (NO_VGA | NO_RTC).into();
    (fadt.reset_reg, fadt.reset_value) = (port(RESET_PORT), RESET);
    (fadt.sleep_control_reg, fadt.sleep_status_reg) = (port(POWER_PORT), port(POWER_PORT + 1));
    bytes(&fadt.finalize())
}

fn madt(vcpus: u32) -> Vec<u8> {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LAPIC_BASE));
    for id in 0..u8::try_from(vcpus).unwrap_or(u8::MAX) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    let base = u32::try_from(IOAPIC_BASE).unwrap_or(0);
    madt.add_structure(IoApic::new(0, base, 0));
    bytes(&madt)
}

fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(ECAM_BASE, 0, 0, 0);
    bytes(&mcfg)
}

/// An address of the 32-bit window or below it.
fn low(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}

fn dsdt() -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    let mut aml = Vec::new();
    host_bridge(&mut aml);
    resources(&mut aml);
    serial(&mut aml);
    power(&mut aml);
    panic_device(&mut aml);
    dsdt.append_slice(&aml);
    dsdt.as_slice().to_vec()
}

fn host_bridge(aml: &mut Vec<u8>) {
    // (address, pin, no link device, GSI): all four pins of a slot are one.
    let mut routes = PackageBuilder::new();
    for slot in 0..SLOTS {
        for pin in 0..4u8 {
            let address = u32::from(slot) << 16 | 0xffff;
            let gsi = u32::from(intx_pin(slot));
            routes.add_element(&Package::new(vec![&address, &pin, &0u8, &gsi]));
        }
    }
    let memory = |range: std::ops::Range<u64>| {
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, range.start, range.end - 1, None)
    };
    let low_memory = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        low(MMIO32.start),
        low(MMIO32.end - 1),
        None,
    );
    Scope::new(
        Path::new("\\_SB_"),
        vec![&Device::new(
            Path::new("PCI0"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
                &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
                &Name::new(Path::new("_UID"), &0u8),
                &Name::new(Path::new("_SEG"), &0u8),
                &Name::new(Path::new("_BBN"), &0u8),
                &Name::new(Path::new("_CCA"), &1u8),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![
                        &AddressSpace::new_bus_number(0u16, 0),
                        &IO::new(0xcf8, 0xcf8, 1, 8),
                        &AddressSpace::new_io(PORTS.start, PORTS.end - 1, None),
                        &low_memory,
                        &memory(MMIO64),
                    ]),
                ),
                &Name::new(Path::new("_PRT"), &routes),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// What no other device has: a kernel wants ECAM to be somebody's.
fn resources(aml: &mut Vec<u8>) {
    let ecam = Memory32Fixed::new(true, low(ECAM_BASE), low(ECAM_SIZE));
    Scope::new(
        Path::new("\\_SB_"),
        vec![&Device::new(
            Path::new("MBRD"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
                &Name::new(Path::new("_UID"), &0u8),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&ecam, &IO::new(POWER_PORT, POWER_PORT, 1, 8)]),
                ),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

fn serial(aml: &mut Vec<u8>) {
    Scope::new(
        Path::new("\\_SB_"),
        vec![&Device::new(
            Path::new("COM1"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &0u8),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![
                        &Interrupt::new(true, true, false, false, SERIAL_GSI),
                        &IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8),
                    ]),
                ),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// The button, and the device whose interrupt says that it was pressed (ACPI 6.5, 5.6.9).
fn power(aml: &mut Vec<u8>) {
    Name::new(Path::new("\\_S5_"), &Package::new(vec![&S5_TYPE, &0u8, &0u8, &0u8])).to_aml_bytes(aml);
    let button = Path::new("\\_SB_.PWRB");
    Scope::new(
        Path::new("\\_SB_"),
        vec![
            &Device::new(
                Path::new("PWRB"),
                vec![
                    &Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C")),
                    &Name::new(Path::new("_UID"), &0u8),
                ],
            ),
            &Device::new(
                Path::new("GED_"),
                vec![
                    &Name::new(Path::new("_HID"), &"ACPI0013"),
                    &Name::new(Path::new("_UID"), &0u8),
                    &Name::new(
                        Path::new("_CRS"),
                        &ResourceTemplate::new(vec![&Interrupt::new(true, true, false, false, POWER_GSI)]),
                    ),
                    &Method::new(Path::new("_EVT"), 1, true, vec![&Notify::new(&button, &PRESSED)]),
                ],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// What a button's notification means (ACPI 6.5, 4.8.3.1).
const PRESSED: u8 = 0x80;

/// QEMU's pvpanic, for which Linux has a driver.
fn panic_device(aml: &mut Vec<u8>) {
    Scope::new(
        Path::new("\\_SB_"),
        vec![&Device::new(
            Path::new("PEVT"),
            vec![
                &Name::new(Path::new("_HID"), &"QEMU0001"),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&IO::new(PANIC_PORT, PANIC_PORT, 1, 1)]),
                ),
                &Name::new(Path::new("_STA"), &0xfu8),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fadt_says_where_to_switch_off_and_reset() {
        let fadt = fadt(0x1234);
        // ACPI 6.5, table 5.9: offsets of the reset register, its value, and the sleep registers.

        assert_eq!(fadt[116..129], [1, 8, 0, 1, 2, 6, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(fadt[244..256], [1, 8, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[256..268], [1, 8, 0, 1, 1, 6, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0);
    }
}
