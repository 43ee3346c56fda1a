//! One INTx line that interrupts, acks, users and its release share.
//!
//! ```text
//!  interrupt                 guest's ack / user             release
//!  lock                      lock                           lock: Closing, masked once more; unlock
//!  Idle → Raised             Raised → Idle                  free the interrupt (waits for those in the handler)
//!  mask, raise               lower, read status, unmask     lock: Freed; unlock; unregister the ack (waits)
//!  unlock                    unlock                         lock: Free, lower, take the trigger; unlock; drop it
//! ```
//! What a transition owes is settled under the lock that made it: otherwise an ack could unmask before the
//! interrupt that it acknowledges has masked, and the line would stay dead at depth 1 (race 27). The lock is a
//! leaf: [`IntxHost`] and [`Level`] neither wait nor call back.

use super::intx::{IntxEvent, IntxIllegal, IntxState, intx_next};
use super::owed::Action;
use crate::prim::{Mutation, planted};
use crate::sync::{SpinGuard, SpinLock};

/// The host's side of a line. Called under the line's lock.
pub trait IntxHost {
    /// Disables the interrupt, now and not when it next arrives.
    fn mask(&mut self);
    /// Enables it.
    fn unmask(&mut self);
    /// Whether the device asserts it at this moment.
    fn is_pending(&mut self) -> bool;
}

/// The guest's side of a line. Called under the line's lock.
pub trait Level {
    /// Raises it; raising twice is raising once.
    fn raise(&mut self);
    /// Lowers it.
    fn lower(&mut self);
}

/// See the module's text.
#[derive(Debug)]
pub struct IntxLine<H, T> {
    inner: SpinLock<Inner<H, T>>,
}

#[derive(Debug)]
struct Inner<H, T> {
    state: IntxState,
    host: H,
    /// May be missing while the line lives: the handler outlives it (race 26).
    trigger: Option<T>,
}

impl<H: IntxHost, T: Level> IntxLine<H, T> {
    /// A line that nobody has requested.
    pub fn new(host: H) -> Self {
        Self { inner: SpinLock::new(Inner { state: IntxState::Free, host, trigger: None }) }
    }

    /// Where the line is at this moment.
    #[must_use]
    pub fn state(&self) -> IntxState {
        self.inner.lock().state
    }

    /// Before the handler is registered. It must be registered disabled.
    ///
    /// # Errors
    /// [`IntxIllegal`] when the line is in use.
    pub fn request(&self) -> Result<(), IntxIllegal> {
        self.apply(IntxEvent::Request)
    }

    /// After the handler is registered: unmasks unless the guest has DisINTx set.
    ///
    /// # Errors
    /// [`IntxIllegal`] unless it was just requested.
    pub fn start(&self, disintx: bool) -> Result<(), IntxIllegal> {
        self.apply(IntxEvent::Start { off: disintx })
    }

    /// The handler of an interrupt that is this device's alone; true when this one was new.
    ///
    /// # Errors
    /// [`IntxIllegal`] when no handler is registered.
    pub fn arrive(&self) -> Result<bool, IntxIllegal> {
        self.interrupt(false)
    }

    /// The handler of an interrupt that others share: true when it was ours, by the device's status.
    ///
    /// # Errors
    /// [`IntxIllegal`] when no handler is registered.
    pub fn arrive_shared(&self) -> Result<bool, IntxIllegal> {
        self.interrupt(true)
    }

    /// The guest's ack (EOI), of this device or of one that shares the line.
    ///
    /// # Errors
    /// [`IntxIllegal`] when no ack notifier is registered.
    pub fn ack(&self) -> Result<(), IntxIllegal> {
        self.apply(IntxEvent::Ack { pending: false })
    }

    /// The user masks; masking twice is masking once.
    ///
    /// # Errors
    /// [`IntxIllegal`] when the line is not live.
    pub fn mask(&self) -> Result<(), IntxIllegal> {
        self.apply(IntxEvent::Mask)
    }

    /// The user unmasks.
    ///
    /// # Errors
    /// [`IntxIllegal`] when the line is not live.
    pub fn unmask(&self) -> Result<(), IntxIllegal> {
        self.apply(IntxEvent::Unmask { pending: false })
    }

    /// The guest wrote DisINTx.
    ///
    /// # Errors
    /// [`IntxIllegal`] when the line is not live.
    pub fn set_disintx(&self, disintx: bool) -> Result<(), IntxIllegal> {
        self.apply(if disintx { IntxEvent::Disable } else { IntxEvent::Enable { pending: false } })
    }

