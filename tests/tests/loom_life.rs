//! Models of the lifecycles: mediated devices, groups, INTx lines. Each has a twin with a planted mistake, so
//! that a model which cannot see the mistake fails its own test.
#![cfg(loom)]

use std::sync::atomic::AtomicUsize as StdAtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use loom::thread;
use pollvisor_core::Errno;
use pollvisor_core::group::{GroupError, GroupFile, GroupId, Resolved, Vfio};
use pollvisor_core::line::{IntxHost, IntxLine, IntxState, Level, Slot};
use pollvisor_core::mediated::{Mediated, MediatedError, Operations, ParentKey, Removed, Uuid};
use pollvisor_core::prim::{Mutation, plant};

/// Every interleaving.
fn model(planted: Option<Mutation>, f: impl Fn() + Sync + Send + 'static) {
    bounded(None, planted, f);
}

/// Every interleaving with at most so many preemptions.
fn bounded(preemptions: Option<usize>, planted: Option<Mutation>, f: impl Fn() + Sync + Send + 'static) {
    plant(planted);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(f);
    plant(None);
}

/// Notes what must not happen, to be asserted when all threads are joined: a panic while another thread is inside
/// a gate would unwind that thread too, in which loom aborts. Not one of loom's atomics, so it orders nothing.
#[derive(Debug, Default)]
struct Faults(StdAtomicUsize);

impl Faults {
    fn unless(&self, fine: bool) {
        self.0.fetch_add(usize::from(!fine), Relaxed);
    }

    fn none(&self) -> bool {
        self.0.load(Relaxed) == 0
    }
}

// ---- mediated ----

/// Counts children between `create` and `remove`; a parent that is gone has none and gets no more calls.
#[derive(Debug)]
struct Parent {
    alive: AtomicUsize,
    gone: AtomicBool,
    faults: Faults,
    create: Result<(), Errno>,
    remove: Result<(), Errno>,
}

impl Parent {
    fn new(create: Result<(), Errno>, remove: Result<(), Errno>) -> Arc<Self> {
        let (alive, gone) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Self { alive, gone, faults: Faults::default(), create, remove })
    }
}

#[derive(Clone, Debug)]
struct Ops(Arc<Parent>);

impl Operations for Ops {
    fn create(&self, _: Uuid) -> Result<(), Errno> {
        // Past the parent's end.
        self.0.faults.unless(!self.0.gone.load(SeqCst));
        self.0.create?;
        self.0.alive.fetch_add(1, SeqCst);
        Ok(())
    }

    fn remove(&self, _: Uuid) -> Result<(), Errno> {
        // Past the parent's end; twice.
        self.0.faults.unless(!self.0.gone.load(SeqCst));
        self.0.faults.unless(self.0.alive.fetch_sub(1, SeqCst) > 0);
        self.0.remove
    }
}

type Table = Mediated<Ops, 1, 2>;

fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// Unregisters, and says that the parent is gone from then on.
fn unregister(m: &Table, parent: pollvisor_core::mediated::ParentId, host: &Parent) {
    let gone = m.unregister(parent, thread::yield_now).expect("one unregisters");
    host.gone.store(true, SeqCst);
    // An orphan.
    host.faults.unless(host.alive.load(SeqCst) == 0);
    drop(gone);
}

/// Race 32: a child is created before the sweep, or not at all.
fn create_against_unregister(with_rival: bool) {
    let host = Parent::new(Ok(()), Ok(()));
    let m = Arc::new(Table::new());
    let parent = m.register(ParentKey(1), Some(Ops(host.clone())), 1).unwrap();
    // Another one wants the same instance, and keeps what it gets.
    let rival = with_rival.then(|| {
        let m = m.clone();
        thread::spawn(move || m.create(parent, uuid(2)).err())
    });
    let creator = {
        let m = m.clone();
        thread::spawn(move || match m.create(parent, uuid(1)) {
            // Removing what was just created wins, or the parent has done it.
            Ok(child) => match m.remove(child) {
                Ok(Removed { complaint: None }) | Err(MediatedError::ParentGone | MediatedError::NoChild) => {
                }
                Err(MediatedError::NotActive) => {}
                other => panic!("{other:?}"),
            },
            Err(error) => assert!(matches!(error, MediatedError::ParentGone | MediatedError::NoInstances)),
        })
    };
    unregister(&m, parent, &host);
    creator.join().unwrap();
    let rival = rival.and_then(|rival| rival.join().unwrap());
    assert!(
        matches!(rival, None | Some(MediatedError::ParentGone | MediatedError::NoInstances)),
        "{rival:?}"
    );
    assert!(host.faults.none() && host.alive.load(SeqCst) == 0, "an orphan, or work past the parent's end");
    assert_eq!((m.find(uuid(1)), m.find(uuid(2))), (None, None));
    // The slot, the UUID and the whole capacity are the next parent's.
    let next = Parent::new(Ok(()), Ok(()));
    let parent = m.register(ParentKey(1), Some(Ops(next)), 1).unwrap();
    m.create(parent, uuid(1)).unwrap();
    assert_eq!(m.instances(parent), Ok((1, 1)));
}

