//! GSI routing: what an interrupt line number means to the guest.
//!
//! [`RawRoute`] is what a caller hands in, with every mistake the kernel's `KVM_SET_GSI_ROUTING` refuses still in
//! it; [`RouteTable::build`] is the one place that refuses them. A table is replaced whole
//! ([`crate::irqfd::Irqfds::set_routes`]): build, publish under the irqfd lock, refresh every irqfd's copy, unlock,
//! grace period. Once that returns nothing is delivered by the old table, neither by a poller nor by the
//! deferred worker (D2).
//!
//! The kernel knows two types more, the synthetic interrupts of Hyper-V (4) and Xen (5); here they are unknown. And its
//! table is not empty at birth where all chips are in the kernel: it has the PC's lines.
//!
//! Sources: `virt/kvm/irqchip.c` `kvm_set_irq_routing`, `setup_routing_entry`; `arch/x86/kvm/irq.c`
//! `kvm_set_routing_entry`, `kvm_msi_route_invalid`.

mod msi;
mod table;
#[cfg(all(test, not(loom)))]
mod tests;

pub use msi::Msi;
pub(crate) use msi::{WORDS, pack, unpack};
pub use table::RouteTable;

use crate::{Errno, ids::Gsi};

/// Routes in a table, and GSIs that can have one (`KVM_MAX_IRQ_ROUTES`).
pub const MAX_ROUTES: usize = if cfg!(loom) { 4 } else { 4096 };
/// Entries one GSI can have: one per interrupt chip.
pub const MAX_PER_GSI: usize = 3;
/// Pins of the I/O APIC.
pub const IOAPIC_PINS: u32 = 24;
/// Pins of one 8259.
pub const PIC_PINS: u32 = 8;

/// Where the VM's interrupt chips live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irqchip {
    /// None in the kernel: no routing, no irqfd.
    None,
    /// LAPIC, I/O APIC and both PICs in the kernel.
    Kernel,
    /// The LAPICs in the kernel, the I/O APIC in user space (`KVM_CAP_SPLIT_IRQCHIP`).
    Split,
}

/// An interrupt chip that a route names (`KVM_IRQCHIP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Chip {
    /// The first 8259.
    PicMaster = 0,
    /// The second 8259.
    PicSlave = 1,
    /// The I/O APIC.
    Ioapic = 2,
}

/// One destination of a GSI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A message to a LAPIC.
    Msi(Msi),
    /// A pin of a chip; the second PIC's pins count from 0 here.
    Pin {
        /// The chip.
        chip: Chip,
        /// Its pin.
        pin: u32,
    },
}

/// The form of an MSI route, and the only entry flag there is.
pub const FLAG_VALID_DEVID: u32 = 1;
/// `KVM_IRQ_ROUTING_IRQCHIP`.
pub const TYPE_IRQCHIP: u32 = 1;
/// `KVM_IRQ_ROUTING_MSI`.
pub const TYPE_MSI: u32 = 2;

/// One unchecked entry, field by field `struct kvm_irq_routing_entry`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawRoute {
    /// The GSI.
    pub gsi: u32,
    /// [`TYPE_IRQCHIP`], [`TYPE_MSI`], or a mistake.
    pub kind: u32,
    /// [`FLAG_VALID_DEVID`] on an MSI, else 0.
    pub flags: u32,
    /// MSI: address low, address high, data, device. Chip: chip, pin.
    pub words: [u32; 4],
}

impl RawRoute {
    /// `gsi` sends `msi`.
    #[must_use]
    pub fn msi(gsi: Gsi, msi: Msi) -> Self {
        Self {
            gsi: gsi.0,
            kind: TYPE_MSI,
            flags: if msi.devid.is_some() { FLAG_VALID_DEVID } else { 0 },
            words: [msi.address_lo, msi.address_hi, msi.data, msi.devid.unwrap_or(0)],
        }
    }

    /// `gsi` drives `pin` of `chip`.
    #[must_use]
    pub fn pin(gsi: Gsi, chip: Chip, pin: u32) -> Self {
        Self { gsi: gsi.0, kind: TYPE_IRQCHIP, flags: 0, words: [chip as u32, pin, 0, 0] }
    }
}

/// What is wrong with a routing table. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// The VM has no interrupt chip in the kernel.
    NoIrqchip,
    /// More than [`MAX_ROUTES`] entries.
    TooMany {
        /// How many there were.
        count: usize,
    },
    /// Table flags: there are none.
    TableFlags(u32),
    /// Something about one entry.
    Entry {
        /// Its place in the list.
        index: usize,
        /// Its mistake.
        fault: EntryFault,
    },
}

/// What is wrong with one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryFault {
    /// The GSI is [`MAX_ROUTES`] or more.
    GsiRange(u32),
    /// A flag that this type does not have.
    Flags(u32),
    /// Neither an MSI nor an interrupt chip's pin.
    UnknownType(u32),
    /// This GSI drives this chip already.
    ChipTwice,
    /// An MSI shares its GSI with nothing.
    MsiShared,
    /// A chip entry, and the chips are not in the kernel.
    ChipOnSplit,
    /// No such chip.
    UnknownChip(u32),
    /// No such pin of that chip.
    PinRange(u32),
    /// Bits 7:0 of `address_hi` in the x2APIC format.
    AddressHi(u32),
}

impl RouteError {
    /// The number the kernel answers with.
    #[must_use]
    pub const fn errno(self) -> Errno {
        Errno::EINVAL
    }
}

impl core::fmt::Display for RouteError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoIrqchip => f.write_str("the VM has no interrupt chip to route to"),
            Self::TooMany { count } => write!(f, "{count} routes; at most {MAX_ROUTES} fit"),
            Self::TableFlags(flags) => write!(f, "table flags {flags:#x}; there are none"),
            Self::Entry { index, fault } => write!(f, "route {index}: {fault}"),
        }
    }
}

impl core::fmt::Display for EntryFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::GsiRange(gsi) => write!(f, "GSI {gsi} is not below {MAX_ROUTES}"),
            Self::Flags(flags) => write!(f, "flags {flags:#x} do not go with this type"),
            Self::UnknownType(kind) => write!(f, "unknown type {kind}"),
            Self::ChipTwice => f.write_str("its GSI drives that chip already"),
            Self::MsiShared => f.write_str("an MSI cannot share its GSI"),
            Self::ChipOnSplit => f.write_str("a chip's pin, but the chips are in user space (split irqchip)"),
            Self::UnknownChip(chip) => write!(f, "unknown chip {chip}"),
            Self::PinRange(pin) => write!(f, "the chip has no pin {pin}"),
            Self::AddressHi(hi) => {
                write!(f, "address_hi {hi:#x}: bits 7:0 are reserved in the x2APIC format")
            }
        }
    }
}

impl core::error::Error for RouteError {}
