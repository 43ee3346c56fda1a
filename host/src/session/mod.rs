//! A guest with vectors that can be signalled, by any path: what `pollvisor run`, the benchmark and the tests drive.
//!
//! Vector `v` (from 0) is GSI `v`; its message goes to vCPU `v mod n`, interrupt vector `0x20 + v div n`.

mod assembly;
mod config;
mod devices;
mod guest;
mod signaller;

pub use assembly::Assembly;
pub use config::{Delivery, SessionConfig, Signals, vcpus_for};
pub use devices::{DeviceSession, DeviceSessionConfig};
pub use guest::{GuestSession, GuestSessionConfig};
pub use signaller::Signaller;

use config::{check, stages};
use signaller::Kind;

use crate::accel::VmConfig;
use crate::accel::software::LapicCounts;
use crate::accel::{Accelerator, RunningVcpu, Vcpu, Vm};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::guest::{FIRST_VECTOR, Guest};
use crate::interrupts::{Interrupts, Running, Source};
use crate::pin::Placement;
use crate::poller::PollerThread;
use crate::record::{Figures, Stage};
use crate::source::{Backend, Lane};
use crate::sys::doorbell::{Producer, Region};
use crate::sys::fd::EventFd;
use pollvisor_core::ids::{Gsi, SourceId, VcpuId};
use pollvisor_core::route::{Irqchip, Msi, RawRoute};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

/// See the module's text.
#[derive(Debug)]
pub struct Session {
    // In the order in which they have to go: sources, pollers, vCPUs, the VM.
    attached: Vec<SourceId>,
    bound: Vec<(Arc<EventFd>, Gsi)>,
    poller: Option<PollerThread>,
    interrupts: Option<Running>,
    threads: Vec<RunningVcpu>,
    vcpus: Vec<Vcpu>,
    guest: Option<Guest>,
    vm: Vm,
    clock: Clock,
    vectors: usize,
    vcpu_count: u32,
    stages: Vec<Stage>,
    each_vector: bool,
    warnings: Vec<String>,
    /// What is to be taken off a guest's time to make it the host's.
    tsc_offset: u64,
    /// When all vCPUs had executed their first instruction, as far as was looked.
    began: Option<u64>,
}

/// What a session that was stopped leaves.
#[derive(Debug)]
pub struct Stopped {
    /// What the poller measured since it was last asked; `None` where none delivered.
    pub figures: Option<Figures>,
    /// What the software LAPICs counted; `None` with KVM's, which do not tell.
    pub lapics: Option<LapicCounts>,
}

impl Session {
    /// Sets everything up and starts it; the signaller is the caller's.
    ///
    /// # Errors
    /// What is wrong with the configuration, or cannot be had, and what to do about it.
    pub fn start(config: &SessionConfig, clock: Clock) -> Result<(Self, Signaller)> {
        check(config)?;
        crate::sys::sched::raise_open_files();
        let vcpu_count = config.vcpus.unwrap_or_else(|| vcpus_for(config.vectors));
        let guest = config.running.then(Guest::new).transpose()?;
        let vm_config =
            VmConfig { irqchip: Irqchip::Split, idle: config.idle, halt_poll_ns: config.halt_poll_ns };
        let memory = guest.as_ref().map(|guest| guest.memory().clone());
        let vm = Vm::new(config.accelerator, &vm_config, memory, vcpu_count)?;
        let mut session = Self {
            attached: Vec::new(),
            bound: Vec::new(),
            poller: None,
            interrupts: None,
            threads: Vec::new(),
            vcpus: Vec::new(),
            guest,
            vm,
            clock,
            vectors: config.vectors,
            vcpu_count,
            stages: stages(config.delivery, config.accelerator),
            each_vector: config.each_vector,
            warnings: Vec::new(),
            tsc_offset: 0,
            began: None,
        };
        session.start_vcpus(config)?;
        let signaller = match config.delivery {
            Delivery::Irqfd => session.bind_in_kernel()?,
            Delivery::Poller(backend) => session.start_poller(config, backend)?,
        };
        Ok((session, signaller))
    }

