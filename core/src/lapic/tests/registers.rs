//! Behaviours 20 and 21, and the table of registers: what can be read and written, and how.

use super::*;

/// Every register: number, value after a reset with ID 0x12, the bits that a write in xAPIC mode leaves.
const TABLE: [(u32, u32, u32); 24] = [
    (0x02, 0x1200_0000, 0),
    (0x03, 0x0005_0014, 0),
    (0x08, 0, 0xff),
    (0x09, 0, 0),
    (0x0a, 0, 0xff),
    (0x0b, 0, 0),
    (0x0c, 0, 0),
    (0x0d, 0, 0xff00_0000),
    (0x0e, 0xffff_ffff, 0xf000_0000),
    (0x0f, 0xff, 0x3ff),
    (0x10, 0, 0),
    (0x1f, 0, 0),
    (0x27, 0, 0),
    (0x28, 0, 0),
    (0x31, 0, 0xff00_0000),
    (0x32, 0x1_0000, 0x7_00ff),
    (0x33, 0x1_0000, 0x1_07ff),
    (0x34, 0x1_0000, 0x1_07ff),
    (0x35, 0x1_0000, 0x1_a7ff),
    (0x36, 0x1_0000, 0x1_a7ff),
    (0x37, 0x1_0000, 0x1_00ff),
    (0x38, 0, 0xffff_ffff),
    (0x39, 0, 0),
    (0x3e, 0, 0xb),
];

#[test]
fn every_register_in_xapic_mode() {
    let lapic = Lapic::new(0x12, Role::Bsp);
    let vcpus = [lapic.posted_vcpu()].into();
    let mut m = Machine { lapics: [lapic].into(), vcpus, now: Time::default(), wakes: 0 };
    for (register, reset, _) in TABLE {
        assert_eq!(m.read(register), reset, "{register:#x}");
        assert_eq!(m.lapic().register(register << 4, Time::default()), Some(reset));
    }
    let _nothing = m.write(SVR, 0x1ff);
    for (register, reset, writable) in TABLE {
        if register == SVR || register == PPR {
            continue;
        }
        // A timer mode of 11 is none: the write is ignored.
        let ones = if register == LVT_TIMER { !(1 << 18) } else { u32::MAX };
        let written = if writable == 0 { reset } else { reset & !writable & !MASKED | writable & ones };
        let written = if register == DFR { u32::MAX } else { written };
        let _nothing = m.write(register, ones);
        if register != INITIAL {
            assert_eq!(m.read(register), written, "{register:#x}");
        }
        let at_rest = if (LVT_TIMER..=LVT_ERROR).contains(&register) { MASKED } else { 0 };
        let _nothing = m.write(register, at_rest);
    }
    assert_eq!(m.latched_esr(), 0, "all of them exist");
    for missing in [0x00, 0x04, 0x29, 0x2f, 0x3a, 0x3f, 0x40, 0xff] {
        assert_eq!(m.read(missing), 0, "{missing:#x}");
        assert_eq!(m.latched_esr(), 1 << 7);
        let _nothing = m.write(missing, 1);
        assert_eq!(m.latched_esr(), 1 << 7);
        assert!(m.lapic().register(missing << 4, Time::default()).is_none() || missing == SELF_IPI);
    }
}

#[test]
fn lengths_and_alignment_in_xapic_mode() {
    let mut m = Machine::xapic(1);
    for wrong in [&[1][..], &[1, 2], &[1; 8], &[1; 3], &[]] {
        assert_eq!(m.mmio_write(0, 0x80, wrong), Written::Nothing);
    }
    for offset in [0x81, 0x82, 0x84, 0x88] {
        assert_eq!(m.mmio_write(0, offset, &[0xff; 4]), Written::Nothing);
    }
    assert_eq!(m.read(TPR), 0);
    let mut read = |offset, length: usize| {
        let mut data = [0; 8];
        data[..length].fill(0xaa);
        m.lapics[0].read_mmio(offset, &mut data[..length], Time::default());
        u64::from_le_bytes(data)
    };
    assert_eq!((read(0x30, 4), read(0x30, 2), read(0x32, 2), read(0x32, 1)), (0x5_0014, 0x14, 5, 5));
    assert_eq!((read(0x33, 2), read(0x34, 4), read(0x30, 3), read(0x3c, 1)), (0, 0, 0, 0));
    assert_eq!(m.latched_esr(), 0);
}

