//! Behaviours 25 to 28: the timer, on a clock that only the test moves.

use super::*;

const VECTOR: u8 = 0x41;
const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 2 << 17;
const DEADLINE_MSR: u32 = 0x6e0;

/// A machine whose timer divides by 1, with this LVT entry.
fn machine(lvt: u32) -> Machine {
    let mut m = Machine::x2apic(1);
    let _nothing = m.write(DIVIDE, 0xb);
    let _nothing = m.write(LVT_TIMER, lvt);
    m
}

impl Machine {
    fn fired(&mut self) -> u64 {
        let now = self.now;
        self.lapic().advance(now);
        let counts = self.lapic().counts();
        assert!(counts.local_coalesced <= counts.local);
        counts.local
    }
}

#[test]
fn b25_an_expiry_while_masked_is_lost() {
    let mut m = machine(MASKED | u32::from(VECTOR));
    let _nothing = m.write(INITIAL, 100);
    assert_eq!(m.lapic().deadline(), None);
    assert_eq!((m.at(150).fired(), m.read(CURRENT)), (0, 0));
    let _nothing = m.write(LVT_TIMER, VECTOR.into());
    assert_eq!(m.at(1000).fired(), 0);

    // Nobody looked before it was unmasked.
    let mut m = machine(MASKED | u32::from(VECTOR));
    let _nothing = m.write(INITIAL, 100);
    let _nothing = m.at(150).write(LVT_TIMER, VECTOR.into());
    assert_eq!((m.fired(), m.lapic().deadline()), (0, None));
}

#[test]
fn b26_late_periods_are_one_interrupt_and_keep_their_phase() {
    let mut m = machine(PERIODIC | u32::from(VECTOR));
    let _nothing = m.write(INITIAL, 100);
    assert_eq!(m.lapic().deadline(), Some(Deadline::Bus(100)));
    assert_eq!((m.at(99).fired(), m.read(CURRENT)), (0, 1));
    assert_eq!((m.at(350).fired(), m.read(CURRENT)), (1, 50));
    assert_eq!(m.lapic().deadline(), Some(Deadline::Bus(400)));
    assert_eq!((m.at(400).fired(), m.read(CURRENT)), (2, 100));
    assert_eq!(m.take_all(), [VECTOR]);
    assert_eq!(m.lapic().counts().local_coalesced, 1);
}

#[test]
fn b27_one_shot() {
    let mut m = machine(VECTOR.into());
    let _nothing = m.write(INITIAL, 100);
    assert_eq!((m.at(40).fired(), m.read(CURRENT)), (0, 60));
    let _nothing = m.write(LVT_TIMER, PERIODIC | u32::from(VECTOR));
    assert_eq!((m.at(60).read(CURRENT), m.lapic().deadline()), (40, Some(Deadline::Bus(100))));
    let _nothing = m.write(LVT_TIMER, VECTOR.into());
    assert_eq!((m.at(100).fired(), m.read(CURRENT), m.read(INITIAL)), (1, 0, 100));
    assert_eq!((m.at(1000).fired(), m.read(CURRENT), m.lapic().deadline()), (1, 0, None));
    let _nothing = m.write(LVT_TIMER, PERIODIC | u32::from(VECTOR));
    assert_eq!((m.at(2000).fired(), m.read(CURRENT)), (1, 0));
    let _nothing = m.write(INITIAL, 100);
    let _nothing = m.at(2050).write(INITIAL, 0);
    assert_eq!((m.at(3000).fired(), m.read(CURRENT), m.lapic().deadline()), (1, 0, None));
}

#[test]
fn b28_tsc_deadline() {
    let mut m = machine(TSC_DEADLINE | u32::from(VECTOR));
    m.now.tsc = 1000;
    assert_eq!(m.wrmsr(0, DEADLINE_MSR, 1500), Ok(Written::Nothing));
    assert_eq!((m.rdmsr(0, DEADLINE_MSR), m.lapic().deadline()), (Ok(1500), Some(Deadline::Tsc(1500))));
    m.now.tsc = 1499;
    assert_eq!(m.fired(), 0);
    m.now.tsc = 1500;
    assert_eq!((m.fired(), m.rdmsr(0, DEADLINE_MSR), m.lapic().deadline()), (1, Ok(0), None));
    assert_eq!(m.fired(), 1, "once");
    assert_eq!(m.wrmsr(0, DEADLINE_MSR, 1500), Ok(Written::Nothing));
    assert_eq!((m.lapic().counts().local, m.rdmsr(0, DEADLINE_MSR)), (2, Ok(0)), "at once");
    for value in [2000, 0] {
        assert_eq!(m.wrmsr(0, DEADLINE_MSR, value), Ok(Written::Nothing));
    }
    m.now.tsc = 3000;
    assert_eq!((m.fired(), m.lapic().deadline()), (2, None));
    let _nothing = m.write(INITIAL, 100);
    assert_eq!((m.read(INITIAL), m.read(CURRENT)), (0, 0));

    let mut m = machine(VECTOR.into());
    assert_eq!(m.wrmsr(0, DEADLINE_MSR, 1), Ok(Written::Nothing));
    m.now.tsc = 10;
    assert_eq!((m.rdmsr(0, DEADLINE_MSR), m.fired()), (Ok(0), 0));
}

#[test]
fn to_and_from_deadline_mode_disarms() {
    let mut m = machine(PERIODIC | u32::from(VECTOR));
    let _nothing = m.write(INITIAL, 100);
    let _nothing = m.write(LVT_TIMER, TSC_DEADLINE | u32::from(VECTOR));
    assert_eq!((m.read(INITIAL), m.read(CURRENT), m.at(1000).fired()), (0, 0, 0));
    assert_eq!(m.wrmsr(0, DEADLINE_MSR, 50), Ok(Written::Nothing));
    let _nothing = m.write(LVT_TIMER, VECTOR.into());
    m.now.tsc = 100;
    assert_eq!((m.fired(), m.rdmsr(0, DEADLINE_MSR)), (0, Ok(0)));
}

#[test]
fn the_divide_values() {
    let divides = [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xa, 128), (0xb, 1)];
    for (code, divide) in divides {
        let mut m = machine(VECTOR.into());
        let _nothing = m.write(DIVIDE, code);
        let _nothing = m.write(INITIAL, u32::MAX);
        let last = u64::from(u32::MAX) * divide;
        assert_eq!(m.lapic().deadline(), Some(Deadline::Bus(last)), "{code}");
        assert_eq!((m.at(last - 1).fired(), m.read(CURRENT)), (0, 1));
        assert_eq!((m.at(last).fired(), m.read(CURRENT)), (1, 0));
    }
}

#[test]
fn a_new_divide_value_keeps_the_count() {
    let mut m = machine(VECTOR.into());
    let _nothing = m.write(INITIAL, 100);
    let _nothing = m.at(40).write(DIVIDE, 3);
    assert_eq!((m.read(CURRENT), m.lapic().deadline()), (60, Some(Deadline::Bus(40 + 60 * 16))));
}

#[test]
fn an_illegal_vector_of_the_timer_is_an_error() {
    let mut m = machine(0x0f);
    let _nothing = m.write(INITIAL, 100);
    assert_eq!(m.at(100).fired(), 0);
    assert_eq!(m.latched_esr(), 1 << 6);
}
