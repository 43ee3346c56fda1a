//! The host's own trace of a guest's interrupts: what VFIO's handlers heard of the device, what LAPICs accepted and from
//! whom, what went into the guest.

use nix::mount::{MsFlags, mount};
use pollvisor::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

const TRACING: &str = "/sys/kernel/tracing";
const EVENTS: [&str; 4] = [
    "events/kvm/kvm_apic_accept_irq",
    "events/kvm/kvm_inj_virq",
    "events/kvm/kvm_pio",
    "events/irq/irq_handler_entry",
];
/// A port that the guest writes to between two looks at its counts, and that nothing else uses.
pub const MARK: u16 = 0x84;

/// A vector of a vCPU's LAPIC.
pub type Lapic = (u32, u32);

/// What was seen of one LAPIC vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Accepted from `KVM_SIGNAL_MSI`: a poller, a control thread.
    pub ours: u64,
    /// Accepted from an irqfd, in the device's interrupt.
    pub irqfd: u64,
    /// Accepted from an irqfd's worker: what was in the event already when the irqfd was made.
    pub worker: u64,
    /// Went into the guest.
    pub injected: u64,
    /// Of these, before the last mark.
    pub marked: u64,
    /// Whether the trigger was a level.
    pub level: bool,
    /// Whether one that was accepted did not go into the guest after that,
    pub waits: bool,
    /// and was accepted before the last mark.
    pub stuck: bool,
}

impl Seen {
    /// All that were accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.ours + self.irqfd + self.worker
    }
}

/// The whole trace, counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By LAPIC vector.
    pub lapic: BTreeMap<Lapic, Seen>,
    /// Runs of VFIO's handlers by what they are called: `vfio-msix[1](0000:01:00.0)`.
    pub fired: BTreeMap<String, u64>,
    /// How often the guest marked its counts.
    pub marks: u64,
}

/// A trace that is being written.
#[derive(Debug)]
pub struct Trace(());

impl Trace {
    /// Begins a new one.
    ///
    /// # Errors
    /// When this kernel does not trace.
    pub fn start() -> Result<Self> {
        still()?;
        // One clock for all CPUs, so that their events are in order.
        set("trace_clock", "mono")?;
        set("buffer_size_kb", "16384")?;
        set("saved_cmdlines_size", "1024")?;
        set("events/irq/irq_handler_entry/filter", "name ~ \"vfio-*\"")?;
        set("events/kvm/kvm_pio/filter", &format!("port == {MARK}"))?;
        for event in EVENTS {
            set(&format!("{event}/enable"), "1")?;
        }
        set("trace", "")?;
        set("tracing_on", "1")?;
        Ok(Self(()))
    }

    /// Ends and counts it.
    ///
    /// # Errors
    /// When something of it was lost, or cannot be read.
    pub fn end(self) -> Result<Counts> {
        set("tracing_on", "0")?;
        let cpus = fs::read_dir(format!("{TRACING}/per_cpu")).map_err(|e| Error::os("per_cpu", &e))?;
        for cpu in cpus.flatten() {
            let path = cpu.path().join("stats");
            let stats = fs::read_to_string(&path).map_err(|e| Error::os(path.display().to_string(), &e))?;
            if let Some(lost) = lost(&stats) {
                return Err(Error::new(format!("the trace is not whole: {}: {lost}", path.display())));
            }
        }
        let text = fs::read_to_string(format!("{TRACING}/trace")).map_err(|e| Error::os("the trace", &e))?;
        count(&text)
    }
}

/// Where in its guest each vCPU was when it was entered last, of those that are entered in the next 50 ms.
///
/// # Errors
/// When this kernel does not trace.
pub fn entered() -> Result<BTreeMap<u32, u64>> {
    const ENTRY: &str = "events/kvm/kvm_entry/enable";
    still()?;
    set(ENTRY, "1")?;
    set("trace", "")?;
    set("tracing_on", "1")?;
    sleep(Duration::from_millis(50));
    set("tracing_on", "0")?;
    set(ENTRY, "0")?;
    let text = fs::read_to_string(format!("{TRACING}/trace")).map_err(|e| Error::os("the trace", &e))?;
    Ok(text.lines().filter_map(entry).collect())
}

