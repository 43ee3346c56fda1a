//! `KVM_SET_GSI_ROUTING`: a table is taken or refused as the rules say, and says afterwards what its entries say.

use super::bytes::Bytes;
use pollvisor_core::ids::Gsi;
use pollvisor_core::route::{
    Chip, EntryFault, Irqchip, MAX_PER_GSI, MAX_ROUTES, RawRoute, RouteError, RouteTable, Target,
};

const CHIPS: [Chip; 3] = [Chip::PicMaster, Chip::PicSlave, Chip::Ioapic];

/// How a VM is made, as far as routes ask.
#[derive(Clone, Copy)]
struct Machine {
    irqchip: Irqchip,
    x2apic: bool,
}

/// Any table, to any machine.
///
/// # Panics
/// When the table disagrees with the reference.
pub fn route(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let irqchip = match bytes.below(16) {
        0 => Irqchip::None,
        1..4 => Irqchip::Split,
        _ => Irqchip::Kernel,
    };
    let machine = Machine { irqchip, x2apic: bytes.bool() };
    let flags = if bytes.below(32) == 0 { bytes.u32() } else { 0 };
    // The last few entries, on their own GSIs, to get near the limit.
    let padding = if bytes.below(16) == 0 { bytes.near(&[4094, 4096, 64]) as usize % 5000 } else { 0 };
    let mut routes = Vec::new();
    while !bytes.is_empty() && routes.len() < 64 {
        routes.push(entry(&mut bytes));
    }
    let crafted = routes.len();
    let gsis = (0..).filter(|gsi| padding == 0 || !routes.iter().any(|r: &RawRoute| r.gsi == *gsi));
    let fillers: Vec<u32> = gsis.take(padding).collect();
    routes.extend(fillers.into_iter().map(|gsi| RawRoute { gsi, kind: 2, flags: 0, words: [0, 0, gsi, 0] }));

    let mut table = Box::new(RouteTable::new());
    // What the memory held before is nothing to the new table: something like it, on other GSIs and pins.
    let beside = |route: &RawRoute| {
        let [first, second, third, fourth] = route.words;
        RawRoute { gsi: route.gsi ^ 1, words: [first, second ^ 1, third, fourth], ..*route }
    };
    for from in 0..crafted.min(4) {
        let other: Vec<RawRoute> = routes[from..crafted].iter().map(beside).collect();
        let _in_any_case = table.build(Irqchip::Kernel, false, 0, &other);
    }
    let built = table.build(machine.irqchip, machine.x2apic, flags, &routes);
    match built {
        Err(error) => refused(machine, flags, &routes, crafted, error),
        Ok(()) => {
            assert!(machine.irqchip != Irqchip::None && flags == 0 && routes.len() <= MAX_ROUTES);
            assert_eq!(first_refused(machine, &routes, crafted), None);
            answers(&table, &routes);
        }
    }
}

fn entry(bytes: &mut Bytes<'_>) -> RawRoute {
    let gsi = bytes.near(&[2, 2, 9, 4096]);
    let choice = bytes.u8();
    let kind = match choice & 7 {
        0 => bytes.u32(),
        1..4 => 2,
        _ => 1,
    };
    let flags = match choice >> 4 {
        0 => bytes.u32(),
        1 => 1,
        _ => 0,
    };
    let words = match kind {
        1 => [bytes.near(&[2, 2, 1]), bytes.near(&[2, 8, 24]), 0, 0],
        _ => [
            bytes.u32(),
            if choice & 8 == 0 { bytes.u32() << 8 } else { bytes.u32() },
            bytes.u32(),
            bytes.u32(),
        ],
    };
    RawRoute { gsi, kind, flags, words }
}

fn chip_of(route: &RawRoute) -> Option<Chip> {
    CHIPS.into_iter().find(|chip| route.kind == 1 && *chip as u32 == route.words[0])
}

