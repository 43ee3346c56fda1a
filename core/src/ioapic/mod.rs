//! The 82093AA I/O APIC in user space, for KVM's *split* irqchip: 24 pins, register for register as the datasheet
//! has it, bit for bit as KVM's in-kernel one answers.
//!
//! It sends nothing itself. Every call that can produce an interrupt returns it ([`Deliver`]), and whoever holds
//! the lock around the [`Ioapic`] injects after giving the lock back.
//!
//! ```text
//!  device A (level)     device B (level)         poller / vCPU that writes     vCPU's EOI exit
//!  set_line(pin, a, 0)  set_line(pin, b, 1)      write(IOWIN)                  eoi(v) ─► Acked: lower, unmask
//!  └─ one &mut step: sources ─OR─► level ─► irr ─► entry ─► Deliver            eoi_done(Acked) ─► Deliver again
//!                                                                                           if the line is still up
//! ```
//! **Race 4.** A pin's level is the OR of its sources, and changing one and acting on the OR is one `&mut` step:
//! no one can read 0, lose the lock, and write 0 over somebody else's 1.
//!
//! **Race 20.** A pin with a resampler ([`Ioapic::set_resampler`]) whose pending level becomes deliverable by a
//! register write is not delivered: its pending bit is cleared and [`Written::resample`] names it. The owner
//! lowers its source (also when it is down: that looks at the pin's other sources anew), asks the device, and
//! raises it again if there is still a reason.
//!
//! **Race 21.** The guest may rewrite an entry while its level interrupt is in service. Each pin remembers the
//! *vectors* it has delivered until their EOIs come: they stay in [`Ioapic::eoi_vectors`], and their EOI is
//! acknowledged to the pin ([`Acked::pins`]), whatever the entry says by then. The remembered vector is forgotten
//! at its EOI, so nothing exits forever. Remote IRR, being a register, keeps KVM's (and the chip's) rule: only an
//! EOI of the vector that the entry has *now* clears it, or a switch to edge; a line that comes up meanwhile waits
//! in the IRR and goes out with that.
//!
//! **Race 28.** A mask is effective when the write returns; a line that comes up behind it is kept for level
//! entries and delivered by the write that unmasks.
//!
//! # Kept from KVM, though it looks odd
//! - A rising edge on a masked edge entry is latched in the IRR, but unmasking does not deliver it. A second raise
//!   without a fall in between is coalesced.
//! - Raising an already raised level line is looked at anew, and so is lowering one of several sources.
//! - The saved IRR leaves out edges already delivered, and only a raise *in edge mode* forgets that one was.
//! - Restoring raises every pin of the saved IRR, so it can deliver; the sources' own levels are not in the state.
//! - The 10 000th EOI in a row that finds its line up delays the next delivery ([`Effects::delayed`]).
//!
//! # Different from KVM, on purpose
//! - An EOI does not re-deliver a raised *edge* entry that happens to share the vector (KVM does).
//! - A split irqchip's EOI exit does not say whether the vector was level in the local APIC; it is taken as level.
//! - Remote IRR is set when the [`Deliver`] is made, before KVM has answered, for the EOI may come first. When KVM
//!   says that nobody took it, [`Ioapic::refused`] takes it back, which is the state KVM has.
//! - An EOI between whose halves the pin was delivered anew leaves the new service alone (KVM clears its remote IRR).
//! - The RTC's coalescing (pin 8) is not tracked: KVM does so only for callers that ask for the line's status.
//! - Reads of a length other than 1, 2, 4 and 8 give zeros; KVM leaves the buffer.

mod entry;
mod eoi;
mod regs;
mod sets;
mod state;

#[cfg(all(test, not(loom)))]
mod against_model;
#[cfg(all(test, not(loom)))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;

pub use crate::ids::Trigger;
pub use crate::msix::Message;
pub use entry::{DeliveryMode, Entry, eoi_route};
pub use eoi::Acked;
pub use regs::{Access, Version, Written};
pub use sets::{Pin, PinSet, VectorSet};
pub use state::State;