    fn start_vcpus(&mut self, config: &SessionConfig) -> Result<()> {
        for id in (0..self.vcpu_count).map(VcpuId) {
            let vcpu = self.vm.create_vcpu(id)?;
            let Some(guest) = &self.guest else {
                self.vcpus.push(vcpu);
                continue;
            };
            let placement = config.vcpu_placement.get(id.0 as usize).copied();
            let placement = placement.unwrap_or(Placement { cpu: None, fifo: None });
            let started = vcpu.start(guest, config.idle, placement)?;
            self.tsc_offset = started.tsc_offset;
            self.warnings.extend(started.warnings);
            self.threads.push(started.vcpu);
        }
        self.wait_running()
    }

    fn wait_running(&mut self) -> Result<()> {
        let Some(guest) = &self.guest else { return Ok(()) };
        let began = std::time::Instant::now();
        while let Some(id) = (0..self.vcpu_count).find(|id| !guest.is_running(VcpuId(*id))) {
            if let Some(ended) = self.threads.iter().position(RunningVcpu::has_ended) {
                self.threads.swap_remove(ended).stop()?;
            }
            if began.elapsed().as_secs() >= 10 {
                return Err(Error::new(format!("vCPU {id} did not start within 10 s"))
                    .remedy("fewer vCPUs, or CPUs that are not in use"));
            }
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        self.began = Some(self.clock.now());
        Ok(())
    }

    fn events(&self) -> Result<Vec<Arc<EventFd>>> {
        (0..self.vectors).map(|_| EventFd::new().map(Arc::new)).collect()
    }

    fn bind_in_kernel(&mut self) -> Result<Signaller> {
        let vm = self.vm.kvm()?.fd();
        vm.set_gsi_routing(0, &self.routes())?;
        let events = self.events()?;
        for (vector, event) in events.iter().enumerate() {
            let gsi = gsi(vector);
            vm.irqfd(event.as_fd().as_raw_fd(), gsi, 0, None)?;
            self.bound.push((event.clone(), gsi));
        }
        Ok(Signaller { clock: self.clock, kind: Kind::Events { events, port: None } })
    }

    fn start_poller(&mut self, config: &SessionConfig, backend: Backend) -> Result<Signaller> {
        let lane = match Lane::new(backend, self.vectors) {
            Err(why) if matches!(backend, Backend::Aio { .. }) => {
                self.warnings.push(format!("polling with epoll_wait(0) instead of AIO: {why}"));
                Lane::new(Backend::EpollSpin, self.vectors)?
            }
            lane => lane?,
        };
        let inject = self.vm.injector()?;
        let interrupts = Interrupts::start(Irqchip::Split, inject, self.clock, self.vectors)?;
        interrupts.set_routes(&self.routes())?;
        let figures = self.empty_figures();
        let poller = PollerThread::start(&interrupts, lane, *figures, config.poller_placement, "poller")?;
        self.warnings.extend_from_slice(poller.lacking());
        let port = poller.port();
        let kind = match config.signals {
            Signals::Eventfd => {
                let events = self.events()?;
                for (vector, event) in events.iter().enumerate() {
                    self.attached.push(interrupts.attach(Source::Event(event.clone()), gsi(vector), port)?);
                }
                Kind::Events { events, port: Some(port.clone()) }
            }
            Signals::Doorbell => {
                let region = Region::new(self.vectors)?;
                let watched = interrupts.add_region(port, &region)?;
                for vector in 0..self.vectors {
                    let source = Source::Bell(watched.clone(), vector);
                    self.attached.push(interrupts.attach(source, gsi(vector), port)?);
                }
                Kind::Bells(Producer::new(region))
            }
        };
        self.attached.iter().for_each(|id| port.wait_hooked(*id, std::thread::yield_now));
        self.poller = Some(poller);
        self.interrupts = Some(interrupts);
        Ok(Signaller { clock: self.clock, kind })
    }

    /// What runs the guest.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.vm.accelerator()
    }

