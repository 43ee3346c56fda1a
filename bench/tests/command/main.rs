//! The command on real KVM: accounting, ratios and exit codes; never absolute times.

mod support;
mod threshold;

use serde_json::Value;
use std::process::{Command, Stdio};
use support::{adds_up, alone, command, number, output, paths, results, skipped};

#[test]
fn every_path_beside_the_others() {
    let _alone = alone();
    if skipped() {
        return;
    }
    let words = ["paths", "--rounds", "7", "--samples", "20", "--vectors", "4,30", "--rivals", "--json"];
    // 1 where a path cannot be had, such as io_uring in a container: it is among the errors then.
    let output = output(&words);
    let results: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let missing = results["errors"].as_array().expect("errors").len();
    assert_eq!(output.status.code(), Some(i32::from(missing > 0)), "{}", results["errors"]);
    assert_eq!(number(&results, "/format"), 1);
    assert_eq!(paths(&results).len() + missing, 16);
    let mut ratios = std::collections::HashMap::new();
    for path in paths(&results) {
        adds_up(path);
        assert_eq!(number(path, "/ledger/sent"), 7 * 40);
        assert_eq!(number(path, "/stages/signal_to_accepted/count"), 7 * 20);
        let name = path["path"].as_str().expect("a name").to_string();
        ratios.insert((name, number(path, "/vectors")), path["ratio_to_irqfd"].as_f64().expect("a ratio"));
    }
    let ratio = |name: &str| ratios[&(name.to_string(), 4)];
    assert!((ratio("irqfd") - 1.0).abs() < 1e-9);
    // Waking a thread takes longer than an injection, by far.
    for sleeper in ["blocking_epoll", "event_manager", "tokio"] {
        assert!(ratio(sleeper) > 2.0, "{sleeper}: {}", ratio(sleeper));
    }
}

#[test]
fn overload_merges_and_loses_nothing() {
    let _alone = alone();
    if skipped() {
        return;
    }
    let all = "irqfd,polled_eventfd,polled_doorbell,epoll_wait_0,blocking_epoll,event_manager,tokio";
    let words = [
        "saturation",
        "--path",
        all,
        "--vectors",
        "4",
        "--offered",
        "0",
        "-D",
        "300ms",
        "--warm-up",
        "50ms",
        "--json",
    ];
    let results = results(&words);
    assert_eq!(paths(&results).len(), 7);
    for path in paths(&results) {
        adds_up(path);
        let merged = number(path, "/ledger/merged");
        // The kernel injects within each write; stores are quicker than any poller.
        match path["path"].as_str() {
            Some("irqfd") => assert_eq!(merged, 0),
            Some("polled_doorbell" | "event_manager") => assert!(merged > 0, "{path:#}"),
            _ => {}
        }
    }
}

#[test]
fn an_open_loop_makes_and_measures_every_planned_signal() {
    let _alone = alone();
    if skipped() {
        return;
    }
    for more in [&["--producers", "2"][..], &["--burst", "5", "--noise", "cpu"]] {
        let words =
            ["latency", "--path", "irqfd,polled_eventfd,polled_doorbell", "--rate", "5000", "-D", "300ms"];
        let results = results(&[&words, more, &["--vectors", "10", "--warm-up", "20ms", "--json"]].concat());
        assert_eq!(paths(&results).len(), 3);
        for path in paths(&results) {
            adds_up(path);
            let sent = number(path, "/ledger/sent");
            // The two producers' last signals are at the end's cycle, or not.
            assert!(sent.abs_diff(1500) <= 10, "{sent}");
            assert_eq!(
                number(path, "/stages/signal_to_accepted/count"),
                sent,
                "every signal has its latency"
            );
            assert!(number(path, "/uncorrected/count") <= sent);
            assert!(number(path, "/stages/signal_to_accepted/max_ns") >= number(path, "/uncorrected/max_ns"));
            assert_eq!(path["load"]["kind"], "open");
        }
    }
}

#[test]
fn control_calls_beside_the_data_path() {
    let _alone = alone();
    if skipped() {
        return;
    }
    let results = results(&["costs", "--starts", "0", "--calls", "50", "--vectors", "8", "--json"]);
    let names: Vec<_> = paths(&results).iter().map(|path| path["path"].as_str().expect("a name")).collect();
    assert_eq!(names, ["costs/none", "costs/replace_routes", "costs/attach_detach", "costs/hand_over"]);
    paths(&results).iter().for_each(adds_up);
    let calls = |at: usize, stage: &str| number(&paths(&results)[at]["stages"][stage], "/count");
    assert_eq!(calls(1, "call/replace_routes"), 50);
    assert_eq!((calls(2, "call/attach"), calls(2, "call/detach")), (25, 25));
    assert_eq!((calls(3, "call/to_kernel"), calls(3, "call/to_poller")), (25, 25));
}

#[test]
fn exit_codes_are_rtlas() {
    for wrong in [
        &["paths", "--rounds", "0"][..],
        &["latency", "--rate", "0"],
        &["latency", "--closed", "--burst", "2"],
        &["latency", "--vectors", "5000"],
        &["latency", "--producers", "65"],
        &["latency", "--pollers", "100000"],
        &["latency", "-D", "0"],
        &["nothing"],
    ] {
        let output = output(wrong);
        assert_eq!(output.status.code(), Some(1), "{wrong:?}");
        assert!(!output.stderr.is_empty(), "{wrong:?} says why");
    }
    let _alone = alone();
    if skipped() {
        return;
    }
    let run = ["latency", "--path", "irqfd", "-D", "100ms", "--warm-up", "0", "--json", "--threshold"];
    assert_eq!(output(&[&run[..], &["1"]].concat()).status.code(), Some(2));
    assert_eq!(output(&[&run[..], &["60000000000"]].concat()).status.code(), Some(0));
}

#[test]
fn the_first_interrupt_ends_it_with_a_report() {
    let _alone = alone();
    if skipped() {
        return;
    }
    let mut child = command(&["latency", "--path", "irqfd,polled_eventfd", "-D", "60s", "--json"]);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let results: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(results["interrupted"], true);
    assert_eq!(paths(&results).len(), 1, "the one that was on");
    adds_up(&paths(&results)[0]);
}
