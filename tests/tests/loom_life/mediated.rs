//! Parents and children: create and remove against unregister.

use super::{Faults, bounded, model};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use loom::thread;
use pollvisor_core::Errno;
use pollvisor_core::mediated::{Mediated, MediatedError, Operations, ParentKey, Removed, Uuid};
use pollvisor_core::prim::Mutation;

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
