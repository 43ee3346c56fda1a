//! The benchmark, with a device's vectors as its source.

use crate::lab::{Context, Need, Scenario};
use pollvisor::devices::{Host, bind, unbind};
use pollvisor::error::{Error, Result};
use serde_json::Value;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "benchmark: a device's vectors by irqfd, poller and blocking thread",
        needs: &[Need::Benchmark, Need::Kvm, Need::Igb],
        run: side_by_side,
    },
    Scenario {
        name: "benchmark: the host wants the device back",
        needs: &[Need::Benchmark, Need::Kvm, Need::Igb],
        run: wanted_back,
    },
];

/// Signals a second: few, for an emulated machine.
const RATE: &str = "500";

fn benchmark(device: &str, more: &[&str]) -> Command {
    let mut command = Command::new("./pollvisor-bench");
    command.args(["latency", "--device", device, "--rate", RATE, "--json"]).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(device: &str, more: &[&str]) -> Result<Output> {
    benchmark(device, more).output().map_err(|e| Error::os("running ./pollvisor-bench", &e))
}

/// The paths of a report, each with a ledger that is exact.
fn paths(output: &Output, code: i32) -> Result<(Value, Vec<String>)> {
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() != Some(code) {
        return Err(Error::new(format!("./pollvisor-bench: {}, not {code}: {said}", output.status)));
    }
    let report: Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| Error::new(format!("./pollvisor-bench printed no JSON: {e}; {said}")))?;
    let mut names = Vec::new();
    for path in report["paths"].as_array().into_iter().flatten() {
        let count = |pointer: &str| path.pointer(pointer).and_then(Value::as_u64).unwrap_or(u64::MAX);
        let (sent, delivered) = (count("/ledger/sent"), count("/ledger/delivered"));
        let name = path["path"].as_str().unwrap_or_default();
        if sent == 0
            || sent != delivered.saturating_add(count("/ledger/merged"))
            || count("/ledger/dropped") != 0
        {
            return Err(Error::new(format!("{name}: the ledger {}", path["ledger"])));
        }
        if count("/stages/signal_to_accepted/count") != sent || count("/vectors") != 10 {
            return Err(Error::new(format!(
                "{name}: not every signal of 10 vectors has its latency: {path}"
            )));
        }
        names.push(name.to_string());
    }
    Ok((report, names))
}

fn side_by_side(context: &mut Context) -> Result<()> {
    let device = context.address(Need::Igb)?.to_string();
    let (report, names) = paths(&run(&device, &["-D", "500ms", "--warm-up", "100ms"])?, 0)?;
    if names != ["irqfd", "polled_eventfd", "blocking_epoll"] {
        return Err(Error::new(format!("the paths are {names:?}: {}", report["errors"])));
    }
    if !report["machine"]["source"].as_str().is_some_and(|source| source.contains(&device)) {
        return Err(Error::new(format!("the source is {}", report["machine"]["source"])));
    }
    for path in report["paths"].as_array().into_iter().flatten() {
        context.note(format!("{}: p50 {} ns", path["path"], path["p50_ns"]));
    }
    // What cannot be: said, and nothing measured.
    for (device, more, expected) in [
        ("0000:00:1f.7", &[][..], "0000:00:1f.7"),
        ("0000:00:00.0", &[], "not vfio-pci"),
        (&device, &["--vectors", "11"], "it has 10 MSI-X vectors, not 11"),
        (&device, &["--path", "polled_doorbell"], "VFIO signals eventfds"),
    ] {
        let output = run(device, more)?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.code() != Some(1) || !said.contains(expected) || said.contains("panicked") {
            return Err(Error::new(format!("{device} {more:?}: {}: {said}", output.status)));
        }
    }
    Ok(())
}

/// Unbound from sysfs while it is measured: what was measured until then is reported.
fn wanted_back(context: &mut Context) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let (host, address) = (Host::default(), context.address(Need::Igb)?);
    let child = benchmark(&address.to_string(), &["-D", "100s", "--warm-up", "0"]).spawn();
    let mut child = child.map_err(|e| Error::os("starting ./pollvisor-bench", &e))?;
    let folder = format!("/proc/{}/fd", child.id());
    let is_open = || {
        let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        files
            .filter_map(|file| std::fs::read_link(file.path()).ok())
            .any(|target| target.to_string_lossy().contains("vfio-device"))
    };
    let began = Instant::now();
    while !is_open() {
        if began.elapsed() > PATIENCE || child.try_wait().is_ok_and(|ended| ended.is_some()) {
            let _killed = child.kill();
            return Err(Error::new("./pollvisor-bench does not open the device"));
        }
        sleep(Duration::from_millis(20));
    }
    sleep(Duration::from_millis(1500));
    let began = Instant::now();
    let rebound = unbind(&host, address);
    let took = began.elapsed();
    let _if_it_still_runs = if rebound.is_err() { child.kill() } else { Ok(()) };
    let output = child.wait_with_output().map_err(|e| Error::os("waiting for ./pollvisor-bench", &e))?;
    rebound?;
    bind(&host, address)?;
    let (report, names) = paths(&output, 1)?;
    let error = report["errors"][0].as_str().unwrap_or_default();
    if names != ["irqfd"] || !error.contains("wants it back") {
        return Err(Error::new(format!("measured {names:?}, errors {}", report["errors"])));
    }
    context.note(format!("given back in {} ms, after {}", took.as_millis(), report["paths"][0]["ledger"]));
    Ok(())
}
