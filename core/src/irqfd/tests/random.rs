//! Random lives against a model that is as plain as it can be: one thread, maps, and an exact ledger.

use super::*;
use proptest::prelude::*;

const SLOTS: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Assign { key: u64, gsi: u32, level: bool },
    Deassign { key: u64, gsi: u32 },
    Routes(usize),
    Signal { key: u64, times: u64 },
    HangUp(u64),
    Poll,
    Work,
}

#[derive(Clone, Copy, PartialEq)]
enum Route {
    None,
    Msi(u8),
    Pin,
}

/// GSIs 0 to 2 in each of the tables; 3 is never routed.
const TABLES: [[Route; 4]; 4] = [
    [Route::None; 4],
    [Route::Msi(0x40), Route::Msi(0x41), Route::Pin, Route::None],
    [Route::Pin, Route::Msi(0x51), Route::Msi(0x52), Route::None],
    [Route::Msi(0x40), Route::None, Route::Pin, Route::None],
];

fn table(number: usize) -> Vec<RawRoute> {
    let entry = |(gsi, route): (usize, &Route)| {
        let gsi = u32::try_from(gsi).unwrap();
        match route {
            Route::None => None,
            Route::Msi(vector) => Some(msi(gsi, *vector)),
            Route::Pin => Some(pin(gsi, gsi)),
        }
    };
    TABLES[number].iter().enumerate().filter_map(entry).collect()
}

fn op() -> impl Strategy<Value = Op> {
    let (key, gsi) = (0u64..5, 0u32..4);
    prop_oneof![
        3 => (key.clone(), gsi.clone(), any::<bool>())
            .prop_map(|(key, gsi, level)| Op::Assign { key, gsi, level }),
        2 => (key.clone(), gsi).prop_map(|(key, gsi)| Op::Deassign { key, gsi }),
        1 => (0..TABLES.len()).prop_map(Op::Routes),
        5 => (key.clone(), 1u64..4).prop_map(|(key, times)| Op::Signal { key, times }),
        1 => key.prop_map(Op::HangUp),
        3 => Just(Op::Poll),
        2 => Just(Op::Work),
    ]
}

#[derive(Default)]
struct Model {
    routes: usize,
    /// Who is bound to which GSI, and what is deferred for it.
    bound: BTreeMap<u64, (u32, u64)>,
    counters: BTreeMap<u64, u64>,
    hung_up: BTreeMap<u64, bool>,
    ledger: Outcome,
    msis: BTreeMap<u8, u64>,
}

impl Model {
    fn interrupt(&mut self, signals: u64, route: Route) {
        self.ledger += Outcome::of(signals, (route != Route::None).then(Accepted::default));
        if let Route::Msi(vector) = route {
            *self.msis.entry(vector).or_default() += 1;
        }
    }

    fn work(&mut self) {
        for key in self.bound.keys().copied().collect::<Vec<_>>() {
            let (gsi, owed) = self.bound[&key];
            if owed > 0 {
                self.bound.insert(key, (gsi, 0));
                self.interrupt(owed, TABLES[self.routes][gsi as usize]);
            }
        }
    }

    fn poll(&mut self) {
        let mut gone = Vec::new();
        for (key, (gsi, owed)) in self.bound.clone() {
            let signals = self.counters.remove(&key).unwrap_or(0);
            let hung_up = self.hung_up.get(&key).copied().unwrap_or(false);
            let route = TABLES[self.routes][gsi as usize];
            match route {
                Route::Msi(_) if !hung_up => {
                    for part in [signals.min(1), signals.saturating_sub(1)].into_iter().filter(|n| *n > 0) {
                        self.interrupt(part, route);
                    }
                }
                _ => drop(self.bound.insert(key, (gsi, owed + signals))),
            }
            if hung_up {
                gone.push(key);
            }
        }
        for key in gone {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: u64) {
        if self.bound[&key].1 > 0 {
            self.work();
        }
        self.bound.remove(&key);
    }

    fn apply(&mut self, op: &Op) -> usize {
        match *op {
            Op::Assign { key, gsi, .. } => {
                let fits = !self.bound.contains_key(&key) && self.bound.len() < SLOTS;
                if fits {
                    self.bound.insert(key, (gsi, 0));
                }
                fits.into()
            }
            Op::Deassign { key, gsi } => {
                let matches = self.bound.get(&key).is_some_and(|(g, _)| *g == gsi);
                if matches {
                    self.remove(key);
                }
                matches.into()
            }
            Op::Routes(number) => {
                self.routes = number;
                0
            }
            Op::Signal { key, times } => {
                *self.counters.entry(key).or_default() += times;
                0
            }
            Op::HangUp(key) => {
                self.hung_up.insert(key, true);
                0
            }
            Op::Poll => {
                self.poll();
                0
            }
            Op::Work => {
                self.work();
                0
            }
        }
    }
}

fn apply(vm: &Vm, op: &Op) -> usize {
    match *op {
        Op::Assign { key, gsi, level: false } => vm.assign(key, gsi).is_ok().into(),
        Op::Assign { key, gsi, level: true } => vm.assign_level(key, gsi).is_ok().into(),
        Op::Deassign { key, gsi } => vm.deassign(key, gsi),
        Op::Routes(number) => {
            vm.routes(&table(number));
            0
        }
        Op::Signal { key, times } => {
            vm.signal(key, times);
            0
        }
        Op::HangUp(key) => {
            vm.hang_up(key);
            0
        }
        Op::Poll => {
            vm.poll();
            vm.shut_down();
            0
        }
        Op::Work => {
            vm.work();
            0
        }
    }
}

proptest! {
    #[test]
    fn agrees_with_the_plain_model(ops in prop::collection::vec(op(), 0..60)) {
        let vm = Vm::new(SLOTS, Irqchip::Kernel);
        let mut model = Model::default();
        let mut signals = 0;
        for op in ops.iter().chain(&[Op::Poll, Op::Work]) {
            prop_assert_eq!(apply(&vm, op), model.apply(op), "{:?}", op);
            if let Op::Signal { times, .. } = op {
                signals += times;
            }
            prop_assert_eq!(vm.ledger.get(), model.ledger, "{:?}", op);
            prop_assert_eq!(&*vm.msis.borrow(), &model.msis, "{:?}", op);
            prop_assert_eq!(vm.bindings.len(), model.bound.len());
            for key in 0..5 {
                prop_assert_eq!(vm.counter(key), model.counters.get(&key).copied().unwrap_or(0));
            }
        }
        let left: u64 = (0..5).map(|key| vm.counter(key)).sum();
        prop_assert_eq!(vm.ledger.get().signals() + left, signals, "every signal has an end");
        prop_assert_eq!(vm.irqfds.release(&vm), model.bound.len());
        prop_assert!(vm.bindings.is_empty());
        prop_assert!((0..SLOTS).all(|i| vm.irqfds.slots()[i].state() == State::Free));
    }
}
