//! Known faults of the lab's emulator, each by what it leaves behind. Nothing else that goes wrong is taken for one:
//! `tests/lab/README.md` says how each was found.

use crate::lab::percpu::Areas;

/// A fault of the emulator that has a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The built-in guest runs with the registers of the lab's own CPU.
    LabRegisters,
    /// A Linux guest crashed on an address in the lab's per-CPU area.
    LabPerCpu,
    /// The lab's kernel overran the stack of a vCPU's thread, its clock being the guest's.
    GuestClock,
    /// The lab's kernel overran the stack of a thread of QEMU's, which was the VMM in the lab: no crash of ours.
    QemuAsVmm,
    /// An `int3` that is no longer in the lab's code was executed.
    StaleCode,
    /// The lab stood still.
    Still,
    /// The lab is gone, and its kernel said nothing.
    Silent,
}

impl Fault {
    /// What the account calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LabRegisters => "guest with the lab's registers",
            Self::LabPerCpu => "guest with the lab's per-CPU area",
            Self::GuestClock => "lab with the guest's clock, stack overrun",
            Self::QemuAsVmm => "lab with QEMU as the VMM, stack overrun",
            Self::StaleCode => "stale int3 in finish_task_switch",
            Self::Still => "lab without a heartbeat for 60 s",
            Self::Silent => "lab gone without a word",
        }
    }

    /// The fault that made a scenario fail in a lab that lives on. `lines` is what the scenario printed, `why` its result,
    /// `guest_memory` the size of a Linux guest's memory in bytes.
    #[must_use]
    pub fn in_scenario(lines: &[String], why: &str, lab: &Areas, guest_memory: u64) -> Option<Self> {
        if lab_registers(why) {
            Some(Self::LabRegisters)
        } else if lab_per_cpu(lines, lab, guest_memory) {
            Some(Self::LabPerCpu)
        } else {
            None
        }
    }

    /// The fault that took a lab which ended without a status, by its console.
    #[must_use]
    pub fn in_lab(console: &str) -> Option<Self> {
        if guest_clock(console) {
            Some(Self::GuestClock)
        } else if qemu_as_vmm(console) {
            Some(Self::QemuAsVmm)
        } else if stale_code(console) {
            Some(Self::StaleCode)
        } else if crash(console).is_none() {
            Some(Self::Silent)
        } else {
            None
        }
    }
}

/// The first line of a kernel's console that tells of a crash.
#[must_use]
pub fn crash(console: &str) -> Option<&str> {
    const SIGNS: [&str; 7] =
        ["BUG: ", "Oops", "Kernel panic", "general protection fault", "double fault", "PANIC", "soft lockup"];
    console.lines().find(|line| SIGNS.iter().any(|sign| line.contains(sign)))
}

/// KVM's trace has shown the built-in guest at an address of the lab's kernel (`trace::astray`).
fn lab_registers(why: &str) -> bool {
    why.contains(crate::lab::trace::MIXED_UP)
}

/// A guest's oops whose RAX or RBP lies in the lab's per-CPU area, which the guest has no memory for.
fn lab_per_cpu(lines: &[String], lab: &Areas, guest_memory: u64) -> bool {
    let from = lines.iter().position(|line| crash(line).is_some()).unwrap_or(lines.len());
    let registers = lines[from..].iter().flat_map(|line| ["RAX", "RBP"].map(|name| register(line, name)));
    registers.flatten().any(|value| lab.contains(value) && lab.is_beyond(value, guest_memory))
}

/// `RAX: ffff88807dd2c4c0 RBX: ...`
fn register(line: &str, name: &str) -> Option<u64> {
    let (_, rest) = line.split_once(&format!("{name}: "))?;
    u64::from_str_radix(rest.split_whitespace().next()?, 16).ok()
}

/// A stack guard page hit in a vCPU's thread, while the time stamps jump back: the lab's kernel read the clock with the
/// guest's offset.
fn guest_clock(console: &str) -> bool {
    // CPUs write their lines in an order of their own, within milliseconds.
    const JUMP: f64 = 0.1;
    let lines: Vec<&str> = console.lines().collect();
    let of_vcpu = overrun(console)
        .is_some_and(|comm| comm.starts_with("vCPU ") || comm.starts_with("CPU ") && comm.contains("/KVM"));
    let mut latest = f64::MIN;
    let mut jumped = false;
    for time in lines.iter().filter_map(|line| time(line)) {
        jumped |= time < latest - JUMP;
        latest = latest.max(time);
    }
    of_vcpu && jumped
}

/// The same in a thread of QEMU's, when a scenario has it beside pollvisor: it goes by the name of the loader that starts it.
/// Nothing of ours runs a guest then.
fn qemu_as_vmm(console: &str) -> bool {
    overrun(console)
        .is_some_and(|comm| comm.starts_with("ld-linux-x86-64 ") || comm.starts_with("qemu-system-x86 "))
}

/// Of a stack guard page that was hit: the thread's name, and what follows it.
fn overrun(console: &str) -> Option<&str> {
    let (_, oops) = console.split_once("stack guard page")?;
    oops.lines().find_map(|line| line.split_once("Comm: ")).map(|(_, comm)| comm)
}

/// `[   12.345678] ...`, in seconds.
fn time(line: &str) -> Option<f64> {
    line.strip_prefix('[')?.split_once(']')?.0.trim().parse().ok()
}

/// The breakpoint by which Linux changes its code, met after it was gone, in the code that changes with the first and the
/// last VM.
fn stale_code(console: &str) -> bool {
    let Some((_, oops)) = console.split_once("Oops: int3") else { return false };
    let at = oops.lines().find_map(|line| line.split_once("RIP: ")).map(|(_, at)| at);
    at.is_some_and(|at| at.contains(":finish_task_switch"))
}

#[cfg(test)]
mod tests;
