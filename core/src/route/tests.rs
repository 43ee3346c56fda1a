extern crate std;
use super::*;
use proptest::prelude::*;
use std::boxed::Box;
use std::vec::Vec;

fn build(irqchip: Irqchip, routes: &[RawRoute]) -> Result<Box<RouteTable>, RouteError> {
    let mut table = Box::new(RouteTable::new());
    table.build(irqchip, true, 0, routes).map(|()| table)
}

fn fault(routes: &[RawRoute]) -> EntryFault {
    match build(Irqchip::Kernel, routes) {
        Err(RouteError::Entry { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn empty_is_legal_and_the_state_at_birth() {
    assert!(RouteTable::new().is_empty());
    assert!(build(Irqchip::Kernel, &[]).unwrap().is_empty());
    assert_eq!(RouteTable::new().targets(Gsi(0)).count(), 0);
}

#[test]
fn every_refusal() {
    let msi = |gsi| RawRoute::msi(Gsi(gsi), Msi::fixed(1, 0x40));
    let table = |irqchip, flags, routes: &[RawRoute]| RouteTable::new().build(irqchip, true, flags, routes);
    assert_eq!(table(Irqchip::None, 0, &[]), Err(RouteError::NoIrqchip));
    assert_eq!(table(Irqchip::Kernel, 1, &[]), Err(RouteError::TableFlags(1)));
    let many: Vec<_> = (0..4097).map(|i| msi(i % 4096)).collect();
    assert_eq!(table(Irqchip::Kernel, 0, &many), Err(RouteError::TooMany { count: 4097 }));
    assert_eq!(fault(&[msi(4096)]), EntryFault::GsiRange(4096));
    assert_eq!(fault(&[RawRoute { flags: 2, ..msi(1) }]), EntryFault::Flags(2));
    assert_eq!(
        fault(&[RawRoute { flags: 1, ..RawRoute::pin(Gsi(1), Chip::Ioapic, 1) }]),
        EntryFault::Flags(1)
    );
    assert_eq!(fault(&[RawRoute { kind: 9, ..msi(1) }]), EntryFault::UnknownType(9));
    let pin = |chip, pin| RawRoute::pin(Gsi(5), chip, pin);
    assert_eq!(fault(&[pin(Chip::Ioapic, 1), pin(Chip::Ioapic, 2)]), EntryFault::ChipTwice);
    assert_eq!(fault(&[msi(5), pin(Chip::Ioapic, 2)]), EntryFault::MsiShared);
    assert_eq!(fault(&[pin(Chip::Ioapic, 2), msi(5)]), EntryFault::MsiShared);
    assert_eq!(fault(&[msi(5), msi(5)]), EntryFault::MsiShared);
    assert_eq!(fault(&[pin(Chip::PicMaster, 8)]), EntryFault::PinRange(8));
    assert_eq!(fault(&[pin(Chip::PicSlave, 8)]), EntryFault::PinRange(8));
    assert_eq!(fault(&[pin(Chip::Ioapic, 24)]), EntryFault::PinRange(24));
    assert_eq!(
        fault(&[RawRoute { words: [3, 0, 0, 0], ..pin(Chip::Ioapic, 0) }]),
        EntryFault::UnknownChip(3)
    );
    assert_eq!(fault(&[RawRoute { words: [0xfee0_0000, 1, 0, 0], ..msi(1) }]), EntryFault::AddressHi(1));
    assert_eq!(
        table(Irqchip::Split, 0, &[pin(Chip::Ioapic, 2)]),
        Err(RouteError::Entry { index: 0, fault: EntryFault::ChipOnSplit })
    );
    assert_eq!(RouteError::NoIrqchip.errno(), Errno::EINVAL);
}

#[test]
fn three_chips_share_a_gsi_and_are_not_cacheable() {
    let table = build(
        Irqchip::Kernel,
        &[
            RawRoute::pin(Gsi(4), Chip::PicMaster, 4),
            RawRoute::pin(Gsi(4), Chip::PicSlave, 1),
            RawRoute::pin(Gsi(4), Chip::Ioapic, 4),
            RawRoute::pin(Gsi(9), Chip::Ioapic, 4),
        ],
    )
    .unwrap();
    assert_eq!(table.resolve(Gsi(4)).len(), 3);
    assert_eq!(table.cacheable(Gsi(4)), None);
    assert_eq!(table.cacheable(Gsi(9)), None, "a pin is not atomic");
    assert_eq!(table.gsi_of(Chip::Ioapic, 4), Some(Gsi(9)), "the last writer wins");
    assert_eq!(table.gsi_of(Chip::PicMaster, 4), Some(Gsi(4)));
    assert_eq!(table.gsi_of(Chip::Ioapic, 99), None);
}

#[test]
fn destination_is_assembled_from_both_halves() {
    let msi = Msi::fixed(0x0001_2345, 0x51);
    assert_eq!((msi.address_lo, msi.address_hi), (0xfee4_5000, 0x0001_2300));
    assert_eq!((msi.destination(), msi.vector()), (0x0001_2345, 0x51));
}

fn raw() -> impl Strategy<Value = RawRoute> {
    let gsi = prop_oneof![0u32..8, 4090u32..4100, any::<u32>()];
    (gsi, 0u32..4, prop_oneof![4 => Just(0u32), 1 => 0u32..4], (0u32..4, 0u32..30, any::<u32>()))
        .prop_map(|(gsi, kind, flags, (a, b, c))| RawRoute { gsi, kind, flags, words: [a, b, c, 0] })
}

/// The rules once more, as slow and plain as they can be written.
fn model(irqchip: Irqchip, routes: &[RawRoute]) -> bool {
    let mut seen: Vec<RawRoute> = Vec::new();
    for r in routes {
        let sharing = |o: &&RawRoute| o.gsi == r.gsi;
        let ok = r.gsi < 4096
            && match r.kind {
                1 => {
                    r.flags == 0
                        && irqchip == Irqchip::Kernel
                        && r.words[0] < 3
                        && r.words[1] < if r.words[0] == 2 { 24 } else { 8 }
                        && seen.iter().filter(sharing).all(|o| o.kind == 1 && o.words[0] != r.words[0])
                }
                2 => r.flags < 2 && r.words[1] & 0xff == 0 && !seen.iter().any(|o| o.gsi == r.gsi),
                _ => false,
            };
        if !ok {
            return false;
        }
        seen.push(*r);
    }
    true
}

proptest! {
    #[test]
    fn agrees_with_the_plain_model(routes in prop::collection::vec(raw(), 0..6), split: bool) {
        let irqchip = if split { Irqchip::Split } else { Irqchip::Kernel };
        let built = build(irqchip, &routes);
        prop_assert_eq!(built.is_ok(), model(irqchip, &routes));
        if let Ok(table) = built {
            prop_assert_eq!(table.len(), routes.len());
            for gsi in routes.iter().map(|r| r.gsi) {
                let expected = routes.iter().filter(|r| r.gsi == gsi).count();
                prop_assert_eq!(table.targets(Gsi(gsi)).count(), expected);
            }
        }
    }

    #[test]
    fn packing_is_lossless(lo: u32, hi: u32, data: u32, devid: Option<u32>) {
        let msi = Msi { address_lo: lo, address_hi: hi, data, devid };
        prop_assert_eq!(unpack(pack(Some(msi))), Some(msi));
        prop_assert_eq!(unpack(pack(None)), None);
    }
}
