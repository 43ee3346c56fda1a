//! Random steps, weighted so that most of them do something; what [`known`](super::known) keeps out is not made here.

use super::known::{FIRST, all_enabled, common_mode, defined, hashes_alike};
use super::ours::{NOW, Ours};
use fastrand::Rng;
use pollvisor_core::lapic::{Interrupt, Mode, Request};
use pollvisor_core::route::Msi;

/// The vCPUs' IDs: two of one cluster, one of the next.
pub const IDS: [u32; 3] = [0, 1, 18];
/// Vectors whose EOI comes out, and that are sent as levels too.
pub const EXITING: [u8; 5] = [0x41, 0x52, 0x63, 0xa4, 0xa9];
/// Few, so that they meet: several of a class, and at the ends.
const VECTORS: [u8; 14] =
    [0x10, 0x1f, 0x20, 0x2f, 0x31, 0x3f, 0x41, 0x52, 0x5f, 0x63, 0x80, 0xa4, 0xa9, 0xff];

/// Kinds of steps, for the tally.
pub const KINDS: [&str; 10] =
    ["msi", "read", "write", "load", "store", "base", "set", "take", "cr8", "nmi done"];

/// One step; `vcpu` is an index.
#[derive(Debug, Clone)]
pub enum Op {
    /// `KVM_SIGNAL_MSI`.
    Msi(Msi),
    /// An MSR is read.
    Read { vcpu: usize, msr: u32 },
    /// An MSR is written; the TSC deadline so many cycles ahead.
    Write { vcpu: usize, msr: u32, value: u64 },
    /// The guest reads so many bytes of the register page.
    Load { vcpu: usize, offset: u32, bytes: usize },
    /// The guest writes the low `bytes` of `value` to the register page.
    Store { vcpu: usize, offset: u32, bytes: usize, value: u32 },
    /// The guest writes the APIC base.
    Base { vcpu: usize, value: u64 },
    /// The host sets IRR, ISR and TMR.
    Set { vcpu: usize, irr: Vec<u8>, isr: Vec<u8>, tmr: Vec<u8> },
    /// The guest lets one interrupt in.
    Take { vcpu: usize },
    /// CR8 is written.
    Cr8 { vcpu: usize, value: u8 },
    /// The handler of an NMI returns.
    NmiDone { vcpu: usize },
}

impl Op {
    /// Its place in [`KINDS`].
    #[must_use]
    pub const fn kind(&self) -> usize {
        match self {
            Self::Msi(_) => 0,
            Self::Read { .. } => 1,
            Self::Write { .. } => 2,
            Self::Load { .. } => 3,
            Self::Store { .. } => 4,
            Self::Base { .. } => 5,
            Self::Set { .. } => 6,
            Self::Take { .. } => 7,
            Self::Cr8 { .. } => 8,
            Self::NmiDone { .. } => 9,
        }
    }
}

/// The next step.
pub fn step(rng: &mut Rng, ours: &Ours) -> Op {
    // 15: and an NMI would come in the middle of whatever the guest does next.
    if let Some(vcpu) = (0..IDS.len()).find(|vcpu| ours.has_nmi(*vcpu)) {
        return Op::Take { vcpu };
    }
    let idle = |vcpu: &usize| !ours.lapics[*vcpu].address().is_software_enabled();
    if let Some(vcpu) = (0..IDS.len()).find(idle)
        && one_in(rng, 3)
    {
        return enable(rng, ours, vcpu);
    }
    let vcpu = rng.usize(..IDS.len());
    // One that waits for a SIPI runs no code; its registers can be looked at, and written by MSR, but no EOI told.
    let runs = !ours.lapics[vcpu].waits_for_sipi();
    let x2apic = ours.lapics[vcpu].mode() == Mode::X2Apic;
    // Mostly the way to the registers that the mode has.
    let by_msr = x2apic != one_in(rng, 16);
    match rng.u32(..100) {
        0..24 => Op::Msi(msi(rng, ours)),
        24..34 if by_msr => Op::Read { vcpu, msr: msr(rng) },
        24..34 if runs => load(rng, vcpu, x2apic),
        34..70 if by_msr => write(rng, ours, vcpu, runs),
        34..70 if runs => store(rng, ours, vcpu),
        70..72 if runs => base(rng, ours, vcpu),
        72..76 if runs && ours.lapics[vcpu].mode() != Mode::Off => set(rng, vcpu),
        76..94 if runs => Op::Take { vcpu },
        94..97 => Op::Cr8 { vcpu, value: rng.u8(..16) & rng.u8(..16) },
        97..100 if runs && ours.in_nmi[vcpu] => Op::NmiDone { vcpu },
        _ => Op::Msi(msi(rng, ours)),
    }
}

