//! The command, as a user has it: results, and a clear error for everything that is wrong.

use crate::harness::tests;
use crate::need::Need;
use crate::role::{self, Role};
use pollvisor_tests::rig::Accel;
use std::process::{Command, Output};

tests! {
    shared [] => wrong_flags_and_values_are_named, device_commands_name_what_is_wrong,
        what_needs_kvm_is_refused_by_its_flag;
    shared [Need::NoPci] => a_list_without_a_pci_bus_is_refused;
    shared [Need::Pci] => the_list_has_every_function_of_this_machine;
    kvm [Need::Cpus(2)] => a_guest_that_cannot_be_booted_is_refused, what_is_no_kernel_is_refused,
        what_cannot_be_is_refused_with_a_remedy;
    each [] => every_way_measures_its_stages_and_balances_its_ledger, the_log_holds_every_sample,
        an_interrupt_drains_and_reports, the_accelerator_is_the_one_that_there_is;
}

fn pollvisor(arguments: &[&str]) -> Output {
    role::command(Role::Pollvisor).args(arguments).output().expect("pollvisor")
}

/// Fails with exit code 1, nothing on stdout, and all of `words` on stderr.
fn refused(arguments: &[&str], words: &[&str]) {
    let output = pollvisor(arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    for word in words {
        assert!(text.contains(word), "{arguments:?}: no `{word}` in: {text}");
    }
}

fn wrong_flags_and_values_are_named() {
    refused(&["run", "--bogus"], &["--bogus"]);
    refused(&["launch"], &["launch"]);
    refused(&["run", "--vectors", "x"], &["--vectors", "x"]);
    refused(&["run", "--source", "pigeon"], &["--source", "pigeon", "eventfd", "doorbell"]);
    refused(&["run", "--delivery", "slow"], &["--delivery", "slow", "polled", "irqfd", "blocking"]);
    refused(&["run", "--interval", "3 parsecs"], &["--interval", "parsecs"]);
    refused(&["run", "--duration", "0"], &["--duration"]);
    refused(&["run", "--poller", "core=1"], &["--poller", "core"]);
    refused(&["run", "--poller", "cpu=60000"], &["--poller", "60000"]);
    refused(&["run", "--cpus", "affinity=[0@[0]]"], &["--cpus", "boot"]);
    refused(&["run", "--cpus", "boot=1,affinity=[0@[60000]]"], &["--cpus", "60000"]);
    refused(&["run", "--guest-idle", "nap"], &["--guest-idle", "nap"]);
    refused(&["run", "--guest", "linux"], &["--guest", "linux"]);
}

fn a_guest_that_cannot_be_booted_is_refused() {
    for flag in ["--memory=size=1G", "--serial=off", "--grace=1s", "--overcommit=cpu-pm=on", "--vcpu-fifo=on"]
    {
        refused(&["run", flag], &[flag.split_once('=').expect("a value").0, "try: --kernel"]);
    }
    refused(&["run", "--kernel", "/nowhere", "--vectors", "3"], &["--vectors", "try:"]);
    let hand_over = ["run", "--kernel", "/nowhere", "--hand-over", "10ms"];
    refused(&hand_over, &["--hand-over", "no poller", "try: --device"]);
    let by_kernel = ["--device", "host=ff:1f.7,delivery=irqfd"];
    refused(&[&hand_over[..], &by_kernel].concat(), &["--hand-over", "no poller"]);
    let never = ["run", "--kernel", "/nowhere", "--hand-over", "0", "--device", "host=ff:1f.7"];
    refused(&never, &["--hand-over 0"]);
    let unknown = ["--device", "host=ff:1f.7", "--poller", "cpu=0,vectors=[nic0:1]"];
    refused(&[&["run", "--kernel", "/nowhere"], &unknown[..]].concat(), &["--poller vectors", "nic0", "id="]);
    refused(&["run", "--memory", "size=1G,hugepage_size=3M"], &["hugepage_size", "2M or 1G"]);
    refused(&["run", "--serial", "pty"], &["--serial", "pty"]);
    refused(&["run", "--profile", "fast"], &["--profile", "low-latency"]);
}

fn what_is_no_kernel_is_refused() {
    let text = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(text.path(), "[package]\n".repeat(100)).expect("a file");
    let text = text.path().to_str().expect("UTF-8");
    let kernel = |file| ["run", "--serial", "off", "--kernel", file];
    refused(&kernel("/nowhere"), &["/nowhere", "ENOENT"]);
    refused(&kernel("/dev/null"), &["/dev/null", "cut off"]);
    refused(&kernel(text), &[text, "neither", "try:"]);
    refused(&[&kernel("/nowhere")[..], &["--memory", "size=1M"]].concat(), &["--memory", "64"]);
    refused(&[&kernel("/nowhere")[..], &["--cpus", "boot=300"]].concat(), &["300", "254"]);
}

fn what_cannot_be_is_refused_with_a_remedy() {
    let cpus = pollvisor::pin::available();
    let (first, both) = (cpus[0], format!("boot=1,affinity=[0@[{}]]", cpus[0]));
    refused(&["run", "--poller", &format!("cpu={first}"), "--cpus", &both], &["poller", "vCPU", "try:"]);
    refused(&["run", "--vectors", "0"], &["--vectors", "0"]);
    refused(&["run", "--vectors", "5000"], &["--vectors", "5000", "4096"]);
    refused(&["run", "--vectors", "300", "--cpus", "boot=1"], &["300", "try: --cpus boot=2"]);
    refused(&["run", "--cpus", "boot=65"], &["65", "64"]);
    refused(&["run", "--source", "doorbell", "--delivery", "irqfd"], &["doorbell", "try: --source eventfd"]);
    refused(&["run", "--hlog", "/nowhere/at/all.hlog"], &["/nowhere/at/all.hlog", "ENOENT", "try:"]);
    refused(&["run", "--hlog", "/proc/version"], &["/proc/version", "try:"]);
}

fn json(accel: Accel, arguments: &[&str]) -> serde_json::Value {
    let common = ["run", "--json", "-D", "300ms", "--warm-up", "50ms"];
    let output = pollvisor(&[&common[..], accel.flags(), arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON alone on stdout")
}

fn number(value: &serde_json::Value, path: &str) -> u64 {
    value.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("{path} in {value}"))
}

fn every_way_measures_its_stages_and_balances_its_ledger(accel: Accel) {
    let own = accel.accelerator();
    let polled = [
        "signal_to_seen",
        own.seen_to_injected().key(),
        own.signal_to_accepted().key(),
        own.signal_to_handler().key(),
    ];
    let ways: [(&[&str], &[&str], bool); 8] = [
        (&[], &polled, true),
        (&["--source", "doorbell", "--vectors", "3"], &polled, true),
        (&["--delivery", "blocking"], &polled, true),
        (&["--delivery", "irqfd"], &polled[2..], false),
        (&["--guest", "none"], &polled[..3], true),
        (&["--guest", "none", "--delivery", "irqfd"], &polled[2..3], false),
        (&["--guest-idle", "hlt-noexit"], &polled, false),
        (&["--vectors", "300", "--guest-idle", "spin"], &polled, true),
    ];
    for (arguments, stages, everywhere) in ways {
        if !everywhere && accel != Accel::Kvm {
            continue;
        }
        let result = json(accel, arguments);
        assert_eq!(result["machine"]["accelerator"], accel.name());
        assert_eq!(result.get("lapic").is_some(), accel == Accel::Software, "KVM's does not tell");
        if let Some(lapic) = result.get("lapic") {
            let parts = ["/taken", "/coalesced", "/pending", "/discarded"].map(|part| number(lapic, part));
            assert_eq!(parts.iter().sum::<u64>(), number(lapic, "/accepted"), "{arguments:?}: {lapic}");
            assert!(number(lapic, "/accepted") > 0);
        }
        let ledger = |key: &str| number(&result, &format!("/ledger/{key}"));
        assert!(ledger("sent") > 0, "{arguments:?}");
        assert_eq!(
            ledger("sent"),
            ledger("delivered") + ledger("merged") + ledger("dropped"),
            "{arguments:?}"
        );
        assert_eq!(ledger("dropped"), 0, "{arguments:?}");
        let measured: Vec<_> = result["stages"].as_object().expect("stages").keys().cloned().collect();
        let mut expected: Vec<_> = stages.iter().map(ToString::to_string).collect();
        expected.sort();
        assert_eq!(measured, expected, "{arguments:?}");
        for stage in stages {
            let at = |key: &str| number(&result, &format!("/stages/{stage}/{key}"));
            assert!(
                at("count") > 0 && at("min_ns") <= at("p50_ns") && at("p999_ns") <= at("max_ns"),
                "{stage}"
            );
        }
        assert_eq!(number(&result, "/negative"), 0, "{arguments:?}: clocks that disagree");
        let sum: u64 =
            result["vectors"].as_array().expect("vectors").iter().map(|v| number(v, "/ledger/sent")).sum();
        assert_eq!(sum, ledger("sent"));
        for key in [
            "kernel",
            "cpu",
            "tsc_khz",
            "hypervisor",
            "idle",
            "delivery",
            "source",
            "pinned",
            "locked",
            "warnings",
        ] {
            assert!(result["machine"].get(key).is_some(), "{key}");
        }
    }
}

fn the_accelerator_is_the_one_that_there_is(accel: Accel) {
    let common = ["run", "--duration", "100ms", "--warm-up", "0"];
    let output = pollvisor(&[&common[..], &["--json"]].concat());
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let auto = if Accel::Kvm.missing().is_none() { Accel::Kvm } else { Accel::Software };
    assert_eq!(result["machine"]["accelerator"], auto.name());
    let no_kvm = result["machine"]["warnings"].to_string().contains("no KVM here: opening /dev/kvm");
    assert_eq!(no_kvm, auto == Accel::Software, "why not, and what to do, is told");

    let headline = accel.accelerator().headline();
    let output = pollvisor(&[&common[..], accel.flags()].concat());
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(told.lines().next(), Some(headline), "{told}{said}");
    assert_eq!(said.contains("SIMULATED"), accel == Accel::Software, "{said}");
}

fn what_needs_kvm_is_refused_by_its_flag() {
    for flags in [
        "--kernel /boot/vmlinuz",
        "--device host=ffff:ff:1f.7",
        "--delivery irqfd",
        "--hand-over 1ms",
        "--guest-idle hlt-noexit",
        "--overcommit cpu-pm=on",
        "--halt-poll 1000",
    ] {
        let words: Vec<_> = flags.split(' ').collect();
        let arguments = [&["run", "--accel", "software"][..], &words].concat();
        refused(&arguments, &[words[0], "needs KVM: the software machine", "try: --accel kvm"]);
    }
    refused(&["devices", "test", "ffff:ff:1f.7", "--accel", "software"], &["devices test needs KVM"]);
}

fn the_log_holds_every_sample(accel: Accel) {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    let path = std::env::temp_dir().join(format!("pollvisor-{}.hlog", std::process::id()));
    let result = json(accel, &["--hlog", path.to_str().expect("a path")]);
    let text = std::fs::read(&path).expect("the log");
    std::fs::remove_file(&path).expect("the log");
    let mut counts = std::collections::BTreeMap::<String, u64>::new();
    for entry in IntervalLogIterator::new(&text) {
        if let LogEntry::Interval(interval) = entry.expect("a valid log") {
            use base64::Engine;
            let raw = base64::engine::general_purpose::STANDARD
                .decode(interval.encoded_histogram())
                .expect("base64");
            let histogram: hdrhistogram::Histogram<u64> = hdrhistogram::serialization::Deserializer::new()
                .deserialize(&mut &raw[..])
                .expect("a histogram");
            *counts.entry(interval.tag().expect("a tag").as_str().to_string()).or_default() +=
                histogram.len();
        }
    }
    for (stage, count) in counts.iter() {
        assert_eq!(*count, number(&result, &format!("/stages/{stage}/count")), "{stage}");
    }
    assert_eq!(counts.len(), 4);
}

fn an_interrupt_drains_and_reports(accel: Accel) {
    let child = role::command(Role::Pollvisor)
        .args(["run", "--json", "-D", "1h", "--warm-up", "0"])
        .args(accel.flags())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("pollvisor");
    let pid = child.id().to_string();
    // Before it handles the signal it would die of it.
    let handles = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 2 != 0)
    };
    let began = std::time::Instant::now();
    while !handles() && began.elapsed() < std::time::Duration::from_secs(60) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill").success());
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success());
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(result["interrupted"], true);
    let sum = ["delivered", "merged", "dropped"]
        .map(|key| number(&result, &format!("/ledger/{key}")))
        .iter()
        .sum::<u64>();
    assert!(sum > 0 && number(&result, "/ledger/sent") == sum);
}

