//! Assigning an irqfd: `kvm_irqfd_assign`.

use super::slot::{NONE, Slot};
use super::{Event, Host, Irqfds};
use crate::Errno;
use crate::ids::{EventKey, Gsi, SourceId};
use crate::inject::Inject;
use crate::prim::{Mutation, Ordering, planted};
use crate::route::Irqchip;

/// `KVM_IRQFD_FLAG_DEASSIGN`.
pub const FLAG_DEASSIGN: u32 = 1;
/// `KVM_IRQFD_FLAG_RESAMPLE`.
pub const FLAG_RESAMPLE: u32 = 2;

/// A request to bind an eventfd to a GSI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assign {
    /// The eventfd.
    pub key: EventKey,
    /// The GSI; not range-checked, one without a route drops what comes.
    pub gsi: Gsi,
    /// The eventfd to signal at the guest's ack: makes the line level-triggered.
    pub resample: Option<EventKey>,
    /// The slot to take if it is free, else any: who comes and goes is then always counted in the same place.
    pub slot: Option<u32>,
}

/// Why an eventfd was not bound. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignError {
    /// Flags that do not exist.
    UnknownFlags(u32),
    /// Not an eventfd.
    NotEventfd,
    /// The VM has no interrupt chip.
    NoIrqchip,
    /// The I/O APIC is not the kernel's, so there is no ack to wait for.
    ResampleOnSplit,
    /// No such descriptor, the event's or the resample one.
    BadFd,
    /// The eventfd is bound already, here or in another VM.
    Busy,
    /// A fixed table is full.
    NoMemory,
    /// The request could not be read.
    Fault,
    /// The VM is being released.
    Released,
}

impl AssignError {
    /// The number the kernel answers with.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::UnknownFlags(_) | Self::NotEventfd | Self::NoIrqchip | Self::ResampleOnSplit => {
                Errno::EINVAL
            }
            Self::BadFd => Errno::EBADF,
            Self::Busy => Errno::EBUSY,
            Self::NoMemory => Errno::ENOMEM,
            Self::Fault => Errno::EFAULT,
            Self::Released => Errno::ENODEV,
        }
    }
}

impl core::fmt::Display for AssignError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::UnknownFlags(flags) => write!(f, "flags {flags:#x} do not exist"),
            Self::NotEventfd => f.write_str("the descriptor is not an eventfd"),
            Self::NoIrqchip => f.write_str("the VM has no interrupt chip in the kernel"),
            Self::ResampleOnSplit => f.write_str("a resampling irqfd needs the I/O APIC in the kernel"),
            Self::BadFd => f.write_str("no such descriptor"),
            Self::Busy => f.write_str("the eventfd is bound already, to this VM or another one"),
            Self::NoMemory => f.write_str("no room for another irqfd"),
            Self::Fault => f.write_str("the request could not be read"),
            Self::Released => f.write_str("the VM is being released"),
        }
    }
}

impl core::error::Error for AssignError {}

impl<S: AsRef<[Slot]>> Irqfds<S> {
    /// The checks that come before any descriptor is looked at (`kvm_irqfd`, `kvm_arch_irqfd_allowed`).
    ///
    /// # Errors
    /// `UnknownFlags`, `NoIrqchip`, `ResampleOnSplit`.
    pub fn check_flags(&self, flags: u32) -> Result<(), AssignError> {
        if flags & !(FLAG_DEASSIGN | FLAG_RESAMPLE) != 0 {
            return Err(AssignError::UnknownFlags(flags));
        }
        if flags & FLAG_DEASSIGN != 0 {
            return Ok(());
        }
        match self.irqchip {
            Irqchip::None => Err(AssignError::NoIrqchip),
            Irqchip::Split if flags & FLAG_RESAMPLE != 0 => Err(AssignError::ResampleOnSplit),
            _ => Ok(()),
        }
    }

