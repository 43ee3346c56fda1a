extern crate std;

use core::cell::Cell;
use std::rc::Rc;
use std::vec::Vec;

use proptest::prelude::*;

use super::super::*;
use crate::Errno;

use IntxEvent as E;
use IntxState as S;

/// The live states as three independent facts: arrived and not acknowledged, masked by the user, DisINTx.
type Facts = (bool, bool, bool);

fn facts(state: S) -> Option<Facts> {
    Some(match state {
        S::Idle => (false, false, false),
        S::Raised => (true, false, false),
        S::Held => (false, true, false),
        S::RaisedHeld => (true, true, false),
        S::Off => (false, false, true),
        S::OffHeld => (false, true, true),
        _ => return None,
    })
}

fn state(facts: Facts) -> S {
    *S::ALL.iter().find(|&&s| self::facts(s) == Some(facts)).expect("DisINTx drops an arrival")
}

/// What §3 says about a live line, over its facts.
fn live((arrived, held, off): Facts, event: E) -> Option<Facts> {
    let masked = arrived || held || off;
    Some(match event {
        E::Arrive => (arrived || !masked, held, off),
        E::Ack { pending } => (arrived && !held && pending, held, off),
        E::Mask => (arrived, true, off),
        E::Unmask { pending } => (arrived || (held && !off && pending), false, off),
        E::Disable => (false, held, true),
        E::Enable { pending } => (arrived || (off && !held && pending), held, false),
        _ => return None,
    })
}

fn expected(now: S, event: E) -> Option<S> {
    match (now, event) {
        (S::Free, E::Request) => Some(S::Requested),
        (S::Requested, E::Start { off }) => Some(state((false, false, off))),
        (S::Requested, E::Close) => Some(S::Closing { nested: true }),
        (S::Closing { .. }, E::Freed) => Some(S::Freed),
        (S::Freed, E::AckGone) => Some(S::Free),
        (S::Requested | S::Closing { .. }, E::Arrive | E::Ack { .. }) | (S::Freed, E::Ack { .. }) => {
            Some(now)
        }
        _ => {
            let facts = facts(now)?;
            if event == E::Close {
                return Some(S::Closing { nested: facts != (false, false, false) });
            }
            live(facts, event).map(state)
        }
    }
}

#[test]
fn every_pair_of_the_table() {
    for now in S::ALL {
        for event in E::ALL {
            let got = intx_next(now, event);
            let Some(after) = expected(now, event) else {
                assert_eq!(got, Err(IntxIllegal { state: now, event }));
                assert_eq!(got.unwrap_err().errno(), Errno::EINVAL);
                continue;
            };
            let (next, owed) = got.unwrap();
            assert_eq!(next, after, "{now:?} {event:?}");
            // What is owed brings the host's depth and the guest's level to what the state says.
            let mut depth = i32::from(now.depth());
            let mut high = now.is_raised();
            owed.settle(|action| match action {
                Action::Mask => depth += 1,
                Action::Unmask => depth -= 1,
                Action::Raise => high = true,
                Action::Lower => high = false,
            });
            let registered = i32::from(event == E::Request) - if event == E::Freed { depth } else { 0 };
            assert_eq!(depth + registered, i32::from(next.depth()), "{now:?} {event:?}: depth");
            if facts(next).is_some() {
                assert_eq!(high, next.is_raised(), "{now:?} {event:?}: level");
                assert_eq!(next.depth() == 1, next != S::Idle, "depth is `masked`");
            }
            assert!(next.depth() < 2 || matches!(next, S::Closing { .. }), "nested only in teardown");
        }
    }
}

#[test]
fn the_line_is_masked_before_it_is_raised() {
    let (_, owed) = intx_next(S::Idle, E::Arrive).unwrap();
    assert_eq!(owed.actions(), [Action::Mask, Action::Raise]);
    let (_, owed) = intx_next(S::Raised, E::Ack { pending: false }).unwrap();
    assert_eq!(owed.actions(), [Action::Lower, Action::Unmask]);
}

#[derive(Default)]
struct Machine {
    /// The device's own interrupt status.
    asserted: Cell<bool>,
    depth: Cell<i32>,
    high: Cell<bool>,
    raises: Cell<u32>,
}

struct Host(Rc<Machine>);
struct Guest(Rc<Machine>);

impl IntxHost for Host {
    fn mask(&mut self) {
        self.0.depth.set(self.0.depth.get() + 1);
    }
    fn unmask(&mut self) {
        self.0.depth.set(self.0.depth.get() - 1);
        assert!(self.0.depth.get() >= 0);
    }
    fn is_pending(&mut self) -> bool {
        self.0.asserted.get()
    }
}

impl Level for Guest {
    fn raise(&mut self) {
        self.0.high.set(true);
        self.0.raises.set(self.0.raises.get() + 1);
    }
    fn lower(&mut self) {
        self.0.high.set(false);
    }
}

fn line(disintx: bool) -> (Rc<Machine>, IntxLine<Host, Guest>) {
    let machine = Rc::new(Machine::default());
    let line = IntxLine::new(Host(machine.clone()));
    line.request().unwrap();
    machine.depth.set(1);
    assert!(line.set_trigger(Some(Guest(machine.clone()))).is_none());
    line.start(disintx).unwrap();
    (machine, line)
}

