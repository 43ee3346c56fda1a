//! The latch, the grace period, the replaced table, the gate.

use crate::spawn;
use pollvisor_core::prim::{Mutation, UnsafeCell, spin_loop};
use pollvisor_core::sync::{Gate, Grace, Latch, PendingSet, Rcu};
use pollvisor_tests::model::{check, check_broken};
use std::sync::Arc;

/// Two updates against a reader: what it gets is one of the three records, whole, within its bounded tries.
fn latch() {
    let latch = Arc::new(Latch::new([0u64, 0]));
    let writer = spawn(&latch, |latch| {
        latch.write([1, 1]);
        latch.write([2, 2]);
    });
    let first = latch.read();
    let second = latch.read();
    for [a, b] in [first, second].into_iter().flatten() {
        assert_eq!(a, b, "torn");
    }
    if let (Ok([first, _]), Ok([second, _])) = (first, second) {
        assert!(first <= second, "back in time");
    }
    writer.join().unwrap();
    assert_eq!(latch.read(), Ok([2, 2]));
}

#[test]
fn latch_is_never_torn() {
    check(3, latch);
}

#[test]
#[should_panic(expected = "torn")]
fn latch_published_early_is_torn() {
    check_broken(Mutation::LatchPublishEarly, 3, latch);
}

#[test]
#[should_panic(expected = "torn")]
fn latch_without_recheck_is_torn() {
    check_broken(Mutation::LatchNoRecheck, 3, latch);
}

/// What is retired, written by whoever retires it when nobody should use it any more.
struct Retired {
    grace: Grace,
    unhooked: pollvisor_core::prim::AtomicBool,
    object: UnsafeCell<u32>,
}

impl Retired {
    fn new() -> Self {
        Self {
            grace: Grace::new(),
            unhooked: pollvisor_core::prim::AtomicBool::new(false),
            object: UnsafeCell::new(0),
        }
    }

    fn pass(&self) {
        if !self.unhooked.load(pollvisor_core::prim::Ordering::Relaxed) {
            self.object.with(|_| ());
        }
    }

    fn retire(&self) {
        self.unhooked.store(true, pollvisor_core::prim::Ordering::Relaxed);
        self.grace.synchronize(spin_loop);
        self.object.with_mut(|_| ());
    }
}

// SAFETY: by `Retired`'s protocol, which loom's cell checks.
unsafe impl Sync for Retired {}

/// A reader that comes online, makes two passes and goes, against a retirement.
fn grace() {
    let shared = Arc::new(Retired::new());
    let reader = spawn(&shared, |shared| {
        let mut reader = shared.grace.register().unwrap();
        reader.online();
        shared.pass();
        reader.tick();
        shared.pass();
    });
    shared.retire();
    reader.join().unwrap();
}

/// A seat that changes hands, and a reader that goes offline and online, while a control thread waits.
fn grace_seat_reuse() {
    let shared = Arc::new(Retired::new());
    let readers = spawn(&shared, |shared| {
        let mut reader = shared.grace.register().unwrap();
        reader.online();
        shared.pass();
        reader.offline();
        reader.online();
        shared.pass();
        drop(reader);
        let mut next = shared.grace.register().unwrap();
        next.online();
        shared.pass();
    });
    shared.retire();
    readers.join().unwrap();
}

#[test]
fn grace_outlasts_every_pass() {
    check(3, grace);
}

#[test]
fn grace_survives_seats_that_change_hands() {
    check(3, grace_seat_reuse);
}

#[test]
#[should_panic(expected = "ausality")]
fn grace_without_fence_misses_a_reader() {
    check_broken(Mutation::GraceNoFence, 3, grace);
}

#[test]
#[should_panic(expected = "ausality")]
fn grace_without_wait_is_none() {
    check_broken(Mutation::GraceNoWait, 3, grace);
}

#[test]
#[should_panic(expected = "ausality")]
fn grace_online_again_releases_what_was_before() {
    check_broken(Mutation::GraceOnlineRelaxed, 3, grace_seat_reuse);
}

/// Two replacements, the second of which overwrites what the first one retired, against a reader.
fn rcu() {
    let rcu = Arc::new(Rcu::new(0u32, 0));
    let reader = spawn(&rcu, |rcu| {
        let mut reader = rcu.grace().register().unwrap();
        reader.online();
        let first = rcu.read(&reader, |value| *value);
        reader.tick();
        assert!(rcu.read(&reader, |value| *value) >= first);
    });
    for _ in 0..2 {
        let step = |old: &u32, new: &mut u32| {
            *new = *old + 1;
            Ok::<(), ()>(())
        };
        rcu.replace(step, |_, switch| switch(), spin_loop).unwrap();
    }
    reader.join().unwrap();
}

#[test]
fn rcu_readers_keep_what_they_read() {
    check(3, rcu);
}

#[test]
#[should_panic(expected = "ausality")]
fn rcu_without_grace_overwrites_a_reader() {
    check_broken(Mutation::RouteNoGrace, 3, rcu);
}

struct Gated {
    gate: Gate,
    object: UnsafeCell<u32>,
}

// SAFETY: by the gate's protocol, which loom's cell checks.
unsafe impl Sync for Gated {}

/// Two entrants against one who closes, drains, takes the object down and opens for the next owner.
fn gate() {
    let shared = Arc::new(Gated { gate: Gate::new(), object: UnsafeCell::new(0) });
    let entrant = |shared: &Gated| {
        if let Some(_inside) = shared.gate.try_enter() {
            shared.object.with(|_| ());
        }
    };
    let a = spawn(&shared, entrant);
    let b = spawn(&shared, entrant);
    assert!(shared.gate.close());
    shared.gate.drain(spin_loop);
    shared.object.with_mut(|_| ());
    shared.gate.open();
    a.join().unwrap();
    b.join().unwrap();
}

#[test]
fn gate_keeps_entrants_and_closer_apart() {
    check(3, gate);
}

#[test]
#[should_panic(expected = "ausality")]
fn gate_left_open_lets_them_meet() {
    check_broken(Mutation::GateCloseOpen, 3, gate);
}

/// Two adders and a worker: nothing added is left out, and somebody is told to wake the worker.
fn pending() {
    let set = Arc::new(PendingSet::new());
    let a = spawn(&set, |set| {
        set.add(1);
    });
    let b = spawn(&set, |set| {
        set.add(1);
        set.add(2);
    });
    let mut taken = [0; 3];
    set.take(|i| taken[i] += 1);
    a.join().unwrap();
    b.join().unwrap();
    set.take(|i| taken[i] += 1);
    assert!((1..=2).contains(&taken[1]) && taken[2] == 1, "{taken:?}");
    assert!(set.is_empty());
}

#[test]
fn pending_set_keeps_everything() {
    check(3, pending);
}

#[test]
#[should_panic]
fn pending_set_taken_in_two_steps_loses_what_is_added_between() {
    check_broken(Mutation::PendingTakeInTwo, 3, pending);
}
