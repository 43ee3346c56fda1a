//! The guest's PCI configuration space over scripted devices.

use crate::harness::tests;
use pollvisor::pci::{Bar, BarKind, ConfigSpace, MsixCap, Options, Place, ROM};
use pollvisor_core::msix::{Mode, Signal};
use pollvisor_tests::pci::{Checked, Device, Mood, Scripted, conventional, e1000e, igb};
use proptest::prelude::*;

tests! {
    shared [] => what_the_guest_sees, sizing, placing_and_moving, both_halves_of_an_address, the_rom_has_its_own_switch,
        power_states, a_reset_is_asked_for_and_not_passed_on, after_a_reset, msix, msi, accesses_without_a_place,
        what_vanished_reads_as_ones, devices_that_contradict_themselves, a_legacy_endpoint_has_no_express_capability,
        any_writes, any_bytes_of_a_device;
}

const DEVICES: [fn() -> Device; 3] = [e1000e, igb, conventional];

fn word(checked: &Checked, offset: u16) -> u32 {
    u32::from_le_bytes(checked.read(offset))
}

fn set(checked: &mut Checked, offset: u16, value: u32) -> bool {
    checked.write(offset, &value.to_le_bytes()).decode_changed
}

fn what_the_guest_sees() {
    for device in DEVICES {
        let mut checked = Checked::new(device());
        checked.compare();
        // Whatever it writes, nothing that it does not see is there afterwards.
        for offset in (0..4096).step_by(4) {
            drop(checked.write(offset, &[0xff; 4]));
        }
        checked.compare();
    }
}

fn sizing() {
    let mut checked = Checked::new(e1000e());
    assert!(checked.write(4, &[7, 4]).error.is_none());
    // BAR, what sizing reads.
    for (offset, pattern) in [
        (0x10, 0xfffe_0000),
        (0x14, 0xfff8_0000),
        (0x18, 0xffe1),
        (0x1c, 0xffff_c000),
        (0x20, 0),
        (0x24, 0),
        (0x30, 0),
    ] {
        assert!(!set(&mut checked, offset, u32::MAX));
        assert_eq!(word(&checked, offset), pattern, "{offset:#x}");
    }
    assert!((0..7).all(|index| checked.space.decoded(index).is_none()));
}

fn placing_and_moving() {
    let mut checked = Checked::new(e1000e());
    checked.place(0, 0xc000_0000);
    checked.place(2, 0xc040);
    assert_eq!(checked.space.decoded(0), None);
    let written = checked.write(4, &[3]);
    assert!(written.decode_changed);
    assert_eq!(written.command, Some((0, 3)));
    assert_eq!((checked.space.decoded(0), checked.space.decoded(2)), (Some(0xc000_0000), Some(0xc040)));
    // By bytes: each is a move.
    assert!(checked.write(0x13, &[0xd0]).decode_changed);
    assert!(checked.write(0x12, &[0x42]).decode_changed);
    assert!(!checked.write(0x10, &[0xff, 0xff]).decode_changed);
    assert_eq!(checked.space.decoded(0), Some(0xd042_0000));
    assert!(checked.write(4, &[1]).decode_changed);
    assert_eq!((checked.space.decoded(0), checked.space.decoded(2)), (None, Some(0xc040)));
    let bar = Bar { index: 2, kind: BarKind::Io, prefetchable: false, size: 32, address: 0xc040 };
    assert_eq!(checked.space.bar(2), Some(&bar));
    for index in [4, 5, ROM, 7, 255] {
        assert_eq!(checked.space.bar(index), None);
        checked.place(index, 0x1234_5678);
    }
    // The device knows of the command register, and of nothing else.
    let told: Vec<_> = checked.host.writes.borrow().clone();
    assert_eq!(told, [(4, vec![3, 0]), (4, vec![1, 0])]);
    checked.compare();
}

