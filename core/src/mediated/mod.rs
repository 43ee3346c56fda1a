//! Mediated devices: children that a parent makes on demand, and that never outlive it.
//!
//! ```text
//!  create(a)               create(b) or remove(c)       unregister
//!  enter the gate          enter the gate               close the gate     — from here entering fails: ENODEV
//!  lock: reserve           lock: claim                  drain              — waits for those inside
//!  the parent's `create`   the parent's `remove`        lock: claim one; the parent's `remove`; until none is left
//!  lock: active            lock: torn down              lock: free the parent's slot
//!  leave                   leave                        open the gate for the slot's next parent
//! ```
//! Whoever is inside the gate is seen by the drain, so a child is added before the sweep or not at all (race 32),
//! and no `remove` runs past its parent's end. The lock is a leaf, held for a look and a change; the parent's work
//! runs without it, so work on different children runs in parallel.
//!
//! Claiming elects one: `remove` against `remove` and `remove` against `unregister` have one winner. The loser has
//! done nothing yet and undoes nothing (race 33).

mod child;
mod error;
mod tables;
#[cfg(all(test, not(loom)))]
mod tests;
mod uuid;

pub use child::{ChildEvent, ChildState, Illegal, next};
pub use error::MediatedError;
pub use uuid::{BadUuid, Uuid};

use crate::Errno;
use crate::ids::Generation;
use crate::prim::{Mutation, planted};
use crate::sync::{Gate, SpinLock};
use tables::Tables;

/// What a parent is known by outside, such as a device's address. Registered at most once at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParentKey(pub u64);

/// A handle to a registered parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParentId {
    index: u32,
    generation: Generation,
}

/// A handle to a child, valid until its last reference is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChildId {
    index: u32,
    generation: Generation,
}

impl ParentId {
    const fn slot(self) -> usize {
        self.index as usize
    }
}

impl ChildId {
    const fn slot(self) -> usize {
        self.index as usize
    }
}

/// What a parent does for its children. Called without any lock of this module, for different children in
/// parallel, for one child never twice at once.
pub trait Operations {
    /// Makes the child. On an error nothing of it may be left.
    ///
    /// # Errors
    /// Whatever `create` is to report.
    fn create(&self, uuid: Uuid) -> Result<(), Errno>;

    /// Takes the child down: the mirror image of [`create`](Self::create), called at most once, and only after a
    /// `create` that succeeded. The child is gone afterwards whatever this returns.
    ///
    /// # Errors
    /// What is worth reporting; it stops nothing.
    fn remove(&self, uuid: Uuid) -> Result<(), Errno>;
}

impl<T: Operations + ?Sized> Operations for &T {
    fn create(&self, uuid: Uuid) -> Result<(), Errno> {
        (**self).create(uuid)
    }

    fn remove(&self, uuid: Uuid) -> Result<(), Errno> {
        (**self).remove(uuid)
    }
}

/// A child was removed, and this is what its parent said. It is gone in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the parent may have complained"]
pub struct Removed {
    /// The error of the parent's `remove`.
    pub complaint: Option<Errno>,
}

/// A parent is gone with all its children.
#[derive(Debug)]
#[must_use = "the operations in it are the parent's last reference to drop, and some removals may have failed"]
pub struct Unregistered<O> {
    /// Given back to be dropped where no lock is held.
    pub operations: O,
    /// Children removed by the sweep.
    pub removed: usize,
    /// How many of those the parent complained about.
    pub complaints: usize,
}

/// `P` parents and `C` children of all of them. `O` is a cheap reference to a parent's operations.
#[derive(Debug)]
pub struct Mediated<O, const P: usize, const C: usize> {
    /// One for each parent's slot.
    gates: [Gate; P],
    tables: SpinLock<Tables<O, P, C>>,
}

impl<O: Operations + Clone, const P: usize, const C: usize> Mediated<O, P, C> {
    /// No parents and no children.
    #[must_use]
    pub fn new() -> Self {
        Self { gates: core::array::from_fn(|_| Gate::new()), tables: SpinLock::new(Tables::new()) }
    }

    /// Registers a parent that can have up to `capacity` children.
    ///
    /// # Errors
    /// [`NoOperations`](MediatedError::NoOperations), [`ParentExists`](MediatedError::ParentExists) (until
    /// `unregister` has returned), [`ParentsFull`](MediatedError::ParentsFull).
    pub fn register(
        &self,
        key: ParentKey,
        operations: Option<O>,
        capacity: u32,
    ) -> Result<ParentId, MediatedError> {
        let operations = operations.ok_or(MediatedError::NoOperations)?;
        self.tables.lock().add_parent(key, operations, capacity)
    }

    /// Creates a child: reserves it, has the parent do the work without a lock, and makes it active.
    ///
    /// # Errors
    /// [`ParentGone`](MediatedError::ParentGone) also while the parent is going: never waits for it.
    /// [`ChildExists`](MediatedError::ChildExists), [`NoInstances`](MediatedError::NoInstances),
    /// [`ChildrenFull`](MediatedError::ChildrenFull), [`CreateFailed`](MediatedError::CreateFailed).
    pub fn create(&self, parent: ParentId, uuid: Uuid) -> Result<ChildId, MediatedError> {
        let gate = self.gates.get(parent.slot()).ok_or(MediatedError::ParentGone)?;
        let _inside = gate.try_enter().ok_or(MediatedError::ParentGone)?;
        let (id, operations) = self.tables.lock().reserve(parent, uuid)?;
        let mut reserved = Reserved { of: self, id, outcome: ChildEvent::Failed };
        operations.create(uuid).map_err(MediatedError::CreateFailed)?;
        reserved.outcome = ChildEvent::Created;
        Ok(id)
    }

