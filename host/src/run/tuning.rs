//! What makes a booted guest's interrupts quick: each part has its flag, `--profile low-latency` asks for all of them.
//! What a profile asks for and cannot be had is said, with what to do; what a flag asks for has to be had.

use crate::accel::Idle;
use crate::accel::kvm::OWN_IDLE;
use crate::boot::memory::free_huge;
use crate::cli::{DeliveryArg, DeviceArg, MemoryArg, Profile, RunArgs};
use crate::devices::DeviceAddress;
use crate::error::{Error, Result};
use crate::pin::{isolated, not_isolated};
use crate::run::place::Places;
use crate::sys::kvm::Kvm;
use crate::sys::sched::may_lock;
use kvm_bindings as kb;
use std::fs::File;
use std::io::Write;

/// How long KVM polls for a halted vCPU in the profile, in nanoseconds: longer than a quick device takes to answer.
const HALT_POLL: u32 = 1_000_000;
/// The huge pages that every host can have.
const HUGE: u64 = 2 << 20;
const DMA_LATENCY: &str = "/dev/cpu_dma_latency";

/// What was had of it. Dropping it lets the CPUs sleep again.
#[derive(Debug)]
pub(super) struct Tuning {
    /// What HLT does.
    pub idle: Idle,
    /// As in [`VmConfig`](crate::accel::VmConfig).
    pub halt_poll_ns: Option<u32>,
    /// The guest's memory.
    pub memory: MemoryArg,
    /// Whether vCPUs have their CPUs for themselves.
    pub dedicated: bool,
    /// Whether vCPUs that nobody placed are pinned.
    pub pin: bool,
    /// What is not as it should be.
    pub lacking: Vec<String>,
    _awake: Option<File>,
}

impl Tuning {
    /// Finds out what to do, and does what concerns the whole host.
    ///
    /// # Errors
    /// When what a flag asks for cannot be had.
    pub fn new(args: &RunArgs, memory: MemoryArg, places: &Places) -> Result<Self> {
        let boot = &args.boot;
        let profile = boot.profile == Some(Profile::LowLatency);
        let mut lacking = Vec::new();
        let mut idle = Idle::Halt;
        if boot.overcommit.unwrap_or(profile) {
            let offered = Kvm::open()?.capability(kb::KVM_CAP_X86_DISABLE_EXITS);
            if offered & kb::KVM_X86_DISABLE_EXITS_HLT != 0 || boot.overcommit.is_some() {
                idle = Idle::Own;
            }
            if offered & OWN_IDLE != OWN_IDLE {
                lacking.push(format!(
                    "KVM keeps {:#x} of HLT (2), MWAIT (1) and PAUSE (4) in the guest: a host that is no guest keeps all",
                    offered & OWN_IDLE
                ));
            }
        }
        let mut awake = None;
        if boot.cpu_dma_latency.unwrap_or(profile) {
            match stay_awake() {
                Ok(file) => awake = Some(file),
                Err(error) if boot.cpu_dma_latency.is_none() => lacking.push(line(&error)),
                Err(error) => return Err(error),
            }
        }
        let mut memory = memory;
        if profile {
            quicken(&mut memory, &mut lacking);
        }
        let placed: Vec<_> = places.vcpus.iter().copied().chain([places.poller]).collect();
        if profile {
            lacking.extend(not_isolated(&placed));
            lacking.extend(not_fifo(args, places));
            if places.vcpus.iter().enumerate().any(|(n, vcpu)| places.vcpus[..n].contains(vcpu)) {
                lacking.push("vCPUs share a CPU; --cpus with fewer, or a host with more".into());
            }
        }
        Ok(Self {
            idle,
            halt_poll_ns: args.halt_poll.or(profile.then_some(HALT_POLL)),
            memory,
            dedicated: idle == Idle::Own,
            pin: profile,
            lacking,
            _awake: awake,
        })
    }

    /// A device as the profile has it: its host interrupts on the poller's CPU, if a poller that spins delivers it.
    pub fn device(&self, device: &DeviceArg, by: DeliveryArg, places: &Places) -> DeviceArg {
        let mut device = device.clone();
        let pci = matches!(device.address, DeviceAddress::Pci(_));
        if let (true, true, DeliveryArg::Polled, Some(cpu)) = (self.pin, pci, by, places.poller.cpu) {
            device.irq_cpus.get_or_insert_with(|| vec![cpu]);
        }
        device
    }
}

/// Huge pages and locked memory for the guest, as far as the host has them.
fn quicken(memory: &mut MemoryArg, lacking: &mut Vec<String>) {
    if !memory.mlock {
        match may_lock(memory.size) {
            Ok(()) => memory.mlock = true,
            Err(error) => lacking.push(line(&error)),
        }
    }
    if memory.hugepage.is_some() || memory.thp.is_some() || memory.ordinary {
        return;
    }
    let (free, wanted) = (free_huge(HUGE, memory.nodes), memory.size.div_ceil(HUGE));
    if free >= wanted && memory.size.is_multiple_of(HUGE) {
        memory.hugepage = Some(HUGE);
    } else {
        lacking.push(format!(
            "the guest's memory is not of huge pages, of which it wants {wanted} and {free} are free; \
             echo {wanted} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
        ));
    }
}

/// Pinned threads whose CPUs others may use are not made SCHED_FIFO unasked: they would starve the kernel's own there.
fn not_fifo(args: &RunArgs, places: &Places) -> Option<String> {
    let isolated = isolated();
    let shared = |cpu: Option<usize>, asked: Option<bool>| {
        asked.is_none() && cpu.is_some_and(|cpu| !isolated.contains(&cpu))
    };
    let vcpus = places.vcpus.iter().any(|vcpu| shared(vcpu.cpu, args.boot.vcpu_fifo));
    let poller = shared(places.poller.cpu, args.poller.as_ref().and_then(|poller| poller.fifo));
    (vcpus || poller).then(|| {
        "not SCHED_FIFO on CPUs that are not isolated; isolcpus= at boot, or --vcpu-fifo on and --poller cpu=N,fifo=on"
            .into()
    })
}

/// An error in one line.
pub(super) fn line(error: &Error) -> String {
    error.to_string().replace("\n  ", "; ")
}

/// Keeps all CPUs out of sleep states that take time to leave, while the file is open (Documentation/power/pm_qos_interface).
fn stay_awake() -> Result<File> {
    let failed = |error| {
        Error::os(format!("opening {DMA_LATENCY}"), &error)
            .remedy_for(libc::ENOENT, "a kernel with CONFIG_CPU_IDLE, or idle=poll on its command line")
            .remedy_for(libc::EACCES, "run as root, or give this user the right to write that file")
    };
    let mut file = File::options().write(true).open(DMA_LATENCY).map_err(failed)?;
    file.write_all(&0i32.to_ne_bytes()).map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_memory_lacks_is_said_with_what_to_do() {
        let (mut lacking, mut memory) = (Vec::new(), MemoryArg::of(60 << 40));
        quicken(&mut memory, &mut lacking);
        let huge = lacking.last().expect("no host has so many");
        assert!(huge.contains("31457280 and") && huge.contains("echo 31457280 > /sys"), "{huge}");
        assert!(memory.hugepage.is_none());
        for ordinary in [
            MemoryArg { ordinary: true, ..MemoryArg::of(1) },
            MemoryArg { thp: Some(true), ..MemoryArg::of(1) },
        ] {
            let (mut lacking, mut memory) = (Vec::new(), ordinary);
            quicken(&mut memory, &mut lacking);
            assert!(lacking.iter().all(|line| !line.contains("huge")) && memory.hugepage.is_none());
        }
    }
}
