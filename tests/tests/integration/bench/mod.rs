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
use support::{accepted, adds_up, by_producer, document, number, output, paths, plain, results, said_to};

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

/// The ratios to what the producer itself delivers, at 4 vectors; everything else about the paths is looked at here.
fn beside(accel: Accel, results: &Value) -> HashMap<String, f64> {
    assert_eq!(number(results, "/format"), 1);
    let mut ratios = HashMap::new();
    for path in paths(results) {
        adds_up(path);
        assert_eq!(number(path, "/ledger/sent"), 7 * 40);
        assert_eq!(number(&path["stages"][accepted(accel)], "/count"), 7 * 20);
        let name = plain(accel, path["path"].as_str().expect("a name")).to_string();
        let (base, interval) = match accel {
            Accel::Kvm => ("ratio_to_irqfd", "ratio_ci95"),
            Accel::Software => ("ratio_to_direct", "ratio_to_direct_ci95"),
        };
        assert!(path["ratio_to_direct"].is_f64(), "on both: {path:#}");
        assert_eq!(path["ratio_to_irqfd"].is_f64(), accel == Accel::Kvm, "{path:#}");
        // The LAPICs are emptied after each round: a vector is requested once in each, and from then on already.
        let again = (accel == Accel::Software)
            .then(|| number(path, "/ledger/delivered") - 7 * number(path, "/vectors"));
        assert_eq!(path.get("coalesced").and_then(Value::as_u64), again, "{path:#}");
        let ratio = path[base].as_f64().expect("a ratio");
        let interval = |end: usize| path[interval][end].as_f64().expect("an interval");
        assert!(interval(0) <= ratio && ratio <= interval(1), "{path:#}");
        noise_is_noted(&name, path);
        if number(path, "/vectors") == 4 {
            ratios.insert(name, ratio);
        }
    }
    assert!((ratios[by_producer(accel)] - 1.0).abs() < 1e-9);
    ratios
}

fn every_path_beside_the_others(accel: Accel) {
    let results = results(accel, &BESIDE);
    assert_eq!(results["errors"], Value::Array(Vec::new()));
    // Each of its six, five on the software machine, at two sizes.
    assert_eq!(paths(&results).len(), if accel == Accel::Kvm { 12 } else { 10 });
    assert_eq!(results["machine"]["accelerator"], accel.name());
    let ratios = beside(accel, &results);
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
    assert_eq!(paths(&results).len() + errors.len(), 18);
    let ratios = beside(Accel::Kvm, &results);
    for sleeper in ["blocking_epoll", "event_manager", "tokio"] {
        assert!(ratios[sleeper] > 2.0, "{sleeper}: {ratios:?}");
    }
}

/// What the machine did in a path's windows.
fn noise_is_noted(name: &str, path: &Value) {
    let spins = ["polled_eventfd", "polled_doorbell", "epoll_wait_0"].contains(&name);
    assert_eq!(path["gaps"].is_object(), spins, "{name}: only who spins can see gaps");
    assert!(path["steal_ns"].is_u64() && path["context_switches"].is_u64(), "{path:#}");
    if ["irqfd", "direct"].contains(&name) {
        assert!(path["delivery_switches"].is_null(), "the producer delivers");
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
        let name = plain(accel, path["path"].as_str().expect("a name"));
        let (name, merged) = (name, number(path, "/ledger/merged"));
        // The kernel injects within each write; stores are quicker than any poller.
        assert!(name != by_producer(accel) || merged == 0, "{path:#}");
        assert!(!merging.contains(&name) || merged > 0, "{path:#}");
    }
}

fn overload_merges_and_loses_nothing(accel: Accel) {
    let all = [by_producer(accel), "polled_eventfd", "polled_doorbell", "epoll_wait_0", "blocking_epoll"];
    overload(accel, &all, &["polled_doorbell"]);
}

fn overloaded_rivals_lose_nothing() {
    overload(Accel::Kvm, &["event_manager", "tokio"], &["event_manager"]);
}

fn control_calls_beside_the_data_path(accel: Accel) {
    let results = results(accel, &["costs", "--starts", "0", "--calls", "50", "--vectors", "8", "--json"]);
    let names: Vec<_> =
        paths(&results).iter().map(|path| plain(accel, path["path"].as_str().expect("a name"))).collect();
    let all = ["costs/none", "costs/replace_routes", "costs/attach_detach", "costs/hand_over"];
    assert_eq!(names, all[..if accel == Accel::Kvm { 4 } else { 3 }]);
    paths(&results).iter().for_each(adds_up);
    let calls = |at: usize, stage: &str| number(&paths(&results)[at]["stages"][stage], "/count");
    assert_eq!(calls(1, "call/replace_routes"), 50);
    assert_eq!((calls(2, "call/attach"), calls(2, "call/detach")), (25, 25));
    if accel == Accel::Software {
        let warnings = results["machine"]["warnings"].as_array().expect("warnings");
        let said = |text: &Value| text.as_str().is_some_and(|text| text.contains("hand"));
        assert!(warnings.iter().any(said), "what is left out is said: {warnings:?}");
        return;
    }
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
    let why = if accel == Accel::Kvm { "ffff:ff:1f.7" } else { "--device needs KVM" };
    assert!(none.status.code() == Some(1) && said.contains(why), "no such device, or none at all: {said}");
    let by = by_producer(accel);
    let run = ["latency", "--path", by, "-D", "100ms", "--warm-up", "0", "--json", "--threshold"];
    assert_eq!(output(accel, &[&run[..], &["1"]].concat()).status.code(), Some(2));
    assert_eq!(output(accel, &[&run[..], &["60000000000"]].concat()).status.code(), Some(0));
}
