//! What the lock of [`Mediated`](super::Mediated) protects: who exists, in which state, held by how many.
//!
//! Nothing here waits or calls out; every method is one critical section.

use super::child::{ChildEvent, ChildState, Illegal, next};
use super::{ChildId, MediatedError, ParentId, ParentKey, Uuid};
use crate::ids::Generation;
use crate::prim::{Mutation, planted};

#[derive(Debug)]
struct Parent<O> {
    key: ParentKey,
    operations: O,
    capacity: u32,
    used: u32,
}

#[derive(Debug)]
struct ParentSlot<O> {
    generation: Generation,
    parent: Option<Parent<O>>,
}

#[derive(Clone, Copy, Debug)]
struct ChildSlot {
    generation: Generation,
    state: ChildState,
    uuid: Uuid,
    parent: ParentId,
    /// Its own until it is torn down, and one for each [`Held`](super::Held).
    references: u32,
}

#[derive(Debug)]
pub(super) struct Tables<O, const P: usize, const C: usize> {
    parents: [ParentSlot<O>; P],
    children: [ChildSlot; C],
}

impl<O: Clone, const P: usize, const C: usize> Tables<O, P, C> {
    pub(super) fn new() -> Self {
        let nobody = ParentId { index: u32::MAX, generation: Generation(0) };
        let empty = ChildSlot {
            generation: Generation(0),
            state: ChildState::Free,
            uuid: Uuid::from_u128(0),
            parent: nobody,
            references: 0,
        };
        Self {
            parents: core::array::from_fn(|_| ParentSlot { generation: Generation(0), parent: None }),
            children: [empty; C],
        }
    }

    pub(super) fn add_parent(
        &mut self,
        key: ParentKey,
        operations: O,
        capacity: u32,
    ) -> Result<ParentId, MediatedError> {
        if self.parents.iter().flat_map(|slot| &slot.parent).any(|p| p.key == key) {
            return Err(MediatedError::ParentExists);
        }
        let slots = (0..).zip(&mut self.parents);
        let (index, slot) =
            slots.into_iter().find(|(_, s)| s.parent.is_none()).ok_or(MediatedError::ParentsFull)?;
        slot.parent = Some(Parent { key, operations, capacity, used: 0 });
        Ok(ParentId { index, generation: slot.generation })
    }

    fn parent(&mut self, id: ParentId) -> Result<&mut Parent<O>, MediatedError> {
        let slot = self.parents.get_mut(id.slot()).filter(|s| s.generation == id.generation);
        slot.and_then(|s| s.parent.as_mut()).ok_or(MediatedError::ParentGone)
    }

    /// The operations of a parent, to be called without the lock.
    pub(super) fn operations(&mut self, id: ParentId) -> Result<O, MediatedError> {
        self.parent(id).map(|p| p.operations.clone())
    }

    /// `(used, capacity)` of a parent.
    pub(super) fn instances(&mut self, id: ParentId) -> Result<(u32, u32), MediatedError> {
        self.parent(id).map(|p| (p.used, p.capacity))
    }

    /// Takes the parent out; its operations are the caller's to drop, without the lock.
    pub(super) fn take_parent(&mut self, id: ParentId) -> Option<O> {
        let slot = self.parents.get_mut(id.slot()).filter(|s| s.generation == id.generation)?;
        slot.generation = slot.generation.next();
        slot.parent.take().map(|p| p.operations)
    }

    /// Takes a slot, the UUID and one instance: all three, or none.
    pub(super) fn reserve(&mut self, parent: ParentId, uuid: Uuid) -> Result<(ChildId, O), MediatedError> {
        let taken = |c: &ChildSlot| c.state != ChildState::Free && c.uuid == uuid;
        let exists = self.children.iter().any(taken);
        let free =
            (0..).zip(&self.children).find(|(_, c)| c.state == ChildState::Free).map(|(index, _)| index);
        let of = self.parent(parent)?;
        if exists {
            return Err(MediatedError::ChildExists);
        }
        if of.used >= of.capacity {
            return Err(MediatedError::NoInstances);
        }
        let index: u32 = free.ok_or(MediatedError::ChildrenFull)?;
        of.used += 1;
        let operations = of.operations.clone();
        let slot = &mut self.children[index as usize];
        let id = ChildId { index, generation: slot.generation };
        *slot = ChildSlot { generation: slot.generation, state: slot.state, uuid, parent, references: 1 };
        self.step(id, ChildEvent::Reserve).expect("a free slot can be reserved");
        Ok((id, operations))
    }

