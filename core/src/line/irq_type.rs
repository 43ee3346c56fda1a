//! Which of its three kinds of interrupt a device uses, and the gate that every change of it goes through.
//!
//! ```text
//!  SET_IRQS                          config write of DisINTx
//!  enter the gate                    enter the gate
//!  read the type, validate           read the type: not INTx → only the device's own bit
//!  system calls, set the type        INTx → IntxLine::set_disintx
//!  leave                             leave
//! ```
//! The type is only to be had inside the gate, so it cannot be read before (race 25). Lock order: the gate, then
//! a line's or slot's lock. The handler takes the latter alone, so freeing an interrupt inside the gate, which
//! waits for the handler, waits for nobody who wants the gate; and nobody holding a line's lock enters it, so
//! there is no ring (race 30).

use core::fmt;
use core::ops::{Deref, DerefMut};

use crate::Errno;
use crate::sync::SpinLock;

/// The kinds of interrupt, by VFIO's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Level, masked on arrival; one line.
    Intx,
    /// Edge, never masked here.
    Msi,
    /// Edge, never masked here; vector, table index and GSI are three different numbers.
    Msix,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Intx, Self::Msi, Self::Msix];

    /// VFIO's index for it.
    #[must_use]
    pub const fn index(self) -> u32 {
        match self {
            Self::Intx => 0,
            Self::Msi => 1,
            Self::Msix => 2,
        }
    }

    /// Whether it is a level: masked on arrival and acknowledged. The others are edges, delivered at once or,
    /// when that would block, deferred.
    #[must_use]
    pub const fn is_level(self) -> bool {
        matches!(self, Self::Intx)
    }
}

/// What a device's interrupts are set up as.
///
/// ```text
///  None ──enable(kind)──► Intx | Msi | Msix ──disable(the same kind)──► None
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IrqType {
    /// Not at all.
    #[default]
    None,
    /// As this kind.
    Is(Kind),
}

/// What is done to an [`IrqType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TypeEvent {
    /// Set up as this kind.
    Enable(Kind),
    /// Tear this kind down.
    Disable(Kind),
}

/// The device's interrupts are set up as something else; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongType {
    /// What they are set up as.
    pub state: IrqType,
    /// What was tried.
    pub event: TypeEvent,
}

impl WrongType {
    /// EINVAL.
    #[must_use]
    pub const fn errno(self) -> Errno {
        Errno::EINVAL
    }
}

impl IrqType {
    /// Whether it is this kind.
    #[must_use]
    pub const fn is(self, kind: Kind) -> bool {
        matches!(
            (self, kind),
            (Self::Is(Kind::Intx), Kind::Intx)
                | (Self::Is(Kind::Msi), Kind::Msi)
                | (Self::Is(Kind::Msix), Kind::Msix)
        )
    }

    /// The transition table.
    ///
    /// # Errors
    /// [`WrongType`] for enabling over something and for disabling what is not enabled.
    pub const fn next(self, event: TypeEvent) -> Result<Self, WrongType> {
        match (self, event) {
            (Self::None, TypeEvent::Enable(kind)) => Ok(Self::Is(kind)),
            (state, TypeEvent::Disable(kind)) if state.is(kind) => Ok(Self::None),
            (state, event) => Err(WrongType { state, event }),
        }
    }
}

/// A device's interrupt state `T` (its [`IrqType`], and a reference to whatever else SET_IRQS changes) behind
/// its gate.
#[derive(Debug)]
pub struct IrqGate<T> {
    inner: SpinLock<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    /// Missing while somebody is inside, and for good after the release.
    state: Option<T>,
    released: bool,
}

/// The device is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceReleased;

impl DeviceReleased {
    /// ENODEV.
    #[must_use]
    pub const fn errno(self) -> Errno {
        Errno::ENODEV
    }
}

impl<T> IrqGate<T> {
    /// A gate with nobody inside.
    pub fn new(state: T) -> Self {
        Self { inner: SpinLock::new(Inner { state: Some(state), released: false }) }
    }

    /// Goes in, alone, calling `relax` while somebody else is inside. The lock is not held in between, so
    /// whoever is inside may make system calls.
    ///
    /// # Errors
    /// [`DeviceReleased`].
    pub fn enter(&self, mut relax: impl FnMut()) -> Result<InGate<'_, T>, DeviceReleased> {
        loop {
            let mut inner = self.inner.lock();
            if let Some(state) = inner.state.take() {
                return Ok(InGate { gate: self, state: Some(state) });
            }
            if inner.released {
                return Err(DeviceReleased);
            }
            drop(inner);
            relax();
        }
    }
}

/// The right to read and change a device's interrupt state; dropping it leaves the gate.
#[derive(Debug)]
#[must_use = "dropping it leaves the gate at once"]
pub struct InGate<'a, T> {
    gate: &'a IrqGate<T>,
    state: Option<T>,
}

impl<T> InGate<'_, T> {
    /// Releases the device: nobody enters any more, and the state is the caller's to take down.
    #[must_use = "what is set up in it is still to be torn down"]
    pub fn release(mut self) -> T {
        let state = self.state.take().expect("present until the release or the drop");
        self.gate.inner.lock().released = true;
        state
    }
}

impl<T> Deref for InGate<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.state.as_ref().expect("present until the release or the drop")
    }
}

impl<T> DerefMut for InGate<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.state.as_mut().expect("present until the release or the drop")
    }
}

impl<T> Drop for InGate<'_, T> {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            self.gate.inner.lock().state = Some(state);
        }
    }
}

impl fmt::Display for WrongType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} on a device whose interrupts are {:?}: {}", self.event, self.state, self.errno())
    }
}

impl fmt::Display for DeviceReleased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the device is released: {}", self.errno())
    }
}

impl core::error::Error for WrongType {}
impl core::error::Error for DeviceReleased {}
