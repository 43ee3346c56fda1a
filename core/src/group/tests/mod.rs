extern crate std;

mod random;

use std::rc::Rc;

use super::*;
use crate::Errno;

type Small = Vfio<Rc<()>, Rc<u8>, 2, 2, 4>;

fn never() {
    panic!("nobody is inside, so nothing is waited for");
}

const NIC: DeviceName = DeviceName(0x0100);
const GPU: DeviceName = DeviceName(0x0200);

/// A group with a device, opened.
fn opened(vfio: &Small) -> (GroupId, GroupFile) {
    let group = vfio.register(false).unwrap();
    vfio.add_device(group, NIC).unwrap();
    (group, vfio.open_group(group, false).unwrap())
}

/// The same, in a container with a driver.
fn attached(vfio: &Small) -> (GroupId, GroupFile, ContainerId, Rc<()>) {
    let (group, file) = opened(vfio);
    let container = vfio.open_container().unwrap();
    vfio.set_container(file, Resolved::Container(container), never).unwrap();
    let driver = Rc::new(());
    vfio.set_iommu(container, driver.clone()).unwrap();
    (group, file, container, driver)
}

#[track_caller]
fn refused<T: core::fmt::Debug>(got: Result<T, GroupError>, why: GroupError, errno: Errno) {
    assert_eq!(got.unwrap_err(), why);
    assert_eq!(why.errno(), errno);
}

#[test]
fn every_pair_of_the_phases() {
    use GroupPhase as P;
    use GroupStep as S;
    let edges = [
        (P::Free, S::Register, P::Live),
        (P::Live, S::Unlist, P::Unlisted),
        (P::Unlisted, S::Unregister, P::Quiet),
        (P::Quiet, S::Free, P::Free),
    ];
    for phase in P::ALL {
        for step in [S::Register, S::Unlist, S::Unregister, S::Free] {
            let edge = edges.iter().find(|(p, s, _)| (*p, *s) == (phase, step));
            assert_eq!(phase.next(step), edge.map(|e| e.2).ok_or(GroupError::NoGroup));
        }
    }
}

#[test]
fn every_event_on_every_holder() {
    use BusEvent as E;
    let mut events = std::vec![E::Add, E::Del, E::Bind, E::Unbind, E::Unbound];
    events.extend(Holder::ALL.map(E::Bound));
    for known in Holder::ALL.map(Some).into_iter().chain([None]) {
        for &event in &events {
            for live in [false, true] {
                let (after, notice) = on_event(known, event, live);
                // Only these say anything.
                let expected = match (known, event) {
                    (Some(_), E::Add) => Notice::AlreadyKnown,
                    (None, E::Add) if live => Notice::AddedWhileLive,
                    (Some(h), E::Bound(Holder::Foreign)) if live && h != Holder::Ours => Notice::Fatal,
                    _ => Notice::Fine,
                };
                assert_eq!(notice, expected, "{known:?} {event:?} live {live}");
                // Ours is neither made nor lost by the bus; the unbound list is left by unbinding or vanishing.
                assert_eq!(after == Some(Holder::Ours), known == Some(Holder::Ours));
                let left =
                    matches!(event, E::Unbound | E::Del) || matches!(event, E::Bound(h) if h != Holder::Ours);
                if known == Some(Holder::Leaving) {
                    assert_eq!(after != known || event == E::Bound(Holder::Leaving), left, "{event:?}");
                }
                assert_eq!(
                    after.is_none(),
                    known.is_none() && event != E::Add || event == E::Del && known != Some(Holder::Ours)
                );
            }
        }
    }
}

