//! How an assigned device comes and goes.
//!
//! ```text
//!  Opened ─add_route─► Routed ─listen─► Listening ─set_irqs─► Firing
//!    │ back_out          │ back_out        │ back_out            │ disable_irqs
//!    ▼                   ▼                 ▼                     ▼
//!  NoGsi ◄─free_gsi─ Unrouted ◄─remove_route─ Deaf ◄─stop_listening─ Silent
//!    │ └─set_up_again─► Opened
//!    └─unmap_bars─► Unmapped ─close_device─► Closed ─leave_kvm─► Unlinked ─leave_container─► Gone
//! ```
//! A route outlives whoever delivers by it: removing it before the irqfd is what crashed hosts with posted
//! interrupts. A set-up that fails half-way backs out into the matching place of the tear-down, so what was not
//! set up is not torn down, and the rest in the one order.
//!
//! The route cannot go while somebody delivers by it:
//! ```compile_fail,E0599
//! use pollvisor_core::teardown::device::Silent;
//! fn too_early(silent: Silent) { let _ = silent.remove_route(|| Ok::<_, ()>(())); }
//! ```
//! Interrupts cannot be set up before somebody listens:
//! ```compile_fail,E0599
//! use pollvisor_core::teardown::device::Routed;
//! fn too_early(routed: Routed) { let _ = routed.set_irqs(|| Ok::<_, ()>(())); }
//! ```
//! Nobody backs out twice:
//! ```compile_fail,E0382
//! use pollvisor_core::teardown::device::Routed;
//! fn twice(routed: Routed) { let _ = routed.back_out(); let _ = routed.back_out(); }
//! ```

use super::Stuck;

step! {
    /// In its container, known to KVM, opened, its BARs mapped; no GSI. Made once, with the device.
    Opened,
    /// A GSI is allocated and routed.
    add_route => Routed
}

step! {
    /// Routed, but nobody listens.
    Routed,
    /// An irqfd is assigned, or a poller's lane takes the event.
    listen => Listening
}

step! {
    /// Somebody listens; the device does not fire yet.
    Listening,
    /// SET_IRQS sets the triggers.
    set_irqs => Firing
}

step! {
    /// Set up.
    Firing,
    /// SET_IRQS disables: the source stops first.
    disable_irqs => Silent
}

step! {
    /// The device does not fire any more.
    Silent,
    /// The irqfd is deassigned, or the lane is quiesced: returns when nothing is under way.
    stop_listening => Deaf
}

step! {
    /// Nobody delivers by the route any more.
    Deaf,
    /// The route is removed.
    remove_route => Unrouted
}

step! {
    /// The GSI leads nowhere.
    Unrouted,
    /// The GSI is given back.
    free_gsi => NoGsi
}

step! {
    /// The device has no interrupt.
    NoGsi,
    /// The BARs are unmapped.
    unmap_bars => Unmapped
}

step! {
    /// The guest cannot reach the device.
    Unmapped,
    /// The device's file is closed.
    close_device => Closed
}

step! {
    /// The device is closed.
    Closed,
    /// Its group is taken from KVM's VFIO device.
    leave_kvm => Unlinked
}

step! {
    /// KVM does not know the group any more.
    Unlinked,
    /// The group leaves its container.
    leave_container => Gone
}

end! {
    /// The device is gone.
    Gone
}

impl Opened {
    /// The token of a device that was just opened.
    #[expect(clippy::new_without_default, reason = "a device is not had by default")]
    pub const fn new() -> Self {
        Self { by_predecessor: () }
    }

    /// Gives up on the set-up.
    pub fn back_out(self) -> NoGsi {
        NoGsi { by_predecessor: () }
    }
}

impl NoGsi {
    /// The guest changed its mind, from INTx to MSI-X, say: the set-up begins anew.
    pub fn set_up_again(self) -> Opened {
        Opened { by_predecessor: () }
    }
}

impl Routed {
    /// Gives up on the set-up.
    pub fn back_out(self) -> Deaf {
        Deaf { by_predecessor: () }
    }
}

impl Listening {
    /// Gives up on the set-up.
    pub fn back_out(self) -> Silent {
        Silent { by_predecessor: () }
    }
}
