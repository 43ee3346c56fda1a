//! The behaviours by name, as manuals and KVM have them. Random sequences are beside the model.
extern crate std;

mod destinations;
mod ipis;
mod modes;
mod priorities;
mod registers;
mod timer;

use super::*;
use crate::ids::Trigger;
use crate::ioapic::VectorSet;
use crate::route::Msi;
use std::vec::Vec;

const ID: u32 = 0x02;
const TPR: u32 = 0x08;
const PPR: u32 = 0x0a;
const EOI: u32 = 0x0b;
const LDR: u32 = 0x0d;
const DFR: u32 = 0x0e;
const SVR: u32 = 0x0f;
const ESR: u32 = 0x28;
const ICR: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const LVT_PERFORMANCE: u32 = 0x34;
const LVT_LINT0: u32 = 0x35;
const LVT_LINT1: u32 = 0x36;
const LVT_ERROR: u32 = 0x37;
const INITIAL: u32 = 0x38;
const CURRENT: u32 = 0x39;
const DIVIDE: u32 = 0x3e;
const SELF_IPI: u32 = 0x3f;
const MASKED: u32 = 1 << 16;

/// Local APICs on one bus, each at rest: what is sent to one is harvested at once, unless it is parked.
struct Machine {
    lapics: Vec<Lapic>,
    vcpus: Vec<PostedVcpu>,
    now: Time,
    wakes: usize,
}

impl Machine {
    fn new(count: u32) -> Self {
        let role = |id| if id == 0 { Role::Bsp } else { Role::Ap };
        let lapics: Vec<_> = (0..count).map(|id| Lapic::new(id, role(id))).collect();
        let vcpus = lapics.iter().map(Lapic::posted_vcpu).collect();
        Self { lapics, vcpus, now: Time::default(), wakes: 0 }
    }

    fn set_up(mut self, mode: Mode) -> Self {
        for (lapic, vcpu) in self.lapics.iter_mut().zip(&self.vcpus) {
            lapic.set_up(vcpu, mode, true);
        }
        self
    }

    fn xapic(count: u32) -> Self {
        Self::new(count).set_up(Mode::XApic)
    }

    fn x2apic(count: u32) -> Self {
        Self::new(count).set_up(Mode::X2Apic)
    }

    fn lapic(&mut self) -> &mut Lapic {
        &mut self.lapics[0]
    }

    fn harvest(&mut self) {
        for (lapic, vcpu) in self.lapics.iter_mut().zip(&self.vcpus) {
            lapic.harvest(vcpu);
        }
    }

    /// Sends without a harvest.
    fn post(&mut self, interrupt: &Interrupt) -> Delivery {
        let wakes = &mut self.wakes;
        deliver(&self.vcpus, interrupt, |_| *wakes += 1)
    }

    fn deliver(&mut self, interrupt: &Interrupt) -> Delivery {
        let delivery = self.post(interrupt);
        self.harvest();
        delivery
    }

    fn msi(&mut self, destination: u32, vector: u8) -> Delivery {
        self.send(&Msi::fixed(destination, vector))
    }

    fn level(&mut self, vector: u8) -> Delivery {
        let msi = Msi::fixed(0, vector);
        self.send(&Msi { data: msi.data | 0xc000, ..msi })
    }

    fn send(&mut self, msi: &Msi) -> Delivery {
        let wakes = &mut self.wakes;
        let delivery = deliver_msi(&self.vcpus, msi, |_| *wakes += 1);
        self.harvest();
        delivery
    }

    /// The guest on `cpu` writes an MSR, and what it sends is delivered.
    fn wrmsr(&mut self, cpu: usize, msr: u32, value: u64) -> Result<Written, Fault> {
        let written = self.lapics[cpu].write_msr(&self.vcpus[cpu], msr, value, self.now)?;
        Ok(self.carry_out(written))
    }

    fn rdmsr(&mut self, cpu: usize, msr: u32) -> Result<u64, Fault> {
        self.lapics[cpu].read_msr(msr, self.now)
    }

    fn mmio_write(&mut self, cpu: usize, offset: u64, data: &[u8]) -> Written {
        let written = self.lapics[cpu].write_mmio(&self.vcpus[cpu], offset, data, self.now);
        self.carry_out(written)
    }

    fn mmio_read(&mut self, cpu: usize, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        self.lapics[cpu].read_mmio(offset, &mut data, self.now);
        u32::from_le_bytes(data)
    }

    fn carry_out(&mut self, written: Written) -> Written {
        if let Written::Ipi(interrupt) = written {
            let _delivery = self.deliver(&interrupt);
        }
        written
    }

    /// Writes a register of the first APIC in the form of its mode.
    fn write(&mut self, register: u32, value: u32) -> Written {
        match self.lapics[0].mode() {
            Mode::X2Apic => self.wrmsr(0, 0x800 + register, value.into()).unwrap(),
            _ => self.mmio_write(0, u64::from(register) << 4, &value.to_le_bytes()),
        }
    }

    fn read(&mut self, register: u32) -> u32 {
        match self.lapics[0].mode() {
            Mode::X2Apic => self.rdmsr(0, 0x800 + register).unwrap().try_into().unwrap(),
            _ => self.mmio_read(0, u64::from(register) << 4),
        }
    }

    /// Moves what waits into service, until nothing can be taken.
    fn take_all(&mut self) -> Vec<u8> {
        core::iter::from_fn(|| self.lapic().take()).collect()
    }

    /// A vCPU that has `vectors` in service.
    fn serve(&mut self, vectors: &[u8]) {
        for vector in vectors {
            assert_eq!(self.msi(0, *vector), ONE);
            assert_eq!(self.lapic().take(), Some(*vector));
        }
    }

    /// The IDs of those that have `vector` in the IRR.
    fn who(&self, vector: u8) -> Vec<u32> {
        let has = |lapic: &&Lapic| lapic.interrupts().irr.contains(vector);
        self.lapics.iter().filter(has).map(|lapic| lapic.address().id()).collect()
    }

    /// The ESR, after a write that latches.
    fn latched_esr(&mut self) -> u32 {
        let _nothing = self.write(ESR, 0);
        self.read(ESR)
    }

    fn at(&mut self, bus: u64) -> &mut Self {
        self.now.bus = bus;
        self
    }
}

const ONE: Delivery = Delivery::Accepted { apics: 1, coalesced: 0 };
const COALESCED: Delivery = Delivery::Accepted { apics: 1, coalesced: 1 };

fn fixed(destination: Destination, vector: u8) -> Interrupt {
    let request = Request::Vector { vector, trigger: Trigger::Edge };
    Interrupt { destination, lowest_priority: false, request }
}

fn event(destination: Destination, request: Request) -> Interrupt {
    Interrupt { destination, lowest_priority: false, request }
}

fn vectors(set: VectorSet) -> Vec<u8> {
    set.iter().collect()
}
