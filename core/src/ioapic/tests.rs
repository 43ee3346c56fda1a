//! Cases by name. Every (state, event) of a pin and random sequences are beside the model.
extern crate std;

use super::{
    Access, Deliver, DeliveryMode, Entry, Ioapic, IoapicError, Line, Pin, PinSet, Trigger, Version, Written,
    eoi_route,
};
use crate::Errno;
use std::vec::Vec;
use std::{format, vec};

const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

fn pin(n: u8) -> Pin {
    Pin::new(n).unwrap()
}

fn write(chip: &mut Ioapic, register: u8, value: u32) -> Written {
    assert_eq!(chip.write(0, &[register]).access, Access::Done);
    chip.write(0x10, &value.to_le_bytes())
}

fn low(chip: &mut Ioapic, n: u8, value: u32) -> Written {
    write(chip, 0x10 + 2 * n, value)
}

fn read(chip: &mut Ioapic, register: u8) -> u32 {
    assert_eq!(chip.write(0, &[register]).access, Access::Done);
    let mut data = [0xaa; 4];
    assert_eq!(chip.read(0x10, &mut data), Access::Done);
    u32::from_le_bytes(data)
}

fn raise(chip: &mut Ioapic, n: u8) -> Line {
    chip.set_line(pin(n), 0, true).unwrap()
}

fn lower(chip: &mut Ioapic, n: u8) {
    assert_eq!(chip.set_line(pin(n), 0, false), Ok(Line::Lowered));
}

fn eoi(chip: &mut Ioapic, vector: u8) -> Vec<Deliver> {
    let acked = chip.eoi(vector);
    chip.eoi_done(acked).deliver.to_vec()
}

#[test]
fn identification_registers() {
    let mut chip = Ioapic::new(Version::V11);
    assert_eq!(read(&mut chip, 1), 0x0017_0011);
    assert_eq!(read(&mut Ioapic::new(Version::V20), 1), 0x0017_0020);
    let _ = write(&mut chip, 0, 0xffff_ffff);
    let _ = write(&mut chip, 1, 0);
    let _ = write(&mut chip, 2, 0);
    assert_eq!((read(&mut chip, 0), read(&mut chip, 2)), (0x0f00_0000, 0x0f00_0000));
    assert_eq!(read(&mut chip, 1), 0x0017_0011);
    for register in (3..0x10).chain(0x40..=0xff) {
        assert_eq!(read(&mut chip, register), u32::MAX);
        assert_eq!(write(&mut chip, register, 0).access, Access::NoRegister);
    }
}

#[test]
fn read_only_bits_stay_and_reserved_ones_are_kept() {
    let mut chip = Ioapic::new(Version::V11);
    for n in 0..24 {
        assert_eq!(read(&mut chip, 0x10 + 2 * n), MASKED);
        let _ = low(&mut chip, n, u32::MAX);
        let _ = write(&mut chip, 0x11 + 2 * n, u32::MAX);
        assert_eq!(read(&mut chip, 0x10 + 2 * n), !(1 << 12 | 1 << 14));
        assert_eq!(read(&mut chip, 0x11 + 2 * n), u32::MAX);
    }
}

#[test]
fn odd_accesses_are_answered() {
    let mut chip = Ioapic::new(Version::V11);
    assert_eq!(chip.write(0, &[0x10, 0xff]).access, Access::Done);
    assert_eq!(chip.save().ioregsel, 0x10);
    let mut eight = [1; 8];
    assert_eq!(chip.read(0x10, &mut eight), Access::Done);
    assert_eq!(u64::from_le_bytes(eight), u64::from(MASKED));
    let mut two = [1; 2];
    assert_eq!((chip.read(0, &mut two), two), (Access::Done, [0x10, 0]));
    // Short writes of the window are the whole register, of a small value.
    assert_eq!(chip.write(0x10, &[0x31]).access, Access::Done);
    assert_eq!(chip.entry(pin(0)).bits(), 0x31);
    assert_eq!(chip.write(0x10, &[0x32, 0x80]).access, Access::Done);
    assert_eq!(chip.entry(pin(0)).bits(), 0x8032);
    assert_eq!(chip.write(0x10, &[0x33, 0, 1, 0, 9, 9, 9, 9]).access, Access::Done);
    assert_eq!(chip.entry(pin(0)).bits(), 0x1_0033);

    let before = chip.save();
    for offset in 0..=0x120u64 {
        for length in 0..=9usize {
            if matches!(offset, 0 | 0x10) && matches!(length, 1 | 2 | 4 | 8) {
                continue;
            }
            let want = match (offset, length) {
                (0x100.., _) => Access::Outside,
                (_, 0 | 3 | 5..=7 | 9) => Access::BadLength,
                _ if offset % 16 == 0 => Access::NoRegister,
                _ => Access::Misaligned,
            };
            let mut data = vec![0x55; length];
            assert_eq!(chip.write(offset, &data), Written::nothing_for_tests(want));
            assert_eq!(chip.read(offset, &mut data), want);
            assert!(data.iter().all(|byte| *byte == 0));
        }
    }
    assert_eq!(chip.read(u64::MAX, &mut [0]), Access::Outside);
    assert_eq!(chip.save(), before);
}