#[test]
fn opening_a_group_is_refused_as_specified() {
    let vfio = Small::new();
    let bare = vfio.register(true).unwrap();
    refused(vfio.open_group(bare, false), GroupError::NotPermitted, Errno::EPERM);
    let file = vfio.open_group(bare, true).unwrap();
    refused(vfio.open_group(bare, true), GroupError::GroupOpen, Errno::EBUSY);
    assert_eq!(vfio.close_group(file, never), Ok(Closed { driver: None, kvm: None }));
    refused(vfio.close_group(file, never), GroupError::StaleFile, Errno::EBADF);
    let again = vfio.open_group(bare, true).unwrap();
    refused(vfio.close_group(file, never), GroupError::StaleFile, Errno::EBADF);
    refused(vfio.open_group(bare, true), GroupError::GroupOpen, Errno::EBUSY);
    drop(vfio.close_group(again, never).unwrap());
    let (unlisted, _) = vfio.unlist(bare, never).unwrap();
    refused(vfio.open_group(bare, true), GroupError::NoGroup, Errno::ENODEV);
    let _ = unlisted.unregister_notifier(never).free().unwrap();
    let next = vfio.register(false).unwrap();
    assert_ne!(next, bare);
    refused(vfio.open_group(bare, true), GroupError::NoGroup, Errno::ENODEV);
    vfio.register(false).unwrap();
    refused(vfio.register(false), GroupError::Full, Errno::ENOMEM);
}

#[test]
fn set_and_unset_are_refused_as_specified() {
    let vfio = Small::new();
    let (group, file) = opened(&vfio);
    refused(vfio.unset_container(file, never), GroupError::NoContainer, Errno::EINVAL);
    refused(vfio.set_container(file, Resolved::Bad, never), GroupError::BadFd, Errno::EBADF);
    refused(vfio.set_container(file, Resolved::Other, never), GroupError::NotContainer, Errno::EINVAL);
    let a = vfio.open_container().unwrap();
    let b = vfio.open_container().unwrap();
    refused(vfio.open_container(), GroupError::Full, Errno::ENOMEM);
    assert_eq!(vfio.set_iommu(a, Rc::new(())).unwrap_err().0, GroupError::NoGroups);
    vfio.set_container(file, Resolved::Container(a), never).unwrap();
    refused(vfio.set_container(file, Resolved::Container(b), never), GroupError::ContainerSet, Errno::EINVAL);
    refused(vfio.get_device(file, NIC), GroupError::NotUsable, Errno::EINVAL);
    refused(vfio.call(a, |_| ()), GroupError::NoDriver, Errno::EINVAL);
    vfio.set_iommu(a, Rc::new(())).unwrap();
    assert_eq!(vfio.set_iommu(a, Rc::new(())).unwrap_err().0, GroupError::DriverSet);
    assert_eq!((GroupError::DriverSet.errno(), GroupError::NoGroups.errno()), (Errno::EINVAL, Errno::EINVAL));

    let bare = vfio.register(true).unwrap();
    let bare_file = vfio.open_group(bare, true).unwrap();
    refused(
        vfio.set_container(bare_file, Resolved::Container(a), never),
        GroupError::MixedNoIommu,
        Errno::EPERM,
    );

    refused(vfio.get_device(file, GPU), GroupError::NoDevice, Errno::ENODEV);
    let device = vfio.get_device(file, NIC).unwrap();
    refused(vfio.unset_container(file, never), GroupError::ContainerBusy, Errno::EBUSY);
    assert_eq!(vfio.close_device(device, never), Ok(Detached { driver: None }));
    assert!(vfio.unset_container(file, never).unwrap().driver.is_some());
    assert_eq!(vfio.users(group), Ok(0));
    vfio.close_container(a).unwrap();
    refused(vfio.close_container(a), GroupError::BadFd, Errno::EBADF);
    refused(vfio.set_container(file, Resolved::Container(a), never), GroupError::BadFd, Errno::EBADF);
}

#[test]
fn the_last_user_detaches_and_the_last_group_releases_the_driver() {
    let vfio = Small::new();
    let (group, file, container, driver) = attached(&vfio);
    let other = vfio.register(false).unwrap();
    let other_file = vfio.open_group(other, false).unwrap();
    vfio.set_container(other_file, Resolved::Container(container), never).unwrap();
    let device = vfio.get_device(file, NIC).unwrap();
    vfio.close_container(container).unwrap();
    assert_eq!(vfio.close_group(file, never).unwrap().driver, None);
    assert_eq!(vfio.users(group), Ok(1));
    refused(vfio.open_group(group, false), GroupError::GroupOpen, Errno::EBUSY);
    assert_eq!(vfio.close_device(device, never), Ok(Detached { driver: None }));
    assert!(vfio.is_consistent());
    vfio.open_group(group, false).unwrap();
    assert_eq!(vfio.close_group(other_file, never).unwrap().driver, Some(driver.clone()));
    assert_eq!(Rc::strong_count(&driver), 1, "released, and dropped by the caller");
    assert!(vfio.is_consistent());
    vfio.open_container().unwrap();
    vfio.open_container().unwrap();
}

