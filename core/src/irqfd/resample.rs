//! Resamplers: level-triggered lines whose end of interrupt goes back to the device (`struct kvm_kernel_irqfd_resampler`).
//!
//! One per GSI. An event raises the line and leaves it; the guest's ack lowers it *once* and then signals every
//! member's resample eventfd; whoever still wants attention raises it again. The last member to leave lowers the
//! line, for nobody is left to.
//!
//! ```text
//!  ack (vCPU exit, housekeeping)             leave                             join
//!  lock: somebody there? unlock              lock: unlink; last one? LOWERING  lock: LOWERING? wait, unlocked
//!  lower the line                            unlock, lower the line            else link
//!  lock: copy the members, unlock            lock: forget the GSI, unlock      unlock; events raise the line
//!  signal each
//! ```
//! *ack/join*: who joins after the members were copied raises after the line was lowered, and stays up; who joined
//! before is signalled. *leave/join*: a line is lowered for the last one out before the next one is in.
//!
//! Signals and line changes are made outside the lock (race 23); a member that leaves meanwhile may get one signal
//! more, as in the kernel.

use super::slot::{NONE, Slot};
use super::{AssignError, Host};
use crate::ids::{EventKey, Gsi};
use crate::inject::{Accepted, Inject, LineSource};
use crate::prim::{Mutation, Ordering, planted};
use crate::route::{MAX_PER_GSI, Target};
use crate::sync::SpinLock;
use heapless::Vec;

/// GSIs that can have a resampler at once.
pub const MAX_RESAMPLERS: usize = if cfg!(loom) { 2 } else { 256 };

/// Members signalled between two looks at the list.
const BATCH: usize = 16;

#[derive(Debug)]
struct Resampler {
    gsi: Gsi,
    /// The first member; the others hang on `Slot::next_member`, in the order of the slots.
    head: u32,
    /// The last member is gone and its thread lowers the line; nobody joins until that is done.
    lowering: bool,
}

/// The resamplers of a VM. Lock order: alone; never with the irqfd lock.
#[derive(Debug, Default)]
pub(super) struct Resamplers {
    list: SpinLock<Vec<Resampler, MAX_RESAMPLERS>>,
}

impl Resamplers {
    /// Puts a member in; `relax` is called while the line is being lowered for the last one that left.
    pub(super) fn join(
        &self,
        slots: &[Slot],
        index: u32,
        gsi: Gsi,
        mut relax: impl FnMut(),
    ) -> Result<(), AssignError> {
        loop {
            {
                let mut list = self.list.lock();
                match list.iter_mut().find(|r| r.gsi == gsi) {
                    Some(resampler) if resampler.lowering => {}
                    Some(resampler) => {
                        link(slots, &mut resampler.head, index);
                        return Ok(());
                    }
                    None => {
                        slots[index as usize].next_member.store(NONE, Ordering::Relaxed);
                        let resampler = Resampler { gsi, head: index, lowering: false };
                        return list.push(resampler).map_err(|_| AssignError::NoMemory);
                    }
                }
            }
            relax();
        }
    }

    /// Takes a member out; the last one lowers the line with `lower`.
    pub(super) fn leave(&self, slots: &[Slot], index: u32, gsi: Gsi, lower: impl FnOnce()) {
        {
            let mut list = self.list.lock();
            let Some(resampler) = list.iter_mut().find(|r| r.gsi == gsi) else { return };
            unlink(slots, &mut resampler.head, index);
            if resampler.head != NONE {
                return;
            }
            resampler.lowering = true;
        }
        let forget = || self.list.lock().retain(|r| r.gsi != gsi);
        if planted(Mutation::ResampleLowerLate) {
            forget();
            lower();
        } else {
            lower();
            forget();
        }
    }

    /// The guest acknowledged `gsi`: lowers the line once, then signals every member. False: nobody resamples it.
    pub(super) fn ack<H: Host>(&self, slots: &[Slot], gsi: Gsi, host: &H, lower: impl FnOnce()) -> bool {
        if !self.list.lock().iter().any(|r| r.gsi == gsi && r.head != NONE) {
            return false;
        }
        let mut lower = Some(lower);
        let mut from = 0;
        loop {
            if !planted(Mutation::AckMembersFirst)
                && let Some(lower) = lower.take()
            {
                lower();
            }
            let keys = self.members(slots, gsi, from);
            if let Some(lower) = lower.take() {
                lower();
            }
            for (_, key) in &keys {
                host.signal(*key);
            }
            match keys.last() {
                Some((last, _)) if keys.is_full() => from = last + 1,
                _ => return true,
            }
        }
    }

    /// The first members of `gsi` in slots at and above `from`. A slot, not a place in the list, because members come
    /// and go between two looks.
    fn members(&self, slots: &[Slot], gsi: Gsi, from: u32) -> Vec<(u32, EventKey), BATCH> {
        let list = self.list.lock();
        let mut member = list.iter().find(|r| r.gsi == gsi).map_or(NONE, |r| r.head);
        let mut keys = Vec::new();
        while member != NONE && !keys.is_full() {
            let slot = &slots[member as usize];
            if member >= from
                && let Some(key) = slot.resample()
            {
                let _room = keys.push((member, key));
            }
            member = slot.next_member.load(Ordering::Relaxed);
        }
        keys
    }
}

/// Puts `index` into the chain at `head`, before the first higher one.
fn link(slots: &[Slot], head: &mut u32, index: u32) {
    let next = |member: u32| &slots[member as usize].next_member;
    if *head > index {
        next(index).store(core::mem::replace(head, index), Ordering::Relaxed);
        return;
    }
    let mut before = *head;
    // NONE is higher than every slot.
    while next(before).load(Ordering::Relaxed) < index {
        before = next(before).load(Ordering::Relaxed);
    }
    next(index).store(next(before).load(Ordering::Relaxed), Ordering::Relaxed);
    next(before).store(index, Ordering::Relaxed);
}

/// Takes `index` out of the chain at `head`.
fn unlink(slots: &[Slot], head: &mut u32, index: u32) {
    let next = |member: u32| &slots[member as usize].next_member;
    let after = next(index).load(Ordering::Relaxed);
    if *head == index {
        *head = after;
        return;
    }
    let mut before = *head;
    while before != NONE {
        let following = next(before).load(Ordering::Relaxed);
        if following == index {
            next(before).store(after, Ordering::Relaxed);
            return;
        }
        before = following;
    }
}

/// Sets the resampling source's level on every chip pin in `targets`.
pub(super) fn set_level(
    targets: &Vec<Target, MAX_PER_GSI>,
    level: bool,
    inject: &impl Inject,
) -> Option<Accepted> {
    let mut any = None;
    for target in targets {
        let accepted = match *target {
            Target::Pin { chip, pin } => {
                inject.pin(chip, pin, level, LineSource::Resample).ok().map(|()| Accepted::default())
            }
            Target::Msi(msi) if level => inject.msi(&msi).ok(),
            Target::Msi(_) => None,
        };
        any = accepted.or(any);
    }
    any
}
