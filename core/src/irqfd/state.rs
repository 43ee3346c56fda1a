//! The life of an irqfd: one way, one table.

/// Where an irqfd is in its life.
///
/// ```text
///        assign          assign: under the lock     deassign, hang_up, release
///  Free ────────► Allocated ────────► Listed ───────────────────────────► Deactivated
///    ▲               │ assign fails                                            │ shutdown: source unhooked
///    │◄──────────────┘                                                         ▼
///    │          shutdown: everything left                 injections flushed
///    └──────────────────────────────────── Drained ◄──────────────────── Unhooked
/// ```
/// *Active* means `Listed`. Leaving it, under the irqfd lock, elects the one owner of the shutdown (race 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nobody's; its generation is the next owner's.
    Free = 0,
    /// Being assigned: its source may fire, and is deferred.
    Allocated = 1,
    /// Active.
    Listed = 2,
    /// Off the list, its shutdown queued; what fires is deferred.
    Deactivated = 3,
    /// Its source reports nothing any more.
    Unhooked = 4,
    /// Nothing deferred for it is left.
    Drained = 5,
}

/// What moves an irqfd on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// `assign` took a free slot.
    Allocate,
    /// `assign` failed before the irqfd was listed.
    Abandon,
    /// `assign` put it on the list.
    List,
    /// `deassign`, `hang_up` or `release` took it off the list.
    Deactivate,
    /// The shutdown worker detached the source.
    Unhook,
    /// The shutdown worker waited for the injections.
    Drain,
    /// The shutdown worker gave everything back.
    Free,
}

/// An event that its state does not have. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Illegal {
    /// The state.
    pub state: State,
    /// The event.
    pub event: Event,
}

impl State {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::Free, Self::Allocated, Self::Listed, Self::Deactivated, Self::Unhooked, Self::Drained];

    /// The transition table.
    ///
    /// # Errors
    /// [`Illegal`] for every pair that the diagram does not have.
    pub const fn next(self, event: Event) -> Result<Self, Illegal> {
        match (self, event) {
            (Self::Free, Event::Allocate) => Ok(Self::Allocated),
            (Self::Allocated, Event::List) => Ok(Self::Listed),
            (Self::Listed, Event::Deactivate) => Ok(Self::Deactivated),
            (Self::Deactivated, Event::Unhook) => Ok(Self::Unhooked),
            (Self::Unhooked, Event::Drain) => Ok(Self::Drained),
            (Self::Drained, Event::Free) | (Self::Allocated, Event::Abandon) => Ok(Self::Free),
            (state, event) => Err(Illegal { state, event }),
        }
    }

    pub(super) const fn from_bits(bits: u64) -> Self {
        match bits & 0x7f {
            1 => Self::Allocated,
            2 => Self::Listed,
            3 => Self::Deactivated,
            4 => Self::Unhooked,
            5 => Self::Drained,
            _ => Self::Free,
        }
    }
}

impl Event {
    /// All events.
    pub const ALL: [Self; 7] =
        [Self::Allocate, Self::Abandon, Self::List, Self::Deactivate, Self::Unhook, Self::Drain, Self::Free];
}