fn both_halves_of_an_address() {
    let mut checked = Checked::new(igb());
    checked.place(0, 0x20_0000_0000);
    assert!(checked.write(4, &[2]).decode_changed);
    assert_eq!(checked.space.decoded(0), Some(0x20_0000_0000));
    // Sized while it is decoded.
    assert!(set(&mut checked, 0x10, u32::MAX));
    assert!(set(&mut checked, 0x14, u32::MAX));
    assert_eq!((word(&checked, 0x10), word(&checked, 0x14)), (0xfff0_000c, u32::MAX));
    assert_eq!(checked.space.decoded(0), None);
    assert!(set(&mut checked, 0x10, 0xd000_0000));
    assert_eq!(checked.space.decoded(0), Some(0xffff_ffff_d000_0000));
    assert!(set(&mut checked, 0x14, 0));
    assert_eq!(checked.space.decoded(0), Some(0xd000_0000));
    assert_eq!(word(&checked, 0x10), 0xd000_000c);
    // The pattern below 4 GiB, between the two writes.
    assert!(set(&mut checked, 0x10, u32::MAX));
    assert_eq!((checked.space.decoded(0), checked.space.bar(1)), (None, None));
    assert!(checked.space.bar(0).is_some_and(|bar| bar.kind == BarKind::Memory64 && bar.prefetchable));
    checked.compare();
}

fn the_rom_has_its_own_switch() {
    let mut checked = Checked::new(igb());
    assert!(!checked.write(4, &[2]).decode_changed);
    assert!(!set(&mut checked, 0x30, 0xffff_f800));
    assert_eq!(word(&checked, 0x30), 0xffff_0000);
    checked.place(ROM, 0xc123_0001);
    assert_eq!((word(&checked, 0x30), checked.space.decoded(ROM)), (0xc123_0000, None));
    assert!(set(&mut checked, 0x30, 0xc123_0001));
    assert_eq!(checked.space.decoded(ROM), Some(0xc123_0000));
    // One that is not a power of two takes the next.
    let device = igb();
    let space =
        ConfigSpace::new(&Scripted::new(device.config.clone()), device.bar_sizes, 0x1_8000, &device.options);
    assert_eq!(space.ok().and_then(|space| space.bar(ROM).map(|bar| bar.size)), Some(0x2_0000));
}

fn power_states() {
    let mut checked = Checked::new(igb());
    checked.place(0, 0xd000_0000);
    assert!(checked.write(4, &[2]).decode_changed);
    // All of the control register; the device stays in D0 and hears of the upper byte.
    assert!(checked.write(0x44, &[3, 0x01]).decode_changed);
    assert_eq!((checked.read(0x44), checked.space.decoded(0)), ([0x0b, 0x01], None));
    assert_eq!(checked.host.writes.borrow().last(), Some(&(0x45, vec![1])));
    assert!(checked.write(0x44, &[0]).decode_changed);
    let mut checked = Checked::new(e1000e());
    assert!(checked.write(0xcc, &[1]).error.is_none());
    assert_eq!(checked.read(0xcc), [0x08], "there is no D1");
}

fn a_reset_is_asked_for_and_not_passed_on() {
    let mut checked = Checked::new(igb());
    assert!(checked.write(0xa8, &[0x10, 0xa9]).reset);
    assert_eq!(checked.host.writes.borrow().last(), Some(&(0xa8, vec![0x10, 0x29])));
    assert_eq!(checked.read(0xa8), [0x10, 0x29]);
    // An 82574 cannot, and a conventional device has another register for it.
    let mut checked = Checked::new(e1000e());
    assert!(!checked.write(0xe8, &[0, 0x80]).reset);
    let mut checked = Checked::new(conventional());
    assert!(!checked.write(0x64, &[0xfe]).reset && checked.write(0x64, &[1]).reset);
    assert!(checked.host.writes.borrow().is_empty());
}

fn after_a_reset() {
    let mut checked = Checked::new(igb());
    checked.place(0, 0xd000_0000);
    assert!(set(&mut checked, 4, 6));
    assert!(checked.write(0x3c, &[9]).error.is_none());
    assert!(checked.write(0x72, &[0, 0x80]).msix.is_some());
    let written = checked.reset();
    assert!(written.decode_changed);
    assert_eq!(written.command, Some((6, 0)));
    assert_eq!(
        written.msix.map(|written| (written.before, written.after)),
        Some((Mode::Enabled, Mode::Disabled))
    );
    assert!(written.msi.is_some());
    assert_eq!(word(&checked, 0x10), 0xc);
    assert_eq!(checked.host.writes.borrow().last(), Some(&(4, vec![0, 0])));
    checked.host.mood.set(Mood::Failing);
    assert!(checked.reset().error.is_some());
}

