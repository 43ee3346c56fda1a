//! Behaviours 11, 12 and 22: software disable, INIT, and the modes.

use super::*;

#[test]
fn b11_software_disabled() {
    let mut m = Machine::x2apic(1);
    let _nothing = m.write(LVT_TIMER, 0x20);
    assert_eq!(m.msi(0, 0x40), ONE);
    let _nothing = m.write(SVR, 0xff);
    assert_eq!(vectors(m.lapic().interrupts().irr), [0x40]);
    assert_eq!(m.msi(0, 0x41), Delivery::Blocked);
    assert_eq!(m.wrmsr(0, 0x83f, 0x42), Ok(Written::Nothing));
    assert_eq!(m.take_all(), [0x40], "D: what the IRR holds is still taken");
    assert_eq!(m.deliver(&event(Destination::Physical(0), Request::Nmi)), ONE);
    assert_eq!(m.lapic().event(), Some(Event::Nmi));
    assert_eq!(m.read(LVT_TIMER), MASKED | 0x20);
    let _nothing = m.write(LVT_TIMER, 0x21);
    assert_eq!(m.read(LVT_TIMER), MASKED | 0x21);
    let _nothing = m.write(SVR, 0x1ff);
    assert_eq!(m.read(LVT_TIMER), MASKED | 0x21);
    let _nothing = m.write(LVT_TIMER, 0x21);
    assert_eq!(m.read(LVT_TIMER), 0x21);
    assert_eq!(m.msi(0, 0x41), ONE);
}

#[test]
fn b11_a_disabled_apic_sends() {
    let mut m = Machine::x2apic(2);
    let _nothing = m.write(SVR, 0xff);
    assert!(m.wrmsr(0, 0x830, 1 << 32 | 0x41).is_ok());
    assert_eq!(m.who(0x41), [1]);
}

#[test]
fn b12_an_init_leaves_id_and_mode() {
    let mut m = Machine::x2apic(2);
    assert_eq!((m.msi(1, 0x41), m.msi(1, 0x51)), (ONE, ONE));
    assert_eq!(m.lapics[1].take(), Some(0x51));
    assert!(m.wrmsr(1, 0x832, 0x20).is_ok());
    assert!(m.wrmsr(1, 0x808, 0x20).is_ok());
    let address = m.lapics[1].address();
    assert_eq!(m.post(&fixed(Destination::Physical(1), 0x61)), ONE);
    assert_eq!(m.deliver(&event(Destination::Physical(1), Request::Init)), ONE);
    assert_eq!(m.lapics[1].event(), Some(Event::Init));
    assert_eq!(m.lapics[1].interrupts(), Interrupts::default());
    assert_eq!(m.lapics[1].pending(&m.vcpus[1]), 0);
    assert_eq!(m.lapics[1].counts(), Counts { taken: 1, discarded: 2, ..Counts::default() });
    assert_eq!((m.rdmsr(1, 0x80f), m.rdmsr(1, 0x808)), (Ok(0xff), Ok(0)));
    for lvt in 0x832..=0x837 {
        assert_eq!(m.rdmsr(1, lvt), Ok(MASKED.into()), "{lvt:#x}");
    }
    assert_eq!((m.rdmsr(1, 0x802), m.rdmsr(1, 0x80d)), (Ok(1), Ok(2)));
    assert_eq!(m.lapics[1].mode(), Mode::X2Apic);
    assert!(m.lapics[1].waits_for_sipi());
    let now = Address::of(&m.vcpus[1]);
    assert!(address.is_software_enabled() && !now.is_software_enabled());
    assert_eq!((now.id(), now.mode()), (1, Mode::X2Apic));
    assert_eq!(m.msi(1, 0x41), Delivery::Blocked);
}

#[test]
fn b22_the_ways_between_the_modes() {
    const OFF: u64 = 0xfee0_0000;
    const XAPIC: u64 = 0xfee0_0800;
    const X2APIC: u64 = 0xfee0_0c00;
    const EXTD_ALONE: u64 = 0xfee0_0400;
    let ways = [
        (OFF, [(OFF, true), (XAPIC, true), (X2APIC, false), (EXTD_ALONE, false)]),
        (XAPIC, [(OFF, true), (XAPIC, true), (X2APIC, true), (EXTD_ALONE, false)]),
        (X2APIC, [(OFF, true), (XAPIC, false), (X2APIC, true), (EXTD_ALONE, false)]),
    ];
    for (from, to) in ways {
        for (to, allowed) in to {
            let mut m = Machine::new(1);
            assert!(m.wrmsr(0, 0x1b, from).is_ok());
            assert_eq!(m.wrmsr(0, 0x1b, to).is_ok(), allowed, "{from:#x} to {to:#x}");
            assert_eq!(m.rdmsr(0, 0x1b), Ok(if allowed { to } else { from } | 0x100));
        }
    }
    let mut m = Machine::new(1);
    for reserved in [1 << 9, 1, 1 << 7, 1 << 52, 1 << 63] {
        assert_eq!(m.wrmsr(0, 0x1b, XAPIC | reserved), Err(Fault), "{reserved:#x}");
    }
    assert!(m.wrmsr(0, 0x1b, 0x1234_5800).is_ok());
    assert_eq!((m.rdmsr(0, 0x1b), m.lapic().base_address()), (Ok(0x1234_5900), 0x1234_5000));
}

