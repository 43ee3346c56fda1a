//! A device's interrupts as the guest has set them up, brought about: routes, then listeners, then SET_IRQS; and back.
//!
//! The order is the core's [`teardown::device`](pollvisor_core::teardown::device), each step by its token. What the guest
//! wants is read from its registers ([`Wiring::follow`]), so a change that failed half-way is brought about by the next one.

use super::bars::Bars;
use super::intx::Intx;
use super::irqs::Irqs;
use super::vectors::{Vector, Via};
use crate::error::{Error, Result};
use crate::pci::ConfigSpace;
use crate::platform::Parts;
use crate::sys::fd::EventFd;
use pollvisor_core::ioapic::Pin;
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::line::{IrqType, Kind, Single};
use pollvisor_core::msix::{Fire, Mode, Signal};
use pollvisor_core::route::Msi;
use pollvisor_core::teardown::device::{Deaf, Firing, NoGsi, Opened, Silent, Unmapped};
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

/// See the module's text.
#[derive(Debug)]
pub struct Wiring {
    irqs: Irqs,
    vectors: Vec<Vector>,
    /// Where each vector goes; none while it is masked.
    messages: Vec<Option<Msi>>,
    intx: Option<Intx>,
    /// Of a device that no eventfd unmasks: how often it was unmasked here.
    unmasked: Option<u64>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Opened(Opened),
    Firing(Firing),
    /// Between two of the others, or released.
    Moving,
}

impl Wiring {
    /// Reserves GSIs and slots for as many vectors as the device can have, and one for its line.
    ///
    /// # Errors
    /// ENOSPC, EMFILE.
    pub fn new(irqs: Irqs, config: &mut ConfigSpace, parts: &Parts, via: &Via) -> Result<Self> {
        let msix = config.msix().map_or(0, |msix| u32::from(msix.function.vectors()));
        if msix > irqs.count(Kind::Msix) {
            return Err(Error::new(format!(
                "its MSI-X table has {msix} entries and VFIO offers {} vectors",
                irqs.count(Kind::Msix)
            )));
        }
        let count = msix.max(if config.msi().is_some() { irqs.count(Kind::Msi) } else { 0 });
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        // The last one is INTx's.
        let reserved = parts.routes.allocate(count + 1)?;
        let made = reserved.iter().map(|gsi| Vector::new(*gsi, parts.routes.slot(*gsi), via.clone()));
        let vectors = made.collect::<Result<Vec<_>>>().inspect_err(|_| {
            let _given_back = parts.routes.free(&reserved);
        })?;
        let messages = vec![None; vectors.len()];
        Ok(Self { irqs, vectors, messages, intx: None, unmasked: None, stage: Stage::Opened(Opened::new()) })
    }

    /// How often triggers were set since the device was opened.
    #[must_use]
    pub fn changes(&self) -> u32 {
        self.irqs.changes()
    }

    /// Gives the device's INTx a pin of the I/O APIC.
    ///
    /// # Errors
    /// EMFILE.
    pub fn set_line(&mut self, pin: u8, via: &Via) -> Result<()> {
        let (Some(last), Ok(pin)) = (self.vectors.last(), Pin::new(pin)) else { return Ok(()) };
        self.intx = Some(Intx::new(pin, last.slot(), via.clone())?);
        Ok(())
    }

    /// What it is set up as, and how many of its vectors are delivered.
    #[must_use]
    pub fn set_up(&self) -> (Option<Kind>, usize) {
        match self.irqs.set_up() {
            IrqType::None => (None, 0),
            IrqType::Is(Kind::Intx) => (Some(Kind::Intx), 1),
            IrqType::Is(kind) => (Some(kind), self.vectors.iter().filter(|vector| vector.is_bound()).count()),
        }
    }

    /// The slots its vectors are counted in; INTx's is the last.
    #[must_use]
    pub fn slots(&self) -> Vec<u32> {
        self.vectors.iter().map(Vector::slot).collect()
    }

    /// Where each vector goes; none while it is masked.
    #[must_use]
    pub fn messages(&self) -> &[Option<Msi>] {
        &self.messages
    }

