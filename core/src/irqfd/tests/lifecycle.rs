//! Assign, deliver, take away.

use super::*;
use crate::ids::Generation;

#[test]
fn every_refusal_and_its_number() {
    let vm = Vm::new(2, Irqchip::Kernel);
    assert_eq!(vm.irqfds.check_flags(FLAG_DEASSIGN | FLAG_RESAMPLE), Ok(()));
    assert_eq!(vm.irqfds.check_flags(4), Err(AssignError::UnknownFlags(4)));
    assert_eq!(Vm::new(1, Irqchip::None).assign(1, 1), Err(AssignError::NoIrqchip));
    assert_eq!(Vm::new(1, Irqchip::None).irqfds.check_flags(FLAG_DEASSIGN), Ok(()), "as the kernel does");
    assert_eq!(Vm::new(1, Irqchip::Split).assign_level(1, 1), Err(AssignError::ResampleOnSplit));
    assert!(Vm::new(1, Irqchip::Split).assign(1, 1).is_ok());

    let beside = Vm::beside(&vm.bindings, 2, Irqchip::Kernel);
    vm.assign(1, 1).unwrap();
    assert_eq!(vm.assign(1, 2), Err(AssignError::Busy), "the same VM");
    assert_eq!(beside.assign(1, 1), Err(AssignError::Busy), "another VM (race 11)");
    vm.assign(2, 1).unwrap();
    assert_eq!(vm.assign(3, 1), Err(AssignError::NoMemory), "no slot");
    assert_eq!(vm.bindings.len(), 2, "what failed is not bound");
    assert!(beside.assign(3, 1).is_ok());
    vm.irqfds.release(&vm);
    assert_eq!(vm.assign(1, 1), Err(AssignError::Released));
    assert_eq!(vm.bindings.len(), 1, "the other VM's");

    use crate::Errno;
    for (error, errno) in [
        (AssignError::UnknownFlags(4), Errno::EINVAL),
        (AssignError::NotEventfd, Errno::EINVAL),
        (AssignError::NoIrqchip, Errno::EINVAL),
        (AssignError::ResampleOnSplit, Errno::EINVAL),
        (AssignError::BadFd, Errno::EBADF),
        (AssignError::Busy, Errno::EBUSY),
        (AssignError::NoMemory, Errno::ENOMEM),
        (AssignError::Fault, Errno::EFAULT),
        (AssignError::Released, Errno::ENODEV),
    ] {
        assert_eq!(error.errno(), errno);
        assert!(!std::format!("{error}").is_empty());
    }
}

#[test]
fn the_register_of_bindings_fills_up() {
    let bindings = Bindings::new();
    for key in 0..MAX_BINDINGS as u64 {
        bindings.claim(EventKey(key)).unwrap();
    }
    assert_eq!(bindings.claim(EventKey(u64::MAX)), Err(AssignError::NoMemory));
    assert_eq!(bindings.claim(EventKey(0)), Err(AssignError::Busy), "known even when full");
    assert!(bindings.release(EventKey(0)) && !bindings.release(EventKey(0)));
    assert_eq!(bindings.claim(EventKey(u64::MAX)), Ok(()));
}

#[test]
fn a_failed_hook_leaves_nothing() {
    let vm = Vm::new(1, Irqchip::Kernel);
    vm.no_room.set(true);
    for _ in 0..3 {
        assert_eq!(vm.assign_level(1, 1), Err(AssignError::NoMemory));
    }
    assert!(vm.bindings.is_empty() && vm.released.borrow().is_empty());
    assert!(!vm.irqfds.ack(&vm, &vm, Gsi(1)), "its resampler is gone");
    vm.no_room.set(false);
    let id = vm.assign(1, 1).unwrap();
    assert_eq!((id.index, id.generation.0), (0, 3), "a generation for each owner");
}

#[test]
fn stale_handles_touch_nobody() {
    let vm = Vm::new(1, Irqchip::Kernel);
    vm.routes(&[msi(1, 0x40)]);
    let old = vm.assign(1, 1).unwrap();
    assert!(vm.irqfds.deassign_id(&vm, old));
    let new = vm.assign(2, 1).unwrap();
    assert_eq!(old.index, new.index);
    assert_eq!(vm.irqfds.event(old), Delivery::Stale);
    assert_eq!(vm.irqfds.state(old), State::Free);
    assert!(!vm.irqfds.hang_up(&vm, old));
    assert!(!vm.irqfds.deassign_id(&vm, old));
    assert!(!vm.irqfds.hang_up_from_poller(old));
    assert_eq!(vm.shut_down(), 0);
    assert_eq!(vm.irqfds.state(new), State::Listed);
    let nowhere = SourceId { index: 9, ..old };
    assert_eq!(vm.irqfds.event(nowhere), Delivery::Stale);
    assert!(!vm.irqfds.hang_up(&vm, nowhere) && !vm.irqfds.hang_up_from_poller(nowhere));

    // A source that breaks its promise and reports for the old handle: the new owner's signals stay in it.
    vm.fds.borrow_mut().get_mut(&2).unwrap().watched = Some(old);
    vm.signal(2, 3);
    vm.hang_up(2);
    vm.poll();
    assert_eq!((vm.counter(2), vm.ledger.get()), (3, Outcome::default()));
    assert_eq!((vm.shut_down(), vm.irqfds.state(new)), (0, State::Listed));
}

