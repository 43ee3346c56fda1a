//! A guest with assigned devices, and everything that delivers their interrupts: what `--device` and the lab's tests drive.
//!
//! vCPU 0 is a puppet: what a driver does to the devices is done by its instructions. Their interrupts go to gates from
//! 0x20 on, vCPU by vCPU.

use super::Assembly;
use crate::accel::{Idle, VmConfig};
use crate::assign::Assigned;
use crate::clock::Clock;
use crate::devices::Host;
use crate::error::{Error, Result};
use crate::guest::driver::Driver;
use crate::guest::puppet::{Puppet, WAKE_VECTOR};
use crate::guest::{FIRST_VECTOR, Guest, Role};
use crate::pin::Placement;
use crate::source::Backend;
use pollvisor_core::ids::VcpuId;
use pollvisor_core::line::Kind;
use pollvisor_core::route::Irqchip;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Gates for devices on one vCPU: below the one that wakes a puppet.
const GATES: u32 = (WAKE_VECTOR - FIRST_VECTOR) as u32;
/// How long vCPUs may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to set up.
#[derive(Debug, Clone)]
pub struct DeviceSessionConfig {
    /// Where the interrupt chips live: [`Irqchip::Kernel`] for INTx by irqfd, else [`Irqchip::Split`].
    pub irqchip: Irqchip,
    /// The pollers: how each watches, and where it goes.
    pub pollers: Vec<(Backend, Placement)>,
    /// Where each vCPU goes; as many as there are.
    pub vcpus: Vec<Placement>,
    /// Vectors of all devices together, INTx included.
    pub slots: usize,
    /// Whether each vector has histograms of its own.
    pub each_vector: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct DeviceSession {
    assembly: Assembly,
    puppet: Arc<Puppet>,
    vcpus: u32,
    gates: u32,
    tsc_offset: u64,
}

impl Deref for DeviceSession {
    type Target = Assembly;
    fn deref(&self) -> &Assembly {
        &self.assembly
    }
}

impl DeviceSession {
    /// Starts the guest and the pollers; no device yet.
    ///
    /// # Errors
    /// What cannot be had, and what to do about it.
    pub fn start(config: &DeviceSessionConfig, host: Host, clock: Clock) -> Result<Self> {
        let guest = Guest::new()?;
        let vm = VmConfig { irqchip: config.irqchip, idle: Idle::Halt, halt_poll_ns: None };
        let memory = guest.memory().clone();
        let assembly = Assembly::new(&vm, memory, (host, clock), config.slots, config.each_vector)?;
        let kvm = assembly.platform()?.parts().vm.clone();
        let mut session = Self {
            assembly,
            puppet: Arc::new(Puppet::new(guest.clone(), kvm, VcpuId(0))),
            vcpus: u32::try_from(config.vcpus.len()).unwrap_or(u32::MAX),
            gates: 0,
            tsc_offset: 0,
        };
        session.start_vcpus(&guest, &config.vcpus)?;
        for (backend, placement) in &config.pollers {
            session.assembly.start_poller(*backend, *placement)?;
        }
        Ok(session)
    }

    fn start_vcpus(&mut self, guest: &Guest, placements: &[Placement]) -> Result<()> {
        for (id, placement) in (0..).map(VcpuId).zip(placements) {
            let vcpu = self.platform()?.create_vcpu(id)?;
            guest.prepare(&vcpu, if id == VcpuId(0) { Role::Puppet } else { Role::Halt })?;
            // The guest's clock is to be the host's; where it cannot be set, it is converted.
            let set = vcpu.set_tsc_offset(0);
            self.tsc_offset = vcpu.tsc_offset().unwrap_or(0);
            if let Err(error) = set {
                let text = format!("the guest's TSC offset cannot be set ({error}); it is converted");
                self.assembly.warn(text);
            }
            let exits = self.platform()?.exits();
            self.assembly.start_vcpu(vcpu, *placement, exits)?;
        }
        let began = Instant::now();
        while let Some(id) = (0..self.vcpus).find(|id| !guest.is_running(VcpuId(*id))) {
            self.assembly.check_vcpus()?;
            if began.elapsed() > PATIENCE {
                return Err(Error::new(format!("vCPU {id} did not start within {PATIENCE:?}")));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// The puppet.
    #[must_use]
    pub fn puppet(&self) -> &Arc<Puppet> {
        &self.puppet
    }

    /// The driver of a device.
    #[must_use]
    pub fn driver(&self, device: &Assigned) -> Driver<'_> {
        Driver::new(&self.puppet, device.slot())
    }

    /// Gates for `count` more vectors.
    ///
    /// # Errors
    /// When the vCPUs have no more.
    pub fn gates(&mut self, count: u32) -> Result<Vec<(VcpuId, u8)>> {
        let first = self.gates;
        let end = first.checked_add(count).filter(|end| *end <= self.vcpus * GATES);
        let end = end.ok_or_else(|| {
            Error::new(format!("{count} more vectors do not fit {} vCPUs, {GATES} to each", self.vcpus))
                .remedy("more vCPUs: --cpus boot=N")
        })?;
        self.gates = end;
        let gate = |n: u32| (VcpuId(n / GATES), FIRST_VECTOR + u8::try_from(n % GATES).unwrap_or(0));
        Ok((first..end).map(gate).collect())
    }

    /// Does what a driver does before it uses a device: switches it on, and sets up `kind` of interrupt, as many as
    /// `wanted` at the most. The gates of its vectors.
    ///
    /// # Errors
    /// When the device has no such interrupt.
    pub fn set_up(&mut self, device: &Assigned, kind: Kind, wanted: u32) -> Result<Vec<(VcpuId, u8)>> {
        let driver = Driver::new(&self.puppet, device.slot());
        driver.enable()?;
        let count = match kind {
            Kind::Msix => u32::from(driver.msix_vectors()?).min(wanted),
            Kind::Msi | Kind::Intx => 1,
        };
        let gates = self.gates(count)?;
        let driver = Driver::new(&self.puppet, device.slot());
        match kind {
            Kind::Msix => driver.enable_msix(&gates)?,
            Kind::Msi => driver.enable_msi(gates[0])?,
            Kind::Intx => driver.enable_intx(gates[0])?,
        }
        match device.set_up()? {
            (Some(now), bound) if now == kind && bound >= gates.len() => Ok(gates),
            (now, bound) => Err(Error::new(format!(
                "{}: the guest set up {kind:?} with {count} vectors, and it has {now:?} with {bound}",
                device.name()
            ))),
        }
    }

    /// The built-in guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        self.puppet.guest()
    }

    /// What is to be taken off a guest's time to make it the host's.
    #[must_use]
    pub fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    /// Takes everything down, in the order of [`pollvisor_core::teardown::vm`].
    ///
    /// # Errors
    /// The mistake of a vCPU or poller that ended by itself.
    pub fn stop(mut self) -> Result<()> {
        self.assembly.stop().1
    }
}