impl Written {
    fn nothing_for_tests(access: Access) -> Self {
        let mut written = Ioapic::new(Version::V11).write(0x100, &[]);
        written.access = access;
        written
    }
}

#[test]
fn names_out_of_range() {
    assert_eq!(Pin::new(24), Err(IoapicError::Pin(24)));
    let mut chip = Ioapic::new(Version::V11);
    let refused = chip.set_line(pin(0), 64, true);
    assert_eq!(refused, Err(IoapicError::Source(64)));
    assert_eq!(refused.unwrap_err().errno(), Errno::EINVAL);
    assert!(!chip.is_asserted(pin(0)));
    assert_eq!(format!("{}", IoapicError::Pin(24)), "no pin 24: the I/O APIC has 24");
}

/// Race 4: the line is down only when the last source is.
#[test]
fn a_line_is_the_or_of_its_sources() {
    let mut chip = Ioapic::new(Version::V11);
    let _ = low(&mut chip, 5, LEVEL | 0x40);
    assert!(chip.set_line(pin(5), 0, true).unwrap().deliver().is_some());
    assert_eq!(chip.set_line(pin(5), 63, true), Ok(Line::InService));
    assert_eq!(chip.set_line(pin(5), 0, false), Ok(Line::InService));
    assert_eq!(eoi(&mut chip, 0x40).len(), 1);
    assert_eq!(chip.set_line(pin(5), 63, false), Ok(Line::Lowered));
    assert!(eoi(&mut chip, 0x40).is_empty());
    assert!(!chip.entry(pin(5)).remote_irr());
}

#[test]
fn edges() {
    let mut chip = Ioapic::new(Version::V11);
    let _ = low(&mut chip, 4, 0x30);
    let first = raise(&mut chip, 4).deliver().unwrap();
    assert_eq!((first.vector, first.trigger, first.message.data), (0x30, Trigger::Edge, 0x30));
    assert_eq!(chip.save().irr, 0);
    assert_eq!(raise(&mut chip, 4), Line::Coalesced);
    assert_eq!(chip.save().irr, 1 << 4, "a second raise forgets that the first went out");
    lower(&mut chip, 4);
    // Behind a mask: kept, merged, and not delivered by the unmask.
    let _ = low(&mut chip, 4, MASKED | 0x30);
    assert_eq!((raise(&mut chip, 4), raise(&mut chip, 4)), (Line::Masked, Line::Coalesced));
    assert_eq!(chip.save().irr, 1 << 4);
    assert_eq!(low(&mut chip, 4, 0x30).deliver, None);
    assert_eq!(raise(&mut chip, 4), Line::Coalesced);
    // Made level, it is a level that is up.
    assert!(low(&mut chip, 4, LEVEL | 0x30).deliver.is_some());
}

/// Race 28, and the remote IRR of an entry that becomes an edge one.
#[test]
fn levels_behind_masks() {
    let mut chip = Ioapic::new(Version::V11);
    let _ = low(&mut chip, 9, MASKED | LEVEL | 0x50);
    assert_eq!(raise(&mut chip, 9), Line::Masked);
    assert!(low(&mut chip, 9, LEVEL | 0x50).deliver.is_some());
    assert!(chip.entry(pin(9)).remote_irr());
    // Masking while in service keeps it so; the EOI clears it and finds the mask.
    assert_eq!(low(&mut chip, 9, MASKED | LEVEL | 0x50).deliver, None);
    assert!(chip.eoi_vectors().contains(0x50) && chip.unrouted_eoi_vectors().contains(0x50));
    assert!(eoi(&mut chip, 0x50).is_empty());
    assert!(!chip.entry(pin(9)).remote_irr());
    assert!(low(&mut chip, 9, LEVEL | 0x50).deliver.is_some());
    // The guest's substitute for an EOI register: edge and back.
    assert_eq!(low(&mut chip, 9, MASKED | 0x50).deliver, None);
    assert!(!chip.entry(pin(9)).remote_irr());
    assert!(low(&mut chip, 9, LEVEL | 0x50).deliver.is_some());
}

