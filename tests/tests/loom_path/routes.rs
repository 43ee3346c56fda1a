//! Routes replaced under everything that reads them (D2, races 13 and 14).

use crate::spawn;
use pollvisor_core::ids::Gsi;
use pollvisor_core::prim::Mutation;
use pollvisor_tests::model::{GSI, Hook, World, check, check_broken, plain, route};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

/// An update against a pass: once it has returned, no message of the old table.
fn update_and_pass() {
    let world = Arc::new(World::<1>::new(Hook::Level));
    world.assign();
    world.fd.signal();
    let poller = spawn(&world, |world| world.poll(2));
    world.irqfds.set_routes(&*world, 0, &route(GSI, 0x41)).unwrap();
    world.forbid(0x40);
    world.fd.signal();
    poller.join().unwrap();
    world.settle();
}

#[test]
fn an_update_outlasts_every_pass() {
    check(3, update_and_pass);
}

#[test]
#[should_panic(expected = "an interrupt by a route replaced before")]
fn without_grace_a_pass_outlasts_an_update() {
    check_broken(Mutation::RouteNoGrace, 3, update_and_pass);
}

/// Two updates while an event reads the latch: its message is whole, whichever it is, or the worker resolves it.
fn updates_and_event() {
    let world = Arc::new(World::<1>::new(Hook::Level));
    world.assign();
    world.fd.signal();
    let poller = spawn(&world, |world| world.poll(1));
    for vector in [0x41, 0x42] {
        world.irqfds.set_routes(&*world, 0, &route(GSI, vector)).unwrap();
    }
    poller.join().unwrap();
    world.settle();
}

#[test]
fn an_event_reads_a_whole_route() {
    check(3, updates_and_event);
}

#[test]
#[should_panic(expected = "a torn message")]
fn an_event_without_recheck_reads_half_a_route() {
    check_broken(Mutation::LatchNoRecheck, 3, updates_and_event);
}

/// An update against the deferred worker.
fn update_and_worker() {
    let world = Arc::new(World::<1>::new(Hook::Level).with_worker_thread());
    let id = world.assign();
    world.fd.signal();
    world.drain_and_defer(id);
    let worker = spawn(&world, |world| world.work());
    world.irqfds.set_routes(&*world, 0, &route(GSI, 0x41)).unwrap();
    world.forbid(0x40);
    worker.join().unwrap();
    world.settle();
}

#[test]
fn an_update_outlasts_the_deferred_worker() {
    check(3, update_and_worker);
}

#[test]
#[should_panic(expected = "an interrupt by a route replaced before")]
fn without_grace_the_worker_outlasts_an_update() {
    check_broken(Mutation::RouteNoGrace, 3, update_and_worker);
}

/// An update against an assign: whichever is first, the irqfd ends up with the new route.
fn update_and_assign() {
    let world = Arc::new(World::<1>::new(Hook::Level));
    let assign = spawn(&world, |world| {
        world.assign();
    });
    world.irqfds.set_routes(&*world, 0, &route(GSI, 0x41)).unwrap();
    world.forbid(0x40);
    assign.join().unwrap();
    world.fd.signal();
    world.settle();
    assert_eq!(world.ledger.vector.load(SeqCst), 0x41);
}

#[test]
fn an_assign_copies_the_new_route() {
    check(3, update_and_assign);
}

#[test]
#[should_panic(expected = "an interrupt by a route replaced before")]
fn an_assign_that_copies_outside_the_lock_keeps_the_old_one() {
    check_broken(Mutation::AssignCopyUnlocked, 3, update_and_assign);
}

const OTHER: Gsi = Gsi(2);

/// An update against an irqfd that goes and another one that gets its slot: nothing of the first one's route.
fn update_and_reuse() {
    let world = Arc::new(World::<1>::new(Hook::Level));
    let both = |vector: u8| [route(GSI, vector)[0], route(OTHER, vector + 0x10)[0]];
    world.irqfds.set_routes(&*world, 0, &both(0x40)).unwrap();
    let id = world.assign();
    let update = spawn(&world, move |world| {
        world.irqfds.set_routes(world, 0, &both(0x41)).unwrap();
    });
    world.irqfds.deassign_id(&*world, id);
    world.irqfds.assign(&*world, &*world, plain(OTHER)).unwrap();
    update.join().unwrap();
    world.fd.signal();
    world.settle();
    assert_eq!(world.ledger.vector.load(SeqCst), 0x51, "the other irqfd's route");
}

#[test]
fn an_update_leaves_the_next_owner_alone() {
    check(3, update_and_reuse);
}

#[test]
#[should_panic(expected = "the other irqfd's route")]
fn an_update_outside_the_lock_does_not() {
    check_broken(Mutation::RouteRefreshUnlocked, 3, update_and_reuse);
}
