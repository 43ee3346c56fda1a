//! The half about the I/O APIC: KVM's own against the core's in front of a second VM with a split irqchip.
//!
//! ```text
//!  kernel: guest's MMIO ─► I/O APIC ─► LAPIC ◄─ guest's EOI ─► I/O APIC
//!  ours:   the same bytes ─► Ioapic ─► KVM_SIGNAL_MSI ─► LAPIC ◄─ guest's EOI ─► exit ─► Ioapic::eoi
//!                            └─► routes: KVM_SET_GSI_ROUTING, by which KVM knows which EOIs exit
//! ```

use super::compare::{IOAPIC, Interrupts, entries};
use super::machine::{IOAPIC_BASE, Machine};
use super::{EPISODE, Failure, Half, History, Tally};
use fastrand::Rng;
use pollvisor::accel::kvm::{EOI_GSI, EOI_GSIS, KvmInject};
use pollvisor::error::{Error, Result};
use pollvisor::sys::kvm::ChipBytes;
use pollvisor_core::ids::Gsi;
use pollvisor_core::inject::{Inject, InjectError, LineSource};
use pollvisor_core::ioapic::{Deliver, Effects, Ioapic, Pin, State, Version, eoi_route};
use pollvisor_core::route::{Chip, Irqchip, RawRoute};

const WINDOW: u32 = 0x10;
const LEVEL: u64 = 1 << 15;
/// Where `struct kvm_ioapic_state` has the lines, in bytes.
const LINES: usize = 16;
const KINDS: [&str; 7] = ["select", "window", "line", "end", "read", "restore", "switch"];
/// Pins that are programmed and driven most.
const PINS: [u8; 8] = [0, 1, 3, 8, 16, 17, 18, 23];

#[derive(Debug)]
enum Op {
    /// Write the select register.
    Select(u32),
    /// Write so many bytes of this to the register it selects.
    Window(u32, usize),
    /// Set a pin's line.
    Line(Pin, bool),
    /// Serve a vector and end it.
    End(u8),
    /// Read the register.
    Read,
    /// Save, raise these lines as well, restore.
    Restore(u32),
    /// Switch the LAPIC on or off.
    Switch(bool),
}

impl Op {
    fn kind(&self) -> usize {
        match self {
            Self::Select(_) => 0,
            Self::Window(..) => 1,
            Self::Line(..) => 2,
            Self::End(_) => 3,
            Self::Read => 4,
            Self::Restore(_) => 5,
            Self::Switch(_) => 6,
        }
    }
}

/// `ops` steps from `seed`.
///
/// # Errors
/// The first difference, or what kept the test from going on.
pub fn run(ops: u64, seed: u64) -> std::result::Result<Tally, Failure> {
    let mut history = History::new(Half::Ioapic, seed);
    let mut rng = Rng::with_seed(seed);
    let mut tally = Tally::new(&KINDS);
    let mut step = 0;
    while step < ops {
        let until = ops.min(step + EPISODE);
        let mut sides = Sides::new().map_err(|error| history.broken(&error))?;
        sides.compare(&history, &mut tally)?;
        while step < until {
            let op = sides.choose(&mut rng);
            history.note(step, format!("{op:x?}"));
            let result = sides.apply(&op).map_err(|error| history.broken(&error))?;
            if let Some((theirs, ours)) = result {
                return Err(history.differ(&theirs, &ours));
            }
            tally.count(op.kind(), 0);
            sides.compare(&history, &mut tally)?;
            step += 1;
        }
    }
    Ok(tally)
}

struct Sides {
    kernel: Machine,
    lines: KvmInject,
    ours: Machine,
    inject: KvmInject,
    chip: Ioapic,
    lapic: bool,
}

impl Sides {
    fn new() -> Result<Self> {
        let (kernel, ours) = (Machine::new(Irqchip::Kernel)?, Machine::new(Irqchip::Split)?);
        let (lines, inject) = (kernel.vm().injector()?, ours.vm().injector()?);
        Ok(Self { kernel, lines, ours, inject, chip: Ioapic::new(Version::V11), lapic: true })
    }