fn device_commands_name_what_is_wrong() {
    refused(&["devices"], &["list", "bind", "unbind"]);
    refused(&["devices", "bind"], &["BDF"]);
    refused(&["devices", "bind", "01:00"], &["01:00", "not a PCI address"]);
    refused(&["devices", "bind", "--force", "01:00.0"], &["--force"]);
    refused(
        &["devices", "bind", "ffff:ff:1f.7"],
        &["no PCI function ffff:ff:1f.7", "ENODEV", "devices list"],
    );
    refused(
        &["devices", "unbind", "ffff:ff:1f.6", "ffff:ff:1f.7"],
        &["ffff:ff:1f.6", "ffff:ff:1f.7", "ENODEV"],
    );
    let uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
    refused(&["mdev", "create", "no-such-parent", "kind", "x"], &["`x`", "EINVAL", "try:"]);
    refused(&["mdev", "create", "no-such-parent", "kind", uuid], &["no-such-parent", "ENODEV", "try:"]);
    refused(&["mdev", "remove", "x"], &["`x`", "EINVAL"]);
    refused(&["mdev", "remove", uuid], &[uuid, "ENODEV", "mdev list"]);
}

fn a_list_without_a_pci_bus_is_refused() {
    refused(&["devices", "list"], &["/sys/bus/pci/devices", "try:"]);
}

