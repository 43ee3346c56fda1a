extern crate std;

use core::cell::{Cell, RefCell};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

fn uuid(n: u8) -> Uuid {
    Uuid::from_u128(u128::from(n))
}

fn never() {
    panic!("nobody is inside, so nothing is waited for");
}

/// Counts the children that its work left alive, and fails when told to.
#[derive(Debug, Default)]
struct Host {
    alive: RefCell<Vec<Uuid>>,
    refuse: Cell<Option<Errno>>,
    complain: Cell<Option<Errno>>,
}

impl Operations for Host {
    fn create(&self, uuid: Uuid) -> Result<(), Errno> {
        match self.refuse.get() {
            Some(errno) => Err(errno),
            None => {
                assert!(!self.alive.borrow().contains(&uuid), "{uuid} created twice");
                self.alive.borrow_mut().push(uuid);
                Ok(())
            }
        }
    }

    fn remove(&self, uuid: Uuid) -> Result<(), Errno> {
        let at = self.alive.borrow().iter().position(|&u| u == uuid).expect("removed once, after its create");
        self.alive.borrow_mut().swap_remove(at);
        self.complain.get().map_or(Ok(()), Err)
    }
}

type Small<'a> = Mediated<&'a Host, 2, 4>;

#[test]
fn every_pair_of_the_table() {
    use ChildEvent as E;
    use ChildState as S;
    let edges = [
        (S::Free, E::Reserve, S::Creating),
        (S::Creating, E::Created, S::Active),
        (S::Creating, E::Failed, S::Free),
        (S::Active, E::Claim, S::Removing),
        (S::Removing, E::TornDown, S::Dead),
        (S::Dead, E::LastPut, S::Free),
    ];
    for state in S::ALL {
        for event in E::ALL {
            let edge = edges.iter().find(|(s, e, _)| (*s, *e) == (state, event));
            assert_eq!(next(state, event), edge.map(|e| e.2).ok_or(Illegal { state, event }));
        }
    }
}

#[test]
fn uuid_text_is_strict() {
    let good = "c1d4dca4-27Ee-11F1-8b53-00155d0123af";
    let parsed: Uuid = good.parse().unwrap();
    assert_eq!(parsed.as_u128(), 0xc1d4_dca4_27ee_11f1_8b53_0015_5d01_23af);
    assert_eq!(std::format!("{parsed}"), good.to_ascii_lowercase());
    let bad = [
        "",
        "c1d4dca4-27ee-11f1-8b53-00155d0123a",
        "c1d4dca4-27ee-11f1-8b53-00155d0123af\n",
        "c1d4dca427ee11f18b5300155d0123afaaaa",
        "c1d4dca4-27ee-11f18-b53-00155d0123af",
        "g1d4dca4-27ee-11f1-8b53-00155d0123af",
        "+1d4dca4-27ee-11f1-8b53-00155d0123af",
        "{c1d4dca-27ee-11f1-8b53-00155d0123a}",
    ];
    for text in bad {
        assert_eq!(text.parse::<Uuid>(), Err(BadUuid), "{text:?}");
    }
    assert_eq!(MediatedError::from(BadUuid).errno(), Errno::EINVAL);
}

proptest! {
    #[test]
    fn uuid_prints_what_it_parses(value: u128) {
        let uuid = Uuid::from_u128(value);
        prop_assert_eq!(std::format!("{uuid}").parse(), Ok(uuid));
    }

    #[test]
    fn uuid_survives_any_bytes(bytes: Vec<u8>) {
        if let Ok(uuid) = Uuid::parse(&bytes) {
            prop_assert_eq!(std::format!("{uuid}").into_bytes(), bytes.to_ascii_lowercase());
        }
    }
}

#[test]
fn register_is_refused_as_specified() {
    let host = Host::default();
    let m = Small::new();
    assert_eq!(m.register(ParentKey(1), None, 1).unwrap_err().errno(), Errno::EINVAL);
    let first = m.register(ParentKey(1), Some(&host), 1).unwrap();
    assert_eq!(m.register(ParentKey(1), Some(&host), 1).unwrap_err().errno(), Errno::EEXIST);
    m.register(ParentKey(2), Some(&host), 1).unwrap();
    assert_eq!(m.register(ParentKey(3), Some(&host), 1), Err(MediatedError::ParentsFull));
    let _ = m.unregister(first, never).unwrap();
    assert_eq!(m.unregister(first, never).unwrap_err().errno(), Errno::ENODEV);
    let again = m.register(ParentKey(1), Some(&host), 1).unwrap();
    assert_eq!(
        m.create(first, uuid(1)),
        Err(MediatedError::ParentGone),
        "a stale handle misses the next owner"
    );
    assert_eq!(m.instances(again), Ok((0, 1)));
}

