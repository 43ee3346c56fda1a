//! Debian's kernel as a guest: it boots, uses assigned devices by its own drivers, and ends.

use crate::lab::linux::accounts::{self, By};
use crate::lab::linux::{Ended, Handled, Running, start, start_in_qemu, talk, told};
use crate::lab::trace::Trace;
use crate::lab::{Context, Need, Scenario};
use nix::sys::signal::Signal;
use pollvisor::error::{Error, Result};
use std::time::{Duration, Instant};

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
    Scenario { name: "linux: a vCPU that fails", needs: BARE, run: |_| fails() },
    Scenario {
        name: "linux: boot time beside QEMU's",
        needs: &[Need::Kvm, Need::Linux, Need::Igb, Need::Qemu],
        run: beside_qemu,
    },
    Scenario { name: "linux: igb, polled", needs: IGB, run: |c| net(c, &Net::IGB) },
    Scenario {
        name: "linux: igb, irqfd",
        needs: IGB,
        run: |c| net(c, &Net { delivery: "irqfd", by: By::Kernel, ..Net::IGB }),
    },
    Scenario {
        name: "linux: igb, blocking",
        needs: IGB,
        run: |c| net(c, &Net { delivery: "blocking", ..Net::IGB }),
    },
    Scenario {
        name: "linux: igb, handed over",
        needs: IGB,
        run: |c| net(c, &Net { arguments: &["--hand-over", "10ms"], by: By::Both, ..Net::IGB }),
    },
    Scenario {
        name: "linux: igb, shared out",
        needs: IGB,
        run: |c| {
            net(c, &Net { arguments: &["--poller", "cpu=1,vectors=[nic:1]"], by: By::Apart, ..Net::IGB })
        },
    },
    Scenario { name: "linux: e1000e, MSI-X", needs: E1000E, run: |c| net(c, &Net::E1000E) },
    Scenario {
        name: "linux: e1000e, INTx",
        needs: E1000E,
        run: |c| net(c, &Net { parameters: "options=IntMode=0", ..Net::E1000E }),
    },
    Scenario {
        // The driver tries one MSI, which QEMU's device does not send as it wants, also to a host's own driver.
        name: "linux: e1000e, MSI that the driver gives up for INTx",
        needs: E1000E,
        run: given_up,
    },
    Scenario {
        name: "linux: e1000e, pci=nomsi",
        needs: E1000E,
        run: |c| net(c, &Net { parameters: "pci=nomsi", delivery: "polled", ..Net::E1000E }),
    },
    Scenario {
        name: "linux: e1000e, INTx by irqfd",
        needs: E1000E,
        run: |c| {
            net(c, &Net { parameters: "options=IntMode=0", delivery: "irqfd", by: By::Kernel, ..Net::E1000E })
        },
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
    start("vmlinux", parameters, &[])?.end()?.with(code).map(drop)
}

/// SIGTERM to a guest that waits.
fn asked(parameters: &str, grace: &str, code: i32) -> Result<()> {
    let mut guest = start("vmlinux", parameters, &["--grace", grace])?;
    guest.says("guest: waits")?;
    std::thread::sleep(Duration::from_millis(500));
    guest.signal(Signal::SIGTERM)?;
    let ended = guest.end()?.with(code)?;
    if code == 0 { ended.line("the button").map(drop) } else { Ok(()) }
}

/// A kernel that jumps to where nothing is: KVM gives up, and pollvisor says so, with the code of its own failures.
fn fails() -> Result<()> {
    // mov eax, 0xd000_0000; jmp rax or eax
    let code = [0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0];
    std::fs::write("broken", pvh(&code)).map_err(|e| Error::os("a kernel", &e))?;
    let ended = start("broken", "", &[])?.end()?.with(1)?;
    if ended.talk.contains("vCPU 0") { Ok(()) } else { Err(told("no word of the vCPU".into())) }
}

/// An ELF file whose PVH note enters at `code`, at 1 MiB: its header, two program headers, the note, the code.
fn pvh(code: &[u8]) -> Vec<u8> {
    const ENTRY: u64 = 1 << 20;
    let size = u64::try_from(code.len()).unwrap_or(0);
    let words = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // An executable for x86-64; entry, program headers, no sections; sizes of headers, and two of them.
    file.extend(words(&[2 | 62 << 16 | 1 << 32, ENTRY, 64, 0, 64 << 32 | 56 << 48, 2]));
    file.extend(words(&[1, 256, ENTRY, ENTRY, size, size, 0]));
    file.extend(words(&[4, 192, 0, 0, 20, 20, 4]));
    file.resize(192, 0);
    // XEN_ELFNOTE_PHYS32_ENTRY
    for word in [4, 4, 18] {
        file.extend(u32::to_le_bytes(word));
    }
    file.extend(b"Xen\0\0\0\x10\0");
    file.resize(256, 0);
    file.extend(code);
    file
}

