//! Results to try the outputs with: made by formula, of the shape that real runs have.

use super::Extra;
use super::json::FORMAT;
use crate::model::{Ledger, Load, Overhead, PathResult, Results, Stage, Switches};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// `count` samples around `median` nanoseconds, with a tail; the same ones every time.
pub fn histogram(median: f64, tail: f64, count: u32) -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, 10_000_000_000, 3).unwrap();
    for at in 0..count {
        // The quantiles of a narrow logistic around the median, and a Pareto tail of a fiftieth of them.
        let p = (f64::from(at) + 0.5) / f64::from(count);
        let body = median * (0.12 * (p / (1.0 - p)).ln()).exp();
        let tail = if p > 0.98 { median * tail * (0.02 / (1.0 - p)).powf(0.8) } else { 0.0 };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive nanoseconds")]
        histogram.record((body + tail) as u64).unwrap();
    }
    histogram
}

fn stage(median: f64, tail: f64, count: u32) -> Stage {
    Stage::of(&histogram(median, tail, count))
}

fn path(name: &str, vectors: usize, median: f64, irqfd: f64, count: u32) -> PathResult {
    let polled = name != "irqfd";
    let mut stages = BTreeMap::new();
    if polled {
        stages.insert("signal_to_seen".into(), stage(median * 0.4, 3.0, count));
        stages.insert("seen_to_injected".into(), stage(median * 0.55, 2.0, count));
    }
    let accepted = stage(median, 4.0, count);
    let (p50_ns, p99_ns, p999_ns) = (accepted.p50_ns, accepted.p99_ns, accepted.p999_ns);
    let ns = |ns: u64| f64::from(u32::try_from(ns).unwrap());
    stages.insert("signal_to_accepted".into(), accepted);
    let ratio = median / irqfd;
    PathResult {
        path: name.into(),
        vectors,
        producers: 1,
        rounds: 101,
        load: Load::Closed,
        p50_ns: ns(p50_ns),
        p99_ns: ns(p99_ns),
        p999_ns: ns(p999_ns),
        producer_p50_ns: if name.ends_with("doorbell") { 10.0 } else { median * 0.6 },
        ratio_to_irqfd: Some(ratio),
        ratio_ci95: Some(if polled { [ratio * 0.94, ratio * 1.07] } else { [1.0, 1.0] }),
        ratio_to_direct: Some(ratio),
        ratio_to_direct_ci95: None,
        coalesced: None,
        ledger: Ledger { sent: u64::from(count), delivered: u64::from(count) - 2, merged: 2, dropped: 0 },
        stages,
        uncorrected: None,
        per_second: 19_998.0,
        cpu_ns_per_interrupt: polled.then_some(50_000.0),
        gaps: polled.then(|| stage(60.0, 30.0, count)),
        context_switches: Some(12),
        delivery_switches: polled.then_some(Switches { voluntary: 3, involuntary: 7 }),
        steal_ns: Some(1_500_000),
    }
}

/// Five paths at three sizes, and one of them by a schedule.
pub fn results() -> Results {
    let mut paths = Vec::new();
    for (vectors, more) in [(8, 1.0), (64, 1.15), (512, 1.3)] {
        for (name, median) in [
            ("irqfd", 890.0),
            ("polled_eventfd", 1430.0),
            ("polled_doorbell", 900.0),
            ("epoll_wait_0", 1780.0),
            ("blocking_epoll", 24_000.0),
        ] {
            paths.push(path(name, vectors, median * more, 890.0 * more, 5050));
        }
    }
    let mut open = path("polled_doorbell", 8, 1900.0, 890.0, 40_000);
    open.load = Load::Open { per_second: 100_000.0, schedule: "poisson".into() };
    open.stages.insert("producer".into(), stage(12.0, 2.0, 40_000));
    open.stages.insert("producer_late".into(), stage(100.0, 9.0, 40_000));
    open.uncorrected = Some(stage(930.0, 2.0, 40_000));
    (open.ratio_to_irqfd, open.ratio_ci95) = (None, None);
    paths.push(open);
    Results {
        format: FORMAT,
        command: "pollvisor-bench paths --vectors 8,64,512 # <b>&\"'".into(),
        began: "2026-11-21T16:02:07Z".into(),
        seconds: 93.25,
        machine: serde_json::json!({
            "kernel": "6.1.0-18-amd64", "cpu": "Example CPU <X> @ 2.60GHz", "tsc_khz": 2_595_725,
            "hypervisor": true, "idle": "none", "delivery": "every path", "source": "every source",
            "pinned": true, "locked": false, "halt_poll_ns": 200_000, "vfio": "none",
            "warnings": ["CPUs [0, 1] are not isolated: other work runs there and shows in the tail"],
        }),
        overhead: Overhead { timestamp_ns: 9.9, empty_loop_ns: 0.4, recorder_ns: Some(21.5) },
        paths,
        interrupted: false,
        errors: Vec::new(),
    }
}

/// A goal and a growth, as subcommands have them.
pub fn extra() -> Extra {
    let json = serde_json::json!({
        "goals": [{"goal": "polled eventfd / irqfd, 8 vectors", "measured": 1.6, "at_most": 2.0, "met": true}],
        "growth": [{"path": "irqfd", "with": "vectors", "exponent": 0.06, "ratio": 1.3}],
    });
    let text = "met     polled eventfd / irqfd, 8 vectors: 1.600, at most 2.000\n".into();
    Extra { json: json.as_object().cloned().unwrap_or_default(), text, table: None }
}
