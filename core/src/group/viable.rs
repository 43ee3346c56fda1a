//! Who holds a device of a group, whether that is safe for the others, and what the bus tells about it.

/// Who holds a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// No driver.
    Driverless,
    /// Taken from us, and its driver not yet unbound: on the unbound list.
    Leaving,
    /// A driver that does nothing with it.
    Stub,
    /// A bridge's port driver, which does no DMA of its own.
    Bridge,
    /// Us: in the device list.
    Ours,
    /// A driver of the host that may do DMA.
    Foreign,
}

impl Holder {
    /// Every holder.
    pub const ALL: [Self; 6] =
        [Self::Driverless, Self::Leaving, Self::Stub, Self::Bridge, Self::Ours, Self::Foreign];

    /// Whether a group with a device held so can be given to a user.
    #[must_use]
    pub const fn is_viable(self) -> bool {
        !matches!(self, Self::Foreign)
    }
}

/// What the bus says about a device of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusEvent {
    /// It appeared.
    Add,
    /// It is gone.
    Del,
    /// A driver is about to bind.
    Bind,
    /// A driver has bound: this kind of holder.
    Bound(Holder),
    /// Its driver is about to unbind.
    Unbind,
    /// Its driver has unbound.
    Unbound,
}

/// What the host is to make of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a fatal notice means that a user and a host driver share a DMA domain"]
pub enum Notice {
    /// Nothing.
    Fine,
    /// Warn: a device was added that is known already.
    AlreadyKnown,
    /// Warn: a device was added to a group in use.
    AddedWhileLive,
    /// A host driver bound in a group in use: stop, before memory is corrupted.
    Fatal,
}

/// What an event does to a device: `known` is its holder, `None` an unknown device; the new one is returned,
/// `None` to forget it. `live`: the group has users.
///
/// ```text
///  ADD: unknown ──► Driverless          BOUND(h): Driverless ──► h          UNBOUND: any but Ours ──► Driverless
///  DEL: any but Ours ──► unknown        BIND, UNBIND: no change
/// ```
/// `Ours` is entered and left by `add_device` and `remove_device` alone; an event that pretends otherwise changes
/// nothing.
pub const fn on_event(known: Option<Holder>, event: BusEvent, live: bool) -> (Option<Holder>, Notice) {
    match (known, event) {
        (Some(holder), BusEvent::Add) => (Some(holder), Notice::AlreadyKnown),
        (None, BusEvent::Add) if live => (Some(Holder::Driverless), Notice::AddedWhileLive),
        (None, BusEvent::Add) => (Some(Holder::Driverless), Notice::Fine),
        (None, _) | (Some(_), BusEvent::Bind | BusEvent::Unbind) => (known, Notice::Fine),
        (Some(Holder::Ours), _) | (_, BusEvent::Bound(Holder::Ours)) => (known, Notice::Fine),
        (Some(_), BusEvent::Bound(holder)) => {
            (Some(holder), if live && !holder.is_viable() { Notice::Fatal } else { Notice::Fine })
        }
        (Some(_), BusEvent::Unbound) => (Some(Holder::Driverless), Notice::Fine),
        (Some(_), BusEvent::Del) => (None, Notice::Fine),
    }
}
