//! The half about the local APIC: the core's against KVM's own, step by step.
//!
//! ```text
//!  kernel: KVM_SIGNAL_MSI, KVM_GET/SET_MSRS, KVM_SET_LAPIC, guest's MMIO, WRMSR, gates ─► KVM's LAPICs ─┐
//!                                                                                                       ├─► compare
//!  ours:   deliver_msi, read_msr, write_msr, read_mmio, write_mmio, restore, take ─► the core's LAPICs ─┘
//! ```
//! After each step the answers are the same, and of every vCPU all registers, the APIC base, and whether it waits for a SIPI.
//! Runs begin in x2APIC mode, where all but taking is done by ioctls, and in xAPIC mode, where the guest makes the accesses, in
//! turn. A guest changes modes as it goes. At the end a fifth as many steps are made by KVM's processor with the core's local APIC
//! in place of KVM's (`third.rs`).

mod kernel;
mod known;
mod ours;
mod steps;
mod third;

use super::{Failure, Half, History, Tally};
use fastrand::Rng;
use kernel::{ISR, Kernel, Routine, TMR};
use ours::{NOW, Ours, set_of};
use pollvisor::error::Result;
use pollvisor::sys::kvm::Lapic;
use pollvisor_core::lapic::{Interrupts, MSR_APIC_BASE, MSR_TSC_DEADLINE, Mode};
use std::fmt;
use steps::{IDS, KINDS, Op};

/// Steps after which both sides begin anew, in the other mode.
const EPISODE: u64 = 500;
/// Registers have numbers below this.
const REGISTERS: u32 = 0x40;
const IRR: usize = 0x200;

/// What a step came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    accepted: Option<bool>,
    fault: bool,
    value: Option<u64>,
    taken: Option<u8>,
    exits: Vec<u8>,
}

/// `ops` steps from `seed`.
///
/// # Errors
/// The first difference, or what kept the test from going on.
pub fn run(ops: u64, seed: u64) -> std::result::Result<Tally, Failure> {
    let mut history = History::new(Half::Lapic, seed);
    let mut rng = Rng::with_seed(seed);
    let mut tally = Tally::new(&KINDS);
    let mut step = 0;
    while step < ops {
        let until = ops.min(step + EPISODE);
        let mode = if (step / EPISODE).is_multiple_of(2) { Mode::X2Apic } else { Mode::XApic };
        let mut sides = Sides::new(mode).map_err(|error| history.broken(&error))?;
        if sides.kernel.ends_by_itself() && step == 0 {
            crate::note!(
                "this KVM ends an interrupt as it delivers it; the test puts each into service again"
            );
        }
        sides.compare(&history)?;
        while step < until {
            let op = steps::step(&mut rng, &sides.ours);
            history.note(step, format!("{op:x?}"));
            let (theirs, ours) = sides.apply(&op).map_err(|error| history.broken(&error))?;
            if theirs != ours {
                return Err(history.differ(&format!("{theirs:x?}"), &format!("{ours:x?}")));
            }
            tally.count(op.kind(), if ours.fault { libc::EFAULT } else { 0 });
            tally.interrupts += u64::from(ours.taken.is_some());
            tally.resampled += ours.exits.len() as u64;
            sides.compare(&history)?;
            step += 1;
        }
    }
    third::run(ops / 5, seed, &mut tally)?;
    Ok(tally)
}

struct Sides {
    kernel: Kernel,
    ours: Ours,
}

/// A vCPU after a step.
#[derive(PartialEq, Eq)]
struct View {
    waits: bool,
    started: Option<u8>,
    base: u64,
    registers: [u32; REGISTERS as usize],
}

/// What of `theirs` is not in `ours`, by register.
struct Difference<'a>(&'a View, &'a View);

impl fmt::Debug for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(one, other) = self;
        write!(f, "waits {}, started {:x?}, base {:#x}", one.waits, one.started, one.base)?;
        for (number, (value, theirs)) in one.registers.iter().zip(&other.registers).enumerate() {
            let state = matches!(number, 0x08 | 0x0a | 0x0d..=0x0f);
            if value != theirs || state || *value != 0 && (0x10..0x28).contains(&number) {
                let mark = if value == theirs { "" } else { " (!)" };
                write!(f, ", {:#05x}: {value:#x}{mark}", number * 16)?;
            }
        }
        Ok(())
    }
}

impl Sides {
    fn new(mode: Mode) -> Result<Self> {
        let (kernel, mut ours) = (Kernel::new(mode)?, Ours::new(mode));
        ours.events_wait = kernel.ends_by_itself();
        Ok(Self { kernel, ours })
    }

