//! Groups and containers: their users against one another.

use super::model;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering::SeqCst};
use loom::thread;
use pollvisor_core::group::{GroupError, GroupFile, GroupId, Resolved, Vfio};
use pollvisor_core::prim::Mutation;

/// What a container's driver stands for: an assertion that nobody uses it once it is gone.
#[derive(Clone, Debug)]
struct Iommu(Arc<AtomicBool>);

type Groups = Vfio<Iommu, (), 2, 1, 1>;

fn opened(vfio: &Groups) -> (GroupId, GroupFile) {
    let group = vfio.register(false).unwrap();
    (group, vfio.open_group(group, false).unwrap())
}

/// Race 39: UNSET goes 1 → 0, SET installs another container, UNSET clears it.
fn unset_against_set() {
    let vfio = Arc::new(Groups::new());
    let (group, file) = opened(&vfio);
    let [a, b] = [(); 2].map(|()| vfio.open_container().unwrap());
    vfio.set_container(file, Resolved::Container(a), thread::yield_now).unwrap();
    let setter = {
        let vfio = vfio.clone();
        thread::spawn(move || vfio.set_container(file, Resolved::Container(b), thread::yield_now))
    };
    let unset = vfio.unset_container(file, thread::yield_now);
    let set = setter.join().unwrap();
    assert_eq!(unset.map(|d| d.driver.is_none()), Ok(true));
    assert!(vfio.is_consistent(), "{set:?}");
    match set {
        Ok(()) => assert_eq!(vfio.users(group), Ok(1)),
        Err(error) => assert_eq!((error, vfio.users(group)), (GroupError::ContainerSet, Ok(0))),
    }
}

#[test]
fn group_unset_against_set() {
    model(None, unset_against_set);
}

#[test]
#[should_panic]
fn group_unset_against_set_in_two_steps() {
    model(Some(Mutation::GroupUnsetTwice), unset_against_set);
}

/// Race 43: a file is closed twice while others open the group. Never two at once.
fn close_against_open() {
    let vfio = Arc::new(Groups::new());
    let (group, file) = opened(&vfio);
    let closer = {
        let vfio = vfio.clone();
        thread::spawn(move || vfio.close_group(file, thread::yield_now).is_ok())
    };
    let opener = {
        let vfio = vfio.clone();
        thread::spawn(move || vfio.open_group(group, false).ok())
    };
    let mine = vfio.close_group(file, thread::yield_now).is_ok();
    let later = vfio.open_group(group, false);
    let closed = closer.join().unwrap();
    let earlier = opener.join().unwrap();
    assert!(mine != closed, "one of two closes ends the opening");
    assert!(earlier.is_some() != later.is_ok(), "{earlier:?} {later:?}: two openings at once");
    assert!(vfio.is_consistent());
}

#[test]
fn group_close_against_open() {
    model(None, close_against_open);
}

#[test]
#[should_panic]
fn group_close_against_open_unchecked() {
    model(Some(Mutation::GroupCloseUnchecked), close_against_open);
}

/// Race 37: a call in a container against the detach of its last group.
fn call_against_detach() {
    let vfio = Arc::new(Groups::new());
    let (_, file) = opened(&vfio);
    let container = vfio.open_container().unwrap();
    vfio.set_container(file, Resolved::Container(container), thread::yield_now).unwrap();
    let alive = Arc::new(AtomicBool::new(true));
    vfio.set_iommu(container, Iommu(alive.clone())).unwrap();
    let caller = {
        let vfio = vfio.clone();
        thread::spawn(move || vfio.call(container, |iommu| iommu.0.load(SeqCst)))
    };
    let detached = vfio.unset_container(file, thread::yield_now).unwrap();
    assert!(detached.driver.is_some());
    alive.store(false, SeqCst);
    let used = caller.join().unwrap();
    assert!(matches!(used, Ok(true) | Err(GroupError::NoDriver)), "{used:?}: used after its release");
    assert!(vfio.is_consistent());
    // And the container can be used again.
    vfio.set_container(file, Resolved::Container(container), thread::yield_now).unwrap();
    vfio.set_iommu(container, Iommu(Arc::new(AtomicBool::new(true)))).unwrap();
    vfio.call(container, |_| ()).unwrap();
}

#[test]
fn container_call_against_detach() {
    model(None, call_against_detach);
}

#[test]
#[should_panic]
fn container_call_against_detach_no_drain() {
    model(Some(Mutation::ContainerNoDrain), call_against_detach);
}

/// Race 40 with 44: a group goes while a holder keeps re-opening it; nobody is waited for, and it is freed.
fn unlist_against_open() {
    let vfio = Arc::new(Groups::new());
    let (group, file) = opened(&vfio);
    let holder = {
        let vfio = vfio.clone();
        thread::spawn(move || {
            drop(vfio.close_group(file, thread::yield_now));
            vfio.open_group(group, false)
        })
    };
    let (unlisted, revoked) = vfio.unlist(group, thread::yield_now).unwrap();
    assert!(revoked.driver.is_none());
    unlisted.unregister_notifier(thread::yield_now).free().unwrap();
    match holder.join().unwrap() {
        Ok(leaked) => {
            assert_eq!(vfio.close_group(leaked, thread::yield_now).err(), Some(GroupError::StaleFile));
        }
        Err(error) => assert_eq!(error, GroupError::NoGroup),
    }
    // The slot's next group is not open.
    let (next, _) = opened(&vfio);
    assert!(vfio.is_consistent() && next != group);
}

#[test]
fn group_unlist_against_open() {
    model(None, unlist_against_open);
}

#[test]
#[should_panic]
fn group_unlist_against_open_found() {
    model(Some(Mutation::GroupOpenUnlisted), unlist_against_open);
}
