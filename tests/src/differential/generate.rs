//! Random steps, weighted so that most of them do something.

use super::kernel::sentinel;
use super::ops::{EVENTS, Fd, Op, RESAMPLES, World};
use fastrand::Rng;
use pollvisor_core::ids::Gsi;
use pollvisor_core::irqfd::{FLAG_DEASSIGN, FLAG_RESAMPLE};
use pollvisor_core::route::{Chip, FLAG_VALID_DEVID, MAX_ROUTES, Msi, RawRoute, TYPE_IRQCHIP, TYPE_MSI};

/// Few, so that they meet.
const GSIS: [u32; 12] = [0, 1, 2, 5, 8, 9, 16, 23, 24, 40, 1000, 4094];
/// Accepted for an irqfd, never routed.
const BEYOND: [u32; 3] = [4096, 65_536, u32::MAX];
/// Of the I/O APIC's entries: vectors apart from those of messages.
const PIN_VECTORS: std::ops::Range<u8> = 0x40..0x50;
const MSI_VECTORS: std::ops::Range<u8> = 0x20..0x40;

/// What is known of the sides, to choose by.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Where each event is bound: whose, to what, and whether it resamples.
    pub bound: [Option<(World, u32, bool)>; EVENTS],
    /// The I/O APIC's entries.
    pub entries: [u64; 24],
    /// The routes of the world with all chips.
    pub routes: Vec<RawRoute>,
    /// Whether the kernel lets two VMs bind one eventfd.
    pub is_shared: bool,
}

impl Known {
    /// GSIs that drive a pin of the I/O APIC, and that pin.
    fn lines(&self) -> Vec<(u32, u32)> {
        let ioapic = |route: &&RawRoute| route.kind == TYPE_IRQCHIP && route.words[0] == Chip::Ioapic as u32;
        self.routes.iter().filter(ioapic).map(|route| (route.gsi, route.words[1])).collect()
    }

    /// Whether something resamples on `gsi`.
    fn resamples(&self, gsi: u32) -> bool {
        self.bound.iter().flatten().any(|bound| *bound == (World::Kernel, gsi, true))
    }
}

/// The next step.
pub fn step(rng: &mut Rng, known: &Known) -> Op {
    match rng.u32(..100) {
        0..36 => signal(rng, known),
        36..58 => unshared(assign(rng, known), known),
        58..70 => deassign(rng, known),
        70..81 => routes(rng),
        81..90 => end(rng, known),
        90..94 => Op::Read(rng.usize(..EVENTS)),
        94..97 => Op::Close(rng.usize(..EVENTS)),
        _ => Op::Program { pin: rng.u8(..24), entry: entry(rng) },
    }
}

fn one_in(rng: &mut Rng, n: u32) -> bool {
    rng.u32(..n) == 0
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}

fn world(rng: &mut Rng) -> World {
    match rng.u32(..20) {
        0..13 => World::Kernel,
        13..19 => World::Split,
        _ => World::Bare,
    }
}

/// Several writes may share one run of the slow path, or have one each. A line that was raised twice shows it, so one
/// that resamples is written to once.
fn signal(rng: &mut Rng, known: &Known) -> Op {
    let event = rng.usize(..EVENTS);
    let level = known.bound[event].is_some_and(|(.., level)| level);
    let writes = if !level && one_in(rng, 4) { rng.u32(2..6) } else { 1 };
    let value = if one_in(rng, 8) { rng.u64(2..1000) } else { 1 };
    Op::Signal { event, writes, value }
}

fn gsi(rng: &mut Rng) -> u32 {
    if one_in(rng, 25) { pick(rng, &BEYOND) } else { pick(rng, &GSIS) }
}