    fn choose(&self, rng: &mut Rng) -> Op {
        match rng.u32(..100) {
            0..20 => Op::Select(select(rng)),
            20..45 => window(rng, self.chip.save().ioregsel),
            45..75 => Op::Line(pin(rng), rng.u32(..3) > 0),
            75..90 => self.end(rng).unwrap_or(Op::Read),
            90..95 => Op::Read,
            95..98 => Op::Restore(if rng.bool() { 0 } else { 1 << rng.u32(..24) }),
            _ => Op::Switch(rng.u32(..4) > 0),
        }
    }

    /// The EOI of a vector of which the kernel's chip hears: a level entry has it and goes to the vCPU. Not one that an
    /// edge entry has, too: see [`pollvisor_core::ioapic`] for what the kernel makes of that.
    fn end(&self, rng: &mut Rng) -> Option<Op> {
        if !self.lapic {
            return None;
        }
        let entries = self.chip.save().redirtbl;
        let vector = |entry: u64| entry.to_le_bytes()[0];
        let heard = |entry: u64| {
            let (destination, logical) = (entry >> 56, entry >> 11 & 1 != 0);
            entry & LEVEL != 0 && if logical { destination & 1 != 0 } else { destination == 0 }
        };
        let edge = |v: u8| entries.iter().any(|entry| vector(*entry) == v && entry & LEVEL == 0);
        let mut vectors: Vec<u8> = entries.iter().filter(|e| heard(**e)).map(|e| vector(*e)).collect();
        vectors.retain(|v| *v >= 16 && !edge(*v));
        (!vectors.is_empty()).then(|| Op::End(vectors[rng.usize(..vectors.len())]))
    }

    /// Does it to both; what a step found out by itself, if the sides differ in it.
    fn apply(&mut self, op: &Op) -> Result<Option<(String, String)>> {
        match *op {
            Op::Select(register) => {
                self.kernel.write(IOAPIC_BASE, register, 4)?;
                self.write(0, &register.to_le_bytes())?;
            }
            Op::Window(value, length) => {
                self.kernel.write(IOAPIC_BASE + WINDOW, value, length)?;
                self.write(WINDOW, &value.to_le_bytes()[..length])?;
            }
            Op::Line(pin, up) => {
                let line = self.lines.pin(Chip::Ioapic, pin.number().into(), up, LineSource::Edge);
                line.map_err(|error| Error::new(format!("driving {pin}: {error:?}")))?;
                let line = self.chip.set_line(pin, 0, up);
                let line = line.map_err(|error| Error::new(error.to_string()))?;
                self.send(line.deliver())?;
            }
            Op::End(vector) => {
                self.kernel.serve(vector)?;
                self.kernel.end()?;
                self.ours.serve(vector)?;
                let exit = self.ours.end()?;
                if exit != Some(vector) {
                    return Ok(Some((format!("EOI of {vector:#x}"), format!("exit {exit:x?}"))));
                }
                let acked = self.chip.eoi(vector);
                let effects = self.chip.eoi_done(acked);
                self.effects(&effects)?;
            }
            Op::Read => {
                let theirs = self.kernel.read(IOAPIC_BASE + WINDOW)?;
                let mut data = [0; 4];
                self.chip.read(WINDOW.into(), &mut data);
                let ours = u32::from_le_bytes(data);
                if theirs != ours {
                    return Ok(Some((format!("{theirs:#x}"), format!("{ours:#x}"))));
                }
            }
            Op::Restore(lines) => {
                let mut state = self.kernel.chip(IOAPIC)?;
                for (byte, more) in state[LINES..].iter_mut().zip(lines.to_le_bytes()) {
                    *byte |= more;
                }
                self.kernel.set_chip(IOAPIC, &state)?;
                let effects = self.chip.restore(&parse(&state));
                self.effects(&effects)?;
            }
            Op::Switch(on) => {
                self.kernel.switch_lapic(on)?;
                self.ours.switch_lapic(on)?;
                self.lapic = on;
            }
        }
        Ok(None)
    }

    fn write(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        let written = self.chip.write(offset.into(), data);
        self.send(written.deliver)?;
        if written.routes.is_empty() && !written.eoi_vectors_changed { Ok(()) } else { self.route() }
    }

    fn effects(&mut self, effects: &Effects) -> Result<()> {
        self.send(effects.deliver.iter().copied())?;
        if effects.routes.is_empty() && !effects.eoi_vectors_changed { Ok(()) } else { self.route() }
    }

