//! KVM's GSI table, composed of what several owners have in it.

use crate::error::Result;
use crate::sys::kvm::VmFd;
use pollvisor_core::ids::Gsi;
use pollvisor_core::route::{Msi, RawRoute};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// See the module's text. Its lock is a leaf: nothing that waits for another thread of ours is done under it, so the
/// deferred worker may take it.
#[derive(Debug)]
pub struct KernelTable {
    fd: Arc<VmFd>,
    parts: Mutex<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    /// The pins of the kernel's own chips, or the ends of interrupt of ours.
    pins: Vec<RawRoute>,
    /// The messages of irqfds that are in the kernel.
    messages: BTreeMap<Gsi, Msi>,
}

impl KernelTable {
    /// An empty table of this VM; nothing is written before something is set.
    #[must_use]
    pub fn new(fd: Arc<VmFd>) -> Self {
        Self { fd, parts: Mutex::default() }
    }

    /// Sets what `pins` computes, under the lock: of two that compute at once, the later one's result stays.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_pins(&self, pins: impl FnOnce() -> Vec<RawRoute>) -> Result<()> {
        self.change(|parts| parts.pins = pins())
    }

    /// Sets, or takes out, messages.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_messages(&self, messages: &[(Gsi, Option<Msi>)]) -> Result<()> {
        self.change(|parts| {
            for (gsi, message) in messages {
                match message {
                    Some(message) => parts.messages.insert(*gsi, *message),
                    None => parts.messages.remove(gsi),
                };
            }
        })
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) -> Result<()> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut parts);
        let messages = parts.messages.iter().map(|(gsi, message)| RawRoute::msi(*gsi, *message));
        let routes: Vec<_> = parts.pins.iter().copied().chain(messages).collect();
        self.fd.set_gsi_routing(0, &routes)
    }
}