/// A step towards an APIC that accepts interrupts.
fn enable(rng: &mut Rng, ours: &Ours, vcpu: usize) -> Op {
    const SIPI_TO_THE_OTHERS: u32 = 3 << 18 | 6 << 8;
    let (vcpu, number, value) = match ours.lapics[vcpu].waits_for_sipi() {
        // The first vCPU never waits.
        true => (0, 0x30, SIPI_TO_THE_OTHERS | u32::from(vector(rng))),
        false => (vcpu, 0x0f, 0x1ff),
    };
    match ours.lapics[vcpu].mode() {
        Mode::Off => base(rng, ours, vcpu),
        Mode::XApic => Op::Store { vcpu, offset: number * 16, bytes: 4, value },
        Mode::X2Apic => Op::Write { vcpu, msr: 0x800 + number, value: value.into() },
    }
}

fn one_in(rng: &mut Rng, n: u32) -> bool {
    rng.u32(..n) == 0
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}

fn vector(rng: &mut Rng) -> u8 {
    if one_in(rng, 10) { rng.u8(FIRST..) } else { pick(rng, &VECTORS) }
}

/// A destination and whether it is logical, that both sides understand alike.
fn destination(rng: &mut Rng, ours: &Ours, request: Request) -> (u32, bool) {
    let id = pick(rng, &IDS);
    let Some(mode) = common_mode(ours) else { return (id, false) };
    let special = !matches!(request, Request::Vector { .. }) && !all_enabled(ours);
    if special || rng.u32(..5) < 2 {
        // Present, absent, everybody.
        let all = if mode == Mode::X2Apic { u32::MAX } else { 0xff };
        let odd = if mode == Mode::X2Apic { 0xff } else { 0x77 };
        return (pick(rng, &[id, id, id, id, 5, odd, all]), false);
    }
    let logical = match mode {
        Mode::X2Apic => pick(rng, &[1, 2, 3, 3, 0x1_0004, 0x1_0004, 0x1_000f, 7, 0, 0x2_0001, u32::MAX]),
        _ => rng.u32(..0x100) & if rng.bool() { 0x17 } else { 0xff },
    };
    (logical, true)
}

fn may_send_nmi(ours: &Ours) -> bool {
    ours.events_wait && !ours.nmi_sent.contains(&true)
}

fn msi(rng: &mut Rng, ours: &Ours) -> Msi {
    loop {
        // Fixed, lowest priority, ExtINT, NMI, INIT.
        let mode = if one_in(rng, 12) { pick(rng, &[7, 4, 4, 5]) } else { pick(rng, &[0, 0, 0, 1]) };
        let hint = one_in(rng, 8);
        let vector = if mode >= 4 && hint { 0 } else { vector(rng) };
        let level = EXITING.contains(&vector) && rng.bool();
        let trigger = if level { 3 << 14 } else { rng.u32(..2) << 14 };
        let shape = Msi { data: u32::from(vector) | mode << 8 | trigger, ..Msi::fixed(0, 0) };
        let Some(Interrupt { request, .. }) = Interrupt::from_msi(&shape) else {
            // ExtINT, to anybody: no APIC takes it.
            return Msi { data: shape.data, ..Msi::fixed(pick(rng, &IDS), 0) };
        };
        let (id, logical) = destination(rng, ours, request);
        let mut msi = Msi { data: shape.data, ..Msi::fixed(id, 0) };
        msi.address_lo |= u32::from(logical) << 2 | u32::from(hint) << 3;
        if hint && !logical && id == 0xff {
            continue;
        }
        let hashes = !logical || !(hint || mode == 1) || hashes_alike(ours, id);
        if hashes && (request != Request::Nmi || may_send_nmi(ours)) {
            return msi;
        }
    }
}

fn msr(rng: &mut Rng) -> u32 {
    match rng.u32(..12) {
        0 => 0x1b,
        1 => 0x6e0,
        _ => 0x800 + rng.u32(..0x42),
    }
}

