//! Loads: schedules, bursts, several producers and pollers, other work meanwhile, sizes.

use super::support::{accepted, adds_up, number, output, paths, results};
use crate::harness::tests;
use crate::need::Need;
use pollvisor_tests::rig::Accel;
use serde_json::Value;

tests! {
    each [Need::Cpus(2)] => an_open_loop_makes_and_measures_every_planned_signal, other_schedules_say_what_they_are,
        as_many_pollers_as_there_are_cpus_for, sizes_are_measured_plotted_and_their_growth_told;
}

fn run(accel: Accel) -> [&'static str; 9] {
    let paths = match accel {
        Accel::Kvm => "irqfd,polled_eventfd,polled_doorbell",
        Accel::Software => "direct,polled_eventfd,polled_doorbell",
    };
    ["latency", "--path", paths, "--vectors", "10", "--warm-up", "20ms", "--json", "-D"]
}

/// Signals that were planned and not made, as the report says: a machine that is busy elsewhere may not get to all.
fn unmade(results: &Value, path: &Value) -> u64 {
    let name = format!("{}: ", path["path"].as_str().expect("a name"));
    let warnings = results["machine"]["warnings"].as_array().expect("warnings");
    let count = |text: &str| {
        text.strip_prefix(&name)?.split_once(" planned signals were not made")?.0.parse::<u64>().ok()
    };
    warnings.iter().filter_map(|text| count(text.as_str()?)).sum::<u64>()
}

fn an_open_loop_makes_and_measures_every_planned_signal(accel: Accel) {
    // 300 ms of 5000 a second, whole bursts of them; at the end's cycle there is one more of each producer, or not.
    for (more, burst, producers) in [
        (&["--producers", "2"][..], 1, 2),
        (&["--burst", "5", "--noise", "cpu"], 5, 1),
        (&["--noise", "mem"], 1, 1),
        (&["--noise", "syscall"], 1, 1),
    ] {
        let results = results(accel, &[&run(accel)[..], &["300ms", "--rate", "5000"], more].concat());
        assert_eq!(paths(&results).len(), 3);
        for path in paths(&results) {
            adds_up(path);
            let sent = number(path, "/ledger/sent");
            let planned = sent + unmade(&results, path);
            assert!((1500..=1500 + burst * producers).contains(&planned), "{sent} sent, {planned} planned");
            assert!(sent * 2 > planned, "{sent} of {planned} sent: this measures something else");
            assert_eq!(
                number(&path["stages"][accepted(accel)], "/count"),
                sent,
                "every signal has its latency"
            );
            assert!(number(path, "/uncorrected/count") <= sent);
            let longest = number(&path["stages"][accepted(accel)], "/max_ns");
            assert!(longest >= number(path, "/uncorrected/max_ns"));
            assert_eq!(path["load"]["kind"], "open");
        }
    }
}

fn other_schedules_say_what_they_are(accel: Accel) {
    let poisson =
        results(accel, &[&run(accel)[..], &["150ms", "--rate", "2000", "--schedule", "poisson"]].concat());
    for path in paths(&poisson) {
        adds_up(path);
        assert_eq!((&path["load"]["kind"], &path["load"]["schedule"]), (&"open".into(), &"poisson".into()));
    }
    let closed = results(accel, &[&run(accel)[..], &["150ms", "--rate", "2000", "--closed"]].concat());
    for path in paths(&closed) {
        adds_up(path);
        assert_eq!(path["load"]["kind"], "closed");
        assert!(path["uncorrected"].is_null(), "a closed loop has nothing to correct by");
    }
}

fn as_many_pollers_as_there_are_cpus_for(accel: Accel) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let run =
        ["latency", "--path", "polled_eventfd", "--pollers", "2", "-D", "200ms", "--rate", "2000", "--json"];
    if cpus > 2 {
        paths(&results(accel, &run)).iter().for_each(adds_up);
        return;
    }
    let output = output(accel, &run);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("this needs 3 CPUs"), "{said}");
}

fn sizes_are_measured_plotted_and_their_growth_told(accel: Accel) {
    let run = ["scaling", "--sizes", "1,16", "--rounds", "3", "--most-producers", "2", "--rate", "2000"];
    let more = ["--vectors", "4", "-D", "100ms", "--warm-up", "0", "--quiet"];
    let words = [&run[..], &more].concat();
    let results = results(accel, &[&words[..], &["--json"]].concat());
    // Three paths, at two sizes and with one and two producers.
    assert_eq!(paths(&results).len(), 12);
    paths(&results).iter().for_each(adds_up);
    for with in ["vectors", "producers"] {
        let growth = results["growth"].as_array().expect("growth");
        let of: Vec<_> = growth.iter().filter(|growth| growth["with"] == with).collect();
        assert_eq!(of.len(), 3, "{growth:?}");
        assert!(of.iter().all(|growth| growth["exponent"].is_f64() && growth["ratio"].as_f64() > Some(0.0)));
    }
    let output = output(accel, &words);
    let text = String::from_utf8_lossy(&output.stdout);
    for expected in ["by vectors", "by producers", "p50 grows as vectors^", "p50 grows as producers^"] {
        assert!(text.contains(expected), "no `{expected}` in {text}");
    }
    let longest = text.lines().map(|line| line.matches('█').count()).max();
    assert_eq!(longest, Some(40), "the plot's longest bar: {text}");
}
