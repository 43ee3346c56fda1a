//! The interrupts of an assigned device, from the host's line to the guest's.
//!
//! | kind | masked on arrival | delivery | where |
//! |---|---|---|---|
//! | INTx | yes, until the guest's ack | raise and lower a level | [`intx_next`], [`IntxLine`] |
//! | MSI, MSI-X | never | one edge, at once or deferred | [`Vectors`], [`VectorMap`] |
//!
//! [`validate`] says what SET_IRQS may ask; [`IrqGate`] is what its work is done in; [`Slot`] holds one trigger
//! (unmask event, error, request) that several want to clear.

mod host_line;
mod intx;
mod irq_type;
mod owed;
pub mod set_irqs;
mod slot;
#[cfg(all(test, not(loom)))]
mod tests;
mod vectors;

pub use host_line::{IntxHost, IntxLine, Level, LineClosing, LineFreed};
pub use intx::{IntxEvent, IntxIllegal, IntxState, intx_next};
pub use irq_type::{DeviceReleased, InGate, IrqGate, IrqType, Kind, TypeEvent, WrongType};
pub use owed::{Action, Owed};
pub use set_irqs::{Described, Header, Request, SetIrqsError, Single, Which, validate};
pub use slot::{Occupant, Slot, SlotError};
pub use vectors::{Arrival, Deferred, Enabled, MapError, VectorMap, Vectors, VectorsError, WouldBlock};