    /// The clock of this session's figures.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// How many vectors there are.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.vectors
    }

    /// Where a vector goes.
    #[must_use]
    pub fn target(&self, vector: usize) -> (VcpuId, u8) {
        let vector = u32::try_from(vector).unwrap_or(0);
        let idt = u8::try_from(vector / self.vcpu_count).unwrap_or(u8::MAX - FIRST_VECTOR - 1);
        (VcpuId(vector % self.vcpu_count), FIRST_VECTOR + idt)
    }

    /// The routes of all vectors.
    #[must_use]
    pub fn routes(&self) -> Vec<RawRoute> {
        let message = |vector| {
            let (vcpu, idt) = self.target(vector);
            Msi::fixed(vcpu.0, idt)
        };
        (0..self.vectors).map(|vector| RawRoute::msi(gsi(vector), message(vector))).collect()
    }

    /// Empty figures for this session's pollers.
    #[must_use]
    pub fn empty_figures(&self) -> Box<Figures> {
        Box::new(Figures::new(&self.stages, self.vectors, self.each_vector))
    }

    /// What was measured since it was last asked; `None` when a poller does not answer within a second, or there is none.
    #[must_use]
    pub fn take_figures(&self, empty: Box<Figures>) -> Option<Box<Figures>> {
        self.poller.as_ref()?.take_figures(empty)
    }

    /// Whether a vCPU or the poller ended by itself: the session is over then.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(RunningVcpu::has_ended)
            || self.poller.as_ref().is_some_and(PollerThread::has_ended)
    }

    /// What a user should know of how this runs.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The built-in guest, if it runs.
    #[must_use]
    pub fn guest(&self) -> Option<&Guest> {
        self.guest.as_ref()
    }

    /// What is to be taken off a guest's time to make it the host's.
    #[must_use]
    pub fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    /// When every vCPU was first seen to have executed an instruction, in TSC cycles; `None` when none runs.
    #[must_use]
    pub fn began(&self) -> Option<u64> {
        self.began
    }

    /// The VM's interrupts, where a poller delivers.
    #[must_use]
    pub fn interrupts(&self) -> Option<&Running> {
        self.interrupts.as_ref()
    }

    /// The poller, where one delivers.
    #[must_use]
    pub fn poller(&self) -> Option<&PollerThread> {
        self.poller.as_ref()
    }

    /// The handles of the attached vectors, where a poller delivers.
    #[must_use]
    pub fn attached(&self) -> &[SourceId] {
        &self.attached
    }

    /// Whether a vector waits in its LAPIC. Only without running vCPUs.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_requested(&self, vector: usize) -> Result<bool> {
        let (vcpu, idt) = self.target(vector);
        let vcpu = self.vcpus.get(vcpu.0 as usize).ok_or_else(|| Error::new("the vCPU runs"))?;
        vcpu.is_requested(idt)
    }

    /// Takes all waiting interrupts out of the LAPICs. Only without running vCPUs.
    ///
    /// # Errors
    /// The kernel's.
    pub fn clear_requests(&mut self) -> Result<()> {
        self.vcpus.iter_mut().try_for_each(Vcpu::clear_requests)
    }

    /// Takes everything down in order: sources, poller, workers, vCPUs. What the poller measured since it was last asked,
    /// and what the software LAPICs counted since they were made.
    ///
    /// # Errors
    /// The mistake of a vCPU or poller that ended by itself.
    pub fn stop(mut self) -> Result<Stopped> {
        for (event, gsi) in self.bound.drain(..) {
            self.vm.kvm()?.fd().irqfd(
                event.as_fd().as_raw_fd(),
                gsi,
                kvm_bindings::KVM_IRQFD_FLAG_DEASSIGN,
                None,
            )?;
        }
        if let Some(interrupts) = &self.interrupts {
            for id in self.attached.drain(..) {
                interrupts.detach(id);
            }
        }
        let figures = self.poller.take().map(PollerThread::stop).transpose()?;
        drop(self.interrupts.take());
        let mut lapics = LapicCounts::default();
        for thread in self.threads.drain(..) {
            thread.stop()?.into_iter().for_each(|counts| lapics += counts);
        }
        for vcpu in &self.vcpus {
            vcpu.counts().into_iter().for_each(|counts| lapics += counts);
        }
        let lapics = (self.vm.accelerator() == Accelerator::Software).then_some(lapics);
        Ok(Stopped { figures, lapics })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // As in `stop`: the sources, while the poller still takes commands.
        if let Some(interrupts) = &self.interrupts {
            self.attached.drain(..).for_each(|id| {
                interrupts.detach(id);
            });
        }
    }
}

fn gsi(vector: usize) -> Gsi {
    Gsi(u32::try_from(vector).unwrap_or(u32::MAX))
}
