//! Behaviours 7 to 10, 13, 14, 19: vectors that are none, errors, and what the ICR sends.

use super::*;

#[test]
fn b7_an_illegal_vector_by_msi_is_the_receivers_error() {
    let mut m = Machine::x2apic(1);
    assert_eq!(m.msi(0, 15), Delivery::Blocked);
    assert_eq!(m.lapic().interrupts(), Interrupts::default());
    assert_eq!(m.read(ESR), 0);
    assert_eq!(m.latched_esr(), 1 << 6);
    assert_eq!(m.msi(0, 16), ONE);
    assert_eq!(vectors(m.lapic().interrupts().irr), [16]);
}

#[test]
fn b8_an_illegal_vector_by_icr_is_not_sent() {
    let mut m = Machine::x2apic(2);
    assert_eq!(m.wrmsr(0, 0x830, 1 << 32 | 15), Ok(Written::Nothing));
    assert_eq!(m.latched_esr(), 1 << 5);
    assert_eq!(m.wrmsr(0, 0x83f, 15), Ok(Written::Nothing));
    assert_eq!(m.latched_esr(), 1 << 5 | 1 << 6);
    assert_eq!(m.wrmsr(0, 0x830, 1 << 18 | 15), Ok(Written::Nothing));
    assert_eq!(m.latched_esr(), 1 << 5 | 1 << 6);
    assert_eq!(m.wrmsr(1, 0x828, 0), Ok(Written::Nothing));
    assert_eq!(m.rdmsr(1, 0x828), Ok(0));
}

#[test]
fn b9_the_esr_is_latched_by_a_write() {
    let mut m = Machine::x2apic(1);
    assert_eq!(m.msi(0, 15), Delivery::Blocked);
    assert_eq!(m.wrmsr(0, 0x828, 1), Err(Fault));
    assert_eq!(m.read(ESR), 0, "a write that faults latches nothing");
    assert_eq!(m.latched_esr(), 1 << 6);
    assert_eq!(m.latched_esr(), 0);
    let mut m = Machine::xapic(1);
    assert_eq!(m.msi(0, 15), Delivery::Blocked);
    let _nothing = m.write(ESR, 0xffff_ffff);
    assert_eq!(m.read(ESR), 1 << 6, "in xAPIC mode any value latches");
}

#[test]
fn b10_the_first_error_is_an_interrupt() {
    let mut m = Machine::x2apic(1);
    let _nothing = m.write(LVT_ERROR, 0xfe);
    assert_eq!((m.msi(0, 15), m.msi(0, 14)), (Delivery::Blocked, Delivery::Blocked));
    assert_eq!(m.take_all(), [0xfe]);
    assert_eq!(m.lapic().counts().local, 1);
    assert_eq!(m.lapic().eoi(), Some(Eoi { vector: 0xfe, broadcast: false }));
    assert_eq!(m.latched_esr(), 1 << 6);
    assert_eq!(m.msi(0, 15), Delivery::Blocked);
    assert_eq!(m.take_all(), [0xfe], "the first after a write");

    let mut m = Machine::x2apic(1);
    assert_eq!(m.msi(0, 15), Delivery::Blocked);
    assert_eq!(m.take_all(), [], "masked");
    assert_eq!(m.latched_esr(), 1 << 6);

    let mut m = Machine::x2apic(1);
    let _nothing = m.write(LVT_ERROR, 0x0f);
    assert_eq!(m.wrmsr(0, 0x830, 15), Ok(Written::Nothing));
    assert_eq!(m.latched_esr(), 1 << 5 | 1 << 6, "an error about an error, and no end of it");
}

