//! Containers, and the way of a group into one and out of it.
//!
//! ```text
//!  call in a container                     last user of the last group
//!  enter the gate, or: no driver           lock: users = 0, container = none, draining; close the gate; unlock
//!  lock: find the driver; unlock           drain                              — waits for those inside (race 37)
//!  use it                                  lock: take the driver; open the gate; unlock
//!  leave                                   the caller drops the driver, without a lock (race 41)
//! ```

use super::{GroupError, GroupFile, GroupId, Vfio};
use crate::ids::Generation;
use crate::prim::{Mutation, planted};

/// A handle to a container: what its descriptor refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContainerId {
    pub(super) index: u32,
    pub(super) generation: Generation,
}

/// What the descriptor given to SET_CONTAINER turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Not open.
    Bad,
    /// Open, but of something else.
    Other,
    /// A container's.
    Container(ContainerId),
}

/// A user is gone, and with the last one perhaps a container's driver.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a driver in it is to be dropped where no lock is held"]
pub struct Detached<I> {
    /// The container's, if that was its last group. Nobody uses it any more.
    pub driver: Option<I>,
}

impl<I: Clone, K, const C: usize, const G: usize, const D: usize> Vfio<I, K, C, G, D> {
    /// Opens a new container.
    ///
    /// # Errors
    /// [`GroupError::Full`].
    pub fn open_container(&self) -> Result<ContainerId, GroupError> {
        let mut tables = self.tables.lock();
        let mut slots = (0..).zip(&mut tables.containers);
        let free = slots.find(|(_, c)| !c.open && c.groups == 0 && !c.draining);
        let (index, container) = free.ok_or(GroupError::Full)?;
        container.open = true;
        Ok(ContainerId { index, generation: container.generation })
    }

    /// Closes a container's file. It lives on while groups are in it, but no new one enters.
    ///
    /// # Errors
    /// [`GroupError::BadFd`] when it is closed already.
    pub fn close_container(&self, id: ContainerId) -> Result<(), GroupError> {
        let mut tables = self.tables.lock();
        let container = tables.container(id)?;
        if !core::mem::take(&mut container.open) {
            return Err(GroupError::BadFd);
        }
        tables.retire_container(id);
        Ok(())
    }

    /// SET_IOMMU.
    ///
    /// # Errors
    /// With the driver: [`GroupError::BadFd`], [`GroupError::NoGroups`], [`GroupError::DriverSet`].
    pub fn set_iommu(&self, id: ContainerId, driver: I) -> Result<(), (GroupError, I)> {
        let mut tables = self.tables.lock();
        let container = match tables.container(id) {
            Ok(container) if container.open => container,
            _ => return Err((GroupError::BadFd, driver)),
        };
        // A container that drains has no group either.
        if container.groups == 0 {
            return Err((GroupError::NoGroups, driver));
        }
        if container.driver.is_some() {
            return Err((GroupError::DriverSet, driver));
        }
        container.driver = Some(driver);
        Ok(())
    }

    /// Runs `call` on the container's driver, which is there until `call` returns: the last user leaving waits
    /// for it, so `call` must not be the one to leave.
    ///
    /// # Errors
    /// [`GroupError::BadFd`], [`GroupError::NoDriver`].
    pub fn call<R>(&self, id: ContainerId, call: impl FnOnce(&I) -> R) -> Result<R, GroupError> {
        let gate = self.calls.get(id.index as usize).ok_or(GroupError::BadFd)?;
        let _inside = gate.try_enter().ok_or(GroupError::NoDriver)?;
        let driver = self.tables.lock().container(id)?.driver.clone().ok_or(GroupError::NoDriver)?;
        Ok(call(&driver))
    }

    /// SET_CONTAINER: the group's file becomes its first user. `relax` is called while the container is losing
    /// its last driver.
    ///
    /// # Errors
    /// [`GroupError::StaleFile`], [`GroupError::ContainerSet`], [`GroupError::BadFd`],
    /// [`GroupError::NotContainer`], [`GroupError::MixedNoIommu`].
    pub fn set_container(
        &self,
        file: GroupFile,
        fd: Resolved,
        mut relax: impl FnMut(),
    ) -> Result<(), GroupError> {
        loop {
            let mut tables = self.tables.lock();
            let group = tables.file(file)?;
            if group.users != 0 {
                return Err(GroupError::ContainerSet);
            }
            let no_iommu = group.no_iommu;
            let id = match fd {
                Resolved::Bad => return Err(GroupError::BadFd),
                Resolved::Other => return Err(GroupError::NotContainer),
                Resolved::Container(id) => id,
            };
            let container = tables.container(id)?;
            if !container.open {
                return Err(GroupError::BadFd);
            }
            if container.groups > 0 && container.no_iommu != no_iommu {
                return Err(GroupError::MixedNoIommu);
            }
            if !container.draining {
                return tables.attach(file.group, id);
            }
            drop(tables);
            relax();
        }
    }

    /// UNSET_CONTAINER: the only transition it makes is from one user to none.
    ///
    /// # Errors
    /// [`GroupError::StaleFile`], [`GroupError::NoContainer`], [`GroupError::ContainerBusy`].
    pub fn unset_container(&self, file: GroupFile, relax: impl FnMut()) -> Result<Detached<I>, GroupError> {
        let mut tables = self.tables.lock();
        let group = tables.file(file)?;
        match group.users {
            0 => return Err(GroupError::NoContainer),
            1 => {}
            _ => return Err(GroupError::ContainerBusy),
        }
        if planted(Mutation::GroupUnsetTwice) {
            group.users = 0;
            drop(tables);
            tables = self.tables.lock();
            let left = tables.detach(file.group);
            drop(tables);
            return Ok(self.drained(left, relax));
        }
        let left = self.put_users(&mut tables, file.group, 1);
        drop(tables);
        Ok(self.drained(left, relax))
    }

    /// Users less, under the lock; the gate of a container left by its last group closes under it too.
    pub(super) fn put_users(
        &self,
        tables: &mut super::Tables<I, K, C, G, D>,
        group: GroupId,
        count: u32,
    ) -> Option<ContainerId> {
        let left = tables.put_users(group, count);
        if let Some(id) = left {
            self.calls[id.index as usize].close();
        }
        left
    }

    /// Waits for the calls in a container that lost its last group, and takes its driver. Without the lock.
    pub(super) fn drained(&self, left: Option<ContainerId>, relax: impl FnMut()) -> Detached<I> {
        let Some(id) = left else { return Detached { driver: None } };
        let gate = &self.calls[id.index as usize];
        if !planted(Mutation::ContainerNoDrain) {
            gate.drain(relax);
        }
        let mut tables = self.tables.lock();
        let mut driver = None;
        if let Ok(container) = tables.container(id) {
            driver = container.driver.take();
            container.draining = false;
        }
        tables.retire_container(id);
        gate.open();
        drop(tables);
        Detached { driver }
    }
}
