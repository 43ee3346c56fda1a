//! What can be refused, and with which error number.

use core::fmt;

use crate::Errno;

/// Why a call on a [`Vfio`](super::Vfio) was refused; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupError {
    /// No such group, or it is going, or the handle is stale.
    NoGroup,
    /// Opening a group without an IOMMU needs the right to raw I/O.
    NotPermitted,
    /// The group is open, or still in use from its last opening.
    GroupOpen,
    /// A device of the group is bound through its own file.
    DeviceBound,
    /// The file is closed, or was revoked.
    StaleFile,
    /// The group has a container already.
    ContainerSet,
    /// The descriptor is not open, or the container is gone.
    BadFd,
    /// The descriptor is of something else.
    NotContainer,
    /// Groups with and without an IOMMU do not share a container.
    MixedNoIommu,
    /// The group has no container.
    NoContainer,
    /// Device files still use the container.
    ContainerBusy,
    /// No group is in the container.
    NoGroups,
    /// The container has an IOMMU driver already.
    DriverSet,
    /// The container has no IOMMU driver, or is losing it.
    NoDriver,
    /// The group has no users, or its container no driver, or it is not viable.
    NotUsable,
    /// No such device in this group, or it was taken away.
    NoDevice,
    /// The device is known already.
    DeviceKnown,
    /// The device file is not bound.
    NotBound,
    /// The device, or this file of it, is bound already.
    BoundTwice,
    /// No notifier is registered for this group.
    NoNotifier,
    /// No free slot.
    Full,
}

impl GroupError {
    /// As the specification numbers it.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::NoGroup | Self::NoDevice | Self::NoNotifier => Errno::ENODEV,
            Self::NotPermitted | Self::MixedNoIommu => Errno::EPERM,
            Self::GroupOpen | Self::DeviceBound | Self::ContainerBusy => Errno::EBUSY,
            Self::StaleFile | Self::BadFd => Errno::EBADF,
            Self::DeviceKnown => Errno::EEXIST,
            Self::Full => Errno::ENOMEM,
            Self::ContainerSet
            | Self::NotContainer
            | Self::NoContainer
            | Self::NoGroups
            | Self::DriverSet
            | Self::NoDriver
            | Self::NotUsable
            | Self::NotBound
            | Self::BoundTwice => Errno::EINVAL,
        }
    }
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Self::NoGroup => "no such group, or it is going",
            Self::NotPermitted => "a group without an IOMMU needs the right to raw I/O",
            Self::GroupOpen => "the group is in use by another file",
            Self::DeviceBound => "a device of the group is bound through its own file",
            Self::StaleFile => "the file is closed or was revoked",
            Self::ContainerSet => "the group has a container; unset it first",
            Self::BadFd => "the descriptor is not open",
            Self::NotContainer => "the descriptor is not a container's",
            Self::MixedNoIommu => "groups with and without an IOMMU do not share a container",
            Self::NoContainer => "the group has no container",
            Self::ContainerBusy => "device files still use the container; close them first",
            Self::NoGroups => "no group is in the container; set it on a group first",
            Self::DriverSet => "the container has an IOMMU driver",
            Self::NoDriver => "the container has no IOMMU driver",
            Self::NotUsable => {
                "the group needs a container with an IOMMU driver, and every device of it on vfio or driverless"
            }
            Self::NoDevice => "no such device in this group",
            Self::DeviceKnown => "the device is known already",
            Self::NotBound => "bind the device file to an iommufd first",
            Self::BoundTwice => "the device is bound already",
            Self::NoNotifier => "no notifier is registered for the group",
            Self::Full => "no free slot",
        };
        write!(f, "{why}: {}", self.errno())
    }
}

impl core::error::Error for GroupError {}