fn assign(rng: &mut Rng, known: &Known) -> Op {
    let free: Vec<usize> = (0..EVENTS).filter(|event| known.bound[*event].is_none()).collect();
    let event = match free.is_empty() || one_in(rng, 6) {
        true => rng.usize(..EVENTS),
        false => pick(rng, &free),
    };
    let fd = match rng.u32(..30) {
        0 => Fd::Plain,
        1 => Fd::Closed,
        _ => Fd::Event(event),
    };
    let mut flags = if one_in(rng, 3) { FLAG_RESAMPLE } else { 0 };
    if one_in(rng, 40) {
        flags |= 1 << rng.u32(2..32);
    }
    let resample = match rng.u32(..30) {
        0 => Fd::Plain,
        1 => Fd::Closed,
        _ => Fd::Resample(rng.usize(..RESAMPLES)),
    };
    // Where acks come from, often.
    let lines = known.lines();
    if flags & FLAG_RESAMPLE != 0 && !lines.is_empty() && rng.bool() {
        return Op::Irqfd { world: World::Kernel, fd, gsi: pick(rng, &lines).0, flags, resample };
    }
    Op::Irqfd { world: world(rng), fd, gsi: gsi(rng), flags, resample }
}

/// An event that one world has bound goes to no other one, where the kernel would let it.
fn unshared(mut op: Op, known: &Known) -> Op {
    if let Op::Irqfd { world, fd: Fd::Event(event), .. } = &mut op
        && let (true, Some((owner, ..))) = (known.is_shared, known.bound[*event])
    {
        *world = owner;
    }
    op
}

fn deassign(rng: &mut Rng, known: &Known) -> Op {
    let event = rng.usize(..EVENTS);
    let (world, gsi) = match known.bound[event] {
        Some((world, gsi, _)) if !one_in(rng, 6) => (world, gsi),
        _ => (world(rng), gsi(rng)),
    };
    let fd = match rng.u32(..30) {
        0 => Fd::Plain,
        1 => Fd::Closed,
        _ => Fd::Event(event),
    };
    let extra = match rng.u32(..20) {
        0 => 1 << rng.u32(2..32),
        1..4 => FLAG_RESAMPLE,
        _ => 0,
    };
    Op::Irqfd { world, fd, gsi, flags: FLAG_DEASSIGN | extra, resample: Fd::Closed }
}

/// A vector whose EOI the I/O APIC hears of: one of a level entry that goes to the vCPU.
fn end(rng: &mut Rng, known: &Known) -> Op {
    const LEVEL: u64 = 1 << 15;
    let heard = |entry: &&u64| **entry & LEVEL != 0 && **entry >> 56 == 0;
    // Those of which somebody waits for the ack, or that were delivered (remote IRR says so), mostly.
    let lines = known.lines().into_iter().filter(|(gsi, _)| known.resamples(*gsi));
    let awaited: Vec<u64> = lines.map(|(_, pin)| known.entries[pin as usize]).filter(|e| heard(&e)).collect();
    let delivered: Vec<u64> =
        known.entries.iter().filter(heard).filter(|e| **e & 1 << 14 != 0).copied().collect();
    let all: Vec<u64> = known.entries.iter().filter(heard).copied().collect();
    let from = match rng.u32(..8) {
        0 => all,
        1..3 => delivered,
        _ => awaited,
    };
    if from.is_empty() {
        return Op::Program { pin: rng.u8(..24), entry: entry(rng) };
    }
    Op::End(pick(rng, &from).to_le_bytes()[0])
}

/// Edge or level, masked or not, for the vCPU or for nobody.
fn entry(rng: &mut Rng) -> u64 {
    let bit = |set: bool, bit: u32| u64::from(set) << bit;
    u64::from(rng.u8(PIN_VECTORS))
        | bit(one_in(rng, 6), 8)
        | bit(rng.bool(), 13)
        | bit(!one_in(rng, 3), 15)
        | bit(one_in(rng, 8), 16)
        | if one_in(rng, 10) { 5 << 56 } else { 0 }
}