fn the_list_has_every_function_of_this_machine() {
    let entries = std::fs::read_dir("/sys/bus/pci/devices").expect("PCI");
    let mut expected: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
    expected.sort();
    let output = pollvisor(&["devices", "list", "--json"]);
    assert!(output.status.success() && output.stderr.is_empty());
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON alone on stdout");
    let list = list.as_array().expect("a list");
    let addresses: Vec<_> = list.iter().map(|device| device["address"].as_str().expect("one")).collect();
    assert_eq!(addresses, expected);
    for device in list {
        let vendor = std::fs::read_to_string(format!(
            "/sys/bus/pci/devices/{}/vendor",
            device["address"].as_str().expect("an address")
        ));
        assert_eq!(device["vendor"].as_str(), vendor.ok().as_deref().map(str::trim));
        assert!(device["obstacles"].is_array());
    }
    let table = pollvisor(&["devices", "list"]);
    let table = String::from_utf8_lossy(&table.stdout);
    assert!(expected.iter().all(|address| table.contains(address)), "{table}");
    let mdev = pollvisor(&["mdev", "list", "--json"]);
    let mdev: serde_json::Value = serde_json::from_slice(&mdev.stdout).expect("JSON alone on stdout");
    assert!(mdev["types"].is_array() && mdev["devices"].is_array());
}