#[test]
fn still_pending_at_the_ack_stays_masked_and_is_raised_again() {
    let (m, line) = line(false);
    m.asserted.set(true);
    line.arrive().unwrap();
    assert_eq!((m.depth.get(), m.raises.get()), (1, 1));
    line.ack().unwrap();
    assert_eq!((line.state(), m.depth.get(), m.raises.get()), (S::Raised, 1, 2));
    m.asserted.set(false);
    line.ack().unwrap();
    assert_eq!((line.state(), m.depth.get(), m.high.get()), (S::Idle, 0, false));
}

/// Race 20: the guest masks, acknowledges, quiets the device, unmasks.
#[test]
fn unmask_resamples_instead_of_injecting() {
    let (m, line) = line(false);
    m.asserted.set(true);
    line.arrive().unwrap();
    line.mask().unwrap();
    line.ack().unwrap();
    assert_eq!((line.state(), m.depth.get()), (S::Held, 1), "the user's mask outlives the ack");
    m.asserted.set(false);
    line.unmask().unwrap();
    assert_eq!((m.raises.get(), m.depth.get(), m.high.get()), (1, 0, false));
}

#[test]
fn a_shared_interrupt_is_ours_by_the_status_only() {
    let (m, line) = line(false);
    assert_eq!(line.arrive_shared(), Ok(false));
    assert_eq!((line.state(), m.depth.get()), (S::Idle, 0));
    m.asserted.set(true);
    assert_eq!(line.arrive_shared(), Ok(true));
    assert_eq!(line.arrive_shared(), Ok(false), "masked: somebody else's");
    assert_eq!((line.state(), m.depth.get()), (S::Raised, 1));
}

#[test]
fn a_missing_trigger_is_no_mistake_and_a_late_one_is_raised() {
    let (m, line) = line(false);
    drop(line.set_trigger(None));
    m.asserted.set(true);
    line.arrive().unwrap();
    assert_eq!((m.raises.get(), m.depth.get()), (0, 1));
    assert!(line.set_trigger(Some(Guest(m.clone()))).is_none());
    assert_eq!(m.raises.get(), 1);
}

#[test]
fn a_line_goes_in_order_and_lowers_at_the_end() {
    let (m, line) = line(false);
    line.arrive().unwrap();
    let closing = line.close().unwrap();
    assert_eq!(m.depth.get(), 2, "nested: legal here, because free follows");
    assert!(line.close().is_err() && line.mask().is_err() && line.unmask().is_err());
    line.ack().unwrap();
    assert_eq!(m.depth.get(), 2, "an ack does not unmask a line that goes");
    let freed = closing.free(|| m.depth.set(0));
    assert!(line.arrive().is_err(), "no handler any more");
    line.ack().unwrap();
    assert!(m.high.get());
    let trigger = freed.unregister_ack(|| assert!(m.high.get(), "lowered after the ack notifier is gone"));
    assert!(trigger.is_some());
    assert_eq!((line.state(), m.high.get()), (S::Free, false));
    assert!(line.ack().is_err());
    line.request().unwrap();
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Device(bool),
    Ack,
    Mask,
    Unmask,
    DisIntx(bool),
    Shared,
    Swap(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        any::<bool>().prop_map(Step::Device),
        Just(Step::Ack),
        Just(Step::Mask),
        Just(Step::Unmask),
        any::<bool>().prop_map(Step::DisIntx),
        Just(Step::Shared),
        any::<bool>().prop_map(Step::Swap),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// Whatever happens, the depth is `masked`, and a device that asserts is seen as soon as nobody masks.
    #[test]
    fn random_lives_keep_depth_and_lose_nothing(off: bool, steps in steps()) {
        let (m, line) = line(off);
        let (mut held, mut off, mut fitted) = (false, off, true);
        for step in steps {
            match step {
                Step::Device(asserts) => m.asserted.set(asserts),
                Step::Ack => line.ack().unwrap(),
                Step::Mask => { line.mask().unwrap(); held = true; }
                Step::Unmask => { line.unmask().unwrap(); held = false; }
                Step::DisIntx(set) => { line.set_disintx(set).unwrap(); off = set; }
                Step::Shared => {
                    // A sharing device's interrupt reaches our handler only while the line is open.
                    if m.depth.get() == 0 { prop_assert_eq!(line.arrive_shared(), Ok(m.asserted.get())); }
                }
                Step::Swap(fit) => { drop(line.set_trigger(fit.then(|| Guest(m.clone())))); fitted = fit; }
            }
            // The hardware: an open line with an asserting device interrupts at once.
            if m.depth.get() == 0 && m.asserted.get() {
                line.arrive().unwrap();
            }
            let now = line.state();
            prop_assert_eq!(m.depth.get(), i32::from(now.depth()));
            prop_assert!(m.depth.get() <= 1);
            let (arrived, user, disintx) = facts(now).unwrap();
            prop_assert_eq!((user, disintx), (held, off));
            if m.asserted.get() && !held && !off {
                prop_assert!(arrived, "an asserting device that nobody masks is raised");
            }
            if fitted {
                prop_assert_eq!(m.high.get(), arrived);
            }
        }
        let closing = line.close().unwrap();
        drop(closing.free(|| m.depth.set(0)).unregister_ack(|| ()));
        prop_assert!(!fitted || !m.high.get());
    }
}