#[test]
fn deassign_without_a_match_succeeds() {
    let vm = Vm::new(2, Irqchip::Kernel);
    assert_eq!(vm.deassign(1, 1), 0);
    vm.assign(1, 1).unwrap();
    assert_eq!(vm.deassign(1, 2), 0, "the eventfd, but not the GSI");
    assert_eq!(vm.deassign(2, 1), 0, "the GSI, but not the eventfd");
    assert_eq!(vm.deassign(1, 1), 1);
    assert_eq!(*vm.released.borrow(), [1]);
}

#[test]
fn one_signal_one_interrupt_and_many_are_merged() {
    let vm = Vm::new(1, Irqchip::Kernel);
    vm.routes(&[msi(1, 0x40)]);
    vm.assign(1, 1).unwrap();
    vm.signal(1, 1);
    vm.poll();
    assert_eq!((vm.vector(0x40), vm.ledger.get()), (1, Outcome { delivered: 1, ..Outcome::default() }));
    vm.signal(1, 5);
    vm.poll();
    assert_eq!(vm.vector(0x40), 3, "race 46: once more for those that may have come late");
    assert_eq!(vm.ledger.get(), Outcome { delivered: 3, merged: 3, dropped: 0, ..Outcome::default() });
    vm.blocked.set(true);
    vm.signal(1, 2);
    vm.poll();
    assert_eq!(vm.ledger.get().dropped, 2);
}

#[test]
fn pins_are_deferred_and_pulsed() {
    let vm = Vm::new(1, Irqchip::Kernel);
    vm.routes(&[pin(1, 5), RawRoute::pin(Gsi(1), Chip::PicMaster, 5)]);
    let id = vm.assign(1, 1).unwrap();
    assert_eq!(vm.irqfds.event(id), Delivery::Defer);
    vm.signal(1, 4);
    vm.poll();
    assert!(vm.pins.borrow().is_empty() && !vm.irqfds.nothing_deferred());
    assert_eq!((vm.work(), vm.work()), (1, 0));
    let edge = |chip, level| (chip, 5, level, LineSource::Edge);
    let both = |level| [edge(Chip::PicMaster, level), edge(Chip::Ioapic, level)];
    assert_eq!(*vm.pins.borrow(), [both(true), both(false)].concat());
    assert_eq!(vm.ledger.get(), Outcome { delivered: 1, merged: 3, dropped: 0, ..Outcome::default() });
}

#[test]
fn an_unrouted_gsi_drops_and_counts() {
    let vm = Vm::new(2, Irqchip::Kernel);
    for (key, gsi) in [(1, 1), (2, 4_000_000)] {
        vm.assign(key, gsi).unwrap();
        vm.signal(key, 2);
    }
    vm.poll();
    vm.work();
    assert_eq!(vm.ledger.get(), Outcome { dropped: 4, ..Outcome::default() });
}

#[test]
fn listed_irqfds_follow_the_routes() {
    let vm = Vm::new(2, Irqchip::Kernel);
    let a = vm.assign(1, 1).unwrap();
    let b = vm.assign(2, 2).unwrap();
    assert_eq!(vm.irqfds.event(a), Delivery::Defer, "no route yet");
    vm.routes(&[msi(1, 0x40), msi(2, 0x41)]);
    assert_eq!(vm.irqfds.event(a), Delivery::Msi(Msi::fixed(0, 0x40)));
    vm.routes(&[pin(1, 3), msi(2, 0x51)]);
    assert_eq!(vm.irqfds.event(a), Delivery::Defer, "the type is compared too (race 15)");
    assert_eq!(vm.irqfds.event(b), Delivery::Msi(Msi::fixed(0, 0x51)));
    assert!(vm.irqfds.set_routes(&vm, 0, &[msi(2, 0x61), msi(2, 0x62)]).is_err());
    assert_eq!(vm.irqfds.event(b), Delivery::Msi(Msi::fixed(0, 0x51)), "all or nothing");
    assert_eq!(vm.irqfds.lookup(&vm, RouteTable::len), 2);
    vm.deassign(2, 2);
    vm.routes(&[msi(2, 0x71)]);
    let b = vm.assign(2, 2).unwrap();
    assert_eq!(vm.irqfds.event(b), Delivery::Msi(Msi::fixed(0, 0x71)), "not what the slot held before");
}

