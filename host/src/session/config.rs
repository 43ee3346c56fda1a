//! What a session of vectors is asked to be.

use crate::accel::Accelerator;
use crate::accel::Idle;
use crate::error::{Error, Result};
use crate::guest::{MAX_VCPUS, VECTORS_PER_VCPU};
use crate::pin::Placement;
use crate::record::Stage;
use crate::source::Backend;
use pollvisor_core::route::MAX_ROUTES;

/// What signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signals {
    /// An eventfd per vector.
    Eventfd,
    /// A bell per vector in one shared-memory region.
    Doorbell,
}

/// Who delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// A poller, watching eventfds this way.
    Poller(Backend),
    /// The kernel, by `KVM_IRQFD`.
    Irqfd,
}

/// What to set up.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// What runs the guest.
    pub accelerator: Accelerator,
    /// Vectors, 1 to 4096.
    pub vectors: usize,
    /// What signals.
    pub signals: Signals,
    /// Who delivers.
    pub delivery: Delivery,
    /// Whether vCPUs run; else their LAPICs only accept.
    pub running: bool,
    /// What the guest does while idle.
    pub idle: Idle,
    /// How many vCPUs; `None`: as many as the vectors need.
    pub vcpus: Option<u32>,
    /// Where each vCPU goes; those beyond the list are not pinned.
    pub vcpu_placement: Vec<Placement>,
    /// Where the poller goes.
    pub poller_placement: Placement,
    /// How long KVM polls for a halted vCPU, in nanoseconds.
    pub halt_poll_ns: Option<u32>,
    /// Whether each vector has histograms of its own.
    pub each_vector: bool,
}

/// How many vCPUs `vectors` need.
#[must_use]
pub fn vcpus_for(vectors: usize) -> u32 {
    u32::try_from(vectors).unwrap_or(u32::MAX).div_ceil(VECTORS_PER_VCPU).max(1)
}

/// The stages that are measured.
pub(super) fn stages(delivery: Delivery, accelerator: Accelerator) -> Vec<Stage> {
    match delivery {
        Delivery::Irqfd => vec![],
        Delivery::Poller(_) => {
            vec![Stage::SignalToSeen, accelerator.seen_to_injected(), accelerator.signal_to_accepted()]
        }
    }
}

/// Whether it can be, and what to do else.
pub(super) fn check(config: &SessionConfig) -> Result<()> {
    let vectors = config.vectors;
    if vectors == 0 || vectors > MAX_ROUTES {
        return Err(Error::new(format!("--vectors {vectors}: 1 to {MAX_ROUTES} can be routed")));
    }
    let needed = vcpus_for(vectors);
    if let Some(given) = config.vcpus {
        if given == 0 || given > MAX_VCPUS {
            return Err(Error::new(format!("{given} vCPUs; 1 to {MAX_VCPUS} fit")));
        }
        if given < needed {
            return Err(Error::new(format!(
                "{vectors} vectors do not fit {given} vCPUs, {VECTORS_PER_VCPU} to each"
            ))
            .remedy(format!("--cpus boot={needed}")));
        }
    }
    if config.delivery == Delivery::Irqfd && config.signals == Signals::Doorbell {
        return Err(Error::new("the kernel's irqfd takes eventfds, not doorbells").remedy("--source eventfd"));
    }
    Ok(())
}
