//! Resamplers: level-triggered lines whose end of interrupt goes back to the device (`struct kvm_kernel_irqfd_resampler`).
//!
//! One per GSI. An event raises the line and leaves it; the guest's ack lowers it *once* and then signals every
//! member's resample eventfd; whoever still wants attention raises it again. The last member to leave lowers the
//! line, for nobody is left to.
//!
//! ```text
//!  ack (vCPU exit, housekeeping)             leave (shutdown worker)
//!  lock: find GSI, copy the members          lock: unlink; last one? forget the GSI
//!  unlock                                    unlock
//!  lower the line, signal each               lower the line if it was the last
//! ```
//! Signals and line changes are made outside the lock (race 23); a member that leaves meanwhile may get one signal
//! more, as in the kernel.

use super::slot::{NONE, Slot};
use super::{AssignError, Host};
use crate::ids::Gsi;
use crate::inject::{Inject, LineSource};
use crate::prim::Ordering;
use crate::route::{MAX_PER_GSI, Target};
use crate::sync::SpinLock;
use heapless::Vec;

/// GSIs that can have a resampler at once.
pub const MAX_RESAMPLERS: usize = if cfg!(loom) { 2 } else { 256 };

#[derive(Debug)]
struct Resampler {
    gsi: Gsi,
    /// The first member; the others hang on `Slot::next_member`.
    head: u32,
}

/// The resamplers of a VM. Lock order: alone; never with the irqfd lock.
#[derive(Debug, Default)]
pub(super) struct Resamplers {
    list: SpinLock<Vec<Resampler, MAX_RESAMPLERS>>,
}

impl Resamplers {
    pub(super) fn join(&self, slots: &[Slot], index: u32, gsi: Gsi) -> Result<(), AssignError> {
        let mut list = self.list.lock();
        let head = match list.iter_mut().find(|r| r.gsi == gsi) {
            Some(resampler) => core::mem::replace(&mut resampler.head, index),
            None => {
                list.push(Resampler { gsi, head: index }).map_err(|_| AssignError::NoMemory)?;
                NONE
            }
        };
        slots[index as usize].next_member.store(head, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a member out; true when it was the last one.
    pub(super) fn leave(&self, slots: &[Slot], index: u32, gsi: Gsi) -> bool {
        let mut list = self.list.lock();
        let Some(at) = list.iter().position(|r| r.gsi == gsi) else { return false };
        let after = slots[index as usize].next_member.load(Ordering::Relaxed);
        if list[at].head == index {
            if after == NONE {
                list.swap_remove(at);
                return true;
            }
            list[at].head = after;
            return false;
        }
        let mut member = list[at].head;
        while member != NONE {
            let next = &slots[member as usize].next_member;
            if next.load(Ordering::Relaxed) == index {
                next.store(after, Ordering::Relaxed);
                return false;
            }
            member = next.load(Ordering::Relaxed);
        }
        false
    }

    /// The guest acknowledged `gsi`: lowers the line once, then signals every member. False: nobody resamples it.
    pub(super) fn ack<H: Host>(
        &self,
        slots: &[Slot],
        gsi: Gsi,
        targets: &Vec<Target, MAX_PER_GSI>,
        host: &H,
        inject: &impl Inject,
    ) -> bool {
        const BATCH: usize = 16;
        let mut lowered = false;
        let mut skip = 0;
        loop {
            let mut keys: Vec<_, BATCH> = Vec::new();
            {
                let list = self.list.lock();
                let Some(resampler) = list.iter().find(|r| r.gsi == gsi) else { return lowered };
                let mut member = resampler.head;
                let mut place = 0;
                while member != NONE && !keys.is_full() {
                    let slot = &slots[member as usize];
                    if place >= skip
                        && let Some(key) = slot.resample()
                    {
                        let _ = keys.push(key);
                    }
                    place += 1;
                    member = slot.next_member.load(Ordering::Relaxed);
                }
                skip = place;
            }
            if !lowered {
                set_level(targets, false, inject);
                lowered = true;
            }
            for key in &keys {
                host.signal(*key);
            }
            if !keys.is_full() {
                return true;
            }
        }
    }
}

/// Sets the resampling source's level on every chip pin in `targets`.
pub(super) fn set_level(targets: &Vec<Target, MAX_PER_GSI>, level: bool, inject: &impl Inject) -> bool {
    let mut any = false;
    for target in targets {
        match *target {
            Target::Pin { chip, pin } => any |= inject.pin(chip, pin, level, LineSource::Resample).is_ok(),
            Target::Msi(msi) if level => any |= inject.msi(&msi).is_ok(),
            Target::Msi(_) => {}
        }
    }
    any
}