    /// Binds an eventfd to a GSI. On return its signals arrive, those made before included. `inject` is for a
    /// failure that leaves a resampled line without a member: it is lowered.
    ///
    /// # Errors
    /// See [`AssignError`]; nothing is left behind.
    pub fn assign<H: Host>(
        &self,
        host: &H,
        inject: &impl Inject,
        request: Assign,
    ) -> Result<SourceId, AssignError> {
        self.check_flags(if request.resample.is_some() { FLAG_RESAMPLE } else { 0 })?;
        // From here `release` waits for us.
        let _alive = self.life.try_enter().ok_or(AssignError::Released)?;
        host.bindings().claim(request.key)?;
        let result = self.assign_claimed(host, inject, request);
        if result.is_err() {
            host.bindings().release(request.key);
        }
        result
    }

    fn assign_claimed<H: Host>(
        &self,
        host: &H,
        inject: &impl Inject,
        request: Assign,
    ) -> Result<SourceId, AssignError> {
        let index = self.allocate(request.slot).ok_or(AssignError::NoMemory)?;
        let slot = &self.slots()[index as usize];
        slot.describe(request.key, request.gsi, request.resample);
        let id = slot.id(index);
        if request.resample.is_some()
            && let Err(error) = self.resamplers.join(self.slots(), index, request.gsi, || host.relax())
        {
            self.free(index, Event::Abandon);
            return Err(error);
        }
        if let Err(error) = host.hook(id, request.key) {
            if request.resample.is_some() {
                // The last one out may be we, and a member that left since we joined may have raised the line.
                let lower = || self.lower(host, inject, request.gsi);
                self.resamplers.leave(self.slots(), index, request.gsi, lower);
            }
            self.free(index, Event::Abandon);
            return Err(error);
        }
        let late = planted(Mutation::AssignPendingLate);
        let fresh = !late && self.defer_pending(host, id, request.key);
        {
            let reader = self.brief(host);
            let early = planted(Mutation::AssignCopyUnlocked);
            let copy = || self.routes.read(&reader, |table| Self::copy_route(slot, table));
            if early {
                copy();
            }
            let _list = self.list.lock();
            if !early {
                copy();
            }
            let fresh = fresh && !planted(Mutation::AssignNotFresh);
            let _listed = if fresh { slot.list_fresh() } else { slot.step(Event::List) };
        }
        // From here the irqfd can go at any moment: the slot is not ours any more.
        if late {
            self.defer_pending(host, id, request.key);
        }
        Ok(id)
    }

    /// Defers what the poller will not report; whether there was anything.
    fn defer_pending<H: Host>(&self, host: &H, id: SourceId, key: EventKey) -> bool {
        if planted(Mutation::AssignNoPendingCheck) {
            return false;
        }
        let signals = host.take_pending(id, key);
        if signals > 0 && self.defer(id, signals) {
            host.wake_deferred();
        }
        signals > 0
    }

    fn allocate(&self, wanted: Option<u32>) -> Option<u32> {
        let mut list = self.list.lock();
        let before =
            wanted.filter(|wanted| *wanted != NONE).and_then(|wanted| self.before(list.free, wanted));
        let index =
            before.map_or(list.free, |before| self.slots()[before as usize].next.load(Ordering::Relaxed));
        let slot = self.slots().get(index as usize)?;
        slot.step(Event::Allocate).ok()?;
        let next = slot.next.load(Ordering::Relaxed);
        match before {
            Some(before) => self.slots()[before as usize].next.store(next, Ordering::Relaxed),
            None => list.free = next,
        }
        list.high = list.high.max(index + 1);
        slot.next.store(NONE, Ordering::Relaxed);
        Some(index)
    }

    /// The slot before `wanted` in the chain of free ones that begins at `first`. None: it is the first, or not free.
    fn before(&self, first: u32, wanted: u32) -> Option<u32> {
        let next = |index: u32| Some(self.slots().get(index as usize)?.next.load(Ordering::Relaxed));
        core::iter::successors(Some(first), |index| next(*index)).find(|index| next(*index) == Some(wanted))
    }

    /// Back to the free slots, with the next generation.
    pub(super) fn free(&self, index: u32, event: Event) {
        let mut list = self.list.lock();
        let slot = &self.slots()[index as usize];
        if slot.step(event).is_ok() {
            slot.next.store(list.free, Ordering::Relaxed);
            list.free = index;
        }
    }
}
