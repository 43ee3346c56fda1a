//! What SET_IRQS may ask of a device: a pure function from its header to a typed request or a typed error.
//!
//! The checks come in the kernel's order, so that for a header with two mistakes both report the same one.

use core::fmt;

use super::irq_type::{IrqType, Kind};
use crate::Errno;

/// Bits of [`Header::flags`], as VFIO has them.
pub mod flags {
    /// No data: the action is for the whole range.
    pub const DATA_NONE: u32 = 1 << 0;
    /// One byte for each: zero leaves it alone.
    pub const DATA_BOOL: u32 = 1 << 1;
    /// One 32-bit descriptor for each; −1 removes.
    pub const DATA_EVENTFD: u32 = 1 << 2;
    /// Mask.
    pub const ACTION_MASK: u32 = 1 << 3;
    /// Unmask.
    pub const ACTION_UNMASK: u32 = 1 << 4;
    /// Trigger.
    pub const ACTION_TRIGGER: u32 = 1 << 5;
}

const DATA: u32 = flags::DATA_NONE | flags::DATA_BOOL | flags::DATA_EVENTFD;
const ACTION: u32 = flags::ACTION_MASK | flags::ACTION_UNMASK | flags::ACTION_TRIGGER;

/// Bytes of the header, before the data.
pub const HEADER_BYTES: u32 = 20;

/// How many indices a device has: INTx, MSI, MSI-X, the error and the request interrupt.
pub const INDICES: usize = 5;

/// The header as user space wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Bytes of header and data.
    pub argsz: u32,
    /// See [`flags`].
    pub flags: u32,
    /// Which kind of interrupt.
    pub index: u32,
    /// The first one.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// What decides about a request besides its header. Read inside the device's gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// How many interrupts the device has at each index.
    pub num_irqs: [u32; INDICES],
    /// What they are set up as.
    pub irq_type: IrqType,
    /// Whether the error and the request interrupt have a trigger.
    pub single_set: [bool; 2],
}

/// The interrupts that exist besides the device's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Single {
    /// The device reported an error.
    Error,
    /// The host wants the device back.
    Request,
}

/// What is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All of the range.
    All,
    /// Those whose byte in the data is not zero.
    Flagged,
}

/// A request that is valid for the device it was made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a valid request is to be carried out"]
pub enum Request {
    /// Tear down all interrupts of this kind: the one the device is set up as.
    Disable(Kind),
    /// Mask the INTx line.
    MaskIntx(Which),
    /// Unmask the INTx line.
    UnmaskIntx(Which),
    /// Unmask the INTx line whenever the descriptor in the data is signalled; −1: no longer.
    UnmaskIntxBy,
    /// Set a trigger for each of the range; −1 removes that one.
    Bind {
        /// Of this kind.
        kind: Kind,
        /// The first.
        start: u32,
        /// How many.
        count: u32,
        /// Set the device up as this kind first, with so many vectors: it is set up as nothing.
        enable: Option<u32>,
    },
    /// Signal those of the range that have a trigger: loopback, no hardware needed.
    Fire {
        /// Of this kind.
        kind: Kind,
        /// The first.
        start: u32,
        /// How many.
        count: u32,
        /// All or some.
        which: Which,
    },
    /// Remove the trigger of a single interrupt.
    ClearSingle(Single),
    /// Set it; −1 removes it.
    BindSingle(Single),
    /// Signal it.
    FireSingle(Single, Which),
}

/// Why a request was refused; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetIrqsError {
    /// `argsz` does not cover the header.
    ShortHeader,
    /// No such index.
    BadIndex,
    /// `start + count` does not fit.
    Overflow,
    /// Flags that do not exist.
    BadFlags,
    /// The range goes beyond the device's interrupts.
    OutOfRange,
    /// Not exactly one data type.
    DataType,
    /// `argsz` does not cover the data.
    ShortData,
    /// Not exactly one action, or one that this index does not have.
    NoSuchAction,
    /// The device's interrupts are set up as something else, or not at all.
    WrongType,
    /// INTx has one line, number 0.
    NotOneLine,
    /// A single interrupt was asked to do something to none, or has no trigger to do it to.
    NoTrigger,
    /// Nothing to set up.
    NoVectors,
}

impl SetIrqsError {
    /// As the specification numbers it.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::NoSuchAction => Errno::ENOTTY,
            _ => Errno::EINVAL,
        }
    }
}

/// The three data types, of which a header names exactly one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    None,
    Bool,
    Eventfd,
}

/// The three actions, of which a header names exactly one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Mask,
    Unmask,
    Trigger,
}

/// Checks a header against a device.
///
/// # Errors
/// The first of [`SetIrqsError`] that applies.
pub const fn validate(header: Header, device: &Described) -> Result<Request, SetIrqsError> {
    let data = match check_range(header, device) {
        Ok(data) => data,
        Err(error) => return Err(error),
    };
    let act = match header.flags & ACTION {
        flags::ACTION_MASK => Act::Mask,
        flags::ACTION_UNMASK => Act::Unmask,
        flags::ACTION_TRIGGER => Act::Trigger,
        _ => return Err(SetIrqsError::NoSuchAction),
    };
    match (header.index, act) {
        (0, Act::Trigger) => trigger(Kind::Intx, header, data, device.irq_type),
        (0, act) => mask_intx(header, act, data, device.irq_type),
        (1, Act::Trigger) => trigger(Kind::Msi, header, data, device.irq_type),
        (2, Act::Trigger) => trigger(Kind::Msix, header, data, device.irq_type),
        (3, Act::Trigger) => single(Single::Error, header.count, data, device.single_set[0]),
        (4, Act::Trigger) => single(Single::Request, header.count, data, device.single_set[1]),
        _ => Err(SetIrqsError::NoSuchAction),
    }
}

