//! `--threshold` and `--on-threshold`: rtla's exit codes and actions.

use super::support::{adds_up, by_producer, document, output, paths, plain};
use crate::harness::tests;
use crate::need::Need;
use pollvisor_tests::rig::Accel;
use serde_json::Value;
use std::path::Path;

tests! {
    each [Need::Cpus(2)] => a_trace_of_the_last_events_is_written_by_whatever_path, rounds_end_at_a_threshold_too,
        it_goes_on_where_that_is_asked_for_and_does_what_comes_before,
        what_fails_is_said_and_what_is_not_needed_is_not_done;
    kvm [Need::Cpus(2), Need::Rivals] => a_rivals_trace_is_written_too;
}

/// A run with a threshold that every latency is beyond, and with these actions.
fn beyond(accel: Accel, path: &str, actions: &[String]) -> (Option<i32>, Value, String) {
    let run =
        ["latency", "--path", path, "--rate", "2000", "-D", "200ms", "--warm-up", "20ms", "--vectors", "4"];
    let more = ["--json", "--threshold", "1"];
    let flags = actions.iter().flat_map(|action| ["--on-threshold", action]);
    let output = output(accel, &run.into_iter().chain(more).chain(flags).collect::<Vec<_>>());
    (output.status.code(), document(&output), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn trace(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).expect("a trace")).expect("JSON")
}

/// The slices of the injections in a trace, as they have to be.
fn injections(trace: &Value, vectors: u64) -> Vec<&Value> {
    let events = trace["traceEvents"].as_array().expect("events");
    let slices: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert!(!slices.is_empty(), "no event of a poller: {trace}");
    for slice in &slices {
        assert!(slice["args"]["vector"].as_u64().expect("a vector") < vectors, "{slice}");
        assert!(
            slice["ts"].as_f64().expect("a time") >= 0.0 && slice["dur"].as_f64().expect("a length") >= 0.0
        );
    }
    slices
}

fn a_trace_of_the_last_events_is_written_by_whatever_path(accel: Accel) {
    traced(
        accel,
        &["polled_eventfd", "polled_doorbell", "epoll_wait_0", "blocking_epoll", by_producer(accel)],
    );
}

fn a_rivals_trace_is_written_too() {
    traced(Accel::Kvm, &["event_manager"]);
}

fn traced(accel: Accel, all: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    for path in all.iter().copied() {
        let file = folder.path().join(path);
        let (code, results, said) = beyond(
            accel,
            &format!("{path},{}", by_producer(accel)),
            &[format!("trace,file={}", file.display())],
        );
        assert_eq!(code, Some(2), "{path}: {said}");
        assert_eq!(paths(&results).len(), 1, "{path}: it ends at the first");
        adds_up(&paths(&results)[0]);
        let trace = trace(&file);
        let slices = injections(&trace, 4);
        let about = &trace["otherData"];
        let name = about["path"].as_str().expect("a name");
        assert_eq!((plain(accel, name), &about["recorded"]), (path, &true.into()), "{about}");
        assert_eq!(about["accelerator"], accel.name());
        assert!(about["latency_ns"].as_u64() > Some(1), "{about}");
        // When it was signalled is known of those that were measured, by whatever source.
        let known =
            slices.iter().filter(|slice| slice["args"]["signal_to_seen_ns"].as_u64() > Some(0)).count();
        assert!(
            path == by_producer(accel) || known > 0,
            "{path}: {} events, none with its signal",
            slices.len()
        );
    }
}

fn rounds_end_at_a_threshold_too(accel: Accel) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("trace");
    let action = format!("trace,file={}", file.display());
    let run =
        ["paths", "--rounds", "1000", "--samples", "10", "--vectors", "4", "--json", "--threshold", "1"];
    let output = output(accel, &[&run[..], &["--on-threshold", &action]].concat());
    assert_eq!(output.status.code(), Some(2));
    let results = document(&output);
    assert!(paths(&results).iter().all(|path| path["rounds"] == 1), "{results:#}");
    injections(&trace(&file), 4);
}

fn it_goes_on_where_that_is_asked_for_and_does_what_comes_before(accel: Accel) {
    let actions = ["shell,command=echo beyond it", "continue"].map(String::from);
    let (code, results, said) = beyond(accel, &format!("polled_eventfd,{}", by_producer(accel)), &actions);
    assert_eq!(code, Some(2), "{said}");
    assert_eq!(paths(&results).len(), 2);
    for path in paths(&results) {
        adds_up(path);
        // Nobody ended it: 200 ms of 2000 a second.
        assert!(path["ledger"]["sent"].as_u64() >= Some(350), "{path:#}");
    }
    assert!(said.matches("beyond it").count() >= 2, "once a path at least: {said}");
}

fn what_fails_is_said_and_what_is_not_needed_is_not_done(accel: Accel) {
    let (code, results, _) = beyond(accel, by_producer(accel), &["shell,command=exit 7".into()]);
    assert_eq!(code, Some(2));
    assert!(results["errors"][0].as_str().is_some_and(|error| error.contains("exit 7")), "{results:#}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("trace");
    let action = format!("trace,file={}", file.display());
    let run = ["latency", "--path", by_producer(accel), "-D", "100ms", "--warm-up", "0", "--json"];
    let output =
        output(accel, &[&run[..], &["--threshold", "60000000000", "--on-threshold", &action]].concat());
    assert_eq!(output.status.code(), Some(0));
    assert!(!file.exists(), "nothing was beyond it");
}