use crate::Errno;
use core::fmt;

/// How many inputs it has.
pub const PINS: usize = 24;

/// How many sources can share a pin.
pub const SOURCES: u8 = 64;

/// A call of the host's that names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoapicError {
    /// No such pin: there are 24.
    Pin(u8),
    /// No such source: a pin has 64.
    Source(u8),
}

impl IoapicError {
    /// As Linux would say it.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::Pin(_) | Self::Source(_) => Errno::EINVAL,
        }
    }
}

impl fmt::Display for IoapicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pin(n) => write!(f, "no pin {n}: the I/O APIC has {PINS}"),
            Self::Source(n) => write!(f, "no source {n}: a pin has {SOURCES}"),
        }
    }
}

/// One interrupt to inject, now. When KVM answers that no local APIC took it, tell [`Ioapic::refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an interrupt that nobody injects is lost"]
pub struct Deliver {
    /// From this pin.
    pub pin: Pin,
    /// As this message.
    pub message: Message,
    /// The entry's trigger mode.
    pub trigger: Trigger,
    /// The entry's vector.
    pub vector: u8,
    /// Which delivery of the pin this is.
    serial: u32,
    /// Its EOI was not waited for already, on account of an earlier one.
    owes_anew: bool,
}

/// What a change of a line came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it may hold an interrupt to inject"]
pub enum Line {
    /// The line is down.
    Lowered,
    /// Inject this.
    Deliver(Deliver),
    /// The line is up, its entry masked: the IRR keeps it.
    Masked,
    /// The line is up, its level interrupt in service: looked at again at the EOI.
    InService,
    /// The edge was up before: one interrupt, not two.
    Coalesced,
}

impl Line {
    /// The interrupt to inject, if there is one.
    #[must_use]
    pub const fn deliver(self) -> Option<Deliver> {
        match self {
            Self::Deliver(deliver) => Some(deliver),
            _ => None,
        }
    }
}

/// What the host owes after a call that can touch every pin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "interrupts to inject and routes to write"]
pub struct Effects {
    /// Inject these, in this order.
    pub deliver: heapless::Vec<Deliver, PINS>,
    /// [`Ioapic::route`] says something new for these pins.
    pub routes: PinSet,
    /// [`Ioapic::eoi_vectors`] or [`Ioapic::unrouted_eoi_vectors`] says something new.
    pub eoi_vectors_changed: bool,
    /// A storm: call [`Ioapic::inject_delayed`] in about 10 ms.
    pub delayed: bool,
}

/// The I/O APIC. See the module's text. A lock of the caller's goes around it.
#[derive(Clone, Debug)]
pub struct Ioapic {
    // Hot: what a line change touches.
    entries: [Entry; PINS],
    sources: [u64; PINS],
    irr: PinSet,
    /// Edges in the IRR that went out already.
    irr_delivered: PinSet,
    /// Delivered, EOI not seen: by pin, whatever the entry says now.
    in_service: [VectorSet; PINS],
    serial: [u32; PINS],
    // EOI.
    acking: PinSet,
    eois_in_a_row: [u16; PINS],
    resamplers: PinSet,
    // Registers and set-up.
    version: Version,
    select: u32,
    id: u32,
    base_address: u64,
}

impl Ioapic {
    /// As it comes out of reset: every entry masked.
    #[must_use]
    pub const fn new(version: Version) -> Self {
        Self {
            entries: [Entry::RESET; PINS],
            sources: [0; PINS],
            irr: PinSet::EMPTY,
            irr_delivered: PinSet::EMPTY,
            in_service: [VectorSet::EMPTY; PINS],
            serial: [0; PINS],
            acking: PinSet::EMPTY,
            eois_in_a_row: [0; PINS],
            resamplers: PinSet::EMPTY,
            version,
            select: 0,
            id: 0,
            base_address: state::DEFAULT_BASE,
        }
    }

