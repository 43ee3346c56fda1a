//! The machine that a guest with devices sees: memory, interrupt chips, a PCI bus, and the ways between them.
//!
//! ```text
//!  0 .. memory        0xc000_0000 BARs        0xe000_0000 ECAM        0xfec0_0000 I/O APIC        64 GiB .. BARs
//! ```
//! INTx of slot n is pin 16 + n mod 8 of the I/O APIC.

use crate::accel::Injector;
use crate::accel::VmConfig;
use crate::accel::kvm::Exits;
use crate::accel::kvm::{KvmInject, Vm, pin_routes};
use crate::bus::{Buses, Device};
use crate::chips::{IOAPIC_BASE, IoapicDevice, KernelTable, Routes, SplitIoapic};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::guest::Bare;
use crate::interrupts::{Interrupts, Running};
use crate::pci::{ECAM_SIZE, RootBus, Windows};
use crate::sys::kvm::{Exit, VcpuFd, VmFd};
use pollvisor_core::ids::VcpuId;
use pollvisor_core::route::Irqchip;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_memory::GuestMemoryMmap;

/// Where the guest finds the bus's configuration spaces.
pub const ECAM_BASE: u64 = 0xe000_0000;
/// Where BARs go below 4 GiB: the end of the low memory.
pub const MMIO32: std::ops::Range<u64> = 0xc000_0000..0xe000_0000;
/// Where BARs go above it.
pub const MMIO64: std::ops::Range<u64> = 0x10_0000_0000..0x20_0000_0000;
/// Where BARs of I/O ports go.
pub const PORTS: std::ops::Range<u16> = 0x1000..0xf000;
const CONFIG_PORTS: u16 = 0xcf8;
const IOAPIC_SIZE: u64 = 0x1000;

/// See the module's text.
#[derive(Debug)]
pub struct Platform {
    // In the order in which they have to go.
    interrupts: Running,
    parts: Arc<Parts>,
    vm: Vm,
}

/// What devices on the platform share.
#[derive(Debug)]
pub struct Parts {
    /// KVM's VM.
    pub vm: Arc<VmFd>,
    /// The ways of interrupts.
    pub interrupts: Arc<Interrupts>,
    /// Whose GSIs are whose.
    pub routes: Routes,
    /// The I/O APIC, where it is ours.
    pub ioapic: Option<Arc<SplitIoapic>>,
    /// Ports and memory space.
    pub buses: Buses,
    /// The PCI bus.
    pub pci: RootBus,
    windows: Mutex<Windows>,
}

impl Parts {
    /// Where BARs can go.
    pub fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The I/O APIC's pin of a slot's INTx.
#[must_use]
pub const fn intx_pin(slot: u8) -> u8 {
    16 + (slot & 7)
}

#[derive(Debug)]
struct Ecam(Arc<Parts>);

impl Device for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.pci.ecam_read(offset, data);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.0.pci.ecam_write(offset, data);
    }
}

#[derive(Debug)]
struct ConfigPorts(Arc<Parts>);

impl ConfigPorts {
    fn port(offset: u64) -> u16 {
        CONFIG_PORTS + u16::try_from(offset).unwrap_or(0)
    }
}

impl Device for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.pci.port_read(Self::port(offset), data);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.0.pci.port_write(Self::port(offset), data);
    }
}

impl Platform {
    /// A machine with this memory, for up to `slots` irqfds; without vCPUs.
    ///
    /// # Errors
    /// When KVM, descriptors or threads cannot be had; chips nowhere at all.
    pub fn new(config: &VmConfig, memory: Arc<GuestMemoryMmap>, clock: Clock, slots: usize) -> Result<Self> {
        if config.irqchip == Irqchip::None {
            return Err(Error::new("a machine with devices needs interrupt chips"));
        }
        let vm = Vm::new(config, Some(memory))?;
        let kernel = Arc::new(KernelTable::new(vm.fd().clone()));
        let (ioapic, inject) = match config.irqchip {
            Irqchip::Split => {
                let chip = SplitIoapic::new(vm.fd().clone(), kernel.clone())?;
                (Some(chip.clone()), Injector::Kvm(KvmInject::with_ioapic(vm.fd().clone(), chip)))
            }
            _ => {
                let inject = Injector::Kvm(vm.injector()?);
                kernel.set_pins(pin_routes)?;
                (None, inject)
            }
        };
        // To our irqfds there are pins either way: KVM's, or our own chip's.
        let interrupts = Interrupts::start(Irqchip::Kernel, inject, clock, slots)?;
        let parts = Arc::new(Parts {
            vm: vm.fd().clone(),
            routes: Routes::new(interrupts.clone(), kernel)?,
            interrupts: interrupts.clone(),
            ioapic,
            buses: Buses::default(),
            pci: RootBus::new(),
            windows: Mutex::new(Windows::new(MMIO32, MMIO64, PORTS)?),
        });
        parts.buses.add_memory(ECAM_BASE, ECAM_SIZE, Arc::new(Ecam(parts.clone())))?;
        parts.buses.add_ports(CONFIG_PORTS, 8, Arc::new(ConfigPorts(parts.clone())))?;
        if let Some(chip) = &parts.ioapic {
            let device = IoapicDevice::new(chip.clone(), interrupts.clone());
            parts.buses.add_memory(IOAPIC_BASE, IOAPIC_SIZE, Arc::new(device))?;
        }
        Ok(Self { interrupts, parts, vm })
    }

    /// What devices share.
    #[must_use]
    pub fn parts(&self) -> &Arc<Parts> {
        &self.parts
    }

    /// The ways of interrupts.
    #[must_use]
    pub fn interrupts(&self) -> &Arc<Interrupts> {
        &self.interrupts
    }

    /// A vCPU.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create_vcpu(&self, id: VcpuId) -> Result<VcpuFd> {
        self.vm.create_vcpu(id)
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// What its vCPUs' exits reach.
    #[must_use]
    pub fn exits(&self) -> Arc<dyn Exits> {
        Arc::new(PlatformExits(self.parts.clone()))
    }
}

impl Platform {
    /// Takes its own devices off the buses; an access finds nobody from here on.
    pub fn remove_buses(&self) {
        self.parts.buses.remove_memory(ECAM_BASE);
        self.parts.buses.remove_ports(CONFIG_PORTS);
        self.parts.buses.remove_memory(IOAPIC_BASE);
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        // They refer to the parts that hold the bus.
        self.remove_buses();
    }
}

struct PlatformExits(Arc<Parts>);

impl Exits for PlatformExits {
    fn exit(&self, vcpu: VcpuId, exit: &mut Exit<'_>) -> Result<()> {
        match (exit, &self.0.ioapic) {
            (Exit::IoapicEoi { vector }, Some(ioapic)) => ioapic.eoi(&self.0.interrupts, *vector),
            // The built-in guest tells of its exceptions by a port.
            (exit, _) => {
                let told = matches!(exit, Exit::PortWrite { port, .. } if *port == crate::sys::guest_code::FAULT_PORT);
                if !told && self.0.buses.serve(exit) { Ok(()) } else { Bare.exit(vcpu, exit) }
            }
        }
    }
}
