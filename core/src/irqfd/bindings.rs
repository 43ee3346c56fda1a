//! Who has which eventfd: an irqfd is an exclusive waiter, whichever VM it belongs to (race 11).

use super::AssignError;
use crate::ids::EventKey;
use crate::sync::SpinLock;
use heapless::index_set::FnvIndexSet;

/// Eventfds that can be bound at once, over all VMs of a process.
pub const MAX_BINDINGS: usize = if cfg!(loom) { 8 } else { 8192 };

/// The register of bound eventfds. There is one for all VMs, polled or in-kernel. Its lock is a leaf.
#[derive(Debug, Default)]
pub struct Bindings {
    bound: SpinLock<FnvIndexSet<EventKey, MAX_BINDINGS>>,
}

impl Bindings {
    /// An empty register.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes `key` for the caller.
    ///
    /// # Errors
    /// `Busy` when somebody has it, `NoMemory` when the register is full.
    pub fn claim(&self, key: EventKey) -> Result<(), AssignError> {
        match self.bound.lock().insert(key) {
            Ok(true) => Ok(()),
            Ok(false) => Err(AssignError::Busy),
            Err(_) => Err(AssignError::NoMemory),
        }
    }

    /// Gives `key` back; false when nobody had it.
    pub fn release(&self, key: EventKey) -> bool {
        self.bound.lock().remove(&key)
    }

    /// How many eventfds are bound.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bound.lock().len()
    }

    /// Whether none is bound.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
