//! The end of an irqfd, raced by everything else.

use crate::spawn;
use pollvisor_core::irqfd::AssignError;
use pollvisor_core::prim::Mutation;
use pollvisor_tests::model::{GSI, Hook, KEY, World, check, check_broken, plain};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A hang-up, a deassign and the VM's release, all of one irqfd: one of them shuts it down, once (race 5).
fn three_ends() {
    let world = Arc::new(World::<1>::new(Hook::Level));
    let id = world.assign();
    let elected = Arc::new(AtomicU64::new(0));
    let (a, b) = (Arc::clone(&elected), Arc::clone(&elected));
    let hang_up = spawn(&world, move |world| {
        a.fetch_add(world.irqfds.hang_up(world, id).into(), SeqCst);
    });
    let deassign = spawn(&world, move |world| {
        b.fetch_add(world.irqfds.deassign(world, KEY, GSI) as u64, SeqCst);
        world.assert_gone(1);
    });
    let released = world.irqfds.release(&*world) as u64;
    world.assert_gone(1);
    hang_up.join().unwrap();
    deassign.join().unwrap();
    assert_eq!(elected.load(SeqCst) + released, 1, "one owner of the shutdown");
}

#[test]
fn one_owner_shuts_down() {
    check(3, three_ends);
}

#[test]
#[should_panic(expected = "two owners of one irqfd's shutdown")]
fn without_election_there_are_two_owners() {
    check_broken(Mutation::ShutdownNoElection, 3, three_ends);
}

#[test]
#[should_panic(expected = "not shut down yet")]
fn a_deassign_that_waits_for_its_own_alone_returns_early() {
    check_broken(Mutation::DeassignOwnOnly, 3, three_ends);
}

/// A poller reports a hang-up while the irqfd is taken away and its slot given to the next one: that one stays.
fn reported_hang_up() {
    let world = Arc::new(World::<1>::new(Hook::Level));
    let id = world.assign();
    world.fd.signal();
    world.fd.hang_up();
    let poller = spawn(&world, |world| world.poll(1));
    world.irqfds.deassign_id(&*world, id);
    world.assert_gone(1);
    world.fd.reopen();
    let next = world.assign();
    poller.join().unwrap();
    world.shut_down();
    assert!(world.irqfds.deassign_id(&*world, next), "it had not hung up");
    world.assert_gone(2);
}

#[test]
fn a_reported_hang_up_is_the_irqfds_own() {
    check(3, reported_hang_up);
}

#[test]
#[should_panic(expected = "two owners of one irqfd's shutdown")]
fn without_election_a_reported_hang_up_is_another_owner() {
    check_broken(Mutation::ShutdownNoElection, 3, reported_hang_up);
}

/// A hang-up reported while the irqfd is still being assigned: it is shut down when it is listed, and not before.
fn hang_up_and_assign() {
    let world = Arc::new(World::<1>::new(Hook::Level));
    world.fd.hang_up();
    let assign = spawn(&world, |world| {
        world.assign();
    });
    let poller = spawn(&world, |world| world.poll(1));
    world.shut_down();
    assign.join().unwrap();
    poller.join().unwrap();
    world.poll_dry();
    world.shut_down();
    world.assert_gone(1);
}

#[test]
fn a_hang_up_waits_for_the_assigner() {
    check(3, hang_up_and_assign);
}

#[test]
#[should_panic(expected = "shut down once each")]
fn a_hang_up_that_does_not_wait_is_forgotten() {
    check_broken(Mutation::HangUpNoWait, 3, hang_up_and_assign);
}

/// A pass that has seen the irqfd active, against its deassign: nothing is delivered once that returned.
fn deassign_and_pass() {
    let world = Arc::new(World::<1>::new(Hook::Level));
    let id = world.assign();
    world.fd.signal();
    let poller = spawn(&world, |world| world.poll(2));
    world.fd.signal();
    assert!(world.irqfds.deassign_id(&*world, id));
    world.close();
    poller.join().unwrap();
    world.work();
    world.assert_gone(1);
}

#[test]
fn deassign_outlasts_every_pass() {
    check(3, deassign_and_pass);
}

#[test]
#[should_panic(expected = "an interrupt after its teardown returned")]
fn without_grace_a_pass_outlasts_deassign() {
    check_broken(Mutation::ShutdownNoGrace, 3, deassign_and_pass);
}

/// Deferred signals against a deassign: they are delivered before it returns, and none after (races 2, 8).
fn deassign_and_worker() {
    let world = Arc::new(World::<1>::new(Hook::Level).with_worker_thread());
    let id = world.assign();
    world.fd.signal();
    world.drain_and_defer(id);
    let worker = spawn(&world, |world| world.work());
    assert!(world.irqfds.deassign_id(&*world, id));
    world.close();
    world.assert_gone(1);
    worker.join().unwrap();
    world.assert_settled();
}

#[test]
fn deassign_flushes_what_was_deferred() {
    check(3, deassign_and_worker);
}

#[test]
#[should_panic(expected = "signals and their ends differ")]
fn without_flush_the_worker_outlasts_deassign() {
    check_broken(Mutation::ShutdownNoFlush, 3, deassign_and_worker);
}

/// An assign that finds a pending event, against a deassign of what it has just listed (races 6, 10).
fn assign_and_deassign() {
    let world = Arc::new(World::<1>::new(Hook::Edge));
    world.fd.signal();
    let assign = spawn(&world, |world| {
        world.assign();
    });
    if world.irqfds.deassign(&*world, KEY, GSI) == 1 {
        world.close();
        assign.join().unwrap();
    } else {
        assign.join().unwrap();
        world.settle();
        assert_eq!(world.irqfds.deassign(&*world, KEY, GSI), 1);
    }
    world.work();
    world.assert_gone(1);
    world.assert_settled();
}

#[test]
fn deassign_meets_no_assigner() {
    check(3, assign_and_deassign);
}

#[test]
#[should_panic(expected = "an interrupt after its teardown returned")]
fn an_assigner_that_looks_late_meets_the_shutdown() {
    check_broken(Mutation::AssignPendingLate, 3, assign_and_deassign);
}

/// The VM's release against an assign: it is refused, or shut down with the rest; a poller's pass goes on.
fn assign_and_release() {
    let world = Arc::new(World::<1>::new(Hook::Edge));
    world.fd.signal();
    let assigned = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&assigned);
    let assign = spawn(&world, move |world| match world.irqfds.assign(world, world, plain(GSI)) {
        Ok(_) => {
            count.fetch_add(1, SeqCst);
        }
        Err(error) => assert_eq!(error, AssignError::Released),
    });
    let poller = spawn(&world, |world| world.poll(1));
    world.irqfds.release(&*world);
    world.close();
    assign.join().unwrap();
    poller.join().unwrap();
    world.work();
    world.assert_gone(assigned.load(SeqCst));
    assert_eq!(world.irqfds.assign(&*world, &*world, plain(GSI)), Err(AssignError::Released));
}

#[test]
fn release_waits_for_assigners() {
    check(3, assign_and_release);
}

#[test]
#[should_panic(expected = "shut down once each")]
fn release_that_lets_assigners_in_is_none() {
    check_broken(Mutation::GateCloseOpen, 3, assign_and_release);
}
