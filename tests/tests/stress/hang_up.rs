//! A producer process is killed in the middle of it: its irqfds go, and everything it sent is accounted for.

use pollvisor::interrupts::Source;
use pollvisor::session::Signals;
use pollvisor::sys::doorbell::{Producer, Region};
use pollvisor::sys::fd::{EventFd, pidfd};
use pollvisor_core::ids::Gsi;
use pollvisor_core::irqfd::State;
use pollvisor_tests::needs_kvm;
use pollvisor_tests::rig::{POLLED, accepting, settle};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CHILD: &str = "POLLVISOR_TEST_PRODUCER";
const BELLS: usize = 4;

/// The producer: not a test of its own. It rings all bells but the last as fast as it can; standard input is an eventfd,
/// which it signals, too, counting with the last bell before it does.
#[test]
fn producer() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let file = std::fs::File::options().read(true).write(true).open(path).expect("the region");
    let mut producer = Producer::new(Region::open(file.into()).expect("a region"));
    let event = std::io::stdin().as_fd().try_clone_to_owned().expect("standard input");
    let event = EventFd::from_fd(event).expect("an eventfd");
    loop {
        for bell in 0..BELLS - 1 {
            producer.ring(bell, 1);
        }
        producer.ring(BELLS - 1, 1);
        event.signal(1);
    }
}

#[test]
fn a_producer_killed_is_a_hang_up_and_loses_nothing() {
    needs_kvm!();
    let _alone = crate::alone();
    // Its own vector 0 is not used; the region and the eventfd come from the "other process".
    let (session, _signaller) = accepting(8, Signals::Eventfd, POLLED);
    let interrupts = session.interrupts().expect("a poller");
    let port = session.poller().expect("a poller").port().clone();
    for id in session.attached() {
        interrupts.detach(*id);
    }
    let region = Region::new(BELLS).expect("region");
    let watched = interrupts.add_region(&port, &region).expect("region");
    let event = Arc::new(EventFd::new().expect("eventfd"));
    let attach = || -> Vec<_> {
        let bells = (0..BELLS - 1).map(|bell| Source::Bell(watched.clone(), bell));
        let sources = bells.chain([Source::Event(event.clone())]);
        let bound = |(at, source)| interrupts.attach(source, Gsi(at), &port).expect("attach");
        (0..).zip(sources).map(bound).collect()
    };
    let mut total = *session.empty_figures();
    for round in 0..5 {
        let ids = attach();
        let input: OwnedFd = event.as_fd().try_clone_to_owned().expect("dup");
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "hang_up::producer", "--nocapture"])
            .env(CHILD, format!("/proc/{}/fd/{}", std::process::id(), region.as_fd().as_raw_fd()))
            .stdin(Stdio::from(input))
            .stdout(Stdio::null())
            .spawn()
            .expect("a producer");
        interrupts.hang_up_with(pidfd(child.id()).expect("pidfd"), ids.clone()).expect("watch");
        let before = region.count(0);
        let began = Instant::now();
        while region.count(0) < before + 10_000 {
            assert!(began.elapsed() < Duration::from_secs(20), "the producer does not start");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("SIGKILL");
        child.wait().expect("wait");
        let began = Instant::now();
        while ids.iter().any(|id| interrupts.irqfds().state(*id) != State::Free) {
            assert!(began.elapsed() < Duration::from_secs(10), "round {round}: no hang-up");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!interrupts.detach(ids[0]), "still there after its hang-up");
    }
    // What came after the hang-ups is still in the sources: the next owner gets it.
    let ids = attach();
    let rung: u64 = (0..BELLS - 1).map(|bell| region.count(bell)).sum();
    let counted = region.count(BELLS - 1);
    // A kill between the count and the signal leaves one signal unmade, each round.
    settle(&session, &mut total, rung + counted);
    let of = |slot| {
        let mut outcome = total.ledger[slot];
        outcome += interrupts.slow_path(slot);
        outcome.signals()
    };
    let all: u64 = (0..session.vectors()).map(of).sum();
    assert!((rung + counted - 5..=rung + counted).contains(&all), "{all} of {rung} + {counted}");
    println!("{rung} rings and {counted} signals of five killed producers, {all} accounted for");
    for id in ids {
        assert!(interrupts.detach(id));
    }
}
