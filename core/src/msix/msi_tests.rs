//! Plain MSI: cases by name, every (state, event) of a vector, and random sequences against a model.
extern crate std;

use super::msi::{BadCount, Msi, MsiWritten, Shape};
use super::{Access, MsixError, Signal};
use crate::Errno;
use proptest::prelude::*;
use std::vec::Vec;

fn shape(vectors: u8, wide: bool, maskable: bool) -> Shape {
    Shape::new(vectors, wide, maskable).unwrap()
}

fn control(msi: &Msi) -> u16 {
    let mut data = [0; 2];
    assert_eq!(msi.read(2, &mut data), Access::Done);
    u16::from_le_bytes(data)
}

fn word(msi: &Msi, at: u64) -> u32 {
    let mut data = [0; 4];
    let _ = msi.read(at, &mut data);
    u32::from_le_bytes(data)
}

fn fired(written: &MsiWritten) -> Vec<u16> {
    written.fire.iter().map(|fire| fire.vector).collect()
}

#[test]
fn shapes() {
    for vectors in 0..=u8::MAX {
        let good = [1, 2, 4, 8, 16, 32].contains(&vectors);
        assert_eq!(Shape::new(vectors, true, true).err(), (!good).then_some(BadCount(vectors)));
    }
    assert_eq!(BadCount(3).errno(), Errno::EINVAL);
    let sizes = [(false, false, 10), (true, false, 14), (false, true, 20), (true, true, 24)];
    for (wide, maskable, bytes) in sizes {
        let mut msi = Msi::new(shape(32, wide, maskable));
        assert_eq!(shape(32, wide, maskable).bytes(), bytes);
        assert_eq!(control(&msi), 5 << 1 | u16::from(wide) << 7 | u16::from(maskable) << 8);
        assert_eq!(msi.read(bytes as u64, &mut [1]), Access::Outside);
        assert_eq!(msi.write(bytes as u64, &[1]).access, Access::Outside);
        assert_eq!(msi.write(u64::MAX, &[1; 8]).access, Access::Outside);
        assert_eq!(msi.write(0, &[]).access, Access::BadLength);
        assert_eq!(msi.write(0, &[0; 9]).access, Access::BadLength);
    }
}

#[test]
fn one_address_many_vectors() {
    let mut msi = Msi::new(shape(8, true, false));
    let _ = msi.write(4, &0xfee0_1003u32.to_le_bytes());
    let _ = msi.write(8, &7u32.to_le_bytes());
    let _ = msi.write(12, &0x4045u16.to_le_bytes());
    assert_eq!(msi.signal(0), Ok(Signal::Disabled));
    // More than it has (32) are as many as it has (8).
    let written = msi.write(2, &(1u16 | 5 << 4).to_le_bytes());
    assert_eq!(
        (written.routes.len(), msi.vectors_allocated(), control(&msi)),
        (8, 8, 1 | 3 << 1 | 3 << 4 | 1 << 7)
    );
    let message = msi.route(6).unwrap().message.unwrap();
    assert_eq!((message.address_lo, message.address_hi, message.data), (0xfee0_1000, 7, 0x4046));
    assert!(matches!(msi.signal(7), Ok(Signal::Fire(fire)) if fire.message.data == 0x4047));
    assert_eq!(msi.signal(8), Err(MsixError::Vector(8)));
    assert_eq!(
        (msi.route(32), msi.satisfied(u16::MAX)),
        (Err(MsixError::Vector(32)), Err(MsixError::Vector(65535)))
    );
    // Two only: the rest go nowhere, and the device is told.
    assert_eq!(msi.write(2, &[0x11, 0]).routes.len(), 8);
    assert_eq!(msi.signal(2), Ok(Signal::NotAllocated));
    assert_eq!(msi.route(1).unwrap().message.unwrap().data, 0x4045);
    assert_eq!(msi.reset().routes.len(), 2);
}

#[test]
fn a_mask_for_each() {
    let mut msi = Msi::new(shape(4, false, true));
    let _ = msi.write(2, &[1 | 2 << 4]);
    assert_eq!(msi.write(12, &[0xff; 8]).routes.len(), 4);
    assert_eq!((word(&msi, 12), word(&msi, 16)), (0xf, 0));
    assert_eq!((msi.signal(3), msi.signal(3)), (Ok(Signal::Pended), Ok(Signal::Merged)));
    assert_eq!(msi.signal(1), Ok(Signal::Pended));
    assert_eq!(word(&msi, 16), 0b1010);
    assert_eq!(msi.write(16, &[0; 4]).access, Access::ReadOnly);
    assert_eq!(word(&msi, 16), 0b1010);
    assert_eq!(fired(&msi.write(12, &[7])), [3]);
    assert_eq!(fired(&msi.write(12, &[7])), []);
    assert_eq!((msi.satisfied(1), msi.satisfied(1)), (Ok(true), Ok(false)));
    assert_eq!(fired(&msi.write(12, &[0])), []);
    // Fewer allocated, then off: what was pending is dropped, and counted.
    let _ = msi.write(12, &[0xf]);
    assert_eq!((msi.signal(0), msi.signal(2)), (Ok(Signal::Pended), Ok(Signal::Pended)));
    assert_eq!(msi.write(2, &[1 | 1 << 4]).dropped, 1);
    assert_eq!(msi.write(2, &[0]).dropped, 1);
    assert_eq!(fired(&msi.write(2, &[1])), []);
    assert_eq!(msi.signal(0), Ok(Signal::Pended));
    assert_eq!(msi.reset().dropped, 1);
    assert_eq!((control(&msi), word(&msi, 12)), (2 << 1 | 1 << 8, 0));
}