#[test]
fn a_foreign_driver_makes_a_group_unviable() {
    let vfio = Small::new();
    let (group, file, _, _) = attached(&vfio);
    for holder in Holder::ALL {
        assert_eq!(holder.is_viable(), holder != Holder::Foreign);
    }
    assert_eq!(vfio.notify(group, GPU, BusEvent::Add), Ok(Notice::AddedWhileLive));
    assert_eq!(vfio.notify(group, GPU, BusEvent::Add), Ok(Notice::AlreadyKnown));
    let device = vfio.get_device(file, NIC).unwrap();
    assert_eq!(vfio.notify(group, GPU, BusEvent::Bound(Holder::Bridge)), Ok(Notice::Fine));
    assert!(vfio.is_viable(group));
    assert_eq!(vfio.notify(group, GPU, BusEvent::Bound(Holder::Foreign)), Ok(Notice::Fatal));
    assert!(!vfio.is_viable(group));
    refused(vfio.get_device(file, NIC), GroupError::NotUsable, Errno::EINVAL);
    refused(vfio.add_device(group, GPU), GroupError::DeviceKnown, Errno::EEXIST);
    assert_eq!(vfio.notify(group, GPU, BusEvent::Unbound), Ok(Notice::Fine));
    vfio.add_device(group, GPU).unwrap();
    drop(vfio.get_device(file, GPU).unwrap());
    drop(device);
    let other = vfio.register(false).unwrap();
    refused(vfio.notify(other, GPU, BusEvent::Add), GroupError::DeviceKnown, Errno::EEXIST);
}

#[test]
fn an_unplugged_device_is_revoked_not_waited_for() {
    let vfio = Small::new();
    let (group, file, _, driver) = attached(&vfio);
    let leaked = vfio.get_device(file, NIC).unwrap();
    let second = vfio.get_device(file, NIC).unwrap();
    assert_eq!(vfio.users(group), Ok(3));
    let revoked = vfio.remove_device(group, NIC, never).unwrap();
    assert_eq!(revoked, Revoked { files: 2, driver: None, kvm: None });
    assert_eq!((vfio.users(group), vfio.is_current(&leaked)), (Ok(1), false));
    refused(vfio.close_device(leaked, never), GroupError::NoDevice, Errno::ENODEV);
    refused(vfio.remove_device(group, NIC, never), GroupError::NoDevice, Errno::ENODEV);
    assert!(vfio.is_viable(group), "on the unbound list until its driver has unbound");
    let _ = vfio.notify(group, NIC, BusEvent::Unbound).unwrap();
    vfio.add_device(group, NIC).unwrap();
    refused(vfio.close_device(second, never), GroupError::NoDevice, Errno::ENODEV);
    assert!(vfio.is_consistent());
    assert_eq!(vfio.unset_container(file, never).unwrap().driver, Some(driver));
}