fn msix() {
    let mut checked = Checked::new(igb());
    let written = checked.write(0x73, &[0xc0]).msix.expect("the control register");
    assert_eq!((written.before, written.after), (Mode::Disabled, Mode::FunctionMasked));
    // The whole first word: only the enable and the mask are written.
    let written = checked.write(0x70, &[0xff, 0xff, 0xff, 0x80]).msix.expect("the control register");
    assert!(written.after == Mode::Enabled && written.routes_changed);
    assert_eq!(word(&checked, 0x70), 0x8009_a011);
    assert!(checked.write(0x74, &[0xff; 4]).msix.is_none());
    assert_eq!(word(&checked, 0x74), 0x1004);
    let MsixCap { function, table, pba } = checked.space.msix().expect("it has them");
    assert_eq!(*table, Place { bar: 4, offset: 0x1000, size: 160 });
    assert_eq!(*pba, Place { bar: 4, offset: 0x1800, size: 8 });
    assert_eq!((table.within(4), table.within(0)), (Some(0x1000..0x10a0), None));
    assert_eq!((function.vectors(), function.signal(9)), (10, Ok(Signal::Pended)));
    assert!(checked.host.writes.borrow().is_empty());
    assert!(Checked::new(conventional()).space.msix().is_none());
}

fn msi() {
    let mut checked = Checked::new(igb());
    assert!(!set(&mut checked, 0x54, 0xfee0_1004));
    assert_eq!(word(&checked, 0x54), 0xfee0_1004);
    assert!(checked.write(0x5c, &[0x40, 0x40]).msi.is_some());
    let written = checked.write(0x52, &[0x21]).msi.expect("its control register");
    assert_eq!(written.routes.len(), 4);
    assert_eq!(checked.space.msi().map(|msi| msi.vectors_allocated()), Some(4));
    assert!(checked.host.writes.borrow().is_empty());
}

fn accesses_without_a_place() {
    let mut checked = Checked::new(igb());
    for offset in [0xffd, 0xfff, 4096, u16::MAX - 1, u16::MAX] {
        assert!(checked.write(offset, &[0xff; 4]).error.is_none());
        let _any: [u8; 4] = checked.read(offset);
    }
    assert_eq!(checked.read(4096), [0xff; 4]);
    assert_eq!(checked.read(0), [0xff; 5]);
    assert!(checked.write(4, &[0xff; 5]).command.is_none() && checked.write(4, &[]).command.is_none());
    // Unaligned, over three registers.
    assert_eq!(checked.read(1), [0x80, 0xc9, 0x10, 0x00]);
    checked.compare();
}

fn what_vanished_reads_as_ones() {
    let mut checked = Checked::new(igb());
    for mood in [Mood::Vanished, Mood::Failing] {
        checked.host.mood.set(mood);
        assert_eq!(word(&checked, 0), u32::MAX);
        assert_eq!(checked.write(4, &[6]).error.is_some(), mood == Mood::Failing);
        assert_eq!(checked.write(0xa8, &[0, 0x80]).error.is_some(), mood == Mood::Failing);
        assert_eq!(checked.space.command(), 6);
        checked.compare();
    }
}

fn refused(change: impl FnOnce(&mut Device)) -> String {
    let mut device = igb();
    change(&mut device);
    let host = Scripted::new(device.config);
    let made = ConfigSpace::new(&host, device.bar_sizes, device.rom_size, &device.options);
    made.expect_err("refused").to_string()
}

