//! At the highest rate the machine gives, every signal is accounted for and none is lost.

use crate::harness::tests;
use pollvisor::session::{Delivery, Signals};
use pollvisor::source::Backend;
use pollvisor_tests::note;
use pollvisor_tests::rig::{Accel, POLLED, accepting, outcome, settle};
use std::time::{Duration, Instant};

tests! {
    each [] => eventfds_1, eventfds_64, eventfds_1024, doorbells_1, doorbells_64, doorbells_1024, the_epoll_fallback,
        the_blocking_way, one_source_per_context;
}

fn at_full_rate(accel: Accel, vectors: usize, signals: Signals, delivery: Delivery) {
    let (session, mut signaller) = accepting(accel, vectors, signals, delivery);
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
    note!(
        "{vectors} vectors by {signals:?}, {delivery:?}: {all} sent, {sums:?}, by the slow path {}",
        total.deferred
    );
}

fn eventfds_1(accel: Accel) {
    at_full_rate(accel, 1, Signals::Eventfd, POLLED);
}

fn eventfds_64(accel: Accel) {
    at_full_rate(accel, 64, Signals::Eventfd, POLLED);
}

fn eventfds_1024(accel: Accel) {
    at_full_rate(accel, 1024, Signals::Eventfd, POLLED);
}

fn doorbells_1(accel: Accel) {
    at_full_rate(accel, 1, Signals::Doorbell, POLLED);
}

fn doorbells_64(accel: Accel) {
    at_full_rate(accel, 64, Signals::Doorbell, POLLED);
}

fn doorbells_1024(accel: Accel) {
    at_full_rate(accel, 1024, Signals::Doorbell, POLLED);
}

fn the_epoll_fallback(accel: Accel) {
    at_full_rate(accel, 64, Signals::Eventfd, Delivery::Poller(Backend::EpollSpin));
}

fn the_blocking_way(accel: Accel) {
    at_full_rate(accel, 64, Signals::Eventfd, Delivery::Poller(Backend::EpollBlock));
}

fn one_source_per_context(accel: Accel) {
    at_full_rate(accel, 64, Signals::Eventfd, Delivery::Poller(Backend::Aio { per_context: 1 }));
}
