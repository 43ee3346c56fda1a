//! The third machine: KVM's processor with the core's local APIC in place of KVM's. Nothing of the interrupt chips is in the
//! kernel. The guest's accesses to the register page come out, vectors go in by `KVM_INTERRUPT` when the guest lets them in.
//!
//! ```text
//!  guest: mov [0xfee0_0xxx] ─► KVM_EXIT_MMIO ─► Lapic::write_mmio        message ─► deliver_msi ─► harvest ─► take
//!  guest: IF = 1 ─► KVM_EXIT_IRQ_WINDOW_OPEN, when one waits ─► KVM_INTERRUPT(take) ─► gate
//!  guest: hlt ─► KVM_EXIT_HLT ─► waits for the next message
//! ```
//! The same steps are made on a VM with KVM's own LAPIC: what the guest sees is to be the same. xAPIC mode and one vCPU, as KVM
//! hands no x2APIC MSR to user space.

use super::kernel::{DONE_PORT, GATE_PORT, IF, Kernel, RESULT, Ran, Routine, STACK, flat, image, outside};
use super::ours::NOW;
use crate::differential::{Failure, Half, History, Tally};
use fastrand::Rng;
use kvm_bindings as kb;
use pollvisor::accel::kvm::Vm;
use pollvisor::accel::{Idle, VmConfig};
use pollvisor::error::{Error, Result};
use pollvisor::sys::kvm::{Exit, VcpuFd};
use pollvisor_core::ids::VcpuId;
use pollvisor_core::lapic::{Delivery, Lapic, Mode, Role, Written, deliver, deliver_msi};
use pollvisor_core::route::{Irqchip, Msi};
use pollvisor_core::sync::PostedVcpu;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const BASE: u32 = 0xfee0_0000;
const APIC_ENABLED: u64 = 1 << 11;
const BSP: u64 = 1 << 8;
const VECTORS: [u8; 9] = [0x20, 0x2f, 0x31, 0x3f, 0x41, 0x52, 0x63, 0x80, 0xa4];
const TPR: u32 = 0x80;
const EOI: u32 = 0xb0;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
/// Registers that are looked at after each step: TPR, PPR, LDR, DFR, SVR, ISR, TMR, IRR.
const LOOKED_AT: [u32; 8] = [TPR, 0xa0, 0xd0, 0xe0, 0xf0, 0x120, 0x1a0, 0x220];
/// Steps after which both machines begin anew.
const EPISODE: u64 = 250;

#[derive(Debug)]
struct Third {
    _vm: Vm,
    vcpu: VcpuFd,
    memory: Arc<GuestMemoryMmap>,
    lapic: Lapic,
    posted: [PostedVcpu; 1],
}

/// One step.
#[derive(Debug, Clone, Copy)]
enum Step {
    Message(u8),
    SelfIpi(u8),
    Store(u32, u32),
    Load(u32),
    Take,
    /// The guest lets interrupts in and halts; where none waits this message comes, and wakes it.
    Halt(u8),
}

impl Third {
    fn new() -> Result<Self> {
        let memory = Arc::new(image()?);
        let config = VmConfig { irqchip: Irqchip::None, idle: Idle::Halt, halt_poll_ns: None };
        let vm = Vm::new(&config, Some(memory.clone()))?;
        let vcpu = vm.create_bare_vcpu(VcpuId(0), &vm.kvm().supported_cpuid()?)?;
        let sregs = vcpu.sregs()?;
        let apic_base = u64::from(BASE) | APIC_ENABLED | BSP;
        vcpu.set_sregs(&kb::kvm_sregs { apic_base, ..flat(sregs) })?;
        let mut lapic = Lapic::new(0, Role::Bsp);
        let posted = [lapic.posted_vcpu()];
        lapic.set_up(&posted[0], Mode::XApic, true);
        Ok(Self { _vm: vm, vcpu, memory, lapic, posted })
    }

    fn message(&mut self, msi: &Msi) -> bool {
        let delivery = deliver_msi(&self.posted, msi, |_| {});
        self.lapic.harvest(&self.posted[0]);
        delivery != Delivery::Blocked
    }

