//! Every state of a pin with every event, and random sequences, against [`Model`].
extern crate std;

use super::model::{Model, Sent};
use super::{Deliver, Entry, Ioapic, Pin, Trigger, Version};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

fn pin(n: u8) -> Pin {
    Pin::new(n).unwrap()
}

fn sent(deliver: &Deliver) -> Sent {
    (usize::from(deliver.pin.number()), deliver.vector, deliver.trigger == Trigger::Level)
}

#[derive(Clone, Debug)]
enum Step {
    Select(u8),
    Window(u32),
    Line(u8, u8, bool),
    Eoi(u8, Vec<(usize, u8, bool)>),
    RefuseLast,
    Resampler(u8, bool),
    Migrate,
}

struct Pair {
    chip: Ioapic,
    model: Model,
    last: Option<Deliver>,
}

impl Pair {
    fn new() -> Self {
        Self { chip: Ioapic::new(Version::V11), model: Model::new(), last: None }
    }

    fn step(&mut self, step: &Step) {
        let exits = self.chip.exits();
        let (mut got, mut told) = (Vec::new(), None);
        let want = match step {
            Step::Select(register) => {
                got.extend(self.chip.write(0, &[*register]).deliver);
                self.model.select = u32::from(*register);
                vec![]
            }
            Step::Window(value) => {
                let before = Pin::all().map(|p| self.chip.route(p)).collect::<Vec<_>>();
                let written = self.chip.write(0x10, &value.to_le_bytes());
                let (want, resample) = self.model.window(*value);
                assert_eq!(written.resample.is_some(), resample);
                let changed = Pin::all().filter(|p| self.chip.route(*p) != before[p.index()]);
                assert!(changed.eq(written.routes.iter()));
                got.extend(written.deliver);
                told = Some(written.eoi_vectors_changed);
                want.into_iter().collect()
            }
            Step::Line(n, source, up) => {
                got.extend(self.chip.set_line(pin(*n), *source, *up).unwrap().deliver());
                told = Some(false);
                self.model.line(usize::from(*n), *source, *up).into_iter().collect()
            }
            Step::Eoi(vector, between) => {
                let pins = self.model.eoi_pins(*vector);
                let acked = self.chip.eoi(*vector);
                let acked_pins = acked.pins().iter().map(|p| usize::from(p.number()));
                assert!(acked_pins.eq(pins), "acknowledged to the wrong pins");
                for (n, source, up) in between {
                    let n = u8::try_from(*n).unwrap();
                    got.extend(self.chip.set_line(pin(n), *source, *up).unwrap().deliver());
                }
                let effects = self.chip.eoi_done(acked);
                told = between.is_empty().then_some(effects.eoi_vectors_changed);
                got.extend(effects.deliver);
                self.model.eoi(*vector, between)
            }
            Step::RefuseLast => {
                if let Some(deliver) = self.last.take() {
                    told = Some(self.chip.refused(&deliver));
                    self.model.refused(sent(&deliver));
                }
                vec![]
            }
            Step::Resampler(n, on) => {
                told = Some(self.chip.set_resampler(pin(*n), *on));
                self.model.pins[usize::from(*n)].resampler = *on;
                vec![]
            }
            Step::Migrate => {
                let state = self.chip.save();
                let effects = self.chip.restore(&state);
                told = Some(effects.eoi_vectors_changed);
                got.extend(effects.deliver);
                self.last = None;
                self.model.restore(&state)
            }
        };
        assert_eq!(got.iter().map(sent).collect::<Vec<_>>(), want, "{step:?}");
        assert_eq!(self.chip.save(), self.model.save(), "{step:?}");
        assert!(self.chip.eoi_vectors().iter().eq(self.model.exits()), "{step:?}");
        if let Some(told) = told {
            assert_eq!(told, self.chip.exits() != exits, "{step:?}");
        }
        // `refused` is about the pin's latest delivery, and about nothing that was ended since.
        let over = matches!(step, Step::Eoi(..) | Step::Window(_) | Step::Migrate | Step::Resampler(..));
        self.last = got.last().copied().or(if over { None } else { self.last });
    }
}

