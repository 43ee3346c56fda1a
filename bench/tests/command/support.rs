//! What the tests of the command share.

use serde_json::Value;
use std::process::{Command, Output};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

pub fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pollvisor-bench"));
    command.args(words);
    command
}

pub fn output(words: &[&str]) -> Output {
    command(words).output().expect("the command starts")
}

/// The JSON of a run that has to be all right.
pub fn results(words: &[&str]) -> Value {
    let output = output(words);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said} {}", String::from_utf8_lossy(&output.stdout));
    document(&output)
}

/// The document on stdout, which is as its schema says whatever became of the run.
pub fn document(output: &Output) -> Value {
    static SCHEMA: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
        let schema = serde_json::from_str(include_str!("../../schema.json")).expect("a schema");
        jsonschema::validator_for(&schema).expect("a schema")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    let errors: Vec<_> = SCHEMA.iter_errors(&document).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    document
}

/// One after the other: each has the last CPU for its poller.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why the tests cannot run here, said.
pub fn skipped() -> bool {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    let why = match kvm {
        Err(error) => format!("/dev/kvm: {error}"),
        Ok(_) if cpus < 2 => "one CPU only".into(),
        Ok(_) => return false,
    };
    eprintln!("SKIPPED: {why}");
    true
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
