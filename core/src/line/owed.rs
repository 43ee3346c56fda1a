//! What a transition leaves to be done.

/// One thing to do to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Disable the host interrupt, at once.
    Mask,
    /// Enable the host interrupt.
    Unmask,
    /// Raise the guest's line.
    Raise,
    /// Lower the guest's line.
    Lower,
}

/// The actions a transition owes, in this order, before the next transition of the same line.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the line is in its new state only when this is settled"]
pub struct Owed(&'static [Action]);

impl Owed {
    pub(super) const fn new(actions: &'static [Action]) -> Self {
        Self(actions)
    }

    /// The actions, for whoever settles them.
    #[must_use]
    pub const fn actions(&self) -> &'static [Action] {
        self.0
    }

    /// Does them.
    pub fn settle(self, mut act: impl FnMut(Action)) {
        self.0.iter().copied().for_each(&mut act);
    }
}
