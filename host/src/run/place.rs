//! Which thread goes to which CPU, checked before anything is made.

use crate::cli::{CpusArg, DeliveryArg, RunArgs};
use crate::error::{Error, Result};
use crate::pin::{Placement, available};

/// The threads' CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The poller's; not used with an in-kernel irqfd.
    pub poller: Placement,
    /// The vCPUs'.
    pub vcpus: Vec<Placement>,
    /// Everybody else's: the producer, the workers, the reporter.
    pub housekeeping: Option<usize>,
}

/// Places everything: as asked, the rest by default. The poller has the last CPU, everybody else the first ones.
///
/// # Errors
/// A CPU that is not there, or one that a poller and a vCPU would share.
pub fn place(args: &RunArgs) -> Result<Places> {
    choose(args, &available())
}

fn choose(args: &RunArgs, cpus: &[usize]) -> Result<Places> {
    let polled = args.delivery == DeliveryArg::Polled;
    let affinity = args.cpus.as_ref().map_or(&[][..], |cpus: &CpusArg| &cpus.affinity);
    for (flag, cpu) in (args.poller.iter().map(|p| ("--poller", p.cpu)))
        .chain(affinity.iter().map(|(_, cpu)| ("--cpus affinity", *cpu)))
    {
        if !cpus.contains(&cpu) {
            return Err(Error::new(format!("{flag}: there is no CPU {cpu} for this process, only {cpus:?}")));
        }
    }
    let asked: Vec<usize> = affinity.iter().map(|(_, cpu)| *cpu).collect();
    let poller = match &args.poller {
        Some(poller) => poller.cpu,
        None => match cpus.iter().rev().find(|cpu| !asked.contains(cpu)) {
            Some(cpu) => *cpu,
            None => {
                return Err(Error::new("the vCPUs have every CPU, and none is left for the poller")
                    .remedy("leave one out of --cpus affinity, or use --delivery irqfd"));
            }
        },
    };
    let uses_poller = args.delivery != DeliveryArg::Irqfd;
    if uses_poller && asked.contains(&poller) {
        return Err(Error::new(format!(
            "a poller and a vCPU are both to have CPU {poller}; the poller never gives way"
        ))
        .remedy("another CPU in --poller cpu=N or --cpus affinity"));
    }
    if polled && cpus.len() < 2 {
        return Err(Error::new("a poller needs a CPU of its own, and this process has only one")
            .remedy("--delivery blocking or irqfd, or allow more CPUs (taskset)"));
    }
    let others: Vec<usize> = cpus.iter().copied().filter(|cpu| !uses_poller || *cpu != poller).collect();
    // Off the CPUs that were given to vCPUs, if there is a choice.
    let spare: Vec<usize> = others.iter().copied().filter(|cpu| !asked.contains(cpu)).collect();
    let spare = if spare.is_empty() { others } else { spare };
    let housekeeping = spare.first().copied();
    // The vCPUs that nobody placed take turns on what is left, off the housekeeping CPU if there is a choice.
    let free: Vec<usize> = spare.iter().copied().skip(usize::from(spare.len() > 1)).collect();
    let boot = match &args.cpus {
        Some(cpus) => cpus.boot,
        None if args.boot.kernel.is_some() => 1,
        None => crate::session::vcpus_for(args.vectors()),
    };
    let vcpus = (0..boot).map(|id| {
        let given = affinity.iter().find(|(vcpu, _)| *vcpu == id).map(|(_, cpu)| *cpu);
        let turn = usize::try_from(id).ok().and_then(|id| free.get(id % free.len().max(1))).copied();
        Placement { cpu: given.or(turn), fifo: None }
    });
    Ok(Places {
        poller: Placement { cpu: Some(poller), fifo: args.poller.as_ref().and_then(|p| p.fifo) },
        vcpus: vcpus.collect(),
        housekeeping,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn places(flags: &[&str], cpus: &[usize]) -> Result<Places> {
        let args = ["pollvisor"].iter().chain(flags).copied();
        choose(&Cli::parse_from(args).run, cpus)
    }

    #[test]
    fn defaults_keep_the_poller_alone() {
        let two = places(&[], &[0, 1]).expect("places");
        assert_eq!((two.poller.cpu, two.vcpus[0].cpu, two.housekeeping), (Some(1), Some(0), Some(0)));
        let four = places(&["--cpus", "boot=2"], &[0, 1, 2, 3]).expect("places");
        let vcpus: Vec<_> = four.vcpus.iter().map(|v| v.cpu).collect();
        assert_eq!((four.poller.cpu, vcpus, four.housekeeping), (Some(3), vec![Some(1), Some(2)], Some(0)));
        let given = places(&["--cpus", "boot=1,affinity=[0@[3]]"], &[0, 1, 2, 3]).expect("places");
        assert_eq!((given.poller.cpu, given.vcpus[0].cpu), (Some(2), Some(3)));
        let first = places(&["--cpus", "boot=2,affinity=[0@[0]]"], &[0, 1, 2, 3]).expect("places");
        let vcpus: Vec<_> = first.vcpus.iter().map(|v| v.cpu).collect();
        assert_eq!((vcpus, first.housekeeping), (vec![Some(0), Some(2)], Some(1)));
    }

    #[test]
    fn conflicts_are_refused() {
        assert!(places(&["--poller", "cpu=9"], &[0, 1]).is_err());
        assert!(places(&["--cpus", "boot=1,affinity=[0@[9]]"], &[0, 1]).is_err());
        assert!(places(&["--poller", "cpu=1", "--cpus", "boot=1,affinity=[0@[1]]"], &[0, 1]).is_err());
        assert!(places(&[], &[0]).is_err());
        assert!(places(&["--delivery", "irqfd"], &[0]).is_ok());
    }
}
