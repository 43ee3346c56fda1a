//! The ways, signalled by hand, on each accelerator.

use super::{Config, Path, Trigger, Way, start};
use crate::measure::histogram;
use crate::measure::matching::Matching;
use crate::rounds::pause;
use pollvisor::accel::Accelerator;
use pollvisor::clock::Clock;
use pollvisor::pin::available;
use std::time::{Duration, Instant};

/// A way with so many pollers, all on one CPU: how they share it is not what is asked.
fn way(
    accelerator: Accelerator,
    path: Path,
    (vectors, producers, pollers): (usize, usize, usize),
) -> (Box<dyn Way>, Vec<Trigger>) {
    let cpu = available().pop().unwrap();
    let config = Config {
        accelerator,
        path,
        vectors,
        producers,
        cpus: vec![cpu; pollers],
        per_context: 2,
        samples: 4096,
        gaps: false,
        flight: true,
        device: None,
    };
    start(&config, Clock::calibrate().unwrap()).unwrap()
}

/// Waits until every signal is accounted for.
fn settle(way: &mut dyn Way, matching: &mut Matching) {
    let began = Instant::now();
    while matching.open() > 0 && began.elapsed() < Duration::from_secs(30) {
        matching.took(&way.take().unwrap());
    }
    matching.run();
    matching.check().unwrap();
}

fn several_pollers_share(accelerator: Accelerator) {
    for path in [Path::PolledEventfd, Path::PolledDoorbell, Path::BlockingEpoll] {
        let (mut way, mut triggers) = way(accelerator, path, (6, 3, 2));
        let mut matching = Matching::new(Clock::calibrate().unwrap(), 6, false).unwrap();
        for round in 0..40 {
            for trigger in &mut triggers {
                matching.sent(&[trigger.signal(None).unwrap()]);
            }
            if round % 10 == 9 {
                settle(&mut *way, &mut matching);
            }
        }
        settle(&mut *way, &mut matching);
        assert_eq!((matching.ledger.sent, matching.ledger.dropped), (120, 0), "{}", path.key());
        assert_eq!(matching.found.accepted.len(), 120, "every signal has its latency");
        let took: Vec<_> = way.flights().iter().map(|flight| flight.events().count()).collect();
        assert!(took.len() == 2 && took.iter().all(|events| *events > 0), "{}: {took:?}", path.key());
        for vector in 0..6 {
            assert!(way.is_requested(vector).unwrap(), "{}: vector {vector}", path.key());
        }
        way.stop().unwrap();
    }
}

fn a_stall_shows(accelerator: Accelerator) {
    const STALL: std::ops::Range<u64> = 100..200;
    let (mut way, mut triggers) = way(accelerator, Path::PolledEventfd, (1, 1, 1));
    let clock = Clock::calibrate().unwrap();
    let (mut matching, mut gaps) = (Matching::new(clock, 1, false).unwrap(), histogram().unwrap());
    let (began, step) = (clock.now(), clock.cycles(Duration::from_millis(1)));
    for n in 0..300 {
        let planned = began + (n + 1) * step;
        pause(clock, planned, &mut gaps);
        if n == STALL.start {
            way.park();
        } else if n == STALL.end {
            way.unpark();
        }
        matching.sent(&[triggers[0].signal(Some(planned)).unwrap()]);
    }
    settle(&mut *way, &mut matching);
    let found = &matching.found;
    assert_eq!((matching.ledger.sent, found.accepted.len()), (300, 300));
    let long = |histogram: &hdrhistogram::Histogram<u64>| histogram.count_between(30_000_000, u64::MAX);
    // Those of the first 70 ms cannot be taken before the stall's end, 30 ms later.
    assert!(long(&found.accepted) >= 70, "{} of 300", long(&found.accepted));
    // An eventfd adds them up: they share an interrupt or two, and only the first is seen without the schedule.
    assert!(matching.ledger.merged >= 95, "{:?}", matching.ledger);
    assert!((1..=10).contains(&long(&found.uncorrected)), "{}", long(&found.uncorrected));
    way.stop().unwrap();
}

/// Signals in turn, each accepted when the call returns, and the LAPICs' account at the end.
fn a_producer_injects_by_itself(accelerator: Accelerator) {
    const ROUNDS: u64 = 300;
    let (mut way, mut triggers) = way(accelerator, Path::Direct, (300, 2, 1));
    let mut matching = Matching::new(Clock::calibrate().unwrap(), 300, true).unwrap();
    for _ in 0..ROUNDS {
        for trigger in &mut triggers {
            matching.sent(&[trigger.signal(None).unwrap()]);
        }
    }
    settle(&mut *way, &mut matching);
    assert_eq!((matching.ledger.sent, matching.ledger.delivered), (2 * ROUNDS, 2 * ROUNDS));
    assert_eq!(matching.found.accepted.len(), 2 * ROUNDS);
    for vector in 0..300 {
        assert!(way.is_requested(vector).unwrap(), "vector {vector}");
    }
    // Twice each, and nobody takes the first.
    let told = (accelerator == Accelerator::Software).then_some(ROUNDS);
    assert_eq!(way.coalesced(), told);
    way.stop().unwrap();
}

macro_rules! on_each_accelerator {
    ($($test:ident => $body:path;)+) => {
        mod software {
            $(#[test]
            fn $test() {
                $body(pollvisor::accel::Accelerator::Software);
            })+
        }

        mod kvm {
            $(#[test]
            #[ignore = "needs /dev/kvm; where it is, .ci/run runs the ignored ones"]
            fn $test() {
                $body(pollvisor::accel::Accelerator::Kvm);
            })+
        }
    };
}

on_each_accelerator! {
    several_pollers_share_the_vectors_of_several_producers => super::several_pollers_share;
    a_poller_that_stalls_shows_in_every_signal_that_was_due_meanwhile => super::a_stall_shows;
    a_producer_that_injects_by_itself_is_told_what_became_of_it => super::a_producer_injects_by_itself;
}
