//! VFIO groups, containers and device files: who may use a device, and how that ends.
//!
//! ```text
//!  container file ──SET_IOMMU──► driver ◄── any number of calls, inside the container's gate
//!       ▲ groups                  │ the last group out closes the gate, drains, takes the driver
//!  group file ──SET_CONTAINER──► users = 1
//!       ├── GET_DEVICE_FD ──► device file: users + 1    the last user out detaches: users = 0 ⇔ no container
//!  device's own file ──BIND──► iommufd          (either this or the group's file, never both)
//! ```
//! One lock, held for a look and a change. What must be waited for (calls in a container, a running notifier) is
//! waited for without it; what must be dropped (an IOMMU driver, a reference to a VM) is returned to be dropped
//! without it (race 41). A file that is in the way of an unplug is revoked: its handle goes stale, and its users
//! with it; nobody waits for it to be closed (race 44).
//!
//! The way a group goes is [`Vfio::unlist`] → [`Unlisted::unregister_notifier`] → [`Quiet::free`].

mod cdev;
mod container;
mod error;
mod files;
mod registry;
mod tables;
#[cfg(all(test, not(loom)))]
mod tests;
mod viable;

pub use cdev::CdevFile;
pub use container::{ContainerId, Detached, Resolved};
pub use error::GroupError;
pub use files::{Closed, DeviceFile, GroupFile};
pub use registry::{Freed, NotIdle, Quiet, Revoked, Unlisted};
pub use tables::{GroupPhase, GroupStep};
pub use viable::{BusEvent, Holder, Notice, on_event};

use crate::ids::Generation;
use crate::sync::{Gate, SpinLock};
use tables::Tables;

/// A handle to a registered group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupId {
    index: u32,
    generation: Generation,
}

/// A device's name, such as its address on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(pub u64);

/// A device between two revocations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::group) struct DeviceId {
    index: u32,
    generation: Generation,
}

/// `C` containers, `G` groups and `D` devices. `I` is a cheap reference to an IOMMU driver, `K` one to a VM.
#[derive(Debug)]
pub struct Vfio<I, K, const C: usize, const G: usize, const D: usize> {
    /// Inside: calls that use a container's driver.
    calls: [Gate; C],
    /// Inside: a group's notifier. Open while it is registered.
    notifiers: [Gate; G],
    tables: SpinLock<Tables<I, K, C, G, D>>,
}

impl<I: Clone, K, const C: usize, const G: usize, const D: usize> Vfio<I, K, C, G, D> {
    /// No containers, groups or devices.
    #[must_use]
    pub fn new() -> Self {
        Self {
            calls: core::array::from_fn(|_| Gate::new()),
            notifiers: core::array::from_fn(|_| Gate::new()),
            tables: SpinLock::new(Tables::new()),
        }
    }

    /// Whether every count agrees with what it counts: a group has a container exactly when it has users, users
    /// are the group's file and the device files, and a container has the groups that have it.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let tables = self.tables.lock();
        let groups = (0..).zip(&tables.groups).all(|(index, group)| {
            let id = GroupId { index, generation: group.generation };
            let files: u32 = tables.of_group(id).map(|d| d.files).sum();
            let own = u32::from(group.opened.is_some() && group.container.is_some());
            group.container.is_some() == (group.users != 0) && group.users == files + own
        });
        groups
            && (0..).zip(&tables.containers).all(|(index, container)| {
                let id = ContainerId { index, generation: container.generation };
                let inside = tables.groups.iter().filter(|g| g.container == Some(id)).count();
                inside == container.groups as usize
                    && (container.driver.is_none() || container.groups > 0 || container.draining)
            })
    }

    /// How many users a group has.
    ///
    /// # Errors
    /// [`GroupError::NoGroup`].
    pub fn users(&self, group: GroupId) -> Result<u32, GroupError> {
        self.tables.lock().group(group).map(|g| g.users)
    }

    /// Whether every device of the group is held by nobody who could disturb a user.
    #[must_use]
    pub fn is_viable(&self, group: GroupId) -> bool {
        self.tables.lock().is_viable(group)
    }
}

impl<I: Clone, K, const C: usize, const G: usize, const D: usize> Default for Vfio<I, K, C, G, D> {
    fn default() -> Self {
        Self::new()
    }
}
