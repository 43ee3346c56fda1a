//! Behaviours 1 to 6, 23, 24, 29, 30: what is taken when, what an EOI does, and halting and parking between.

use super::*;
use crate::sync::Idle;

fn eoi(vector: u8, broadcast: bool) -> Option<Eoi> {
    Some(Eoi { vector, broadcast })
}

#[test]
fn b1_the_class_in_service_holds_back_its_own_and_lower_ones() {
    for waiting in [0x31, 0x5f] {
        let mut m = Machine::x2apic(1);
        m.serve(&[0x52]);
        assert_eq!(m.msi(0, waiting), ONE);
        assert_eq!(m.lapic().take(), None);
        assert_eq!(m.read(PPR), 0x50);
        assert_eq!(m.write(EOI, 0), Written::Eoi(Eoi { vector: 0x52, broadcast: false }));
        assert_eq!(m.lapic().take(), Some(waiting));
    }
}

#[test]
fn b2_a_higher_class_nests_and_ends_first() {
    let mut m = Machine::x2apic(1);
    m.serve(&[0x52, 0x61]);
    assert_eq!(vectors(m.lapic().interrupts().isr), [0x52, 0x61]);
    assert_eq!(m.lapic().eoi(), eoi(0x61, false));
    assert_eq!(m.lapic().eoi(), eoi(0x52, false));
}

#[test]
fn b3_a_vector_in_service_waits_once_more_and_then_coalesces() {
    let mut m = Machine::x2apic(1);
    m.serve(&[0x52]);
    assert_eq!(m.msi(0, 0x52), ONE);
    assert_eq!(m.lapic().take(), None);
    assert_eq!(m.msi(0, 0x52), ONE, "not in the PIR any more: the owner counts it");
    assert_eq!(m.lapic().counts().coalesced, 1);
    assert_eq!(m.lapic().eoi(), eoi(0x52, false));
    assert_eq!(m.take_all(), [0x52]);
    assert_eq!(m.lapic().counts().taken, 2);
}

#[test]
fn b4_an_eoi_of_nothing_is_nothing() {
    let mut m = Machine::x2apic(1);
    assert_eq!(m.lapic().eoi(), None);
    assert_eq!(m.wrmsr(0, 0x80b, 0), Ok(Written::Nothing));
}

#[test]
fn b5_the_task_priority_holds_back_its_class_and_no_nmi() {
    let mut m = Machine::x2apic(1);
    let _nothing = m.write(TPR, 0x3f);
    assert_eq!((m.msi(0, 0x3f), m.msi(0, 0x40)), (ONE, ONE));
    assert_eq!(m.take_all(), [0x40]);
    assert_eq!(m.lapic().eoi(), eoi(0x40, false));
    let _nothing = m.write(TPR, 0xf0);
    assert_eq!(m.msi(0, 0xff), ONE);
    assert_eq!(m.lapic().take(), None);
    assert_eq!(m.deliver(&event(Destination::Physical(0), Request::Nmi)), ONE);
    assert_eq!(m.lapic().event(), Some(Event::Nmi));
    let _nothing = m.write(TPR, 0);
    assert_eq!(m.take_all(), [0xff]);
    assert_eq!(m.lapic().eoi(), eoi(0xff, false));
    assert_eq!(m.take_all(), [0x3f]);
}

#[test]
fn b6_the_processor_priority_and_cr8() {
    let mut m = Machine::x2apic(1);
    let _nothing = m.write(TPR, 0x35);
    assert_eq!(m.read(PPR), 0x35);
    m.lapic()
        .restore(Interrupts { isr: VectorSet::from_words([1 << 0x31, 0, 0, 0]), ..Interrupts::default() });
    assert_eq!(m.read(PPR), 0x35, "of equal classes the TPR counts, as in KVM");
    m.lapic().restore(Interrupts { isr: VectorSet::from_words([0, 2, 0, 0]), ..Interrupts::default() });
    assert_eq!(m.read(PPR), 0x40);
    assert_eq!(m.lapic().cr8(), 3);
    assert_eq!(m.lapic().set_cr8(5), Ok(()));
    assert_eq!(m.read(TPR), 0x50);
    assert_eq!(m.lapic().set_cr8(16), Err(Fault));
    assert_eq!(m.lapic().set_cr8(0x1_0000_0001), Err(Fault));
    assert_eq!(m.read(TPR), 0x50);
}

