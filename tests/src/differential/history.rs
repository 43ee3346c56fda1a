//! What a run leaves behind: the steps before a difference, and what was done in all.

use std::collections::VecDeque;
use std::fmt::{self, Debug, Display};

const KEPT: usize = 20;

/// One of the comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Routes and irqfds.
    Irqfd,
    /// The I/O APIC.
    Ioapic,
    /// The local APIC.
    Lapic,
}

impl Half {
    /// As the program's `--only` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Irqfd => "irqfd",
            Self::Ioapic => "ioapic",
            Self::Lapic => "lapic",
        }
    }
}

/// The last steps.
#[derive(Debug)]
pub struct History {
    half: Half,
    seed: u64,
    step: u64,
    last: VecDeque<(u64, String)>,
}

/// Why a run ended early, ready to be printed: the step, the last ones, both sides, how to see it again.
#[derive(Debug, Clone)]
pub struct Failure(String);

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl History {
    /// Of a run.
    #[must_use]
    pub fn new(half: Half, seed: u64) -> Self {
        Self { half, seed, step: 0, last: VecDeque::with_capacity(KEPT + 1) }
    }

    /// The step that comes now.
    pub fn note(&mut self, step: u64, what: String) {
        self.step = step;
        self.last.push_back((step, what));
        if self.last.len() > KEPT {
            self.last.pop_front();
        }
    }

    /// The sides differ.
    #[must_use]
    pub fn differ(&self, kernel: &impl Debug, ours: &impl Debug) -> Failure {
        self.failure(&format!("the sides differ\n  kernel: {kernel:?}\n  ours:   {ours:?}"))
    }

    /// The run cannot go on.
    #[must_use]
    pub fn broken(&self, error: &impl Display) -> Failure {
        self.failure(&error.to_string())
    }

    fn failure(&self, what: &str) -> Failure {
        let Self { half, seed, step, last } = self;
        let name = half.name();
        let steps: String = last.iter().map(|(step, text)| format!("  {step}: {text}\n")).collect();
        Failure(format!(
            "{name}, seed {seed}, step {step}: {what}\nthe last steps:\n{steps}again:\n  \
             cargo run --release -p pollvisor-tests --bin differential -- --only {name} --ops {} --seed {seed}",
            step + 1
        ))
    }
}

/// What a run did.
#[derive(Debug, Clone)]
pub struct Tally {
    names: &'static [&'static str],
    /// Per kind: steps, and those of them that were refused, by error number.
    counts: Vec<(u64, Vec<(i32, u64)>)>,
    /// Vectors seen waiting in a LAPIC, or taken from it.
    pub interrupts: u64,
    /// Signals seen to come back at an ack, or EOIs that came out.
    pub resampled: u64,
}

impl Tally {
    /// Of nothing yet.
    #[must_use]
    pub fn new(names: &'static [&'static str]) -> Self {
        Self { names, counts: vec![(0, Vec::new()); names.len()], interrupts: 0, resampled: 0 }
    }

    /// One step of this kind.
    pub fn count(&mut self, kind: usize, errno: i32) {
        let (steps, errors) = &mut self.counts[kind];
        *steps += 1;
        if errno != 0 {
            match errors.iter_mut().find(|(number, _)| *number == errno) {
                Some((_, count)) => *count += 1,
                None => errors.push((errno, 1)),
            }
        }
    }

    /// How many steps of this kind were not refused.
    #[must_use]
    pub fn accepted(&self, kind: usize) -> u64 {
        let (steps, errors) = &self.counts[kind];
        steps - errors.iter().map(|(_, count)| count).sum::<u64>()
    }

    /// All steps.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.counts.iter().map(|(steps, _)| steps).sum()
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, (steps, errors)) in self.names.iter().zip(&self.counts) {
            write!(f, "{name} {steps}")?;
            for (n, (errno, count)) in errors.iter().enumerate() {
                let errno = pollvisor::error::errno_name(*errno).unwrap_or("?");
                write!(f, "{}{errno} {count}", if n == 0 { " (" } else { ", " })?;
            }
            f.write_str(if errors.is_empty() { ", " } else { "), " })?;
        }
        write!(f, "vectors seen {}, acks {}", self.interrupts, self.resampled)
    }
}
