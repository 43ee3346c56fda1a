//! rust-vmm's `event-manager`: the user-space loop of Firecracker's and Cloud Hypervisor's kind. One subscriber with a
//! queue per vector, found by the number that epoll brings back, which is the quickest that the crate offers.

use super::Shared;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use pollvisor::error::{Error, Result};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

const WAKE: u32 = u32::MAX;

struct Device {
    shared: Arc<Shared>,
    refused: Option<event_manager::Error>,
}

impl MutEventSubscriber for Device {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if events.data() == WAKE {
            let _wakes = self.shared.wake.take();
        } else if let Ok(vector) = usize::try_from(events.data()) {
            self.shared.deliver(vector);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let shared = self.shared.clone();
        let queues = (0..WAKE).zip(&shared.events).chain([(WAKE, &shared.wake)]);
        for (data, event) in queues {
            let added = ops.add(Events::with_data_raw(event.as_fd().as_raw_fd(), data, EventSet::IN));
            self.refused = self.refused.take().or(added.err());
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::new(format!("event-manager: {error}"))
}

/// Loops until it is over.
pub fn run(shared: &Arc<Shared>, ready: &dyn Fn()) -> Result<()> {
    let mut manager = EventManager::<Device>::new().map_err(failed)?;
    let id = manager.add_subscriber(Device { shared: shared.clone(), refused: None });
    if let Some(error) = manager.subscriber_mut(id).map_err(failed)?.refused.take() {
        return Err(failed(error));
    }
    ready();
    while !shared.is_over() {
        manager.run().map_err(failed)?;
    }
    Ok(())
}