/// Race 20.
#[test]
fn an_unmask_asks_the_resampler_first() {
    let mut chip = Ioapic::new(Version::V11);
    assert!(chip.set_resampler(pin(10), true));
    let _ = low(&mut chip, 10, LEVEL | 0x60);
    assert!(raise(&mut chip, 10).deliver().is_some());
    let _ = low(&mut chip, 10, MASKED | LEVEL | 0x60);
    assert!(eoi(&mut chip, 0x60).is_empty());
    let unmasked = low(&mut chip, 10, LEVEL | 0x60);
    assert_eq!((unmasked.deliver, unmasked.resample), (None, Some(pin(10))));
    assert_eq!(chip.save().irr, 0);
    lower(&mut chip, 10);
    assert!(raise(&mut chip, 10).deliver().is_some());

    // A second source on the pin, which has no resampler, is not forgotten: the owner's lowering looks at it.
    assert_eq!(chip.set_line(pin(10), 1, true), Ok(Line::InService));
    let _ = low(&mut chip, 10, MASKED | LEVEL | 0x60);
    assert!(eoi(&mut chip, 0x60).is_empty());
    assert!(low(&mut chip, 10, LEVEL | 0x60).resample.is_some());
    assert!(chip.set_line(pin(10), 0, false).unwrap().deliver().is_some());
}

/// Race 21: the EOI of the vector that was delivered reaches the pin, and then is waited for no longer.
#[test]
fn an_entry_rewritten_in_service() {
    let mut chip = Ioapic::new(Version::V11);
    let _ = low(&mut chip, 11, LEVEL | 0x70);
    assert!(raise(&mut chip, 11).deliver().is_some());
    let rewritten = low(&mut chip, 11, LEVEL | 0x71);
    assert!(rewritten.eoi_vectors_changed && rewritten.routes.contains(pin(11)));
    assert_eq!(chip.eoi_vectors().iter().collect::<Vec<_>>(), [0x70, 0x71]);
    assert_eq!(chip.unrouted_eoi_vectors().iter().collect::<Vec<_>>(), [0x70]);

    let acked = chip.eoi(0x70);
    assert_eq!(acked.pins().iter().collect::<Vec<_>>(), [pin(11)]);
    let effects = chip.eoi_done(acked);
    assert!(effects.deliver.is_empty() && effects.eoi_vectors_changed);
    assert_eq!(chip.eoi_vectors().iter().collect::<Vec<_>>(), [0x71]);
    assert!(chip.entry(pin(11)).remote_irr(), "a register: it follows the vector that is there now");

    // The line is still up; the guest's edge-and-back lets it out. Once acknowledged, the old vector is a stranger.
    assert!(chip.eoi(0x70).pins().is_empty());
    let _ = low(&mut chip, 11, MASKED | 0x71);
    assert_eq!(low(&mut chip, 11, LEVEL | 0x71).deliver.unwrap().vector, 0x71);
}

#[test]
fn an_eoi_between_whose_halves_the_line_falls_and_rises() {
    let mut chip = Ioapic::new(Version::V11);
    let _ = low(&mut chip, 3, LEVEL | 0x44);
    assert!(raise(&mut chip, 3).deliver().is_some());
    let acked = chip.eoi(0x44);
    lower(&mut chip, 3);
    assert_eq!(raise(&mut chip, 3), Line::InService);
    assert_eq!(chip.eoi_done(acked).deliver.len(), 1);
    // Two vCPUs in the same EOI deliver once; and a service begun in between is not ended by the half before it.
    let (one, two) = (chip.eoi(0x44), chip.eoi(0x44));
    assert_eq!(chip.eoi_done(one).deliver.len(), 1);
    assert_eq!(chip.eoi_done(two).deliver.len(), 0);
    assert!(chip.entry(pin(3)).remote_irr());
}

#[test]
fn refused_by_every_local_apic() {
    let mut chip = Ioapic::new(Version::V11);
    let _ = low(&mut chip, 6, LEVEL | 0x41);
    let first = raise(&mut chip, 6).deliver().unwrap();
    assert!(!chip.refused(&first));
    assert!(!chip.entry(pin(6)).remote_irr());
    let second = raise(&mut chip, 6).deliver().unwrap();
    assert!(!chip.refused(&first), "no longer the latest");
    assert!(chip.entry(pin(6)).remote_irr());
    // After a rewrite the refused vector is waited for no longer.
    let _ = low(&mut chip, 6, LEVEL | 0x42);
    assert!(chip.refused(&second));
    assert!(!chip.eoi_vectors().contains(0x41));
    // An earlier delivery of the same vector, let go by edge-and-back, is waited for still.
    assert!(raise(&mut chip, 6).deliver().is_some());
    let _ = low(&mut chip, 6, 0x42);
    let again = low(&mut chip, 6, LEVEL | 0x42).deliver.unwrap();
    let _ = low(&mut chip, 6, LEVEL | 0x43);
    assert!(!chip.refused(&again));
    assert!(chip.eoi_vectors().contains(0x42));
    let _ = low(&mut chip, 6, 0x42);
    lower(&mut chip, 6);
    let edge = raise(&mut chip, 6).deliver().unwrap();
    assert!(!chip.refused(&edge));
}