fn devices_that_contradict_themselves() {
    let says = |error: String, what: &str| assert!(error.contains(what), "{error}");
    says(refused(|d| d.config.fill(0xff)), "does not answer");
    says(refused(|d| d.config[14] = 1), "type 0x1");
    // Loops of one, of two, and out of place.
    says(refused(|d| d.config[0x41] = 0x40), "loop");
    says(refused(|d| d.config[0xa1] = 0x50), "loop");
    says(refused(|d| d.config[0x34] = 0x3c), "out of their place, at 0x3c");
    says(refused(|d| d.config[0x160..0x164].copy_from_slice(&[0x10, 0, 1, 0x15])), "loop");
    says(refused(|d| d.config[0x100..0x104].copy_from_slice(&[1, 0, 1, 0x01])), "at 0x10");
    says(refused(|d| d.bar_sizes[0] += 1), "power of two");
    says(refused(|d| d.bar_sizes[0] = 8), "size");
    says(refused(|d| d.bar_sizes[1] = 4096), "upper half");
    says(
        refused(|d| (d.config[0x24], d.bar_sizes[4], d.bar_sizes[5]) = (4, 0, 4096)),
        "without an upper half",
    );
    says(refused(|d| d.config[0x10] = 6), "reserved type");
    says(refused(|d| (d.config[0x18], d.bar_sizes[2]) = (0, 1 << 32)), "size");
    says(refused(|d| d.rom_size = 1 << 40), "ROM");
    // The table: beyond its BAR, in an absent BAR, in ports, in no BAR.
    says(refused(|d| d.config[0x75] = 0x40), "table");
    for bar in [2, 3, 5, 6, 7] {
        says(refused(|d| d.config[0x74] = bar), "table");
        says(refused(|d| d.config[0x78] = bar), "pending");
    }
    says(refused(|d| d.config[0x52] = 0x8c), "64 MSI vectors");
    says(refused(|d| d.config[0xa2] = 0x42), "type 0x4");
    // A capability in the middle of MSI.
    says(refused(|d| (d.config[0x41], d.config[0x60], d.config[0x61]) = (0x60, 0x09, 0x50)), "not room");
    let silent = Scripted::new(igb().config);
    silent.mood.set(Mood::Failing);
    let made = ConfigSpace::new(&silent, [0; 6], 0, &Options::default());
    says(made.expect_err("refused").to_string(), "configuration space");
}

fn a_legacy_endpoint_has_no_express_capability() {
    let mut device = igb();
    device.config[0xa2] = 0x12;
    let host = Scripted::new(device.config);
    let space = ConfigSpace::new(&host, device.bar_sizes, 0, &Options::default()).expect("a good device");
    let mut data = [0; 4];
    space.read(&host, 0x70, &mut data);
    assert_eq!(data, [0x11, 0, 9, 0]);
    space.read(&host, 0xa0, &mut data);
    assert_eq!(data, [0; 4]);
}

/// A place where something is, or any.
fn offset() -> impl Strategy<Value = u16> {
    prop_oneof![0..0x100u16, 0..0x40u16, 0x100..0x170u16, any::<u16>()]
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    let byte = || prop_oneof![Just(0u8), Just(0xff), any::<u8>()];
    prop_oneof![8 => prop::collection::vec(byte(), 1..5), 1 => prop::collection::vec(byte(), 0..10)]
}

proptest! {
    /// Read-only bits never change, BARs are their masks, `decoded` is what the registers say, and the device is
    /// told nothing else: [`Checked`] asserts it at every step.
    fn any_writes(which in 0..3usize, writes in prop::collection::vec((offset(), data()), 0..60), reset: bool) {
        let mut checked = Checked::new(DEVICES[which]());
        for (offset, data) in &writes {
            drop(checked.write(*offset, data));
        }
        if reset {
            drop(checked.reset());
        }
        checked.compare();
    }

    fn any_bytes_of_a_device(
        config in prop_oneof![prop::collection::vec(any::<u8>(), 256), prop::collection::vec(any::<u8>(), 4096)],
        plausible: bool,
        sizes: [u64; 6],
        shifts in prop::array::uniform6(0..70u32),
        writes in prop::collection::vec((offset(), data()), 0..20),
    ) {
        let mut config = config;
        let mut sizes = sizes;
        if plausible {
            config[0] = 0;
            config[14] = 0;
            sizes = shifts.map(|shift| 1u64.checked_shl(shift).unwrap_or(0));
        }
        let host = Scripted::new(config);
        if let Ok(mut space) = ConfigSpace::new(&host, sizes, sizes[0], &Options { rom: true, intx: true }) {
            for (offset, data) in writes {
                drop(space.write(&host, offset, &data));
                let mut read = data.clone();
                space.read(&host, offset, &mut read);
            }
        }
    }
}
