//! Which thread goes to which CPU, checked before anything is made.

use crate::cli::{CpusArg, DeliveryArg, DeviceArg, RunArgs};
use crate::error::{Error, Result};
use crate::pin::{Placement, available};
use crate::sys::sched::{set_affinity, thread_id};

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

/// Keeps this thread, and those it makes, off the CPUs of pollers and pinned vCPUs, as far as others are left: before any
/// thread is made. Pollers and vCPUs move on to their own.
///
/// # Errors
/// As [`place`]; the kernel's.
pub fn keep_house(args: &RunArgs) -> Result<()> {
    set_affinity(thread_id(), &house(args, &available())?)
}

fn house(args: &RunArgs, cpus: &[usize]) -> Result<Vec<usize>> {
    let places = choose(args, cpus)?;
    let polled = by_poller(args);
    // Those that nobody placed are pinned beside a poller, or by the profile.
    let all = polled || args.boot.profile.is_some();
    let given = args.cpus.as_ref().map_or(&[][..], |cpus| &cpus.affinity);
    let is_pinned = |id: u32| all || given.iter().any(|(vcpu, _)| *vcpu == id);
    let vcpus = (0..).zip(&places.vcpus).filter(|(id, _)| is_pinned(*id)).filter_map(|(_, vcpu)| vcpu.cpu);
    let vcpus: Vec<usize> = vcpus.collect();
    let poller = places.poller.cpu.filter(|_| polled);
    let off = |taken: &dyn Fn(usize) -> bool| -> Vec<usize> {
        cpus.iter().copied().filter(|cpu| !taken(*cpu)).collect()
    };
    let left = off(&|cpu| poller == Some(cpu) || vcpus.contains(&cpu));
    // A vCPU gives way; a poller never does.
    Ok(if left.is_empty() { off(&|cpu| poller == Some(cpu)) } else { left })
}

/// Whether there is a poller that spins.
fn by_poller(args: &RunArgs) -> bool {
    let by = |device: &DeviceArg| device.delivery.unwrap_or(args.delivery) == DeliveryArg::Polled;
    if args.boot.kernel.is_some() || !args.device.is_empty() {
        args.device.iter().any(by)
    } else {
        args.delivery == DeliveryArg::Polled
    }
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
    fn the_house_has_what_pollers_and_vcpus_leave() {
        let house = |flags: &[&str], cpus: &[usize]| {
            let args = ["pollvisor"].iter().chain(flags).copied();
            house(&Cli::parse_from(args).run, cpus).expect("places")
        };
        assert_eq!(house(&[], &[0, 1]), [0], "the vCPU gives way, the poller does not");
        assert_eq!(house(&["--cpus", "boot=2"], &[0, 1, 2, 3, 4]), [0, 3]);
        let zero = ["--cpus", "boot=1,affinity=[0@[0]]"];
        assert_eq!(house(&zero, &[0, 1, 2, 3]), [1, 2]);
        assert_eq!(places(&zero, &[0, 1, 2, 3]).expect("places").housekeeping, Some(1));
        let irqfd = ["--delivery", "irqfd", "--cpus", "boot=2,affinity=[1@[3]]"];
        assert_eq!(house(&irqfd, &[0, 1, 2, 3]), [0, 1, 2], "one vCPU goes where it likes");
        assert_eq!(house(&["--kernel", "vmlinuz"], &[0, 1, 2, 3]), [0, 1, 2, 3], "no device, no poller");
        let kernel = ["--kernel", "vmlinuz", "--device", "host=01:00.0"];
        assert_eq!(house(&kernel, &[0, 1, 2, 3]), [0, 2]);
        let profile = ["--kernel", "vmlinuz", "--profile", "low-latency"];
        assert_eq!(house(&profile, &[0, 1, 2, 3]), [0, 2, 3]);
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
