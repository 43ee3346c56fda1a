//! A guest with assigned devices, and everything that delivers their interrupts: what `--device` and the lab's tests drive.
//!
//! vCPU 0 is a puppet: what a driver does to the devices is done by its instructions. Their interrupts go to gates from
//! 0x20 on, vCPU by vCPU.

use crate::assign::{AssignConfig, Assigned, Fleet, Via};
use crate::cli::DeviceArg;
use crate::clock::Clock;
use crate::devices::{DeviceAddress, Host};
use crate::error::{Error, Result};
use crate::guest::driver::Driver;
use crate::guest::puppet::{Puppet, WAKE_VECTOR};
use crate::guest::{FIRST_VECTOR, Guest, Role};
use crate::pin::Placement;
use crate::platform::Platform;
use crate::poller::PollerThread;
use crate::record::{Figures, Stage};
use crate::source::{Backend, Lane};
use crate::vcpu::VcpuThread;
use crate::vm::{Idle, VmConfig};
use pollvisor_core::ids::VcpuId;
use pollvisor_core::line::Kind;
use pollvisor_core::route::Irqchip;
use pollvisor_core::teardown::vm::Running;
use std::convert::Infallible;
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
    fleet: Option<Fleet>,
    pollers: Vec<PollerThread>,
    threads: Vec<VcpuThread>,
    platform: Option<Platform>,
    puppet: Arc<Puppet>,
    host: Host,
    clock: Clock,
    slots: usize,
    each_vector: bool,
    vcpus: u32,
    gates: u32,
    tsc_offset: u64,
    warnings: Vec<String>,
}

impl DeviceSession {
    /// Starts the guest and the pollers; no device yet.
    ///
    /// # Errors
    /// What cannot be had, and what to do about it.
    pub fn start(config: &DeviceSessionConfig, host: Host, clock: Clock) -> Result<Self> {
        crate::sys::sched::raise_open_files();
        let guest = Guest::new()?;
        let vm = VmConfig { irqchip: config.irqchip, idle: Idle::Halt, halt_poll_ns: None };
        let platform = Platform::new(&vm, guest.memory().clone(), clock, config.slots)?;
        let vcpus = u32::try_from(config.vcpus.len()).unwrap_or(u32::MAX);
        let mut session = Self {
            fleet: Some(Fleet::start(host.clone(), platform.parts(), guest.memory().clone())?),
            pollers: Vec::new(),
            threads: Vec::new(),
            puppet: Arc::new(Puppet::new(guest.clone(), platform.parts().vm.clone(), VcpuId(0))),
            platform: Some(platform),
            host,
            clock,
            slots: config.slots,
            each_vector: config.each_vector,
            vcpus,
            gates: 0,
            tsc_offset: 0,
            warnings: Vec::new(),
        };
        session.start_vcpus(&guest, &config.vcpus)?;
        for (number, (backend, placement)) in config.pollers.iter().enumerate() {
            session.start_poller(*backend, *placement, number)?;
        }
        Ok(session)
    }

    fn platform(&self) -> Result<&Platform> {
        self.platform.as_ref().ok_or_else(|| Error::new("the guest was stopped"))
    }

