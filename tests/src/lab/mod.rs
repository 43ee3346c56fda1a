//! What is tested on devices that a kernel hands out by VFIO. It runs in the machine that `tests/lab` emulates (or on
//! any that has such devices, their addresses in `IGB`, `E1000E`, `EDU`, `NVME`, `IVSHMEM`).

pub mod assigned;
pub mod devices;
pub mod drive;
pub mod in_guest;
pub mod linux;
pub mod monitor;
pub mod percpu;
pub mod runner;
pub mod scenarios;
pub mod trace;

use pollvisor::error::{Error, Result};
use pollvisor::pci::Bdf;
use std::path::Path;

/// What a scenario cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The 82576 network device.
    Igb,
    /// The 82574 network device.
    E1000e,
    /// QEMU's educational device.
    Edu,
    /// The NVMe controller.
    Nvme,
    /// Inter-VM shared memory, as a device that is nothing but a BAR.
    Ivshmem,
    /// Guests.
    Kvm,
    /// `/dev/iommu` and VFIO's devices as files.
    Iommufd,
    /// mtty, the kernel's sample parent of mediated devices.
    Mtty,
    /// The chipset's disk controller and SMBus, in one IOMMU group.
    Group,
    /// A host driver that may join a group in use.
    Sibling,
    /// A machine whose IOMMU is off.
    NoIommu,
    /// A kernel and an initramfs to boot.
    Linux,
    /// The benchmark's command.
    Benchmark,
    /// The tests' binaries.
    Integration,
    /// QEMU, to be run in the lab.
    Qemu,
    /// The monitor of the QEMU that emulates the machine.
    Monitor,
}

impl Need {
    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Igb => "igb",
            Self::E1000e => "e1000e",
            Self::Edu => "edu",
            Self::Nvme => "nvme",
            Self::Ivshmem => "ivshmem",
            Self::Kvm => "/dev/kvm",
            Self::Iommufd => "/dev/iommu",
            Self::Mtty => "mtty",
            Self::Group => "two devices in one IOMMU group",
            Self::Sibling => "lab-sibling",
            Self::NoIommu => "an IOMMU that is off",
            Self::Linux => "a kernel to boot",
            Self::Benchmark => "./pollvisor-bench",
            Self::Integration => "./tests-of-integration",
            Self::Qemu => "QEMU in the lab",
            Self::Monitor => "the emulator's monitor",
        }
    }

    /// Why it is not here; nothing if it is.
    fn missing(self) -> Option<Missing> {
        let gone = |path: &str| (!Path::new(path).exists()).then(|| format!("no {path} on this kernel"));
        match self {
            // Of the lab's kernels one has it.
            Self::Iommufd => gone("/dev/iommu").map(|why| missing(why, |kernel| kernel == "iommufd")),
            Self::Linux => linux::files().err().map(|why| missing(why, |_| true)),
            Self::Benchmark | Self::Integration => gone(self.name()).map(|why| missing(why, |_| true)),
            Self::Qemu => {
                (!linux::has_qemu()).then(|| missing("no QEMU beside this program".into(), |_| true))
            }
            Self::Monitor => {
                let told = std::env::var("MONITOR").is_ok();
                (!told).then(|| missing("no emulator to ask: $MONITOR is not set".into(), |_| true))
            }
            Self::Kvm => gone("/dev/kvm").map(|why| missing(why, |_| true)),
            Self::Group => {
                let group = |address: &str| {
                    std::fs::read_link(format!("/sys/bus/pci/devices/{address}/iommu_group")).ok()
                };
                let (disks, bus) = (group("0000:00:1f.2"), group("0000:00:1f.3"));
                let apart = disks.is_none() || disks != bus;
                apart.then(|| missing("no 0000:00:1f.2 and .3 in one group".into(), |_| true))
            }
            // These, too.
            Self::Mtty | Self::Sibling => {
                let why = || format!("no module {} for this kernel", self.name());
                (!has_module(self.name())).then(|| missing(why(), |kernel| kernel == "iommufd"))
            }
            Self::NoIommu => {
                let groups = std::fs::read_dir("/sys/kernel/iommu_groups").map_or(0, Iterator::count);
                (groups > 0).then(|| missing("the IOMMU is on".into(), |_| false))
            }
            _ => self.address().err().map(|error| missing(error.to_string(), |_| true)),
        }
    }

    /// Where the device is, as the environment says.
    fn address(self) -> Result<Bdf> {
        let variable = self.name().to_uppercase();
        let text = std::env::var(&variable)
            .map_err(|_| Error::new(format!("no {} device: ${variable} is not set", self.name())))?;
        text.parse().map_err(|error| Error::new(format!("${variable}: {error}")))
    }
}

/// Whether this kernel has a module, loaded or not.
fn has_module(name: &str) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let list = std::fs::read_to_string(format!("/lib/modules/{}/modules.dep", release.trim()));
    list.is_ok_and(|list| list.contains(&format!("/{name}.ko")))
}

/// Something a scenario needs is not here.
enum Missing {
    /// As may be.
    Skip(String),
    /// The lab should have it: a lab that came up incomplete must not pass.
    Fail(String),
}

/// `has`: whether the lab with this kernel should have it. Elsewhere everything may be missing.
fn missing(why: String, has: impl Fn(&str) -> bool) -> Missing {
    if std::env::var("LAB").is_ok_and(|kernel| has(&kernel)) {
        Missing::Fail(why)
    } else {
        Missing::Skip(why)
    }
}

/// What a scenario has of its surroundings.
#[derive(Debug, Default)]
pub struct Context(());

impl Context {
    /// Where a device is.
    ///
    /// # Errors
    /// When the environment does not say, or `need` is no device.
    pub fn address(&self, need: Need) -> Result<Bdf> {
        need.address()
    }

    /// Says something worth reading beside the result.
    pub fn note(&self, text: impl std::fmt::Display) {
        println!("{text}");
    }
}

/// One thing to see hold. Each runs in a process of its own.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// `subject: what`, unique.
    pub name: &'static str,
    /// What it cannot do without.
    pub needs: &'static [Need],
    /// Does it; an error is a failure, as is a panic.
    pub run: fn(&mut Context) -> Result<()>,
}

/// All of them, in the order in which they run.
pub fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    use scenarios::{
        benchmark, config, dma, errors, guest, hostile, kvm, life, linux, mdev, motion, refusals, registers,
        sibling,
    };
    let all = [registers::SCENARIOS, dma::SCENARIOS, guest::SCENARIOS, motion::SCENARIOS, life::SCENARIOS];
    all.into_iter()
        .chain([errors::SCENARIOS, sibling::SCENARIOS, config::SCENARIOS, refusals::SCENARIOS])
        .chain([hostile::SCENARIOS, linux::SCENARIOS, mdev::SCENARIOS, benchmark::SCENARIOS, kvm::SCENARIOS])
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::scenarios;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_fit_on_a_line() {
        let mut seen = HashSet::new();
        for scenario in scenarios() {
            assert!(seen.insert(scenario.name), "{} stands twice", scenario.name);
            assert!(!scenario.name.contains(['\t', '\n']), "{:?}", scenario.name);
        }
    }
}