/// The model: four bytes of control and masks, a set for the pending.
#[derive(Clone, Default)]
struct Model {
    enabled: bool,
    allocated: u16,
    masks: u8,
    pending: Vec<u16>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Signal(u16),
    Satisfied(u16),
    Control(u8),
    Masks(u8),
    Data(u16),
    Reset,
}

struct Pair {
    msi: Msi,
    model: Model,
}

impl Pair {
    fn new() -> Self {
        let model = Model { allocated: 1, ..Model::default() };
        Self { msi: Msi::new(shape(4, true, true)), model }
    }

    fn step(&mut self, step: Step) {
        let (msi, model) = (&mut self.msi, &mut self.model);
        let before: Vec<_> = (0..4).map(|n| msi.route(n).unwrap().message).collect();
        let masked = |model: &Model, n: u16| model.masks >> n & 1 == 1;
        let written = match step {
            Step::Signal(n) => {
                let got = msi.signal(n);
                match got {
                    Err(MsixError::Vector(_)) => assert!(n >= 4),
                    Ok(Signal::Disabled) => assert!(!model.enabled),
                    Ok(Signal::NotAllocated) => assert!(model.enabled && n >= model.allocated && n < 4),
                    Ok(Signal::Fire(_)) => assert!(before[usize::from(n)].is_some()),
                    Ok(Signal::Merged) => assert!(model.pending.contains(&n)),
                    Ok(Signal::Pended) => {
                        assert!(masked(model, n) && !model.pending.contains(&n));
                        model.pending.push(n);
                    }
                    other => panic!("{other:?}"),
                }
                None
            }
            Step::Satisfied(n) => {
                let had = model.pending.contains(&n);
                model.pending.retain(|m| *m != n);
                assert_eq!(msi.satisfied(n), if n < 4 { Ok(had) } else { Err(MsixError::Vector(n)) });
                None
            }
            Step::Control(value) => {
                model.enabled = value & 1 != 0;
                model.allocated = 1 << (value >> 4 & 7).min(2);
                Some(msi.write(2, &[value]))
            }
            Step::Masks(value) => {
                model.masks = value & 0xf;
                Some(msi.write(16, &[value]))
            }
            Step::Data(value) => Some(msi.write(12, &value.to_le_bytes())),
            Step::Reset => {
                let pending = core::mem::take(&mut model.pending);
                *model = Model { allocated: 1, pending, ..Model::default() };
                Some(msi.reset())
            }
        };
        let allocated = model.allocated;
        let (live, enabled) = (model.clone(), model.enabled);
        let had = model.pending.len();
        model.pending.retain(|n| enabled && *n < allocated);
        let dropped = had - model.pending.len();
        let mut due: Vec<u16> = model.pending.iter().copied().filter(|n| !masked(&live, *n)).collect();
        due.sort_unstable();
        model.pending.retain(|n| masked(&live, *n));
        if let Some(written) = written {
            assert_eq!((fired(&written), written.dropped as usize), (due, dropped));
            let changed = (0..4).filter(|n| msi.route(*n).unwrap().message != before[usize::from(*n)]);
            assert!(changed.eq(written.routes.iter().map(|route| route.vector)));
        } else {
            assert!(due.is_empty() && dropped == 0);
        }
        for n in 0..4 {
            let live = enabled && n < allocated && !masked(model, n);
            assert_eq!(msi.route(n).unwrap().message.is_some(), live);
        }
        assert_eq!(word(msi, 20), model.pending.iter().fold(0, |bits, n| bits | 1 << n));
    }
}

fn every_step() -> Vec<Step> {
    let mut steps: Vec<Step> = (0..6).flat_map(|n| [Step::Signal(n), Step::Satisfied(n)]).collect();
    steps.extend((0..8).flat_map(|log2| [Step::Control(log2 << 4), Step::Control(log2 << 4 | 1)]));
    steps.extend((0..=16).map(Step::Masks));
    steps.extend([Step::Data(0x41), Step::Data(0xffff), Step::Reset]);
    steps
}

/// Enabled or not, with each allocation and mask, vector 1 pending or not: with every event.
#[test]
fn every_state_and_event() {
    for allocation in 0..3 {
        for enabled in [0, 1] {
            for masks in 0..16 {
                for pend in [false, true] {
                    for event in every_step() {
                        let mut pair = Pair::new();
                        if pend {
                            for step in [Step::Control(0x21), Step::Masks(2), Step::Signal(1)] {
                                pair.step(step);
                            }
                        }
                        pair.step(Step::Control(allocation << 4 | enabled));
                        pair.step(Step::Masks(masks));
                        pair.step(event);
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn as_the_model(steps in prop::collection::vec(prop::sample::select(every_step()), 1..80)) {
        let mut pair = Pair::new();
        for step in steps {
            pair.step(step);
        }
    }

    #[test]
    fn any_access_is_answered(
        wide: bool, maskable: bool, log2 in 0u8..6,
        accesses in prop::collection::vec((0u64..30, prop::collection::vec(any::<u8>(), 0..10)), 1..40),
    ) {
        let mut msi = Msi::new(shape(1 << log2, wide, maskable));
        for (offset, mut data) in accesses {
            let _ = msi.write(offset, &data);
            for vector in 0..33 {
                let _ = msi.signal(vector);
            }
            let _ = msi.read(offset, &mut data);
        }
    }
}
