//! io_uring: one multishot poll per eventfd, `io_uring_enter` to wait.

use super::Shared;
use pollvisor::error::Result;
use pollvisor::sys::uring::PollRing;
use std::sync::Arc;

/// Loops until it is over.
pub fn run(shared: &Arc<Shared>, ready: &dyn Fn()) -> Result<()> {
    let wake = shared.events.len();
    let mut ring = PollRing::new(shared.events.iter().chain([&shared.wake]).cloned().collect())?;
    ready();
    while !shared.is_over() {
        ring.wait(|token| {
            if token == wake {
                let _wakes = shared.wake.take();
            } else {
                // Nothing in it: an earlier completion took it.
                shared.deliver(token);
            }
        })?;
    }
    Ok(())
}
