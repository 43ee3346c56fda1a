//! Runs scenarios, each in a process of its own, so that one that hangs or dies takes no other along.

use super::percpu::Areas;
use super::{Context, Missing, Need, Scenario, scenarios, trace};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use pollvisor::error::{Error, Result};
use pollvisor::sys::kvm::{Kvm, VcpuFd, VmFd};
use pollvisor_core::ids::VcpuId;
use std::io::{BufRead, BufReader, PipeReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How a scenario's process tells its error, so that the result's line can repeat it.
const ERROR: &str = "error: ";

/// The lines that the runner outside reads begin with one of these and a tab: where this kernel's per-CPU areas are,
pub const AREAS: &str = "areas";
/// that a scenario begins,
pub const BEGIN: &str = "begin";
/// and what it came to.
pub const PASSED: &str = "ok";
/// It lacks something that may be missing.
pub const SKIPPED: &str = "SKIPPED";
/// Its reason follows.
pub const FAILED: &str = "FAILED";

/// How one scenario ended.
enum Verdict {
    Passed,
    Skipped(String),
    Failed(String),
}

/// The scenarios with these names, or whose names begin so; all when none is given. In the order of the list.
///
/// # Errors
/// When a name fits nothing.
pub fn select(names: &[String]) -> Result<Vec<&'static Scenario>> {
    let fits = |scenario: &Scenario, name: &str| {
        scenario.name == name
            || (scenario.name.starts_with(name) && scenarios().all(|other| other.name != name))
    };
    if let Some(name) = names.iter().find(|name| !scenarios().any(|scenario| fits(scenario, name))) {
        return Err(Error::new(format!("no scenario begins with `{name}`")).remedy("lab list"));
    }
    let wanted = |scenario: &Scenario| names.is_empty() || names.iter().any(|name| fits(scenario, name));
    Ok(scenarios().filter(|scenario| wanted(scenario)).collect())
}

/// The scenario with this name.
///
/// # Errors
/// When there is none.
pub fn exactly(name: &str) -> Result<&'static Scenario> {
    scenarios()
        .find(|scenario| scenario.name == name)
        .ok_or_else(|| Error::new(format!("no scenario is called `{name}`")))
}

/// Runs them one after the other, at most `limit` each. A line for each and one with the totals; those lines have tabs
/// between their parts, the scenarios' own are indented.
pub fn run(chosen: &[&Scenario], limit: Duration) -> ExitCode {
    match Areas::read() {
        Ok(areas) => println!("{AREAS}\t{}", areas.line()),
        Err(error) => println!("a guest with the lab's per-CPU area will not be recognised: {error}"),
    }
    let _kept = KeptVm::new().inspect_err(|error| println!("no VM to keep: {error}"));
    let (mut passed, mut skipped, mut failed) = (0, 0, 0);
    for scenario in chosen {
        let began = Instant::now();
        println!("{BEGIN}\t{}", scenario.name);
        let verdict = needed(scenario).unwrap_or_else(|| apart(scenario, limit));
        let name = scenario.name;
        match verdict {
            Verdict::Passed => {
                passed += 1;
                println!("{PASSED}\t{name}\t{:.1} s", began.elapsed().as_secs_f64());
            }
            Verdict::Skipped(why) => {
                skipped += 1;
                println!("{SKIPPED}\t{name}\t{why}");
            }
            Verdict::Failed(why) => {
                failed += 1;
                println!("{FAILED}\t{name}\t{why}");
            }
        }
    }
    println!("{passed} passed, {skipped} skipped, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A VM with a vCPU that never runs, so that no other VM is the kernel's first or last. With those it writes to its own code
/// (`preempt_notifier_inc`, `apic_sw_disabled`), and QEMU can go on with what it translated before (`tests/lab/README.md`).
struct KeptVm {
    _vcpu: VcpuFd,
    _vm: VmFd,
}

impl KeptVm {
    fn new() -> Result<Self> {
        let vm = Kvm::open()?.create_vm()?;
        vm.create_irqchip()?;
        Ok(Self { _vcpu: vm.create_vcpu(VcpuId(0))?, _vm: vm })
    }
}

/// Runs one in this process.
pub fn one(scenario: &Scenario) -> ExitCode {
    panic_ends_all(has_own_guest(scenario));
    match (scenario.run)(&mut Context::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{ERROR}{error}");
            ExitCode::FAILURE
        }
    }
}

fn needed(scenario: &Scenario) -> Option<Verdict> {
    scenario.needs.iter().find_map(|need| need.missing()).map(|missing| match missing {
        Missing::Skip(why) => Verdict::Skipped(why),
        Missing::Fail(why) => Verdict::Failed(why),
    })
}

/// Whether the guests in it are built-in ones, if it has any.
fn has_own_guest(scenario: &Scenario) -> bool {
    !scenario.needs.contains(&Need::Linux)
}

/// A panic ends the process, whatever its other threads wait for, and says where each of them was.
fn panic_ends_all(has_own_guest: bool) {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        threads("self");
        if has_own_guest && let Some(astray) = trace::astray() {
            println!("{ERROR}panicked: {astray}");
        }
        std::process::exit(101);
    }));
}

