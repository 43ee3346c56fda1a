//! tokio: a runtime on the current thread, a task per vector, each with an `AsyncFd` used as its documentation does.

use super::Shared;
use pollvisor::error::{Error, Result};
use pollvisor::sys::fd::EventFd;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

struct Watched(Arc<EventFd>);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[allow(
    deprecated,
    reason = "its successor is unsafe, for types whose descriptor could change; this one's cannot"
)]
fn watch(event: &Arc<EventFd>) -> Result<AsyncFd<Watched>> {
    AsyncFd::with_interest(Watched(event.clone()), Interest::READABLE)
        .map_err(|e| Error::os("watching an eventfd with tokio", &e))
}

/// Until the runtime ends.
async fn serve(shared: Arc<Shared>, vector: usize, fd: AsyncFd<Watched>) {
    while let Ok(mut guard) = fd.readable().await {
        // Clears the readiness when there was nothing.
        let _taken =
            guard.try_io(|_| if shared.deliver(vector) { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) });
    }
}

/// Loops until it is over.
pub fn run(shared: &Arc<Shared>, ready: &dyn Fn()) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.map_err(|e| Error::os("making a tokio runtime", &e))?;
    runtime.block_on(async {
        for (vector, event) in shared.events.iter().enumerate() {
            tokio::spawn(serve(shared.clone(), vector, watch(event)?));
        }
        let wake = watch(&shared.wake)?;
        ready();
        while !shared.is_over() {
            let ended = wake.readable().await;
            ended.map_err(|e| Error::os("waiting with tokio", &e))?.clear_ready();
        }
        Ok(())
    })
}