/// The low half of an ICR, and the high half as a destination.
fn icr(rng: &mut Rng, ours: &Ours, vcpu: usize) -> (u32, u32) {
    loop {
        let xapic = ours.lapics[vcpu].mode() != Mode::X2Apic;
        let high = ours.lapics[vcpu].register(0x310, NOW).unwrap_or(0);
        let mode = if one_in(rng, 5) {
            pick(rng, &[3, 4, 5, 5, 6, 6, 6, 7])
        } else {
            u32::from(xapic && one_in(rng, 4))
        };
        // 30.
        if mode >= 4 && xapic && !ours.events_wait {
            continue;
        }
        let vector = vector(rng);
        let shorthand = if one_in(rng, 3) { rng.u32(1..4) } else { 0 };
        let request = match mode {
            0 | 1 | 3 | 7 => Request::Vector { vector, trigger: pollvisor_core::ids::Trigger::Edge },
            4 => Request::Nmi,
            5 => Request::Init,
            _ => Request::Sipi(vector),
        };
        // In xAPIC mode the destination was written before.
        let (id, logical) = if xapic { (high >> 24, rng.bool()) } else { destination(rng, ours, request) };
        let special = !matches!(request, Request::Vector { .. });
        let lowest = mode == 1;
        let allowed = match shorthand {
            0 if common_mode(ours).is_none() && (logical || id == 0xff) => false,
            0 if logical && special && !all_enabled(ours) => false,
            0 => !lowest || !logical || hashes_alike(ours, id),
            1 => mode < 5,
            // 24.
            _ => !lowest || id & 0xff != 0xff,
        };
        if !allowed || mode == 4 && !may_send_nmi(ours) {
            continue;
        }
        // INIT may be a level, asserted or not.
        let trigger = if mode == 5 { rng.u32(..4) << 14 } else { rng.u32(..2) << 14 };
        return (u32::from(vector) | mode << 8 | u32::from(logical) << 11 | trigger | shorthand << 18, id);
    }
}

/// A value for the register, by its number, with defined bits only.
fn value(rng: &mut Rng, ours: &Ours, vcpu: usize, number: u32) -> u32 {
    let lvt = |rng: &mut Rng| u32::from(vector(rng)) | if rng.bool() { 1 << 16 } else { 0 };
    match number {
        0x08 => match rng.u8(..) {
            odd if odd < 32 => u32::from(odd) << 3,
            _ => pick(rng, &[0, 0, 0, 0x10, 0x2f, 0x35, 0x40, 0x5f, 0xa3]),
        },
        0x0b | 0x28 => 0,
        0x0d => pick(rng, &[1u32, 2, 4, 8, 0x11, 0x12, 0x14, 0x21, 0x03, 0]) << 24,
        0x0e => pick(rng, &[0, u32::MAX]),
        0x0f => {
            0xff | if one_in(rng, 6) { 0 } else { 1 << 8 }
                | (rng.u32(..) & if one_in(rng, 6) { 0x1200 } else { 0 })
        }
        0x32 => lvt(rng) | rng.u32(..3) << 17,
        0x33..=0x36 => lvt(rng) | rng.u32(..) & 0xa700 & defined(number),
        // 2: in xAPIC mode ours may have errors to tell of.
        0x37 if ours.lapics[vcpu].mode() == Mode::X2Apic => lvt(rng),
        0x37 => u32::from(vector(rng)) | 1 << 16,
        // Ignored in TSC-deadline mode.
        0x38 => match ours.lapics[vcpu].register(0x320, NOW).unwrap_or(0) >> 17 & 3 {
            2 => rng.u32(..),
            _ => 0,
        },
        0x3e => rng.u32(..) & defined(number),
        0x3f => u32::from(vector(rng)) | if one_in(rng, 8) { 1 << rng.u32(8..32) } else { 0 },
        _ => rng.u32(..),
    }
}

/// Registers that are written, often the first ones.
const WRITTEN: [u32; 24] = [
    0x0b, 0x0b, 0x0b, 0x0b, 0x0b, 0x0b, 0x0b, 0x08, 0x08, 0x08, 0x30, 0x30, 0x30, 0x30, 0x0f, 0x32, 0x33,
    0x34, 0x35, 0x36, 0x37, 0x38, 0x3e, 0x28,
];