    /// The guest does `routine`; `wakes` comes when it halts.
    fn run(&mut self, routine: Routine, address: u32, value: u32, wakes: Option<&Msi>) -> Result<Ran> {
        let interruptible = matches!(routine, Routine::Take);
        self.vcpu.set_regs(&kb::kvm_regs {
            rip: routine.address(),
            rax: value.into(),
            rdi: address.into(),
            rsp: STACK,
            rflags: if interruptible { IF | 2 } else { 2 },
            ..Default::default()
        })?;
        let (mut ran, mut open, mut halted) = (Ran::default(), interruptible, false);
        loop {
            if open && let Some(vector) = self.lapic.take() {
                self.vcpu.interrupt(vector)?;
            }
            self.vcpu.request_interrupt_window(self.lapic.takeable().is_some());
            self.vcpu.set_cr8(self.lapic.cr8());
            match self.vcpu.run()? {
                Exit::PortWrite { port: DONE_PORT, .. } => break,
                Exit::PortWrite { port: GATE_PORT, data, .. } => {
                    ran.vector = data.first().copied();
                    break;
                }
                Exit::MmioRead { address, data } => {
                    self.lapic.read_mmio(address - u64::from(BASE), data, NOW)
                }
                Exit::MmioWrite { address, data } => {
                    let written =
                        self.lapic.write_mmio(&self.posted[0], address - u64::from(BASE), data, NOW);
                    match written {
                        Written::Ipi(ipi) => {
                            let _accepted = deliver(&self.posted, &ipi, |_| {});
                        }
                        Written::Eoi(eoi) if eoi.broadcast => ran.exits.push(eoi.vector),
                        Written::Eoi(_) | Written::Nothing => {}
                    }
                    self.lapic.harvest(&self.posted[0]);
                }
                // What waited comes in behind the STI's shadow, and that is the halt.
                Exit::Halted if self.lapic.takeable().is_some() => {}
                Exit::Halted => {
                    let Some(msi) = wakes.filter(|_| !std::mem::replace(&mut halted, true)) else {
                        return Err(Error::new(format!("halted in {routine:?}, and nothing wakes it")));
                    };
                    self.message(msi);
                }
                Exit::InterruptWindow | Exit::Interrupted => {}
                other => return Err(Error::new(format!("unexpected exit {other:x?} in {routine:?}"))),
            }
            // In a halt IF is set: whoever woke it may come in.
            open = self.vcpu.lets_interrupts_in();
        }
        ran.eax = self.memory.read_obj(GuestAddress(RESULT)).map_err(outside)?;
        Ok(ran)
    }
}

fn step(rng: &mut Rng) -> Step {
    let vector = VECTORS[rng.usize(..VECTORS.len())];
    match rng.u32(..100) {
        0..25 => Step::Message(vector),
        25..40 => Step::SelfIpi(vector),
        40..52 => Step::Store(TPR, u32::from(rng.u8(..) & 0xaf)),
        52..70 => Step::Store(EOI, 0),
        70..76 => Step::Load(LOOKED_AT[rng.usize(..LOOKED_AT.len())]),
        76..92 => Step::Take,
        _ => Step::Halt(vector),
    }
}

/// Whether a guest that halts wakes: something waits, or this is above all that is in service and the TPR.
fn wakes(lapic: &Lapic, vector: u8) -> bool {
    lapic.takeable().is_some() || vector >> 4 > lapic.ppr() >> 4
}

