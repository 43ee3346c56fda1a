//! What a test may need and a machine may lack.

use crate::role::{self, Role};
use nix::sys::ptrace;
use nix::unistd::Pid;
use pollvisor::pci::Bdf;
use pollvisor_tests::rig::Accel;
use std::path::Path;
use std::process::Stdio;

/// One of them.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// An accelerator.
    Accel(Accel),
    /// So many CPUs for this process.
    Cpus(usize),
    /// To count the system calls of a child.
    Ptrace,
    /// A PCI function that may be taken, which the lab has.
    Lab,
    /// The ways of other VMMs in the benchmark.
    Rivals,
    /// A PCI bus.
    Pci,
    /// None.
    NoPci,
    /// The sources that this was built from.
    Sources,
}

/// Names a PCI function that may be taken.
pub const DEVICE: &str = "POLLVISOR_DEVICE";
const PCI: &str = "/sys/bus/pci/devices";
const REQUIRE: &str = "POLLVISOR_REQUIRE";
const NAMES: [&str; 9] = ["kvm", "software", "cpus", "ptrace", "lab", "rivals", "pci", "no-pci", "sources"];

impl Need {
    /// As `POLLVISOR_REQUIRE` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accel(accel) => accel.name(),
            Self::Cpus(_) => "cpus",
            Self::Ptrace => "ptrace",
            Self::Lab => "lab",
            Self::Rivals => "rivals",
            Self::Pci => "pci",
            Self::NoPci => "no-pci",
            Self::Sources => "sources",
        }
    }

    /// Why it is not here; `None`: it is.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Accel(accel) => accel.missing(),
            Self::Cpus(wanted) => {
                let there = pollvisor::pin::available();
                (there.len() < wanted).then(|| format!("{wanted} CPUs are wanted, {there:?} are there"))
            }
            Self::Ptrace => untraceable(),
            Self::Lab => match std::env::var(DEVICE) {
                Ok(address) => {
                    address.parse::<Bdf>().err().map(|error| format!("{DEVICE}={address}: {error}"))
                }
                Err(_) => Some(format!("{DEVICE} does not name a PCI function that may be taken")),
            },
            Self::Rivals => rivals(),
            Self::Pci => absent(PCI),
            Self::NoPci => absent(PCI).is_none().then(|| format!("{PCI} is there")),
            Self::Sources => absent(env!("CARGO_MANIFEST_DIR")),
        }
    }
}

fn absent(folder: &str) -> Option<String> {
    Path::new(folder).metadata().err().map(|error| format!("{folder}: {error}"))
}

/// Seizes a child that does nothing.
fn untraceable() -> Option<String> {
    let mut child = role::command(Role::Nothing).stdin(Stdio::piped()).spawn().expect("this binary");
    let pid = Pid::from_raw(child.id().try_into().expect("a process's number"));
    let seized = ptrace::seize(pid, ptrace::Options::empty());
    child.kill().expect("SIGKILL");
    child.wait().expect("its end");
    seized.err().map(|error| format!("a child cannot be traced: {error}"))
}

/// The command says itself that it lacks them, before it looks for anything else.
fn rivals() -> Option<String> {
    let words = ["paths", "--rivals", "--rounds", "1", "--html", "/nowhere/at/all"];
    let output = role::command(Role::PollvisorBench).args(words).output().expect("pollvisor-bench");
    let said = String::from_utf8_lossy(&output.stderr);
    said.contains("--features rivals").then(|| said.trim().to_string())
}

/// Whose absence is a failure.
///
/// # Errors
/// A name that is none.
pub fn required() -> Result<Vec<String>, String> {
    let list = std::env::var(REQUIRE).unwrap_or_default();
    let names: Vec<_> =
        list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    match names.iter().find(|name| !NAMES.contains(&name.as_str())) {
        Some(wrong) => {
            Err(format!("{REQUIRE}={list}: no need is named {wrong}; there are {}", NAMES.join(", ")))
        }
        None => Ok(names),
    }
}