/// D1, races 9, 12, 13 and 16: nothing blanks the copy on the way out; it is out of use because the irqfd is inactive.
#[test]
fn deactivation_keeps_the_copy_and_stops_its_use() {
    let vm = Vm::new(1, Irqchip::Kernel);
    vm.routes(&[msi(1, 0x40)]);
    let id = vm.assign(1, 1).unwrap();
    assert!(vm.irqfds.hang_up(&vm, id), "off the list, its shutdown not begun");
    vm.routes(&[msi(1, 0x41)]);
    let slot = &vm.irqfds.slots()[0];
    assert_eq!(slot.route.read(), Ok(pack(Some(Msi::fixed(0, 0x40)))));
    assert_eq!(vm.irqfds.event(id), Delivery::Defer, "and the worker goes by the new table");
    vm.signal(1, 1);
    vm.poll();
    assert_eq!(vm.shut_down(), 1);
    assert_eq!((vm.vector(0x40), vm.vector(0x41)), (0, 1));
    assert_eq!(slot.route.read(), Ok(pack(Some(Msi::fixed(0, 0x40)))), "freed, and still not blanked");
}

/// Race 15: a message of all zeros differs from no message by its type alone.
#[test]
fn a_route_that_changes_its_type_only_is_copied() {
    let vm = Vm::new(1, Irqchip::Kernel);
    let id = vm.assign(1, 1).unwrap();
    let zeros = RawRoute::msi(Gsi(1), Msi::default());
    for _ in 0..2 {
        vm.routes(&[zeros]);
        assert_eq!(vm.irqfds.event(id), Delivery::Msi(Msi::default()));
        vm.routes(&[]);
        assert_eq!(vm.irqfds.event(id), Delivery::Defer);
    }
}

#[test]
fn what_was_deferred_is_delivered_before_deassign_returns() {
    let vm = Vm::new(1, Irqchip::Kernel);
    vm.routes(&[pin(1, 5)]);
    vm.assign(1, 1).unwrap();
    vm.signal(1, 2);
    vm.poll();
    assert_eq!(vm.deassign(1, 1), 1);
    assert_eq!(vm.ledger.get(), Outcome { delivered: 1, merged: 1, dropped: 0, ..Outcome::default() });
    vm.signal(1, 3);
    vm.poll();
    assert_eq!(vm.counter(1), 3, "and what comes later stays in the source");
    vm.assign(1, 1).unwrap();
    vm.poll();
    vm.work();
    assert_eq!(vm.ledger.get().signals(), 5, "where the next owner finds it");
}

#[test]
fn a_hang_up_takes_its_signals_along() {
    let vm = Vm::new(1, Irqchip::Kernel);
    vm.routes(&[msi(1, 0x40)]);
    vm.assign(1, 1).unwrap();
    vm.hang_up(1);
    vm.poll();
    assert_eq!(vm.vector(0x40), 0, "to hang up is no interrupt");
    assert_eq!((vm.shut_down(), vm.shut_down()), (1, 0));
    assert_eq!(*vm.released.borrow(), [1]);
    let id = vm.assign(1, 1).unwrap();
    vm.signal(1, 2);
    vm.poll();
    assert!(vm.irqfds.hang_up(&vm, id), "reported by the poller, but not looked at yet");
    assert!(!vm.irqfds.hang_up(&vm, id) && vm.wakes.get().1 == 1);
    assert_eq!(vm.irqfds.release(&vm), 0, "it waits for the queue all the same");
    assert_eq!((vm.vector(0x40), vm.ledger.get().signals()), (1, 2));
    assert_eq!((vm.shut_down(), vm.released.borrow().len()), (0, 2));
}

#[test]
fn generations_wrap() {
    let slot = Slot::new();
    slot.start_at(Generation(u32::MAX));
    slot.step(Event::Allocate).unwrap();
    let id = slot.id(0);
    assert_eq!(id.generation, Generation(u32::MAX));
    slot.list_fresh().unwrap();
    assert!(slot.is_active(id.generation) && slot.word() != Slot::active_word(id.generation));
    slot.settled();
    assert_eq!(slot.word(), Slot::active_word(id.generation));
    for event in [Event::Deactivate, Event::Unhook, Event::Drain, Event::Free] {
        slot.step(event).unwrap();
    }
    assert_eq!((slot.generation(), slot.state()), (Generation(0), State::Free));
}

#[test]
fn a_slot_that_is_asked_for_is_given_if_it_is_free() {
    let vm = Vm::new(4, Irqchip::Split);
    let take = |key, slot| vm.assign_at(key, slot).unwrap();
    let ids = [take(1, 2), take(2, 0), take(3, 2), take(4, 3)];
    assert_eq!(ids.map(|id| id.index), [2, 0, 1, 3], "slot 2 was taken, so the third got the only other one");
    assert_eq!(vm.assign_at(5, 0), Err(AssignError::NoMemory));
    for key in 1..=4 {
        vm.deassign(key, 5);
    }
    vm.shut_down();
    let again = [take(4, 3), take(3, 1), take(2, 0), take(1, 2)];
    assert_eq!(again.map(|id| id.index), [3, 1, 0, 2]);
    assert_eq!(vm.assign_at(6, u32::MAX), Err(AssignError::NoMemory));
}