#[test]
fn b22_x2apic_mode_keeps_all_but_ldr_and_icr_high() {
    let mut m = Machine::xapic(2);
    let set = [(TPR, 0x20), (SVR, 0x1fe), (LVT_TIMER, 0x1_0033), (INITIAL, 0xffff), (DIVIDE, 3)];
    for (register, value) in set.into_iter().chain([(LDR, 0x0200_0000), (ICR_HIGH, 0x0100_0000)]) {
        let _nothing = m.write(register, value);
    }
    let _sent = m.write(ICR, 0x4041);
    assert_eq!(m.msi(0, 0x20), ONE);
    assert_eq!(m.wrmsr(0, 0x1b, 0xfee0_0c00), Ok(Written::Nothing));
    for (register, value) in set {
        assert_eq!(m.read(register), value, "{register:#x}");
    }
    assert_eq!(m.rdmsr(0, 0x830), Ok(0x4041));
    assert_eq!(m.read(LDR), 1);
    assert_eq!(vectors(m.lapic().interrupts().irr), [0x20]);
    assert_eq!(Address::of(&m.vcpus[0]).mode(), Mode::X2Apic);
}

#[test]
fn off_resets_and_discards() {
    let mut m = Machine::x2apic(1);
    assert_eq!((m.msi(0, 0x41), m.msi(0, 0x51)), (ONE, ONE));
    assert_eq!(m.lapic().take(), Some(0x51));
    let nmi = event(Destination::Physical(0), Request::Nmi);
    assert_eq!((m.post(&fixed(Destination::Physical(0), 0x61)), m.post(&nmi)), (ONE, ONE));
    assert_eq!(m.wrmsr(0, 0x1b, 0xfee0_0000), Ok(Written::Nothing));
    assert_eq!(m.lapic().counts(), Counts { taken: 1, discarded: 2, ..Counts::default() });
    assert_eq!(m.lapic().interrupts(), Interrupts::default());
    for interrupt in [fixed(Destination::Physical(0), 0x41), fixed(Destination::All, 0x41), nmi] {
        assert_eq!(m.deliver(&interrupt), Delivery::Blocked);
    }
    assert_eq!(m.lapic().event(), Some(Event::Nmi), "accepted before");
    // As a sender that read the address before.
    assert!(!m.vcpus[0].posted().post(0x41, Trigger::Edge).coalesced);
    m.harvest();
    assert_eq!((m.lapic().take(), m.lapic().counts().discarded), (None, 3));
    assert_eq!(m.wrmsr(0, 0x1b, 0xfee0_0800), Ok(Written::Nothing));
    assert_eq!((m.read(SVR), m.read(LDR)), (0xff, 0));
}

#[test]
fn a_reset_forgets_everything_but_the_counts() {
    let mut m = Machine::x2apic(2);
    assert_eq!((m.msi(1, 0x41), m.msi(1, 0x51)), (ONE, ONE));
    assert_eq!(m.lapics[1].take(), Some(0x51));
    assert_eq!(m.post(&fixed(Destination::Physical(1), 0x61)), ONE);
    assert_eq!(m.post(&event(Destination::Physical(1), Request::Nmi)), ONE);
    m.lapics[1].reset(&m.vcpus[1]);
    assert_eq!(m.lapics[1].counts(), Counts { taken: 1, discarded: 2, ..Counts::default() });
    let new = Lapic { counts: m.lapics[1].counts, ..Lapic::new(1, Role::Ap) };
    assert_eq!(std::format!("{:?}", m.lapics[1]), std::format!("{new:?}"));
    assert_eq!(Address::of(&m.vcpus[1]), Address::reset(1));
    assert_eq!(m.vcpus[1].posted().harvest(), None);
}

/// An error that was on its way when the guest switched its APIC off: off resets the registers, the hidden word of errors too.
#[test]
fn an_error_posted_before_off_is_not_there_after() {
    let mut m = Machine::x2apic(1);
    assert_eq!(m.post(&fixed(Destination::Physical(0), 15)), Delivery::Blocked);
    assert_eq!(m.wrmsr(0, 0x1b, 0xfee0_0000), Ok(Written::Nothing));
    m.harvest();
    assert_eq!(m.wrmsr(0, 0x1b, 0xfee0_0800), Ok(Written::Nothing));
    assert_eq!(m.latched_esr(), 0);
}
