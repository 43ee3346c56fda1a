//! A device that is assigned to the guest: its configuration space, BARs and interrupts, from the guest's accesses to VFIO.
//!
//! ```text
//!  guest ─► RootBus, BAR trap ─► gate ─► ConfigSpace ─┬─ decoding ─► Bars: memory slots, traps
//!                                                     └─ MSI-X, MSI, INTx ─► Wiring: routes ─► irqfd or lane ─► SET_IRQS
//! ```
//! One gate a device, the core's [`IrqGate`]: whoever changes what the device is set up as is alone inside, be it a vCPU,
//! a hand-over or the end. The interrupt path never enters it.

mod access;
mod bars;
mod fleet;
mod intx;
mod irqs;
mod members;
mod open;
mod vectors;
mod wiring;

pub use fleet::{Fleet, News};
pub use irqs::Irqs;
pub use open::{Opener, Opening};
pub use vectors::{Vector, Via};

use crate::complaints::Complaints;
use crate::devices::Host;
use crate::devices::affinity::set_irq_affinity;
use crate::error::{Error, Result};
use crate::pci::{BarKind, Bdf, ConfigSpace, HostConfig, Options};
use crate::platform::{Parts, intx_pin};
use crate::sys::fd::EventFd;
use crate::sys::mem::Mapping;
use crate::sys::vfio::{Device, RegionInfo};
use bars::Bars;
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::line::{InGate, IrqGate, Kind, Single};
use pollvisor_core::route::Msi;
use pollvisor_core::teardown::device::{Closed, Opened};
use std::convert::Infallible;
use std::sync::{Arc, OnceLock, Weak};
use vfio_bindings::bindings::vfio as vb;
use wiring::Wiring;

/// The command register, which [`ConfigSpace`] writes as a whole, and its bit for memory decoding.
const COMMAND: u16 = 4;
const MEMORY_DECODING: u8 = 2;
/// Bytes of an MSI-X table's entry.
const ENTRY: u64 = 16;

/// How a device is assigned.
#[derive(Debug, Clone)]
pub struct AssignConfig {
    /// What it is called in messages.
    pub name: String,
    /// Who delivers its vectors.
    pub via: Via,
    /// BARs that are not mapped, but emulated by exits.
    pub exclude_mmap_bars: Vec<u8>,
    /// The slot on the guest's bus; `None`: the next one.
    pub slot: Option<u8>,
    /// The host's CPUs that take its interrupts; `None`: as they are.
    pub irq_cpus: Option<(Bdf, Vec<usize>)>,
}

impl AssignConfig {
    /// Whether whoever delivers hears of a line's end of interrupt; see [`intx`].
    fn line_is_heard(&self, parts: &Parts) -> bool {
        matches!(self.via, Via::Poller(_)) == parts.ioapic.is_some()
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Assigned {
    name: String,
    slot: OnceLock<u8>,
    /// Where its vectors are counted.
    slots: Vec<u32>,
    /// What control threads had counted when it went, in the order of `slots`.
    last: OnceLock<Vec<Outcome>>,
    parts: Arc<Parts>,
    host: Host,
    irq_cpus: Option<(Bdf, Vec<usize>)>,
    gate: IrqGate<Box<State>>,
    me: Weak<Self>,
    complaints: Complaints,
}

#[derive(Debug)]
struct State {
    // In the order in which they go.
    wiring: Wiring,
    bars: Bars,
    config: ConfigSpace,
    space: RegionInfo,
    device: Arc<Device>,
    /// Where the BARs were placed first; the guest may have moved them.
    windows: Vec<(BarKind, u64, u64)>,
    /// Whether it has an INTx that the guest gets.
    line: bool,
}

/// The device's own configuration space. Its memory decoding stays on whatever the guest says: the guest's is where
/// its BARs are mapped, and an access through a mapping of a device that does not decode kills the process that makes it.
struct Space<'a>(&'a Device, &'a RegionInfo);

impl HostConfig for Space<'_> {
    fn read(&self, offset: u16, data: &mut [u8]) -> Result<()> {
        self.0.read(self.1, offset.into(), data)
    }
    fn write(&self, offset: u16, data: &[u8]) -> Result<()> {
        match *data {
            [low, high] if offset == COMMAND => {
                self.0.write(self.1, offset.into(), &[low | MEMORY_DECODING, high])
            }
            _ => self.0.write(self.1, offset.into(), data),
        }
    }
    fn size(&self) -> u16 {
        u16::try_from(self.1.size).unwrap_or(256)
    }
}

impl Assigned {
    /// Puts a device, opened and in its IOMMU context, on the guest's bus: its BARs placed, its vectors reserved, nothing
    /// set up yet but INTx, as after a reset.
    ///
    /// # Errors
    /// When it is no PCI device, contradicts itself, or needs more than is left: with what and how much. It is closed
    /// then; the token is for the steps that are left.
    pub fn new(
        device: Device,
        config: &AssignConfig,
        parts: &Arc<Parts>,
        host: &Host,
    ) -> std::result::Result<Arc<Self>, (Error, Closed)> {
        let made = Self::make(device, config, parts, host).map_err(|error| {
            let Ok(unmapped) = Opened::new().back_out().unmap_bars(|| Ok::<_, Infallible>(()));
            let Ok(closed) = unmapped.close_device(|| Ok::<_, Infallible>(()));
            (error.context(&config.name), closed)
        })?;
        made.place(config).map_err(|error| match made.release() {
            Some((closed, _)) => (error.context(&config.name), closed),
            None => unreachable!("nobody else has it yet"),
        })?;
        Ok(made)
    }