#[test]
fn a_storm_is_slowed_down() {
    let mut chip = Ioapic::new(Version::V11);
    let _ = low(&mut chip, 1, LEVEL | 0x33);
    assert!(raise(&mut chip, 1).deliver().is_some());
    for _ in 1..10_000 {
        let acked = chip.eoi(0x33);
        let effects = chip.eoi_done(acked);
        assert!(effects.deliver.len() == 1 && !effects.delayed);
    }
    let acked = chip.eoi(0x33);
    let effects = chip.eoi_done(acked);
    assert!(effects.deliver.is_empty() && effects.delayed);
    assert_eq!(chip.inject_delayed().deliver.len(), 1);
    assert!(chip.inject_delayed().deliver.is_empty());
    assert_eq!(eoi(&mut chip, 0x33).len(), 1);
}

#[test]
fn the_eoi_register_of_version_20() {
    let mut chip = Ioapic::new(Version::V20);
    let _ = low(&mut chip, 2, LEVEL | 0x90);
    assert!(raise(&mut chip, 2).deliver().is_some());
    lower(&mut chip, 2);
    let acked = chip.write(0x40, &[0x90, 1, 2, 3]).eoi.unwrap();
    assert_eq!((acked.vector(), acked.pins().bits()), (0x90, 1 << 2));
    assert!(chip.entry(pin(2)).remote_irr(), "the owners come first");
    assert!(chip.eoi_done(acked).deliver.is_empty());
    assert!(!chip.entry(pin(2)).remote_irr());
    assert_eq!(
        (chip.read(0x40, &mut [1]), chip.write(0x50, &[0]).access),
        (Access::Done, Access::NoRegister)
    );
    assert_eq!(Ioapic::new(Version::V11).write(0x40, &[0x90]).access, Access::NoRegister);
}

#[test]
fn routes_and_messages() {
    let mut chip = Ioapic::new(Version::V11);
    assert_eq!(chip.route(pin(7)), None);
    // Behind the mask nothing is to be rewritten.
    assert!(write(&mut chip, 0x1f, 0xab00_0000).routes.is_empty());
    assert_eq!(low(&mut chip, 7, LEVEL | 1 << 13 | 1 << 11 | 0x151).routes.bits(), 1 << 7);
    let route = chip.route(pin(7)).unwrap();
    assert_eq!((route.address_lo, route.address_hi, route.data), (0xfeea_b004, 0, 0xc151));
    assert!(chip.entry(pin(7)).is_active_low());
    // Polarity and reserved bits are no part of a message.
    assert!(low(&mut chip, 7, LEVEL | 1 << 20 | 1 << 11 | 0x151).routes.is_empty());
    assert_eq!(write(&mut chip, 0x1f, 0xac00_0000).routes.bits(), 1 << 7);
    assert_eq!(low(&mut chip, 7, MASKED).routes.bits(), 1 << 7);
    assert_eq!(eoi_route(0x51).data, 0xc051);
    let modes = [0, 1, 2, 3, 4, 5, 6, 7].map(|m| Entry::from_bits(m << 8).delivery_mode());
    assert_eq!(modes[3], DeliveryMode::Reserved(3));
    assert_eq!(modes.iter().filter(|mode| mode.has_eoi()).count(), 2);
}

#[test]
fn restore_delivers_and_reset_masks() {
    let mut chip = Ioapic::new(Version::V11);
    let mut state = chip.save();
    state.redirtbl[3] = u64::from(LEVEL | 0x61);
    state.redirtbl[4] = u64::from(LEVEL | 1 << 14 | 0x62);
    (state.irr, state.ioregsel, state.id) = (u32::MAX, 0x1234, 0xff);
    let effects = chip.restore(&state);
    assert_eq!(effects.deliver.iter().map(|d| (d.pin, d.vector)).collect::<Vec<_>>(), [(pin(3), 0x61)]);
    assert_eq!((effects.routes.bits(), effects.eoi_vectors_changed), (0b1_1000, true));
    assert_eq!(chip.save().irr, PinSet::EVERY);
    let mut data = [0; 4];
    assert_eq!(chip.read(0x10, &mut data), Access::Done);
    assert_eq!(u32::from_le_bytes(data), u32::MAX);
    assert_eq!(chip.reset().routes.bits(), 0b1_1000);
    assert_eq!(chip.save(), Ioapic::new(Version::V11).save());
    assert!(chip.eoi_vectors().is_empty());
}
