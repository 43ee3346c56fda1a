//! The coming and going of groups and devices, and the bus notifier.
//!
//! ```text
//!  notifier                          the group goes
//!  enter the gate, or: not ours      unlist: nobody finds it; files revoked, users gone    (races 40, 44)
//!  lock: the event; unlock           unregister: close the gate, drain                     (race 38)
//!  leave                             free: assert, drain the unbound list, free — in one critical section
//! ```

use core::fmt;

use super::{BusEvent, Detached, DeviceName, GroupError, GroupId, GroupPhase, GroupStep, Holder, Notice};
use super::{Vfio, on_event};
use crate::Errno;

/// A group that nobody finds any more.
#[must_use = "its notifier is still registered"]
pub struct Unlisted<'a, I, K, const C: usize, const G: usize, const D: usize> {
    of: &'a Vfio<I, K, C, G, D>,
    id: GroupId,
}

/// A group whose notifier has run for the last time.
#[must_use = "its slot is still taken"]
pub struct Quiet<'a, I, K, const C: usize, const G: usize, const D: usize> {
    of: &'a Vfio<I, K, C, G, D>,
    id: GroupId,
}

/// What a revocation took from its holders.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what is in it is to be dropped where no lock is held"]
pub struct Revoked<I, K> {
    /// Device files that are stale now.
    pub files: u32,
    /// The container's driver, if that was its last user.
    pub driver: Option<I>,
    /// The VM that was set on the group.
    pub kvm: Option<K>,
}

/// A group is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed {
    /// Devices whose driver had not unbound yet.
    pub unbound: usize,
}

/// A group that is not idle cannot be freed; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotIdle {
    /// Users of its container.
    pub users: u32,
    /// Devices in its device list.
    pub devices: usize,
    /// Whether its notifier is registered.
    pub notifier: bool,
}

impl NotIdle {
    /// EBUSY.
    #[must_use]
    pub const fn errno(self) -> Errno {
        Errno::EBUSY
    }
}

impl<I: Clone, K, const C: usize, const G: usize, const D: usize> Vfio<I, K, C, G, D> {
    /// A new group, listed and with its notifier registered.
    ///
    /// # Errors
    /// [`GroupError::Full`].
    pub fn register(&self, no_iommu: bool) -> Result<GroupId, GroupError> {
        let mut tables = self.tables.lock();
        let mut slots = (0..).zip(&mut tables.groups);
        let (index, group) = slots.find(|(_, g)| g.phase == GroupPhase::Free).ok_or(GroupError::Full)?;
        group.phase = group.phase.next(GroupStep::Register)?;
        group.no_iommu = no_iommu;
        // The last group in this slot left its notifier's gate closed. Stale handles find their generation gone.
        self.notifiers[index as usize].open();
        Ok(GroupId { index, generation: group.generation })
    }

    /// The notifier. Of a device that vanishes while it is ours nothing is forgotten: `remove_device` comes first.
    ///
    /// # Errors
    /// [`GroupError::NoNotifier`] outside the registration; [`GroupError::Full`], [`GroupError::DeviceKnown`] (in
    /// another group).
    pub fn notify(&self, id: GroupId, name: DeviceName, event: BusEvent) -> Result<Notice, GroupError> {
        let gate = self.notifiers.get(id.index as usize).ok_or(GroupError::NoNotifier)?;
        let _inside = gate.try_enter().ok_or(GroupError::NoNotifier)?;
        let mut tables = self.tables.lock();
        let live = tables.group(id).map_err(|_| GroupError::NoNotifier)?.users > 0;
        let slot = tables.find(id, name);
        let known = slot.and_then(|slot| tables.devices[slot].holder);
        let (holder, notice) = on_event(known, event, live);
        if holder != known {
            let slot = slot.map_or_else(|| tables.vacant(name), Ok)?;
            let device = &mut tables.devices[slot];
            (device.name, device.group, device.holder) = (name, id, holder);
        }
        Ok(notice)
    }

    /// Our driver has bound to a device: it enters the device list.
    ///
    /// # Errors
    /// [`GroupError::NoGroup`] also when the group is going; [`GroupError::DeviceKnown`] when it is ours already or
    /// held by another driver; [`GroupError::Full`].
    pub fn add_device(&self, id: GroupId, name: DeviceName) -> Result<(), GroupError> {
        let mut tables = self.tables.lock();
        if tables.group(id)?.phase != GroupPhase::Live {
            return Err(GroupError::NoGroup);
        }
        let slot = match tables.find(id, name) {
            Some(slot) if tables.devices[slot].holder == Some(Holder::Driverless) => slot,
            Some(_) => return Err(GroupError::DeviceKnown),
            None => tables.vacant(name)?,
        };
        let device = &mut tables.devices[slot];
        (device.name, device.group, device.holder) = (name, id, Some(Holder::Ours));
        Ok(())
    }

