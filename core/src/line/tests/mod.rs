extern crate std;

mod intx;
mod set_irqs;
mod vectors;

use std::vec::Vec;

use super::*;
use crate::Errno;

#[test]
fn every_pair_of_the_irq_type() {
    for state in [IrqType::None, IrqType::Is(Kind::Intx), IrqType::Is(Kind::Msi), IrqType::Is(Kind::Msix)] {
        for kind in Kind::ALL {
            let (enable, disable) = (TypeEvent::Enable(kind), TypeEvent::Disable(kind));
            let enabled = (state == IrqType::None).then_some(IrqType::Is(kind));
            assert_eq!(state.next(enable), enabled.ok_or(WrongType { state, event: enable }));
            let disabled = (state == IrqType::Is(kind)).then_some(IrqType::None);
            assert_eq!(state.next(disable), disabled.ok_or(WrongType { state, event: disable }));
            assert_eq!(kind.is_level(), kind.index() == 0);
        }
    }
    let wrong = WrongType { state: IrqType::None, event: TypeEvent::Disable(Kind::Msi) };
    assert_eq!(wrong.errno(), Errno::EINVAL);
}

#[test]
fn the_gate_lets_one_in_and_nobody_after_the_release() {
    let gate = IrqGate::new(IrqType::None);
    let mut inside = gate.enter(|| unreachable!("nobody is inside")).unwrap();
    *inside = inside.next(TypeEvent::Enable(Kind::Intx)).unwrap();
    // Somebody who waits gets in when the first leaves, and reads what it wrote: not a type read before.
    let mut inside = Some(inside);
    let second = gate.enter(|| drop(inside.take())).unwrap();
    assert_eq!(*second, IrqType::Is(Kind::Intx));
    assert_eq!(second.release(), IrqType::Is(Kind::Intx));
    assert_eq!(gate.enter(|| unreachable!("refused at once")).err(), Some(DeviceReleased));
    assert_eq!(DeviceReleased.errno(), Errno::ENODEV);
}

#[test]
fn a_gate_waiter_is_refused_when_the_one_inside_releases() {
    let gate = IrqGate::new(7);
    let mut inside = gate.enter(|| ()).ok();
    let waiter = gate.enter(|| assert_eq!(inside.take().map(InGate::release), Some(7)));
    assert_eq!(waiter.err(), Some(DeviceReleased));
}

#[test]
fn a_slot_is_cleared_once_and_by_the_right_one() {
    let slot = Slot::new();
    assert_eq!(slot.with(|&n: &i32| n), None);
    let first = slot.install(1).unwrap();
    assert_eq!(slot.install(2), Err((SlotError::Occupied, 2)));
    assert_eq!(slot.with(|&n| n), Some(1));
    assert_eq!(slot.take(), Some(1));
    assert_eq!(slot.take(), None, "close and ioctl both clear; one releases");
    let second = slot.install(2).unwrap();
    assert_eq!(slot.hang_up(first), None, "a late hang-up misses the next occupant");
    assert_eq!(slot.hang_up(second), Some(2));
    assert_eq!(slot.hang_up(second), None);
    assert_eq!(slot.replace(Some(3)), Ok(None));
    assert_eq!(slot.replace(Some(4)), Ok(Some(3)));
    assert_eq!(slot.close(), Some(4));
    assert_eq!(slot.close(), None);
    assert_eq!(slot.install(5), Err((SlotError::Closed, 5)));
    assert_eq!(slot.replace(Some(5)), Err((SlotError::Closed, Some(5))));
    let errnos: Vec<_> = [SlotError::Occupied, SlotError::Closed].map(SlotError::errno).into();
    assert_eq!(errnos, [Errno::EBUSY, Errno::ENODEV]);
}