#[test]
fn b13_a_sipi_starts_who_waits_for_it() {
    let mut m = Machine::new(2);
    let sipi = |vector| event(Destination::Physical(1), Request::Sipi(vector));
    let init = event(Destination::Physical(1), Request::Init);
    assert!(m.lapics[1].waits_for_sipi() && !m.lapics[0].waits_for_sipi());
    assert_eq!(m.deliver(&sipi(0x9a)), ONE);
    assert_eq!(m.lapics[1].event(), Some(Event::Startup { vector: 0x9a }));
    assert!(!m.lapics[1].waits_for_sipi());
    assert_eq!(m.deliver(&sipi(0x9b)), ONE);
    assert_eq!(m.lapics[1].event(), None, "it runs");
    assert_eq!((m.post(&init), m.deliver(&sipi(0x9c))), (ONE, ONE));
    assert_eq!(m.lapics[1].event(), Some(Event::Init));
    assert_eq!(m.lapics[1].event(), Some(Event::Startup { vector: 0x9c }));
    assert_eq!((m.post(&sipi(0x9d)), m.deliver(&init)), (ONE, ONE));
    assert_eq!(m.lapics[1].event(), Some(Event::Init));
    assert_eq!(m.lapics[1].event(), None, "the INIT was later");
    assert!(m.lapics[1].waits_for_sipi());
    let to_bsp = Destination::Physical(0);
    assert_eq!(
        (m.post(&event(to_bsp, Request::Init)), m.deliver(&event(to_bsp, Request::Sipi(1)))),
        (ONE, ONE)
    );
    assert_eq!(m.lapics[0].event(), Some(Event::Init));
    assert_eq!(m.lapics[0].event(), None, "the bootstrap processor runs");
}

#[test]
fn nobody_takes_an_interrupt_while_it_waits_for_a_sipi() {
    let mut m = Machine::new(2);
    assert!(m.wrmsr(1, 0x1b, 0xfee0_0c00).is_ok());
    assert!(m.wrmsr(1, 0x80f, 0x1ff).is_ok());
    assert_eq!(m.msi(1, 0x41), ONE);
    assert_eq!(m.deliver(&event(Destination::Physical(1), Request::Nmi)), ONE);
    assert_eq!((m.lapics[1].take(), m.lapics[1].event()), (None, None));
    assert_eq!(m.deliver(&event(Destination::Physical(1), Request::Sipi(2))), ONE);
    assert_eq!(m.lapics[1].event(), Some(Event::Startup { vector: 2 }));
    assert_eq!((m.lapics[1].event(), m.lapics[1].take()), (Some(Event::Nmi), Some(0x41)));
}

#[test]
fn b14_a_self_ipi_is_there_before_the_write_returns() {
    let mut m = Machine::x2apic(1);
    assert_eq!(m.level(0x60), ONE);
    assert_eq!(m.take_all(), [0x60]);
    for (msr, value) in [(0x83f, 0x60), (0x830, 1 << 18 | 0x60)] {
        let vcpu = &m.vcpus[0];
        assert_eq!(m.lapics[0].write_msr(vcpu, msr, value, m.now), Ok(Written::Nothing));
        assert_eq!(vectors(m.lapic().interrupts().irr), [0x60]);
        assert_eq!(vectors(m.lapic().interrupts().tmr), []);
        m.lapic().restore(Interrupts::default());
    }
    assert_eq!(m.wrmsr(0, 0x83f, 0x160), Err(Fault));
    let mut m = Machine::xapic(1);
    let _nothing = m.write(ICR, 1 << 18 | 0x60);
    assert_eq!(m.take_all(), [0x60]);
}

#[test]
fn b19_reserved_bits_of_the_icr() {
    let mut m = Machine::x2apic(2);
    for bit in [13, 16, 17, 20, 31] {
        assert_eq!(m.wrmsr(0, 0x830, 1 << 32 | 1 << bit | 0x41), Err(Fault), "bit {bit}");
    }
    assert_eq!(m.who(0x41), []);
    assert_eq!(m.rdmsr(0, 0x830), Ok(0));
    assert!(m.wrmsr(0, 0x830, 1 << 32 | 1 << 12 | 0x41).is_ok());
    assert_eq!(m.who(0x41), [1]);
    assert_eq!(m.rdmsr(0, 0x830), Ok(1 << 32 | 0x41));
    let mut m = Machine::xapic(2);
    let _nothing = m.write(ICR_HIGH, 0x01ff_ffff);
    assert_eq!(m.read(ICR_HIGH), 0x0100_0000);
    let _nothing = m.write(ICR, 0xfff3_3000 | 0x41);
    assert_eq!(m.who(0x41), [1]);
    assert_eq!(m.read(ICR), 0x41);
}

