//! Behaviours 15 to 18: whom an interrupt is for.

use super::*;
use crate::lapic::deliver::{MSI_LOGICAL, MSI_REDIRECTION_HINT};

const VECTOR: u8 = 0x41;

fn ids(range: core::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

fn reached(m: &mut Machine, destination: Destination) -> Vec<u32> {
    let delivery = m.deliver(&fixed(destination, VECTOR));
    let who = m.who(VECTOR);
    match delivery {
        Delivery::Accepted { apics, .. } => assert_eq!(apics as usize, who.len()),
        Delivery::Blocked => assert!(who.is_empty()),
    }
    for lapic in &mut m.lapics {
        lapic.restore(Interrupts::default());
    }
    who
}

#[test]
fn b15_everybody_in_x2apic_mode_is_all_ones() {
    let mut m = Machine::x2apic(4);
    for logical in [0, 1 << 11] {
        let icr = 0xffff_ffff << 32 | logical | u64::from(VECTOR);
        assert!(m.wrmsr(1, 0x830, icr).is_ok());
        assert_eq!(m.who(VECTOR), ids(0..4), "itself too");
        m.lapics.iter_mut().for_each(|lapic| lapic.restore(Interrupts::default()));
    }
    assert_eq!(reached(&mut m, Destination::Physical(0xff)), []);
    assert_eq!(m.msi(0xff, VECTOR), Delivery::Blocked);
    let mut m = Machine::x2apic(256);
    assert_eq!(reached(&mut m, Destination::Physical(0xff)), [255]);
}

#[test]
fn b15_everybody_in_xapic_mode_is_eight_ones() {
    let mut m = Machine::xapic(3);
    for id in [XAPIC_BROADCAST, X2APIC_BROADCAST] {
        assert_eq!(reached(&mut m, Destination::Physical(id)), ids(0..3));
        assert_eq!(reached(&mut m, Destination::Logical(id)), ids(0..3));
    }
}

#[test]
fn b16_the_logical_id_in_x2apic_mode_follows_from_the_id() {
    let mut m = Machine::x2apic(36);
    assert_eq!(reached(&mut m, Destination::Logical(0x0001_0005)), [16, 18]);
    assert_eq!(m.rdmsr(35, 0x80d), Ok(0x0002_0008));
    assert_eq!(reached(&mut m, Destination::Logical(0x0002_0008)), [35]);
    assert_eq!(reached(&mut m, Destination::Logical(0x0003_ffff)), []);
}

#[test]
fn b17_flat_and_cluster() {
    let mut m = Machine::xapic(1);
    let both = |m: &mut Machine, yes, no| {
        assert_eq!(reached(m, Destination::Logical(yes)), [0], "{yes:#x}");
        assert_eq!(reached(m, Destination::Logical(no)), [], "{no:#x}");
    };
    both(&mut m, 0xff, 0xfe);
    let _nothing = m.write(LDR, 0x0200_0000);
    both(&mut m, 0x06, 0x05);
    let _nothing = m.write(DFR, 0x0fff_ffff);
    let _nothing = m.write(LDR, 0x1200_0000);
    both(&mut m, 0x13, 0x23);
    let _nothing = m.write(DFR, 0x5fff_ffff);
    both(&mut m, 0xff, 0x13);
}

#[test]
fn b18_lowest_priority_is_by_vector_among_the_enabled() {
    for msi in [
        Msi { data: 0x100 | u32::from(VECTOR), address_lo: 0xfee0_7004, ..Msi::default() },
        Msi { data: u32::from(VECTOR), address_lo: 0xfee0_700c, ..Msi::default() },
    ] {
        let mut m = Machine::x2apic(3);
        assert_eq!(m.send(&msi), ONE);
        assert_eq!(m.who(VECTOR), [2]);
        let mut m = Machine::x2apic(3);
        assert!(m.wrmsr(2, 0x80f, 0xff).is_ok());
        assert_eq!(m.send(&msi), ONE);
        assert_eq!(m.who(VECTOR), [1]);
        for cpu in 0..2 {
            assert!(m.wrmsr(cpu, 0x80f, 0xff).is_ok());
        }
        assert_eq!(m.send(&msi), Delivery::Blocked);
    }
    let mut m = Machine::xapic(3);
    let everybody = Interrupt { lowest_priority: true, ..fixed(Destination::Physical(0xff), VECTOR) };
    assert_eq!(m.deliver(&everybody), Delivery::Accepted { apics: 3, coalesced: 0 });
}

#[test]
fn an_id_that_is_not_its_index_is_found() {
    let ids = [7, 3, 0x105];
    let lapics: Vec<_> = ids.iter().map(|id| Lapic::new(*id, Role::Bsp)).collect();
    let vcpus = lapics.iter().map(Lapic::posted_vcpu).collect();
    let mut m = Machine { lapics, vcpus, now: Time::default(), wakes: 0 }.set_up(Mode::XApic);
    for id in ids {
        assert_eq!(reached(&mut m, Destination::Physical(id)), [id]);
    }
    for id in [0, 1, 5] {
        assert_eq!(reached(&mut m, Destination::Physical(id)), []);
    }
    assert_eq!(reached(&mut m, Destination::AllBut(3)), [7, 0x105]);
    assert_eq!(reached(&mut m, Destination::All), [7, 3, 0x105]);
}

#[test]
fn what_an_msi_asks_for() {
    let of = |data| Interrupt::from_msi(&Msi { data, ..Msi::fixed(1, 0) }).map(|interrupt| interrupt.request);
    let vector = |trigger| Some(Request::Vector { vector: 0x41, trigger });
    assert_eq!(of(0x0041), vector(Trigger::Edge));
    assert_eq!(of(0x4041), vector(Trigger::Edge));
    assert_eq!(of(0xc041), vector(Trigger::Level));
    assert_eq!(of(0x8041), None, "a level that is deasserted");
    assert_eq!(of(0x0400), Some(Request::Nmi));
    assert_eq!(of(0x0500), Some(Request::Init));
    assert_eq!([0x200, 0x300, 0x600, 0x700].map(of), [None; 4]);
}

#[test]
fn an_apic_that_is_not_there_takes_nothing() {
    let vcpus = [PostedVcpu::new(Address::off(0).bits())];
    let vector = Request::Vector { vector: 0x41, trigger: Trigger::Edge };
    for request in [vector, Request::Nmi, Request::Init, Request::Sipi(0x9a)] {
        for destination in [Destination::Physical(0), Destination::Logical(1), Destination::All] {
            let delivery = deliver(&vcpus, &event(destination, request), |_| {});
            assert_eq!(delivery, Delivery::Blocked, "{request:?} to {destination:?}");
        }
    }
    assert_eq!(vcpus[0].posted().harvest(), None);
}

/// The way of nearly every message answers as the whole one does, and posts the same.
#[test]
fn a_plain_message_goes_the_way_of_all() {
    let apics = || {
        let x2apic = Address::new(0, Mode::X2Apic, true, 0, u32::MAX);
        let xapic = Address::new(1, Mode::XApic, true, 0x0200_0000, u32::MAX);
        let silent = Address::new(2, Mode::X2Apic, false, 0, u32::MAX);
        // Its ID is not its index.
        let moved = Address::new(7, Mode::X2Apic, true, 0, u32::MAX);
        [x2apic, xapic, silent, Address::off(3), moved].map(|address| PostedVcpu::new(address.bits()))
    };
    let posted = |vcpus: &[PostedVcpu]| vcpus.iter().map(|vcpu| vcpu.posted().harvest()).collect::<Vec<_>>();
    for destination in [0, 1, 2, 3, 4, 5, 7, 0xff, 0x100, u32::MAX] {
        for data in [0x41, 0x0f, 0x0141, 0x0400, 0x4041, 0x8041, 0xc041, 0x0341] {
            for address in [0, MSI_LOGICAL, MSI_REDIRECTION_HINT, MSI_LOGICAL | MSI_REDIRECTION_HINT] {
                let mut msi = Msi { data, ..Msi::fixed(destination, 0) };
                msi.address_lo |= address;
                let (quick, whole) = (apics(), apics());
                let way = Interrupt::from_msi(&msi);
                let whole_answer = way.map_or(Delivery::Blocked, |sent| deliver(&whole, &sent, |_| {}));
                assert_eq!(deliver_msi(&quick, &msi, |_| {}), whole_answer, "{msi:x?}");
                assert_eq!(posted(&quick), posted(&whole), "{msi:x?}");
            }
        }
    }
}
