//! The benchmark's command: accounting, ratios and exit codes; never absolute times.

mod load;
mod outputs;
mod support;
mod threshold;

use crate::harness::{Test, tests};
use crate::need::Need;
use pollvisor_tests::rig::Accel;
use serde_json::Value;
use std::collections::HashMap;
use support::{adds_up, document, number, output, paths, results, said_to};

tests! {
    shared [] => exit_codes_are_rtlas;
    each [Need::Cpus(2)] => every_path_beside_the_others, overload_merges_and_loses_nothing,
        control_calls_beside_the_data_path, what_is_measured_decides_the_exit_code;
    kvm [Need::Cpus(2), Need::Rivals] => the_rivals_beside_them, overloaded_rivals_lose_nothing;
}

/// Those of the modules here, too.
pub fn all() -> Vec<Test> {
    [tests(), load::tests(), outputs::tests(), threshold::tests()].into_iter().flatten().collect()
}

const BESIDE: [&str; 8] = ["paths", "--rounds", "7", "--samples", "20", "--vectors", "4,30", "--json"];

/// The ratios to irqfd at 4 vectors; everything else about the paths is looked at here.
fn beside(results: &Value) -> HashMap<String, f64> {
    assert_eq!(number(results, "/format"), 1);
    let mut ratios = HashMap::new();
    for path in paths(results) {
        adds_up(path);
        assert_eq!(number(path, "/ledger/sent"), 7 * 40);
        assert_eq!(number(path, "/stages/signal_to_accepted/count"), 7 * 20);
        let name = path["path"].as_str().expect("a name").to_string();
        let ratio = path["ratio_to_irqfd"].as_f64().expect("a ratio");
        let interval = |end: usize| path["ratio_ci95"][end].as_f64().expect("an interval");
        assert!(interval(0) <= ratio && ratio <= interval(1), "{path:#}");
        noise_is_noted(&name, path);
        if number(path, "/vectors") == 4 {
            ratios.insert(name, ratio);
        }
    }
    assert!((ratios["irqfd"] - 1.0).abs() < 1e-9);
    ratios
}

fn every_path_beside_the_others(accel: Accel) {
    let results = results(accel, &BESIDE);
    assert_eq!(results["errors"], Value::Array(Vec::new()));
    assert_eq!(paths(&results).len(), 10);
    let ratios = beside(&results);
    // Waking a thread takes longer than an injection, by far.
    assert!(ratios["blocking_epoll"] > 2.0, "{ratios:?}");
}

/// What other VMMs are made of. Of these a container may lack io_uring, and nothing else may be missing.
fn the_rivals_beside_them() {
    let output = output(Accel::Kvm, &[&BESIDE[..], &["--rivals"]].concat());
    let results = document(&output);
    let errors = results["errors"].as_array().expect("errors");
    for error in errors {
        let error = error.as_str().expect("text");
        let allowed = error.contains("io_uring") && (error.contains("EPERM") || error.contains("ENOSYS"));
        assert!(allowed, "{error}");
    }
    assert_eq!(output.status.code(), Some(i32::from(!errors.is_empty())), "{errors:?}");
    assert_eq!(paths(&results).len() + errors.len(), 16);
    let ratios = beside(&results);
    for sleeper in ["blocking_epoll", "event_manager", "tokio"] {
        assert!(ratios[sleeper] > 2.0, "{sleeper}: {ratios:?}");
    }
}

/// What the machine did in a path's windows.
fn noise_is_noted(name: &str, path: &Value) {
    let spins = ["polled_eventfd", "polled_doorbell", "epoll_wait_0"].contains(&name);
    assert_eq!(path["gaps"].is_object(), spins, "{name}: only who spins can see gaps");
    assert!(path["steal_ns"].is_u64() && path["context_switches"].is_u64(), "{path:#}");
    if name == "irqfd" {
        assert!(path["delivery_switches"].is_null(), "the kernel delivers in the producer's write");
        return;
    }
    // Who sleeps is woken by signals; who spins only loses its CPU.
    let voluntary = number(path, "/delivery_switches/voluntary");
    assert!(spins || voluntary > 0, "{name} sleeps, and was never woken");
    assert!(number(path, "/context_switches") >= voluntary);
}

