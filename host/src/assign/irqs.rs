//! SET_IRQS of one device: every request is checked by the core's rules before the kernel sees it, and what is set is kept.

use crate::error::{Error, Result};
use crate::sys::fd::EventFd;
use crate::sys::vfio::{Device, IrqAction, IrqData, IrqInfo, SetIrqs};
use pollvisor_core::Errno;
use pollvisor_core::line::set_irqs::{HEADER_BYTES, INDICES, flags};
use pollvisor_core::line::{
    Described, Enabled, Header, IrqType, Kind, Request, Single, Slot, TypeEvent, Vectors, validate,
};
use pollvisor_core::msix::MAX_VECTORS;
use std::os::fd::AsFd;
use std::sync::Arc;

/// See the module's text. Changed only inside the device's gate.
#[derive(Debug)]
pub struct Irqs {
    device: Arc<Device>,
    described: Described,
    info: [Option<IrqInfo>; INDICES],
    triggers: Box<Vectors<Arc<EventFd>, MAX_VECTORS>>,
    singles: [Slot<Arc<EventFd>>; 2],
    changes: u32,
}

impl Irqs {
    /// Asks the device what it has.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(device: Arc<Device>) -> Result<Self> {
        let count = device.info()?.num_irqs;
        let mut info = [None; INDICES];
        let mut described = Described::default();
        for (index, (info, known)) in (0..count).zip(info.iter_mut().zip(&mut described.num_irqs)) {
            let irq = match device.irq(index) {
                // The kernel says so of an error interrupt that a conventional PCI device cannot have.
                Err(error) if error.errno() == Some(libc::EINVAL) => continue,
                irq => irq?,
            };
            // Only what can be signalled by an eventfd is of use here.
            if irq.eventfd {
                *known = irq.count;
                *info = Some(irq);
            }
        }
        let triggers = Box::new(Vectors::new());
        Ok(Self { device, described, info, triggers, singles: [Slot::new(), Slot::new()], changes: 0 })
    }

    /// How many of a kind the device has.
    #[must_use]
    pub fn count(&self, kind: Kind) -> u32 {
        self.described.num_irqs[kind.index() as usize]
    }

    /// Whether vectors can be added to a kind that is set up.
    #[must_use]
    pub fn can_grow(&self, kind: Kind) -> bool {
        self.info[kind.index() as usize].is_some_and(|info| !info.noresize)
    }

    /// How often triggers were set.
    #[must_use]
    pub fn changes(&self) -> u32 {
        self.changes
    }

    /// What the device is set up as.
    #[must_use]
    pub fn set_up(&self) -> IrqType {
        self.described.irq_type
    }

    /// Sets it up as MSI or MSI-X with these vectors, or as INTx with one.
    ///
    /// # Errors
    /// What the request lacks, ENOSPC with how many vectors the host has, the kernel's.
    pub fn enable(&mut self, kind: Kind, events: &[Arc<EventFd>]) -> Result<()> {
        let wanted = u32::try_from(events.len()).unwrap_or(u32::MAX);
        let fds: Vec<_> = events.iter().map(|event| Some(event.as_fd())).collect();
        let answer = self.request(kind.index(), 0, wanted, IrqAction::Trigger, IrqData::Events(&fds))?;
        if kind != Kind::Intx {
            let available = if let SetIrqs::Only(vectors) = answer { vectors } else { wanted };
            match self.triggers.enable(wanted, available, self.can_grow(kind)) {
                Ok(Enabled::Done) => {}
                Ok(Enabled::Only(vectors)) => {
                    return Err(Error::new(format!(
                        "{}: {wanted} {kind:?} vectors are wanted and the host has {vectors} (ENOSPC)",
                        self.device.name()
                    ))
                    .remedy("fewer devices with many vectors on this host, or more CPUs to take them"));
                }
                Err(error) => return Err(self.told(error)),
            }
            self.keep(0, events)?;
        }
        self.changes = self.changes.wrapping_add(1);
        self.become_kind(TypeEvent::Enable(kind))
    }

    /// Adds a vector to what is set up, where the kernel can.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add(&mut self, kind: Kind, vector: u32, event: &Arc<EventFd>) -> Result<()> {
        let data = [Some(event.as_fd())];
        let _all = self.request(kind.index(), vector, 1, IrqAction::Trigger, IrqData::Events(&data))?;
        self.changes = self.changes.wrapping_add(1);
        self.keep(vector, std::slice::from_ref(event))
    }

    /// Whether a vector has its trigger.
    #[must_use]
    pub fn has(&self, vector: u32) -> bool {
        self.triggers.trigger(vector).is_some()
    }

    /// Fires a vector as if the device had: no hardware is involved.
    ///
    /// # Errors
    /// EINVAL when it is not set up. For a vector without a trigger the kernel does nothing, and says nothing.
    pub fn fire(&self, kind: Kind, vector: u32) -> Result<()> {
        if kind != Kind::Intx && !self.has(vector) {
            return Err(self.told(format!("vector {vector} is not set up (EINVAL)")));
        }
        self.request(kind.index(), vector, 1, IrqAction::Trigger, IrqData::None).map(drop)
    }

    /// Tears down what is set up, if anything is. The source stops: nothing is signalled any more when this returns.
    ///
    /// # Errors
    /// The kernel's.
    pub fn disable(&mut self) -> Result<()> {
        let IrqType::Is(kind) = self.described.irq_type else { return Ok(()) };
        let result = self.request(kind.index(), 0, 0, IrqAction::Trigger, IrqData::None);
        // Set up or not, nothing of it is used any more: a device that is gone has nothing to disable.
        let _none_left = self.triggers.disable(|_, trigger| drop(trigger));
        self.become_kind(TypeEvent::Disable(kind))?;
        result.map(drop)
    }

    /// Unmasks INTx.
    ///
    /// # Errors
    /// When it is not set up as that; the kernel's.
    pub fn unmask(&self) -> Result<()> {
        self.request(Kind::Intx.index(), 0, 1, IrqAction::Unmask, IrqData::None).map(drop)
    }

    /// Lets `event` unmask INTx whenever it is signalled.
    ///
    /// # Errors
    /// ENOTTY from a driver that cannot, as many of mediated devices; the kernel's.
    pub fn unmask_by(&self, event: &EventFd) -> Result<()> {
        let data = [Some(event.as_fd())];
        self.request(Kind::Intx.index(), 0, 1, IrqAction::Unmask, IrqData::Events(&data)).map(drop)
    }

    /// Hears of the device's errors, or of the host wanting it back, by `event`. False: this device cannot tell.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listen(&mut self, single: Single, event: &Arc<EventFd>) -> Result<bool> {
        let place = single as usize;
        let index = ERROR_INDEX + u32::try_from(place).unwrap_or(0);
        if self.described.num_irqs[index as usize] == 0 {
            return Ok(false);
        }
        let data = [Some(event.as_fd())];
        let _set = self.request(index, 0, 1, IrqAction::Trigger, IrqData::Events(&data))?;
        self.described.single_set[place] = true;
        let _old = self.singles[place].replace(Some(event.clone())).map_err(|(error, _)| self.told(error))?;
        Ok(true)
    }

    /// Ends everything that signals.
    ///
    /// # Errors
    /// The kernel's; all of it has been tried.
    pub fn release(&mut self) -> Result<()> {
        let mut result = self.disable();
        for (index, place) in (ERROR_INDEX..).zip([0, 1]) {
            if let Some(event) = self.singles[place].close() {
                let cleared = self.request(index, 0, 0, IrqAction::Trigger, IrqData::None);
                self.described.single_set[place] = false;
                drop(event);
                result = result.and(cleared.map(drop));
            }
        }
        result
    }

    fn keep(&mut self, first: u32, events: &[Arc<EventFd>]) -> Result<()> {
        let places: Vec<i32> = (0..).take(events.len()).collect();
        let find = |_, place: i32| {
            usize::try_from(place).ok().and_then(|at| events.get(at)).cloned().ok_or(Errno::EBADF)
        };
        self.triggers.bind(first, &places, find, |_, old| drop(old)).map_err(|error| self.told(error))
    }

    fn become_kind(&mut self, event: TypeEvent) -> Result<()> {
        self.described.irq_type = self.described.irq_type.next(event).map_err(|error| self.told(error))?;
        Ok(())
    }

    fn request(
        &self,
        index: u32,
        start: u32,
        count: u32,
        action: IrqAction,
        data: IrqData<'_>,
    ) -> Result<SetIrqs> {
        let (kind, size) = match data {
            IrqData::None => (flags::DATA_NONE, 0),
            IrqData::Bool(_) => (flags::DATA_BOOL, 1),
            IrqData::Events(_) => (flags::DATA_EVENTFD, size_of::<i32>()),
        };
        let action_flag = match action {
            IrqAction::Mask => flags::ACTION_MASK,
            IrqAction::Unmask => flags::ACTION_UNMASK,
            IrqAction::Trigger => flags::ACTION_TRIGGER,
        };
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let argsz = count.saturating_mul(size).saturating_add(HEADER_BYTES);
        let header = Header { argsz, flags: kind | action_flag, index, start, count };
        let _valid: Request = validate(header, &self.described).map_err(|error| {
            self.told(error).context(format!("{count} interrupts from {start} of index {index}"))
        })?;
        self.device.set_irqs(index, start, count, action, data)
    }

    fn told(&self, error: impl std::fmt::Display) -> Error {
        Error::new(format!("{}: {error}", self.device.name()))
    }
}

/// `VFIO_PCI_ERR_IRQ_INDEX`; the request's is the next one.
const ERROR_INDEX: u32 = 3;