#[test]
fn mediated_create_against_unregister() {
    model(None, || create_against_unregister(false));
}

#[test]
fn mediated_two_creates_against_unregister() {
    bounded(Some(3), None, || create_against_unregister(true));
}

#[test]
#[should_panic]
fn mediated_create_against_unregister_open_gate() {
    model(Some(Mutation::GateCloseOpen), || create_against_unregister(false));
}

#[test]
#[should_panic]
fn mediated_create_against_unregister_no_drain() {
    model(Some(Mutation::MediatedNoDrain), || create_against_unregister(false));
}

/// A remover and the sweep meet at one child: one of them tears it down. The other child goes although the
/// first one's removal complains (race 35).
fn remove_against_unregister() {
    let host = Parent::new(Ok(()), Err(Errno::EBUSY));
    let m = Arc::new(Table::new());
    let parent = m.register(ParentKey(1), Some(Ops(host.clone())), 2).unwrap();
    let child = m.create(parent, uuid(1)).unwrap();
    m.create(parent, uuid(2)).unwrap();
    let remover = {
        let m = m.clone();
        thread::spawn(move || match m.remove(child) {
            Ok(Removed { complaint: Some(Errno::EBUSY) }) => {}
            Err(MediatedError::ParentGone | MediatedError::NoChild | MediatedError::NotActive) => {}
            other => panic!("{other:?}"),
        })
    };
    unregister(&m, parent, &host);
    remover.join().unwrap();
    assert!(host.faults.none() && host.alive.load(SeqCst) == 0, "an orphan, or work past the parent's end");
    assert_eq!((m.find(uuid(1)), m.find(uuid(2))), (None, None));
}

#[test]
fn mediated_remove_against_unregister() {
    model(None, remove_against_unregister);
}

#[test]
#[should_panic]
fn mediated_remove_against_unregister_sweep_stops() {
    model(Some(Mutation::MediatedSweepStops), remove_against_unregister);
}

/// Two removers of one child: one winner, one capacity.
fn two_removers() {
    let host = Parent::new(Ok(()), Ok(()));
    let m = Arc::new(Table::new());
    let parent = m.register(ParentKey(1), Some(Ops(host.clone())), 1).unwrap();
    let child = m.create(parent, uuid(1)).unwrap();
    let other = {
        let m = m.clone();
        thread::spawn(move || m.remove(child))
    };
    let mine = m.remove(child);
    let others = other.join().unwrap();
    assert!(host.faults.none(), "removed twice");
    assert!(mine.is_ok() != others.is_ok(), "{mine:?} {others:?}");
    let lost = if mine.is_ok() { others } else { mine };
    assert!(matches!(lost, Err(MediatedError::NotActive | MediatedError::NoChild)), "{lost:?}");
    assert_eq!(m.instances(parent), Ok((0, 1)));
}

#[test]
fn mediated_two_removers() {
    model(None, two_removers);
}

#[test]
#[should_panic]
fn mediated_two_removers_no_election() {
    model(Some(Mutation::MediatedNoElection), two_removers);
}

/// Two creators of one instance, whose parent refuses: both try, nothing is kept.
fn failed_creates() {
    let host = Parent::new(Err(Errno::ENOSPC), Ok(()));
    let m = Arc::new(Table::new());
    let parent = m.register(ParentKey(1), Some(Ops(host)), 1).unwrap();
    let other = {
        let m = m.clone();
        thread::spawn(move || m.create(parent, uuid(2)).unwrap_err())
    };
    let mine = m.create(parent, uuid(1)).unwrap_err();
    for error in [mine, other.join().unwrap()] {
        assert!(matches!(error, MediatedError::CreateFailed(Errno::ENOSPC) | MediatedError::NoInstances));
    }
    assert_eq!(m.instances(parent), Ok((0, 1)));
}

#[test]
fn mediated_failed_creates() {
    model(None, failed_creates);
}

#[test]
#[should_panic]
fn mediated_failed_creates_leak() {
    model(Some(Mutation::MediatedFailedCreateLeaks), failed_creates);
}

// ---- group ----

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

// ---- line ----

/// A host interrupt: its disable depth, and whether its handler and its line may still be touched.
#[derive(Debug)]
struct Wire {
    depth: AtomicUsize,
    closing: AtomicBool,
    gone: AtomicBool,
    high: AtomicBool,
    faults: Faults,
}

#[derive(Debug)]
struct Host(Arc<Wire>);

#[derive(Debug)]
struct Guest(Arc<Wire>);

impl IntxHost for Host {
    fn mask(&mut self) {
        let limit = if self.0.closing.load(SeqCst) { 2 } else { 1 };
        // Nested outside the teardown: a dead line.
        self.0.faults.unless(self.0.depth.fetch_add(1, SeqCst) < limit);
    }
    fn unmask(&mut self) {
        // Unmasked what was not masked.
        self.0.faults.unless(self.0.depth.fetch_sub(1, SeqCst) == 1);
    }
    fn is_pending(&mut self) -> bool {
        false
    }
}