    /// Replaces the guest's side; the old one is the caller's to drop, without the lock. A line that is high
    /// lowers the old one and raises the new one.
    #[must_use = "the old trigger is to be dropped where no lock is held"]
    pub fn set_trigger(&self, trigger: Option<T>) -> Option<T> {
        let mut inner = self.inner.lock();
        let raised = inner.state.is_raised();
        if raised {
            inner.act(Action::Lower);
        }
        let old = core::mem::replace(&mut inner.trigger, trigger);
        if raised {
            inner.act(Action::Raise);
        }
        old
    }

    /// Begins the one order in which a line goes. Interrupts and acks may still come; they do nothing any more.
    ///
    /// # Errors
    /// [`IntxIllegal`] when the line is not live, or somebody else closes it.
    pub fn close(&self) -> Result<LineClosing<'_, H, T>, IntxIllegal> {
        self.apply(IntxEvent::Close).map(|()| LineClosing { line: self })
    }

    fn interrupt(&self, shared: bool) -> Result<bool, IntxIllegal> {
        let mut inner = self.inner.lock();
        let ours = inner.state == IntxState::Idle && (!shared || inner.host.is_pending());
        if ours {
            self.commit(inner, IntxEvent::Arrive, |_| true)
        } else {
            intx_next(inner.state, IntxEvent::Arrive).map(|_| false)
        }
    }

    fn apply(&self, event: IntxEvent) -> Result<(), IntxIllegal> {
        self.commit(self.inner.lock(), event, |_| ())
    }

    /// The one setter. The device is asked for its status under the lock and only when that decides; `then` runs
    /// under it last.
    fn commit<'a, R>(
        &'a self,
        mut inner: SpinGuard<'a, Inner<H, T>>,
        event: IntxEvent,
        then: impl FnOnce(&mut Inner<H, T>) -> R,
    ) -> Result<R, IntxIllegal> {
        let event = inner.sampled(event);
        let (state, owed) = intx_next(inner.state, event)?;
        inner.state = state;
        if planted(Mutation::IntxOwedUnlocked) {
            drop(inner);
            inner = self.inner.lock();
        }
        owed.settle(|action| inner.act(action));
        Ok(then(&mut inner))
    }
}

impl<H: IntxHost, T: Level> Inner<H, T> {
    fn sampled(&mut self, event: IntxEvent) -> IntxEvent {
        if !self.state.would_unmask(event) {
            return event;
        }
        let pending = self.host.is_pending();
        match event {
            IntxEvent::Ack { .. } => IntxEvent::Ack { pending },
            IntxEvent::Unmask { .. } => IntxEvent::Unmask { pending },
            IntxEvent::Enable { .. } => IntxEvent::Enable { pending },
            other => other,
        }
    }

    fn act(&mut self, action: Action) {
        match (action, &mut self.trigger) {
            (Action::Mask, _) => self.host.mask(),
            (Action::Unmask, _) => self.host.unmask(),
            (Action::Raise, Some(trigger)) => trigger.raise(),
            (Action::Lower, Some(trigger)) => trigger.lower(),
            (Action::Raise | Action::Lower, None) => {}
        }
    }
}

/// A line whose source is disabled. Dropping this leaks the line in that state.
#[derive(Debug)]
#[must_use = "the interrupt is still to be freed"]
pub struct LineClosing<'a, H, T> {
    line: &'a IntxLine<H, T>,
}

/// A line whose interrupt is freed. Dropping this leaks the line in that state.
#[derive(Debug)]
#[must_use = "the ack notifier is still to be unregistered"]
pub struct LineFreed<'a, H, T> {
    line: &'a IntxLine<H, T>,
}

impl<'a, H: IntxHost, T: Level> LineClosing<'a, H, T> {
    /// Frees the interrupt by `free`, which waits for those in the handler, without a lock.
    pub fn free(self, free: impl FnOnce()) -> LineFreed<'a, H, T> {
        free();
        self.line.apply(IntxEvent::Freed).expect("closing elects one");
        LineFreed { line: self.line }
    }
}

impl<H: IntxHost, T: Level> LineFreed<'_, H, T> {
    /// Unregisters the ack notifier by `unregister`, which waits for those in it, without a lock; then lowers the
    /// line and returns its trigger, to be dropped by the caller.
    #[must_use = "the trigger is to be dropped where no lock is held"]
    pub fn unregister_ack(self, unregister: impl FnOnce()) -> Option<T> {
        unregister();
        let inner = self.line.inner.lock();
        self.line.commit(inner, IntxEvent::AckGone, |inner| inner.trigger.take()).expect("closing elects one")
    }
}
