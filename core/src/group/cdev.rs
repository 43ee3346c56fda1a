//! A device's own file, bound to an iommufd instead of going through the group.
//!
//! ```text
//!  Opened ──bind()──► Bound ──close()──► gone        every operation but bind and close needs Bound
//! ```

use super::{DeviceId, DeviceName, GroupError, GroupId, Holder, Vfio};
use crate::ids::Generation;

/// A handle to one opening of a device's own file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CdevFile {
    pub(super) device: DeviceId,
    pub(super) number: Generation,
}

impl<I: Clone, K, const C: usize, const G: usize, const D: usize> Vfio<I, K, C, G, D> {
    /// Opens a device's own file. It can do nothing but [`bind`](Self::bind).
    ///
    /// # Errors
    /// [`GroupError::NoDevice`].
    pub fn open_cdev(&self, group: GroupId, name: DeviceName) -> Result<CdevFile, GroupError> {
        let mut tables = self.tables.lock();
        let slot = tables.find(group, name).ok_or(GroupError::NoDevice)?;
        let device = &mut tables.devices[slot];
        if device.holder != Some(Holder::Ours) {
            return Err(GroupError::NoDevice);
        }
        device.cdev = device.cdev.next();
        let index = u32::try_from(slot).map_err(|_| GroupError::Full)?;
        Ok(CdevFile { device: DeviceId { index, generation: device.generation }, number: device.cdev })
    }

    /// BIND.
    ///
    /// # Errors
    /// [`GroupError::NoDevice`], [`GroupError::BoundTwice`], and [`GroupError::GroupOpen`] while the group's file
    /// is open or its container set.
    pub fn bind(&self, file: CdevFile) -> Result<(), GroupError> {
        let mut tables = self.tables.lock();
        let device = tables.device(file.device)?;
        if device.bound.is_some() {
            return Err(GroupError::BoundTwice);
        }
        let of = device.group;
        let group = tables.group(of)?;
        if group.opened.is_some() || group.container.is_some() {
            return Err(GroupError::GroupOpen);
        }
        tables.device(file.device)?.bound = Some(file.number);
        Ok(())
    }

    /// Whether this file may do anything now; asked before every operation.
    ///
    /// # Errors
    /// [`GroupError::NoDevice`] when revoked, [`GroupError::NotBound`] before BIND.
    pub fn check_bound(&self, file: CdevFile) -> Result<(), GroupError> {
        self.tables.lock().bound(file).map(|_| ())
    }

    /// Closes a device's own file; true when it was the bound one. One that is not bound leaves nothing behind.
    ///
    /// # Errors
    /// [`GroupError::NoDevice`] when it was revoked.
    pub fn close_cdev(&self, file: CdevFile) -> Result<bool, GroupError> {
        match self.tables.lock().bound(file) {
            Ok(device) => {
                device.bound = None;
                Ok(true)
            }
            Err(GroupError::NotBound) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
