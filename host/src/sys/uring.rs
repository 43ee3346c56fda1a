//! An io_uring that polls eventfds, multishot: one submission each, a completion per signal. For the benchmark.

use super::fd::EventFd;
use crate::error::{Error, Result};
use io_uring::{IoUring, cqueue, opcode, types};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

/// See the module's text.
pub struct PollRing {
    ring: IoUring,
    /// By token. They stay open as long as the ring, which is closed first.
    watched: Vec<Arc<EventFd>>,
    again: Vec<usize>,
}

impl PollRing {
    /// A ring that watches these; an eventfd's place is its token.
    ///
    /// # Errors
    /// EPERM or ENOSYS where io_uring is not allowed or not there, EINVAL where it has no multishot polls (before 5.13).
    pub fn new(watched: Vec<Arc<EventFd>>) -> Result<Self> {
        const SUBMISSIONS: u32 = 256;
        let completions = u32::try_from(watched.len()).unwrap_or(u32::MAX).clamp(SUBMISSIONS, 1 << 15);
        let ring = IoUring::builder().setup_cqsize(2 * completions).build(SUBMISSIONS);
        let ring = ring.map_err(|e| {
            Error::os("making an io_uring", &e)
                .remedy_for(
                    libc::EPERM,
                    "sysctl kernel.io_uring_disabled=0, or a container that allows io_uring",
                )
                .remedy_for(libc::ENOSYS, "a kernel with io_uring")
        })?;
        let again = (0..watched.len()).collect();
        let mut ring = Self { ring, watched, again };
        ring.arm()?;
        Ok(ring)
    }

    fn arm(&mut self) -> Result<()> {
        while let Some(token) = self.again.pop() {
            let fd = types::Fd(self.watched[token].as_fd().as_raw_fd());
            let poll = opcode::PollAdd::new(fd, libc::POLLIN.cast_unsigned().into()).multi(true);
            let entry = poll.build().user_data(token as u64);
            // SAFETY: a poll carries no pointers, and its descriptor stays open: `watched` is only dropped with the ring.
            while unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.submit(0)?;
            }
        }
        self.submit(0)
    }

    fn submit(&self, wait_for: usize) -> Result<()> {
        match self.ring.submit_and_wait(wait_for) {
            Err(e) if e.raw_os_error() != Some(libc::EINTR) => Err(Error::os("io_uring_enter", &e)),
            _ => Ok(()),
        }
    }

    /// Waits for completions and gives each eventfd's token to `f`, which drains it. A poll that has ended is made again
    /// afterwards.
    ///
    /// # Errors
    /// The kernel's; a poll that failed.
    pub fn wait(&mut self, mut f: impl FnMut(usize)) -> Result<()> {
        self.submit(1)?;
        while let Some(entry) = self.ring.completion().next() {
            if entry.result() < 0 {
                let error = std::io::Error::from_raw_os_error(-entry.result());
                return Err(Error::os("polling an eventfd with io_uring", &error));
            }
            let token = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            if !cqueue::more(entry.flags()) {
                self.again.push(token);
            }
            f(token);
        }
        if self.again.is_empty() { Ok(()) } else { self.arm() }
    }
}

impl std::fmt::Debug for PollRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PollRing of {} eventfds", self.watched.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs io_uring, which containers forbid"]
    fn every_signalled_eventfd_is_told_again_and_again() {
        let events: Vec<_> = (0..300).map(|_| Arc::new(EventFd::new().expect("an eventfd"))).collect();
        let mut ring = PollRing::new(events.clone()).expect("io_uring");
        for round in 1..=3u64 {
            for at in [0, 7, 299] {
                events[at].signal(round);
            }
            let mut seen = Vec::new();
            while seen.len() < 3 {
                ring.wait(|token| seen.push((token, events[token].take()))).expect("completions");
            }
            seen.sort_unstable();
            assert_eq!(seen, [(0, round), (7, round), (299, round)]);
        }
    }
}
