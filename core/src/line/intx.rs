//! The INTx machine: a level that the host masks on arrival and the guest's ack releases.
//!
//! A pure table. [`IntxLine`](super::IntxLine) runs it under a lock.

use core::fmt;

use super::{Action, Owed};
use crate::Errno;

/// Where an INTx line is.
///
/// ```text
///  Free ──request()──► Requested ──start()──► Idle, or Off when DisINTx is set
///
///              arrive: Mask, Raise                 ack, no longer pending: Lower, Unmask
///      Idle ───────────────────────► Raised ───────────────────────────────────► Idle
///       │ ▲                           │ ▲  └─ ack, still pending: Lower, Raise ─► Raised
///  mask │ │ unmask, not pending  mask │ │ unmask
///       ▼ │                           ▼ │
///      Held ◄──── ack: Lower ─── RaisedHeld           Held ── unmask, pending: Raise ──► Raised
///
///  DisINTx set: Idle, Raised ──► Off      Held, RaisedHeld ──► OffHeld      (Off ◄─ mask, unmask ─► OffHeld)
///  DisINTx cleared: Off ──► Idle, or Raised when pending      OffHeld ──► Held
///
///  any of these ──close()──► Closing ──freed()──► Freed ──ack_unregistered(): Lower──► Free
/// ```
/// The line is masked in every state but `Idle`, and its disable depth is 1 exactly then. Only `Closing` may
/// nest a second disable, because freeing the interrupt follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IntxState {
    /// No handler, no ack notifier.
    #[default]
    Free,
    /// The handler is registered with the interrupt disabled, so none can arrive between the two (race 27).
    Requested,
    /// Unmasked, low.
    Idle,
    /// Arrived: masked by the host, high, the guest's ack is awaited.
    Raised,
    /// Masked by the user, low.
    Held,
    /// Arrived, and masked by the user as well: the ack will not unmask.
    RaisedHeld,
    /// The guest set DisINTx: masked, low.
    Off,
    /// DisINTx is set and the user masked.
    OffHeld,
    /// The source is disabled once more, whether it was or not; work under way is waited for.
    Closing {
        /// It was masked before: the depth is 2.
        nested: bool,
    },
    /// The interrupt is freed; acks may still come.
    Freed,
}

/// What happens to an INTx line. `pending`: the device's interrupt status, read at the unmask and not before
/// (race 20), so an unmask resamples instead of injecting from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntxEvent {
    /// The handler is being registered, disabled.
    Request,
    /// It is; DisINTx as the guest has it.
    Start {
        /// DisINTx.
        off: bool,
    },
    /// The interrupt arrived. It may be a sharing device's.
    Arrive,
    /// The guest acknowledged. It may have meant a sharing device.
    Ack {
        /// Still asserted by the device.
        pending: bool,
    },
    /// The user masks.
    Mask,
    /// The user unmasks.
    Unmask {
        /// Asserted by the device.
        pending: bool,
    },
    /// The guest sets DisINTx.
    Disable,
    /// The guest clears DisINTx.
    Enable {
        /// Asserted by the device.
        pending: bool,
    },
    /// The line goes.
    Close,
    /// The handler is freed, and everybody in it has left.
    Freed,
    /// The ack notifier is unregistered, and everybody in it has left.
    AckGone,
}

impl IntxState {
    /// Every state.
    pub const ALL: [Self; 11] = [
        Self::Free,
        Self::Requested,
        Self::Idle,
        Self::Raised,
        Self::Held,
        Self::RaisedHeld,
        Self::Off,
        Self::OffHeld,
        Self::Closing { nested: false },
        Self::Closing { nested: true },
        Self::Freed,
    ];

    /// How often the host interrupt is disabled.
    #[must_use]
    pub const fn depth(self) -> u8 {
        match self {
            Self::Free | Self::Idle | Self::Freed => 0,
            Self::Closing { nested: true } => 2,
            _ => 1,
        }
    }

    /// Whether the guest's line is high.
    #[must_use]
    pub const fn is_raised(self) -> bool {
        matches!(self, Self::Raised | Self::RaisedHeld)
    }

    /// Whether `unmask`, `ack` or clearing DisINTx would unmask now, so that the device must be asked for its
    /// status.
    #[must_use]
    pub const fn would_unmask(self, event: IntxEvent) -> bool {
        matches!(
            (self, event),
            (Self::Raised, IntxEvent::Ack { .. })
                | (Self::Held, IntxEvent::Unmask { .. })
                | (Self::Off, IntxEvent::Enable { .. })
        )
    }
}