/// As many signals as it goes, on these paths; those of `merging` cannot keep up.
fn overload(accel: Accel, all: &[&str], merging: &[&str]) {
    let names = all.join(",");
    let words =
        ["saturation", "--path", &names, "--vectors", "4", "--offered", "0", "-D", "300ms", "--warm-up"];
    let results = results(accel, &[&words[..], &["50ms", "--json"]].concat());
    assert_eq!(paths(&results).len(), all.len());
    for path in paths(&results) {
        adds_up(path);
        let (name, merged) = (path["path"].as_str().expect("a name"), number(path, "/ledger/merged"));
        // The kernel injects within each write; stores are quicker than any poller.
        assert!(name != "irqfd" || merged == 0, "{path:#}");
        assert!(!merging.contains(&name) || merged > 0, "{path:#}");
    }
}

fn overload_merges_and_loses_nothing(accel: Accel) {
    let all = ["irqfd", "polled_eventfd", "polled_doorbell", "epoll_wait_0", "blocking_epoll"];
    overload(accel, &all, &["polled_doorbell"]);
}

fn overloaded_rivals_lose_nothing() {
    overload(Accel::Kvm, &["event_manager", "tokio"], &["event_manager"]);
}

fn control_calls_beside_the_data_path(accel: Accel) {
    let results = results(accel, &["costs", "--starts", "0", "--calls", "50", "--vectors", "8", "--json"]);
    let names: Vec<_> = paths(&results).iter().map(|path| path["path"].as_str().expect("a name")).collect();
    assert_eq!(names, ["costs/none", "costs/replace_routes", "costs/attach_detach", "costs/hand_over"]);
    paths(&results).iter().for_each(adds_up);
    let calls = |at: usize, stage: &str| number(&paths(&results)[at]["stages"][stage], "/count");
    assert_eq!(calls(1, "call/replace_routes"), 50);
    assert_eq!((calls(2, "call/attach"), calls(2, "call/detach")), (25, 25));
    assert_eq!((calls(3, "call/to_kernel"), calls(3, "call/to_poller")), (25, 25));
}

fn exit_codes_are_rtlas() {
    for wrong in [
        &["paths", "--rounds", "0"][..],
        &["latency", "--rate", "0"],
        &["latency", "--closed", "--burst", "2"],
        &["latency", "--vectors", "5000"],
        &["latency", "--producers", "65"],
        &["latency", "--pollers", "100000"],
        &["latency", "-D", "0"],
        &["latency", "-D", "1s", "--path", "warp"],
        &["latency", "--noise", "loud"],
        &["latency", "--threshold", "-1"],
        &["latency", "--on-threshold", "continue"],
        &["latency", "--threshold", "1", "--on-threshold", "panic"],
        &["latency", "--device", "no device"],
        &["latency", "--burst", "0"],
        &["latency", "--schedule", "whenever"],
        &["saturation", "--offered", "-5"],
        &["scaling", "--most-producers", "17"],
        &["costs", "--calls", "1"],
        &["overhead", "--force"],
        &["nothing"],
    ] {
        let output = said_to(wrong);
        assert_eq!(output.status.code(), Some(1), "{wrong:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.is_empty() && !said.contains("panicked"), "{wrong:?} says why: {said}");
        // By the flag's name, where it is a flag that is wrong.
        let named = wrong
            .iter()
            .rfind(|word| word.starts_with('-'))
            .is_none_or(|flag| said.contains(flag.trim_start_matches('-')) || said.contains("--duration"));
        assert!(named, "{wrong:?}: {said}");
    }
}

fn what_is_measured_decides_the_exit_code(accel: Accel) {
    let none = output(accel, &["latency", "--device", "host=ffff:ff:1f.7"]);
    let said = String::from_utf8_lossy(&none.stderr);
    assert!(none.status.code() == Some(1) && said.contains("ffff:ff:1f.7"), "no such device: {said}");
    let run = ["latency", "--path", "irqfd", "-D", "100ms", "--warm-up", "0", "--json", "--threshold"];
    assert_eq!(output(accel, &[&run[..], &["1"]].concat()).status.code(), Some(2));
    assert_eq!(output(accel, &[&run[..], &["60000000000"]].concat()).status.code(), Some(0));
}
