//! MSI-X: cases by name, every (state, event) of a vector, and random sequences against a model.
extern crate std;

use super::{Access, Entry, MAX_VECTORS, Message, Mode, Msix, MsixError, Signal};
use crate::Errno;
use proptest::prelude::*;
use std::vec::Vec;
use std::{format, vec};

type Function<const N: usize> = Msix<[Entry; N]>;

fn function<const N: usize>() -> Function<N> {
    Msix::new([Entry::RESET; N]).unwrap()
}

/// Enabled, all vectors unmasked with data = their number.
fn ready<const N: usize>() -> Function<N> {
    let mut msix = function();
    for n in 0..N as u64 {
        let _ = msix.write_table(16 * n, &[0x00, 0x10, 0xe0, 0xfe, 0, 0, 0, 0]);
        let _ = msix.write_table(16 * n + 8, &n.to_le_bytes());
    }
    let _ = msix.write_control(0, &[0, 0x80]);
    msix
}

fn mask(msix: &mut Function<3>, n: u64, masked: u8) -> super::TableWritten {
    msix.write_table(16 * n + 12, &[masked, 0, 0, 0])
}

fn drain<const N: usize>(msix: &mut Function<N>) -> Vec<u16> {
    core::iter::from_fn(|| msix.next_due(0)).map(|fire| fire.vector).collect()
}

#[test]
fn sizes() {
    let mut none: [Entry; 0] = [];
    let refused = Msix::new(&mut none[..]).unwrap_err();
    assert_eq!((refused, refused.errno()), (MsixError::TableSize(0), Errno::EINVAL));
    assert_eq!(Msix::new(vec![Entry::RESET; MAX_VECTORS + 1]).unwrap_err(), MsixError::TableSize(2049));
    let mut big = Msix::new(vec![Entry::RESET; MAX_VECTORS]).unwrap();
    assert_eq!((big.vectors(), big.control()), (2048, 2047));
    assert_eq!((big.table_bytes(), big.pba_bytes()), (32768, 256));
    assert_eq!(big.signal(2048), Err(MsixError::Vector(2048)));
    assert_eq!(big.route(u16::MAX).unwrap_err(), MsixError::Vector(u16::MAX));
    assert_eq!(big.satisfied(2048), Err(MsixError::Vector(2048)));
    assert_eq!(format!("{refused}"), "0 vectors: a table has 1 to 2048");
    assert_eq!((function::<64>().pba_bytes(), function::<65>().pba_bytes()), (8, 16));
}

#[test]
fn used_storage_is_reset() {
    let mut entries = ready::<2>().entries;
    entries[0].set_pending(true);
    let msix = Msix::new(&mut entries[..]).unwrap();
    assert!(msix.entries().iter().all(|entry| *entry == Entry::RESET));
}

#[test]
fn control_register() {
    let mut msix = function::<3>();
    let written = msix.write_control(0, &0xffffu16.to_le_bytes());
    assert_eq!((written.before, written.after), (Mode::Disabled, Mode::FunctionMasked));
    assert_eq!(msix.control(), 0xc002);
    let mut data = [9; 4];
    assert_eq!((msix.read_control(0, &mut data), data), (Access::Done, [2, 0xc0, 0, 0]));
    assert_eq!((msix.read_control(1, &mut data[..1]), data[0]), (Access::Done, 0xc0));
    assert_eq!((msix.read_control(2, &mut data), data), (Access::Outside, [0; 4]));
    // The low byte alone, nothing, too much: nothing changes.
    for (offset, bytes) in [(0, &[0xff][..]), (0, &[]), (0, &[0; 9]), (2, &[0, 0]), (u64::MAX, &[0])] {
        assert_eq!(msix.write_control(offset, bytes).after, Mode::FunctionMasked);
    }
    // The function mask is remembered while disabled.
    assert_eq!(msix.write_control(1, &[0x40]).after, Mode::Disabled);
    assert_eq!(msix.control(), 0x4002);
    let enabled = msix.write_control(1, &[0x80]);
    assert_eq!((enabled.after, enabled.routes_changed, enabled.due), (Mode::Enabled, true, false));
    assert!(!msix.write_control(1, &[0x80]).routes_changed);
}