fn write(rng: &mut Rng, ours: &Ours, vcpu: usize, runs: bool) -> Op {
    loop {
        let number = match rng.u32(..10) {
            0 => rng.u32(..0x42),
            1..3 => 0x3f,
            _ => pick(rng, &WRITTEN),
        };
        if number == 0x0b && !runs {
            continue;
        }
        if one_in(rng, 40) {
            // Far enough, and not so far that KVM's arithmetic wraps; or none.
            return Op::Write {
                vcpu,
                msr: 0x6e0,
                value: if one_in(rng, 3) { 0 } else { 1 << 41 | rng.u64(..1 << 40) },
            };
        }
        let value = if number == 0x30 {
            let (mut low, high) = icr(rng, ours, vcpu);
            if one_in(rng, 12) {
                // Reserved ones fault, the delivery status does not.
                low |= 1 << pick(rng, &[12, 13, 16, 17, 20, 31]);
            }
            u64::from(low) | u64::from(high) << 32
        } else {
            let reserved = if one_in(rng, 30) { 1 << rng.u32(32..64) } else { 0 };
            let esr = number == 0x28 && one_in(rng, 4);
            u64::from(value(rng, ours, vcpu, number)) | reserved | u64::from(esr)
        };
        return Op::Write { vcpu, msr: 0x800 + number, value };
    }
}

/// 23: registers that a guest can read in xAPIC mode.
fn load(rng: &mut Rng, vcpu: usize, anything: bool) -> Op {
    const SINGLE: [u32; 20] = [
        0x02, 0x03, 0x08, 0x09, 0x0a, 0x0d, 0x0e, 0x0f, 0x28, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37,
        0x38, 0x39, 0x3e,
    ];
    let number = match rng.u32(..3) {
        _ if anything => rng.u32(..0x40),
        0 => rng.u32(0x10..0x28),
        _ => pick(rng, &SINGLE),
    };
    let bytes = pick(rng, &[4, 4, 4, 4, 2, 1]);
    let within = u32::try_from(rng.usize(..=4 - bytes)).unwrap_or(0);
    Op::Load { vcpu, offset: number * 16 + within, bytes }
}

fn store(rng: &mut Rng, ours: &Ours, vcpu: usize) -> Op {
    let number = match rng.u32(..10) {
        // 11: not the ID.
        0 => rng.u32(3..0x40),
        1 => 0x31,
        2 => 0x0d,
        3 => 0x0e,
        _ => pick(rng, &WRITTEN),
    };
    let value = match number {
        0x30 => icr(rng, ours, vcpu).0,
        0x31 => destination(rng, ours, Request::Init).0 << 24 | rng.u32(..1 << 24),
        0x0d => value(rng, ours, vcpu, number) | rng.u32(..1 << 24),
        _ => value(rng, ours, vcpu, number),
    };
    let (bytes, within) = if one_in(rng, 12) { (pick(rng, &[1, 2, 4]), rng.u32(..16)) } else { (4, 0) };
    Op::Store { vcpu, offset: number * 16 + within, bytes, value }
}

fn base(rng: &mut Rng, ours: &Ours, vcpu: usize) -> Op {
    let bsp = if vcpu == 0 { 1 << 8 } else { 0 };
    let page = if one_in(rng, 4) { 0xfed3_0000 } else { 0xfee0_0000 };
    // The valid ones more often: all the way round.
    let next = match ours.lapics[vcpu].mode() {
        Mode::Off => 2,
        Mode::XApic => pick(rng, &[3, 3, 0]),
        Mode::X2Apic => 0,
    };
    let mode = if rng.u32(..3) > 0 { next } else { rng.u64(..4) };
    let reserved = if one_in(rng, 10) { 1 << pick(rng, &[0, 7, 9, 63]) } else { 0 };
    Op::Base { vcpu, value: page | bsp | mode << 10 | reserved }
}

fn set(rng: &mut Rng, vcpu: usize) -> Op {
    let some = |rng: &mut Rng, most: usize| {
        let count = rng.usize(..=most);
        (0..count).map(|_| vector(rng)).collect::<Vec<_>>()
    };
    let (irr, isr) = (some(rng, 4), some(rng, 3));
    // A level's EOI comes out by the routes.
    let tmr = EXITING.into_iter().filter(|_| rng.bool()).collect();
    Op::Set { vcpu, irr, isr, tmr }
}
