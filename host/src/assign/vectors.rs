//! One vector of an assigned device: its event, and who delivers it.
//!
//! ```text
//!   device ─► eventfd ─┬─ Poller: attached to a lane          masked: neither; the eventfd keeps count,
//!                      └─ Kernel: KVM_IRQFD                   and `take` brings that into the pending bit
//! ```
//! Changing hands is unbind, then bind: each side looks for an event that is already there when it begins (race 48).
//! The VFIO trigger is never touched for it.

use crate::error::Result;
use crate::interrupts::{Attach, Source};
use crate::platform::Parts;
use crate::source::Port;
use crate::sys::fd::EventFd;
use kvm_bindings::KVM_IRQFD_FLAG_DEASSIGN;
use pollvisor_core::ids::{Gsi, SourceId};
use pollvisor_core::inject::Accepted;
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::route::Msi;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

/// Who delivers a vector.
#[derive(Debug, Clone)]
pub enum Via {
    /// The poller behind this port, one that spins or one that sleeps.
    Poller(Arc<Port>),
    /// The kernel, by `KVM_IRQFD`.
    Kernel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    No,
    Polled(SourceId),
    Kernel,
}

/// See the module's text.
#[derive(Debug)]
pub struct Vector {
    event: Arc<EventFd>,
    gsi: Gsi,
    slot: u32,
    via: Via,
    bound: Bound,
    /// What was delivered, merged or dropped by control threads.
    counts: Outcome,
    /// Signals in the pending bit: of these one will be an interrupt.
    pending: u64,
}

impl Vector {
    /// A vector that nobody delivers yet. Its irqfd is counted in `slot`.
    ///
    /// # Errors
    /// EMFILE.
    pub fn new(gsi: Gsi, slot: u32, via: Via) -> Result<Self> {
        let event = Arc::new(EventFd::new()?);
        Ok(Self { event, gsi, slot, via, bound: Bound::No, counts: Outcome::default(), pending: 0 })
    }

    /// What the device signals.
    #[must_use]
    pub fn event(&self) -> &Arc<EventFd> {
        &self.event
    }

    /// Its GSI.
    #[must_use]
    pub fn gsi(&self) -> Gsi {
        self.gsi
    }

    /// The slot its irqfd is counted in.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// What control threads made of its signals.
    #[must_use]
    pub fn counts(&self) -> Outcome {
        self.counts
    }

    /// Whether somebody delivers it.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.bound != Bound::No
    }

    /// Has it delivered; its route is there already. Signals made before arrive, too.
    ///
    /// # Errors
    /// Those of an irqfd.
    pub fn bind(&mut self, parts: &Parts) -> Result<()> {
        if self.is_bound() {
            return Ok(());
        }
        self.bound = match &self.via {
            Via::Poller(port) => {
                let source = Source::Event(self.event.clone());
                let attach = Attach { source, gsi: self.gsi, port, resample: None, slot: Some(self.slot) };
                Bound::Polled(parts.interrupts.attach_with(attach)?)
            }
            Via::Kernel => {
                parts.routes.use_in_kernel(self.gsi, true)?;
                if let Err(error) = parts.vm.irqfd(self.event.as_fd().as_raw_fd(), self.gsi, 0, None) {
                    let _back = parts.routes.use_in_kernel(self.gsi, false);
                    return Err(error);
                }
                // What was there the kernel has injected, and left the count: nobody shall deliver that again.
                let signals = self.event.take();
                if signals > 0 {
                    self.counts += Outcome::of(signals, Some(Accepted::default()));
                }
                Bound::Kernel
            }
        };
        Ok(())
    }

    /// Ends its delivery: none is made any more when this returns. Signals stay in the event.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unbind(&mut self, parts: &Parts) -> Result<()> {
        match std::mem::replace(&mut self.bound, Bound::No) {
            Bound::No => Ok(()),
            Bound::Polled(id) => {
                parts.interrupts.detach(id);
                Ok(())
            }
            Bound::Kernel => {
                let fd = self.event.as_fd().as_raw_fd();
                let gone = parts.vm.irqfd(fd, self.gsi, KVM_IRQFD_FLAG_DEASSIGN, None);
                gone.and(parts.routes.use_in_kernel(self.gsi, false))
            }
        }
    }

    /// Hands it over to `via`, while the device may fire.
    ///
    /// # Errors
    /// When the new one does not take it; nobody delivers it then, and nothing is lost.
    pub fn hand_over(&mut self, parts: &Parts, via: Via) -> Result<()> {
        let bound = self.is_bound();
        self.unbind(parts)?;
        self.via = via;
        if bound { self.bind(parts) } else { Ok(()) }
    }

    /// Takes what waits in the event of a masked vector, for its pending bit; whether there was something.
    pub fn take(&mut self) -> bool {
        let signals = if self.is_bound() { 0 } else { self.event.take() };
        self.pending += signals;
        signals > 0
    }

    /// Sends the interrupt of its pending bit.
    pub fn send(&mut self, parts: &Parts, message: &Msi) {
        let signals = std::mem::take(&mut self.pending);
        if signals > 0 {
            self.counts +=
                Outcome::of(signals, (parts.vm.signal_msi(message) == Ok(true)).then(Accepted::default));
        }
    }

    /// What is pending goes: the guest asked to hear no more.
    pub fn drop_pending(&mut self) {
        self.take();
        let signals = std::mem::take(&mut self.pending);
        self.drop_signals(signals);
    }

    /// Counts signals that nobody delivers any more.
    pub fn drop_signals(&mut self, signals: u64) {
        self.counts += Outcome::of(signals, None);
    }
}
