//! Where the threads of a running command may run: a poller's CPU and a vCPU's are theirs alone, as far as there are
//! others.

use crate::harness::tests;
use crate::need::Need;
use crate::role::{self, Role};
use pollvisor_tests::rig::Accel;
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

tests! {
    each [Need::Cpus(2)] => nobody_shares_a_pollers_cpu;
    kvm [Need::Cpus(2)] => nobody_shares_a_pinned_vcpus_cpu;
}

/// A busy host, not a slow command.
const PATIENCE: Duration = Duration::from_secs(30);

/// A name for the command's first thread.
const MAIN: &str = "the first";

/// Ends the command with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _waited = self.0.wait();
    }
}

fn start(arguments: &[&str]) -> Running {
    let mut command = role::command(Role::Pollvisor);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().expect("the command"))
}

/// The CPUs that each thread of the command may use, by the thread's name and number.
fn allowed(running: &Running) -> BTreeMap<(String, String), Vec<usize>> {
    let folder = format!("/proc/{}/task", running.0.id());
    let threads = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |thread: std::fs::DirEntry| {
        // One that ends meanwhile is none.
        let name = std::fs::read_to_string(thread.path().join("comm")).ok()?;
        let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        let cpus = pollvisor::pin::parse_list(list.trim()).ok()?;
        let number = thread.file_name().to_string_lossy().into_owned();
        // The first thread has the file's name, which is this test's own where that plays the command.
        let name = if number == running.0.id().to_string() { MAIN } else { name.trim() };
        Some(((name.to_string(), number), cpus))
    };
    threads.filter_map(of).collect()
}

/// Waits until the threads named in `owners` are each on the CPU given, and `others` there, none of them on those CPUs.
fn expect(running: &mut Running, owners: &[(&str, usize)], others: &[&str]) {
    let began = Instant::now();
    loop {
        let threads = allowed(running);
        let is = |name: &str, prefix: &str| name.starts_with(prefix);
        let owned = owners
            .iter()
            .all(|(prefix, cpu)| threads.iter().any(|((name, _), cpus)| is(name, prefix) && cpus == &[*cpu]));
        let there = others.iter().all(|prefix| threads.keys().any(|(name, _)| is(name, prefix)));
        let stray = threads.iter().find(|((name, _), cpus)| {
            !owners.iter().any(|(prefix, _)| is(name, prefix))
                && owners.iter().any(|(_, cpu)| cpus.contains(cpu))
        });
        if owned && there && stray.is_none() {
            return;
        }
        let ended = running.0.try_wait().expect("its state");
        assert!(
            began.elapsed() < PATIENCE && ended.is_none(),
            "{owners:?} on CPUs of their own, {others:?} off them: {threads:?}, ended: {ended:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn nobody_shares_a_pollers_cpu(accel: Accel) {
    let last = *pollvisor::pin::available().last().expect("two");
    let mut running = start(&[&["run", "-D", "10m", "--json"], accel.flags()].concat());
    expect(&mut running, &[("poller", last)], &["vCPU 0", "pv-deferred", "pv-shutdown", MAIN]);
}

/// An ELF file of which 64 bytes go to 1 MiB, with a PVH note that enters there: it halts.
fn halting_kernel() -> Vec<u8> {
    const AT: u64 = 0x10_0000;
    let mut file = vec![0; 256];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(18, &62u16.to_le_bytes());
    put(24, &AT.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    for (at, kind, offset, address, size) in [(64, 1u32, 256u64, AT, 64u64), (120, 4, 192, 0, 20)] {
        put(at, &kind.to_le_bytes());
        for (field, value) in [(8, offset), (24, address), (32, size), (40, size)] {
            put(at + field, &value.to_le_bytes());
        }
    }
    for (at, number) in [(192, 4u32), (196, 4), (200, 18), (208, 0x10_0000)] {
        put(at, &number.to_le_bytes());
    }
    put(204, b"Xen\0");
    // hlt; jmp to it
    file.extend_from_slice(&[0xf4, 0xeb, 0xfd]);
    file.resize(320, 0);
    file
}

fn nobody_shares_a_pinned_vcpus_cpu() {
    let last = *pollvisor::pin::available().last().expect("two");
    let mut kernel = tempfile::NamedTempFile::new().expect("a file");
    kernel.write_all(&halting_kernel()).expect("a file");
    let kernel = kernel.path().to_str().expect("UTF-8");
    let affinity = format!("boot=1,affinity=[0@[{last}]]");
    let common = ["run", "--serial", "off", "--memory", "size=64M", "--kernel", kernel, "--cpus", &affinity];
    for delivery in ["irqfd", "blocking", "polled"] {
        let mut running = start(&[&common[..], &["--delivery", delivery]].concat());
        let others = ["pv-deferred", "pv-shutdown", "pv-devices", "pv-ioapic", "signals", MAIN];
        expect(&mut running, &[("vCPU 0", last)], &others);
    }
}
