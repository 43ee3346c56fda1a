//! A level-triggered line whose members come and go.

use crate::spawn;
use pollvisor_core::ids::{EventKey, Gsi, SourceId};
use pollvisor_core::irqfd::Assign;
use pollvisor_core::prim::Mutation;
use pollvisor_core::route::{Chip, RawRoute};
use pollvisor_tests::model::{Hook, World, check, check_broken};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

const LINE: Gsi = Gsi(3);

fn world() -> Arc<World<2>> {
    let world = World::new(Hook::Level);
    world.irqfds.set_routes(&world, 0, &[RawRoute::pin(LINE, Chip::Ioapic, 3)]).unwrap();
    Arc::new(world)
}

/// A member, which raises the line.
fn join_and_raise(world: &World<2>, key: u64) -> SourceId {
    let request = Assign { key: EventKey(key), gsi: LINE, resample: Some(EventKey(key)), slot: None };
    let id = world.irqfds.assign(world, world, request).unwrap();
    world.irqfds.defer(id, 1);
    world.work();
    id
}

/// The last member leaves while the next one joins and raises the line: it stays up.
fn leave_and_join() {
    let world = world();
    let id = join_and_raise(&world, 100);
    let leave = spawn(&world, move |world| {
        assert!(world.irqfds.deassign_id(world, id));
    });
    join_and_raise(&world, 101);
    leave.join().unwrap();
    assert!(world.ledger.level.load(SeqCst), "the next member's level was lost");
}

#[test]
fn the_last_one_out_lowers_before_the_next_one_is_in() {
    check(3, leave_and_join);
}

#[test]
#[should_panic(expected = "the next member's level was lost")]
fn lowered_late_it_hits_the_next_one() {
    check_broken(Mutation::ResampleLowerLate, 3, leave_and_join);
}

/// An ack while a member joins and raises the line: it stays up, or the member is told.
fn ack_and_join() {
    let world = world();
    join_and_raise(&world, 100);
    let ack = spawn(&world, |world| {
        assert!(world.irqfds.ack(world, world, LINE));
    });
    join_and_raise(&world, 101);
    ack.join().unwrap();
    let told = world.ledger.resampled.lock().unwrap().clone();
    assert!(told.contains(&EventKey(100)));
    let up = world.ledger.level.load(SeqCst);
    assert!(up || told.contains(&EventKey(101)), "lowered, and nobody was told");
}

#[test]
fn an_ack_misses_no_member() {
    check(3, ack_and_join);
}

#[test]
#[should_panic(expected = "lowered, and nobody was told")]
fn an_ack_that_looks_first_misses_one() {
    check_broken(Mutation::AckMembersFirst, 3, ack_and_join);
}

/// An ack while the line's GSI moves to another pin: the old pin is not touched once `set_routes` returned.
fn ack_and_update() {
    let world = world();
    join_and_raise(&world, 100);
    let ack = spawn(&world, |world| {
        assert!(world.irqfds.ack(world, world, LINE));
    });
    world.irqfds.set_routes(&*world, 0, &[RawRoute::pin(LINE, Chip::Ioapic, 4)]).unwrap();
    world.ledger.forbidden_pin.store(3, SeqCst);
    ack.join().unwrap();
}

#[test]
fn an_update_outlasts_every_ack() {
    check(3, ack_and_update);
}

#[test]
#[should_panic(expected = "a line moved by a route replaced before")]
fn lowered_after_the_lookup_an_ack_outlasts_an_update() {
    check_broken(Mutation::LowerAfterLookup, 3, ack_and_update);
}
