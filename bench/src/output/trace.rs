//! A flight recorder's events as a Chrome trace in JSON, for `ui.perfetto.dev` and `chrome://tracing`.
//!
//! A process is a poller, named by its path. Its one thread has a slice for each injection, which cannot overlap, and a mark where the
//! source was drained. From the signal on an interrupt waits while others are dealt with, so its whole life is an
//! asynchronous slice.

use pollvisor::accel::Accelerator;
use pollvisor::flight;
use serde_json::{Value, json};

/// One interrupt's way through a poller; times in nanoseconds of one clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Which poller, from 0.
    pub poller: usize,
    /// Which vector.
    pub vector: u32,
    /// When it was signalled; 0 when the source does not say.
    pub signal_ns: u64,
    /// When the poller saw it.
    pub seen_ns: u64,
    /// When the injecting call returned.
    pub injected_ns: u64,
    /// When its source was drained.
    pub drained_ns: u64,
    /// How many signals were in it.
    pub signals: u64,
}

impl Event {
    /// What `poller` recorded.
    #[must_use]
    pub fn of(poller: usize, event: &flight::Event) -> Self {
        let flight::Event { vector, signal_ns, seen_ns, injected_ns, drained_ns, signals } = *event;
        Self { poller, vector, signal_ns, seen_ns, injected_ns, drained_ns, signals }
    }

    fn begin(&self) -> u64 {
        // A signal from after it was seen is a clock's fault, and no beginning.
        if self.signal_ns == 0 || self.signal_ns > self.seen_ns { self.seen_ns } else { self.signal_ns }
    }
}

