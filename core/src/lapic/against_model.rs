//! Random sequences against [`model`](super::model): after every step each register, set and answer is the same, and the
//! ledger is exact.
extern crate std;

use super::model::{Apic, Did, Form, deliver as model_deliver};
use super::*;
use crate::ids::Trigger;
use crate::route::Msi;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const APICS: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    Send(Interrupt),
    Msi(Msi),
    Harvest(usize),
    Take(usize),
    Event(usize),
    NmiDone(usize),
    ReadMemory(usize, u32),
    WriteMemory(usize, u32, u32),
    ReadMsr(usize, u32),
    WriteMsr(usize, u32, u64),
    Base(usize, u64),
    Deadline(usize, u64),
    Cr8(usize, u32),
    Pass(u64, u64),
}

fn vector() -> impl Strategy<Value = u8> {
    prop_oneof![8 => prop::sample::select(vec![0x20u8, 0x2f, 0x31, 0x3f, 0x80, 0xff]), 1 => any::<u8>(), 1 => 0u8..17]
}

fn destination() -> impl Strategy<Value = Destination> {
    let id = || prop_oneof![6 => 0..4u32, 1 => Just(0xff), 1 => Just(u32::MAX), 2 => 0..32u32, 1 => 0x1_0000..0x1_0008u32];
    prop_oneof![
        4 => id().prop_map(Destination::Physical),
        4 => id().prop_map(Destination::Logical),
        1 => Just(Destination::All),
        1 => (0..4u32).prop_map(Destination::AllBut),
    ]
}

fn interrupt() -> impl Strategy<Value = Interrupt> {
    let trigger = prop_oneof![Just(Trigger::Edge), Just(Trigger::Level)];
    let request = prop_oneof![
        12 => (vector(), trigger).prop_map(|(vector, trigger)| Request::Vector { vector, trigger }),
        1 => Just(Request::Nmi),
        1 => Just(Request::Init),
        2 => any::<u8>().prop_map(Request::Sipi),
    ];
    (destination(), any::<bool>(), request).prop_map(|(destination, lowest_priority, request)| Interrupt {
        destination,
        lowest_priority,
        request,
    })
}

