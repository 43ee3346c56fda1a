//! The core's I/O APIC where KVM has only the LAPICs: what it delivers goes out by `KVM_SIGNAL_MSI`, what has to come back
//! is told to KVM by routes, and the guest's registers are on the bus.
//!
//! ```text
//!  deferred worker: pin(up) ─► chip ─► Deliver ─► KVM_SIGNAL_MSI            chip lock given back before every call out
//!  vCPU: EOI exit ─► chip.eoi ─► resamplers told (they lower the pin) ─► chip.eoi_done ─► Deliver again, if still up
//! ```
//! Routes go to KVM before an interrupt that needs them to be ended.

use super::KernelTable;
use crate::accel::kvm::{EOI_GSI, EOI_GSIS};
use crate::bus::Device;
use crate::complaints::Complaints;
use crate::error::{Error, Result};
use crate::interrupts::Interrupts;
use crate::sys::kvm::VmFd;
use pollvisor_core::ids::Gsi;
use pollvisor_core::inject::{InjectError, LineSource};
use pollvisor_core::ioapic::{Deliver, Effects, Ioapic, PINS, Pin, PinSet, Version, eoi_route};
use pollvisor_core::route::{Chip, IOAPIC_PINS, RawRoute};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Where the guest finds it.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;

/// How long a pin in a storm of EOIs waits (`IOAPIC_SUCCESSIVE_IRQ_MAX_COUNT` of KVM).
const STORM_PAUSE: Duration = Duration::from_millis(10);

/// The chip and its way out. See the module's text.
#[derive(Debug)]
pub struct SplitIoapic {
    chip: Mutex<Ioapic>,
    /// How many want a pin's ends of interrupt.
    resamplers: Mutex<[u32; PINS]>,
    fd: Arc<VmFd>,
    table: Arc<KernelTable>,
    /// Wakes the thread that ends a storm's pause. Not a vCPU's own: what that starts would be on its CPU, at its priority.
    storm: SyncSender<()>,
}

impl SplitIoapic {
    /// A chip as it comes out of reset, and the thread of its pauses, which ends with it.
    ///
    /// # Errors
    /// When threads run out.
    pub fn new(fd: Arc<VmFd>, table: Arc<KernelTable>) -> Result<Arc<Self>> {
        // One that waits is for all pins.
        let (storm, storms) = mpsc::sync_channel(1);
        let chip = Arc::new(Self {
            chip: Mutex::new(Ioapic::new(Version::V11)),
            resamplers: Mutex::new([0; PINS]),
            fd,
            table,
            storm,
        });
        let this = Arc::downgrade(&chip);
        let thread = crate::pin::thread("pv-ioapic").spawn(move || {
            while storms.recv().is_ok() {
                std::thread::sleep(STORM_PAUSE);
                let Some(this) = Weak::upgrade(&this) else { return };
                let effects = this.lock().inject_delayed();
                let _sent = this.settle(&effects);
            }
        });
        thread.map_err(|e| Error::os("starting pv-ioapic", &e))?;
        Ok(chip)
    }

    fn lock(&self) -> MutexGuard<'_, Ioapic> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets one source's level on a pin.
    ///
    /// # Errors
    /// ENXIO for another chip's pin; what KVM answers.
    pub fn set_line(
        &self,
        chip: Chip,
        pin: u32,
        level: bool,
        source: LineSource,
    ) -> std::result::Result<(), InjectError> {
        let pin = u8::try_from(pin).ok().and_then(|pin| Pin::new(pin).ok()).filter(|_| chip == Chip::Ioapic);
        let pin = pin.ok_or(InjectError::Failed(libc::ENXIO))?;
        let source = match source {
            LineSource::Edge => 0,
            LineSource::Resample => 1,
        };
        let line = self.lock().set_line(pin, source, level);
        let line = line.map_err(|_| InjectError::Failed(libc::EINVAL))?;
        self.send(line.deliver())
    }