#[test]
fn a_masked_vector_fires_once_with_the_message_of_the_unmask() {
    let mut msix = ready::<3>();
    assert!(matches!(msix.signal(1), Ok(Signal::Fire(fire)) if fire.vector == 1 && fire.message.data == 1));
    assert_eq!(mask(&mut msix, 1, 1).routes[0].message, None);
    assert_eq!((msix.signal(1), msix.signal(1)), (Ok(Signal::Pended), Ok(Signal::Merged)));
    // Behind the mask a new message is nobody's route.
    assert!(msix.write_table(16 + 8, &[0x77]).routes.is_empty());
    let written = mask(&mut msix, 1, 0xfe);
    let message = Message { address_lo: 0xfee0_1000, address_hi: 0, data: 0x77 };
    assert_eq!((written.routes[0].message, written.fire[0].message), (Some(message), message));
    assert!(mask(&mut msix, 1, 0).fire.is_empty());
    assert_eq!(drain(&mut msix), []);
    // Data and mask in one QWORD.
    let _ = mask(&mut msix, 1, 1);
    assert_eq!(msix.signal(1), Ok(Signal::Pended));
    assert_eq!(msix.write_table(16 + 8, &0x88u64.to_le_bytes()).fire[0].message.data, 0x88);
}

#[test]
fn the_function_mask() {
    let mut msix = ready::<3>();
    let _ = mask(&mut msix, 2, 1);
    let masked = msix.write_control(1, &[0xc0]);
    assert_eq!((masked.after, masked.routes_changed), (Mode::FunctionMasked, true));
    for n in 0..3 {
        assert_eq!(msix.signal(n), Ok(Signal::Pended));
        assert_eq!(msix.route(n).unwrap().message, None);
    }
    assert_eq!(msix.next_due(0), None);
    // Unmasking a vector under the function mask fires nothing yet.
    let unmasked = mask(&mut msix, 2, 0);
    assert!(unmasked.fire.is_empty() && unmasked.routes.is_empty());
    let _ = mask(&mut msix, 1, 1);
    assert_eq!(msix.satisfied(0), Ok(true));
    assert_eq!(msix.satisfied(0), Ok(false));
    assert_eq!(msix.signal(0), Ok(Signal::Pended));
    let written = msix.write_control(1, &[0x80]);
    assert!(written.due && written.routes_changed);
    // Between the write and the host's collecting: a new event is the pending one, a mask keeps it.
    assert!(matches!(msix.signal(0), Ok(Signal::Fire(_))));
    let _ = mask(&mut msix, 2, 1);
    assert_eq!(drain(&mut msix), []);
    assert_eq!(mask(&mut msix, 2, 0).fire.len(), 1);
    assert_eq!(mask(&mut msix, 1, 0).fire.len(), 1);
    assert_eq!(msix.next_due(u16::MAX), None);
}

#[test]
fn a_write_is_about_the_vectors_it_touches() {
    let mut msix = ready::<3>();
    let _ = msix.write_control(1, &[0xc0]);
    assert_eq!((msix.signal(1), msix.signal(2)), (Ok(Signal::Pended), Ok(Signal::Pended)));
    assert!(msix.write_control(1, &[0x80]).due);
    // Vector 1 is due, but it is vector 0 that is written.
    let written = msix.write_table(8, &[9]);
    assert_eq!((written.routes.len(), written.fire.len()), (1, 0));
    // Eight bytes over the border of two.
    let written = msix.write_table(12, &[0, 0, 0, 0, 0, 0x20, 0xe0, 0xfe]);
    assert_eq!((written.routes[0].vector, written.fire[0].vector), (1, 1));
    assert_eq!(drain(&mut msix), [2]);
}

#[test]
fn disabling_drops_and_says_so() {
    let mut msix = ready::<3>();
    let _ = msix.write_control(1, &[0xc0]);
    assert_eq!((msix.signal(0), msix.signal(2)), (Ok(Signal::Pended), Ok(Signal::Pended)));
    let written = msix.write_control(1, &[0]);
    assert_eq!((written.dropped, written.due, written.after), (2, false, Mode::Disabled));
    assert_eq!(msix.signal(0), Ok(Signal::Disabled));
    assert!(!msix.write_control(1, &[0x80]).due);
    assert_eq!(drain(&mut msix), []);
    assert!(msix.reset().routes_changed);
    assert_eq!((msix.mode(), msix.control()), (Mode::Disabled, 2));
    assert!(msix.entries().iter().all(Entry::is_masked));
}

