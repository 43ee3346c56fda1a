//! One eventfd that changes its waiter, polled and in the kernel, with signals on their way (race 48).

use crate::spawn;
use pollvisor_core::prim::Mutation;
use pollvisor_tests::model::{Hook, World, check, check_broken};
use std::sync::Arc;

/// Polled, then in the kernel, then polled again: each side looks for what is pending when it comes, so every signal
/// has one end, and no interrupt is for nothing.
fn there_and_back() {
    let world = Arc::new(World::<1>::new(Hook::Edge));
    let id = world.assign();
    let producer = spawn(&world, |world| {
        for _ in 0..2 {
            world.fd.signal();
        }
    });
    let poller = spawn(&world, |world| world.poll(2));
    assert!(world.irqfds.deassign_id(&*world, id));
    world.fd.bind_in_kernel();
    world.fd.unbind_from_kernel();
    world.assign();
    producer.join().unwrap();
    poller.join().unwrap();
    world.settle();
    world.assert_frugal();
}

#[test]
fn a_hand_over_loses_and_doubles_nothing() {
    check(2, there_and_back);
}

#[test]
#[should_panic(expected = "signals and their ends differ")]
fn a_hand_over_without_a_look_loses_what_came_between() {
    check_broken(Mutation::AssignNoPendingCheck, 2, there_and_back);
}
