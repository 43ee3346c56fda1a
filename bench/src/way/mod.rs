//! The ways from a signal to a LAPIC, ours and the rivals', behind one face. No vCPU runs: its LAPIC accepts.

mod accepting;
mod device;
mod direct;
mod irqfd;
mod lanes;
#[cfg(test)]
mod live;
#[cfg(feature = "rivals")]
mod rival;
mod trigger;

pub use device::{Device, device};
pub use lanes::Lanes;
pub use trigger::Trigger;

use crate::measure::matching::Taken;
use clap::ValueEnum;
use pollvisor::accel::Accelerator;
use pollvisor::clock::Clock;
use pollvisor::error::{Error, Result};
use pollvisor::flight::Flight;
use pollvisor::pin::Placement;
use pollvisor::session::vcpus_for;
use pollvisor::sys::fd::EventFd;
use pollvisor_core::ids::{Gsi, VcpuId};
use pollvisor_core::route::{MAX_ROUTES, Msi, RawRoute};
use std::sync::Arc;

/// A way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Path {
    /// In the kernel, inside the producer's write
    Irqfd,
    /// By the producer's own thread: the floor that a poller is compared with
    Direct,
    /// A poller, eventfds by AIO
    PolledEventfd,
    /// A poller, doorbells in shared memory
    PolledDoorbell,
    /// A poller, eventfds by epoll_wait without waiting
    #[value(name = "epoll_wait_0")]
    EpollWait0,
    /// Our thread that sleeps in epoll_wait
    BlockingEpoll,
    /// rust-vmm's event-manager, the injection in its subscriber
    EventManager,
    /// tokio's AsyncFd, one task a vector, the injection in it
    Tokio,
    /// io_uring's multishot poll, the injection at its completions
    IoUring,
}

impl Path {
    /// Those of this project, and the kernel's.
    pub const OWN: [Self; 6] = [
        Self::Irqfd,
        Self::Direct,
        Self::PolledEventfd,
        Self::PolledDoorbell,
        Self::EpollWait0,
        Self::BlockingEpoll,
    ];
    /// Those that other VMMs are made of.
    pub const RIVALS: [Self; 3] = [Self::EventManager, Self::Tokio, Self::IoUring];

    /// Its name in results: of the software machine's figures one that nobody takes for KVM's.
    #[must_use]
    pub fn name(self, accelerator: Accelerator) -> String {
        name_on(accelerator, self.key())
    }

    /// Whether it can be had there.
    #[must_use]
    pub const fn is_on(self, accelerator: Accelerator) -> bool {
        !matches!((self, accelerator), (Self::Irqfd, Accelerator::Software))
    }

    /// That it can be had there.
    ///
    /// # Errors
    /// Why it cannot, and what to do.
    pub fn must_be_on(self, accelerator: Accelerator) -> Result<()> {
        if self.is_on(accelerator) {
            return Ok(());
        }
        let what = format!("--path {} needs KVM: the software machine has no in-kernel irqfd", self.key());
        Err(Error::new(what).remedy("another --path, or --accel kvm"))
    }

    /// As the command line has it.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Irqfd => "irqfd",
            Self::Direct => "direct",
            Self::PolledEventfd => "polled_eventfd",
            Self::PolledDoorbell => "polled_doorbell",
            Self::EpollWait0 => "epoll_wait_0",
            Self::BlockingEpoll => "blocking_epoll",
            Self::EventManager => "event_manager",
            Self::Tokio => "tokio",
            Self::IoUring => "io_uring",
        }
    }

    /// Whether it can have more than one poller.
    #[must_use]
    pub const fn has_pollers(self) -> bool {
        matches!(self, Self::PolledEventfd | Self::PolledDoorbell | Self::EpollWait0 | Self::BlockingEpoll)
    }

    /// Whether what signals is an eventfd.
    #[must_use]
    pub const fn is_by_eventfd(self) -> bool {
        !matches!(self, Self::PolledDoorbell | Self::Direct)
    }

    /// Whether the interrupt is injected inside the producer's signal.
    #[must_use]
    pub const fn is_by_producer(self) -> bool {
        matches!(self, Self::Irqfd | Self::Direct)
    }

    /// Whether it never sleeps.
    #[must_use]
    pub const fn spins(self) -> bool {
        matches!(self, Self::PolledEventfd | Self::PolledDoorbell | Self::EpollWait0)
    }
}