    /// Does it to both: KVM's answer, and ours.
    fn apply(&mut self, op: &Op) -> Result<(Answer, Answer)> {
        let (mut theirs, mut ours) = (Answer::default(), Answer::default());
        match op {
            Op::Msi(msi) => {
                theirs.accepted = Some(self.kernel.msi(msi)?);
                ours.accepted = Some(self.ours.msi(msi));
            }
            Op::Read { vcpu, msr } => {
                theirs.value = self.kernel.vcpu(*vcpu).msr(*msr)?;
                ours.value = self.ours.lapics[*vcpu].read_msr(*msr, NOW).ok();
                self.mask(*vcpu, *msr, &mut theirs);
                self.mask(*vcpu, *msr, &mut ours);
                (theirs.fault, ours.fault) = (theirs.value.is_none(), ours.value.is_none());
            }
            Op::Write { vcpu, msr, value } => {
                let ahead = *msr == MSR_TSC_DEADLINE && *value != 0;
                let value = match *msr {
                    _ if ahead => *value + self.kernel.tsc(),
                    TPR_MSR => self.kernel.tpr(*value),
                    _ => *value,
                };
                theirs.fault = !self.kernel.vcpu(*vcpu).set_msr(*msr, value)?;
                if *msr == EOI && !theirs.fault {
                    theirs.exits = self.kernel.run(*vcpu, Routine::Nothing, 0, 0)?.exits;
                }
                let unknown = self.ours.icr_high_unknown[*vcpu];
                // Before: it may be an INIT to itself.
                self.ours.icr_high_unknown[*vcpu] &= *msr != ICR;
                let done = self.ours.access(*vcpu, |lapic, posted| lapic.write_msr(posted, *msr, value, NOW));
                ours.fault = done.is_err();
                ours.exits.extend(done.ok().flatten());
                if ours.fault {
                    self.ours.icr_high_unknown[*vcpu] = unknown;
                }
                self.mask_exits(*vcpu, &mut theirs);
            }
            Op::Load { vcpu, offset, bytes } => {
                let address = self.address(*vcpu, *offset);
                let mut ran = self.kernel.run(*vcpu, Routine::Load(*bytes), address, 0)?;
                theirs.taken = ran.vector.take();
                let mut data = [0; 4];
                self.ours.lapics[*vcpu].read_mmio((*offset).into(), &mut data[..*bytes], NOW);
                (theirs.value, ours.value) = (Some(ran.eax.into()), Some(u32::from_le_bytes(data).into()));
                let masked = known::is_masked(&self.ours, *vcpu, offset / 16);
                if masked && self.ours.lapics[*vcpu].mode() == Mode::XApic {
                    (theirs.value, ours.value) = (None, None);
                }
            }
            Op::Store { vcpu, offset, bytes, value } => {
                let address = self.address(*vcpu, *offset);
                let value = match *offset {
                    TPR_OFFSET => u32::try_from(self.kernel.tpr((*value).into())).unwrap_or(0),
                    _ => *value,
                };
                let ran = self.kernel.run(*vcpu, Routine::Store(*bytes), address, value)?;
                theirs.taken = ran.vector;
                theirs.exits = ran.exits;
                let data = value.to_le_bytes();
                let done = self.ours.access(*vcpu, |lapic, posted| {
                    Ok(lapic.write_mmio(posted, (*offset).into(), &data[..*bytes], NOW))
                });
                ours.exits.extend(done.ok().flatten());
                // Where KVM emulates the guest, the routine may be over before the exit is made.
                if *offset == EOI_OFFSET {
                    theirs.exits.extend(self.kernel.run(*vcpu, Routine::Nothing, 0, 0)?.exits);
                }
                self.mask_exits(*vcpu, &mut theirs);
            }
            Op::Base { vcpu, value } => self.base(*vcpu, *value, &mut theirs, &mut ours)?,
            Op::Set { vcpu, irr, isr, tmr } => {
                let [irr, isr, tmr] = [irr, isr, tmr].map(|vectors| set_of(vectors));
                self.kernel.change(*vcpu, |page| {
                    for (set, at) in [(irr, IRR), (isr, ISR), (tmr, TMR)] {
                        let bytes = set.words().map(u64::to_le_bytes).concat();
                        for (n, four) in bytes.chunks(4).enumerate() {
                            page[at + 16 * n..][..4].copy_from_slice(four);
                        }
                    }
                })?;
                // 26: the PPR is worked out when the guest runs.
                theirs.exits = self.kernel.run(*vcpu, Routine::Nothing, 0, 0)?.exits;
                self.ours.lapics[*vcpu].restore(Interrupts { irr, isr, tmr });
            }
            Op::Take { vcpu } => {
                let ran = self.kernel.take(*vcpu)?;
                (theirs.taken, theirs.exits) = (ran.vector, ran.exits);
                ours.taken = self.ours.take(*vcpu);
            }
            Op::Cr8 { vcpu, value } => {
                self.kernel.set_cr8(*vcpu, (*value).into())?;
                ours.fault = self.ours.lapics[*vcpu].set_cr8((*value).into()).is_err();
            }
            Op::NmiDone { vcpu } => {
                // An NMI that came meanwhile is the next step's.
                self.kernel.nmi_done(*vcpu)?;
                self.ours.lapics[*vcpu].nmi_done();
                self.ours.in_nmi[*vcpu] = false;
            }
        }
        Ok((theirs, ours))
    }