#[test]
fn capacity_and_uuid_come_back_with_the_last_reference() {
    let host = Host::default();
    let m = Small::new();
    let parent = m.register(ParentKey(1), Some(&host), 1).unwrap();
    let child = m.create(parent, uuid(1)).unwrap();
    assert_eq!(m.create(parent, uuid(1)).unwrap_err().errno(), Errno::EEXIST);
    assert_eq!(m.create(parent, uuid(2)).unwrap_err().errno(), Errno::EUSERS);
    let held = m.hold(child).unwrap();
    assert_eq!(m.remove(child), Ok(Removed { complaint: None }));
    assert!(host.alive.borrow().is_empty());
    assert_eq!(m.state(child), Some(ChildState::Dead));
    assert_eq!(m.create(parent, uuid(1)).unwrap_err().errno(), Errno::EEXIST);
    assert_eq!(m.create(parent, uuid(2)).unwrap_err().errno(), Errno::EUSERS);
    assert_eq!(m.remove(child).unwrap_err().errno(), Errno::ENODEV);
    assert_eq!(m.hold(child).unwrap_err(), MediatedError::NoChild);
    drop(held);
    assert_eq!(m.instances(parent), Ok((0, 1)));
    let next = m.create(parent, uuid(1)).unwrap();
    assert_ne!(next, child);
    assert_eq!(m.remove(child), Err(MediatedError::NoChild), "a stale handle misses the next owner");
    assert_eq!(m.state(next), Some(ChildState::Active));
}

#[test]
fn a_failed_create_gives_everything_back() {
    let host = Host::default();
    let m = Small::new();
    let parent = m.register(ParentKey(1), Some(&host), 1).unwrap();
    host.refuse.set(Some(Errno::ENOSPC));
    assert_eq!(m.create(parent, uuid(1)).unwrap_err().errno(), Errno::ENOSPC);
    assert_eq!(m.instances(parent), Ok((0, 1)));
    assert_eq!(m.find(uuid(1)), None);
    host.refuse.set(None);
    m.create(parent, uuid(1)).unwrap();
}

#[test]
fn the_sweep_goes_on_when_a_removal_complains() {
    let host = Host::default();
    let m = Small::new();
    let parent = m.register(ParentKey(1), Some(&host), 9).unwrap();
    for n in 0..4 {
        m.create(parent, uuid(n)).unwrap();
    }
    assert_eq!(m.create(parent, uuid(4)), Err(MediatedError::ChildrenFull));
    assert_eq!(m.instances(parent), Ok((4, 9)), "an exhausted table takes no instance");
    host.complain.set(Some(Errno::EBUSY));
    let gone = m.unregister(parent, never).unwrap();
    assert_eq!((gone.removed, gone.complaints), (4, 4));
    assert!(host.alive.borrow().is_empty());
}

type Seen = (Option<ChildState>, Result<Removed, MediatedError>);

/// Calls back into the table from the middle of its parent's work.
struct Curious<'a> {
    of: RefCell<Option<&'a Mediated<&'a Self, 1, 2>>>,
    seen: RefCell<Vec<Seen>>,
    panics: Cell<bool>,
}

impl Curious<'_> {
    fn look(&self, uuid: Uuid) {
        let of = self.of.borrow().expect("set before use");
        let child = of.find(uuid).expect("known while its parent works on it");
        assert_eq!(of.hold(child).err(), Some(MediatedError::NotActive));
        self.seen.borrow_mut().push((of.state(child), of.remove(child)));
        assert!(!self.panics.get(), "as asked");
    }
}

impl Operations for Curious<'_> {
    fn create(&self, uuid: Uuid) -> Result<(), Errno> {
        self.look(uuid);
        Ok(())
    }

    fn remove(&self, uuid: Uuid) -> Result<(), Errno> {
        self.look(uuid);
        Ok(())
    }
}

#[test]
fn half_created_and_half_removed_say_try_again() {
    let host = Curious { of: RefCell::new(None), seen: RefCell::default(), panics: Cell::new(false) };
    let m = Mediated::new();
    let parent = m.register(ParentKey(1), Some(&host), 2).unwrap();
    host.of.replace(Some(&m));
    let child = m.create(parent, uuid(1)).unwrap();
    let _ = m.remove(child).unwrap();
    let again = |state| (Some(state), Err(MediatedError::NotActive));
    assert_eq!(*host.seen.borrow(), [again(ChildState::Creating), again(ChildState::Removing)]);
    assert_eq!(MediatedError::NotActive.errno(), Errno::EAGAIN);

    host.panics.set(true);
    let create = std::panic::AssertUnwindSafe(|| m.create(parent, uuid(2)));
    assert!(std::panic::catch_unwind(create).is_err());
    assert_eq!(m.instances(parent), Ok((0, 2)), "a panicking create gives its instance back");
}

#[derive(Clone, Debug)]
enum Step {
    Register(u8, u32),
    Unregister(usize),
    Create(usize, u8, bool),
    Remove(usize, bool),
    Hold(usize),
    Release(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..3u8, 0..3u32).prop_map(|(k, c)| Step::Register(k, c)),
        (0..8usize).prop_map(Step::Unregister),
        (0..8usize, 0..5u8, any::<bool>()).prop_map(|(p, u, ok)| Step::Create(p, u, ok)),
        (0..8usize, 0..5u8, Just(true)).prop_map(|(p, u, ok)| Step::Create(p, u, ok)),
        (0..16usize, any::<bool>()).prop_map(|(c, ok)| Step::Remove(c, ok)),
        (0..16usize).prop_map(Step::Hold),
        (0..8usize).prop_map(Step::Release),
    ];
    proptest::collection::vec(step, 1..80)
}