/// What to set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// What takes the interrupts.
    pub accelerator: Accelerator,
    /// Which way.
    pub path: Path,
    /// Vectors.
    pub vectors: usize,
    /// Producers; vector v is producer `v mod producers`'s.
    pub producers: usize,
    /// The pollers' CPUs, one each; the producers' vectors take turns on them. Others than pollers use the first.
    pub cpus: Vec<usize>,
    /// Eventfds that share an AIO context.
    pub per_context: usize,
    /// Events that are kept one by one until they are taken; 0: none.
    pub samples: usize,
    /// Whether pollers note gaps between their passes.
    pub gaps: bool,
    /// Whether pollers keep their last events.
    pub flight: bool,
    /// Whose vectors are fired; `None`: the producers write to eventfds, or ring.
    pub device: Option<Arc<Device>>,
}

impl Config {
    /// An eventfd for every vector, and a producer's way to signal it.
    ///
    /// # Errors
    /// When descriptors run out.
    fn events(&self, clock: Clock) -> Result<(Vec<Arc<EventFd>>, Vec<Trigger>)> {
        let events = match &self.device {
            Some(device) => device.events(),
            None => (0..self.vectors).map(|_| EventFd::new().map(Arc::new)).collect::<Result<_>>()?,
        };
        let triggers = match &self.device {
            Some(device) => trigger::fired(clock, device, self.vectors, self.producers),
            None => trigger::events(clock, &events, self.producers),
        };
        Ok((events, triggers))
    }
}

/// A way that is set up.
pub trait Way {
    /// Lets a thread that spins give its CPU away.
    fn park(&self) {}
    /// Ends that.
    fn unpark(&self) {}
    /// What it took since it was last asked.
    ///
    /// # Errors
    /// When it does not answer, or ended by itself.
    fn take(&mut self) -> Result<Taken>;
    /// Whether a vector waits in its LAPIC.
    ///
    /// # Errors
    /// The kernel's.
    fn is_requested(&self, vector: usize) -> Result<bool>;
    /// Takes all waiting interrupts out of the LAPICs; only while nobody sends.
    ///
    /// # Errors
    /// The kernel's.
    fn clear_requests(&mut self) -> Result<()>;
    /// The kernel's numbers of the threads that deliver; none where the producer does.
    fn threads(&self) -> Vec<u32>;
    /// What a reader of its figures should know.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
    /// The pollers' last events, as far as they were taken; none where no poller of ours delivers.
    fn flights(&self) -> &[Flight] {
        &[]
    }
    /// Signals of a vector that nobody took; only after everything else.
    fn left_over(&self, _vector: usize) -> u64 {
        0
    }
    /// Interrupts so far whose vector the LAPIC had requested already; `None` where it does not tell.
    fn coalesced(&self) -> Option<u64> {
        None
    }
    /// Takes it down.
    ///
    /// # Errors
    /// The mistake of a thread that ended by itself; a software LAPIC's account that is not exact.
    fn stop(self: Box<Self>) -> Result<()>;
}

/// What a result is called: of the software machine's so that nobody takes it for KVM's.
#[must_use]
pub fn name_on(accelerator: Accelerator, name: &str) -> String {
    match accelerator {
        Accelerator::Kvm => name.into(),
        Accelerator::Software => format!("software_{name}"),
    }
}

/// Whether this build can measure the ways of other VMMs.
pub const HAS_RIVALS: bool = cfg!(feature = "rivals");

/// What was asked for is not in this build.
#[must_use]
pub fn without_rivals(what: &str) -> Error {
    Error::new(format!("{what}: this build is without the rivals"))
        .remedy("cargo run --release -p pollvisor-bench --features rivals -- ...")
}

