//! A device's interrupts.

use super::Device;
use crate::error::{Error, Result};
use crate::sys::{ioctl as io, sized};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use vfio_bindings::bindings::vfio as vb;

/// What a device has at one interrupt index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IrqInfo {
    /// The index, `VFIO_PCI_*_IRQ_INDEX` of a PCI device.
    pub index: u32,
    /// How many; 0 when the device has none of that kind.
    pub count: u32,
    /// They can be signalled by eventfd.
    pub eventfd: bool,
    /// They can be masked.
    pub maskable: bool,
    /// They are masked each time they fire.
    pub automasked: bool,
    /// How many are in use can only be changed by setting all of them up again.
    pub noresize: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqAction {
    /// Mask.
    Mask,
    /// Unmask; with eventfds: whenever they are signalled.
    Unmask,
    /// Fire; with eventfds: signal these whenever the device fires; without data and count 0: tear down.
    Trigger,
}

/// To which of a range of interrupts, or by what.
#[derive(Debug, Clone, Copy)]
pub enum IrqData<'a> {
    /// All of them.
    None,
    /// Those whose byte is not zero.
    Bool(&'a [u8]),
    /// By an eventfd each; `None` takes away what is set.
    Events(&'a [Option<BorrowedFd<'a>>]),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the kernel may have too few vectors"]
pub enum SetIrqs {
    /// What was asked.
    Done,
    /// Nothing: only so many vectors are available.
    Only(u32),
}

impl Device {
    /// What it has at interrupt index `index`.
    ///
    /// # Errors
    /// The kernel's, EINVAL when it has no such index.
    pub fn irq(&self, index: u32) -> Result<IrqInfo> {
        let argument = vb::vfio_irq_info { index, ..Default::default() };
        // SAFETY: no pointers.
        let info = unsafe { sized::call(self.as_fd(), &io::VFIO_DEVICE_GET_IRQ_INFO, argument) };
        let info = info.map_err(|e| self.told(e.context(format!("interrupt index {index}"))))?;
        let has = |flag| info.flags & flag != 0;
        Ok(IrqInfo {
            index,
            count: info.count,
            eventfd: has(vb::VFIO_IRQ_INFO_EVENTFD),
            maskable: has(vb::VFIO_IRQ_INFO_MASKABLE),
            automasked: has(vb::VFIO_IRQ_INFO_AUTOMASKED),
            noresize: has(vb::VFIO_IRQ_INFO_NORESIZE),
        })
    }

    /// Does `action` to `count` interrupts of `index` from `start` on.
    ///
    /// # Errors
    /// Data of another length than `count`; the kernel's, as
    /// [`SetIrqsError`](pollvisor_core::line::set_irqs::SetIrqsError) has them.
    pub fn set_irqs(
        &self,
        index: u32,
        start: u32,
        count: u32,
        action: IrqAction,
        data: IrqData<'_>,
    ) -> Result<SetIrqs> {
        let what =
            |e: Error| self.told(e.context(format!("{count} interrupts from {start} of index {index}")));
        let request = request(index, start, count, action, data).map_err(what)?;
        // SAFETY: the header says how many bytes it and the data have, and they are one allocation.
        let result = unsafe {
            io::read(self.as_fd(), &io::VFIO_DEVICE_SET_IRQS, request.as_ptr().cast::<vb::vfio_irq_set>())
        };
        match u32::try_from(result.map_err(what)?) {
            Ok(0) | Err(_) => Ok(SetIrqs::Done),
            Ok(vectors) => Ok(SetIrqs::Only(vectors)),
        }
    }
}

/// `struct vfio_irq_set` with its data behind it, in words.
fn request(index: u32, start: u32, count: u32, action: IrqAction, data: IrqData<'_>) -> Result<Vec<u32>> {
    let action = match action {
        IrqAction::Mask => vb::VFIO_IRQ_SET_ACTION_MASK,
        IrqAction::Unmask => vb::VFIO_IRQ_SET_ACTION_UNMASK,
        IrqAction::Trigger => vb::VFIO_IRQ_SET_ACTION_TRIGGER,
    };
    let (kind, length, size) = match data {
        IrqData::None => (vb::VFIO_IRQ_SET_DATA_NONE, None, 0),
        IrqData::Bool(bytes) => (vb::VFIO_IRQ_SET_DATA_BOOL, Some(bytes.len()), 1),
        IrqData::Events(events) => (vb::VFIO_IRQ_SET_DATA_EVENTFD, Some(events.len()), 4),
    };
    if let Some(length) = length.filter(|length| u32::try_from(*length) != Ok(count)) {
        return Err(Error::new(format!("data for {length} of {count}")));
    }
    let header = u32::try_from(size_of::<vb::vfio_irq_set>()).unwrap_or(u32::MAX);
    let argsz = count.checked_mul(size).and_then(|data| data.checked_add(header));
    let argsz = argsz.ok_or_else(|| Error::new("more data than a request can have"))?;
    let mut words = vec![argsz, kind | action, index, start, count];
    match data {
        IrqData::None => {}
        IrqData::Bool(bytes) => words.extend(bytes.chunks(4).map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_ne_bytes(word)
        })),
        IrqData::Events(events) => {
            let number = |event: &Option<BorrowedFd<'_>>| event.map_or(-1, |fd| fd.as_raw_fd());
            words.extend(events.iter().map(|event| number(event).cast_unsigned()));
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd::EventFd;

    const NONE: IrqData<'static> = IrqData::None;

    #[test]
    fn requests() {
        let event = EventFd::new().unwrap();
        let number = event.as_fd().as_raw_fd().cast_unsigned();
        assert_eq!(request(1, 0, 0, IrqAction::Trigger, NONE).unwrap(), [20, 0x21, 1, 0, 0]);
        assert_eq!(request(0, 0, 1, IrqAction::Mask, NONE).unwrap(), [20, 0x9, 0, 0, 1]);
        assert_eq!(request(0, 0, 1, IrqAction::Unmask, NONE).unwrap(), [20, 0x11, 0, 0, 1]);
        let bools = IrqData::Bool(&[1, 0, 1, 0, 1]);
        let word = u32::from_ne_bytes([1, 0, 1, 0]);
        let last = u32::from_ne_bytes([1, 0, 0, 0]);
        assert_eq!(request(2, 3, 5, IrqAction::Trigger, bools).unwrap(), [25, 0x22, 2, 3, 5, word, last]);
        let events = [Some(event.as_fd()), None];
        let events = IrqData::Events(&events);
        assert_eq!(
            request(2, 7, 2, IrqAction::Trigger, events).unwrap(),
            [28, 0x24, 2, 7, 2, number, u32::MAX]
        );
    }

    #[test]
    fn data_that_does_not_match_the_count() {
        for (count, data) in [
            (1, IrqData::Bool(&[])),
            (0, IrqData::Bool(&[1])),
            (2, IrqData::Bool(&[1])),
            (u32::MAX, IrqData::Bool(&[1])),
            (1, IrqData::Events(&[])),
            (1, IrqData::Events(&[None, None])),
        ] {
            assert!(request(1, 0, count, IrqAction::Trigger, data).is_err(), "{count} {data:?}");
        }
    }
}