/// How [`astray`] ends: the runner outside knows it by that.
pub const MIXED_UP: &str = "in the lab's own kernel: the emulator has mixed up the two";

/// Whether a vCPU of the built-in guest, all of whose addresses are low ones, runs at an address of a kernel: it has the
/// registers of the lab's own CPU then, which only the emulator of the two can have given it (`tests/lab/README.md`).
#[must_use]
pub fn astray() -> Option<String> {
    const KERNELS: u64 = 1 << 63;
    let (vcpu, rip) = entered().ok()?.into_iter().find(|(_, rip)| *rip >= KERNELS)?;
    Some(format!("vCPU {vcpu} is at {rip:#x}, {MIXED_UP}"))
}

/// `kvm_entry: vcpu 0, rip 0x8000[immediate exit]`
fn entry(line: &str) -> Option<(u32, u64)> {
    let (_, what) = line.split_once(" kvm_entry: vcpu ")?;
    let (vcpu, rip) = what.split_once(", rip 0x")?;
    let digits = rip.find(|c: char| !c.is_ascii_hexdigit()).map_or(rip, |end| &rip[..end]);
    Some((vcpu.parse().ok()?, u64::from_str_radix(digits, 16).ok()?))
}

/// Makes sure that there is a tracer, and that it is not tracing.
fn still() -> Result<()> {
    if !Path::new(TRACING).join("trace").exists() {
        mount(Some("tracefs"), TRACING, Some("tracefs"), MsFlags::empty(), None::<&str>)
            .map_err(|e| Error::new(format!("mounting tracefs: {e}")))?;
    }
    set("tracing_on", "0")
}

fn set(file: &str, value: &str) -> Result<()> {
    fs::write(format!("{TRACING}/{file}"), value).map_err(|e| Error::os(format!("{TRACING}/{file}"), &e))
}

/// The line of a CPU's statistics that says that events were lost.
fn lost(stats: &str) -> Option<&str> {
    let names = ["overrun", "commit overrun", "dropped events"];
    stats.lines().find(|line| {
        line.split_once(':').is_some_and(|(name, value)| names.contains(&name) && value.trim() != "0")
    })
}

fn count(text: &str) -> Result<Counts> {
    let mut counts = Counts::default();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        event(&mut counts, line).ok_or_else(|| Error::new(format!("a line of the trace: {line}")))?;
    }
    Ok(counts)
}

