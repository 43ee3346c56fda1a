//! What the tests of the command share.

use crate::role::{self, Role};
use pollvisor_tests::rig::Accel;
use serde_json::Value;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder to leave every document in, for a reader that has the schema.
const KEEP: &str = "POLLVISOR_KEEP_JSON";

/// The command with these words, on an accelerator.
pub fn command(accel: Accel, words: &[&str]) -> Command {
    let mut command = role::command(Role::PollvisorBench);
    command.args(words).args(accel.flags());
    command
}

pub fn output(accel: Accel, words: &[&str]) -> Output {
    command(accel, words).output().expect("the command starts")
}

/// What it says to words of which no accelerator hears.
pub fn said_to(words: &[&str]) -> Output {
    role::command(Role::PollvisorBench).args(words).output().expect("the command starts")
}

/// The JSON of a run that has to be all right.
pub fn results(accel: Accel, words: &[&str]) -> Value {
    let output = output(accel, words);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said} {}", String::from_utf8_lossy(&output.stdout));
    document(&output)
}

/// The document on stdout.
pub fn document(output: &Output) -> Value {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let said = String::from_utf8_lossy(&output.stderr);
    if let Some(folder) = std::env::var_os(KEEP) {
        let name = format!("{}-{}.json", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let file = std::path::Path::new(&folder).join(name);
        std::fs::write(&file, &output.stdout).unwrap_or_else(|e| panic!("{KEEP}: {}: {e}", file.display()));
    }
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"))
}

/// The way in which the producer itself delivers, by its name on the command line.
pub const fn by_producer(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "irqfd",
        Accel::Software => "direct",
    }
}

/// A path's name on the command line, from its name in results.
pub fn plain(accel: Accel, name: &str) -> &str {
    match accel {
        Accel::Kvm => name,
        Accel::Software => name.strip_prefix("software_").expect("a name of the software machine"),
    }
}

/// The stage from the signal until a LAPIC has it.
pub const fn accepted(accel: Accel) -> &'static str {
    accel.accelerator().signal_to_accepted().key()
}

pub fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {value:#}"))
}

pub fn paths(results: &Value) -> &Vec<Value> {
    results["paths"].as_array().expect("paths")
}

pub fn adds_up(path: &Value) {
    let part = |name: &str| number(path, &format!("/ledger/{name}"));
    assert_eq!(part("sent"), part("delivered") + part("merged") + part("dropped"), "{}", path["path"]);
    assert_eq!(part("dropped"), 0, "{}", path["path"]);
    assert!(part("delivered") > 0, "{}", path["path"]);
}
