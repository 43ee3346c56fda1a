//! A device in the built-in guest: what its driver does is done by the guest's own accesses.

use super::devices::{Access, Device, Kind, identify};
use super::{Context, Need, trace};
use pollvisor::assign::{Assigned, Via};
use pollvisor::cli::{DeviceAddress, DeviceArg};
use pollvisor::clock::Clock;
use pollvisor::devices::Host;
use pollvisor::error::{Error, Result};
use pollvisor::guest::SCRATCH;
use pollvisor::guest::driver::Driver;
use pollvisor::guest::puppet::Puppet;
use pollvisor::pin::Placement;
use pollvisor::session::{DeviceSession, DeviceSessionConfig};
use pollvisor::source::Backend;
use pollvisor_core::ids::VcpuId;
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::line;
use pollvisor_core::route::Irqchip;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// How long an interrupt may take to its handler.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// A poller that spins.
    Polled,
    /// The kernel.
    Irqfd,
    /// A thread that sleeps.
    Blocking,
}

/// The guest; devices are attached to it.
#[derive(Debug)]
pub struct Guest {
    /// Everything.
    pub session: DeviceSession,
    /// Memory given to devices so far.
    given: u64,
}

/// A device in the guest, with its driver.
pub struct InGuest {
    /// The VMM's side.
    pub assigned: Arc<Assigned>,
    /// The driver's knowledge of the device.
    pub driver: Box<dyn Device>,
    /// What it is set up as.
    pub kind: Kind,
    /// Where its vectors' handlers are.
    pub gates: Vec<(VcpuId, u8)>,
    memory: u64,
    /// What others than pollers counted up to the last look.
    counted: Outcome,
}

/// The guest's hands on a device.
pub struct Hands<'a> {
    puppet: &'a Puppet,
    driver: Driver<'a>,
    bars: [Option<Bar>; 6],
}

/// Where the guest finds one.
#[derive(Debug, Clone, Copy)]
enum Bar {
    Memory(u64),
    Ports(u16),
}