#[test]
fn a_group_goes_in_order_with_everything_asserted() {
    let vfio = Small::new();
    let (group, file, container, driver) = attached(&vfio);
    let vm = Rc::new(7);
    assert_eq!(vfio.set_kvm(file, Some(vm.clone())), Ok(None));
    let leaked = vfio.get_device(file, NIC).unwrap();
    let (unlisted, revoked) = vfio.unlist(group, never).unwrap();
    assert_eq!(revoked, Revoked { files: 1, driver: Some(driver), kvm: Some(vm) });
    assert_eq!(vfio.unlist(group, never).map(|_| ()), Err(GroupError::NoGroup));
    refused(vfio.get_device(file, NIC), GroupError::StaleFile, Errno::EBADF);
    assert_eq!(vfio.set_kvm(file, None), Err((GroupError::StaleFile, None)));
    refused(vfio.add_device(group, GPU), GroupError::NoGroup, Errno::ENODEV);
    assert_eq!(vfio.notify(group, GPU, BusEvent::Add), Ok(Notice::Fine), "still registered");
    let quiet = unlisted.unregister_notifier(never);
    refused(vfio.notify(group, GPU, BusEvent::Del), GroupError::NoNotifier, Errno::ENODEV);
    let (why, quiet) = quiet.free().unwrap_err();
    assert_eq!((why, why.errno()), (NotIdle { users: 0, devices: 1, notifier: false }, Errno::EBUSY));
    let _ = vfio.remove_device(group, NIC, never).unwrap();
    assert_eq!(quiet.free().unwrap(), Freed { unbound: 1 });
    refused(vfio.close_device(leaked, never), GroupError::NoDevice, Errno::ENODEV);
    refused(vfio.users(group), GroupError::NoGroup, Errno::ENODEV);
    vfio.close_container(container).unwrap();
    // The slots serve their next owners, and the old handles none of them.
    let next = vfio.register(false).unwrap();
    vfio.add_device(next, NIC).unwrap();
    assert_eq!(vfio.notify(next, NIC, BusEvent::Bind), Ok(Notice::Fine));
    refused(vfio.notify(group, NIC, BusEvent::Del), GroupError::NoNotifier, Errno::ENODEV);
    assert!(vfio.is_consistent());
}

#[test]
fn a_device_file_of_its_own_excludes_the_group() {
    let vfio = Small::new();
    let (group, file) = opened(&vfio);
    refused(vfio.open_cdev(group, GPU), GroupError::NoDevice, Errno::ENODEV);
    let cdev = vfio.open_cdev(group, NIC).unwrap();
    refused(vfio.check_bound(cdev), GroupError::NotBound, Errno::EINVAL);
    refused(vfio.bind(cdev), GroupError::GroupOpen, Errno::EBUSY);
    drop(vfio.close_group(file, never).unwrap());
    vfio.bind(cdev).unwrap();
    refused(vfio.bind(cdev), GroupError::BoundTwice, Errno::EINVAL);
    vfio.check_bound(cdev).unwrap();
    let second = vfio.open_cdev(group, NIC).unwrap();
    refused(vfio.bind(second), GroupError::BoundTwice, Errno::EINVAL);
    refused(vfio.check_bound(second), GroupError::NotBound, Errno::EINVAL);
    assert_eq!(vfio.close_cdev(second), Ok(false), "does not unbind the other file");
    refused(vfio.open_group(group, false), GroupError::DeviceBound, Errno::EBUSY);
    assert_eq!(vfio.close_cdev(cdev), Ok(true));
    let file = vfio.open_group(group, false).unwrap();
    refused(vfio.bind(second), GroupError::GroupOpen, Errno::EBUSY);
    drop(vfio.close_group(file, never).unwrap());
    vfio.bind(second).unwrap();
    let _ = vfio.remove_device(group, NIC, never).unwrap();
    refused(vfio.check_bound(second), GroupError::NoDevice, Errno::ENODEV);
    refused(vfio.close_cdev(second), GroupError::NoDevice, Errno::ENODEV);
    vfio.open_group(group, false).unwrap();
}

/// A call is inside the container's gate: whoever detaches waits for it, and no new one gets in.
#[test]
fn a_detach_waits_for_calls() {
    let vfio = Small::new();
    let (_, file, container, _) = attached(&vfio);
    let mut inside = Some(vfio.calls[container.index as usize].try_enter().unwrap());
    let waited = core::cell::Cell::new(false);
    let detached = vfio.unset_container(file, || {
        waited.set(true);
        refused(vfio.call(container, |_| ()), GroupError::NoDriver, Errno::EINVAL);
        assert_eq!(vfio.set_iommu(container, Rc::new(())).unwrap_err().0, GroupError::NoGroups);
        inside.take();
    });
    assert!(waited.get() && detached.unwrap().driver.is_some());
    vfio.set_container(file, Resolved::Container(container), never).unwrap();
}
