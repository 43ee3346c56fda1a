//! Debian's kernel as a guest: it boots, uses assigned devices by its own drivers, and ends.

use crate::lab::linux::{Ended, start, told};
use crate::lab::{Context, Need, Scenario};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pollvisor::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

const BARE: &[Need] = &[Need::Kvm, Need::Linux];
const IGB: &[Need] = &[Need::Kvm, Need::Linux, Need::Igb];
const E1000E: &[Need] = &[Need::Kvm, Need::Linux, Need::E1000e];

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "linux: bzImage, 1 vCPU", needs: BARE, run: |c| boots(c, "vmlinuz", 1, "split") },
    Scenario { name: "linux: bzImage, 2 vCPUs", needs: BARE, run: |c| boots(c, "vmlinuz", 2, "split") },
    Scenario { name: "linux: ELF, 2 vCPUs", needs: BARE, run: |c| boots(c, "vmlinux", 2, "split") },
    Scenario { name: "linux: ELF, kernel irqchip", needs: BARE, run: |c| boots(c, "vmlinux", 2, "kernel") },
    Scenario { name: "linux: reboot", needs: BARE, run: |_| ends("end=reboot", 3) },
    Scenario { name: "linux: panic, told", needs: BARE, run: |_| ends("end=panic", 4) },
    Scenario { name: "linux: triple fault", needs: BARE, run: |_| ends("reboot=t,force end=reboot", 4) },
    Scenario { name: "linux: power button", needs: BARE, run: |_| asked("end=button", "10s", 0) },
    Scenario { name: "linux: a deaf guest", needs: BARE, run: |_| asked("end=deaf", "500ms", 128 + 15) },
    Scenario { name: "linux: igb, polled", needs: IGB, run: |c| net(c, Need::Igb, "", "polled") },
    Scenario { name: "linux: igb, irqfd", needs: IGB, run: |c| net(c, Need::Igb, "", "irqfd") },
    Scenario { name: "linux: igb, blocking", needs: IGB, run: |c| net(c, Need::Igb, "", "blocking") },
    Scenario { name: "linux: e1000e, MSI-X", needs: E1000E, run: |c| net(c, Need::E1000e, "", "blocking") },
    Scenario {
        name: "linux: e1000e, INTx",
        needs: E1000E,
        run: |c| net(c, Need::E1000e, "options=IntMode=0", "blocking"),
    },
    Scenario {
        name: "linux: e1000e, pci=nomsi",
        needs: E1000E,
        run: |c| net(c, Need::E1000e, "pci=nomsi", "polled"),
    },
    Scenario {
        name: "linux: e1000e, INTx by irqfd",
        needs: E1000E,
        run: |c| net(c, Need::E1000e, "options=IntMode=0", "irqfd"),
    },
    Scenario { name: "linux: nvme", needs: &[Need::Kvm, Need::Linux, Need::Nvme], run: nvme },
];

fn boots(context: &mut Context, kernel: &str, vcpus: u32, irqchip: &str) -> Result<()> {
    let began = Instant::now();
    let ended =
        start(kernel, "", &["--cpus", &format!("boot={vcpus}"), "--irqchip", irqchip])?.end()?.with(0)?;
    let up = ended.line("up after ")?;
    context.note(format!("up after {up}; {:.1} s from start to end", began.elapsed().as_secs_f64()));
    if !up.contains(&format!(" {vcpus} CPUs,")) {
        return Err(Error::new(format!("{vcpus} vCPUs, and the guest says: {up}")));
    }
    Ok(())
}

fn ends(parameters: &str, code: i32) -> Result<()> {
    start("vmlinux", parameters, &["--cpus", "boot=2"])?.end()?.with(code).map(drop)
}

/// SIGTERM to a guest that waits.
fn asked(parameters: &str, grace: &str, code: i32) -> Result<()> {
    let mut guest = start("vmlinux", parameters, &["--grace", grace])?;
    guest.says("guest: waits")?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let id = Pid::from_raw(i32::try_from(guest.id()).unwrap_or(i32::MAX));
    kill(id, Signal::SIGTERM).map_err(|e| Error::new(format!("SIGTERM: {e}")))?;
    let ended = guest.end()?.with(code)?;
    if code == 0 { ended.line("the button").map(drop) } else { Ok(()) }
}

const TRACING: &str = "/sys/kernel/tracing";

/// The host's trace of what LAPICs accept and what goes into a guest.
struct Trace;

