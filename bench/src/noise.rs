//! Other work on the machine, made on purpose, and what the machine itself does meanwhile.

use clap::ValueEnum;
use pollvisor::error::{Error, Result};
use pollvisor::pin::Placement;
use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A kind of background work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// None
    None,
    /// Arithmetic
    Cpu,
    /// Memory, more than the caches hold
    Mem,
    /// System calls
    Syscall,
}

/// A thread of it on each of the CPUs, the poller's included. Dropping it ends it.
#[derive(Debug)]
pub struct Noise {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Noise {
    /// Makes it.
    ///
    /// # Errors
    /// When threads run out.
    pub fn start(kind: Kind, cpus: &[usize]) -> Result<Self> {
        let mut noise = Self { stop: Arc::default(), threads: Vec::new() };
        let cpus = if kind == Kind::None { &[] } else { cpus };
        for cpu in cpus.iter().copied() {
            let stop = noise.stop.clone();
            let body = move || {
                // Where it cannot be placed it is noise all the same.
                let _lacking = Placement { cpu: Some(cpu), fifo: Some(false) }.apply("noise");
                make(kind, &stop);
            };
            let thread = std::thread::Builder::new().name(format!("noise {cpu}")).spawn(body);
            noise.threads.push(thread.map_err(|e| Error::os("starting a thread of noise", &e))?);
        }
        Ok(noise)
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

fn make(kind: Kind, stop: &AtomicBool) {
    const WORDS: usize = (64 << 20) / 8;
    let mut memory = vec![1u64; if kind == Kind::Mem { WORDS } else { 0 }];
    let mut value = 1u64;
    while !stop.load(Ordering::Relaxed) {
        match kind {
            Kind::None => return,
            Kind::Cpu => (0..10_000u64).for_each(|n| value = black_box(value.wrapping_mul(n | 1))),
            Kind::Mem => memory.iter_mut().step_by(8).for_each(|word| *word = word.wrapping_add(value)),
            Kind::Syscall => {
                for _ in 0..100 {
                    let _there = black_box(std::fs::metadata("/"));
                }
            }
        }
    }
    black_box(memory);
}

/// What the machine did since it was opened.
#[derive(Debug)]
pub struct Window {
    /// By thread: when it was first seen, and last.
    switches: BTreeMap<u32, (u64, u64)>,
    steal: Option<u64>,
    cpu: BTreeMap<u32, u64>,
}

impl Window {
    /// Opened now; `threads` are those that deliver.
    #[must_use]
    pub fn open(threads: &[u32]) -> Self {
        let cpu = threads.iter().filter_map(|thread| Some((*thread, cpu_ns(*thread)?))).collect();
        let mut window = Self { switches: BTreeMap::new(), steal: steal_ns(), cpu };
        window.look();
        window
    }

    /// Looks at the threads that there are; those that end between two looks lose what they did since the last.
    pub fn look(&mut self) {
        for (thread, count) in switches() {
            self.switches.entry(thread).or_insert((count, count)).1 = count;
        }
    }

    /// Context switches of the process.
    #[must_use]
    pub fn context_switches(&self) -> u64 {
        self.switches.values().map(|(first, last)| last - first).sum()
    }

    /// What the hypervisor took, over all CPUs, in nanoseconds, to 10 ms.
    #[must_use]
    pub fn steal_ns(&self) -> Option<u64> {
        Some(steal_ns()?.saturating_sub(self.steal?))
    }

    /// CPU time of the threads that deliver, in nanoseconds.
    #[must_use]
    pub fn cpu_ns(&self) -> Option<u64> {
        let spent = |(thread, before): (&u32, &u64)| Some(cpu_ns(*thread)?.saturating_sub(*before));
        if self.cpu.is_empty() { None } else { self.cpu.iter().map(spent).sum() }
    }
}

/// Context switches of every thread of this process, wanted and not.
fn switches() -> Vec<(u32, u64)> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let count = |task: std::fs::DirEntry| {
        let thread = task.file_name().to_str()?.parse().ok()?;
        Some((thread, switches_in(&read_to_string(task.path().join("status")).ok()?)))
    };
    tasks.filter_map(count).collect()
}

fn switches_in(status: &str) -> u64 {
    let count = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.ends_with("_ctxt_switches").then(|| value.trim().parse::<u64>().ok())?
    };
    status.lines().filter_map(count).sum()
}

/// The CPU time of a thread of this process.
fn cpu_ns(thread: u32) -> Option<u64> {
    read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?.split(' ').next()?.parse().ok()
}

fn steal_ns() -> Option<u64> {
    steal_in(&read_to_string("/proc/stat").ok()?)
}

/// The eighth figure of all CPUs' line, in hundredths of a second (proc(5)).
fn steal_in(stat: &str) -> Option<u64> {
    const TICK_NS: u64 = 10_000_000;
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    Some(line.split_whitespace().nth(7)?.parse::<u64>().ok()? * TICK_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t30\n";
        assert_eq!(switches_in(status), 42);
        assert_eq!(steal_in("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 0 0\n"), Some(80_000_000));
        assert_eq!(steal_in("cpu  1 2\n"), None);
    }

    #[test]
    fn sleeping_is_seen_as_context_switches() {
        let mut window = Window::open(&[pollvisor::sys::sched::thread_id()]);
        for _ in 0..20 {
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
        window.look();
        assert!(window.context_switches() >= 20);
        assert!(window.cpu_ns().is_none_or(|ns| ns < 1_000_000_000));
    }
}