impl IntxEvent {
    /// Every event.
    pub const ALL: [Self; 15] = [
        Self::Request,
        Self::Start { off: false },
        Self::Start { off: true },
        Self::Arrive,
        Self::Ack { pending: false },
        Self::Ack { pending: true },
        Self::Mask,
        Self::Unmask { pending: false },
        Self::Unmask { pending: true },
        Self::Disable,
        Self::Enable { pending: false },
        Self::Enable { pending: true },
        Self::Close,
        Self::Freed,
        Self::AckGone,
    ];
}

/// An event that its state does not allow; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntxIllegal {
    /// Where the line was.
    pub state: IntxState,
    /// What was tried.
    pub event: IntxEvent,
}

impl IntxIllegal {
    /// EINVAL: the line is not in use as INTx, or not any more.
    #[must_use]
    pub const fn errno(self) -> Errno {
        Errno::EINVAL
    }
}

/// The transition table. See [`IntxState`].
///
/// Masking comes first in what is owed, at once and not lazily, so no re-assert is swallowed (race 28).
///
/// # Errors
/// [`IntxIllegal`] for a pair that is neither an edge of the diagram nor listed here as changing nothing.
pub const fn intx_next(state: IntxState, event: IntxEvent) -> Result<(IntxState, Owed), IntxIllegal> {
    use Action::{Lower, Mask, Raise, Unmask};
    use IntxEvent as E;
    use IntxState as S;
    let (next, owed): (S, &'static [Action]) = match (state, event) {
        (S::Free, E::Request) => (S::Requested, &[]),
        (S::Requested, E::Start { off: false }) => (S::Idle, &[Unmask]),
        (S::Requested, E::Start { off: true }) => (S::Off, &[]),

        (S::Idle, E::Arrive) => (S::Raised, &[Mask, Raise]),
        (S::Raised, E::Ack { pending: false }) => (S::Idle, &[Lower, Unmask]),
        (S::Raised, E::Ack { pending: true }) => (S::Raised, &[Lower, Raise]),
        (S::RaisedHeld, E::Ack { .. }) => (S::Held, &[Lower]),

        (S::Idle, E::Mask) => (S::Held, &[Mask]),
        (S::Raised, E::Mask) => (S::RaisedHeld, &[]),
        (S::Off, E::Mask) => (S::OffHeld, &[]),
        (S::Held, E::Unmask { pending: false }) => (S::Idle, &[Unmask]),
        (S::Held, E::Unmask { pending: true }) => (S::Raised, &[Raise]),
        (S::RaisedHeld, E::Unmask { .. }) => (S::Raised, &[]),
        (S::OffHeld, E::Unmask { .. }) => (S::Off, &[]),

        (S::Idle, E::Disable) => (S::Off, &[Mask]),
        (S::Raised, E::Disable) => (S::Off, &[Lower]),
        (S::Held, E::Disable) => (S::OffHeld, &[]),
        (S::RaisedHeld, E::Disable) => (S::OffHeld, &[Lower]),
        (S::Off, E::Enable { pending: false }) => (S::Idle, &[Unmask]),
        (S::Off, E::Enable { pending: true }) => (S::Raised, &[Raise]),
        (S::OffHeld, E::Enable { .. }) => (S::Held, &[]),

        (state, E::Close) if state.is_live() => (S::Closing { nested: state.depth() == 1 }, &[Mask]),
        (S::Closing { .. }, E::Freed) => (S::Freed, &[]),
        (S::Freed, E::AckGone) => (S::Free, &[Lower]),

        // Not ours, a sharing device's, or what is so already: nothing to do.
        (state, E::Arrive) if state.handler_registered() => (state, &[]),
        (state, E::Ack { .. }) if !matches!(state, S::Free) => (state, &[]),
        (state, E::Mask | E::Unmask { .. } | E::Disable | E::Enable { .. })
            if state.is_live() && !matches!(state, S::Requested) =>
        {
            (state, &[])
        }
        (state, event) => return Err(IntxIllegal { state, event }),
    };
    Ok((next, Owed::new(owed)))
}

impl IntxState {
    /// From `request` until `close`.
    const fn is_live(self) -> bool {
        !matches!(self, Self::Free | Self::Closing { .. } | Self::Freed)
    }

    /// From `request` until `freed`.
    const fn handler_registered(self) -> bool {
        !matches!(self, Self::Free | Self::Freed)
    }
}

impl fmt::Display for IntxIllegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an INTx line that is {:?} cannot take {:?}: {}", self.state, self.event, self.errno())
    }
}

impl core::error::Error for IntxIllegal {}