/// A register and a value that is likely to mean something to it.
fn access() -> impl Strategy<Value = (u32, u32)> {
    let lvt = (0x32..0x38u32, vector(), any::<u32>(), 0..4u32).prop_map(|(number, vector, noise, mode)| {
        (number, u32::from(vector) | mode << 17 | noise & 0x1_1700)
    });
    let icr = (vector(), any::<u32>(), any::<bool>()).prop_map(|(vector, noise, plain)| {
        (0x30, u32::from(vector) | noise & if plain { 0xc_8800 } else { 0xf_ff00 })
    });
    let high = destination().prop_map(|destination| match destination {
        Destination::Physical(id) | Destination::Logical(id) | Destination::AllBut(id) => (0x31, id << 24),
        Destination::All => (0x31, u32::MAX),
    });
    prop_oneof![
        4 => Just((0x0f, 0x1ff)),
        1 => Just((0x0f, 0xff)),
        4 => Just((0x0b, 0)),
        3 => (Just(0x08), 0..0x90u32),
        3 => lvt,
        4 => icr,
        2 => high,
        2 => (Just(0x38), 0..300u32),
        1 => (Just(0x3e), 0..12u32),
        1 => (Just(0x28), Just(0)),
        1 => (Just(0x0d), (0..256u32).prop_map(|ldr| ldr << 24)),
        1 => (Just(0x0e), prop::sample::select(vec![0u32, 0x5000_0000, u32::MAX])),
        1 => vector().prop_map(|vector| (0x3f, vector.into())),
        1 => (0..0x48u32, any::<u32>()),
        1 => (0..0x48u32, Just(0)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let cpu = || 0..APICS as usize;
    let base = prop_oneof![4 => Just(0xfee0_0c00u64), 3 => Just(0xfee0_0800), 1 => Just(0xfee0_0000), 1 => any::<u64>()];
    let msi = (0..1u32 << 20, 0..1u32 << 16, 0..4u32, vector(), any::<bool>()).prop_map(
        |(address, data, id, vector, near)| {
            let address = if near { id << 12 | address & 0xc } else { address };
            Msi {
                address_lo: 0xfee0_0000 | address,
                data: data & 0xc700 | u32::from(vector),
                ..Msi::default()
            }
        },
    );
    prop_oneof![
        10 => interrupt().prop_map(Step::Send),
        4 => msi.prop_map(Step::Msi),
        8 => cpu().prop_map(Step::Harvest),
        8 => cpu().prop_map(Step::Take),
        3 => cpu().prop_map(Step::Event),
        1 => cpu().prop_map(Step::NmiDone),
        2 => (cpu(), 0..0x48u32).prop_map(|(cpu, number)| Step::ReadMemory(cpu, number)),
        8 => (cpu(), access()).prop_map(|(cpu, (number, value))| Step::WriteMemory(cpu, number, value)),
        2 => (cpu(), 0..0x48u32).prop_map(|(cpu, number)| Step::ReadMsr(cpu, number)),
        8 => (cpu(), access(), any::<u32>(), 0..4u32).prop_map(|(cpu, (number, value), high, id)| {
            let high = if number == 0x30 { id } else { high & high >> 8 & high >> 16 & 1 };
            Step::WriteMsr(cpu, number, u64::from(high) << 32 | u64::from(value))
        }),
        3 => (cpu(), base).prop_map(|(cpu, base)| Step::Base(cpu, base)),
        1 => (cpu(), 0..2000u64).prop_map(|(cpu, deadline)| Step::Deadline(cpu, deadline)),
        1 => (cpu(), 0..20u32).prop_map(|(cpu, priority)| Step::Cr8(cpu, priority)),
        5 => (0..2000u64, 0..200u64).prop_map(|(bus, tsc)| Step::Pass(bus, tsc)),
    ]
}

struct Pair {
    lapics: Vec<Lapic>,
    vcpus: Vec<PostedVcpu>,
    model: Vec<Apic>,
    now: Time,
}

impl Pair {
    fn new() -> Self {
        let role = |id| if id == 0 { Role::Bsp } else { Role::Ap };
        let lapics: Vec<_> = (0..APICS).map(|id| Lapic::new(id, role(id))).collect();
        let vcpus = lapics.iter().map(Lapic::posted_vcpu).collect();
        Self { lapics, vcpus, model: (0..APICS).map(Apic::new).collect(), now: Time::default() }
    }

    fn send(&mut self, interrupt: &Interrupt) {
        let ours = deliver(&self.vcpus, interrupt, |_| unreachable!("nobody is halted"));
        let (apics, coalesced) = model_deliver(&mut self.model, interrupt);
        let theirs = if apics == 0 { Delivery::Blocked } else { Delivery::Accepted { apics, coalesced } };
        assert_eq!(ours, theirs);
    }

    fn wrote(&mut self, ours: Result<Written, Fault>, theirs: Did) {
        let ours = match ours {
            Ok(Written::Nothing) => Did::Nothing,
            Ok(Written::Eoi(Eoi { vector, broadcast })) => Did::Ended(vector, broadcast),
            Ok(Written::Ipi(interrupt)) => Did::Sent(interrupt),
            Err(Fault) => Did::Fault,
        };
        assert_eq!(ours, theirs);
        if let Did::Sent(interrupt) = theirs {
            self.send(&interrupt);
        }
    }

    fn step(&mut self, step: &Step) {
        let now = self.now;
        match *step {
            Step::Send(interrupt) => self.send(&interrupt),
            Step::Msi(msi) => {
                let ours = deliver_msi(&self.vcpus, &msi, |_| unreachable!("nobody is halted"));
                match Interrupt::from_msi(&msi) {
                    Some(interrupt) => {
                        let (apics, coalesced) = model_deliver(&mut self.model, &interrupt);
                        let accepted = Delivery::Accepted { apics, coalesced };
                        assert_eq!(ours, if apics == 0 { Delivery::Blocked } else { accepted });
                    }
                    None => assert_eq!(ours, Delivery::Blocked),
                }
            }
            Step::Harvest(cpu) => {
                self.lapics[cpu].advance(now);
                self.lapics[cpu].harvest(&self.vcpus[cpu]);
                self.model[cpu].harvest();
            }
            Step::Take(cpu) => {
                self.lapics[cpu].advance(now);
                assert_eq!(self.lapics[cpu].take(), self.model[cpu].take());
            }
            Step::Event(cpu) => assert_eq!(self.lapics[cpu].event(), self.model[cpu].event()),
            Step::NmiDone(cpu) => {
                self.lapics[cpu].nmi_done();
                self.model[cpu].nmi_done();
            }
            Step::ReadMemory(cpu, number) => {
                let mut data = [0xaa; 4];
                self.lapics[cpu].read_mmio(u64::from(number) << 4, &mut data, now);
                assert_eq!(u32::from_le_bytes(data), self.model[cpu].read_memory(number));
            }
            Step::WriteMemory(cpu, number, value) => {
                let (offset, vcpu) = (u64::from(number) << 4, &self.vcpus[cpu]);
                let ours = self.lapics[cpu].write_mmio(vcpu, offset, &value.to_le_bytes(), now);
                let theirs = self.model[cpu].write_memory(number, value);
                self.wrote(Ok(ours), theirs);
            }
            Step::ReadMsr(cpu, number) => {
                let ours = self.lapics[cpu].read_msr(0x800 + number, now);
                assert_eq!(ours.ok(), self.model[cpu].read_msr(number));
            }
            Step::WriteMsr(cpu, number, value) => {
                let ours = self.lapics[cpu].write_msr(&self.vcpus[cpu], 0x800 + number, value, now);
                let theirs = self.model[cpu].write_msr(number, value);
                self.wrote(ours, theirs);
            }
            Step::Base(cpu, value) => {
                let ours = self.lapics[cpu].write_msr(&self.vcpus[cpu], MSR_APIC_BASE, value, now);
                let theirs = self.model[cpu].write_base(value);
                self.wrote(ours, theirs);
            }
            Step::Deadline(cpu, value) => {
                let ours = self.lapics[cpu].write_msr(&self.vcpus[cpu], MSR_TSC_DEADLINE, value, now);
                self.model[cpu].write_deadline(value, now.tsc);
                self.wrote(ours, Did::Nothing);
            }
            Step::Cr8(cpu, value) => {
                assert_eq!(self.lapics[cpu].set_cr8(value.into()).is_ok(), value < 16);
                if value < 16 {
                    self.model[cpu].registers[8] = value << 4;
                }
            }
            Step::Pass(bus, tsc) => {
                self.now = Time { bus: now.bus + bus, tsc: now.tsc + tsc };
                self.model.iter_mut().for_each(|apic| apic.pass(bus, now.tsc + tsc));
            }
        }
    }

    fn compare(&self) {
        for ((lapic, vcpu), apic) in self.lapics.iter().zip(&self.vcpus).zip(&self.model) {
            let mut lapic = lapic.clone();
            lapic.advance(self.now);
            let form = match lapic.mode() {
                Mode::Off => Form::Off,
                Mode::XApic => Form::Memory,
                Mode::X2Apic => Form::Msr,
            };
            assert_eq!((form, lapic.waits_for_sipi()), (apic.form, apic.waits));
            let Interrupts { irr, isr, tmr } = lapic.interrupts();
            assert!(irr.iter().eq(apic.irr.iter().copied()), "IRR {irr:x?}, not {:x?}", apic.irr);
            assert!(isr.iter().eq(apic.isr.iter().copied()), "ISR {isr:x?}, not {:x?}", apic.isr);
            assert!(tmr.iter().eq(apic.tmr.iter().copied()), "TMR {tmr:x?}, not {:x?}", apic.tmr);
            for number in 0..0x48 {
                assert_eq!(lapic.register(number << 4, self.now), apic.value(number), "register {number:#x}");
            }
            assert_eq!(lapic.read_msr(MSR_TSC_DEADLINE, self.now), Ok(apic.deadline));
            for vector in 0..=255 {
                let requested = [&apic.irr, &apic.posted_edge, &apic.posted_level];
                let requested = requested.iter().any(|set| set.contains(&vector));
                assert_eq!(lapic.is_requested(vcpu, vector), requested, "{vector:#x}");
            }
            let counts = lapic.counts();
            assert_eq!(counts.taken, apic.taken);
            assert_eq!(
                apic.accepted + counts.local,
                counts.taken
                    + apic.merged
                    + counts.coalesced
                    + counts.local_coalesced
                    + u64::from(lapic.pending(vcpu))
                    + counts.discarded,
                "the ledger: {counts:?}"
            );
            // The published address is what the registers say.
            assert_eq!(Address::of(vcpu), lapic.address());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn every_step_is_the_models(steps in prop::collection::vec(step(), 1..120)) {
        let mut pair = Pair::new();
        pair.compare();
        for step in &steps {
            pair.step(step);
            pair.compare();
        }
    }
}