/// The reference: plain lists, no states, no generations.
#[derive(Default)]
struct Model {
    /// Handle, key, capacity, whether it is still registered.
    parents: Vec<(ParentId, u8, u32, bool)>,
    children: Vec<ModelChild>,
}

struct ModelChild {
    id: ChildId,
    parent: usize,
    uuid: u8,
    alive: bool,
    held: u32,
}

impl ModelChild {
    fn occupies(&self) -> bool {
        self.alive || self.held > 0
    }
}

impl Model {
    fn used(&self, parent: usize) -> u32 {
        u32::try_from(self.children.iter().filter(|c| c.parent == parent && c.occupies()).count()).unwrap()
    }

    fn create(&self, parent: usize, uuid: u8, works: bool) -> Result<(), MediatedError> {
        let &(_, _, capacity, live) = &self.parents[parent];
        if !live {
            Err(MediatedError::ParentGone)
        } else if self.children.iter().any(|c| c.occupies() && c.uuid == uuid) {
            Err(MediatedError::ChildExists)
        } else if self.used(parent) >= capacity {
            Err(MediatedError::NoInstances)
        } else if self.children.iter().filter(|c| c.occupies()).count() >= 4 {
            Err(MediatedError::ChildrenFull)
        } else if !works {
            Err(MediatedError::CreateFailed(Errno::ENOSPC))
        } else {
            Ok(())
        }
    }
}

proptest! {
    #[test]
    fn random_calls_agree_with_the_reference(steps in steps()) {
        let host = Host::default();
        let m = Small::new();
        let mut model = Model::default();
        let mut held = Vec::new();
        for step in steps {
            match step {
                Step::Register(key, capacity) => {
                    let live = || model.parents.iter().filter(|p| p.3);
                    let expected = if live().any(|p| p.1 == key) {
                        Err(MediatedError::ParentExists)
                    } else if live().count() >= 2 {
                        Err(MediatedError::ParentsFull)
                    } else {
                        Ok(())
                    };
                    let got = m.register(ParentKey(u64::from(key)), Some(&host), capacity);
                    prop_assert_eq!(got.map(|_| ()), expected);
                    if let Ok(id) = got {
                        model.parents.push((id, key, capacity, true));
                    }
                }
                Step::Unregister(which) if which < model.parents.len() => {
                    let got = m.unregister(model.parents[which].0, never).map(|u| u.removed);
                    let mut children = model.children.iter_mut();
                    let expected = if model.parents[which].3 {
                        model.parents[which].3 = false;
                        let mine = children.by_ref().filter(|c| c.parent == which && c.alive);
                        Ok(mine.map(|c| c.alive = false).count())
                    } else {
                        Err(MediatedError::ParentGone)
                    };
                    prop_assert_eq!(got, expected);
                }
                Step::Create(which, n, works) if which < model.parents.len() => {
                    host.refuse.set((!works).then_some(Errno::ENOSPC));
                    let expected = model.create(which, n, works);
                    let got = m.create(model.parents[which].0, uuid(n));
                    prop_assert_eq!(got.map(|_| ()), expected);
                    if let Ok(id) = got {
                        model.children.push(ModelChild { id, parent: which, uuid: n, alive: true, held: 0 });
                    }
                }
                Step::Remove(which, quiet) if which < model.children.len() => {
                    host.complain.set((!quiet).then_some(Errno::EBUSY));
                    let child = &mut model.children[which];
                    let expected = if child.alive {
                        child.alive = false;
                        Ok(Removed { complaint: host.complain.get() })
                    } else {
                        Err(MediatedError::NoChild)
                    };
                    prop_assert_eq!(m.remove(child.id), expected);
                }
                Step::Hold(which) if which < model.children.len() => {
                    let child = &mut model.children[which];
                    let got = m.hold(child.id);
                    prop_assert_eq!(got.is_ok(), child.alive);
                    if let Ok(reference) = got {
                        child.held += 1;
                        held.push((which, reference));
                    }
                }
                Step::Release(which) if which < held.len() => {
                    let (child, reference) = held.swap_remove(which);
                    drop(reference);
                    model.children[child].held -= 1;
                }
                _ => {}
            }
            for (index, &(id, _, capacity, live)) in model.parents.iter().enumerate() {
                let expected = if live { Ok((model.used(index), capacity)) } else { Err(MediatedError::ParentGone) };
                prop_assert_eq!(m.instances(id), expected);
            }
            let alive = model.children.iter().filter(|c| c.alive).count();
            prop_assert_eq!(host.alive.borrow().len(), alive, "no orphan, nothing removed twice");
        }
    }
}
