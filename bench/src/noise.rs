//! Other work on the machine, made on purpose, and what the machine itself does meanwhile.

use crate::measure::float;
use crate::model::{PathResult, Switches};
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

/// What the machine did since this was opened.
#[derive(Debug)]
pub struct Window {
    /// Those that are looked at; `None`: all of this process.
    watched: Option<Vec<u32>>,
    /// By thread: when it was first seen, and last.
    switches: BTreeMap<u32, (Switches, Switches)>,
    steal: Option<u64>,
    /// By thread that delivers: CPU time at the start.
    delivering: BTreeMap<u32, Option<u64>>,
}

/// What it did, in one window or in several.
#[derive(Debug, Default)]
pub struct Noted {
    /// Context switches of the threads that were looked at.
    pub switches: u64,
    /// Those of the threads that deliver; `None`: there is none.
    pub delivering: Option<Switches>,
    /// What the hypervisor took, over all CPUs, in nanoseconds, to 10 ms.
    pub steal_ns: Option<u64>,
    /// CPU time of the threads that deliver, in nanoseconds.
    pub cpu_ns: Option<u64>,
}

impl Window {
    /// Opened now, for all threads of this process; `delivering` are those that deliver.
    #[must_use]
    pub fn open(delivering: &[u32]) -> Self {
        Self::of(None, delivering)
    }

    /// Opened now, for the calling thread and those that deliver, and no other: quick.
    #[must_use]
    pub fn narrow(delivering: &[u32]) -> Self {
        let watched = delivering.iter().copied().chain([pollvisor::sys::sched::thread_id()]);
        Self::of(Some(watched.collect()), delivering)
    }

    fn of(watched: Option<Vec<u32>>, delivering: &[u32]) -> Self {
        let delivering = delivering.iter().map(|thread| (*thread, cpu_ns(*thread))).collect();
        let mut window = Self { watched, switches: BTreeMap::new(), steal: steal_ns(), delivering };
        window.look();
        window
    }

    /// Looks at the threads that there are; those that end between two looks lose what they did since the last.
    pub fn look(&mut self) {
        for thread in self.watched.clone().unwrap_or_else(threads) {
            if let Some(count) = switches(thread) {
                self.switches.entry(thread).or_insert((count, count)).1 = count;
            }
        }
    }

    /// What there was until now.
    #[must_use]
    pub fn close(mut self) -> Noted {
        self.look();
        let (mut noted, mut delivering) = (Noted::default(), Switches::default());
        for (thread, (first, last)) in &self.switches {
            let made = Switches {
                voluntary: last.voluntary - first.voluntary,
                involuntary: last.involuntary - first.involuntary,
            };
            noted.switches += made.voluntary + made.involuntary;
            if self.delivering.contains_key(thread) {
                delivering += made;
            }
        }
        noted.steal_ns = steal_ns().zip(self.steal).map(|(now, then)| now.saturating_sub(then));
        if !self.delivering.is_empty() {
            noted.delivering = Some(delivering);
            let spent =
                |(thread, before): (&u32, &Option<u64>)| Some(cpu_ns(*thread)?.saturating_sub((*before)?));
            noted.cpu_ns = self.delivering.iter().map(spent).sum();
        }
        noted
    }
}

impl Noted {
    /// With another window's.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        let sum = |one: Option<u64>, other: Option<u64>| one.zip(other).map(|(one, other)| one + other);
        self.switches += other.switches;
        if let (Some(mine), Some(theirs)) = (&mut self.delivering, other.delivering) {
            *mine += theirs;
        }
        self.steal_ns = sum(self.steal_ns, other.steal_ns);
        self.cpu_ns = sum(self.cpu_ns, other.cpu_ns);
        self
    }

    /// Puts it into a path's result, whose ledger is there already.
    pub fn put(&self, result: &mut PathResult) {
        result.context_switches = Some(self.switches);
        result.delivery_switches = self.delivering;
        result.steal_ns = self.steal_ns;
        result.cpu_ns_per_interrupt = self.cpu_ns.map(|ns| float(ns) / float(result.ledger.delivered.max(1)));
    }
}

/// The threads of this process.
fn threads() -> Vec<u32> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// Context switches of a thread of this process.
fn switches(thread: u32) -> Option<Switches> {
    switches_in(&read_to_string(format!("/proc/self/task/{thread}/status")).ok()?)
}

fn switches_in(status: &str) -> Option<Switches> {
    let count = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value?.trim().parse().ok()
    };
    let (voluntary, involuntary) = (count("voluntary_ctxt_switches")?, count("nonvoluntary_ctxt_switches")?);
    Some(Switches { voluntary, involuntary })
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
        assert_eq!(switches_in(status), Some(Switches { voluntary: 12, involuntary: 30 }));
        assert_eq!(switches_in("Name:\tx\n"), None);
        assert_eq!(steal_in("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 0 0\n"), Some(80_000_000));
        assert_eq!(steal_in("cpu  1 2\n"), None);
    }

    #[test]
    fn sleeping_is_seen_as_context_switches() {
        let own = pollvisor::sys::sched::thread_id();
        for window in [Window::open(&[own]), Window::narrow(&[own]), Window::narrow(&[])] {
            for _ in 0..20 {
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
            let noted = window.close();
            assert!(noted.switches >= 20, "{noted:?}");
            // A window knows whose they are, or that nobody's were asked for.
            assert!(noted.delivering.is_none_or(|own| own.voluntary >= 20), "{noted:?}");
            let both = noted.with(Noted { switches: 5, steal_ns: None, ..Noted::default() });
            assert!(both.switches >= 25 && both.steal_ns.is_none(), "{both:?}");
        }
        assert!(Window::narrow(&[]).close().delivering.is_none());
        assert!(Window::narrow(&[own]).close().delivering.is_some());
    }
}