    fn make(device: Device, config: &AssignConfig, parts: &Arc<Parts>, host: &Host) -> Result<Arc<Self>> {
        let device = Arc::new(device);
        let info = device.info()?;
        if !info.pci {
            return Err(Error::new("VFIO has it, but it is not a PCI device"));
        }
        // VFIO has reset it when it was opened, so it is as nobody had had it before.
        let space = device.region(vb::VFIO_PCI_CONFIG_REGION_INDEX)?;
        let regions = (0..6).map(|index| device.region(index)).collect::<Result<Vec<_>>>()?;
        let mut sizes = [0; 6];
        sizes.iter_mut().zip(&regions).for_each(|(size, region)| *size = region.size);
        let irqs = Irqs::new(device.clone())?;
        let line = irqs.count(Kind::Intx) > 0 && config.line_is_heard(parts);
        let options = Options { rom: false, intx: line };
        Space(&device, &space).write(COMMAND, &[0, 0])?;
        let mut shown = ConfigSpace::new(&Space(&device, &space), sizes, 0, &options)?;
        // A guest can set up what has a capability; mediated devices offer MSI without.
        let msi = shown.msi().is_some() && irqs.count(Kind::Msi) > 0;
        let msix = shown.msix().is_some() && irqs.count(Kind::Msix) > 0;
        if !(line || msi || msix) && irqs.count(Kind::Intx) > 0 {
            return Err(Error::new("INTx is its only interrupt, and its end is not heard this way")
                .remedy("polled delivery with --irqchip split, or irqfd delivery with --irqchip kernel"));
        }
        let bars = Bars::new(&device, regions, &mut shown, &config.exclude_mmap_bars)?;
        let wiring = Wiring::new(irqs, &mut shown, parts, &config.via)?;
        let slots = wiring.slots();
        let state = State { wiring, bars, config: shown, space, device, windows: Vec::new(), line };
        Ok(Arc::new_cyclic(|me| Self {
            name: config.name.clone(),
            slot: OnceLock::new(),
            slots,
            last: OnceLock::new(),
            parts: parts.clone(),
            host: host.clone(),
            irq_cpus: config.irq_cpus.clone(),
            gate: IrqGate::new(Box::new(state)),
            me: me.clone(),
            complaints: Complaints::default(),
        }))
    }

    /// Gives the BARs their places, and the device its slot and line.
    fn place(self: &Arc<Self>, config: &AssignConfig) -> Result<()> {
        let mut state = self.enter()?;
        let State { wiring, config: shown, windows, line, .. } = &mut **state;
        for index in 0..6 {
            if let Some((kind, size)) = shown.bar(index).map(|bar| (bar.kind, bar.size)) {
                let address = self.parts.windows().allocate(kind, size)?;
                windows.push((kind, address, size));
                shown.place(index, address);
            }
        }
        let slot = self.parts.pci.insert(config.slot, self.clone())?;
        let _only_once = self.slot.set(slot);
        if *line {
            wiring.set_line(intx_pin(slot), &config.via)?;
        }
        self.follow(&mut state)
    }

    /// Brings the interrupts about that the guest's registers ask for, and sends them to the CPUs they are for.
    fn follow(&self, state: &mut State) -> Result<()> {
        let before = state.wiring.changes();
        let result = state.wiring.follow(&mut state.config, &self.parts);
        self.send_to_cpus(before, state);
        result
    }

    /// An interrupt that goes elsewhere is an interrupt all the same: a failure is said, and nothing else.
    fn send_to_cpus(&self, before: u32, state: &State) {
        if let Some((address, cpus)) = &self.irq_cpus
            && state.wiring.changes() != before
            && let Err(error) = set_irq_affinity(&self.host, *address, cpus)
        {
            self.complain(&error);
        }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its slot on the guest's bus.
    #[must_use]
    pub fn slot(&self) -> u8 {
        self.slot.get().copied().unwrap_or(0)
    }

    fn enter(&self) -> Result<InGate<'_, Box<State>>> {
        let gone = |e| Error::new(format!("{}: {e}", self.name));
        self.gate.enter(std::thread::yield_now).map_err(gone)
    }