#[test]
fn bytes_at_any_offset() {
    let mut msix = ready::<3>();
    // Over the edge of two entries: mask of 0, the reserved bytes, two bytes of the address of 1.
    let written = msix.write_table(12, &[1, 0xff, 0xff, 0xff, 0xff, 0xee, 0xe0, 0xfe]);
    assert_eq!(written.routes.iter().map(|route| route.vector).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(written.routes[1].message.unwrap().address_lo, 0xfee0_eefc);
    let mut eight = [0; 8];
    assert_eq!(msix.read_table(12, &mut eight), Access::Done);
    assert_eq!(eight, [1, 0, 0, 0, 0xfc, 0xee, 0xe0, 0xfe]);
    // Over the end.
    assert_eq!(msix.write_table(47, &[0xff; 8]).access, Access::Done);
    assert_eq!(msix.read_table(44, &mut eight), Access::Done);
    assert_eq!(eight, [0; 8]);
    assert_eq!(msix.write_table(48, &[0xff]).access, Access::Outside);
    assert_eq!(msix.write_table(u64::MAX, &[0xff; 8]).access, Access::Outside);
    assert_eq!(msix.read_table(u64::MAX - 3, &mut eight), Access::Outside);
    assert_eq!(msix.write_table(0, &[]).access, Access::BadLength);
    assert_eq!(msix.read_table(0, &mut [1; 9]), Access::BadLength);
}

#[test]
fn pending_bits_are_read_only() {
    let mut msix = function::<70>();
    let _ = msix.write_control(1, &[0x80]);
    for n in [0, 9, 69] {
        assert_eq!(msix.signal(n), Ok(Signal::Pended));
    }
    assert_eq!(msix.write_pba(0, &[0; 8]), Access::ReadOnly);
    assert_eq!(msix.write_pba(16, &[0; 8]), Access::Outside);
    assert_eq!(msix.write_pba(0, &[0; 16]), Access::BadLength);
    let mut bytes = [0xff; 3];
    assert_eq!((msix.read_pba(0, &mut bytes), bytes), (Access::Done, [1, 2, 0]));
    assert_eq!((msix.read_pba(8, &mut bytes), bytes), (Access::Done, [0x20, 0, 0]));
    assert_eq!((msix.read_pba(15, &mut bytes), bytes), (Access::Done, [0, 0, 0]));
    assert_eq!((msix.read_pba(16, &mut bytes), bytes), (Access::Outside, [0, 0, 0]));
}

/// The model: what was written, byte for byte, and who is pending.
#[derive(Clone)]
struct Model {
    bytes: Vec<u8>,
    pending: Vec<bool>,
    enabled: bool,
    function_masked: bool,
}

impl Model {
    fn masked(&self, n: usize) -> bool {
        self.bytes[16 * n + 12] & 1 != 0
    }

    fn data(&self, n: usize) -> u32 {
        u32::from_le_bytes(self.bytes[16 * n + 8..][..4].try_into().unwrap())
    }

    fn live(&self, n: usize) -> bool {
        self.enabled && !self.function_masked && !self.masked(n)
    }

    /// Everything that may go out, goes out.
    fn due(&mut self) -> Vec<(u16, u32)> {
        let due = (0..self.pending.len()).filter(|n| self.pending[*n] && self.live(*n)).collect::<Vec<_>>();
        due.iter().for_each(|n| self.pending[*n] = false);
        due.iter().map(|n| (u16::try_from(*n).unwrap(), self.data(*n))).collect()
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            if let Some(old) = self.bytes.get_mut(at) {
                *old = match at % 16 {
                    0 => byte & 0xfc,
                    12 => byte & 1,
                    13..=15 => 0,
                    _ => *byte,
                };
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Signal(u16),
    Satisfied(u16),
    Table(u64, Vec<u8>),
    Pba(u64, Vec<u8>),
    Control(u8),
}

struct Pair {
    msix: Function<5>,
    model: Model,
}

impl Pair {
    fn new() -> Self {
        let mut model =
            Model { bytes: vec![0; 80], pending: vec![false; 5], enabled: false, function_masked: false };
        (0..5).for_each(|n| model.bytes[16 * n + 12] = 1);
        Self { msix: function(), model }
    }

    fn step(&mut self, step: &Step) {
        let (msix, model) = (&mut self.msix, &mut self.model);
        let before: Vec<_> = (0..5).map(|n| msix.route(n).unwrap().message).collect();
        let (mut fired, mut routes) = (Vec::new(), None);
        match step {
            Step::Signal(n) => {
                let index = usize::from(*n);
                let signal = msix.signal(*n);
                let want = match model.pending.get(index).copied() {
                    None => Err(MsixError::Vector(*n)),
                    Some(_) if !model.enabled => Ok(Signal::Disabled),
                    Some(true) => Ok(Signal::Merged),
                    Some(false) if model.live(index) => {
                        let message = msix.route(*n).unwrap().message.unwrap();
                        Ok(Signal::Fire(super::Fire { vector: *n, message }))
                    }
                    Some(false) => {
                        model.pending[index] = true;
                        Ok(Signal::Pended)
                    }
                };
                assert_eq!(signal, want);
            }
            Step::Satisfied(n) => {
                let want = model.pending.get_mut(usize::from(*n)).map(core::mem::take);
                assert_eq!(msix.satisfied(*n).ok(), want);
            }
            Step::Table(offset, data) => {
                let written = msix.write_table(*offset, data);
                model.write(*offset, data);
                fired.extend(written.fire);
                routes = Some(written.routes.iter().map(|route| route.vector).collect::<Vec<_>>());
            }
            Step::Pba(offset, data) => assert_ne!(msix.write_pba(*offset, data), Access::Done),
            Step::Control(high) => {
                let written = msix.write_control(1, &[*high]);
                (model.enabled, model.function_masked) = (high & 0x80 != 0, high & 0x40 != 0);
                let lost = model.pending.iter().filter(|pending| **pending && !model.enabled).count();
                assert_eq!(usize::from(written.dropped), lost);
                model.pending.iter_mut().for_each(|pending| *pending &= model.enabled);
                fired.extend(core::iter::from_fn(|| msix.next_due(0)));
                assert_eq!(written.due, !fired.is_empty());
            }
        }
        assert_eq!(
            fired.iter().map(|fire| (fire.vector, fire.message.data)).collect::<Vec<_>>(),
            model.due()
        );
        if let Some(routes) = routes {
            let changed = (0..5u16).filter(|n| msix.route(*n).unwrap().message != before[usize::from(*n)]);
            assert!(changed.eq(routes));
        }
        let mut table = [0; 80];
        for (at, chunk) in (0u64..).step_by(8).zip(table.chunks_mut(8)) {
            assert_eq!(msix.read_table(at, chunk), Access::Done);
        }
        assert_eq!(table[..], model.bytes);
        let mut pba = [0; 8];
        assert_eq!(msix.read_pba(0, &mut pba), Access::Done);
        let bits = model.pending.iter().rev().fold(0, |bits, pending| bits << 1 | u64::from(*pending));
        assert_eq!(u64::from_le_bytes(pba), bits);
        for n in 0..5 {
            assert_eq!(msix.route(n).unwrap().message.is_some(), model.live(usize::from(n)));
            // Pending is for the masked, in an enabled function.
            assert!(!model.pending[usize::from(n)] || model.enabled && !model.live(usize::from(n)));
        }
    }
}

/// Disabled, function-masked or enabled; masked or not; pending or not: with every event.
#[test]
fn every_state_and_event() {
    let mut events: Vec<Step> =
        vec![Step::Signal(0), Step::Satisfied(0), Step::Signal(5), Step::Satisfied(5)];
    events.extend([0, 0x40, 0x80, 0xc0].map(Step::Control));
    events.extend([0, 1].map(|masked| Step::Table(12, vec![masked, 0, 0, 0])));
    events.extend([Step::Table(8, vec![7]), Step::Table(80, vec![7]), Step::Pba(0, vec![0; 8])]);
    for control in [0, 0x40, 0x80, 0xc0] {
        for masked in [0, 1] {
            for pend in [false, true] {
                for event in &events {
                    let mut pair = Pair::new();
                    pair.step(&Step::Control(0xc0));
                    if pend {
                        pair.step(&Step::Signal(0));
                    }
                    pair.step(&Step::Control(control | if pend { 0x80 } else { 0 }));
                    pair.step(&Step::Table(12, vec![masked]));
                    pair.step(event);
                    pair.step(&Step::Control(0x80));
                }
            }
        }
    }
}

fn a_step() -> impl Strategy<Value = Step> {
    let bytes = prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 1..=8);
    prop_oneof![
        6 => (0u16..6).prop_map(Step::Signal),
        1 => (0u16..6).prop_map(Step::Satisfied),
        3 => (prop_oneof![9 => 0u64..90, 1 => any::<u64>()], bytes.clone()).prop_map(|(at, b)| Step::Table(at, b)),
        5 => (0u64..5, 0u8..2).prop_map(|(n, masked)| Step::Table(16 * n + 12, vec![masked, 0, 0, 0])),
        1 => (0u64..20, bytes).prop_map(|(at, b)| Step::Pba(at, b)),
        3 => prop_oneof![Just(0x80u8), Just(0xc0), Just(0x80), any::<u8>()].prop_map(Step::Control),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn as_the_model(steps in prop::collection::vec(a_step(), 1..100)) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.step(step);
        }
    }
}
