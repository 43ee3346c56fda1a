//! A place for one trigger that users, a hang-up and the device's release all want to clear.
//!
//! ```text
//!  signal                        clear (ioctl, hang-up or release)
//!  lock                          lock
//!  look, and use what is there   take it out: whoever gets Some owns the release
//!  unlock                        unlock, release without the lock
//! ```
//! A slot is looked at and used in one critical section, so no one signals what was cleared in between (races 26
//! and 29); it is taken in one, so two of them never both release it (race 24).

use core::fmt;

use crate::Errno;
use crate::ids::Generation;
use crate::prim::{Mutation, planted};
use crate::sync::SpinLock;

/// See the module's text.
#[derive(Debug)]
pub struct Slot<T> {
    inner: SpinLock<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    generation: Generation,
    closed: bool,
    value: Option<T>,
}

/// Names one occupant of a slot, for its own hang-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupant(Generation);

/// Why a slot refused; the value comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// Somebody is in it.
    Occupied,
    /// The device is released.
    Closed,
}

impl SlotError {
    /// As the specification numbers it.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::Occupied => Errno::EBUSY,
            Self::Closed => Errno::ENODEV,
        }
    }
}

impl<T> Slot<T> {
    /// An empty slot.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: SpinLock::new(Inner { generation: Generation(0), closed: false, value: None }) }
    }

    /// Puts `value` in, if nobody is in.
    ///
    /// # Errors
    /// [`SlotError`], with the value.
    pub fn install(&self, value: T) -> Result<Occupant, (SlotError, T)> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err((SlotError::Closed, value));
        }
        if inner.value.is_some() {
            return Err((SlotError::Occupied, value));
        }
        inner.value = Some(value);
        Ok(Occupant(inner.generation))
    }

    /// Swaps whoever is in for `value`, which may be nobody; the old one is the caller's to release.
    ///
    /// # Errors
    /// [`SlotError::Closed`], with the value.
    pub fn replace(&self, value: Option<T>) -> Result<Option<T>, (SlotError, Option<T>)> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err((SlotError::Closed, value));
        }
        inner.generation = inner.generation.next();
        Ok(core::mem::replace(&mut inner.value, value))
    }

    /// Runs `f` on whoever is in. `f` runs under the lock: it signals, and neither waits nor calls back.
    pub fn with<R>(&self, f: impl FnOnce(&T) -> R) -> Option<R> {
        let mut inner = self.inner.lock();
        if planted(Mutation::SlotPeeked) && inner.value.is_some() {
            drop(inner);
            inner = self.inner.lock();
            return Some(f(inner.value.as_ref().expect("it was there a moment ago")));
        }
        inner.value.as_ref().map(f)
    }

    /// Takes out whoever is in. Of several callers one gets it.
    #[must_use = "it is the caller's to release"]
    pub fn take(&self) -> Option<T> {
        let mut inner = self.inner.lock();
        inner.generation = inner.generation.next();
        inner.value.take()
    }

    /// Takes out this occupant and no other: a late hang-up does not reach the next one.
    #[must_use = "it is the caller's to release"]
    pub fn hang_up(&self, who: Occupant) -> Option<T> {
        let mut inner = self.inner.lock();
        if inner.generation != who.0 {
            return None;
        }
        inner.generation = inner.generation.next();
        inner.value.take()
    }

    /// The device's release: takes out whoever is in and refuses all who come later.
    #[must_use = "it is the caller's to release"]
    pub fn close(&self) -> Option<T> {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.generation = inner.generation.next();
        inner.value.take()
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Self::Occupied => "a trigger is set already; remove it first",
            Self::Closed => "the device is released",
        };
        write!(f, "{why}: {}", self.errno())
    }
}

impl core::error::Error for SlotError {}