impl Guest {
    /// A guest with a poller that spins on the last CPU, one that sleeps, and its vCPU on the first CPU; the chips in the
    /// kernel where INTx goes by the kernel.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn start(delivery: Delivery, kind: Kind) -> Result<Self> {
        Self::with_pollers(delivery, kind, 1)
    }

    /// The same with several pollers that spin; the sleeping one comes after them.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn with_pollers(delivery: Delivery, kind: Kind, spinning: usize) -> Result<Self> {
        let place = |cpu| Placement { cpu: Some(cpu), fifo: Some(false) };
        let last = pollvisor::pin::available().last().copied().unwrap_or(0);
        let spinning = if delivery == Delivery::Polled { spinning } else { 0 };
        let mut pollers = vec![(Backend::AIO, place(last)); spinning];
        pollers.push((Backend::EpollBlock, Placement { cpu: None, fifo: None }));
        let kernel = delivery == Delivery::Irqfd && kind == Kind::Intx;
        let config = DeviceSessionConfig {
            irqchip: if kernel { Irqchip::Kernel } else { Irqchip::Split },
            pollers,
            vcpus: vec![place(0)],
            slots: 512,
            each_vector: false,
        };
        let session = DeviceSession::start(&config, Host::default(), Clock::calibrate()?)?;
        Ok(Self { session, given: SCRATCH.start })
    }

    /// The way of a delivery; `poller` which of the spinning ones.
    ///
    /// # Errors
    /// When it was not started with such a poller.
    pub fn via(&self, delivery: Delivery, poller: usize) -> Result<Via> {
        match delivery {
            Delivery::Polled => self.session.by_poller(poller),
            Delivery::Blocking => self.session.by_poller(self.session.pollers().len() - 1),
            Delivery::Irqfd => Ok(Via::Kernel),
        }
    }

    /// Attaches a device and sets it up, by the guest's hands, for up to `vectors` vectors; nothing is raised yet. None:
    /// the device is known to have no such interrupts, and the guest finds none.
    ///
    /// # Errors
    /// What is in the way.
    pub fn attach(
        &mut self,
        context: &Context,
        need: Need,
        (kind, vectors): (Kind, u16),
        via: Via,
        iommufd: bool,
    ) -> Result<Option<InGuest>> {
        self.attach_at(context.address(need)?.into(), (kind, vectors), via, iommufd)
    }

    /// The same, wherever it is.
    ///
    /// # Errors
    /// What is in the way.
    pub fn attach_at(
        &mut self,
        address: DeviceAddress,
        (kind, vectors): (Kind, u16),
        via: Via,
        iommufd: bool,
    ) -> Result<Option<InGuest>> {
        let mut device = DeviceArg::from(address);
        device.iommufd = Some(iommufd);
        let assigned = self.session.attach(&device, via)?;
        let id = self.session.driver(&assigned).config(0, 4)?.to_le_bytes();
        let numbers = (u16::from_le_bytes([id[0], id[1]]), u16::from_le_bytes([id[2], id[3]]));
        let driver = identify(numbers.0, numbers.1)
            .ok_or_else(|| Error::new(format!("nobody knows {:04x}:{:04x}", numbers.0, numbers.1)))?;
        let wanted = driver.vectors(kind).min(vectors);
        if wanted == 0 {
            let hands = self.session.driver(&assigned);
            let there = match kind {
                Kind::Msix => hands.capability(0x11)?.is_some(),
                Kind::Msi => hands.capability(5)?.is_some(),
                Kind::Intx => hands.has_intx()?,
            };
            let surprise =
                || Error::new(format!("{} has {kind:?}, and its driver knows of none", driver.name()));
            return if there { Err(surprise()) } else { Ok(None) };
        }
        let core_kind = match kind {
            Kind::Msix => line::Kind::Msix,
            Kind::Msi => line::Kind::Msi,
            Kind::Intx => line::Kind::Intx,
        };
        let memory = self.given;
        self.given += driver.memory() as u64;
        if self.given > SCRATCH.end {
            return Err(Error::new("the guest has no more memory for devices"));
        }
        let gates = self.session.set_up(&assigned, core_kind, u32::from(wanted))?;
        let mut device = InGuest { assigned, driver, kind, gates, memory, counted: Outcome::default() };
        if kind == Kind::Intx
            && let Some((register, value)) = device.driver.silence()
        {
            let bar = self.session.driver(&device.assigned).bar(0)?;
            let (vcpu, gate) = device.gates[0];
            self.session.guest().acknowledge_in_handler(vcpu, gate, bar + register, value)?;
        }
        let mut hands = self.hands(&device);
        device.driver.set_up(&mut hands, kind, device.memory)?;
        // What setting up left behind.
        sleep(Duration::from_millis(20));
        let _left_behind = self.ledger(&mut device);
        Ok(Some(device))
    }

    /// The guest's hands on a device.
    #[must_use]
    pub fn hands(&self, device: &InGuest) -> Hands<'_> {
        let driver = self.session.driver(&device.assigned);
        Hands { puppet: self.session.puppet(), driver, bars: [None; 6] }
    }

    /// How often each of a device's handlers has run.
    #[must_use]
    pub fn handled(&self, device: &InGuest) -> Vec<u64> {
        device.gates.iter().map(|(vcpu, gate)| self.session.guest().handled(*vcpu, *gate)).collect()
    }

    /// Raises one vector and waits for its handler; that no other ran, and it not twice, where the device counts.
    ///
    /// # Errors
    /// When it did not arrive, or elsewhere.
    pub fn raise(&self, device: &mut InGuest, vector: u16) -> Result<()> {
        let before = self.handled(device);
        let mut hands = self.hands(device);
        device.driver.raise(&mut hands, vector)?;
        let at = usize::from(vector);
        let began = Instant::now();
        while self.handled(device)[at] == before[at] {
            if began.elapsed() > PATIENCE {
                let why = trace::astray().map(|astray| format!(": {astray}")).unwrap_or_default();
                return Err(Error::new(format!(
                    "vector {vector} was raised, and its handler did not run{why}"
                )));
            }
            std::thread::yield_now();
        }
        device.driver.acknowledge(&mut hands, vector)?;
        if device.kind == Kind::Intx {
            device.driver.listen_again(&mut hands);
        }
        let mut expected = before;
        expected[at] += 1;
        let now = self.handled(device);
        if device.driver.counts_exactly() && now != expected {
            return Err(Error::new(format!(
                "vector {vector} was raised once: handlers {expected:?} expected, {now:?} ran"
            )));
        }
        Ok(())
    }

    /// What became of the device's signals since it was last asked, by pollers, the deferred worker and control threads.
    /// The pollers' counts of other devices go with it.
    pub fn ledger(&self, device: &mut InGuest) -> Outcome {
        let figures = self.session.take_figures();
        let (mut polled, mut others) = (Outcome::default(), Outcome::default());
        for slot in device.assigned.slots() {
            let slot = usize::try_from(*slot).unwrap_or(usize::MAX);
            polled += figures.ledger.get(slot).copied().unwrap_or_default();
            others += device.assigned.counted(slot);
        }
        let before = std::mem::replace(&mut device.counted, others);
        polled += others.since(before);
        polled
    }
}

impl Hands<'_> {
    fn place(&mut self, bar: u8, offset: u64) -> Bar {
        let driver = self.driver;
        let place = *self.bars[usize::from(bar)].get_or_insert_with(|| {
            match driver.ports(bar).expect("the guest reads its BAR") {
                Some(ports) => Bar::Ports(ports),
                None => Bar::Memory(driver.bar(bar).expect("the guest reads its BAR")),
            }
        });
        match place {
            Bar::Memory(address) => Bar::Memory(address + offset),
            Bar::Ports(first) => Bar::Ports(first + u16::try_from(offset).expect("a BAR of ports is small")),
        }
    }
}

impl Access for Hands<'_> {
    fn read(&mut self, bar: u8, offset: u64, size: u8) -> u64 {
        let value = match self.place(bar, offset) {
            Bar::Memory(address) => self.puppet.read(address, size.into()),
            Bar::Ports(port) => self.puppet.port_read(port, size.into()),
        };
        value.expect("the guest reads a register")
    }

    fn write(&mut self, bar: u8, offset: u64, size: u8, value: u64) {
        let written = match self.place(bar, offset) {
            Bar::Memory(address) => self.puppet.write(address, size.into(), value),
            Bar::Ports(port) => self.puppet.port_write(port, size.into(), value),
        };
        written.expect("the guest writes a register");
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) {
        let memory = self.puppet.guest().memory();
        memory.read_slice(data, GuestAddress(address)).expect("the device's memory is the guest's");
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) {
        let memory = self.puppet.guest().memory();
        memory.write_slice(data, GuestAddress(address)).expect("the device's memory is the guest's");
    }
}
