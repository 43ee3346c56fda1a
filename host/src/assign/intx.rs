//! INTx of an assigned device: a level that VFIO masks on arrival and the guest's end of interrupt unmasks.
//!
//! ```text
//!  device ─► VFIO: mask, eventfd ─► irqfd ─► I/O APIC pin up ─► guest ─► EOI ─► pin down, resample eventfd ─► VFIO: unmask
//!                    ▲───────────────────────────────── still asserted: fires again ─────────────────────────────┘
//! ```
//! A device that cannot be unmasked by an eventfd, as many mediated ones, is unmasked by the fleet's thread, which hears it.
//!
//! The end of interrupt is the guest's own. With the chips in the kernel only a resampling irqfd of the kernel's hears
//! of it; with ours, only a lane's.

use super::vectors::Via;
use crate::accel::kvm::line_of;
use crate::error::{Error, Result};
use crate::interrupts::{Attach, Source};
use crate::platform::Parts;
use crate::sys::fd::EventFd;
use kvm_bindings::{KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE};
use pollvisor_core::ids::{Gsi, SourceId};
use pollvisor_core::ioapic::Pin;
use pollvisor_core::route::Chip;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

/// See the module's text.
#[derive(Debug)]
pub struct Intx {
    event: Arc<EventFd>,
    unmask: Arc<EventFd>,
    pin: Pin,
    slot: u32,
    via: Via,
    bound: Option<Bound>,
}

#[derive(Debug)]
enum Bound {
    Polled(SourceId),
    Kernel(Gsi),
}

impl Intx {
    /// A line on a pin of the I/O APIC that nobody delivers yet.
    ///
    /// # Errors
    /// EMFILE.
    pub fn new(pin: Pin, slot: u32, via: Via) -> Result<Self> {
        let (event, unmask) = (Arc::new(EventFd::new()?), Arc::new(EventFd::new()?));
        Ok(Self { event, unmask, pin, slot, via, bound: None })
    }

    /// What VFIO signals.
    #[must_use]
    pub fn event(&self) -> &Arc<EventFd> {
        &self.event
    }

    /// What unmasks it.
    #[must_use]
    pub fn unmask(&self) -> &Arc<EventFd> {
        &self.unmask
    }

    /// Has it delivered.
    ///
    /// # Errors
    /// Those of an irqfd; a way that does not hear of the guest's ends of interrupt.
    pub fn bind(&mut self, parts: &Parts) -> Result<()> {
        let pin = self.pin.number();
        self.bound = Some(match (&self.via, &parts.ioapic) {
            (Via::Poller(port), Some(ioapic)) => {
                ioapic.set_resampler(self.pin, true)?;
                let source = Source::Event(self.event.clone());
                let resample = Some(self.unmask.clone());
                let attach = Attach { source, gsi: Gsi(pin.into()), port, resample, slot: Some(self.slot) };
                let attached = parts.interrupts.attach_with(attach);
                if attached.is_err() {
                    ioapic.set_resampler(self.pin, false)?;
                }
                Bound::Polled(attached?)
            }
            (Via::Kernel, None) => {
                let gsi = line_of(Chip::Ioapic, pin.into());
                let [event, unmask] = [&self.event, &self.unmask].map(|event| event.as_fd().as_raw_fd());
                parts.vm.irqfd(event, gsi, KVM_IRQFD_FLAG_RESAMPLE, Some(unmask))?;
                Bound::Kernel(gsi)
            }
            (Via::Kernel, Some(_)) => {
                return Err(Error::new("INTx by irqfd needs the I/O APIC in the kernel")
                    .remedy("--irqchip kernel, or polled delivery"));
            }
            (Via::Poller(_), None) => {
                return Err(Error::new("INTx by a poller needs the I/O APIC in user space: the kernel's tells nobody else of an end of interrupt")
                    .remedy("--irqchip split, or irqfd delivery"));
            }
        });
        Ok(())
    }

    /// Ends its delivery; the line is low when this returns.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unbind(&mut self, parts: &Parts) -> Result<()> {
        match self.bound.take() {
            None => Ok(()),
            Some(Bound::Polled(id)) => {
                parts.interrupts.detach(id);
                parts.ioapic.as_ref().map_or(Ok(()), |ioapic| ioapic.set_resampler(self.pin, false))
            }
            Some(Bound::Kernel(gsi)) => {
                let [event, unmask] = [&self.event, &self.unmask].map(|event| event.as_fd().as_raw_fd());
                let flags = KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE;
                parts.vm.irqfd(event, gsi, flags, Some(unmask))
            }
        }
    }
}
