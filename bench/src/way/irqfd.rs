//! The kernel's own way: `KVM_IRQFD`. The interrupt is injected inside the producer's write.

use super::accepting::Accepting;
use super::{Config, Trigger, Way, gsi, routes};
use crate::measure::matching::Taken;
use kvm_bindings::KVM_IRQFD_FLAG_DEASSIGN;
use pollvisor::clock::Clock;
use pollvisor::error::Result;
use pollvisor::sys::fd::EventFd;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

struct Irqfd {
    accepting: Accepting,
    events: Vec<Arc<EventFd>>,
}

pub fn start(config: &Config, clock: Clock) -> Result<(Box<dyn Way>, Vec<Trigger>)> {
    let accepting = Accepting::new(config.accelerator, config.vectors)?;
    accepting.vm.kvm()?.fd().set_gsi_routing(0, &routes(config.vectors))?;
    let (events, triggers) = config.events(clock)?;
    let way = Irqfd { accepting, events };
    way.bind(0)?;
    Ok((Box::new(way), triggers))
}

impl Irqfd {
    fn bind(&self, flags: u32) -> Result<()> {
        for (vector, event) in self.events.iter().enumerate() {
            self.accepting.vm.kvm()?.fd().irqfd(event.as_fd().as_raw_fd(), gsi(vector), flags, None)?;
        }
        Ok(())
    }
}

impl Way for Irqfd {
    fn take(&mut self) -> Result<Taken> {
        Ok(Taken::default())
    }

    fn is_requested(&self, vector: usize) -> Result<bool> {
        self.accepting.is_requested(vector)
    }

    fn clear_requests(&mut self) -> Result<()> {
        self.accepting.clear_requests()
    }

    fn threads(&self) -> Vec<u32> {
        Vec::new()
    }

    fn left_over(&self, vector: usize) -> u64 {
        self.events[vector].take()
    }

    fn stop(self: Box<Self>) -> Result<()> {
        self.bind(KVM_IRQFD_FLAG_DEASSIGN)
    }
}