    fn start_vcpus(&mut self, guest: &Guest, placements: &[Placement]) -> Result<()> {
        for (id, placement) in (0..).map(VcpuId).zip(placements) {
            let vcpu = self.platform()?.create_vcpu(id)?;
            guest.prepare(&vcpu, if id == VcpuId(0) { Role::Puppet } else { Role::Halt })?;
            // The guest's clock is to be the host's; where it cannot be set, it is converted.
            let set = vcpu.set_tsc_offset(0);
            self.tsc_offset = vcpu.tsc_offset().unwrap_or(0);
            if let Err(error) = set {
                self.warnings
                    .push(format!("the guest's TSC offset cannot be set ({error}); it is converted"));
            }
            let thread = VcpuThread::start(vcpu, *placement, self.platform()?.exits())?;
            self.warnings.extend_from_slice(thread.lacking());
            self.threads.push(thread);
        }
        let began = Instant::now();
        while let Some(id) = (0..self.vcpus).find(|id| !guest.is_running(VcpuId(*id))) {
            if let Some(ended) = self.threads.iter().position(VcpuThread::has_ended) {
                self.threads.swap_remove(ended).stop()?;
            }
            if began.elapsed() > PATIENCE {
                return Err(Error::new(format!("vCPU {id} did not start within {PATIENCE:?}")));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn start_poller(&mut self, backend: Backend, placement: Placement, number: usize) -> Result<()> {
        let lane = match Lane::new(backend, self.slots) {
            Err(why) if matches!(backend, Backend::Aio { .. }) => {
                self.warnings.push(format!("polling with epoll_wait(0) instead of AIO: {why}"));
                Lane::new(Backend::EpollSpin, self.slots)?
            }
            lane => lane?,
        };
        let interrupts = self.platform()?.interrupts();
        let name = format!("poller {number}");
        let poller = PollerThread::start(interrupts, lane, *self.empty_figures(), placement, &name)?;
        self.warnings.extend_from_slice(poller.lacking());
        self.pollers.push(poller);
        Ok(())
    }

    /// The way to deliver by poller `number`.
    ///
    /// # Errors
    /// No such poller.
    pub fn by_poller(&self, number: usize) -> Result<Via> {
        let poller = self.pollers.get(number);
        poller
            .map(|poller| Via::Poller(poller.port().clone()))
            .ok_or_else(|| Error::new(format!("there is no poller {number}")))
    }

    /// Attaches a device as a `--device` says, delivered `via`.
    ///
    /// # Errors
    /// What is in the way, and what to do.
    pub fn attach(&self, device: &DeviceArg, via: Via) -> Result<Arc<Assigned>> {
        let irq_cpus = match (&device.irq_cpus, device.address) {
            (Some(cpus), DeviceAddress::Pci(address)) => Some((address, cpus.clone())),
            (Some(_), DeviceAddress::Mdev(uuid)) => {
                return Err(Error::new(format!("{uuid}: irq_cpus is for PCI devices")));
            }
            (None, _) => None,
        };
        let config = AssignConfig {
            name: device.id.clone().unwrap_or_else(|| device.address.to_string()),
            via,
            exclude_mmap_bars: device.exclude_mmap_bars.clone(),
            slot: None,
            irq_cpus,
        };
        self.fleet()?.attach(device.address, device.iommufd, &config)
    }

    /// The devices.
    ///
    /// # Errors
    /// After [`stop`](Self::stop).
    pub fn fleet(&self) -> Result<&Fleet> {
        self.fleet.as_ref().ok_or_else(|| Error::new("the guest was stopped"))
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

    /// Empty figures for the pollers.
    #[must_use]
    pub fn empty_figures(&self) -> Box<Figures> {
        let stages = [Stage::SignalToSeen, Stage::SeenToInjected, Stage::SignalToAccepted];
        Box::new(Figures::new(&stages, self.slots, self.each_vector))
    }

    /// What all pollers measured since they were last asked; those that do not answer within a second are left out.
    #[must_use]
    pub fn take_figures(&self) -> Box<Figures> {
        let mut all = self.empty_figures();
        for figures in self.pollers.iter().filter_map(|poller| poller.take_figures(self.empty_figures())) {
            all.add(&figures);
        }
        all
    }

    /// The pollers.
    #[must_use]
    pub fn pollers(&self) -> &[PollerThread] {
        &self.pollers
    }

    /// The built-in guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        self.puppet.guest()
    }

    /// Where the host shows its devices.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The clock of its figures.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// What is to be taken off a guest's time to make it the host's.
    #[must_use]
    pub fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    /// What a user should know of how this runs.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether a vCPU ended by itself.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(VcpuThread::has_ended)
    }

    /// Takes everything down, in the order of [`pollvisor_core::teardown::vm`].
    ///
    /// # Errors
    /// The mistake of a vCPU or poller that ended by itself.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let mut result = Ok(());
        let (fleet, platform) = (self.fleet.take(), self.platform.take());
        let Some(platform) = platform else { return Ok(()) };
        let Ok(silent) = Running::new().stop_sources(|| never_fails(|| drop(fleet)));
        let Ok(unrouted) =
            silent.remove_routes(|| never_fails(|| result = platform.interrupts().set_routes(&[])));
        let Ok(busless) = unrouted.remove_buses(|| never_fails(|| platform.remove_buses()));
        let Ok(halted) = busless.stop_vcpus(|| {
            never_fails(|| {
                for thread in self.threads.drain(..) {
                    result = std::mem::replace(&mut result, Ok(())).and(thread.stop());
                }
            })
        });
        // The chips go with the VM, which nobody enters any more.
        let Ok(chipless) = halted.destroy_chips(|| never_fails(|| {}));
        let Ok(unobserved) = chipless.grace_period(|| {
            never_fails(|| {
                for poller in self.pollers.drain(..) {
                    result = std::mem::replace(&mut result, Ok(())).and(poller.stop().map(drop));
                }
            })
        });
        let Ok(_dead) = unobserved.free_memory(|| never_fails(|| drop(platform)));
        result
    }
}

fn never_fails(work: impl FnOnce()) -> std::result::Result<(), Infallible> {
    work();
    Ok(())
}

impl Drop for DeviceSession {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("pollvisor: {error}");
        }
    }
}
