//! Shutting an irqfd down: `irqfd_shutdown`. The order is critical, and one worker keeps it.
//!
//! 1. unhook the source, and wait for every pass that may have seen it,
//! 2. flush what was deferred, and wait for the worker that delivers it,
//! 3. leave the resampler, 4. release the descriptor and the binding, 5. free the slot, 6. report.
//!
//! It is not the worker that injects, so 2 can wait for that one; and no lock is held while anything waits (race 3).
//! There is no assigner to wait for: to list the irqfd was the last thing it did with it.

use super::slot::{NONE, Slot};
use super::{Event, Host, Irqfds, State};
use crate::inject::Inject;
use crate::prim::{Mutation, Ordering, model_failed, planted};

/// The right to carry out shutdowns; there is one at a time.
#[derive(Debug)]
pub struct ShutdownWorker<'a, S: AsRef<[Slot]>> {
    irqfds: &'a Irqfds<S>,
}

impl<S: AsRef<[Slot]>> Irqfds<S> {
    /// Becomes the shutdown worker; `None` while somebody else is.
    pub fn shutdown_worker(&self) -> Option<ShutdownWorker<'_, S>> {
        // Acquire: pairs with the Release in `drop`.
        self.has_worker
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
            .then_some(ShutdownWorker { irqfds: self })
    }
}

impl<S: AsRef<[Slot]>> ShutdownWorker<'_, S> {
    /// Carries out every shutdown that is queued, hang-ups that pollers reported included; how many.
    pub fn run<H: Host>(&mut self, host: &H, inject: &impl Inject) -> usize {
        let irqfds = self.irqfds;
        irqfds.hangups.take(|index| {
            // Its assigner is not finished: it lists the irqfd without waiting for us, and then it can go.
            while irqfds.slots()[index].state() == State::Allocated && !planted(Mutation::HangUpNoWait) {
                host.relax();
            }
            let index = u32::try_from(index).unwrap_or(NONE);
            irqfds.deactivate(&mut irqfds.list.lock(), index);
        });
        let mut count = 0;
        while let Some(index) = self.pop() {
            self.shut_down(host, inject, index);
            // Release: pairs with the Acquire in `flush_shutdowns`.
            irqfds.completed.fetch_add(1, Ordering::Release);
            count += 1;
        }
        count
    }

    fn pop(&mut self) -> Option<u32> {
        let mut list = self.irqfds.list.lock();
        let index = list.queue_head;
        let slot = self.irqfds.slots().get(index as usize)?;
        list.queue_head = slot.next.load(Ordering::Relaxed);
        Some(index)
    }

    fn shut_down<H: Host>(&mut self, host: &H, inject: &impl Inject, index: u32) {
        let irqfds = self.irqfds;
        let slot = &irqfds.slots()[index as usize];
        let id = slot.id(index);
        let (key, gsi) = (slot.key(), slot.gsi());

        host.unhook(id);
        if !planted(Mutation::ShutdownNoGrace) {
            irqfds.grace().synchronize(|| host.relax());
        }
        step(slot, Event::Unhook);

        if !planted(Mutation::ShutdownNoFlush) {
            // Acquire: pairs with the worker's swap. It still injects then, so wait for its tick as well.
            while slot.owed.load(Ordering::Acquire) != 0 {
                host.wake_deferred();
                host.relax();
            }
            irqfds.grace().synchronize(|| host.relax());
        }
        // No poller can report it again; a hang-up it reported before must not hit the slot's next owner.
        irqfds.hangups.remove(id.slot());
        step(slot, Event::Drain);

        if slot.resample().is_some() {
            irqfds.resamplers.leave(irqfds.slots(), index, gsi, || irqfds.lower(host, inject, gsi));
        }
        host.release(id, key);
        host.bindings().release(key);
        irqfds.free(index, Event::Free);
    }
}

impl<S: AsRef<[Slot]>> Drop for ShutdownWorker<'_, S> {
    fn drop(&mut self) {
        if model_failed() {
            return;
        }
        // Release: pairs with the Acquire in `shutdown_worker`.
        self.irqfds.has_worker.store(false, Ordering::Release);
    }
}

/// Only the owner of the shutdown moves these states, so a refusal is a second owner: a bug worth stopping at.
fn step(slot: &Slot, event: Event) {
    if let Err(illegal) = slot.step(event) {
        panic!("two owners of one irqfd's shutdown: {illegal:?}");
    }
}