#[test]
fn b23_which_eois_are_broadcast() {
    let mut m = Machine::x2apic(1);
    m.lapics[0] = m.lapics[0].clone().beside(Version::V20);
    assert_eq!(m.level(0x52), ONE);
    assert_eq!(m.take_all(), [0x52]);
    assert_eq!(vectors(m.lapic().interrupts().tmr), [0x52]);
    assert_eq!(m.lapic().eoi(), eoi(0x52, true));
    assert_eq!(m.lapic().eoi(), None, "once");

    m.serve(&[0x52]);
    assert_eq!(m.lapic().eoi(), eoi(0x52, false), "an edge");

    let mut exits = VectorSet::EMPTY;
    exits.insert(0x52);
    m.lapic().set_eoi_exits(exits);
    m.serve(&[0x52]);
    assert_eq!(m.lapic().eoi(), eoi(0x52, true), "an edge that somebody waits for");

    let _nothing = m.write(SVR, 0x11ff);
    assert_eq!(m.level(0x52), ONE);
    assert_eq!(m.take_all(), [0x52]);
    assert_eq!(m.lapic().eoi(), eoi(0x52, false), "suppressed");
}

#[test]
fn b23_suppression_needs_an_ioapic_with_an_eoi_register() {
    let mut m = Machine::x2apic(1);
    assert_eq!(m.rdmsr(0, 0x803), Ok(0x0005_0014));
    assert_eq!(m.wrmsr(0, 0x80f, 0x11ff), Err(Fault));
    m.lapics[0] = m.lapics[0].clone().beside(Version::V20);
    assert_eq!(m.rdmsr(0, 0x803), Ok(0x0105_0014));
    assert_eq!(m.wrmsr(0, 0x80f, 0x11ff), Ok(Written::Nothing));
    assert_eq!(m.read(SVR), 0x11ff);
}

#[test]
fn b24_a_level_and_an_edge_in_one_harvest_are_one_level() {
    for order in [[Trigger::Edge, Trigger::Level], [Trigger::Level, Trigger::Edge]] {
        let mut m = Machine::x2apic(1);
        for trigger in order {
            let post = m.vcpus[0].posted().post(0x52, trigger);
            assert!(!post.coalesced && post.wake.is_none());
        }
        m.harvest();
        assert_eq!(m.take_all(), [0x52]);
        assert_eq!(m.lapic().counts().coalesced, 1);
        assert_eq!(m.lapic().eoi(), eoi(0x52, true));
        assert_eq!(m.take_all(), []);
    }
}

#[test]
fn b29_a_halted_vcpu_is_woken_once_and_takes_both() {
    let mut m = Machine::x2apic(1);
    assert!(matches!(m.vcpus[0].posted().idle(), Idle::Sleep { .. }));
    assert_eq!(m.post(&fixed(Destination::Physical(0), 0x41)), ONE);
    assert_eq!(m.wakes, 1);
    assert_eq!(m.post(&fixed(Destination::Physical(0), 0x51)), ONE);
    assert_eq!(m.wakes, 1);
    m.harvest();
    assert_eq!(m.lapic().take(), Some(0x51));
    assert_eq!(m.lapic().eoi(), eoi(0x51, false));
    assert_eq!(m.lapic().take(), Some(0x41));
}

#[test]
fn b30_a_parked_vcpu_keeps_what_is_posted_and_wakes_for_nothing() {
    let mut m = Machine::x2apic(1);
    assert!(m.vcpus[0].posted().stop().is_none(), "it runs");
    m.harvest();
    let interrupt = fixed(Destination::Physical(0), 0x41);
    assert_eq!(m.post(&interrupt), ONE);
    assert_eq!((m.post(&interrupt), m.post(&interrupt)), (COALESCED, COALESCED));
    assert_eq!(m.wakes, 0);
    assert!(m.lapics[0].is_requested(&m.vcpus[0], 0x41) && !m.lapics[0].is_requested(&m.vcpus[0], 0x42));
    assert_eq!(m.lapics[0].pending(&m.vcpus[0]), 1);
    assert!(m.vcpus[0].posted().parking().is_some());
    let _wake = m.vcpus[0].posted().unstop();
    assert!(m.vcpus[0].posted().parking().is_none());
    m.harvest();
    assert_eq!(m.take_all(), [0x41]);
    assert_eq!(m.lapic().counts().taken, 1);
    assert!(!m.lapics[0].is_requested(&m.vcpus[0], 0x41));
}

#[test]
fn requests_that_are_discarded_are_counted_and_leave_what_is_in_service() {
    let mut m = Machine::x2apic(1);
    m.serve(&[0x52]);
    assert_eq!((m.msi(0, 0x41), m.post(&fixed(Destination::Physical(0), 0x42))), (ONE, ONE));
    m.lapics[0].discard_requests(&m.vcpus[0]);
    assert_eq!((m.lapics[0].pending(&m.vcpus[0]), m.lapic().counts().discarded), (0, 2));
    assert_eq!(m.lapic().eoi(), eoi(0x52, false));
    assert_eq!(m.take_all(), []);
}
