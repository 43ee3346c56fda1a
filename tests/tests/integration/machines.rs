//! Every machine of the core: its lists are complete, every (state, event) pair is tried, what is refused changes
//! nothing, and nobody is stuck anywhere.

use crate::harness::tests;
use crate::need::Need;
use pollvisor_core::group::{BusEvent, GroupError, GroupPhase, GroupStep, Holder, on_event};
use pollvisor_core::irqfd::{Event, Illegal, State};
use pollvisor_core::line::{
    DeviceReleased, InGate, IntxEvent, IntxState, IrqGate, IrqType, Kind, Slot, SlotError, TypeEvent,
    intx_next,
};
use pollvisor_core::mediated::{self, ChildEvent, ChildState};
use pollvisor_core::sync::Gate;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

tests! {
    shared [Need::Sources] => every_transition_table_has_its_test;
    shared [] => irqfd, intx, irq_type, group_phase, child, every_event_of_the_bus, every_call_of_a_slot,
        every_call_of_a_gate, every_call_of_an_irq_gate;
}

/// The tests that try every pair: beside the machine where only its own module can make its states, else here. Each
/// transition table in the source has to be in this list.
const PAIRS: [(&str, &str, &str); 11] = [
    ("core/src/irqfd/state.rs", "core/src/irqfd/tests.rs", "every_state_and_event"),
    ("core/src/line/intx.rs", "core/src/line/tests/intx.rs", "every_pair_of_the_table"),
    ("core/src/line/irq_type.rs", "core/src/line/tests/mod.rs", "every_pair_of_the_irq_type"),
    ("core/src/line/slot.rs", "tests/tests/integration/machines.rs", "every_call_of_a_slot"),
    ("core/src/group/tables.rs", "core/src/group/tests/mod.rs", "every_pair_of_the_phases"),
    ("core/src/group/viable.rs", "tests/tests/integration/machines.rs", "every_event_of_the_bus"),
    ("core/src/mediated/child.rs", "core/src/mediated/tests.rs", "every_pair_of_the_table"),
    ("core/src/msix/mod.rs", "core/src/msix/tests.rs", "every_state_and_event"),
    ("core/src/msix/msi.rs", "core/src/msix/msi_tests.rs", "every_state_and_event"),
    ("core/src/ioapic/mod.rs", "core/src/ioapic/against_model.rs", "every_state_and_event"),
    ("core/src/sync/gate.rs", "tests/tests/integration/machines.rs", "every_call_of_a_gate"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

fn sources(under: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(under).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

fn every_transition_table_has_its_test() {
    for (machine, tests, name) in PAIRS {
        assert!(root().join(machine).exists(), "{machine}");
        let source = std::fs::read_to_string(root().join(tests)).expect(tests);
        let is_here = root().join(tests).ends_with(file!());
        let there = source.contains(&format!("#[test]\nfn {name}()"))
            || is_here && crate::names().contains(&format!("machines::{name}"));
        assert!(there, "{tests} has no {name}");
    }
    let mut files = Vec::new();
    sources(&root().join("core/src"), &mut files);
    for file in files {
        let source = std::fs::read_to_string(&file).expect("a source");
        let name = file.strip_prefix(root()).expect("below the root").to_str().expect("UTF-8").to_owned();
        let is_table =
            source.contains("/// The transition table.") || source.contains("pub const fn on_event");
        assert!(!is_table || PAIRS.iter().any(|(machine, ..)| *machine == name), "{name} is in no test");
    }
}

/// `ordinal` is a match without a wildcard, so a new variant does not compile before it has a number, and does not
/// pass before it is in the list.
fn complete<T: Copy + Debug>(all: &[T], count: usize, ordinal: impl Fn(T) -> usize) {
    let seen: BTreeSet<usize> = all.iter().map(|one| ordinal(*one)).collect();
    assert!(seen.into_iter().eq(0..count) && all.len() == count, "{all:?} is not all of {count}");
}

/// Every pair is tried: each event happens somewhere, each state is reached from the first and the first from it.
fn walk<S: Copy + PartialEq + Debug, E: Copy + Debug>(
    states: &[S],
    events: &[E],
    next: impl Fn(S, E) -> Option<S>,
) {
    let edges: Vec<(S, S)> = (states.iter())
        .flat_map(|state| events.iter().filter_map(|event| Some((*state, next(*state, *event)?))))
        .collect();
    for event in events {
        assert!(states.iter().any(|state| next(*state, *event).is_some()), "{event:?} never happens");
    }
    let reach = |forth: bool| {
        let mut known = vec![states[0]];
        while let Some(more) = edges
            .iter()
            .map(|(from, to)| if forth { (*from, *to) } else { (*to, *from) })
            .find(|(from, to)| known.contains(from) && !known.contains(to))
        {
            known.push(more.1);
        }
        known.len()
    };
    assert_eq!((reach(true), reach(false)), (states.len(), states.len()), "unreachable, or no way out");
}

fn irqfd() {
    complete(&State::ALL, 6, |state| match state {
        State::Free => 0,
        State::Allocated => 1,
        State::Listed => 2,
        State::Deactivated => 3,
        State::Unhooked => 4,
        State::Drained => 5,
    });
    complete(&Event::ALL, 7, |event| match event {
        Event::Allocate => 0,
        Event::Abandon => 1,
        Event::List => 2,
        Event::Deactivate => 3,
        Event::Unhook => 4,
        Event::Drain => 5,
        Event::Free => 6,
    });
    walk(&State::ALL, &Event::ALL, |state, event| match state.next(event) {
        Ok(next) => Some(next),
        Err(refused) => {
            assert_eq!(refused, Illegal { state, event });
            None
        }
    });
}

fn intx() {
    complete(&IntxState::ALL, 11, |state| match state {
        IntxState::Free => 0,
        IntxState::Requested => 1,
        IntxState::Idle => 2,
        IntxState::Raised => 3,
        IntxState::Held => 4,
        IntxState::RaisedHeld => 5,
        IntxState::Off => 6,
        IntxState::OffHeld => 7,
        IntxState::Closing { nested } => 8 + usize::from(nested),
        IntxState::Freed => 10,
    });
    complete(&IntxEvent::ALL, 15, |event| match event {
        IntxEvent::Request => 0,
        IntxEvent::Start { off } => 1 + usize::from(off),
        IntxEvent::Arrive => 3,
        IntxEvent::Ack { pending } => 4 + usize::from(pending),
        IntxEvent::Mask => 6,
        IntxEvent::Unmask { pending } => 7 + usize::from(pending),
        IntxEvent::Disable => 9,
        IntxEvent::Enable { pending } => 10 + usize::from(pending),
        IntxEvent::Close => 12,
        IntxEvent::Freed => 13,
        IntxEvent::AckGone => 14,
    });
    walk(&IntxState::ALL, &IntxEvent::ALL, |state, event| intx_next(state, event).ok().map(|(next, _)| next));
}

fn irq_type() {
    complete(&Kind::ALL, 3, |kind| match kind {
        Kind::Intx => 0,
        Kind::Msi => 1,
        Kind::Msix => 2,
    });
    let states: Vec<IrqType> = [IrqType::None].into_iter().chain(Kind::ALL.map(IrqType::Is)).collect();
    complete(&states, 4, |state| match state {
        IrqType::None => 0,
        IrqType::Is(kind) => 1 + kind.index() as usize,
    });
    let events: Vec<TypeEvent> =
        Kind::ALL.into_iter().flat_map(|kind| [TypeEvent::Enable(kind), TypeEvent::Disable(kind)]).collect();
    walk(&states, &events, |state, event| state.next(event).ok());
}

fn group_phase() {
    complete(&GroupPhase::ALL, 4, |phase| match phase {
        GroupPhase::Free => 0,
        GroupPhase::Live => 1,
        GroupPhase::Unlisted => 2,
        GroupPhase::Quiet => 3,
    });
    let steps = [GroupStep::Register, GroupStep::Unlist, GroupStep::Unregister, GroupStep::Free];
    complete(&steps, 4, |step| match step {
        GroupStep::Register => 0,
        GroupStep::Unlist => 1,
        GroupStep::Unregister => 2,
        GroupStep::Free => 3,
    });
    walk(&GroupPhase::ALL, &steps, |phase, step| {
        phase.next(step).inspect_err(|refused| assert_eq!(*refused, GroupError::NoGroup)).ok()
    });
}

fn child() {
    complete(&ChildState::ALL, 5, |state| match state {
        ChildState::Free => 0,
        ChildState::Creating => 1,
        ChildState::Active => 2,
        ChildState::Removing => 3,
        ChildState::Dead => 4,
    });
    complete(&ChildEvent::ALL, 6, |event| match event {
        ChildEvent::Reserve => 0,
        ChildEvent::Created => 1,
        ChildEvent::Failed => 2,
        ChildEvent::Claim => 3,
        ChildEvent::TornDown => 4,
        ChildEvent::LastPut => 5,
    });
    walk(&ChildState::ALL, &ChildEvent::ALL, |state, event| mediated::next(state, event).ok());
}

/// Who holds a device afterwards: every holder, event and use of the group, against the diagram.
fn every_event_of_the_bus() {
    complete(&Holder::ALL, 6, |holder| match holder {
        Holder::Driverless => 0,
        Holder::Leaving => 1,
        Holder::Stub => 2,
        Holder::Bridge => 3,
        Holder::Ours => 4,
        Holder::Foreign => 5,
    });
    let others = [BusEvent::Add, BusEvent::Del, BusEvent::Bind, BusEvent::Unbind, BusEvent::Unbound];
    let events: Vec<BusEvent> = Holder::ALL.map(BusEvent::Bound).into_iter().chain(others).collect();
    complete(&events, 11, |event| match event {
        BusEvent::Add => 0,
        BusEvent::Del => 1,
        BusEvent::Bind => 2,
        BusEvent::Unbind => 3,
        BusEvent::Unbound => 4,
        BusEvent::Bound(holder) => 5 + Holder::ALL.iter().position(|one| *one == holder).expect("listed"),
    });
    for known in [None].into_iter().chain(Holder::ALL.map(Some)) {
        for event in &events {
            let after = match (known, *event) {
                (None, BusEvent::Add) => Some(Holder::Driverless),
                (None | Some(Holder::Ours), _) => known,
                (Some(_), BusEvent::Del) => None,
                (Some(_), BusEvent::Unbound) => Some(Holder::Driverless),
                (Some(_), BusEvent::Bound(by)) if by != Holder::Ours => Some(by),
                (Some(_), _) => known,
            };
            for live in [false, true] {
                assert_eq!(on_event(known, *event, live).0, after, "{known:?} {event:?} live {live}");
            }
        }
    }
}

/// Empty, occupied, closed: with every call.
fn every_call_of_a_slot() {
    let empty = Slot::<u8>::new;
    let occupied = || {
        let slot = Slot::new();
        let who = slot.install(1).expect("empty");
        (slot, who)
    };
    let closed = || {
        let (slot, who) = occupied();
        assert_eq!(slot.close(), Some(1));
        (slot, who)
    };
    let look = |slot: &Slot<u8>| slot.with(|value| *value);
    assert!(empty().install(2).is_ok());
    assert_eq!((empty().replace(Some(2)), empty().replace(None)), (Ok(None), Ok(None)));
    assert_eq!((look(&empty()), empty().take(), empty().close()), (None, None, None));

    assert_eq!(occupied().0.install(2), Err((SlotError::Occupied, 2)));
    assert_eq!((occupied().0.replace(Some(2)), occupied().0.replace(None)), (Ok(Some(1)), Ok(Some(1))));
    assert_eq!((look(&occupied().0), occupied().0.take()), (Some(1), Some(1)));
    let (slot, who) = occupied();
    assert_eq!((slot.hang_up(who), slot.hang_up(who), look(&slot)), (Some(1), None, None));
    let (slot, late) = occupied();
    assert_eq!((slot.replace(Some(2)), slot.hang_up(late), look(&slot)), (Ok(Some(1)), None, Some(2)));

    assert_eq!(closed().0.install(2), Err((SlotError::Closed, 2)));
    assert_eq!(closed().0.replace(Some(2)), Err((SlotError::Closed, Some(2))));
    assert_eq!(closed().0.replace(None), Err((SlotError::Closed, None)));
    assert_eq!((look(&closed().0), closed().0.take(), closed().0.close()), (None, None, None));
    let (slot, who) = closed();
    assert_eq!(slot.hang_up(who), None);
}

type Call = fn(&Gate) -> bool;

/// Open or closed, with somebody inside or nobody: with every call.
fn every_call_of_a_gate() {
    for (closed, inside) in [(false, false), (false, true), (true, false), (true, true)] {
        let made = |gate: &Gate| assert!(!closed || gate.close());
        let calls: [(&str, Call, bool, bool); 4] = [
            ("enter", |gate| gate.try_enter().is_some(), !closed, closed),
            ("close", Gate::close, !closed, true),
            (
                "open",
                |gate| {
                    gate.open();
                    true
                },
                true,
                false,
            ),
            ("look", Gate::is_closed, closed, closed),
        ];
        for (name, call, answer, closed_after) in calls {
            let gate = Gate::new();
            let guest = inside.then(|| gate.try_enter().expect("open"));
            made(&gate);
            assert_eq!((call(&gate), gate.is_closed()), (answer, closed_after), "{name} {closed} {inside}");
            // Whoever is inside stays counted until he leaves.
            let mut guest = guest;
            let mut waited = 0;
            gate.drain(|| {
                waited += 1;
                guest = None;
            });
            assert_eq!(waited, i32::from(inside), "{name}");
        }
    }
}

/// Somebody inside, nobody, released: with every call.
fn every_call_of_an_irq_gate() {
    let gate = IrqGate::new(1);
    for _ in 0..2 {
        let mut inside = Some(gate.enter(|| unreachable!("nobody is inside")).expect("not released"));
        let mut waited = 0;
        drop(gate.enter(|| {
            waited += 1;
            inside = None;
        }));
        assert_eq!(waited, 1);
    }
    let inside = gate.enter(|| unreachable!("nobody is inside")).expect("not released");
    assert_eq!(InGate::release(inside), 1);
    assert_eq!(gate.enter(|| unreachable!("refused at once")).err(), Some(DeviceReleased));
}