    /// One source of `pin` changes its mind; the pin follows the OR of them all, in the same step (race 4).
    ///
    /// # Errors
    /// [`IoapicError::Source`] from 64 on; nothing has changed then.
    pub fn set_line(&mut self, pin: Pin, source: u8, asserted: bool) -> Result<Line, IoapicError> {
        if source >= SOURCES {
            return Err(IoapicError::Source(source));
        }
        let sources = &mut self.sources[pin.index()];
        if asserted {
            *sources |= 1 << source;
        } else {
            *sources &= !(1 << source);
        }
        let level = *sources != 0;
        Ok(self.set_level(pin, level))
    }

    fn set_level(&mut self, pin: Pin, level: bool) -> Line {
        if !level {
            self.irr.remove(pin);
            return Line::Lowered;
        }
        let was_up = self.irr.contains(pin);
        self.irr.insert(pin);
        if !self.entries[pin.index()].is_level() {
            self.irr_delivered.remove(pin);
            if was_up {
                return Line::Coalesced;
            }
        }
        self.service(pin)
    }

    /// Makes the delivery that the entry allows at this moment.
    fn service(&mut self, pin: Pin) -> Line {
        let entry = self.entries[pin.index()];
        if entry.is_masked() {
            return Line::Masked;
        }
        match entry.trigger() {
            Trigger::Level if entry.remote_irr() => return Line::InService,
            Trigger::Level => self.entries[pin.index()] = entry.with_remote_irr(true),
            Trigger::Edge => self.irr_delivered.insert(pin),
        }
        let owes_eoi = entry.delivery_mode().has_eoi() && self.awaits_eoi(pin);
        let owes_anew = owes_eoi && self.in_service[pin.index()].insert(entry.vector());
        // A new service: an EOI half-way through is about the one before.
        self.acking.remove(pin);
        self.serial[pin.index()] = self.serial[pin.index()].wrapping_add(1);
        Line::Deliver(Deliver {
            pin,
            message: entry.message(),
            trigger: entry.trigger(),
            vector: entry.vector(),
            serial: self.serial[pin.index()],
            owes_anew,
        })
    }

    /// KVM answered that no local APIC took this one (0 from `KVM_SIGNAL_MSI`; not an error from it, which counts
    /// as delivered): a level entry is not in service then, and is looked at again with the next raise, write or
    /// EOI. Of a delivery that is no longer the pin's latest, nothing is taken back. True when
    /// [`eoi_vectors`](Self::eoi_vectors) changed by it.
    #[must_use = "the EOI exits may have changed"]
    pub fn refused(&mut self, deliver: &Deliver) -> bool {
        let index = deliver.pin.index();
        if deliver.trigger == Trigger::Edge || self.serial[index] != deliver.serial {
            return false;
        }
        let before = self.exits();
        self.entries[index] = self.entries[index].with_remote_irr(false);
        if deliver.owes_anew {
            self.in_service[index].remove(deliver.vector);
        }
        self.exits() != before
    }

    /// Whether `pin`'s owner wants its EOIs, and to be asked before an unmask delivers (race 20). True when
    /// [`eoi_vectors`](Self::eoi_vectors) changed by it.
    #[must_use = "the EOI exits may have changed"]
    pub fn set_resampler(&mut self, pin: Pin, wanted: bool) -> bool {
        let before = self.exits();
        self.resamplers.set(pin, wanted);
        self.exits() != before
    }

    /// The entry of `pin`.
    #[must_use]
    pub const fn entry(&self, pin: Pin) -> Entry {
        self.entries[pin.index()]
    }

    /// Whether the OR of the pin's sources is up.
    #[must_use]
    pub const fn is_asserted(&self, pin: Pin) -> bool {
        self.sources[pin.index()] != 0
    }

    /// What GSI `pin` has to say in KVM's routing table: the entry's message, or nothing while it is masked.
    #[must_use]
    pub const fn route(&self, pin: Pin) -> Option<Message> {
        let entry = self.entries[pin.index()];
        if entry.is_masked() { None } else { Some(entry.message()) }
    }
}
