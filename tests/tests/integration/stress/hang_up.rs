//! A producer process is killed in the middle of it: its irqfds go, and everything it sent is accounted for.

use crate::harness::tests;
use crate::role::{self, Role};
use pollvisor::interrupts::{Attach, Source};
use pollvisor::session::Signals;
use pollvisor::sys::doorbell::{Producer, Region};
use pollvisor::sys::fd::{EventFd, pidfd};
use pollvisor_core::ids::Gsi;
use pollvisor_core::irqfd::State;
use pollvisor_tests::note;
use pollvisor_tests::rig::{Accel, POLLED, accepting, settle};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

const CHILD: &str = "POLLVISOR_TEST_PRODUCER";
/// Bells that are watched.
const BELLS: usize = 3;
/// Bells that nobody watches: they count the signals to the eventfd, before and after each.
const BEFORE: usize = BELLS;
const AFTER: usize = BELLS + 1;
const ROUNDS: usize = 5;

tests! {
    each [] => a_producer_killed_is_a_hang_up_and_loses_nothing;
}

/// The producer, a process of its own. It rings the bells as fast as it can; standard input is an eventfd, which it signals,
/// too.
pub fn producer() {
    let path = std::env::var(CHILD).expect(CHILD);
    let file = std::fs::File::options().read(true).write(true).open(path).expect("the region");
    let mut producer = Producer::new(Region::open(file.into()).expect("a region"));
    let event = std::io::stdin().as_fd().try_clone_to_owned().expect("standard input");
    let event = EventFd::from_fd(event).expect("an eventfd");
    loop {
        for bell in 0..BELLS {
            producer.ring(bell, 1);
        }
        producer.ring(BEFORE, 1);
        event.signal(1);
        producer.ring(AFTER, 1);
    }
}

fn a_producer_killed_is_a_hang_up_and_loses_nothing(accel: Accel) {
    // Its own vector 0 is not used; the region and the eventfd come from the "other process".
    let (session, _signaller) = accepting(accel, 8, Signals::Eventfd, POLLED);
    let interrupts = session.interrupts().expect("a poller");
    let port = session.poller().expect("a poller").port().clone();
    for id in session.attached() {
        interrupts.detach(*id);
    }
    let region = Region::new(BELLS + 2).expect("region");
    let watched = interrupts.add_region(&port, &region).expect("region");
    let event = Arc::new(EventFd::new().expect("eventfd"));
    let attach = || -> Vec<_> {
        let bells = (0..BELLS).map(|bell| Source::Bell(watched.clone(), bell));
        let sources = bells.chain([Source::Event(event.clone())]);
        // The same slot in each round, so that each source has its own account.
        let bound = |(slot, source)| {
            let attach = Attach { source, gsi: Gsi(slot), port: &port, resample: None, slot: Some(slot) };
            interrupts.attach_with(attach).expect("attach")
        };
        (0..).zip(sources).map(bound).collect()
    };
    let mut total = *session.empty_figures();
    for round in 0..ROUNDS {
        let ids = attach();
        let input: OwnedFd = event.as_fd().try_clone_to_owned().expect("dup");
        let mut child = role::command(Role::Producer)
            .env(CHILD, format!("/proc/{}/fd/{}", std::process::id(), region.as_fd().as_raw_fd()))
            .stdin(Stdio::from(input))
            .stdout(Stdio::null())
            .spawn()
            .expect("a producer");
        interrupts.hang_up_with(pidfd(child.id()).expect("pidfd"), ids.clone()).expect("watch");
        let before = region.count(0);
        let began = Instant::now();
        while region.count(0) < before + 10_000 {
            assert!(began.elapsed() < Duration::from_secs(60), "the producer does not start");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("SIGKILL");
        child.wait().expect("wait");
        let began = Instant::now();
        while ids.iter().any(|id| interrupts.irqfds().state(*id) != State::Free) {
            assert!(began.elapsed() < Duration::from_secs(60), "round {round}: no hang-up");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!interrupts.detach(ids[0]), "still there after its hang-up");
    }
    // What came after the hang-ups is still in the sources: the next owner gets it.
    let ids = attach();
    let rung: Vec<u64> = (0..BELLS).map(|bell| region.count(bell)).collect();
    // A producer that was killed between a count and the next has made its last signal, or not.
    let signals: RangeInclusive<u64> = region.count(AFTER)..=region.count(BEFORE);
    let unknown = signals.end() - signals.start();
    assert!(unknown <= ROUNDS as u64, "{signals:?} signals");
    settle(&session, &mut total, rung.iter().sum::<u64>() + signals.end());
    let of = |slot: usize| {
        let mut outcome = total.ledger[slot];
        outcome += interrupts.slow_path(slot);
        outcome.signals()
    };
    let all: Vec<u64> = (0..session.vectors()).map(of).collect();
    note!("{rung:?} rings and {signals:?} signals of {ROUNDS} killed producers, {all:?} accounted for");
    assert_eq!(all[..BELLS], rung, "every ring of each bell");
    assert!(signals.contains(&all[BELLS]), "{} of {signals:?} signals", all[BELLS]);
    assert!(all[BELLS + 1..].iter().all(|others| *others == 0), "{all:?}");
    for id in ids {
        assert!(interrupts.detach(id));
    }
}
