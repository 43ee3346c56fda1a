//! The VM's interrupt chips as far as they are not the kernel's, and the two GSI tables.
//!
//! * [`KernelTable`] KVM's table, by which its irqfds deliver and a split irqchip knows which EOIs exit
//! * [`Routes`] whose GSIs are whose, and both tables kept in step
//! * [`SplitIoapic`] the core's I/O APIC on the guest's bus

mod ioapic;
mod kernel;
mod routes;

pub use ioapic::{IOAPIC_BASE, IoapicDevice, SplitIoapic};
pub use kernel::KernelTable;
pub use routes::Routes;
