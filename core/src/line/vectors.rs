//! MSI and MSI-X vectors: triggers that are set and removed in blocks, and the way from a vector to its GSI.

use core::fmt;

use crate::Errno;
use crate::ids::Gsi;

/// The triggers of a device that is set up as MSI or MSI-X. Changed only inside the device's gate.
///
/// Every swap of a trigger is a window without a handler: to mask, deassign the irqfd or pause the lane instead.
#[derive(Debug)]
pub struct Vectors<T, const N: usize> {
    enabled: u32,
    /// Vectors beyond `enabled` can be had later.
    resizable: bool,
    triggers: [Option<T>; N],
}

/// What setting up came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the device may have too few vectors, and is then not set up"]
pub enum Enabled {
    /// All vectors are there.
    Done,
    /// There are only so many; nothing is set up. The ioctl returns this number, which is no error.
    Only(u32),
}

/// Why vectors were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorsError {
    /// They are set up already, or not yet; nothing changed.
    WrongState,
    /// More than this table holds; nothing changed.
    TooMany,
    /// No vector can be had at all; nothing changed.
    NoneAvailable,
    /// No trigger can be set for `vector`. All of the block up to and with it has lost its old triggers.
    Block {
        /// The one that failed.
        vector: u32,
        /// Why.
        errno: Errno,
    },
}

impl VectorsError {
    /// As the specification numbers it.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::WrongState => Errno::EINVAL,
            Self::TooMany => Errno::ENOMEM,
            Self::NoneAvailable => Errno::ENOSPC,
            Self::Block { errno, .. } => errno,
        }
    }
}

impl<T, const N: usize> Vectors<T, N> {
    /// Not set up.
    #[must_use]
    pub fn new() -> Self {
        Self { enabled: 0, resizable: false, triggers: core::array::from_fn(|_| None) }
    }

    /// How many vectors are set up.
    #[must_use]
    pub fn enabled(&self) -> u32 {
        self.enabled
    }

    /// The trigger of a vector.
    #[must_use]
    pub fn trigger(&self, vector: u32) -> Option<&T> {
        self.triggers.get(vector as usize)?.as_ref()
    }

    /// Sets up `wanted` vectors of the `available` ones: all of them or none.
    ///
    /// # Errors
    /// [`WrongState`](VectorsError::WrongState), [`TooMany`](VectorsError::TooMany),
    /// [`NoneAvailable`](VectorsError::NoneAvailable).
    pub fn enable(&mut self, wanted: u32, available: u32, resizable: bool) -> Result<Enabled, VectorsError> {
        if self.enabled != 0 || wanted == 0 {
            return Err(VectorsError::WrongState);
        }
        if wanted as usize > N {
            return Err(VectorsError::TooMany);
        }
        if available == 0 {
            return Err(VectorsError::NoneAvailable);
        }
        if available < wanted {
            return Ok(Enabled::Only(available));
        }
        self.enabled = wanted;
        self.resizable = resizable;
        Ok(Enabled::Done)
    }

    /// Sets the triggers from `start` on: a negative descriptor removes that one, any other is opened by `open`.
    /// An old trigger goes to `retire` *before* the new one is opened, as in the kernel, so a block that fails
    /// leaves its touched range without any.
    ///
    /// # Errors
    /// [`WrongState`](VectorsError::WrongState), or [`Block`](VectorsError::Block) with the error of `open`, or
    /// with EINVAL for a vector that is not set up and cannot be had later.
    pub fn bind(
        &mut self,
        start: u32,
        fds: &[i32],
        mut open: impl FnMut(u32, i32) -> Result<T, Errno>,
        mut retire: impl FnMut(u32, T),
    ) -> Result<(), VectorsError> {
        if self.enabled == 0 {
            return Err(VectorsError::WrongState);
        }
        for (n, &fd) in (0..).zip(fds) {
            let vector = start.saturating_add(n);
            let set = self.bind_one(vector, fd, &mut open, &mut retire);
            if let Err(errno) = set {
                self.clear(start, vector, &mut retire);
                return Err(VectorsError::Block { vector, errno });
            }
        }
        Ok(())
    }

    fn bind_one(
        &mut self,
        vector: u32,
        fd: i32,
        open: &mut impl FnMut(u32, i32) -> Result<T, Errno>,
        retire: &mut impl FnMut(u32, T),
    ) -> Result<(), Errno> {
        let known = vector < self.enabled || self.resizable;
        let place = self.triggers.get_mut(vector as usize).filter(|_| known);
        let Some(place) = place else {
            // Nothing to remove is no mistake.
            return if fd < 0 { Ok(()) } else { Err(Errno::EINVAL) };
        };
        if let Some(old) = place.take() {
            retire(vector, old);
        }
        if fd >= 0 {
            *place = Some(open(vector, fd)?);
            self.enabled = self.enabled.max(vector + 1);
        }
        Ok(())
    }

