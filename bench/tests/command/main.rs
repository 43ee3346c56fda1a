//! The command on real KVM: accounting, ratios and exit codes; never absolute times.

mod load;
mod outputs;
mod support;
mod threshold;

use support::{adds_up, alone, document, number, output, paths, results, skipped};

#[test]
fn every_path_beside_the_others() {
    let _alone = alone();
    if skipped() {
        return;
    }
    let words = ["paths", "--rounds", "7", "--samples", "20", "--vectors", "4,30", "--rivals", "--json"];
    // 1 where a path cannot be had, such as io_uring in a container: it is among the errors then.
    let output = output(&words);
    let results = document(&output);
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
        let ratio = path["ratio_to_irqfd"].as_f64().expect("a ratio");
        let interval = |end: usize| path["ratio_ci95"][end].as_f64().expect("an interval");
        assert!(interval(0) <= ratio && ratio <= interval(1), "{path:#}");
        noise_is_noted(&name, path);
        ratios.insert((name, number(path, "/vectors")), ratio);
    }
    let ratio = |name: &str| ratios[&(name.to_string(), 4)];
    assert!((ratio("irqfd") - 1.0).abs() < 1e-9);
    // Waking a thread takes longer than an injection, by far.
    for sleeper in ["blocking_epoll", "event_manager", "tokio"] {
        assert!(ratio(sleeper) > 2.0, "{sleeper}: {}", ratio(sleeper));
    }
}

/// What the machine did in a path's windows.
fn noise_is_noted(name: &str, path: &serde_json::Value) {
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
        let output = output(wrong);
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
    let _alone = alone();
    if skipped() {
        return;
    }
    let none = output(&["latency", "--device", "host=ffff:ff:1f.7"]);
    let said = String::from_utf8_lossy(&none.stderr);
    assert!(none.status.code() == Some(1) && said.contains("ffff:ff:1f.7"), "no such device: {said}");
    let run = ["latency", "--path", "irqfd", "-D", "100ms", "--warm-up", "0", "--json", "--threshold"];
    assert_eq!(output(&[&run[..], &["1"]].concat()).status.code(), Some(2));
    assert_eq!(output(&[&run[..], &["60000000000"]].concat()).status.code(), Some(0));
}
