//! The guest's memory made before the guest runs, by all CPUs, and how far that has come.

use crate::error::{Error, Result};
use crate::pin::available;
use crate::sys::guest_memory::{Advice, advise};
use crate::sys::sched::{set_affinity, thread_id};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use vm_memory::GuestRegionMmap;

/// Bytes that a thread makes at a time, if pages are no larger.
const STEP: usize = 64 << 20;
/// How long making pages may take before it is said.
const QUIET: Duration = Duration::from_secs(1);
/// How often it is said again: on a terminal, and elsewhere.
const REFRESH: Duration = Duration::from_millis(250);
const SELDOM: Duration = Duration::from_secs(5);
/// How often it is looked whether it is done.
const LOOK: Duration = Duration::from_millis(2);

/// Has every page made, by as many threads as this process has CPUs: a page takes the kernel longer to clear than to find.
/// They run everywhere, also where pollers and vCPUs will: none of those runs yet.
pub(super) fn prefault(region: &GuestRegionMmap, size: usize, page: u64, progress: &Progress) -> Result<()> {
    let step = usize::try_from(page).unwrap_or(STEP).max(STEP);
    let (next, cpus) = (AtomicUsize::new(0), available());
    let work = || -> Result<()> {
        // A thread that cannot leave its CPU works there.
        let _moved = set_affinity(thread_id(), &cpus);
        loop {
            let from = next.fetch_add(step, Ordering::Relaxed);
            if from >= size {
                return Ok(());
            }
            let to = size.min(from + step);
            advise(region, from..to, Advice::Populate)
                .inspect_err(|_| next.store(size, Ordering::Relaxed))?;
            progress.add(to - from);
        }
    };
    std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..cpus.len().clamp(1, size.div_ceil(step))).map(|_| scope.spawn(work)).collect();
        while !running.iter().all(|thread| thread.is_finished()) {
            std::thread::sleep(LOOK);
            progress.show();
        }
        running.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(Error::new("a thread that made pages panicked")))
        })
    })
}

/// How far making pages has come, said when it takes long: in place on a terminal, else line by line.
pub(super) struct Progress {
    began: Instant,
    all: u64,
    done: AtomicU64,
    said: Mutex<Option<Instant>>,
    terminal: bool,
}

impl Progress {
    pub(super) fn new(all: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { began: Instant::now(), all, done: AtomicU64::new(0), said: Mutex::new(None), terminal }
    }

    fn add(&self, bytes: usize) {
        self.done.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn show(&self) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = if self.terminal { REFRESH } else { SELDOM };
        if said.map_or(self.began.elapsed() < QUIET, |last| last.elapsed() < pause) {
            return;
        }
        *said = Some(Instant::now());
        let line = self.line();
        if self.terminal { eprint!("\r{line}") } else { eprintln!("{line}") }
    }

    fn line(&self) -> String {
        let done = self.done.load(Ordering::Relaxed);
        format!("pollvisor: making the guest's memory: {} of {} MiB", done >> 20, self.all >> 20)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let said = self.said.get_mut().unwrap_or_else(PoisonError::into_inner);
        if self.terminal && said.is_some() {
            eprintln!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_has_come_is_said_once_it_takes_long() {
        let mut progress = Progress::new(4 << 30);
        progress.terminal = false;
        progress.add(1 << 30);
        progress.began = Instant::now() + QUIET;
        progress.show();
        assert!(progress.said.lock().expect("no panic").is_none(), "not at once");
        progress.began = Instant::now().checked_sub(2 * QUIET).expect("it is on for longer");
        progress.show();
        let first = *progress.said.lock().expect("no panic");
        progress.show();
        assert_eq!(*progress.said.lock().expect("no panic"), first, "and not again at once");
        assert_eq!(progress.line(), "pollvisor: making the guest's memory: 1024 of 4096 MiB");
    }
}