/// Sets a way up; a trigger for every producer.
///
/// # Errors
/// Why it cannot be had here.
pub fn start(config: &Config, clock: Clock) -> Result<(Box<dyn Way>, Vec<Trigger>)> {
    let (vectors, producers) = (config.vectors, config.producers);
    if vectors == 0 || vectors > MAX_ROUTES {
        return Err(Error::new(format!("--vectors {vectors}: 1 to {MAX_ROUTES} can be routed")));
    }
    if producers == 0 || producers > vectors.min(trigger::MAX_PRODUCERS) {
        return Err(Error::new(format!(
            "--producers {producers}: 1 to {}, and not more than vectors, as a vector has one producer",
            trigger::MAX_PRODUCERS
        )));
    }
    let pollers = config.cpus.len();
    if pollers > 1 && !config.path.has_pollers() {
        return Err(Error::new(format!("--pollers {pollers}: {} has none", config.path.key())));
    }
    config.path.must_be_on(config.accelerator)?;
    pollvisor::sys::sched::raise_open_files();
    match config.path {
        Path::Irqfd => irqfd::start(config, clock),
        Path::Direct => direct::start(config, clock),
        path if path.has_pollers() => {
            let (lanes, triggers) = Lanes::start(config, 0, clock)?;
            Ok((Box::new(lanes), triggers))
        }
        #[cfg(feature = "rivals")]
        _ => rival::start(config, clock),
        #[cfg(not(feature = "rivals"))]
        path => Err(without_rivals(path.key())),
    }
}

/// Where a vector goes, as in `pollvisor::session`.
#[must_use]
pub fn target(vector: usize, vectors: usize) -> (VcpuId, u8) {
    let (vector, vcpus) = (u32::try_from(vector).unwrap_or(0), vcpus_for(vectors));
    let idt = u8::try_from(vector / vcpus).unwrap_or(0);
    (VcpuId(vector % vcpus), pollvisor::guest::FIRST_VECTOR.saturating_add(idt))
}

/// A vector's message.
#[must_use]
pub fn message(vector: usize, vectors: usize) -> Msi {
    let (vcpu, idt) = target(vector, vectors);
    Msi::fixed(vcpu.0, idt)
}

fn gsi(vector: usize) -> Gsi {
    Gsi(u32::try_from(vector).unwrap_or(u32::MAX))
}

fn routes(vectors: usize) -> Vec<RawRoute> {
    (0..vectors).map(|vector| RawRoute::msi(gsi(vector), message(vector, vectors))).collect()
}

/// The CPUs of a benchmark: pollers the last ones, producers those before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus {
    /// One per poller.
    pub pollers: Vec<usize>,
    /// What is left; producers take turns on them, the last first.
    pub producers: Vec<usize>,
}

impl Cpus {
    /// Room for so many pollers on these CPUs.
    ///
    /// # Errors
    /// When no CPU is left for producers.
    pub fn of(cpus: &[usize], pollers: usize) -> Result<Self> {
        if pollers == 0 || pollers >= cpus.len() {
            let needed = pollers.max(1) + 1;
            return Err(Error::new(format!(
                "this needs {needed} CPUs, one for each poller and one for the producers; there are {cpus:?}"
            ))
            .remedy("fewer --pollers, or more CPUs (taskset)"));
        }
        let (producers, pollers) = cpus.split_at(cpus.len() - pollers);
        Ok(Self { pollers: pollers.to_vec(), producers: producers.iter().rev().copied().collect() })
    }

    /// A producer's place.
    #[must_use]
    pub fn producer(&self, number: usize) -> Placement {
        Placement { cpu: Some(self.producers[number % self.producers.len()]), fifo: Some(false) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pollers_have_the_last_cpus_and_somebody_has_to_produce() {
        let cpus = Cpus::of(&[0, 1, 2, 3], 2).unwrap();
        assert_eq!((cpus.pollers.clone(), cpus.producers.clone()), (vec![2, 3], vec![1, 0]));
        assert_eq!(cpus.producer(2).cpu, Some(1));
        assert!(Cpus::of(&[0, 1], 2).is_err() && Cpus::of(&[0], 1).is_err() && Cpus::of(&[0, 1], 0).is_err());
    }

    #[test]
    fn no_two_vectors_go_to_the_same_place() {
        let mut all: Vec<_> = (0..4096).map(|vector| target(vector, 4096)).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 4096);
        assert!(all.iter().all(|(_, idt)| (0x20..0xff).contains(idt)));
    }
}
