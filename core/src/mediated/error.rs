//! What can be refused, and with which error number.

use core::fmt;

use super::BadUuid;
use crate::Errno;

/// Why a call on a [`Mediated`](super::Mediated) was refused. Unless it says otherwise, nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediatedError {
    /// A parent was registered without operations.
    NoOperations,
    /// This parent is registered already.
    ParentExists,
    /// No free slot for another parent.
    ParentsFull,
    /// The text is not a UUID.
    BadUuid,
    /// A child of this UUID exists, or somebody still holds a reference to one that did.
    ChildExists,
    /// The parent is going or gone, or the handle is stale.
    ParentGone,
    /// The parent has no instances left.
    NoInstances,
    /// No free slot for another child of any parent.
    ChildrenFull,
    /// No such child, or the handle is stale.
    NoChild,
    /// The child is half created or being removed.
    NotActive,
    /// The parent's `create` failed with this; the UUID and the instance are free again.
    CreateFailed(Errno),
}

impl MediatedError {
    /// As the specification numbers it.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::NoOperations | Self::BadUuid => Errno::EINVAL,
            Self::ParentExists | Self::ChildExists => Errno::EEXIST,
            Self::ParentsFull | Self::ChildrenFull => Errno::ENOMEM,
            Self::ParentGone | Self::NoChild => Errno::ENODEV,
            Self::NoInstances => Errno::EUSERS,
            Self::NotActive => Errno::EAGAIN,
            Self::CreateFailed(errno) => errno,
        }
    }
}

impl From<BadUuid> for MediatedError {
    fn from(_: BadUuid) -> Self {
        Self::BadUuid
    }
}

impl fmt::Display for MediatedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Self::NoOperations => "a parent needs operations",
            Self::ParentExists => "this parent is registered already",
            Self::ParentsFull => "no free slot for another parent",
            Self::BadUuid => "not a UUID",
            Self::ChildExists => "this UUID is taken, or its last holder has not let go",
            Self::ParentGone => "the parent is going or gone",
            Self::NoInstances => "the parent has no instances left; remove a child first",
            Self::ChildrenFull => "no free slot for another child",
            Self::NoChild => "no such child",
            Self::NotActive => "the child is being created or removed; try again",
            Self::CreateFailed(_) => "the parent refused to create the child",
        };
        write!(f, "{why}: {}", self.errno())
    }
}

impl core::error::Error for MediatedError {}
