//! What the one lock of [`Vfio`](super::Vfio) protects. Nothing here waits or calls out.
//!
//! Groups, containers and devices are under the same lock, so a group's count of users and its container change
//! together (race 39), nothing is used after an unlock while another deletes it (race 42), and a device is looked
//! up and counted, or uncounted and dropped, in one critical section (race 36).

use super::{CdevFile, ContainerId, DeviceId, DeviceName, GroupError, GroupFile, GroupId, Holder};
use crate::ids::Generation;

/// Where a group is in its life.
///
/// ```text
///  Free ──register()──► Live ──unlist()──► Unlisted ──unregister_notifier()──► Quiet ──free()──► Free
/// ```
/// Only a `Live` one is found by `open` (race 40), and only by then do its devices get users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupPhase {
    /// Nobody's slot.
    #[default]
    Free,
    /// Listed, its notifier registered.
    Live,
    /// Nobody finds it any more; its files are revoked. The notifier may be running.
    Unlisted,
    /// The notifier has run for the last time.
    Quiet,
}

/// What moves a group on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupStep {
    /// `register`.
    Register,
    /// `unlist`.
    Unlist,
    /// `unregister_notifier`.
    Unregister,
    /// `free`.
    Free,
}

impl GroupPhase {
    /// Every phase.
    pub const ALL: [Self; 4] = [Self::Free, Self::Live, Self::Unlisted, Self::Quiet];

    /// The transition table.
    ///
    /// # Errors
    /// [`GroupError::NoGroup`] for every pair that is not an edge of the diagram.
    pub const fn next(self, step: GroupStep) -> Result<Self, GroupError> {
        match (self, step) {
            (Self::Free, GroupStep::Register) => Ok(Self::Live),
            (Self::Live, GroupStep::Unlist) => Ok(Self::Unlisted),
            (Self::Unlisted, GroupStep::Unregister) => Ok(Self::Quiet),
            (Self::Quiet, GroupStep::Free) => Ok(Self::Free),
            _ => Err(GroupError::NoGroup),
        }
    }
}

#[derive(Debug)]
pub(super) struct Container<I> {
    pub generation: Generation,
    pub open: bool,
    pub groups: u32,
    /// What its groups are; meaningful while there are some.
    pub no_iommu: bool,
    pub driver: Option<I>,
    /// The last group is out, and calls that use the driver are waited for.
    pub draining: bool,
}

#[derive(Debug)]
pub(super) struct Group<K> {
    pub generation: Generation,
    pub phase: GroupPhase,
    pub no_iommu: bool,
    /// The opening that holds the group, and the number of the last one.
    pub opened: Option<Generation>,
    pub opening: Generation,
    /// `None` exactly when `users` is 0.
    pub container: Option<ContainerId>,
    /// The group's own file once it has set the container, and each device file.
    pub users: u32,
    pub kvm: Option<K>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    pub name: DeviceName,
    pub group: GroupId,
    /// `None`: the slot is free.
    pub holder: Option<Holder>,
    /// Changed by every revocation, so that all files before it are stale.
    pub generation: Generation,
    /// Device files got through the group.
    pub files: u32,
    /// The device's own file that is bound, and the number of the last one.
    pub bound: Option<Generation>,
    pub cdev: Generation,
}

#[derive(Debug)]
pub(super) struct Tables<I, K, const C: usize, const G: usize, const D: usize> {
    pub containers: [Container<I>; C],
    pub groups: [Group<K>; G],
    pub devices: [Device; D],
}

impl<I, K, const C: usize, const G: usize, const D: usize> Tables<I, K, C, G, D> {
    pub fn new() -> Self {
        let zero = Generation(0);
        let nobody = GroupId { index: u32::MAX, generation: zero };
        let device = Device {
            name: DeviceName(0),
            group: nobody,
            holder: None,
            generation: zero,
            files: 0,
            bound: None,
            cdev: zero,
        };
        Self {
            containers: core::array::from_fn(|_| Container {
                generation: zero,
                open: false,
                groups: 0,
                no_iommu: false,
                driver: None,
                draining: false,
            }),
            groups: core::array::from_fn(|_| Group {
                generation: zero,
                phase: GroupPhase::Free,
                no_iommu: false,
                opened: None,
                opening: zero,
                container: None,
                users: 0,
                kvm: None,
            }),
            devices: [device; D],
        }
    }

