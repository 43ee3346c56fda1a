//! CPUs: which there are, which are isolated, and putting a thread on one.

use crate::error::{Error, Result};
use crate::sys::sched;
use core_affinity::CoreId;
use std::sync::LazyLock;

/// How a thread of the interrupt path is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The CPU; `None`: wherever.
    pub cpu: Option<usize>,
    /// SCHED_FIFO: when asked, or by default on an isolated CPU. On a shared one a FIFO spinner would starve the
    /// kernel's own threads there.
    pub fifo: Option<bool>,
}

/// The priority of the interrupt path's threads, of 1 to 99: above ordinary real-time work, below the kernel's
/// watchdogs and migration threads.
const PRIORITY: i32 = 80;

impl Placement {
    /// Puts the calling thread there; what could not be had, in words. `who` names the thread in them.
    ///
    /// # Errors
    /// When the CPU was asked for and cannot be had, or SCHED_FIFO was.
    pub fn apply(&self, who: &str) -> Result<Vec<String>> {
        let mut lacking = Vec::new();
        match self.cpu {
            None => lacking.push(format!("{who} is not pinned")),
            Some(cpu) if core_affinity::set_for_current(CoreId { id: cpu }) => {}
            Some(cpu) => {
                return Err(Error::new(format!("pinning {who} to CPU {cpu} failed"))
                    .remedy("choose one of the CPUs this process may use (see taskset -p $$)"));
            }
        }
        let isolated = self.cpu.is_some_and(|cpu| isolated().contains(&cpu));
        match self.fifo {
            Some(true) => sched::fifo(PRIORITY).map_err(|e| e.context(who))?,
            None if isolated => {
                if let Err(error) = sched::fifo(PRIORITY) {
                    lacking.push(format!("{who} is not SCHED_FIFO ({error})"));
                }
            }
            _ => {}
        }
        Ok(lacking)
    }
}

/// A thread to be spawned. Its stack is small: all of it is resident where memory is locked.
pub fn thread(name: &str) -> std::thread::Builder {
    const STACK: usize = 256 << 10;
    std::thread::Builder::new().name(name.to_string()).stack_size(STACK)
}

/// What to say of CPUs that the interrupt path shares with everybody else; nothing when there are none.
#[must_use]
pub fn not_isolated(placements: &[Placement]) -> Option<String> {
    let isolated = isolated();
    let mut shared: Vec<_> =
        placements.iter().filter_map(|p| p.cpu).filter(|cpu| !isolated.contains(cpu)).collect();
    shared.sort_unstable();
    shared.dedup();
    (!shared.is_empty())
        .then(|| format!("CPUs {shared:?} are not isolated: other work runs there and shows in the tail"))
}

/// The CPUs this process may use: those of the thread that asks first, before it goes to one of its own.
#[must_use]
pub fn available() -> Vec<usize> {
    static CPUS: LazyLock<Vec<usize>> = LazyLock::new(|| {
        let mut cpus: Vec<_> =
            core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
        cpus.sort_unstable();
        cpus
    });
    CPUS.clone()
}

/// The CPUs that the scheduler leaves alone.
#[must_use]
pub fn isolated() -> Vec<usize> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/isolated").unwrap_or_default();
    parse_list(list.trim()).unwrap_or_default()
}

/// A CPU list as the kernel writes it: `2-5,8`. Empty: none.
///
/// # Errors
/// What does not parse.
pub fn parse_list(list: &str) -> std::result::Result<Vec<usize>, String> {
    let mut cpus = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let number =
            |text: &str| text.trim().parse::<usize>().map_err(|_| format!("`{text}` is not a CPU number"));
        match part.split_once('-') {
            None => cpus.push(number(part)?),
            Some((from, to)) => {
                let (from, to) = (number(from)?, number(to)?);
                if from > to || to - from > 65_536 {
                    return Err(format!("`{part}` is not a range of CPUs"));
                }
                cpus.extend(from..=to);
            }
        }
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_list("2-5,8"), Ok(vec![2, 3, 4, 5, 8]));
        assert_eq!(parse_list(""), Ok(vec![]));
        assert!(parse_list("5-2").is_err() && parse_list("a").is_err() && parse_list("1-").is_err());
    }
}