/// Whether `fault` is one of the mistakes of the last of `routes`.
fn has(machine: Machine, routes: &[RawRoute], fault: EntryFault) -> bool {
    let Some((route, before)) = routes.split_last() else { return false };
    let mut sharing = before.iter().filter(|other| other.gsi == route.gsi);
    let [first, second, ..] = route.words;
    match fault {
        EntryFault::GsiRange(gsi) => gsi == route.gsi && gsi >= 4096,
        EntryFault::Flags(flags) => flags == route.flags && (flags > 1 || flags == 1 && route.kind != 2),
        EntryFault::UnknownType(kind) => kind == route.kind && kind != 1 && kind != 2,
        EntryFault::ChipTwice => {
            route.kind == 1 && sharing.any(|other| other.kind == 1 && other.words[0] == first)
        }
        EntryFault::MsiShared => sharing.any(|other| other.kind == 2 || route.kind == 2),
        EntryFault::ChipOnSplit => route.kind == 1 && machine.irqchip == Irqchip::Split,
        EntryFault::UnknownChip(chip) => route.kind == 1 && chip == first && chip > 2,
        EntryFault::PinRange(pin) => {
            route.kind == 1 && pin == second && pin >= if first == 2 { 24 } else { 8 }
        }
        EntryFault::AddressHi(high) => {
            route.kind == 2 && machine.x2apic && high == second && high & 0xff != 0
        }
    }
}

/// Any mistake of the last of `routes`.
fn first_fault(machine: Machine, routes: &[RawRoute]) -> Option<EntryFault> {
    let route = routes.last()?;
    let [first, second, ..] = route.words;
    let all = [
        EntryFault::GsiRange(route.gsi),
        EntryFault::Flags(route.flags),
        EntryFault::UnknownType(route.kind),
        EntryFault::ChipTwice,
        EntryFault::MsiShared,
        EntryFault::ChipOnSplit,
        EntryFault::UnknownChip(first),
        EntryFault::PinRange(second),
        EntryFault::AddressHi(second),
    ];
    all.into_iter().find(|fault| has(machine, routes, *fault))
}

/// The first entry with a mistake. From `crafted` on entries share no GSI, so each is looked at by itself.
fn first_refused(machine: Machine, routes: &[RawRoute], crafted: usize) -> Option<usize> {
    let upto = |at: usize| if at < crafted { &routes[..=at] } else { &routes[at..=at] };
    (0..routes.len()).find(|at| first_fault(machine, upto(*at)).is_some())
}

fn refused(machine: Machine, flags: u32, routes: &[RawRoute], crafted: usize, error: RouteError) {
    match error {
        RouteError::NoIrqchip => assert_eq!(machine.irqchip, Irqchip::None),
        RouteError::TooMany { count } => assert!(count == routes.len() && count > MAX_ROUTES),
        RouteError::TableFlags(bits) => assert!(bits == flags && bits != 0),
        RouteError::Entry { index, fault } => {
            assert_eq!(first_refused(machine, routes, crafted), Some(index));
            assert!(has(machine, &routes[..=index], fault), "{fault:?} is no mistake of {:?}", routes[index]);
        }
    }
    assert!(!error.to_string().is_empty());
}

/// Everything that can be asked of a table.
fn answers(table: &RouteTable, routes: &[RawRoute]) {
    assert_eq!((table.len(), table.is_empty()), (routes.len(), routes.is_empty()));
    // With many, a sample: they are made alike.
    let step = routes.len().div_ceil(64).max(1);
    for gsi in routes.iter().step_by(step).map(|route| route.gsi).chain([0, 3, 4095, 4096, u32::MAX]) {
        let mine: Vec<Target> = routes.iter().rev().filter(|route| route.gsi == gsi).map(target).collect();
        assert!(table.targets(Gsi(gsi)).eq(mine.iter().copied()), "GSI {gsi}");
        assert!(mine.len() <= MAX_PER_GSI && table.resolve(Gsi(gsi)) == mine[..]);
        let alone = match mine[..] {
            [Target::Msi(msi)] => Some(msi),
            _ => None,
        };
        assert_eq!(table.cacheable(Gsi(gsi)), alone, "GSI {gsi}");
    }
    for chip in CHIPS {
        for pin in (0..26).chain([u32::MAX]) {
            let drives = |route: &&RawRoute| chip_of(route) == Some(chip) && route.words[1] == pin;
            let last = routes.iter().rfind(drives).map(|route| Gsi(route.gsi));
            assert_eq!(table.gsi_of(chip, pin), last, "{chip:?} {pin}");
        }
    }
}

fn target(route: &RawRoute) -> Target {
    let [address_lo, address_hi, data, devid] = route.words;
    match chip_of(route) {
        Some(chip) => Target::Pin { chip, pin: route.words[1] },
        None => {
            let devid = (route.flags == 1).then_some(devid);
            Target::Msi(pollvisor_core::route::Msi { address_lo, address_hi, data, devid })
        }
    }
}
