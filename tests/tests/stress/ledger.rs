//! At the highest rate the machine gives, every signal is accounted for and none is lost.

use pollvisor::session::{Delivery, Signals};
use pollvisor::source::Backend;
use pollvisor_tests::needs_kvm;
use pollvisor_tests::rig::{POLLED, accepting, outcome, settle};
use std::time::{Duration, Instant};

fn at_full_rate(vectors: usize, signals: Signals, delivery: Delivery) {
    needs_kvm!();
    let _alone = crate::alone();
    let (session, mut signaller) = accepting(vectors, signals, delivery);
    let mut sent = vec![0u64; vectors];
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(500) {
        for (vector, sent) in sent.iter_mut().enumerate() {
            signaller.signal(vector);
            *sent += 1;
        }
    }
    let all: u64 = sent.iter().sum();
    let mut total = *session.empty_figures();
    assert_eq!(settle(&session, &mut total, all), all, "lost");
    for (vector, sent) in sent.iter().enumerate() {
        let outcome = outcome(&session, &total, vector);
        assert_eq!((outcome.signals(), outcome.dropped), (*sent, 0), "vector {vector}: {outcome:?}");
        assert!(outcome.delivered > 0 && session.is_requested(vector).expect("LAPIC"), "vector {vector}");
    }
    assert_eq!(
        (total.spurious, total.negative),
        (0, 0),
        "an interrupt without a signal, or a clock that disagrees"
    );
    let sums = total.total();
    let late = session.stop().expect("stop").figures.expect("figures");
    assert_eq!(late.total().signals(), 0, "delivered after everything was");
    println!(
        "{vectors} vectors by {signals:?}, {delivery:?}: {all} sent, {sums:?}, by the slow path {}",
        total.deferred
    );
}

#[test]
fn eventfds_1() {
    at_full_rate(1, Signals::Eventfd, POLLED);
}

#[test]
fn eventfds_64() {
    at_full_rate(64, Signals::Eventfd, POLLED);
}

#[test]
fn eventfds_1024() {
    at_full_rate(1024, Signals::Eventfd, POLLED);
}

#[test]
fn doorbells_1() {
    at_full_rate(1, Signals::Doorbell, POLLED);
}

#[test]
fn doorbells_64() {
    at_full_rate(64, Signals::Doorbell, POLLED);
}

#[test]
fn doorbells_1024() {
    at_full_rate(1024, Signals::Doorbell, POLLED);
}

#[test]
fn the_epoll_fallback() {
    at_full_rate(64, Signals::Eventfd, Delivery::Poller(Backend::EpollSpin));
}

#[test]
fn the_blocking_way() {
    at_full_rate(64, Signals::Eventfd, Delivery::Poller(Backend::EpollBlock));
}

#[test]
fn one_source_per_context() {
    at_full_rate(64, Signals::Eventfd, Delivery::Poller(Backend::Aio { per_context: 1 }));
}