/// Makes a step on both: what the guest saw, ours first.
fn both(third: &mut Third, kernel: &mut Kernel, step: Step) -> Result<[(Option<bool>, Ran); 2]> {
    let routine = |third: &mut Third, kernel: &mut Kernel, routine, address, value| {
        let ours = third.run(routine, address, value, None)?;
        let mut theirs = kernel.run(0, routine, address, value)?;
        if address == BASE + EOI {
            theirs.exits.extend(kernel.run(0, Routine::Nothing, 0, 0)?.exits);
        }
        // Which EOIs come out of KVM is set by routes; here by nothing.
        theirs.exits.clear();
        Ok::<_, Error>([(None, ours), (None, theirs)])
    };
    match step {
        Step::Message(vector) => {
            let msi = Msi::fixed(0, vector);
            let accepted = [third.message(&msi), kernel.msi(&msi)?];
            Ok(accepted.map(|accepted| (Some(accepted), Ran::default())))
        }
        Step::SelfIpi(vector) => {
            routine(third, kernel, Routine::Store(4), BASE + ICR_HIGH, 0)?;
            const SELF: u32 = 1 << 18;
            routine(third, kernel, Routine::Store(4), BASE + ICR_LOW, SELF | u32::from(vector))
        }
        Step::Store(TPR, value) => {
            let value = u32::try_from(kernel.tpr(value.into())).unwrap_or(0);
            routine(third, kernel, Routine::Store(4), BASE + TPR, value)
        }
        Step::Store(offset, value) => routine(third, kernel, Routine::Store(4), BASE + offset, value),
        Step::Load(offset) => routine(third, kernel, Routine::Load(4), BASE + offset, 0),
        Step::Take => {
            let ours = third.run(Routine::Take, 0, 0, None)?;
            let mut theirs = kernel.take(0)?;
            theirs.exits.clear();
            Ok([(None, ours), (None, theirs)])
        }
        Step::Halt(vector) if wakes(&third.lapic, vector) => {
            let msi = Some(Msi::fixed(0, vector)).filter(|_| third.lapic.takeable().is_none());
            let ours = third.run(Routine::Halt, 0, 0, msi.as_ref())?;
            // KVM's own would sleep in the kernel: there the message comes before.
            msi.map_or(Ok(true), |msi| kernel.msi(&msi))?;
            let mut theirs = kernel.take(0)?;
            theirs.exits.clear();
            Ok([(None, ours), (None, theirs)])
        }
        Step::Halt(_) => Ok([(None, Ran::default()), (None, Ran::default())]),
    }
}

fn registers(third: &Third, kernel: &Kernel) -> Result<[Vec<u32>; 2]> {
    let page = kernel.vcpu(0).lapic()?;
    let theirs = |at: u32| {
        let at = at as usize;
        u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
    };
    let ours = |at: u32| third.lapic.register(at, NOW).unwrap_or(0);
    // All words of ISR and IRR, the TMR's not: no level is sent.
    let words = (0..8).flat_map(|word| [0x100 + 0x10 * word, 0x200 + 0x10 * word]);
    let all: Vec<u32> = LOOKED_AT.into_iter().chain(words).collect();
    Ok([all.iter().copied().map(ours).collect(), all.iter().copied().map(theirs).collect()])
}

/// `ops` steps; adds to `tally`.
///
/// # Errors
/// The first difference, or what kept the test from going on.
pub fn run(ops: u64, seed: u64, tally: &mut Tally) -> std::result::Result<(), Failure> {
    let mut history = History::new(Half::Lapic, seed);
    let mut rng = Rng::with_seed(seed ^ 0x3);
    let mut done = 0;
    while done < ops {
        let machines = Third::new().and_then(|third| Ok((third, Kernel::new(Mode::XApic)?)));
        let (mut third, mut kernel) = machines.map_err(|error| history.broken(&error))?;
        for _ in 0..EPISODE.min(ops - done) {
            let step = step(&mut rng);
            history.note(done, format!("third machine: {step:x?}"));
            let [ours, theirs] =
                both(&mut third, &mut kernel, step).map_err(|error| history.broken(&error))?;
            let [mine, its] = registers(&third, &kernel).map_err(|error| history.broken(&error))?;
            // What eax holds matters where the guest read a register.
            let seen = |(accepted, ran): &(Option<bool>, Ran)| {
                (*accepted, ran.vector, matches!(step, Step::Load(_)).then_some(ran.eax))
            };
            if seen(&ours) != seen(&theirs) || mine != its {
                return Err(history.differ(&format!("{theirs:x?} {its:x?}"), &format!("{ours:x?} {mine:x?}")));
            }
            tally.interrupts += u64::from(ours.1.vector.is_some());
            done += 1;
        }
    }
    Ok(())
}