/// What holds for every index.
const fn check_range(header: Header, device: &Described) -> Result<Data, SetIrqsError> {
    let Header { argsz, flags: bits, index, start, count } = header;
    if argsz < HEADER_BYTES {
        return Err(SetIrqsError::ShortHeader);
    }
    if index as usize >= INDICES {
        return Err(SetIrqsError::BadIndex);
    }
    if count >= u32::MAX - start {
        return Err(SetIrqsError::Overflow);
    }
    if bits & !(DATA | ACTION) != 0 {
        return Err(SetIrqsError::BadFlags);
    }
    let num_irqs = device.num_irqs[index as usize];
    if start >= num_irqs || start + count > num_irqs {
        return Err(SetIrqsError::OutOfRange);
    }
    let (data, size) = match bits & DATA {
        flags::DATA_NONE => (Data::None, 0),
        flags::DATA_BOOL => (Data::Bool, 1),
        flags::DATA_EVENTFD => (Data::Eventfd, 4),
        _ => return Err(SetIrqsError::DataType),
    };
    if ((argsz - HEADER_BYTES) as u64) < count as u64 * size {
        return Err(SetIrqsError::ShortData);
    }
    Ok(data)
}

const fn mask_intx(header: Header, act: Act, data: Data, now: IrqType) -> Result<Request, SetIrqsError> {
    if !now.is(Kind::Intx) {
        return Err(SetIrqsError::WrongType);
    }
    if header.start != 0 || header.count != 1 {
        return Err(SetIrqsError::NotOneLine);
    }
    Ok(match (act, data) {
        (Act::Mask, Data::None) => Request::MaskIntx(Which::All),
        (Act::Mask, Data::Bool) => Request::MaskIntx(Which::Flagged),
        (Act::Mask, Data::Eventfd) => return Err(SetIrqsError::NoSuchAction),
        (_, Data::None) => Request::UnmaskIntx(Which::All),
        (_, Data::Bool) => Request::UnmaskIntx(Which::Flagged),
        (_, Data::Eventfd) => Request::UnmaskIntxBy,
    })
}

const fn trigger(kind: Kind, header: Header, data: Data, now: IrqType) -> Result<Request, SetIrqsError> {
    let Header { start, count, .. } = header;
    let set_up = now.is(kind);
    if set_up && count == 0 && matches!(data, Data::None) {
        return Ok(Request::Disable(kind));
    }
    if !set_up && !matches!(now, IrqType::None) {
        return Err(SetIrqsError::WrongType);
    }
    if matches!(kind, Kind::Intx) && (start != 0 || count != 1) {
        return Err(SetIrqsError::NotOneLine);
    }
    let which = match data {
        Data::Eventfd if set_up => return Ok(Request::Bind { kind, start, count, enable: None }),
        Data::Eventfd if start + count == 0 => return Err(SetIrqsError::NoVectors),
        Data::Eventfd => return Ok(Request::Bind { kind, start, count, enable: Some(start + count) }),
        _ if !set_up => return Err(SetIrqsError::WrongType),
        Data::None => Which::All,
        Data::Bool => Which::Flagged,
    };
    Ok(Request::Fire { kind, start, count, which })
}

const fn single(of: Single, count: u32, data: Data, set: bool) -> Result<Request, SetIrqsError> {
    Ok(match (data, count) {
        (Data::None, _) if !set => return Err(SetIrqsError::NoTrigger),
        (Data::None, 0) => Request::ClearSingle(of),
        (_, 0) => return Err(SetIrqsError::NoTrigger),
        (Data::None, _) => Request::FireSingle(of, Which::All),
        (Data::Bool, _) => Request::FireSingle(of, Which::Flagged),
        (Data::Eventfd, _) => Request::BindSingle(of),
    })
}

impl fmt::Display for SetIrqsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Self::ShortHeader => "argsz is less than the header",
            Self::BadIndex => "no such interrupt index",
            Self::Overflow => "start + count overflows",
            Self::BadFlags => "unknown flags",
            Self::OutOfRange => "the range exceeds the device's interrupts",
            Self::DataType => "give exactly one data type",
            Self::ShortData => "argsz is less than the data",
            Self::NoSuchAction => "give exactly one action, and one that this index has",
            Self::WrongType => "the interrupts are not set up as this kind; disable the other kind first",
            Self::NotOneLine => "INTx is start 0, count 1",
            Self::NoTrigger => "no trigger is set, or count is 0",
            Self::NoVectors => "no vectors to set up",
        };
        write!(f, "{why}: {}", self.errno())
    }
}

impl core::error::Error for SetIrqsError {}
