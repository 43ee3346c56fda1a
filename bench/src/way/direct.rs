//! The producer's own thread injects: `KVM_SIGNAL_MSI`, or a post into the software LAPIC's descriptor. Nobody is told and
//! nothing is handed over, so no way by way of another thread is quicker.

use super::accepting::{Accepting, Injected};
use super::{Config, Trigger, Way, message, trigger};
use crate::measure::matching::Taken;
use pollvisor::clock::Clock;
use pollvisor::error::Result;
use std::sync::Arc;
use trigger::Told;

struct Direct {
    accepting: Accepting,
    told: Vec<Arc<Told>>,
}

pub fn start(config: &Config, clock: Clock) -> Result<(Box<dyn Way>, Vec<Trigger>)> {
    let accepting = Accepting::new(config.accelerator, config.vectors)?;
    let inject = Arc::new(accepting.vm.injector()?);
    let messages: Vec<_> = (0..config.vectors).map(|vector| message(vector, config.vectors)).collect();
    let (triggers, told) = trigger::direct(clock, &inject, &messages, config.producers);
    Ok((Box::new(Direct { accepting, told }), triggers))
}

impl Direct {
    fn injected(&self) -> Injected {
        let mut injected = Injected::default();
        for told in &self.told {
            injected.accepted += told.accepted();
            injected.coalesced += told.coalesced();
        }
        injected
    }
}

impl Way for Direct {
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

    fn coalesced(&self) -> Option<u64> {
        self.accepting.coalesced(self.injected())
    }

    fn stop(self: Box<Self>) -> Result<()> {
        self.accepting.check(self.injected())
    }
}