/// From start to the device's 20th ping, pollvisor and QEMU on the same kernel and initramfs. When pollvisor was slower,
/// once more each, and the better ones count: the machine under this one does other things, too. Then by irqfds, as QEMU
/// has them: a poller on a CPU that it has to share holds the guest up.
fn beside_qemu(context: &mut Context) -> Result<()> {
    let address = context.address(Need::Igb)?.to_string();
    let (mut ours, mut theirs) = (Duration::MAX, Duration::MAX);
    let parameters = "net=igb pings=20 pause=0.1";
    for delivery in ["polled", "irqfd"] {
        let device = format!("host={address},delivery={delivery}");
        let guest = start("vmlinux", parameters, &["--device", &device])?;
        ours = ours.min(until_pinged(context, &format!("pollvisor, {delivery}"), guest)?);
        let guest = start_in_qemu("vmlinux", parameters, &address)?;
        theirs = theirs.min(until_pinged(context, "QEMU", guest)?);
        if ours <= theirs {
            return Ok(());
        }
    }
    Err(Error::new("pollvisor is slower than QEMU"))
}

fn until_pinged(context: &mut Context, who: &str, mut guest: Running) -> Result<Duration> {
    guest.says("guest: up after")?;
    let up = guest.time();
    guest.says("guest: exchanged 20 requests, 20 replies")?;
    let time = guest.time();
    guest.kill()?;
    let [up, pinged] = [up, time].map(|time| time.as_secs_f64());
    context.note(format!("{who}: first program after {up:.1} s, 20th ping after {pinged:.1} s"));
    Ok(time)
}

/// A network device, who delivers it, and how its driver is to use it.
struct Net {
    need: Need,
    parameters: &'static str,
    delivery: &'static str,
    arguments: &'static [&'static str],
    by: By,
}

impl Net {
    const IGB: Self =
        Self { need: Need::Igb, parameters: "", delivery: "polled", arguments: &[], by: By::Poller };
    const E1000E: Self = Self { need: Need::E1000e, delivery: "blocking", ..Self::IGB };
}

/// A network device, its driver, a lease and 1000 pings; then the counts.
fn net(context: &mut Context, net: &Net) -> Result<()> {
    exchange(context, net).map(drop)
}

fn exchange(context: &mut Context, net: &Net) -> Result<Ended> {
    let address = context.address(net.need)?.to_string();
    let device = format!("host={address},id=nic,delivery={}", net.delivery);
    let trace = Trace::start()?;
    let parameters = format!("net={} {}", net.need.name(), net.parameters);
    // INTx by irqfd needs the kernel's own I/O APIC.
    let irqchip = if net.delivery == "irqfd" { "kernel" } else { "split" };
    let arguments = [&["--device", &device, "--irqchip", irqchip], net.arguments].concat();
    let mut guest = start("vmlinux", &parameters, &arguments)?;
    guest.says("guest: exchanged ")?;
    shown(&guest, net.by)?;
    let ended = guest.end()?.with(0)?;
    let counts = trace.end()?;
    let exchanged = ended.line("exchanged ")?;
    if exchanged != "1000 requests, 1000 replies" {
        return Err(told(exchanged.to_string()));
    }
    if let Some(moves) = ended.report["hand_overs"].as_u64() {
        context.note(format!("{moves} hand-overs"));
    }
    accounts::check(context, &ended, &counts, &address, net.by)?;
    Ok(ended)
}

/// SIGUSR1: the table as it is now, a row for each vector that somebody here delivered. Without latencies are INTx, which
/// goes by way of the I/O APIC, and a vector that only an irqfd's worker delivered, at a hand-over.
fn shown(guest: &Running, by: By) -> Result<()> {
    guest.signal(Signal::SIGUSR1)?;
    let began = Instant::now();
    while !talk().contains("running after ") {
        if began.elapsed() > Duration::from_secs(10) {
            return Err(told("no table at SIGUSR1".into()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let talk = talk();
    let rows = talk.lines().filter_map(|line| line.trim_matches(['│', ' ']).strip_prefix("nic "));
    // Behind the vector the ledger's four, and three latencies.
    let figures = |row: &str| row.split_whitespace().skip(1).map_while(number).count();
    let rows: Vec<_> = rows.map(|row| (row.starts_with("intx"), figures(row))).collect();
    let good =
        |(intx, figures): &(bool, usize)| *figures == 7 || (*figures == 4 && (*intx || by == By::Both));
    let good = match by {
        By::Kernel => rows.is_empty() && talk.contains("nic: delivered by the kernel"),
        By::Poller | By::Both | By::Apart => !rows.is_empty() && rows.iter().all(good),
    };
    if good { Ok(()) } else { Err(told(format!("INTx or not, figures in the rows at SIGUSR1: {rows:?}"))) }
}

fn number(word: &str) -> Option<f64> {
    word.parse().ok()
}

fn given_up(context: &mut Context) -> Result<()> {
    let ended = exchange(context, &Net { parameters: "options=IntMode=1", ..Net::E1000E })?;
    let said = ended.line("driver: ")?;
    context.note(said);
    if said.contains("MSI interrupt test failed, using legacy interrupt") {
        Ok(())
    } else {
        Err(told(said.into()))
    }
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
    let fits = |((_, delivered), handled): (&(_, u64), &Handled)| *delivered >= handled.count;
    if delivered.is_empty() || handled.is_empty() || !delivered.iter().zip(&handled).all(fits) {
        return Err(told(format!("delivered {delivered:?}, handled {handled:?}")));
    }
    Ok(())
}