/// Prints what the threads of a process do: name, state, system call, and where in the kernel.
fn threads(process: &str) {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let (name, stat, call) = (read("comm"), read("stat"), read("syscall"));
        let state = stat.rsplit(") ").next().and_then(|rest| rest.get(..1)).unwrap_or("?").to_string();
        let stack = read("stack");
        let stack: Vec<_> = stack.lines().filter_map(|line| line.split_whitespace().last()).collect();
        println!("thread {}: {state}, call {}, {}", name.trim(), call.trim(), stack.join(" "));
    }
}

/// The processes of a group; its number is its first one's.
fn group(leader: u32) -> Vec<String> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = all.filter_map(|entry| entry.file_name().into_string().ok());
    let of = |name: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{name}/stat")).unwrap_or_default();
        // Behind the name: state, parent, group.
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(2)) == Some(&leader.to_string())
    };
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).filter(of).collect()
}

fn apart(scenario: &Scenario, limit: Duration) -> Verdict {
    watch(scenario, limit).unwrap_or_else(|error| Verdict::Failed(format!("not run: {error}")))
}

fn watch(scenario: &Scenario, limit: Duration) -> Result<Verdict> {
    let broken = |error| Error::os("starting a process", &error);
    let myself = std::env::current_exe().map_err(broken)?;
    let (reader, writer) = std::io::pipe().map_err(broken)?;
    let mut command = Command::new(myself);
    command.args(["one", scenario.name]).stdin(Stdio::null()).process_group(0);
    command.stdout(writer.try_clone().map_err(broken)?).stderr(writer);
    // So that what is freed is given back at once: what a process has more of then, it has not freed.
    command.env("MALLOC_ARENA_MAX", "1").env("MALLOC_TRIM_THRESHOLD_", "65536");
    let mut child = command.spawn().map_err(broken)?;
    // The pipe's ends in `command` would keep the reader waiting.
    drop(command);
    let relay = thread::spawn(|| relay(reader));
    let (began, mut astray) = (Instant::now(), None);
    let ended = loop {
        match child.try_wait().map_err(broken)? {
            Some(status) => break Some(status),
            None if began.elapsed() > limit => {
                group(child.id()).iter().for_each(|process| threads(process));
                astray = if has_own_guest(scenario) { trace::astray() } else { None };
                break None;
            }
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    // And whatever it started and left.
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let _ = killpg(group, Signal::SIGKILL);
    child.wait().map_err(broken)?;
    let error = relay.join().unwrap_or(None);
    Ok(match ended {
        Some(status) if status.success() => Verdict::Passed,
        Some(status) => Verdict::Failed(error.unwrap_or_else(|| describe(status))),
        None => {
            let astray = astray.map(|astray| format!(": {astray}")).unwrap_or_default();
            Verdict::Failed(format!("still running after {} s{astray}", limit.as_secs()))
        }
    })
}

/// Prints what comes, indented; the last error in it.
fn relay(reader: PipeReader) -> Option<String> {
    let mut error = None;
    for line in BufReader::new(reader).split(b'\n').map_while(std::result::Result::ok) {
        let line = String::from_utf8_lossy(&line).replace('\t', " ");
        if let Some(text) = line.strip_prefix(ERROR) {
            error = Some(text.to_owned());
        }
        println!("    {line}");
    }
    error
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(101), _) => "panicked".to_owned(),
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, None) => "ended without a status".to_owned(),
    }
}