    /// What control threads made of a vector's signals; of INTx's, by the last.
    #[must_use]
    pub fn counts(&self, vector: usize) -> Outcome {
        self.vectors.get(vector).map(Vector::counts).unwrap_or_default()
    }

    /// Fires a vector by VFIO's loopback.
    ///
    /// # Errors
    /// EINVAL when nothing, or not this vector, is set up.
    pub fn fire(&self, vector: u32) -> Result<()> {
        match self.irqs.set_up() {
            IrqType::Is(kind) => self.irqs.fire(kind, vector),
            IrqType::None => Err(Error::new("the guest has no interrupt of it set up (EINVAL)")),
        }
    }

    /// Hands a vector over.
    ///
    /// # Errors
    /// No such vector; when `via` does not take it.
    pub fn hand_over(&mut self, vector: usize, via: Via, parts: &Parts) -> Result<()> {
        let missing = || Error::new(format!("there is no vector {vector}"));
        self.vectors.get_mut(vector).ok_or_else(missing)?.hand_over(parts, via)
    }

    /// Hears of errors or requests.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listen(&mut self, single: Single, event: &Arc<EventFd>) -> Result<bool> {
        self.irqs.listen(single, event)
    }

    /// Signalled at each end of an interrupt after which [`unmask`](Self::unmask) is due; none: the kernel does that.
    #[must_use]
    pub fn ends(&self) -> Option<&Arc<EventFd>> {
        self.unmasked.and(self.intx.as_ref()).map(Intx::unmask)
    }

    /// How often the line was unmasked here.
    #[must_use]
    pub fn unmasked(&self) -> u64 {
        self.unmasked.unwrap_or(0)
    }

    /// Unmasks the line, if it is set up.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unmask(&mut self) -> Result<()> {
        if self.irqs.set_up() != IrqType::Is(Kind::Intx) {
            return Ok(());
        }
        self.irqs.unmask()?;
        self.unmasked = self.unmasked.map(|count| count + 1);
        Ok(())
    }

    /// Brings what waits for masked vectors among `range` into their pending bits.
    pub fn gather(&mut self, config: &mut ConfigSpace, range: Range<usize>, parts: &Parts) {
        let IrqType::Is(kind) = self.irqs.set_up() else { return };
        let range = range.start.min(self.vectors.len())..range.end.min(self.vectors.len());
        for (number, vector) in (0u16..).zip(&mut self.vectors).take(range.end).skip(range.start) {
            if vector.is_bound() || !vector.take() {
                continue;
            }
            let signal = match kind {
                Kind::Msix => config.msix().map(|msix| msix.function.signal(number)),
                Kind::Msi => config.msi().map(|msi| msi.signal(number)),
                Kind::Intx => None,
            };
            if let Some(Ok(Signal::Fire(fire))) = signal {
                vector.send(parts, &fire.message.into());
            }
        }
    }

    /// Sends what was pending and is due.
    pub fn send(&mut self, fires: &[Fire], parts: &Parts) {
        for fire in fires {
            if let Some(vector) = self.vectors.get_mut(usize::from(fire.vector)) {
                vector.send(parts, &fire.message.into());
            }
        }
    }

    /// Brings about what the guest's registers say now.
    ///
    /// # Errors
    /// What could not be; the next change tries again.
    pub fn follow(&mut self, config: &mut ConfigSpace, parts: &Parts) -> Result<()> {
        let (kind, mut messages) = wanted(config);
        // No more than VFIO has, whatever the registers have room for.
        messages.truncate(self.vectors.len());
        let kind = kind.or(self.intx.as_ref().map(|_| Kind::Intx));
        let now = match self.irqs.set_up() {
            IrqType::Is(kind) => Some(kind),
            IrqType::None => None,
        };
        if kind == now {
            let changes: Vec<_> = (0..).zip(messages).collect();
            self.update(&changes, parts)?;
        } else {
            self.tear_down(parts)?;
            if let Some(kind) = kind {
                self.set_up_as(kind, messages, parts)?;
            }
        }
        if let Some(msix) = config.msix() {
            let mut from = 0;
            while let Some(fire) = msix.function.next_due(from) {
                from = fire.vector;
                self.send(&[fire], parts);
            }
        }
        Ok(())
    }

    /// Some vectors go elsewhere, or nowhere, from now on. Nothing is lost of those that move: they stay bound.
    ///
    /// # Errors
    /// What could not be done.
    pub fn update(&mut self, changes: &[(usize, Option<Msi>)], parts: &Parts) -> Result<()> {
        let IrqType::Is(kind) = self.irqs.set_up() else { return Ok(()) };
        let changes: Vec<_> = changes
            .iter()
            .filter(|(vector, message)| self.messages.get(*vector).is_some_and(|now| now != message))
            .copied()
            .collect();
        if changes.is_empty() || kind == Kind::Intx {
            return Ok(());
        }
        // Masked: first nobody delivers, then the route goes.
        for (vector, _) in changes.iter().filter(|(_, message)| message.is_none()) {
            self.vectors[*vector].unbind(parts)?;
        }
        parts.routes.set(&self.routes(&changes))?;
        for (vector, message) in &changes {
            self.messages[*vector] = *message;
            if message.is_some() {
                self.vectors[*vector].bind(parts)?;
                self.trigger(kind, *vector)?;
            }
        }
        Ok(())
    }

    fn routes(&self, changes: &[(usize, Option<Msi>)]) -> Vec<(pollvisor_core::ids::Gsi, Option<Msi>)> {
        changes.iter().map(|(vector, message)| (self.vectors[*vector].gsi(), *message)).collect()
    }

    /// Gives a vector its trigger, if it has none yet: a kernel that can adds one to those set up.
    fn trigger(&mut self, kind: Kind, vector: usize) -> Result<()> {
        let number = u32::try_from(vector).unwrap_or(u32::MAX);
        if self.irqs.has(number) { Ok(()) } else { self.irqs.add(kind, number, self.vectors[vector].event()) }
    }

    fn set_up_as(&mut self, kind: Kind, messages: Vec<Option<Msi>>, parts: &Parts) -> Result<()> {
        let opened = match std::mem::replace(&mut self.stage, Stage::Moving) {
            Stage::Opened(opened) => opened,
            other => {
                self.stage = other;
                return Err(Error::new("the device's interrupts are set up already, or were released"));
            }
        };
        let live: Vec<_> =
            (0..).zip(&messages).filter_map(|(n, message)| Some((n, Some((*message)?)))).collect();
        let routed = match opened.add_route(|| parts.routes.set(&self.routes(&live))) {
            Ok(routed) => routed,
            Err(stuck) => {
                self.stage = Stage::Opened(stuck.at);
                return Err(stuck.error);
            }
        };
        let wanted = messages.len();
        self.messages = messages;
        self.messages.resize(self.vectors.len(), None);
        let listening = match routed.listen(|| self.bind(kind, parts)) {
            Ok(listening) => listening,
            Err(stuck) => {
                self.unbind(parts);
                self.deaf(stuck.at.back_out(), parts);
                return Err(stuck.error);
            }
        };
        match listening.set_irqs(|| self.set_irqs(kind, wanted)) {
            Ok(firing) => self.stage = Stage::Firing(firing),
            Err(stuck) => {
                let _what_there_is = self.irqs.disable();
                self.silent(stuck.at.back_out(), parts);
                return Err(stuck.error);
            }
        }
        Ok(())
    }

    fn bind(&mut self, kind: Kind, parts: &Parts) -> Result<()> {
        match (&mut self.intx, kind) {
            (Some(intx), Kind::Intx) => intx.bind(parts),
            _ => {
                let live =
                    self.vectors.iter_mut().zip(&self.messages).filter(|(_, message)| message.is_some());
                live.map(|(vector, _)| vector).try_for_each(|vector| vector.bind(parts))
            }
        }
    }

    fn set_irqs(&mut self, kind: Kind, wanted: usize) -> Result<()> {
        if let (Some(intx), Kind::Intx) = (&self.intx, kind) {
            self.irqs.enable(kind, std::slice::from_ref(intx.event()))?;
            return match self.irqs.unmask_by(intx.unmask()) {
                Err(error) if error.errno() == Some(libc::ENOTTY) => {
                    self.unmasked = self.unmasked.or(Some(0));
                    Ok(())
                }
                unmasked => unmasked,
            };
        }
        // All at once where the kernel cannot add any later: a new set-up would lose what fires meanwhile.
        let first = if self.irqs.can_grow(kind) { 1 } else { wanted };
        let events: Vec<_> = self.vectors.iter().take(first).map(|vector| vector.event().clone()).collect();
        self.irqs.enable(kind, &events)?;
        for vector in 0..self.messages.len() {
            if self.messages[vector].is_some() {
                self.trigger(kind, vector)?;
            }
        }
        Ok(())
    }

    fn tear_down(&mut self, parts: &Parts) -> Result<()> {
        let firing = match std::mem::replace(&mut self.stage, Stage::Moving) {
            Stage::Firing(firing) => firing,
            other => {
                self.stage = other;
                return Ok(());
            }
        };
        let mut disabled = Ok(());
        let Ok(silent) = firing.disable_irqs(|| {
            disabled = self.irqs.disable();
            // One that failed has no device behind it any more.
            Ok::<_, Infallible>(())
        });
        self.silent(silent, parts);
        disabled
    }

    /// From where nothing fires back to where it can be set up again.
    fn silent(&mut self, silent: Silent, parts: &Parts) {
        let Ok(deaf) = silent.stop_listening(|| {
            self.unbind(parts);
            Ok::<_, Infallible>(())
        });
        self.deaf(deaf, parts);
    }

    fn deaf(&mut self, deaf: Deaf, parts: &Parts) {
        let Ok(unrouted) = deaf.remove_route(|| {
            let gone: Vec<_> =
                (0..).zip(&self.messages).filter(|(_, m)| m.is_some()).map(|(n, _)| (n, None)).collect();
            // Routes that only go are always valid.
            let _removed = parts.routes.set(&self.routes(&gone));
            self.messages.fill(None);
            Ok::<_, Infallible>(())
        });
        // The number stays the device's until it goes: it was promised to it when it was attached.
        let Ok(gone) = unrouted.free_gsi(|| Ok::<_, Infallible>(()));
        self.stage = Stage::Opened(gone.set_up_again());
    }

    fn unbind(&mut self, parts: &Parts) {
        // What an irqfd's end can answer is that it is gone.
        for vector in &mut self.vectors {
            let _gone = vector.unbind(parts);
            vector.drop_pending();
        }
        if let Some(intx) = &mut self.intx {
            let _gone = intx.unbind(parts);
            let left = intx.event().take();
            // Its slot is the last vector's.
            if let Some(last) = self.vectors.last_mut() {
                last.drop_signals(left);
            }
        }
    }

    /// The end: interrupts, GSIs, BARs.
    ///
    /// # Errors
    /// With the token, what did not go as it should.
    pub fn release(&mut self, bars: &mut Bars, parts: &Parts) -> (Unmapped, Result<()>) {
        let mut result = self.irqs.release();
        result = result.and(self.tear_down(parts));
        let no_gsi: NoGsi = match std::mem::replace(&mut self.stage, Stage::Moving) {
            Stage::Opened(opened) => opened.back_out(),
            Stage::Firing(_) | Stage::Moving => Opened::new().back_out(),
        };
        result = result.and(parts.routes.free(&reserved_of(&self.vectors)));
        let mut removed = Ok(());
        let Ok(unmapped) = no_gsi.unmap_bars(|| {
            removed = bars.remove(parts);
            Ok::<_, Infallible>(())
        });
        (unmapped, result.and(removed))
    }
}

fn reserved_of(vectors: &[Vector]) -> Vec<pollvisor_core::ids::Gsi> {
    vectors.iter().map(Vector::gsi).collect()
}

/// What the guest's registers ask for: the kind, and where each vector goes.
fn wanted(config: &mut ConfigSpace) -> (Option<Kind>, Vec<Option<Msi>>) {
    if let Some(msix) = config.msix()
        && msix.function.mode() != Mode::Disabled
    {
        let message = |n| msix.function.route(n).ok()?.message.map(Msi::from);
        return (Some(Kind::Msix), (0..msix.function.vectors()).map(message).collect());
    }
    if let Some(msi) = config.msi()
        && msi.is_enabled()
    {
        let message = |n| msi.route(n).ok()?.message.map(Msi::from);
        return (Some(Kind::Msi), (0..msi.vectors_allocated()).map(message).collect());
    }
    (None, Vec::new())
}
