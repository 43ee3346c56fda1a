//! The life of one child.

use core::fmt;

/// Where a child's slot is in its life.
///
/// ```text
///   Free ──create()──► Creating ──work done──► Active ──remove() or unregister()──► Removing
///    ▲                    │                                                            │ work done
///    ├───── work failed ──┘                                                            ▼
///    └───────────────────────────────── last reference dropped ────────────────────── Dead
/// ```
/// Its UUID is taken, and one instance of its parent's capacity with it, in every state but `Free`. Both come
/// back on the edges into `Free`, and nowhere else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChildState {
    /// Nobody's.
    #[default]
    Free,
    /// Half created: its parent's `create` is running.
    Creating,
    /// Usable.
    Active,
    /// Its parent's `remove` is running, for the one caller who got it here.
    Removing,
    /// Torn down, but somebody still holds a reference.
    Dead,
}

impl ChildState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Free, Self::Creating, Self::Active, Self::Removing, Self::Dead];
}

/// What happens to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildEvent {
    /// `create` takes the slot.
    Reserve,
    /// The parent's `create` succeeded.
    Created,
    /// The parent's `create` failed.
    Failed,
    /// `remove`, or `unregister` of the parent, claims the tearing down.
    Claim,
    /// The parent's `remove` has returned, with whatever result.
    TornDown,
    /// The last reference is gone.
    LastPut,
}

impl ChildEvent {
    /// Every event.
    pub const ALL: [Self; 6] =
        [Self::Reserve, Self::Created, Self::Failed, Self::Claim, Self::TornDown, Self::LastPut];
}

/// An event that its state does not allow; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Illegal {
    /// Where the child was.
    pub state: ChildState,
    /// What was tried.
    pub event: ChildEvent,
}

/// The transition table. See [`ChildState`].
///
/// # Errors
/// [`Illegal`] for every pair that is not an edge of the diagram.
pub const fn next(state: ChildState, event: ChildEvent) -> Result<ChildState, Illegal> {
    use ChildEvent as E;
    use ChildState as S;
    Ok(match (state, event) {
        (S::Free, E::Reserve) => S::Creating,
        (S::Creating, E::Created) => S::Active,
        (S::Creating, E::Failed) | (S::Dead, E::LastPut) => S::Free,
        (S::Active, E::Claim) => S::Removing,
        (S::Removing, E::TornDown) => S::Dead,
        (state, event) => return Err(Illegal { state, event }),
    })
}

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a child that is {:?} cannot take {:?}", self.state, self.event)
    }
}

impl core::error::Error for Illegal {}