impl Trace {
    fn start() -> Result<Self> {
        if !std::path::Path::new(TRACING).join("trace").exists() {
            mount(Some("tracefs"), TRACING, Some("tracefs"), MsFlags::empty(), None::<&str>)
                .map_err(|e| Error::new(format!("mounting tracefs: {e}")))?;
        }
        for (file, value) in [
            ("trace", ""),
            ("buffer_size_kb", "16384"),
            ("events/kvm/kvm_apic_accept_irq/enable", "1"),
            ("events/kvm/kvm_inj_virq/enable", "1"),
        ] {
            fs::write(format!("{TRACING}/{file}"), value)
                .map_err(|e| Error::os(format!("{TRACING}/{file}"), &e))?;
        }
        Ok(Self)
    }

    /// By LAPIC vector: how often one was accepted, and how often one went into the guest.
    fn counts(self) -> Result<BTreeMap<u32, (u64, u64)>> {
        let text = fs::read_to_string(format!("{TRACING}/trace")).map_err(|e| Error::os("the trace", &e))?;
        let mut counts: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for line in text.lines() {
            if let Some((_, rest)) = line.split_once("kvm_apic_accept_irq: ") {
                let vector =
                    rest.split_once("vec ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
                counts.entry(vector.unwrap_or(u32::MAX)).or_default().0 += 1;
            } else if let Some((_, rest)) = line.split_once("kvm_inj_virq: IRQ 0x")
                && !rest.contains("reinjected")
            {
                counts.entry(u32::from_str_radix(rest.trim(), 16).unwrap_or(u32::MAX)).or_default().1 += 1;
            }
        }
        Ok(counts)
    }
}

/// A network device, its driver, a lease and 100 pings; then the counts.
fn net(context: &mut Context, need: Need, parameters: &str, delivery: &str) -> Result<()> {
    let device = format!("host={},delivery={delivery}", context.address(need)?);
    let trace = Trace::start()?;
    let parameters = format!("net={} {parameters}", need.name());
    // INTx by irqfd needs the kernel's own I/O APIC.
    let irqchip = if delivery == "irqfd" { "kernel" } else { "split" };
    let ended =
        start("vmlinux", &parameters, &["--device", &device, "--irqchip", irqchip])?.end()?.with(0)?;
    let counts = trace.counts()?;
    let pings = ended.line("100 packets")?;
    if !pings.contains(" 100 packets received") {
        return Err(told(format!("100 packets {pings}")));
    }
    if delivery != "irqfd" {
        return accounted(context, &ended, &counts);
    }
    // The kernel's irqfds count nothing; the guest's handlers have to have run.
    match ended.handled().iter().find(|(count, _)| *count > 100) {
        Some((count, who)) => context.note(format!("handled {count}: {who}")),
        None => return Err(told(format!("100 pings, handled {:?}", ended.handled()))),
    }
    Ok(())
}

/// Every interrupt that was delivered was accepted by the LAPIC, and every one that the LAPIC did not merge with one
/// that waited was handled.
fn accounted(context: &mut Context, ended: &Ended, counts: &BTreeMap<u32, (u64, u64)>) -> Result<()> {
    let mut handled = ended.handled();
    handled.retain(|(count, _)| *count > 0);
    let delivered = ended.delivered();
    if delivered.is_empty() || delivered.len() != handled.len() {
        return Err(told(format!("delivered {delivered:?}, handled {handled:?}")));
    }
    for ((vector, delivered), (handled, who)) in delivered.iter().zip(&handled) {
        context.note(format!("vector {vector}: delivered {delivered}, handled {handled}: {who}"));
        let pair = counts.values().any(|(accepted, injected)| accepted == delivered && injected == handled);
        if delivered != handled && !pair {
            return Err(told(format!(
                "vector {vector}: delivered {delivered}, handled {handled}; by LAPIC vector {counts:?}"
            )));
        }
    }
    Ok(())
}

fn nvme(context: &mut Context) -> Result<()> {
    let device = format!("host={},delivery=blocking", context.address(Need::Nvme)?);
    let ended = start("vmlinux", "nvme", &["--device", &device])?.end()?.with(0)?;
    for wanted in [format!("{} bytes", 8 << 20), "0 bytes that are not zero".to_string()] {
        if !ended.lines("read ").any(|read| read == wanted) {
            return Err(told(format!("the guest did not read {wanted}")));
        }
    }
    // The driver asks for its interrupts twice, and /proc/interrupts forgets those of the first time.
    let (delivered, handled) = (ended.delivered(), ended.handled());
    context.note(format!("delivered {delivered:?}, handled {handled:?}"));
    let fits = |((_, delivered), (handled, _)): (&(_, u64), &(u64, _))| *handled > 0 && delivered >= handled;
    if delivered.is_empty() || !delivered.iter().zip(&handled).all(fits) {
        return Err(told(format!("delivered {delivered:?}, handled {handled:?}")));
    }
    Ok(())
}
