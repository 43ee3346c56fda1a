//! Level-triggered lines.

use super::*;

const HIGH: (Chip, u32, bool, LineSource) = (Chip::Ioapic, 3, true, LineSource::Resample);
const LOW: (Chip, u32, bool, LineSource) = (Chip::Ioapic, 3, false, LineSource::Resample);

fn vm(slots: usize) -> Vm {
    let vm = Vm::new(slots, Irqchip::Kernel);
    vm.routes(&[pin(1, 3)]);
    vm
}

#[test]
fn raised_until_the_ack_and_lowered_once() {
    let vm = vm(3);
    for key in 1..=3 {
        vm.assign_level(key, 1).unwrap();
    }
    vm.signal(2, 2);
    vm.poll();
    vm.work();
    assert_eq!(*vm.pins.borrow(), [HIGH]);
    assert!(vm.irqfds.ack_pin(&vm, &vm, Chip::Ioapic, 3));
    assert_eq!(*vm.pins.borrow(), [HIGH, LOW], "once, not once for each");
    let mut told = vm.resampled.borrow().clone();
    told.sort_unstable();
    assert_eq!(told, [1001, 1002, 1003]);
    assert!(!vm.irqfds.ack_pin(&vm, &vm, Chip::Ioapic, 4), "no GSI drives it");
    assert!(!vm.irqfds.ack(&vm, &vm, Gsi(2)), "nobody resamples it");
    assert_eq!(vm.ledger.get(), Outcome { delivered: 1, merged: 1, dropped: 0, ..Outcome::default() });
}

#[test]
fn the_last_one_out_lowers_the_line() {
    let vm = vm(3);
    for key in 1..=3 {
        vm.assign_level(key, 1).unwrap();
    }
    // From the middle, from the front, and the last one.
    for (key, lowered) in [(2, 0), (1, 0), (3, 1)] {
        assert_eq!(vm.deassign(key, 1), 1);
        assert_eq!(vm.pins.borrow().len(), lowered);
    }
    assert!(!vm.irqfds.ack(&vm, &vm, Gsi(1)));
    vm.assign_level(1, 1).unwrap();
    assert!(vm.irqfds.ack(&vm, &vm, Gsi(1)), "and the next one is the first again");
}

#[test]
fn many_members_are_all_told_also_when_some_leave_meanwhile() {
    let vm = vm(40);
    for key in 0..40 {
        vm.assign_level(key, 1).unwrap();
    }
    vm.deassign(7, 1);
    vm.assign_level(100, 1).unwrap();
    vm.irqfds.ack(&vm, &vm, Gsi(1));
    let mut told = vm.resampled.borrow().clone();
    told.sort_unstable();
    let expected: Vec<_> = (0..40).filter(|key| *key != 7).chain([100]).map(|key| key + 1000).collect();
    assert_eq!(told, expected);
}

/// A host on which the member before the batch's end leaves while the first batch is being signalled.
#[test]
fn a_member_that_leaves_hides_nobody() {
    let vm = vm(40);
    for key in 0..40 {
        vm.assign_level(key, 1).unwrap();
    }
    let resamplers = &vm.irqfds.resamplers;
    let left = Cell::new(false);
    let slots = vm.irqfds.slots();
    struct Leaving<'a>(&'a Vm, &'a dyn Fn());
    impl Host for Leaving<'_> {
        fn bindings(&self) -> &Bindings {
            self.0.bindings()
        }
        fn hook(&self, id: SourceId, key: EventKey) -> Result<(), AssignError> {
            self.0.hook(id, key)
        }
        fn take_pending(&self, _: SourceId, _: EventKey) -> u64 {
            0
        }
        fn unhook(&self, _: SourceId) {}
        fn release(&self, _: SourceId, _: EventKey) {}
        fn signal(&self, key: EventKey) {
            Host::signal(self.0, key);
            (self.1)();
        }
        fn wake_deferred(&self) {}
        fn wake_shutdown(&self) {}
        fn relax(&self) {}
    }
    let leave = || {
        if !left.replace(true) {
            resamplers.leave(slots, 3, Gsi(1), || panic!("not the last one"));
        }
    };
    assert!(resamplers.ack(slots, Gsi(1), &Leaving(&vm, &leave), || ()));
    assert_eq!(vm.resampled.borrow().len(), 40, "each, and the one that left was in the first batch");
}

#[test]
fn a_failed_assign_lowers_what_a_member_left_up() {
    let vm = vm(2);
    let id = vm.assign_level(1, 1).unwrap();
    vm.signal(1, 1);
    vm.poll();
    vm.work();
    // The second member is in when the first one leaves, and then its hook fails.
    vm.irqfds.resamplers.join(vm.irqfds.slots(), 1, Gsi(1), || unreachable!()).unwrap();
    vm.irqfds.deassign_id(&vm, id);
    assert_eq!(*vm.pins.borrow(), [HIGH], "the first one was not the last");
    vm.irqfds.resamplers.leave(vm.irqfds.slots(), 1, Gsi(1), || vm.irqfds.lower(&vm, &vm, Gsi(1)));
    assert_eq!(*vm.pins.borrow(), [HIGH, LOW]);
    vm.no_room.set(true);
    assert_eq!(vm.assign_level(2, 1), Err(AssignError::NoMemory));
    assert_eq!(vm.pins.borrow().len(), 3, "lowered by the assign that failed");
}

#[test]
fn resamplers_run_out() {
    let vm = Vm::new(MAX_RESAMPLERS + 1, Irqchip::Kernel);
    for i in 0..MAX_RESAMPLERS {
        vm.assign_level(i as u64, u32::try_from(i).unwrap()).unwrap();
    }
    let last = MAX_RESAMPLERS as u64;
    assert_eq!(vm.assign_level(last, 9999), Err(AssignError::NoMemory));
    assert_eq!(vm.bindings.len(), MAX_RESAMPLERS);
    assert!(vm.assign_level(last, 0).is_ok(), "one that exists takes more members");
}