    /// One more, or one less, wants a pin's ends of interrupt.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_resampler(&self, pin: Pin, wanted: bool) -> Result<()> {
        let mut resamplers = self.resamplers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = &mut resamplers[usize::from(pin.number())];
        *count = if wanted { *count + 1 } else { count.saturating_sub(1) };
        let changed = self.lock().set_resampler(pin, *count > 0);
        drop(resamplers);
        if changed { self.publish() } else { Ok(()) }
    }

    /// A vCPU ended the interrupt of `vector`.
    ///
    /// # Errors
    /// The kernel's, when a route cannot be set.
    pub fn eoi(&self, interrupts: &Interrupts, vector: u8) -> Result<()> {
        let acked = self.lock().eoi(vector);
        for pin in acked.pins().iter() {
            interrupts.ack_pin(Chip::Ioapic, pin.number().into());
        }
        let effects = self.lock().eoi_done(acked);
        self.settle(&effects)
    }

    fn settle(&self, effects: &Effects) -> Result<()> {
        if effects.eoi_vectors_changed || !is_empty(effects.routes) {
            self.publish()?;
        }
        if effects.delayed {
            // One in ten thousand interrupts of a guest that does not quiet its device. Full: one is about to begin.
            let _begun = self.storm.try_send(());
        }
        // An interrupt that nobody took is kept by the chip; there is nobody to tell.
        let _sent = self.send(effects.deliver.iter().copied());
        Ok(())
    }

    /// Injects, and tells the chip what nobody took.
    fn send(&self, due: impl IntoIterator<Item = Deliver>) -> std::result::Result<(), InjectError> {
        let (mut changed, mut result) = (false, Ok(()));
        for deliver in due {
            match self.fd.signal_msi(&deliver.message.into()) {
                // EPERM, that no LAPIC has the ID, is a delivery to the kernel's chip, and so to ours.
                Ok(true) | Err(libc::EPERM) => {}
                Ok(false) => {
                    changed |= self.lock().refused(&deliver);
                    result = Err(InjectError::Blocked);
                }
                Err(errno) => result = Err(InjectError::Failed(errno)),
            }
        }
        if changed && self.publish().is_err() {
            return Err(InjectError::Failed(libc::EIO));
        }
        result
    }

    /// Tells KVM which EOIs are to exit.
    fn publish(&self) -> Result<()> {
        self.table.set_pins(|| {
            let chip = self.lock();
            let pins = (0..IOAPIC_PINS).filter_map(|n| {
                let message = chip.route(Pin::new(u8::try_from(n).ok()?).ok()?)?;
                Some(RawRoute::msi(Gsi(n), message.into()))
            });
            let mut routes: Vec<_> = pins.collect();
            let unrouted = chip.unrouted_eoi_vectors();
            let gsis = EOI_GSI..EOI_GSI + EOI_GSIS;
            routes.extend(
                gsis.zip(unrouted.iter()).map(|(gsi, v)| RawRoute::msi(Gsi(gsi), eoi_route(v).into())),
            );
            routes
        })
    }
}

fn is_empty(pins: PinSet) -> bool {
    pins == PinSet::EMPTY
}

/// The chip's registers on the guest's bus.
#[derive(Debug)]
pub struct IoapicDevice {
    chip: Arc<SplitIoapic>,
    /// Whose resamplers hear of its EOIs.
    interrupts: Arc<Interrupts>,
    complaints: Complaints,
}

impl IoapicDevice {
    /// The registers of `chip`; the resamplers are those of `interrupts`.
    #[must_use]
    pub fn new(chip: Arc<SplitIoapic>, interrupts: Arc<Interrupts>) -> Self {
        Self { chip, interrupts, complaints: Complaints::default() }
    }
}

impl Device for IoapicDevice {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let _zeros_where_nothing_is = self.chip.lock().read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let written = self.chip.lock().write(offset, data);
        if (written.eoi_vectors_changed || !is_empty(written.routes))
            && let Err(error) = self.chip.publish()
        {
            self.complaints.say(&"the guest's I/O APIC", &error);
        }
        if let Some(pin) = written.resample {
            self.interrupts.ack_pin(Chip::Ioapic, pin.number().into());
        }
        // An interrupt that nobody took is kept by the chip.
        let _sent = self.chip.send(written.deliver);
        if let Some(acked) = written.eoi {
            for pin in acked.pins().iter() {
                self.interrupts.ack_pin(Chip::Ioapic, pin.number().into());
            }
            let effects = self.chip.lock().eoi_done(acked);
            let _settled = self.chip.settle(&effects);
        }
    }
}