    /// The device goes: its files are revoked, and it moves from the device list to the unbound list, where it
    /// stays until its driver has unbound.
    ///
    /// # Errors
    /// [`GroupError::NoDevice`].
    pub fn remove_device(
        &self,
        id: GroupId,
        name: DeviceName,
        relax: impl FnMut(),
    ) -> Result<Revoked<I, K>, GroupError> {
        let mut tables = self.tables.lock();
        let slot = tables.find(id, name).ok_or(GroupError::NoDevice)?;
        if tables.devices[slot].holder != Some(Holder::Ours) {
            return Err(GroupError::NoDevice);
        }
        let files = tables.revoke_device(slot);
        tables.devices[slot].holder = Some(Holder::Leaving);
        let left = self.put_users(&mut tables, id, files);
        drop(tables);
        let Detached { driver } = self.drained(left, relax);
        Ok(Revoked { files, driver, kvm: None })
    }

    /// Begins the one order in which a group goes: from here nobody finds it, and whoever holds a file of it or
    /// of its devices holds a stale one. Only then are calls in its container waited for, with `relax`.
    ///
    /// # Errors
    /// [`GroupError::NoGroup`] also when it is going already.
    #[expect(clippy::type_complexity, reason = "the token and what is to be dropped")]
    pub fn unlist(
        &self,
        id: GroupId,
        relax: impl FnMut(),
    ) -> Result<(Unlisted<'_, I, K, C, G, D>, Revoked<I, K>), GroupError> {
        let mut tables = self.tables.lock();
        let group = tables.group(id)?;
        group.phase = group.phase.next(GroupStep::Unlist)?;
        let kvm = group.kvm.take();
        let mut users = u32::from(group.opened.take().is_some() && group.users > 0);
        let mut files = 0;
        for slot in 0..D {
            if tables.devices[slot].group == id && tables.devices[slot].holder == Some(Holder::Ours) {
                files += tables.revoke_device(slot);
            }
        }
        users += files;
        let left = self.put_users(&mut tables, id, users);
        drop(tables);
        let Detached { driver } = self.drained(left, relax);
        Ok((Unlisted { of: self, id }, Revoked { files, driver, kvm }))
    }
}

impl<'a, I: Clone, K, const C: usize, const G: usize, const D: usize> Unlisted<'a, I, K, C, G, D> {
    /// Unregisters the notifier and waits, with `relax`, for one that runs.
    pub fn unregister_notifier(self, relax: impl FnMut()) -> Quiet<'a, I, K, C, G, D> {
        let gate = &self.of.notifiers[self.id.index as usize];
        gate.close();
        gate.drain(relax);
        let mut tables = self.of.tables.lock();
        let group = tables.group(self.id).expect("only its own tokens free a group");
        group.phase =
            group.phase.next(GroupStep::Unregister).expect("the token was made by unlist, and is used up");
        Quiet { of: self.of, id: self.id }
    }
}

impl<I: Clone, K, const C: usize, const G: usize, const D: usize> Quiet<'_, I, K, C, G, D> {
    /// Frees the group. What must hold is asserted together; then the unbound list is drained, which the notifier
    /// can no longer edit, and the slot given to the next one.
    ///
    /// # Errors
    /// [`NotIdle`] with the token, to try again: devices are still in the device list.
    pub fn free(self) -> Result<Freed, (NotIdle, Self)> {
        let mut tables = self.of.tables.lock();
        let ours = tables.of_group(self.id).filter(|d| d.holder == Some(Holder::Ours)).count();
        let group = tables.group(self.id).expect("only its own tokens free a group");
        let now = NotIdle {
            users: group.users,
            devices: ours,
            notifier: !self.of.notifiers[self.id.index as usize].is_closed(),
        };
        if now != (NotIdle { users: 0, devices: 0, notifier: false }) {
            drop(tables);
            return Err((now, self));
        }
        let mut unbound = 0;
        for device in tables.devices.iter_mut().filter(|d| d.group == self.id && d.holder.is_some()) {
            unbound += usize::from(device.holder == Some(Holder::Leaving));
            device.holder = None;
            device.generation = device.generation.next();
        }
        let group = tables.group(self.id).expect("only its own tokens free a group");
        group.phase =
            group.phase.next(GroupStep::Free).expect("the token was made by unregister, and is used up");
        group.generation = group.generation.next();
        Ok(Freed { unbound })
    }
}

impl<I, K, const C: usize, const G: usize, const D: usize> fmt::Debug for Unlisted<'_, I, K, C, G, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unlisted").field("id", &self.id).finish_non_exhaustive()
    }
}

impl<I, K, const C: usize, const G: usize, const D: usize> fmt::Debug for Quiet<'_, I, K, C, G, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quiet").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Display for NotIdle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { users, devices, notifier } = self;
        write!(f, "the group has {users} users, {devices} devices, notifier {notifier}: {}", self.errno())
    }
}

impl core::error::Error for NotIdle {}