    fn address(&self, vcpu: usize, offset: u32) -> u32 {
        u32::try_from(self.ours.lapics[vcpu].base_address()).unwrap_or(u32::MAX) + offset
    }

    fn base(&mut self, vcpu: usize, value: u64, theirs: &mut Answer, ours: &mut Answer) -> Result<()> {
        let low = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
        if value == u64::from(low) {
            theirs.fault = self.kernel.run(vcpu, Routine::WriteMsr, MSR_APIC_BASE, low)?.faulted();
        } else {
            // The routine writes 0 to the high half; by ioctl, reserved bits fault just so.
            theirs.fault = !self.kernel.vcpu(vcpu).set_msr(MSR_APIC_BASE, value)?;
        }
        let before = self.ours.lapics[vcpu].mode();
        let done = self.ours.access(vcpu, |lapic, posted| lapic.write_msr(posted, MSR_APIC_BASE, value, NOW));
        ours.fault = done.is_err();
        match (before, self.ours.lapics[vcpu].mode()) {
            (Mode::XApic, Mode::X2Apic) => self.ours.icr_high_unknown[vcpu] = true,
            (Mode::XApic | Mode::X2Apic, Mode::Off) => {
                // 8: KVM keeps what the manual resets.
                self.ours.icr_high_unknown[vcpu] = false;
                let reset = |page: &mut Lapic| {
                    let keep = page[0x20..0x40].to_vec();
                    page.fill(0);
                    page[0x20..0x40].copy_from_slice(&keep);
                    page[0xe0..0xe4].fill(0xff);
                    page[0xf0] = 0xff;
                    (0x320..0x380).step_by(16).for_each(|lvt| page[lvt + 2] = 1);
                };
                // 26: the second time KVM knows that nothing is in service. It does not run with an APIC that is off.
                self.kernel.change(vcpu, reset)?;
                self.kernel.change(vcpu, reset)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Leaves out what of a register's value is known to differ.
    fn mask(&self, vcpu: usize, msr: u32, answer: &mut Answer) {
        let Some(value) = &mut answer.value else { return };
        if known::is_masked(&self.ours, vcpu, msr.wrapping_sub(FIRST_MSR)) {
            *value = 0;
        }
        if msr == ICR && self.ours.icr_high_unknown[vcpu] {
            *value &= u64::from(u32::MAX);
        }
    }

    /// 5: an EOI that is not to be told comes out of KVM all the same.
    fn mask_exits(&self, vcpu: usize, theirs: &mut Answer) {
        if known::suppressed(&self.ours, vcpu) {
            theirs.exits.clear();
        }
    }

    fn compare(&mut self, history: &History) -> std::result::Result<(), Failure> {
        for (vcpu, id) in IDS.into_iter().enumerate() {
            let (theirs, ours) = self.views(vcpu).map_err(|error| history.broken(&error))?;
            if theirs != ours {
                let of = |one, other| format!("ID {id}: {:?}", Difference(one, other));
                return Err(history.differ(&of(&theirs, &ours), &of(&ours, &theirs)));
            }
        }
        Ok(())
    }

    /// Both sides of a vCPU.
    fn views(&mut self, vcpu: usize) -> Result<(View, View)> {
        let page = self.kernel.vcpu(vcpu).lapic()?;
        let before = self.kernel.settle(vcpu)?;
        // An INIT may just have been acted on.
        let page = if before.waits || before.reset { self.kernel.vcpu(vcpu).lapic()? } else { page };
        let lapic = &self.ours.lapics[vcpu];
        let mut views = (
            View { waits: before.waits, started: before.started, base: before.apic_base, registers: [0; 64] },
            View {
                waits: lapic.waits_for_sipi(),
                started: None,
                base: lapic.apic_base(),
                registers: [0; 64],
            },
        );
        for number in 0..REGISTERS {
            let at = 16 * number as usize;
            let Some(ours) = lapic.register(number * 16, NOW) else { continue };
            if !known::is_masked(&self.ours, vcpu, number) {
                views.0.registers[number as usize] =
                    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
                views.1.registers[number as usize] = ours;
            }
        }
        views.1.started = self.ours.take_started(vcpu);
        if before.started.is_some() {
            // Its registers were put back, CR8 with them, and CR8 has no low half.
            let cr8 = self.ours.lapics[vcpu].cr8();
            let _fits = self.ours.lapics[vcpu].set_cr8(cr8.into());
        }
        Ok(views)
    }
}

const FIRST_MSR: u32 = 0x800;
const TPR_MSR: u32 = 0x808;
const TPR_OFFSET: u32 = 0x80;
const EOI: u32 = 0x80b;
const EOI_OFFSET: u32 = 0xb0;
const ICR: u32 = 0x830;
