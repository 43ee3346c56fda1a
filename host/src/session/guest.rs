//! A guest that is booted: a kernel of its own on the machine, with the devices that its drivers find.

use super::Assembly;
use crate::accel::kvm::Exits;
use crate::accel::{Idle, VmConfig};
use crate::boot::cpuid::{self, Cpus, MAX_VCPUS};
use crate::boot::load::{Boot, load};
use crate::boot::{acpi, cpu, put_firmware};
use crate::clock::Clock;
use crate::devices::Host;
use crate::error::{Error, Result};
use crate::legacy::{Console, End, Ending, Power, Serial, press_button};
use crate::pin::Placement;
use crate::platform::Parts;
use crate::record::Figures;
use crate::source::Backend;
use crate::sys::kvm::{Exit, Kvm, VcpuFd};
use crate::sys::tsc;
use kvm_bindings as kb;
use pollvisor_core::ids::VcpuId;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// What to set up.
#[derive(Debug, Clone)]
pub struct GuestSessionConfig {
    /// The VM.
    pub vm: VmConfig,
    /// What to boot.
    pub boot: Boot,
    /// Where its serial port leads.
    pub console: Console,
    /// Whether vCPUs are never preempted for long.
    pub dedicated: bool,
    /// The pollers: how each watches, and where it goes.
    pub pollers: Vec<(Backend, Placement)>,
    /// Where each vCPU goes; as many as there are.
    pub vcpus: Vec<Placement>,
    /// Vectors of all devices together, INTx included.
    pub slots: usize,
}

/// See the module's text.
#[derive(Debug)]
pub struct GuestSession {
    serial: Option<Serial>,
    assembly: Assembly,
    ending: Arc<Ending>,
    /// Made, and not yet running.
    vcpus: Vec<(VcpuFd, Placement)>,
}

impl Deref for GuestSession {
    type Target = Assembly;
    fn deref(&self) -> &Assembly {
        &self.assembly
    }
}

impl DerefMut for GuestSession {
    fn deref_mut(&mut self) -> &mut Assembly {
        &mut self.assembly
    }
}

impl GuestSession {
    /// Sets everything up but the devices; no vCPU runs yet. `ending` hears of its end.
    ///
    /// # Errors
    /// What cannot be had, or not be booted, and what to do about it.
    pub fn new(
        config: &GuestSessionConfig,
        memory: Arc<GuestMemoryMmap>,
        host: Host,
        clock: Clock,
        ending: &Arc<Ending>,
    ) -> Result<Self> {
        let count = u32::try_from(config.vcpus.len()).unwrap_or(u32::MAX);
        if !(1..=MAX_VCPUS).contains(&count) {
            return Err(Error::new(format!("--cpus boot={count}: 1 to {MAX_VCPUS} vCPUs")));
        }
        put_firmware(&memory)?;
        let entry = load(&memory, &config.boot, acpi::write(&memory, count)?)?;
        let mut assembly = Assembly::new(&config.vm, memory.clone(), (host, clock), config.slots, true)?;
        let platform = assembly.platform()?;
        let parts = platform.parts();
        Power::add(&parts.buses, ending)?;
        let kvm = platform.vm().kvm();
        let supported = kvm.supported_cpuid()?;
        let tsc_deadline = kvm.capability(kb::KVM_CAP_TSC_DEADLINE_TIMER) != 0;
        let cpus = Cpus { count, tsc_deadline, dedicated: config.dedicated, mwait: mwait(kvm, &config.vm) };
        let mut vcpus = Vec::new();
        for (id, placement) in (0..).zip(&config.vcpus) {
            let vcpu = platform.vm().create_bare_vcpu(VcpuId(id), &cpuid::leaves(&supported, id, cpus))?;
            cpu::prepare(&vcpu)?;
            if id == 0 {
                cpu::enter(&memory, &vcpu, entry)?;
            }
            vcpus.push((vcpu, *placement));
        }
        for (backend, placement) in &config.pollers {
            assembly.start_poller(*backend, *placement)?;
        }
        let parts = assembly.platform()?.parts();
        let serial = Serial::add(&config.console, &parts.buses, &parts.interrupts, ending)?;
        Ok(Self { serial: Some(serial), assembly, ending: ending.clone(), vcpus })
    }

    /// Lets the vCPUs run.
    ///
    /// # Errors
    /// When one cannot be placed.
    pub fn run(&mut self) -> Result<()> {
        let parts = self.assembly.platform()?.parts().clone();
        let exits: Arc<dyn Exits> = Arc::new(GuestExits { parts, ending: self.ending.clone() });
        for (vcpu, placement) in self.vcpus.drain(..) {
            self.assembly.start_vcpu(vcpu, placement, exits.clone())?;
        }
        Ok(())
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// After [`stop`](Self::stop).
    pub fn press_button(&self) -> Result<()> {
        press_button(self.assembly.platform()?.interrupts());
        Ok(())
    }

    /// Gives the terminal back and takes everything down; what the pollers measured since they were last asked.
    ///
    /// # Errors
    /// The mistake of a vCPU or poller that ended by itself.
    pub fn stop(&mut self) -> (Box<Figures>, Result<()>) {
        self.serial = None;
        self.vcpus.clear();
        self.assembly.stop()
    }
}

/// CPUID's leaf 5, if MWAIT stays in the guest and the processor has it.
fn mwait(kvm: &Kvm, vm: &VmConfig) -> Option<[u32; 4]> {
    let kept = vm.idle == Idle::Own
        && kvm.capability(kb::KVM_CAP_X86_DISABLE_EXITS) & kb::KVM_X86_DISABLE_EXITS_MWAIT != 0
        && tsc::cpuid(1).ecx & 1 << 3 != 0;
    let leaf = tsc::cpuid(5);
    kept.then_some([leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
}

struct GuestExits {
    parts: Arc<Parts>,
    ending: Arc<Ending>,
}

impl Exits for GuestExits {
    fn exit(&self, vcpu: VcpuId, exit: &mut Exit<'_>) -> Result<()> {
        match (exit, &self.parts.ioapic) {
            (Exit::Interrupted, _) => Ok(()),
            (Exit::IoapicEoi { vector }, Some(ioapic)) => ioapic.eoi(&self.parts.interrupts, *vector),
            (Exit::Shutdown, _) => {
                self.ending.end(End::Panic);
                Err(Error::new(format!("vCPU {}: a triple fault", vcpu.0)))
            }
            (exit, _) => {
                if self.parts.buses.serve(exit) {
                    return Ok(());
                }
                Err(Error::new(format!("vCPU {}: unexpected exit {exit:?}", vcpu.0)))
            }
        }
    }
}
