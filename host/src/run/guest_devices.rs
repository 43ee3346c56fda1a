//! The devices of a guest that is booted: who delivers which vector, and handing them over while it runs.

use super::devices::others;
use crate::assign::{Assigned, Via};
use crate::cli::{DeliveryArg, DeviceArg, RunArgs};
use crate::error::Result;
use crate::session::GuestSession;
use pollvisor_core::line::Kind;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A device, and who delivers it.
pub(super) struct Attached {
    pub device: Arc<Assigned>,
    pub by: DeliveryArg,
    via: Via,
    /// Its vectors that the poller has; the kernel has the others.
    polled: Vec<usize>,
}

/// Who delivers a device.
pub(super) fn delivery(args: &RunArgs, device: &DeviceArg) -> DeliveryArg {
    device.delivery.unwrap_or(args.delivery)
}

impl Attached {
    /// Attaches a device. The poller that spins is the session's first, the one that sleeps its last.
    ///
    /// # Errors
    /// What is in the way; a vector of `--poller vectors=` that it does not have.
    pub fn new(session: &GuestSession, device: &DeviceArg, args: &RunArgs) -> Result<Self> {
        let by = delivery(args, device);
        let via = match by {
            DeliveryArg::Irqfd => Via::Kernel,
            DeliveryArg::Polled => session.by_poller(0)?,
            DeliveryArg::Blocking => session.by_poller(session.pollers().len() - 1)?,
        };
        let device = session.attach(device, via.clone())?;
        // The last is INTx's, which stays where it is.
        let vectors = device.slots().len().saturating_sub(1);
        let mut polled: Vec<usize> = if by == DeliveryArg::Irqfd { vec![] } else { (0..vectors).collect() };
        let given = args.poller.as_ref().map_or(&[][..], |poller| &poller.vectors);
        if !given.is_empty() && by != DeliveryArg::Irqfd {
            for vector in others(given, device.name(), vectors, Kind::Msix)? {
                device.hand_over(vector, Via::Kernel)?;
                polled.retain(|kept| *kept != vector);
            }
        }
        Ok(Self { device, by, via, polled })
    }

    fn hand_over(&self, to_kernel: bool) -> Result<()> {
        let via = if to_kernel { &Via::Kernel } else { &self.via };
        self.polled.iter().try_for_each(|vector| self.device.hand_over(*vector, via.clone()))
    }
}

/// `--hand-over`: the pollers' vectors go to the kernel and back, by the thread that asks this what to do: never one on
/// a pinned core.
pub(super) struct Turns {
    devices: Vec<Arc<Attached>>,
    period: Duration,
    next: Instant,
    to_kernel: bool,
    moves: u64,
}

impl Turns {
    pub fn new(attached: &[Arc<Attached>], period: Option<Duration>) -> Self {
        let polled = attached.iter().filter(|attached| !attached.polled.is_empty() && period.is_some());
        let period = period.unwrap_or(Duration::MAX);
        Self { devices: polled.cloned().collect(), period, next: Instant::now(), to_kernel: true, moves: 0 }
    }

    /// How long nothing is to be done, up to `longest`.
    pub fn pause(&self, longest: Duration) -> Duration {
        if self.devices.is_empty() {
            return longest;
        }
        self.next.saturating_duration_since(Instant::now()).min(longest)
    }

    /// Hands over, if it is time. A device that cannot be handed over any more stays with its poller, and is said.
    pub fn take(&mut self) {
        if self.devices.is_empty() || Instant::now() < self.next {
            return;
        }
        let (to_kernel, mut moves) = (self.to_kernel, 0);
        self.devices.retain(|attached| {
            moves += attached.polled.len();
            let Err(error) = attached.hand_over(to_kernel) else { return true };
            let name = attached.device.name();
            eprintln!("pollvisor: {name} is not handed over any more: {error}");
            if let Err(error) = attached.hand_over(false) {
                eprintln!("pollvisor: {name}: {error}");
            }
            false
        });
        self.moves += u64::try_from(moves).unwrap_or(0);
        self.to_kernel = !to_kernel;
        self.next = Instant::now() + self.period;
    }

    /// How many vectors were handed over, each time counted.
    pub fn moves(&self) -> u64 {
        self.moves
    }
}
