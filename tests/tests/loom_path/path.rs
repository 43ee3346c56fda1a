//! A signal's way: inject first and drain after, and the moments around assign.

use crate::spawn;
use pollvisor_core::prim::Mutation;
use pollvisor_tests::model::{Hook, World, check, check_broken};
use std::sync::Arc;

/// Signals against the poller's passes.
fn signals(count: usize) {
    let world = Arc::new(World::<1>::new(Hook::Level));
    let _id = world.assign();
    let producer = spawn(&world, move |world| {
        for _ in 0..count {
            world.fd.signal();
        }
    });
    world.poll(2);
    producer.join().unwrap();
    world.settle();
    world.assert_frugal();
}

#[test]
fn no_edge_is_lost_between_injection_and_drain() {
    check(3, || signals(2));
}

#[test]
fn three_signals_meet_every_step_of_a_pass() {
    check(3, || signals(3));
}

#[test]
#[should_panic(expected = "an edge was lost")]
fn a_count_above_one_injects_again() {
    check_broken(Mutation::NoSecondInject, 3, || signals(2));
}

#[test]
#[should_panic(expected = "an interrupt without a signal")]
fn ready_again_only_when_drained() {
    check_broken(Mutation::RearmBeforeDrain, 3, || signals(2));
}

/// An assign against signals before, between and after its steps, with a poller in the middle.
fn assign_and_signals(hook: Hook, before: usize, during: usize) -> Arc<World<1>> {
    let world = Arc::new(World::<1>::new(hook));
    for _ in 0..before {
        world.fd.signal();
    }
    let producer = spawn(&world, move |world| {
        for _ in 0..during {
            world.fd.signal();
        }
    });
    let poller = spawn(&world, |world| world.poll(1));
    world.assign();
    producer.join().unwrap();
    poller.join().unwrap();
    world.settle();
    world
}

#[test]
fn assign_loses_nothing_of_an_edge_only_source() {
    check(3, || assign_and_signals(Hook::Edge, 0, 2).assert_frugal());
}

#[test]
fn assign_finds_what_was_signalled_before() {
    check(3, || assign_and_signals(Hook::Edge, 1, 1).assert_frugal());
}

#[test]
fn assign_loses_nothing_of_a_source_looked_at_when_hooked() {
    check(3, || assign_and_signals(Hook::Level, 1, 1).assert_frugal());
}

#[test]
#[should_panic(expected = "signals and their ends differ")]
fn assign_looks_for_pending_signals() {
    check_broken(Mutation::AssignNoPendingCheck, 3, || drop(assign_and_signals(Hook::Edge, 0, 2)));
}

#[test]
#[should_panic(expected = "an edge was lost")]
fn assign_marks_what_it_took_itself() {
    check_broken(Mutation::AssignNotFresh, 3, || drop(assign_and_signals(Hook::Edge, 0, 2)));
}

/// The deferred worker against a poller that defers, on a slot that was another irqfd's before: it delivers what is
/// there by the irqfd that is there.
fn defer_after_reuse() {
    let world = Arc::new(World::<1>::new(Hook::Level));
    let id = world.assign();
    // The mark of an earlier owner that the worker has not looked at yet.
    world.irqfds.defer(id, 0);
    assert!(world.irqfds.deassign_id(&*world, id));
    world.irqfds.defer(id, 0);
    let worker = spawn(&world, |world| world.work());
    let id = world.assign();
    world.fd.signal();
    world.drain_and_defer(id);
    worker.join().unwrap();
    world.settle();
}

#[test]
fn deferred_signals_carry_their_irqfd() {
    check(3, defer_after_reuse);
}

#[test]
#[should_panic(expected = "an edge was lost")]
fn deferring_releases_the_irqfd() {
    check_broken(Mutation::DeferRelaxed, 3, defer_after_reuse);
}