/// ```text
///         poller 0-203     [001] d..2.    12.345678: kvm_apic_accept_irq: apicid 0 vec 34 (Fixed|edge)
/// ```
/// The letters are: interrupts off, wants to reschedule, what kind of interrupt it is in, how often preemption is off.
fn event(counts: &mut Counts, line: &str) -> Option<()> {
    let (task, rest) = line.split_once(" [")?;
    let (comm, _) = task.trim().rsplit_once('-')?;
    let (letters, rest) = rest.split_once("] ")?.1.trim_start().split_once(' ')?;
    let context = letters.chars().nth(2)?;
    let (_time, rest) = rest.split_once(": ")?;
    let (name, what) = rest.split_once(": ")?;
    match name {
        "irq_handler_entry" => {
            let name = what.split_once("name=")?.1.trim();
            *counts.fired.entry(name.to_string()).or_default() += 1;
        }
        "kvm_apic_accept_irq" => {
            let mut words = what.split(' ');
            let apic = u32::from_str_radix(words.nth(1)?, 16).ok()?;
            let vector = words.nth(1)?.parse().ok()?;
            let seen = counts.lapic.entry((apic, vector)).or_default();
            match context {
                'h' | 'H' | 'z' | 'Z' | 's' => seen.irqfd += 1,
                _ if comm.starts_with("kworker") => seen.worker += 1,
                _ => seen.ours += 1,
            }
            seen.level |= what.contains("|level)");
            seen.waits = true;
        }
        // One that an exit interrupted goes in once more.
        "kvm_inj_virq" if what.contains("reinjected") || !what.starts_with("IRQ ") => {}
        "kvm_inj_virq" => {
            let apic = comm.strip_prefix("vCPU ")?.parse().ok()?;
            let vector = u32::from_str_radix(what.trim().strip_prefix("IRQ 0x")?, 16).ok()?;
            let seen = counts.lapic.entry((apic, vector)).or_default();
            seen.injected += 1;
            (seen.waits, seen.stuck) = (false, false);
        }
        "kvm_pio" => {
            counts
                .lapic
                .values_mut()
                .for_each(|seen| (seen.marked, seen.stuck) = (seen.injected, seen.waits));
            counts.marks += 1;
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# tracer: nop
          <idle>-0       [001] d.h1.    10.000001: irq_handler_entry: irq=36 name=vfio-msix[1](0000:01:00.0)
        poller 0-203     [001] d..2.    10.000002: kvm_apic_accept_irq: apicid 0 vec 34 (Fixed|edge)
##### CPU 0 buffer started ####
          vCPU 0-204     [000] d..2.    10.000003: kvm_inj_virq: IRQ 0x22
          vCPU 0-204     [000] d..2.    10.000004: kvm_inj_virq: IRQ 0x22 [reinjected]
        poller 0-203     [001] d.h2.    10.000005: irq_handler_entry: irq=36 name=vfio-msix[1](0000:01:00.0)
        poller 0-203     [001] d.h2.    10.000006: kvm_apic_accept_irq: apicid 0 vec 34 (Fixed|edge)
     kworker/1:2-77      [001] d..2.    10.000007: kvm_apic_accept_irq: apicid 0 vec 34 (Fixed|edge)
          vCPU 1-205     [000] d..2.    10.000008: kvm_apic_accept_irq: apicid 1 vec 35 (Fixed|level)
          vCPU 1-205     [000] d..2.    10.000009: kvm_inj_virq: Soft/INTn 0x80
          vCPU 1-205     [000] d..2.    10.000010: kvm_inj_virq: IRQ 0x23
          vCPU 0-204     [000] .....    10.000011: kvm_pio: pio_write at 0x84 size 1 count 1 val 0x0
          vCPU 0-204     [000] d..2.    10.000012: kvm_inj_virq: IRQ 0x22
        poller 0-203     [001] d..2.    10.000013: kvm_apic_accept_irq: apicid 0 vec 34 (Fixed|edge)
          vCPU 1-205     [000] d..2.    10.000014: kvm_inj_virq: IRQ 0x23
";

    #[test]
    fn who_delivered_what() {
        let counts = count(TEXT).expect("a trace");
        let edge =
            Seen { ours: 2, irqfd: 1, worker: 1, injected: 2, marked: 1, waits: true, ..Seen::default() };
        let level = Seen { ours: 1, injected: 2, marked: 1, level: true, ..Seen::default() };
        assert_eq!(counts.lapic, BTreeMap::from([((0, 34), edge), ((1, 35), level)]));
        assert_eq!(counts.fired, BTreeMap::from([("vfio-msix[1](0000:01:00.0)".to_string(), 2)]));
        assert_eq!(counts.marks, 1);
        let cut = TEXT.split_once("10.000012").expect("it").0.rsplit_once('\n').expect("lines").0;
        assert!(count(cut).expect("a trace").lapic[&(0, 34)].stuck);
        assert!(count("something else").is_err());
    }

    #[test]
    fn where_a_guest_was() {
        let entered =
            |what: &str| entry(&format!("   vCPU 1-167   [000] d..1.    33.396578: kvm_entry: {what}"));
        assert_eq!(
            entered("vcpu 1, rip 0xffffffffc03ffc50[immediate exit]"),
            Some((1, 0xffff_ffff_c03f_fc50))
        );
        assert_eq!(entered("vcpu 0, rip 0x8040"), Some((0, 0x8040)));
        assert_eq!(
            entry("   vCPU 1-167   [000] d..1.    33.396578: kvm_exit: vcpu 1 reason npf rip 0x8040"),
            None
        );
    }

    #[test]
    fn what_was_lost_is_noticed() {
        let stats =
            "entries: 12\noverrun: 0\ncommit overrun: 0\nbytes: 99\ndropped events: 0\nread events: 7\n";
        assert_eq!(lost(stats), None);
        let over = stats.replace("\noverrun: 0", "\noverrun: 3");
        assert_eq!(lost(&over), Some("overrun: 3"));
        assert_eq!(lost(&stats.replace("events: 0", "events: 1")), Some("dropped events: 1"));
    }
}