#[test]
fn what_the_icr_sends() {
    let sent = |mode: Mode, low: u32| {
        let mut m = Machine::new(4).set_up(mode);
        match mode {
            Mode::X2Apic => assert!(m.wrmsr(0, 0x830, 2 << 32 | u64::from(low)).is_ok()),
            _ => {
                let _nothing = m.write(ICR_HIGH, 2 << 24);
                let _sent = m.write(ICR, low);
            }
        }
        let events: Vec<_> = m.lapics.iter_mut().map(Lapic::event).collect();
        (m.who(0x41), events, m.latched_esr())
    };
    let none = (Vec::new(), [None; 4].to_vec(), 0);
    for mode in [Mode::XApic, Mode::X2Apic] {
        assert_eq!(sent(mode, 0x41), ([2].to_vec(), none.1.clone(), 0));
        assert_eq!(sent(mode, 3 << 18 | 1 << 11 | 0x41).0, [1, 2, 3], "all but itself, whatever the mode");
        assert_eq!(sent(mode, 2 << 18 | 0x41).0, [0, 1, 2, 3]);
        for mute in [0x241, 0x341, 0x741, 0x8541, 1 << 18 | 0x541, 1 << 18 | 0x641] {
            assert_eq!(sent(mode, mute), none, "{mute:#x}");
        }
        assert_eq!(sent(mode, 0x441).1, [None, None, Some(Event::Nmi), None]);
        assert_eq!(sent(mode, 1 << 18 | 0x441).1, [Some(Event::Nmi), None, None, None]);
        for assert in [0x541, 0x4541, 0xc541] {
            assert_eq!(sent(mode, assert).1, [None, None, Some(Event::Init), None], "{assert:#x}");
        }
    }
    assert_eq!(
        sent(Mode::X2Apic, 0x141),
        (none.0.clone(), none.1.clone(), 1 << 4),
        "lowest priority is not in x2APIC"
    );
    assert_eq!(sent(Mode::XApic, 3 << 18 | 0x141).0, [3], "0x41 mod 3, of 1, 2 and 3");
}

#[test]
fn an_ipi_is_an_edge_whatever_it_says() {
    let mut m = Machine::x2apic(1);
    assert!(m.wrmsr(0, 0x830, 0xc041).is_ok());
    assert_eq!(vectors(m.lapic().interrupts().irr), [0x41]);
    assert_eq!(vectors(m.lapic().interrupts().tmr), []);
}

#[test]
fn local_interrupts_by_their_entries() {
    use LocalDelivery::{Accepted, Lost, Refused};
    let mut m = Machine::x2apic(1);
    let signal = |m: &mut Machine, source| m.lapics[0].signal(&m.vcpus[0], source);
    assert_eq!(signal(&mut m, Lvt::Lint0), Lost, "masked");
    let _nothing = m.write(LVT_LINT0, 0x41);
    assert_eq!(signal(&mut m, Lvt::Lint0), Accepted);
    assert_eq!(m.take_all(), [0x41]);
    let _nothing = m.write(LVT_LINT0, 0x8041);
    assert_eq!(signal(&mut m, Lvt::Lint0), Refused, "a level");
    let _nothing = m.write(LVT_LINT0, 0x700);
    assert_eq!(signal(&mut m, Lvt::Lint0), Refused, "ExtINT");
    let _nothing = m.write(LVT_LINT1, 0x400);
    assert_eq!(signal(&mut m, Lvt::Lint1), Accepted);
    assert_eq!(m.lapic().event(), Some(Event::Nmi));
    let _nothing = m.write(LVT_PERFORMANCE, 0x42);
    assert_eq!(signal(&mut m, Lvt::Performance), Accepted);
    assert_eq!(m.read(LVT_PERFORMANCE), MASKED | 0x42);
    assert_eq!(signal(&mut m, Lvt::Performance), Lost);
    assert_eq!((signal(&mut m, Lvt::Timer), signal(&mut m, Lvt::Error)), (Refused, Refused));
    let _nothing = m.write(LVT_LINT1, 0x500);
    assert_eq!(signal(&mut m, Lvt::Lint1), Accepted);
    m.harvest();
    assert_eq!(m.lapic().event(), Some(Event::Init));
}

#[test]
fn one_nmi_is_latched_while_one_is_handled() {
    let mut m = Machine::x2apic(1);
    let nmi = event(Destination::Physical(0), Request::Nmi);
    for _ in 0..3 {
        assert_eq!(m.deliver(&nmi), ONE);
    }
    assert_eq!((m.lapic().event(), m.lapic().event()), (Some(Event::Nmi), None));
    assert_eq!((m.deliver(&nmi), m.deliver(&nmi)), (ONE, ONE));
    assert_eq!(m.lapic().event(), None);
    m.lapic().nmi_done();
    assert_eq!((m.lapic().event(), m.lapic().event()), (Some(Event::Nmi), None));
    m.lapic().nmi_done();
    assert_eq!(m.lapic().event(), None);
}