/// Every state of a pin with every event.
#[test]
fn every_state_and_event() {
    let words =
        [0x31, 0x32].into_iter().flat_map(|v| (0..4).map(move |m| v | (m & 1) << 15 | (m >> 1) << 16));
    let mut events: Vec<Step> = words.map(Step::Window).collect();
    events.extend([(0, true), (0, false), (1, true), (1, false)].map(|(s, up)| Step::Line(0, s, up)));
    events.extend([0x31, 0x32, 0x33].map(|v| Step::Eoi(v, vec![])));
    events.extend([Step::RefuseLast, Step::Migrate, Step::Resampler(0, true), Step::Resampler(0, false)]);
    let mut tried = 0;
    for state in 0..1u32 << 7 {
        let b = |n: u32| state >> n & 1 == 1;
        for event in &events {
            let mut pair = Pair::new();
            pair.step(&Step::Select(0x10));
            let (masked, level, remote_irr) = (b(0), b(1), b(2));
            let bits =
                0x31u32 | u32::from(remote_irr) << 14 | u32::from(level) << 15 | u32::from(masked) << 16;
            pair.chip.entries[0] = Entry::from_bits(u64::from(bits));
            pair.chip.irr.set(pin(0), b(3));
            pair.chip.irr_delivered.set(pin(0), b(4));
            pair.chip.sources[0] = u64::from(b(5));
            pair.chip.resamplers.set(pin(0), b(6));
            let model = &mut pair.model.pins[0];
            model.set(u64::from(bits));
            (model.irr, model.sent, model.resampler) = (b(3), b(4), b(6));
            model.sources.extend(b(5).then_some(0));
            pair.step(event);
            // And what came of it is a state, too.
            pair.step(&Step::Eoi(0x31, vec![]));
            tried += 1;
        }
    }
    assert_eq!(tried, 128 * 19);
}

fn a_step() -> impl Strategy<Value = Step> {
    // Few pins and vectors, so that they meet.
    let entry = (0u32..3, 0u32..2, 0u32..4, 0u32..8).prop_map(|(v, mode, m, mask)| {
        (0x30 + v) | (mode << 8) | ((m & 1) << 15) | (u32::from(mask == 0) << 16)
    });
    let line = (0u8..3, prop_oneof![Just(0u8), Just(63)], any::<bool>());
    let between = prop::collection::vec(line.clone().prop_map(|(n, s, up)| (usize::from(n), s, up)), 0..3);
    prop_oneof![
        4 => (0x10u8..0x16).prop_map(Step::Select),
        1 => any::<u8>().prop_map(Step::Select),
        5 => entry.prop_map(Step::Window),
        1 => any::<u32>().prop_map(Step::Window),
        8 => line.prop_map(|(n, source, up)| Step::Line(n, source, up)),
        5 => (0x2fu8..0x34, between).prop_map(|(v, between)| Step::Eoi(v, between)),
        2 => Just(Step::RefuseLast),
        1 => (0u8..3, any::<bool>()).prop_map(|(n, on)| Step::Resampler(n, on)),
        1 => Just(Step::Migrate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn as_the_model(steps in prop::collection::vec(a_step(), 1..120)) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.step(step);
        }
        // With every line down, one EOI of each vector leaves nothing to wait for but the entries' own.
        for (n, source) in [(0, 0), (1, 0), (2, 0), (0, 63), (1, 63), (2, 63)] {
            let _ = pair.chip.set_line(pin(n), source, false).unwrap();
        }
        for vector in 0..=u8::MAX {
            let acked = pair.chip.eoi(vector);
            prop_assert!(pair.chip.eoi_done(acked).deliver.is_empty());
        }
        let own: Vec<u8> = Pin::all().filter(|p| pair.chip.awaits_eoi(*p)).map(|p| pair.chip.entry(p).vector()).collect();
        prop_assert!(pair.chip.eoi_vectors().iter().all(|vector| own.contains(&vector)));
    }

    #[test]
    fn any_access_is_answered(
        accesses in prop::collection::vec(
            (prop_oneof![0u64..0x60, any::<u64>()], prop::collection::vec(any::<u8>(), 0..10), any::<bool>()), 1..60),
    ) {
        let mut chip = Ioapic::new(Version::V20);
        for (offset, mut data, reads) in accesses {
            if reads {
                let _ = chip.read(offset, &mut data);
            } else if let Some(acked) = chip.write(offset, &data).eoi {
                drop(chip.eoi_done(acked));
            }
        }
    }
}
