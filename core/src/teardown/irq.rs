//! How one host interrupt of an assigned device goes.
//!
//! ```text
//!  Requested ─disable─► Disabled ─wait─► Drained ─free─► Freed ─disable_msi─► Plain ─unregister_ack─► Unacked
//!            ─lower─► Low
//! ```
//! The source stops before anybody waits, or it would fire again behind the wait; waiting comes before freeing
//! (race 2). The ack notifier goes after the interrupt, and the line is lowered last, when nobody can raise it.
//! `disable` may nest over a masked line: `free` follows. For INTx, `disable_msi` has nothing to do.
//!
//! ```compile_fail,E0599
//! use pollvisor_core::teardown::irq::Disabled;
//! fn too_early(disabled: Disabled) { let _ = disabled.free(|| Ok::<_, ()>(())); }
//! ```
//! ```compile_fail,E0599
//! use pollvisor_core::teardown::irq::Requested;
//! fn too_early(requested: Requested) { let _ = requested.wait(|| Ok::<_, ()>(())); }
//! ```

use super::Stuck;

step! {
    /// An interrupt with a handler. Made once, with it.
    Requested,
    /// Disables the source.
    disable => Disabled
}

step! {
    /// It does not fire any more.
    Disabled,
    /// Waits for the handler and the work it queued. No reference is inferred from a work that was cancelled.
    wait => Drained
}

step! {
    /// Nothing of it is under way.
    Drained,
    /// Frees the interrupt.
    free => Freed
}

step! {
    /// It has no handler.
    Freed,
    /// Disables MSI or MSI-X on the device.
    disable_msi => Plain
}

step! {
    /// The device signals no messages.
    Plain,
    /// Unregisters the ack notifier and waits for one that runs.
    unregister_ack => Unacked
}

step! {
    /// No ack unmasks any more.
    Unacked,
    /// Lowers the guest's line.
    lower => Low
}

end! {
    /// The interrupt is gone and its line is low.
    Low
}

impl Requested {
    /// The token of an interrupt whose handler was just registered.
    #[expect(clippy::new_without_default, reason = "an interrupt is not had by default")]
    pub const fn new() -> Self {
        Self { by_predecessor: () }
    }
}