    /// What the guest has it set up as, and how many vectors are in use.
    ///
    /// # Errors
    /// ENODEV when it is gone; so in all of these.
    pub fn set_up(&self) -> Result<(Option<Kind>, usize)> {
        Ok(self.enter()?.wiring.set_up())
    }

    /// Fires a vector by VFIO's loopback, as if the device had.
    ///
    /// # Errors
    /// EINVAL when it is not set up.
    pub fn fire(&self, vector: u32) -> Result<()> {
        self.enter()?.wiring.fire(vector)
    }

    /// Hands a vector over, while the device may fire. Nothing is lost, and nothing delivered twice.
    ///
    /// # Errors
    /// No such vector; when `via` does not take it.
    pub fn hand_over(&self, vector: usize, via: Via) -> Result<()> {
        self.enter()?.wiring.hand_over(vector, via, &self.parts)
    }

    /// The slots that its vectors are counted in, also when it is gone; INTx's is the last.
    #[must_use]
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Where each of its vectors goes; none of those that the guest masks or does not use, and of INTx, which is last.
    ///
    /// # Errors
    /// ENODEV.
    pub fn messages(&self) -> Result<Vec<Option<Msi>>> {
        Ok(self.enter()?.wiring.messages().to_vec())
    }

    /// What others than pollers made of the signals that are counted in `slot`: control threads and the deferred worker.
    /// What the kernel's irqfds deliver nobody counts but the guest. It stays when the device is gone.
    #[must_use]
    pub fn counted(&self, slot: usize) -> Outcome {
        let mut outcome = self.parts.interrupts.slow_path(slot);
        let own = self.slots.iter().position(|own| usize::try_from(*own) == Ok(slot));
        outcome += own.map_or(Outcome::default(), |at| match self.enter() {
            Ok(state) => state.wiring.counts(at),
            // Whoever takes it from the guest is about to say.
            Err(_) => self.last.wait()[at],
        });
        outcome
    }

    /// Where the guest decodes a BAR now.
    ///
    /// # Errors
    /// ENODEV.
    pub fn bar(&self, index: u8) -> Result<Option<u64>> {
        Ok(self.enter()?.config.decoded(index))
    }

    /// A register's mapping, where it is mapped.
    ///
    /// # Errors
    /// ENODEV.
    pub fn mapped(&self, bar: u8, offset: u64) -> Result<Option<(Arc<Mapping>, usize)>> {
        Ok(self.enter()?.bars.mapped(bar, offset))
    }

    /// Hears of the device's errors, or of the host wanting it back. False: this device cannot tell.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listen(&self, single: Single, event: &Arc<EventFd>) -> Result<bool> {
        self.enter()?.wiring.listen(single, event)
    }

    /// Signalled at each end of an interrupt after which [`unmask`](Self::unmask) is due; none: the kernel does that.
    ///
    /// # Errors
    /// ENODEV.
    pub fn ends(&self) -> Result<Option<Arc<EventFd>>> {
        Ok(self.enter()?.wiring.ends().cloned())
    }

    /// Unmasks its line. One that is gone has none.
    pub fn unmask(&self) {
        if let Ok(mut state) = self.enter()
            && let Err(error) = state.wiring.unmask()
        {
            self.complain(&error);
        }
    }

    /// How often [`unmask`](Self::unmask) did.
    ///
    /// # Errors
    /// ENODEV.
    pub fn unmasked(&self) -> Result<u64> {
        Ok(self.enter()?.wiring.unmasked())
    }

    /// Takes it out of the guest, in the one order, and closes it: the guest reads ones there from now on. The token for
    /// the steps that are left, for the one who did.
    ///
    /// # Errors
    /// With the token, what did not go as it should: it is closed all the same.
    pub fn release(&self) -> Option<(Closed, Result<()>)> {
        let mut state = self.enter().ok()?.release();
        if let Some(slot) = self.slot.get() {
            self.parts.pci.remove(*slot);
        }
        let State { wiring, bars, windows, .. } = &mut *state;
        let (unmapped, result) = wiring.release(bars, &self.parts);
        let counts = (0..self.slots.len()).map(|at| wiring.counts(at)).collect();
        let _only_once = self.last.set(counts);
        for (kind, address, size) in windows.drain(..) {
            // It was allocated, so it can be freed.
            let _freed = self.parts.windows().free(kind, address, size);
        }
        let Ok(closed) = unmapped.close_device(|| {
            drop(state);
            Ok::<_, Infallible>(())
        });
        Some((closed, result.map_err(|e| e.context(&self.name))))
    }

    fn complain(&self, error: &Error) {
        self.complaints.say(&self.name, error);
    }
}