    /// Removes the triggers from `start` to `last`.
    fn clear(&mut self, start: u32, last: u32, retire: &mut impl FnMut(u32, T)) {
        for (vector, place) in (0..=last).zip(&mut self.triggers).skip(start as usize) {
            if let Some(old) = place.take() {
                retire(vector, old);
            }
        }
    }

    /// Signals each of the range that has a trigger and that `which(n)`, `n` from 0, picks; the number of them.
    pub fn fire(
        &self,
        start: u32,
        count: u32,
        which: impl Fn(u32) -> bool,
        mut signal: impl FnMut(&T),
    ) -> u32 {
        let mut fired = 0;
        for n in (0..count).filter(|&n| which(n)) {
            if let Some(trigger) = start.checked_add(n).and_then(|vector| self.trigger(vector)) {
                signal(trigger);
                fired += 1;
            }
        }
        fired
    }

    /// Removes every trigger; the vectors may then be freed.
    ///
    /// # Errors
    /// [`WrongState`](VectorsError::WrongState).
    pub fn disable(&mut self, mut retire: impl FnMut(u32, T)) -> Result<(), VectorsError> {
        let last = self.enabled.checked_sub(1).ok_or(VectorsError::WrongState)?;
        self.clear(0, last, &mut retire);
        self.enabled = 0;
        Ok(())
    }
}

impl<T, const N: usize> Default for Vectors<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

/// From a host vector over the guest's table index to a GSI. MSI has index = vector; MSI-X has what the guest
/// made of its table.
#[derive(Debug)]
pub struct VectorMap<const N: usize> {
    /// By table index.
    entries: [Option<(u32, Gsi)>; N],
}

/// Why an entry was refused; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No such table index.
    NoSuchIndex,
    /// Another index has this vector.
    VectorTaken,
}

impl MapError {
    /// EINVAL, or EEXIST.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::NoSuchIndex => Errno::EINVAL,
            Self::VectorTaken => Errno::EEXIST,
        }
    }
}

impl<const N: usize> VectorMap<N> {
    /// Nothing mapped.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: [None; N] }
    }

    /// Maps `vector` to table entry `index`, and that to `gsi`.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn set(&mut self, index: u32, vector: u32, gsi: Gsi) -> Result<(), MapError> {
        let other = |(i, e): (u32, &Option<(u32, Gsi)>)| i != index && e.is_some_and(|(v, _)| v == vector);
        if index as usize >= N {
            return Err(MapError::NoSuchIndex);
        }
        if (0..).zip(&self.entries).any(other) {
            return Err(MapError::VectorTaken);
        }
        self.entries[index as usize] = Some((vector, gsi));
        Ok(())
    }

    /// Forgets table entry `index`.
    pub fn clear(&mut self, index: u32) {
        if let Some(entry) = self.entries.get_mut(index as usize) {
            *entry = None;
        }
    }

    /// The table index and GSI of a vector.
    #[must_use]
    pub fn lookup(&self, vector: u32) -> Option<(u32, Gsi)> {
        let of = |(i, e): (u32, &Option<(u32, Gsi)>)| e.filter(|e| e.0 == vector).map(|(_, gsi)| (i, gsi));
        (0..).zip(&self.entries).find_map(of)
    }

    /// A vector arrived: injects its GSI, or leaves that to the deferred worker. An edge needs no more.
    pub fn arrive(&self, vector: u32, inject: impl FnOnce(Gsi) -> Result<(), WouldBlock>) -> Arrival {
        let Some((_, gsi)) = self.lookup(vector) else { return Arrival::Unmapped };
        match inject(gsi) {
            Ok(()) => Arrival::Delivered,
            Err(WouldBlock) => Arrival::Deferred(Deferred { gsi }),
        }
    }
}

impl<const N: usize> Default for VectorMap<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// The delivery cannot be done here without blocking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WouldBlock;

/// What became of an interrupt.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a deferred interrupt is lost unless somebody delivers it"]
pub enum Arrival {
    /// Delivered.
    Delivered,
    /// No entry for this vector: dropped, to be counted.
    Unmapped,
    /// Still to be delivered.
    Deferred(Deferred),
}

/// An interrupt that the deferred worker has to deliver.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the interrupt is lost unless somebody delivers it"]
pub struct Deferred {
    gsi: Gsi,
}

impl Deferred {
    /// Delivers it where blocking is allowed.
    pub fn deliver<R>(self, inject: impl FnOnce(Gsi) -> R) -> R {
        inject(self.gsi)
    }
}

impl fmt::Display for VectorsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongState => f.write_str("the vectors are set up already, or not at all")?,
            Self::TooMany => f.write_str("more vectors than this table holds")?,
            Self::NoneAvailable => f.write_str("the host has no vector for this device")?,
            Self::Block { vector, .. } => {
                write!(f, "no trigger for vector {vector}; its block up to there has lost its triggers")?;
            }
        }
        write!(f, ": {}", self.errno())
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Self::NoSuchIndex => "no such MSI-X table entry",
            Self::VectorTaken => "another table entry has this vector",
        };
        write!(f, "{why}: {}", self.errno())
    }
}

impl core::error::Error for VectorsError {}
impl core::error::Error for MapError {}