#[test]
fn b20_what_faults_in_x2apic_mode() {
    let mut m = Machine::x2apic(1);
    m.serve(&[0x52]);
    let before = m.lapics[0].clone();
    for unreadable in [0x80b, 0x80e, 0x831, 0x83f, 0x809, 0x80c, 0x800, 0x82f, 0x840, 0x8ff, 0x7ff, 0x900] {
        assert_eq!(m.rdmsr(0, unreadable), Err(Fault), "{unreadable:#x}");
    }
    let read_only = [0x802, 0x803, 0x80a, 0x80d, 0x810, 0x818, 0x820, 0x827, 0x839];
    for unwritable in read_only.into_iter().chain([0x80e, 0x831, 0x809, 0x80c, 0x800, 0x82f, 0x840]) {
        assert_eq!(m.wrmsr(0, unwritable, 0), Err(Fault), "{unwritable:#x}");
    }
    for (msr, reserved) in [
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 0x400),
        (0x80f, 0x1000),
        (0x828, 1),
        (0x832, 0x100),
        (0x832, 0x6_0000),
        (0x833, 0x2000),
        (0x834, 0x800),
        (0x835, 0x800),
        (0x837, 0x100),
        (0x83e, 4),
        (0x83f, 0x100),
    ] {
        assert_eq!(m.wrmsr(0, msr, reserved), Err(Fault), "{msr:#x}");
    }
    for writable in [0x808, 0x80b, 0x80f, 0x828, 0x832, 0x837, 0x838, 0x83e, 0x83f] {
        assert_eq!(m.wrmsr(0, writable, 1 << 32), Err(Fault), "{writable:#x}");
    }
    assert_eq!(m.lapics[0].interrupts(), before.interrupts());
    for (register, ..) in TABLE {
        assert_eq!(m.lapics[0].register(register << 4, m.now), before.register(register << 4, m.now));
    }
    for (msr, value, reads) in [
        (0x808, 0xff, 0xff),
        (0x80f, 0x3ff, 0x3ff),
        (0x835, 0x1_f7ff, 0x1_a7ff),
        (0x833, 0x1_17ff, 0x1_07ff),
        (0x832, 0x1041, 0x41),
        (0x83e, 0xb, 0xb),
    ] {
        assert_eq!(m.wrmsr(0, msr, value), Ok(Written::Nothing));
        assert_eq!(m.rdmsr(0, msr), Ok(reads), "{msr:#x}");
    }
}

#[test]
fn b21_each_mode_has_its_own_way_in() {
    let mut m = Machine::xapic(1);
    assert_eq!(m.rdmsr(0, 0x808), Err(Fault));
    assert_eq!(m.wrmsr(0, 0x808, 0), Err(Fault));
    let mut m = Machine::x2apic(1);
    for mode in [Mode::X2Apic, Mode::Off] {
        assert_eq!(m.lapic().mode(), mode);
        assert_eq!(m.mmio_read(0, 0x80), u32::MAX);
        assert_eq!(m.mmio_write(0, 0x80, &[0x70, 0, 0, 0]), Written::Nothing);
        assert_eq!(m.lapic().set_cr8(3), Ok(()));
        assert_eq!(m.lapic().cr8(), 3);
        assert_eq!(m.lapic().ppr(), 0x30);
        assert!(m.wrmsr(0, 0x1b, 0xfee0_0000).is_ok());
    }
    assert_eq!(m.rdmsr(0, 0x808), Err(Fault));
}

#[test]
fn isr_tmr_and_irr_are_eight_words_each() {
    let mut m = Machine::x2apic(1);
    let set = VectorSet::from_words([0x1111_1111_2222_ffff, 0x3333_3333_4444_4444, 0x5555_5555_6666_6666, 7]);
    m.lapic().restore(Interrupts { irr: set, isr: set, tmr: set });
    let words = [0x2222_0000, 0x1111_1111, 0x4444_4444, 0x3333_3333, 0x6666_6666, 0x5555_5555, 7, 0];
    for base in [0x10, 0x18, 0x20] {
        for (register, word) in (base..).zip(words) {
            assert_eq!(m.read(register), word, "{register:#x}");
        }
    }
    let pending = m.lapics[0].pending(&m.vcpus[0]);
    assert_eq!(m.lapic().counts().local, u64::from(pending));
    m.lapic().restore(Interrupts::default());
    assert_eq!(m.lapic().counts().discarded, u64::from(pending));
}

#[test]
fn the_id_in_both_forms() {
    let lapic = Lapic::new(0x1234, Role::Ap);
    let vcpus = [lapic.posted_vcpu()].into();
    let mut m = Machine { lapics: [lapic].into(), vcpus, now: Time::default(), wakes: 0 };
    assert_eq!(m.read(ID), 0x3400_0000);
    let _nothing = m.write(ID, 0x0100_0000);
    assert_eq!(m.read(ID), 0x3400_0000);
    assert!(m.wrmsr(0, 0x1b, 0xfee0_0c00).is_ok());
    assert_eq!((m.read(ID), m.read(LDR)), (0x1234, 0x0123_0010));
}