    /// Injects, and tells the chip what nobody took.
    fn send(&mut self, due: impl IntoIterator<Item = Deliver>) -> Result<()> {
        let mut changed = false;
        for deliver in due {
            match self.inject.msi(&deliver.message.into()) {
                // An error, that nobody has the ID, is a delivery to the kernel's chip, and so to ours.
                Ok(_) | Err(InjectError::Failed(libc::EPERM)) => {}
                Err(InjectError::Blocked) => changed |= self.chip.refused(&deliver),
                Err(error) => return Err(Error::new(format!("injecting {deliver:?}: {error:?}"))),
            }
        }
        if changed { self.route() } else { Ok(()) }
    }

    /// Tells KVM which EOIs are to exit, and lets it take note before one comes.
    fn route(&mut self) -> Result<()> {
        let pins = (0..24u8).filter_map(|n| Some((n, self.chip.route(Pin::new(n).ok()?)?)));
        let mut routes: Vec<RawRoute> =
            pins.map(|(n, message)| RawRoute::msi(Gsi(n.into()), message.into())).collect();
        let unrouted = self.chip.unrouted_eoi_vectors();
        for (gsi, vector) in (EOI_GSI..EOI_GSI + EOI_GSIS).zip(unrouted.iter()) {
            routes.push(RawRoute::msi(Gsi(gsi), eoi_route(vector).into()));
        }
        self.ours.vm().fd().set_gsi_routing(0, &routes)?;
        self.ours.visit()
    }

    fn compare(&self, history: &History, tally: &mut Tally) -> std::result::Result<(), Failure> {
        let state = |machine: &Machine| Ok::<_, Error>((machine.chip(IOAPIC)?, Interrupts::of(machine)?));
        let broken = |error| history.broken(&error);
        let (chip, theirs) = state(&self.kernel).map_err(broken)?;
        let (theirs, ours) =
            ((parse(&chip), theirs), (self.chip.save(), Interrupts::of(&self.ours).map_err(broken)?));
        if theirs != ours {
            return Err(history.differ(&format!("{theirs:x?}"), &format!("{ours:x?}")));
        }
        tally.interrupts += u64::from(theirs.1.requested());
        if theirs.1 != Interrupts::default() {
            self.kernel.forget().map_err(broken)?;
            self.ours.forget().map_err(broken)?;
        }
        Ok(())
    }
}

fn parse(chip: &ChipBytes) -> State {
    let word = |at: usize| u32::from_le_bytes([chip[at], chip[at + 1], chip[at + 2], chip[at + 3]]);
    State {
        base_address: u64::from(word(0)) | u64::from(word(4)) << 32,
        ioregsel: word(8),
        id: word(12),
        irr: word(LINES),
        redirtbl: entries(chip),
    }
}

fn pin(rng: &mut Rng) -> Pin {
    let number = if rng.u32(..8) == 0 { rng.u8(..24) } else { PINS[rng.usize(..PINS.len())] };
    Pin::new(number).expect("below 24")
}

/// A redirection register mostly, any other sometimes.
fn select(rng: &mut Rng) -> u32 {
    match rng.u32(..12) {
        0 => rng.u32(..256),
        1 => rng.u32(..3),
        _ => 0x10 + 2 * u32::from(pin(rng).number()) + u32::from(rng.u32(..4) == 0),
    }
}

/// Something for the register that is selected.
fn window(rng: &mut Rng, select: u32) -> Op {
    let one_in = |rng: &mut Rng, n: u32| u32::from(rng.u32(..n) == 0);
    let value = if select & 1 != 0 {
        // The vCPU, by its ID or its logical one; nobody; reserved bits.
        [0, 0, 0, 0x0100_0000, 0xff00_0000, 0x0500_0000, 0x0012_3456][rng.usize(..7)]
    } else {
        // Fixed, lowest priority, ExtINT: the others would reach beyond the IRR.
        let mode = [0, 0, 0, 0, 1, 7][rng.usize(..6)];
        rng.u32(0x30..0x38)
            | mode << 8
            | one_in(rng, 8) << 11
            | rng.u32(..8) << 12
            | (1 - one_in(rng, 3)) << 15
            | one_in(rng, 3) << 16
            | if one_in(rng, 6) != 0 { rng.u32(..1 << 15) << 17 } else { 0 }
    };
    Op::Window(value, if one_in(rng, 10) != 0 { rng.usize(1..3) } else { 4 })
}