impl Level for Guest {
    fn raise(&mut self) {
        // Raised after the release.
        self.0.faults.unless(!self.0.gone.load(SeqCst));
        self.0.high.store(true, SeqCst);
    }
    fn lower(&mut self) {
        self.0.high.store(false, SeqCst);
    }
}

type Line = IntxLine<Host, Guest>;

/// A requested line: registered disabled, so its depth is 1 from the first moment.
fn requested() -> (Arc<Wire>, Arc<Line>) {
    let wire = Arc::new(Wire {
        depth: AtomicUsize::new(1),
        closing: AtomicBool::new(false),
        gone: AtomicBool::new(false),
        high: AtomicBool::new(false),
        faults: Faults::default(),
    });
    let line = Line::new(Host(wire.clone()));
    line.request().unwrap();
    assert!(line.set_trigger(Some(Guest(wire.clone()))).is_none());
    (wire, Arc::new(line))
}

/// Race 27: interrupt and ack against mask and unmask against the guest's DisINTx. The depth is `masked`, before, between and after.
fn interrupt_against_mask() {
    let (wire, line) = requested();
    line.start(false).unwrap();
    let handler = {
        let line = line.clone();
        thread::spawn(move || {
            line.arrive().unwrap();
            line.ack().unwrap();
        })
    };
    let config = {
        let line = line.clone();
        thread::spawn(move || {
            line.set_disintx(true).unwrap();
            line.set_disintx(false).unwrap();
        })
    };
    line.mask().unwrap();
    line.unmask().unwrap();
    handler.join().unwrap();
    config.join().unwrap();
    // An arrival that was masked away is not ours; one that was not is acknowledged.
    assert!(wire.faults.none() && line.state() == IntxState::Idle);
    assert_eq!((wire.depth.load(SeqCst), wire.high.load(SeqCst)), (0, false), "a dead line");
}

#[test]
fn intx_interrupt_against_mask() {
    model(None, interrupt_against_mask);
}

#[test]
#[should_panic]
fn intx_interrupt_against_mask_owed_unlocked() {
    model(Some(Mutation::IntxOwedUnlocked), interrupt_against_mask);
}

/// Races 26, 27 and 29: an interrupt, the registration and the release, with the ack and the user's mask in
/// between. After the release nothing raises, and the line is low.
fn interrupt_against_release() {
    let (wire, line) = requested();
    let handler = {
        let line = line.clone();
        let wire = wire.clone();
        thread::spawn(move || {
            // As hardware does: only while the interrupt is enabled.
            if wire.depth.load(SeqCst) == 0 {
                let _ = line.arrive();
            }
        })
    };
    let user = {
        let line = line.clone();
        thread::spawn(move || {
            let _ = line.mask();
            let _ = line.ack();
        })
    };
    line.start(false).unwrap();
    wire.closing.store(true, SeqCst);
    let closing = line.close().unwrap();
    wire.faults.unless(wire.depth.load(SeqCst) >= 1);
    // Freeing waits for the handler.
    let freed = closing.free(|| handler.join().unwrap());
    let trigger = freed.unregister_ack(|| user.join().unwrap());
    wire.gone.store(true, SeqCst);
    assert!(wire.faults.none() && trigger.is_some() && !wire.high.load(SeqCst));
    assert_eq!(line.state(), IntxState::Free);
    assert!(line.arrive().is_err() && line.ack().is_err() && line.unmask().is_err());
}

#[test]
fn intx_interrupt_against_release() {
    bounded(Some(4), None, interrupt_against_release);
}

#[test]
#[should_panic]
fn intx_interrupt_against_release_owed_unlocked() {
    bounded(Some(3), Some(Mutation::IntxOwedUnlocked), interrupt_against_release);
}

/// Races 24 and 29: a signal against two that clear the slot. One of them gets the trigger to release.
fn signal_against_release() {
    let slot = Arc::new(Slot::new());
    let alive = Arc::new(AtomicBool::new(true));
    slot.install(alive.clone()).unwrap();
    let signaller = {
        let slot = slot.clone();
        thread::spawn(move || slot.with(|alive| assert!(alive.load(SeqCst), "signalled after its release")))
    };
    let ioctl = {
        let slot = slot.clone();
        thread::spawn(move || slot.take().map(|alive| alive.store(false, SeqCst)).is_some())
    };
    let released = slot.close().map(|alive| alive.store(false, SeqCst)).is_some();
    assert!(released != ioctl.join().unwrap(), "one of them releases");
    signaller.join().unwrap();
    assert!(slot.install(alive).is_err());
}

#[test]
fn slot_signal_against_release() {
    model(None, signal_against_release);
}

#[test]
#[should_panic]
fn slot_signal_against_release_peeked() {
    model(Some(Mutation::SlotPeeked), signal_against_release);
}