    /// The one place where a child's state changes, and the one place where what it took comes back.
    fn step(&mut self, id: ChildId, event: ChildEvent) -> Result<(), Illegal> {
        let slot = &mut self.children[id.slot()];
        slot.state = next(slot.state, event)?;
        if slot.state == ChildState::Free {
            slot.generation = slot.generation.next();
            slot.references = 0;
            let leak = event == ChildEvent::Failed && planted(Mutation::MediatedFailedCreateLeaks);
            let parent = slot.parent;
            // A parent that is gone has no capacity to get back.
            if !leak && let Ok(of) = self.parent(parent) {
                of.used -= 1;
            }
        }
        Ok(())
    }

    fn child(&mut self, id: ChildId) -> Result<&mut ChildSlot, MediatedError> {
        let slot = self.children.get_mut(id.slot());
        slot.filter(|c| c.generation == id.generation && c.state != ChildState::Free)
            .ok_or(MediatedError::NoChild)
    }

    /// The parent of an active child.
    pub(super) fn active(&mut self, id: ChildId) -> Result<ParentId, MediatedError> {
        let child = self.child(id)?;
        match child.state {
            ChildState::Active => Ok(child.parent),
            ChildState::Removing if planted(Mutation::MediatedNoElection) => Ok(child.parent),
            ChildState::Dead => Err(MediatedError::NoChild),
            _ => Err(MediatedError::NotActive),
        }
    }

    pub(super) fn find(&self, uuid: Uuid) -> Option<ChildId> {
        let is = |c: &ChildSlot| c.uuid == uuid && !matches!(c.state, ChildState::Free | ChildState::Dead);
        let (index, slot) = (0..).zip(&self.children).find(|(_, c)| is(c))?;
        Some(ChildId { index, generation: slot.generation })
    }

    pub(super) fn state(&mut self, id: ChildId) -> Option<ChildState> {
        self.child(id).ok().map(|c| c.state)
    }

    /// The work of `create` is over.
    pub(super) fn created(&mut self, id: ChildId, event: ChildEvent) {
        self.step(id, event).expect("only its creator moves a child that is being created");
    }

    /// Makes the caller the one who tears this child down.
    pub(super) fn claim(&mut self, id: ChildId) -> Result<Uuid, MediatedError> {
        let uuid = self.child(id)?.uuid;
        match self.step(id, ChildEvent::Claim) {
            Err(_) if !planted(Mutation::MediatedNoElection) => Err(MediatedError::NotActive),
            _ => Ok(uuid),
        }
    }

    /// Claims any active child of `parent`.
    pub(super) fn claim_one(&mut self, parent: ParentId) -> Option<(ChildId, Uuid)> {
        let is = |c: &ChildSlot| c.parent == parent && c.state == ChildState::Active;
        let (index, slot) = (0..).zip(&self.children).find(|(_, c)| is(c))?;
        let id = ChildId { index, generation: slot.generation };
        self.claim(id).ok().map(|uuid| (id, uuid))
    }

    /// The work of `remove` is over: the child's own reference goes.
    pub(super) fn torn_down(&mut self, id: ChildId) {
        self.step(id, ChildEvent::TornDown).expect("only its claimer moves a child that is being removed");
        self.put(id);
    }

    /// One more holder of an active child, found and counted in one critical section.
    pub(super) fn get(&mut self, id: ChildId) -> Result<(), MediatedError> {
        self.active(id)?;
        self.child(id)?.references += 1;
        Ok(())
    }

    /// One holder less. The last one's put frees the slot in the same critical section, so nobody finds a child
    /// whose last reference is gone.
    pub(super) fn put(&mut self, id: ChildId) {
        let child = self.child(id).expect("a reference keeps its child");
        child.references -= 1;
        if child.references == 0 {
            self.step(id, ChildEvent::LastPut)
                .expect("a child keeps its own reference until it is torn down");
        }
    }
}