fn msi(rng: &mut Rng) -> Msi {
    // Mostly this vCPU; nobody; everybody; this vCPU by its logical ID.
    let destination = pick(rng, &[0, 0, 0, 0, 0, 0, 1, 0x1_0000, u32::MAX, 0xff]);
    let logical = if one_in(rng, 6) { 1 << 2 | u32::from(rng.bool()) << 3 } else { 0 };
    let destination = if logical != 0 && rng.bool() { 1 } else { destination };
    let mut msi = Msi::fixed(destination, rng.u8(MSI_VECTORS));
    msi.address_lo |= logical;
    // Fixed, lowest priority, and one that a LAPIC takes from nobody.
    msi.data |= pick(rng, &[0, 0, 0, 0, 0, 1, 7]) << 8;
    // Level, with and without "asserted".
    msi.data |= if one_in(rng, 5) { rng.u32(1..4) << 14 } else { 0 };
    if one_in(rng, 10) {
        msi.devid = Some(rng.u32(..));
    }
    msi
}

fn pin(rng: &mut Rng, gsi: u32, chip: Chip) -> RawRoute {
    let pins = if chip == Chip::Ioapic { 24 } else { 8 };
    RawRoute::pin(Gsi(gsi), chip, rng.u32(..pins))
}

fn routes(rng: &mut Rng) -> Op {
    let world = world(rng);
    let mut routes = Vec::new();
    for gsi in GSIS {
        match rng.u32(..10) {
            0..2 => {}
            2..6 => routes.push(RawRoute::msi(Gsi(gsi), msi(rng))),
            _ if world == World::Split => routes.push(RawRoute::msi(Gsi(gsi), msi(rng))),
            6..8 => routes.push(pin(rng, gsi, Chip::Ioapic)),
            _ => {
                let mut chips = [Chip::PicMaster, Chip::PicSlave, Chip::Ioapic];
                rng.shuffle(&mut chips);
                let count = rng.usize(1..4);
                chips[..count].iter().for_each(|chip| routes.push(pin(rng, gsi, *chip)));
            }
        }
    }
    rng.shuffle(&mut routes);
    let mut flags = 0;
    match rng.u32(..40) {
        0 => routes.clear(),
        1 => flags = 1 << rng.u32(..32),
        2 if one_in(rng, 10) => {
            // As many as there may be, or one more.
            let most = MAX_ROUTES - usize::from(rng.bool());
            routes = (0..).take(most).map(|gsi| RawRoute::msi(Gsi(gsi % 4095), msi(rng))).collect();
        }
        3..16 => mistake(rng, &mut routes),
        _ => {}
    }
    if !routes.is_empty() {
        routes.push(sentinel());
    }
    Op::Routes { world, flags, routes }
}

/// One of those that the specification lists, somewhere in the table; some happen not to be any.
fn mistake(rng: &mut Rng, routes: &mut Vec<RawRoute>) {
    let gsi = pick(rng, &GSIS);
    let good = RawRoute::msi(Gsi(gsi), msi(rng));
    let ioapic = pin(rng, gsi, Chip::Ioapic);
    let wrong = match rng.u32(..9) {
        0 => RawRoute { gsi: pick(rng, &BEYOND), ..good },
        1 => RawRoute { flags: good.flags | 1 << rng.u32(1..32), ..good },
        2 => RawRoute { flags: FLAG_VALID_DEVID << rng.u32(..32), ..ioapic },
        // 4 and 5, the synthetic ones of Hyper-V and Xen, are not ours: see `super`.
        3 => RawRoute { kind: pick(rng, &[0, 3, 6, u32::MAX]), ..good },
        // Twice on one chip, or beside a message, or both; on a split irqchip a chip at all.
        4 => ioapic,
        5 => good,
        6 => RawRoute { words: [pick(rng, &[3, 4, u32::MAX]), 0, 0, 0], ..ioapic },
        7 => {
            let (chip, first) = pick(rng, &[(0, 8), (1, 8), (2, 24)]);
            let pin = first + if rng.bool() { 0 } else { rng.u32(..1 << 31) };
            RawRoute { kind: TYPE_IRQCHIP, flags: 0, words: [chip, pin, 0, 0], ..ioapic }
        }
        _ => {
            let mut words = good.words;
            words[1] |= 1 << rng.u32(..8);
            RawRoute { kind: TYPE_MSI, words, ..good }
        }
    };
    // Alone on its GSI as well as beside another one.
    if rng.bool() {
        routes.retain(|route| route.gsi != gsi);
    }
    let at = rng.usize(..=routes.len());
    routes.insert(at, wrong);
}
