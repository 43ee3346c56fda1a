//! The machine a figure was made on: without it no figure means anything.

use crate::accel::Accelerator;
use crate::clock::Clock;
use crate::sys::{tsc, vfio};
use serde::Serialize;

/// What a reader has to know to compare.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// What runs the guest: figures of one accelerator say nothing about the other's.
    pub accelerator: Accelerator,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// The counter's rate in kHz.
    pub tsc_khz: u64,
    /// Whether this host is itself a guest.
    pub hypervisor: bool,
    /// What the guest does while idle; `none` when no vCPU runs.
    pub idle: String,
    /// Who delivers.
    pub delivery: String,
    /// What signals.
    pub source: String,
    /// Whether every thread of the interrupt path has a CPU of its own choosing.
    pub pinned: bool,
    /// Whether this process's memory is locked.
    pub locked: bool,
    /// How long KVM polls for a halted vCPU on this host, in nanoseconds, where it says; absent without KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub halt_poll_ns: Option<u64>,
    /// What VFIO offers here.
    pub vfio: &'static str,
    /// What is not as it should be for figures to be trusted.
    pub warnings: Vec<String>,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn this(accelerator: Accelerator, clock: Clock) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            accelerator,
            kernel: kernel.trim().to_string(),
            cpu: cpu_name(),
            tsc_khz: clock.khz(),
            hypervisor: tsc::cpuid(1).ecx & HYPERVISOR != 0,
            idle: String::new(),
            delivery: String::new(),
            source: String::new(),
            pinned: false,
            locked: false,
            halt_poll_ns: (accelerator == Accelerator::Kvm)
                .then(crate::accel::kvm::host_halt_poll_ns)
                .flatten(),
            vfio: vfio::describe(),
            warnings: Vec::new(),
        }
    }

    /// In a line.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!(
            "Linux {}, {}{}, TSC {}.{:03} MHz, {} by {}, guest idle: {}",
            self.kernel,
            self.cpu,
            if self.hypervisor { " (itself a guest)" } else { "" },
            self.tsc_khz / 1000,
            self.tsc_khz % 1000,
            self.source,
            self.delivery,
            self.idle,
        );
        if !self.locked {
            line.push_str(", memory not locked");
        }
        line
    }
}

const HYPERVISOR: u32 = 1 << 31;

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown CPU".into(), |(_, name)| name.trim().to_string())
}