/// The trace of `path`; `about` says what was beyond the threshold. Its time begins with the first event.
#[must_use]
pub fn trace(path: &str, events: &[Event], about: &Value) -> String {
    let zero = events.iter().map(Event::begin).min().unwrap_or(0);
    let us = |ns: u64| super::float(ns.saturating_sub(zero)) / 1000.0;
    let mut lines: Vec<(u64, Value)> = Vec::new();
    let is_software = about["accelerator"] == Accelerator::Software.key();
    let injection = if is_software { "seen_to_posted_ns" } else { "seen_to_injected_ns" };
    for (id, event) in events.iter().enumerate() {
        let name = format!("vector {}", event.vector);
        let injecting = event.injected_ns.saturating_sub(event.seen_ns);
        let args = json!({"vector": event.vector, "signals": event.signals,
            "signal_to_seen_ns": event.seen_ns - event.begin(),
            injection: injecting});
        let life = |ph: &str, ns: u64| {
            (
                ns,
                json!({"name": name, "cat": "interrupt", "ph": ph, "id": id, "pid": event.poller, "tid": 0, "ts": us(ns)}),
            )
        };
        let end = event.drained_ns.max(event.injected_ns).max(event.seen_ns);
        lines.push(life("b", event.begin()));
        lines.push((
            event.seen_ns,
            json!({"name": name, "cat": "injection", "ph": "X", "pid": event.poller, "tid": 0, "ts": us(event.seen_ns),
                "dur": super::float(injecting) / 1000.0, "args": args}),
        ));
        lines.push((
            end,
            json!({"name": "drained", "cat": "drain", "ph": "i", "s": "t", "pid": event.poller, "tid": 0, "ts": us(end),
                "args": {"vector": event.vector}}),
        ));
        lines.push(life("e", end));
    }
    lines.sort_by_key(|(ns, _)| *ns);
    let mut pollers: Vec<usize> = events.iter().map(|event| event.poller).collect();
    pollers.sort_unstable();
    pollers.dedup();
    let name = |poller: &usize| {
        [("process_name", path.to_string()), ("thread_name", format!("thread {poller}"))].map(
            |(what, name)| json!({"name": what, "ph": "M", "pid": poller, "tid": 0, "args": {"name": name}}),
        )
    };
    let all: Vec<Value> =
        pollers.iter().flat_map(name).chain(lines.into_iter().map(|(_, line)| line)).collect();
    json!({"displayTimeUnit": "ns", "otherData": about, "traceEvents": all}).to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn text(events: &[Event]) -> String {
        trace("a path", events, &json!({"latency_ns": 7}))
    }

    /// Batches of two on two pollers, as a pass makes them: both injected, then both drained.
    fn events() -> Vec<Event> {
        let mut events = Vec::new();
        for at in 0..200u64 {
            let base = 1_795_276_927_000_000_000 + at * 10_000;
            for second in 0..2 {
                events.push(Event {
                    poller: usize::try_from(at % 2).unwrap(),
                    vector: u32::try_from(at % 8 + second).unwrap(),
                    signal_ns: if at % 50 == 7 { 0 } else { base },
                    seen_ns: base + 500 + second * 701,
                    injected_ns: base + 1200 + second * 701,
                    drained_ns: base + 2000 + second * 30,
                    signals: 1 + second,
                });
            }
        }
        events
    }

    /// What the format's description asks of each kind of event.
    fn check(text: &str) -> BTreeMap<String, usize> {
        let document: Value = serde_json::from_str(text).unwrap();
        assert!(["ns", "ms"].contains(&document["displayTimeUnit"].as_str().unwrap()));
        let (mut kinds, mut last, mut busy) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut open = BTreeSet::new();
        for event in document["traceEvents"].as_array().unwrap() {
            let ph = event["ph"].as_str().unwrap();
            *kinds.entry(ph.to_string()).or_insert(0) += 1;
            assert!(event["name"].is_string() && event["pid"].is_u64() && event["tid"].is_u64(), "{event}");
            if ph == "M" {
                assert!(event["args"]["name"].is_string());
                continue;
            }
            let ts = event["ts"].as_f64().unwrap();
            let track = event["pid"].as_u64().unwrap();
            assert!(ts >= 0.0 && ts >= *last.get(&track).unwrap_or(&0.0), "not monotonic: {event}");
            last.insert(track, ts);
            match ph {
                "X" => {
                    let dur = event["dur"].as_f64().unwrap();
                    assert!(
                        dur >= 0.0 && ts >= *busy.get(&track).unwrap_or(&0.0) - 1e-6,
                        "slices overlap: {event}"
                    );
                    busy.insert(track, ts + dur);
                }
                "i" => assert!(["t", "p", "g"].contains(&event["s"].as_str().unwrap())),
                "b" => assert!(open.insert(event["id"].as_u64().unwrap())),
                "e" => assert!(open.remove(&event["id"].as_u64().unwrap()), "{event}"),
                other => panic!("{other} is no kind of event"),
            }
        }
        assert!(open.is_empty());
        kinds
    }

    #[test]
    fn it_is_what_the_format_asks_for() {
        let kinds = check(&text(&events()));
        let expected = [("M", 4), ("X", 400), ("b", 400), ("e", 400), ("i", 400)];
        assert_eq!(kinds, expected.into_iter().map(|(kind, n)| (kind.to_string(), n)).collect());
        assert!(check(&text(&[])).is_empty());
    }

    #[test]
    fn nanoseconds_are_kept() {
        let text = text(&events()[..1]);
        let document: Value = serde_json::from_str(&text).unwrap();
        let slice = document["traceEvents"].as_array().unwrap().iter().find(|e| e["ph"] == "X").unwrap();
        assert_eq!((slice["ts"].as_f64(), slice["dur"].as_f64()), (Some(0.5), Some(0.7)));
    }

    #[test]
    fn clocks_that_disagree_still_make_a_trace() {
        let odd = Event {
            poller: 0,
            vector: 0,
            signal_ns: u64::MAX,
            seen_ns: 9,
            injected_ns: 5,
            drained_ns: 0,
            signals: 0,
        };
        check(&text(&[odd, Event { signal_ns: 1, poller: 1, ..odd }]));
    }

    #[test]
    #[ignore = "needs /dev/kvm; where it is, .ci/run runs the ignored ones"]
    fn a_real_pollers_flight_makes_a_trace() {
        use pollvisor::session::{Delivery, Session, SessionConfig, Signals};
        use pollvisor::{accel::Idle, clock::Clock, pin::Placement, record::Figures, source::Backend};
        let config = SessionConfig {
            accelerator: pollvisor::accel::Accelerator::Kvm,
            vectors: 8,
            signals: Signals::Doorbell,
            delivery: Delivery::Poller(Backend::AIO),
            running: false,
            idle: Idle::Halt,
            vcpus: None,
            vcpu_placement: Vec::new(),
            poller_placement: Placement { cpu: None, fifo: Some(false) },
            halt_poll_ns: None,
            each_vector: false,
        };
        let (session, mut signaller) = Session::start(&config, Clock::calibrate().unwrap()).unwrap();
        let empty = || *session.empty_figures();
        assert!(session.take_figures(Box::new(empty().with_flight())).unwrap().flight.is_none());
        let mut total: Figures = empty();
        for round in 0..50 {
            for vector in 0..8 {
                signaller.signal(vector);
            }
            while total.total().signals() < (round + 1) * 8 {
                total.add(&session.take_figures(Box::new(empty().with_flight())).unwrap());
            }
        }
        session.stop().unwrap();
        let flight = total.flight.unwrap();
        let events: Vec<Event> = flight.events().map(|event| Event::of(0, event)).collect();
        assert_eq!(events.iter().map(|event| event.signals).sum::<u64>(), 400);
        assert!(
            events
                .iter()
                .all(|e| e.vector < 8 && e.seen_ns <= e.injected_ns && e.injected_ns <= e.drained_ns)
        );
        assert!(events.iter().all(|event| event.signal_ns > 0 && event.signal_ns <= event.seen_ns));
        assert_eq!(check(&text(&events))["X"], events.len());
    }
}
