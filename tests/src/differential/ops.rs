//! What is done to both sides, by names that mean the same on each.

use pollvisor_core::irqfd::{FLAG_DEASSIGN, FLAG_RESAMPLE};
use pollvisor_core::route::{Irqchip, RawRoute};
use std::fmt;

/// Eventfds that signal.
pub const EVENTS: usize = 8;
/// Eventfds that are signalled at an ack.
pub const RESAMPLES: usize = 3;

/// One of a side's VMs, by its chips. There is one of each, and they share the side's descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// All chips in the kernel.
    Kernel,
    /// Only the LAPIC.
    Split,
    /// None.
    Bare,
}

impl World {
    /// All, in the order of their index.
    pub const ALL: [Self; 3] = [Self::Kernel, Self::Split, Self::Bare];

    /// Its chips.
    #[must_use]
    pub const fn irqchip(self) -> Irqchip {
        match self {
            Self::Kernel => Irqchip::Kernel,
            Self::Split => Irqchip::Split,
            Self::Bare => Irqchip::None,
        }
    }
}

/// A descriptor that a call names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fd {
    /// One of [`EVENTS`].
    Event(usize),
    /// One of [`RESAMPLES`].
    Resample(usize),
    /// Open, and not an eventfd.
    Plain,
    /// Not open.
    Closed,
}

/// One step.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// Replace the GSI routes.
    Routes {
        /// Whose.
        world: World,
        /// The table's flags.
        flags: u32,
        /// The entries.
        routes: Vec<RawRoute>,
    },
    /// `KVM_IRQFD`.
    Irqfd {
        /// Whose.
        world: World,
        /// The eventfd.
        fd: Fd,
        /// The GSI.
        gsi: u32,
        /// `KVM_IRQFD_FLAG_*`.
        flags: u32,
        /// The resample descriptor, looked at with its flag only.
        resample: Fd,
    },
    /// Close an eventfd, bound or not, and make a new one in its place.
    Close(usize),
    /// Write to an eventfd.
    Signal {
        /// Which.
        event: usize,
        /// How often.
        writes: u32,
        /// How much each time.
        value: u64,
    },
    /// Read an eventfd: how much is in it is part of the answer.
    Read(usize),
    /// Write an entry of the I/O APIC, by its saved state.
    Program {
        /// Whose pin.
        pin: u8,
        /// The entry.
        entry: u64,
    },
    /// The guest serves a level interrupt and ends it.
    End(u8),
}

impl Op {
    /// The kinds, as [`kind`](Self::kind) counts them.
    pub const KINDS: [&'static str; 8] =
        ["routes", "assign", "deassign", "close", "signal", "read", "program", "end"];

    /// Its kind, as an index.
    #[must_use]
    pub fn kind(&self) -> usize {
        match self {
            Self::Routes { .. } => 0,
            Self::Irqfd { flags, .. } if flags & FLAG_DEASSIGN == 0 => 1,
            Self::Irqfd { .. } => 2,
            Self::Close(_) => 3,
            Self::Signal { .. } => 4,
            Self::Read(_) => 5,
            Self::Program { .. } => 6,
            Self::End(_) => 7,
        }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Routes { world, flags, routes } => {
                write!(f, "{world:?}: {} routes, flags {flags:#x}", routes.len())?;
                for route in routes.iter().take(40) {
                    let RawRoute { gsi, kind, flags, words } = route;
                    write!(f, "\n      gsi {gsi} type {kind} flags {flags:#x} {words:x?}")?;
                }
                if routes.len() > 40 { f.write_str("\n      ...") } else { Ok(()) }
            }
            Self::Irqfd { world, fd, gsi, flags, resample } => {
                write!(f, "{world:?}: irqfd {fd:?} gsi {gsi} flags {flags:#x}")?;
                if flags & FLAG_RESAMPLE != 0 { write!(f, " resample {resample:?}") } else { Ok(()) }
            }
            Self::Close(event) => write!(f, "close event {event}"),
            Self::Signal { event, writes, value } => {
                write!(f, "signal event {event}: {writes} times {value}")
            }
            Self::Read(event) => write!(f, "read event {event}"),
            Self::Program { pin, entry } => write!(f, "I/O APIC pin {pin} := {entry:#x}"),
            Self::End(vector) => write!(f, "end of vector {vector:#x}"),
        }
    }
}

/// What a step came to: an error number (0: none), and what a read took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Answer {
    /// 0 or an error number.
    pub errno: i32,
    /// What [`Op::Read`] found.
    pub count: u64,
}

impl Answer {
    /// The error of a system call, or none.
    #[must_use]
    pub fn of(result: &pollvisor::Result<()>) -> Self {
        Self { errno: result.as_ref().err().map_or(0, |e| e.errno().unwrap_or(-1)), count: 0 }
    }
}
