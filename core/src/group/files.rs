//! Files of a group and of its devices.
//!
//! A close names the opening it ends. One that is closed already, or revoked, is refused and nothing is counted
//! down (race 43): otherwise a second close would end somebody else's opening and let a third in beside him.

use super::{Detached, DeviceId, DeviceName, GroupError, GroupId, GroupPhase, Holder, Vfio};
use crate::ids::Generation;
use crate::prim::{Mutation, planted};

/// A handle to one opening of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupFile {
    pub(super) group: GroupId,
    pub(super) opening: Generation,
}

/// A file of a device, got through its group: one user of the group's container. Given back by
/// [`Vfio::close_device`], which takes it, so it cannot be closed twice.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the group's container stays in use until this is closed"]
pub struct DeviceFile {
    device: DeviceId,
    group: GroupId,
}

/// A group's file is closed.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what is in it is to be dropped where no lock is held"]
pub struct Closed<I, K> {
    /// The container's driver, if that was its last user.
    pub driver: Option<I>,
    /// The VM that was set on the group.
    pub kvm: Option<K>,
}

impl<I: Clone, K, const C: usize, const G: usize, const D: usize> Vfio<I, K, C, G, D> {
    /// Opens a group. `raw_io`: the caller has the right to raw I/O.
    ///
    /// # Errors
    /// [`GroupError::NoGroup`], [`GroupError::NotPermitted`], [`GroupError::GroupOpen`] (also while device files of
    /// an earlier opening live), [`GroupError::DeviceBound`].
    pub fn open_group(&self, id: GroupId, raw_io: bool) -> Result<GroupFile, GroupError> {
        let mut tables = self.tables.lock();
        let bound = tables.of_group(id).any(|d| d.bound.is_some());
        let group = tables.group(id)?;
        if group.phase != GroupPhase::Live && !planted(Mutation::GroupOpenUnlisted) {
            return Err(GroupError::NoGroup);
        }
        if group.no_iommu && !raw_io {
            return Err(GroupError::NotPermitted);
        }
        if group.opened.is_some() || group.container.is_some() {
            return Err(GroupError::GroupOpen);
        }
        if bound {
            return Err(GroupError::DeviceBound);
        }
        group.opening = group.opening.next();
        group.opened = Some(group.opening);
        Ok(GroupFile { group: id, opening: group.opening })
    }

    /// Closes a group's file. Its device files keep the container.
    ///
    /// # Errors
    /// [`GroupError::StaleFile`].
    pub fn close_group(&self, file: GroupFile, relax: impl FnMut()) -> Result<Closed<I, K>, GroupError> {
        let mut tables = self.tables.lock();
        let group = if planted(Mutation::GroupCloseUnchecked) {
            tables.group(file.group)
        } else {
            tables.file(file)
        }?;
        group.opened = None;
        let kvm = group.kvm.take();
        let own = u32::from(group.users > 0);
        let left = self.put_users(&mut tables, file.group, own);
        drop(tables);
        let Detached { driver } = self.drained(left, relax);
        Ok(Closed { driver, kvm })
    }

    /// Sets the VM that the group's devices are assigned to; the old reference is the caller's to drop.
    ///
    /// # Errors
    /// With the new one: [`GroupError::StaleFile`].
    pub fn set_kvm(&self, file: GroupFile, kvm: Option<K>) -> Result<Option<K>, (GroupError, Option<K>)> {
        let mut tables = self.tables.lock();
        match tables.file(file) {
            Ok(group) => Ok(core::mem::replace(&mut group.kvm, kvm)),
            Err(error) => Err((error, kvm)),
        }
    }

    /// GET_DEVICE_FD.
    ///
    /// # Errors
    /// [`GroupError::StaleFile`], [`GroupError::NotUsable`], [`GroupError::NoDevice`].
    pub fn get_device(&self, file: GroupFile, name: DeviceName) -> Result<DeviceFile, GroupError> {
        let mut tables = self.tables.lock();
        let container = tables.file(file)?.container.ok_or(GroupError::NotUsable)?;
        if tables.container(container)?.driver.is_none() || !tables.is_viable(file.group) {
            return Err(GroupError::NotUsable);
        }
        let slot = tables.find(file.group, name).ok_or(GroupError::NoDevice)?;
        let device = &mut tables.devices[slot];
        if device.holder != Some(Holder::Ours) {
            return Err(GroupError::NoDevice);
        }
        device.files += 1;
        let index = u32::try_from(slot).map_err(|_| GroupError::Full)?;
        let device = DeviceId { index, generation: device.generation };
        tables.group(file.group)?.users += 1;
        Ok(DeviceFile { device, group: file.group })
    }

    /// Whether the device of this file is still its own.
    #[must_use]
    pub fn is_current(&self, file: &DeviceFile) -> bool {
        self.tables.lock().device(file.device).is_ok()
    }

    /// Closes a device's file; the last user detaches the group.
    ///
    /// # Errors
    /// [`GroupError::NoDevice`] when it was revoked: its user is gone already.
    #[expect(clippy::needless_pass_by_value, reason = "a closed file is no more")]
    pub fn close_device(&self, file: DeviceFile, relax: impl FnMut()) -> Result<Detached<I>, GroupError> {
        let mut tables = self.tables.lock();
        tables.device(file.device)?.files -= 1;
        let left = self.put_users(&mut tables, file.group, 1);
        drop(tables);
        Ok(self.drained(left, relax))
    }
}