    /// A group by its handle, in whichever phase.
    pub fn group(&mut self, id: GroupId) -> Result<&mut Group<K>, GroupError> {
        let slot = self.groups.get_mut(id.index as usize);
        slot.filter(|g| g.generation == id.generation && g.phase != GroupPhase::Free)
            .ok_or(GroupError::NoGroup)
    }

    /// The group that this file has open now.
    pub fn file(&mut self, file: GroupFile) -> Result<&mut Group<K>, GroupError> {
        let group = self.group(file.group).map_err(|_| GroupError::StaleFile)?;
        if group.opened == Some(file.opening) { Ok(group) } else { Err(GroupError::StaleFile) }
    }

    pub fn container(&mut self, id: ContainerId) -> Result<&mut Container<I>, GroupError> {
        let slot = self.containers.get_mut(id.index as usize);
        slot.filter(|c| c.generation == id.generation).ok_or(GroupError::BadFd)
    }

    pub fn device(&mut self, id: DeviceId) -> Result<&mut Device, GroupError> {
        let slot = self.devices.get_mut(id.index as usize);
        let ours = |d: &&mut Device| d.generation == id.generation && d.holder == Some(Holder::Ours);
        slot.filter(ours).ok_or(GroupError::NoDevice)
    }

    /// The device that is bound through this file.
    pub fn bound(&mut self, file: CdevFile) -> Result<&mut Device, GroupError> {
        let device = self.device(file.device)?;
        if device.bound == Some(file.number) { Ok(device) } else { Err(GroupError::NotBound) }
    }

    /// The slot of a known device.
    pub fn find(&self, group: GroupId, name: DeviceName) -> Option<usize> {
        self.devices.iter().position(|d| d.holder.is_some() && d.group == group && d.name == name)
    }

    /// A free device slot, for a name that no group knows.
    pub fn vacant(&self, name: DeviceName) -> Result<usize, GroupError> {
        if self.devices.iter().any(|d| d.holder.is_some() && d.name == name) {
            return Err(GroupError::DeviceKnown);
        }
        self.devices.iter().position(|d| d.holder.is_none()).ok_or(GroupError::Full)
    }

    pub fn of_group(&self, group: GroupId) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(move |d| d.group == group && d.holder.is_some())
    }

    pub fn is_viable(&self, group: GroupId) -> bool {
        self.of_group(group).all(|d| d.holder.is_none_or(Holder::is_viable))
    }

    /// The group enters `container` with its first user.
    pub fn attach(&mut self, id: GroupId, container: ContainerId) -> Result<(), GroupError> {
        let group = self.group(id)?;
        (group.container, group.users) = (Some(container), 1);
        let no_iommu = group.no_iommu;
        let container = self.container(container)?;
        container.groups += 1;
        container.no_iommu = no_iommu;
        Ok(())
    }

    /// `count` users less. The last one detaches, in the same critical section; a container that is returned has
    /// lost its last group and is to be drained.
    pub fn put_users(&mut self, id: GroupId, count: u32) -> Option<ContainerId> {
        let group = self.group(id).ok()?;
        group.users -= count;
        if count == 0 || group.users > 0 { None } else { self.detach(id) }
    }

    pub fn detach(&mut self, id: GroupId) -> Option<ContainerId> {
        let from = self.group(id).ok()?.container.take()?;
        let container = self.container(from).ok()?;
        container.groups -= 1;
        if container.groups == 0 && container.driver.is_some() {
            container.draining = true;
            return Some(from);
        }
        self.retire_container(from);
        None
    }

    /// Frees a container's slot once its file and its last group are gone.
    pub fn retire_container(&mut self, id: ContainerId) {
        if let Ok(container) = self.container(id)
            && !container.open
            && container.groups == 0
            && !container.draining
        {
            container.generation = container.generation.next();
        }
    }

    /// Makes every file of a device stale; how many users that were.
    pub fn revoke_device(&mut self, slot: usize) -> u32 {
        let device = &mut self.devices[slot];
        device.generation = device.generation.next();
        device.bound = None;
        core::mem::take(&mut device.files)
    }
}
