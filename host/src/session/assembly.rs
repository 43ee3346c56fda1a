//! What every guest with devices is made of, whatever runs in it: the machine, its devices, pollers and vCPUs, and the one
//! order in which they go.

use crate::accel::VmConfig;
use crate::accel::kvm::{Exits, VcpuThread};
use crate::assign::{AssignConfig, Assigned, Fleet, Via};
use crate::cli::DeviceArg;
use crate::clock::Clock;
use crate::devices::{DeviceAddress, Host};
use crate::error::{Error, Result};
use crate::pin::Placement;
use crate::platform::Platform;
use crate::poller::PollerThread;
use crate::record::{Figures, Stage};
use crate::source::{Backend, Lane};
use crate::sys::kvm::VcpuFd;
use pollvisor_core::teardown::vm::Running;
use std::convert::Infallible;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// See the module's text.
#[derive(Debug)]
pub struct Assembly {
    fleet: Option<Fleet>,
    pollers: Vec<PollerThread>,
    threads: Vec<VcpuThread>,
    platform: Option<Platform>,
    host: Host,
    clock: Clock,
    slots: usize,
    each_vector: bool,
    warnings: Vec<String>,
}

impl Assembly {
    /// A machine with memory, without vCPUs, pollers and devices. `slots`: vectors of all devices together; `each_vector`:
    /// whether each has histograms of its own.
    ///
    /// # Errors
    /// What cannot be had, and what to do about it.
    pub fn new(
        config: &VmConfig,
        memory: Arc<GuestMemoryMmap>,
        (host, clock): (Host, Clock),
        slots: usize,
        each_vector: bool,
    ) -> Result<Self> {
        crate::sys::sched::raise_open_files();
        let platform = Platform::new(config, memory.clone(), clock, slots)?;
        Ok(Self {
            fleet: Some(Fleet::start(host.clone(), platform.parts(), memory)?),
            pollers: Vec::new(),
            threads: Vec::new(),
            platform: Some(platform),
            host,
            clock,
            slots,
            each_vector,
            warnings: Vec::new(),
        })
    }

    /// The machine.
    ///
    /// # Errors
    /// After [`stop`](Self::stop).
    pub fn platform(&self) -> Result<&Platform> {
        self.platform.as_ref().ok_or_else(|| Error::new("the guest was stopped"))
    }

    /// Runs a vCPU.
    ///
    /// # Errors
    /// When it cannot be placed.
    pub fn start_vcpu(&mut self, vcpu: VcpuFd, placement: Placement, exits: Arc<dyn Exits>) -> Result<()> {
        let thread = VcpuThread::start(vcpu, placement, exits)?;
        self.warnings.extend_from_slice(thread.lacking());
        self.threads.push(thread);
        Ok(())
    }

    /// The mistake of a vCPU that ended by itself, or of a poller, which is forgotten then.
    ///
    /// # Errors
    /// That mistake.
    pub fn check_vcpus(&mut self) -> Result<()> {
        if let Some(ended) = self.pollers.iter().position(PollerThread::has_ended) {
            return self.pollers.remove(ended).stop().map(drop);
        }
        match self.threads.iter().position(VcpuThread::has_ended) {
            Some(ended) => self.threads.swap_remove(ended).stop(),
            None => Ok(()),
        }
    }

    /// A note for [`warnings`](Self::warnings).
    pub fn warn(&mut self, text: String) {
        self.warnings.push(text);
    }

    /// Starts one more poller.
    ///
    /// # Errors
    /// When it cannot be placed.
    pub fn start_poller(&mut self, backend: Backend, placement: Placement) -> Result<()> {
        let lane = match Lane::new(backend, self.slots) {
            Err(why) if matches!(backend, Backend::Aio { .. }) => {
                self.warnings.push(format!("polling with epoll_wait(0) instead of AIO: {why}"));
                Lane::new(Backend::EpollSpin, self.slots)?
            }
            lane => lane?,
        };
        let interrupts = self.platform()?.interrupts();
        let name = format!("poller {}", self.pollers.len());
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

    /// What a user should know of how this runs.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether a vCPU or a poller ended by itself.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(VcpuThread::has_ended) || self.pollers.iter().any(PollerThread::has_ended)
    }

    /// Takes everything down, in the order of [`pollvisor_core::teardown::vm`]; what the pollers measured since they were
    /// last asked.
    ///
    /// # Errors
    /// The mistake of a vCPU or poller that ended by itself.
    pub fn stop(&mut self) -> (Box<Figures>, Result<()>) {
        let mut figures = self.empty_figures();
        let result = self.end(&mut figures);
        (figures, result)
    }

    fn end(&mut self, figures: &mut Figures) -> Result<()> {
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
                    poller.complaint().inspect(|complaint| eprintln!("pollvisor: {complaint}"));
                    let stopped = poller.stop().map(|own| figures.add(&own));
                    result = std::mem::replace(&mut result, Ok(())).and(stopped);
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

impl Drop for Assembly {
    fn drop(&mut self) {
        if let (_, Err(error)) = self.stop() {
            eprintln!("pollvisor: {error}");
        }
    }
}