    /// Removes a child. Its UUID and its instance come back when the last [`Held`] of it is dropped.
    ///
    /// # Errors
    /// [`NoChild`](MediatedError::NoChild); [`NotActive`](MediatedError::NotActive) when half created or being
    /// removed; [`ParentGone`](MediatedError::ParentGone) when the parent is going and removes it itself.
    pub fn remove(&self, child: ChildId) -> Result<Removed, MediatedError> {
        let mut tables = self.tables.lock();
        let parent = tables.active(child)?;
        // Never blocks, so it may be tried under the lock; only then is the child claimed.
        let inside = self.gates[parent.slot()].try_enter().ok_or(MediatedError::ParentGone)?;
        let operations = tables.operations(parent)?;
        let uuid = tables.claim(child)?;
        drop(tables);
        let removed = self.tear_down(&operations, child, uuid);
        drop(inside);
        Ok(removed)
    }

    /// Closes the parent's gate, waits with `relax` for those inside, removes every child whatever the parent
    /// says to it, and forgets the parent.
    ///
    /// # Errors
    /// [`ParentGone`](MediatedError::ParentGone) for a stale handle and for all but the first caller.
    pub fn unregister(
        &self,
        parent: ParentId,
        relax: impl FnMut(),
    ) -> Result<Unregistered<O>, MediatedError> {
        let gate = self.gates.get(parent.slot()).ok_or(MediatedError::ParentGone)?;
        let operations = {
            let mut tables = self.tables.lock();
            let operations = tables.operations(parent)?;
            // Under the lock, so that it is this parent's gate and not that of the slot's next one.
            if !gate.close() {
                return Err(MediatedError::ParentGone);
            }
            operations
        };
        if !planted(Mutation::MediatedNoDrain) {
            gate.drain(relax);
        }
        let (mut removed, mut complaints) = (0, 0);
        loop {
            // The lock is not held across the work: the guard of this look ends with the statement.
            let claimed = self.tables.lock().claim_one(parent);
            let Some((child, uuid)) = claimed else { break };
            removed += 1;
            if self.tear_down(&operations, child, uuid).complaint.is_some() {
                complaints += 1;
                if planted(Mutation::MediatedSweepStops) {
                    break;
                }
            }
        }
        let mut tables = self.tables.lock();
        let ours = tables.take_parent(parent);
        // Whoever enters now with an old handle finds its generation stale. Under the lock, so that the next
        // owner of the slot does not find its gate closed.
        gate.open();
        drop(tables);
        // Dropped here, without the lock.
        drop(ours);
        Ok(Unregistered { operations, removed, complaints })
    }

    /// The child that is known by `uuid`, in whichever state; not one that is only held.
    #[must_use]
    pub fn find(&self, uuid: Uuid) -> Option<ChildId> {
        self.tables.lock().find(uuid)
    }

    /// The state of a child; `None` when the handle is stale.
    #[must_use]
    pub fn state(&self, child: ChildId) -> Option<ChildState> {
        self.tables.lock().state(child)
    }

    /// How many instances of a parent are used, and how many it has.
    ///
    /// # Errors
    /// [`ParentGone`](MediatedError::ParentGone).
    pub fn instances(&self, parent: ParentId) -> Result<(u32, u32), MediatedError> {
        self.tables.lock().instances(parent)
    }

    /// Takes a reference to an active child.
    ///
    /// # Errors
    /// [`NoChild`](MediatedError::NoChild), [`NotActive`](MediatedError::NotActive).
    pub fn hold(&self, child: ChildId) -> Result<Held<'_, O, P, C>, MediatedError> {
        self.tables.lock().get(child)?;
        Ok(Held { of: self, id: child })
    }

    /// The work of removing a child that the caller has claimed. The lock is not held.
    fn tear_down(&self, operations: &O, child: ChildId, uuid: Uuid) -> Removed {
        let complaint = operations.remove(uuid).err();
        self.tables.lock().torn_down(child);
        Removed { complaint }
    }
}

impl<O: Operations + Clone, const P: usize, const C: usize> Default for Mediated<O, P, C> {
    fn default() -> Self {
        Self::new()
    }
}

/// A child between `reserve` and the end of its parent's work; gives everything back unless that succeeded,
/// also when it panics.
struct Reserved<'a, O: Operations + Clone, const P: usize, const C: usize> {
    of: &'a Mediated<O, P, C>,
    id: ChildId,
    outcome: ChildEvent,
}

impl<O: Operations + Clone, const P: usize, const C: usize> Drop for Reserved<'_, O, P, C> {
    fn drop(&mut self) {
        self.of.tables.lock().created(self.id, self.outcome);
    }
}

/// A reference to a child. It keeps the UUID and the instance taken, not the child usable.
#[derive(Debug)]
#[must_use = "dropping it gives the reference back"]
pub struct Held<'a, O: Operations + Clone, const P: usize, const C: usize> {
    of: &'a Mediated<O, P, C>,
    id: ChildId,
}

impl<O: Operations + Clone, const P: usize, const C: usize> Held<'_, O, P, C> {
    /// The child.
    #[must_use]
    pub fn id(&self) -> ChildId {
        self.id
    }
}

impl<O: Operations + Clone, const P: usize, const C: usize> Drop for Held<'_, O, P, C> {
    fn drop(&mut self) {
        self.of.tables.lock().put(self.id);
    }
}
