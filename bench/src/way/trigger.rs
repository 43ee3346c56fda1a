//! The producer's side of a way.

use super::Device;
use crate::measure::matching::Sent;
use pollvisor::accel::Injector;
use pollvisor::clock::Clock;
use pollvisor::error::{Error, Result};
use pollvisor::source::MAX_REGIONS;
use pollvisor::sys::doorbell::{Producer, Region};
use pollvisor::sys::fd::EventFd;
use pollvisor_core::inject::{Accepted, Inject};
use pollvisor_core::route::Msi;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Each has a doorbell region on every poller.
pub const MAX_PRODUCERS: usize = MAX_REGIONS;

#[derive(Debug)]
enum Kind {
    Events(Vec<Arc<EventFd>>),
    /// One per poller; vector by vector, whose and which bell.
    Bells(Vec<Producer>, Vec<(usize, usize)>),
    /// By VFIO's loopback.
    Device(Arc<Device>),
    /// Injected by the producer itself.
    Direct {
        inject: Arc<Injector>,
        messages: Vec<Msi>,
        told: Arc<Told>,
    },
}

/// What one producer was told of the interrupts that it injected. It alone writes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Told {
    accepted: AtomicU64,
    coalesced: AtomicU64,
}

impl Told {
    /// How many were accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// How many of these were requested already.
    pub fn coalesced(&self) -> u64 {
        self.coalesced.load(Ordering::Relaxed)
    }

    /// Relaxed: figures, read when the producer is done; its thread is joined, or is the reader's.
    fn add(&self, accepted: Accepted) {
        self.accepted.store(self.accepted() + 1, Ordering::Relaxed);
        self.coalesced.store(self.coalesced() + u64::from(accepted.coalesced), Ordering::Relaxed);
    }
}

/// One producer's vectors, and how they are signalled.
#[derive(Debug)]
pub struct Trigger {
    clock: Clock,
    kind: Kind,
    vectors: Vec<usize>,
    next: usize,
}

/// Whose a vector is.
pub fn producer_of(vector: usize, producers: usize) -> usize {
    vector % producers
}

/// Which poller has a vector: within each producer's they take turns.
pub fn poller_of(vector: usize, producers: usize, pollers: usize) -> usize {
    vector / producers % pollers
}

fn vectors_of(producer: usize, producers: usize, vectors: usize) -> Vec<usize> {
    (0..vectors).filter(|vector| producer_of(*vector, producers) == producer).collect()
}

/// Producers that write to eventfds, one per vector.
pub fn events(clock: Clock, events: &[Arc<EventFd>], producers: usize) -> Vec<Trigger> {
    let trigger = |producer| {
        let vectors = vectors_of(producer, producers, events.len());
        let kind = Kind::Events(vectors.iter().map(|vector| events[*vector].clone()).collect());
        Trigger { clock, kind, vectors, next: 0 }
    };
    (0..producers).map(trigger).collect()
}

/// Producers that fire a device's vectors.
pub fn fired(clock: Clock, device: &Arc<Device>, vectors: usize, producers: usize) -> Vec<Trigger> {
    let trigger = |producer| {
        let vectors = vectors_of(producer, producers, vectors);
        Trigger { clock, kind: Kind::Device(device.clone()), vectors, next: 0 }
    };
    (0..producers).map(trigger).collect()
}

/// Producers that inject themselves; and what each is told.
pub fn direct(
    clock: Clock,
    inject: &Arc<Injector>,
    messages: &[Msi],
    producers: usize,
) -> (Vec<Trigger>, Vec<Arc<Told>>) {
    let trigger = |producer| {
        let vectors = vectors_of(producer, producers, messages.len());
        let told = Arc::new(Told::default());
        let messages = vectors.iter().map(|vector| messages[*vector]).collect();
        let kind = Kind::Direct { inject: inject.clone(), messages, told: told.clone() };
        (Trigger { clock, kind, vectors, next: 0 }, told)
    };
    (0..producers).map(trigger).unzip()
}

/// A vector's bell: its poller, region and number in it.
pub struct Bell {
    /// Whose.
    pub vector: usize,
    /// The poller that is to watch the region.
    pub poller: usize,
    /// The region, shared with the other vectors of that producer and poller.
    pub region: Arc<Region>,
    /// The bell.
    pub bell: usize,
}

/// Producers that ring: a region for each of them with each poller. And every vector's bell.
///
/// # Errors
/// The kernel's, for want of memory.
pub fn bells(
    clock: Clock,
    vectors: usize,
    producers: usize,
    pollers: usize,
) -> Result<(Vec<Trigger>, Vec<Bell>)> {
    let (mut triggers, mut all) = (Vec::new(), Vec::new());
    for producer in 0..producers {
        let mine = vectors_of(producer, producers, vectors);
        let (mut counts, mut places) = (vec![0; pollers], Vec::new());
        for vector in &mine {
            let poller = poller_of(*vector, producers, pollers);
            places.push((poller, counts[poller]));
            counts[poller] += 1;
        }
        let regions: Vec<_> =
            counts.iter().map(|count| Region::new((*count).max(1))).collect::<Result<_>>()?;
        for (vector, (poller, bell)) in mine.iter().zip(&places) {
            let region = regions[*poller].clone();
            all.push(Bell { vector: *vector, poller: *poller, region, bell: *bell });
        }
        let kind = Kind::Bells(regions.into_iter().map(Producer::new).collect(), places);
        triggers.push(Trigger { clock, kind, vectors: mine, next: 0 });
    }
    Ok((triggers, all))
}

impl Trigger {
    /// Signals the vectors in turn. `planned`: when it should have been; `None`: now.
    ///
    /// # Errors
    /// When its device is gone: nothing was signalled.
    #[inline]
    pub fn signal(&mut self, planned: Option<u64>) -> Result<Sent> {
        let at = self.next;
        self.next = if at + 1 == self.vectors.len() { 0 } else { at + 1 };
        let made = match &mut self.kind {
            Kind::Events(events) => {
                let made = self.clock.now();
                events[at].signal(1);
                made
            }
            Kind::Bells(producers, places) => {
                let (poller, bell) = places[at];
                let made = self.clock.now();
                producers[poller].ring(bell, made);
                made
            }
            Kind::Direct { inject, messages, told } => {
                let made = self.clock.now();
                match inject.msi(&messages[at]) {
                    Ok(accepted) => told.add(accepted),
                    Err(error) => {
                        return Err(Error::new(format!("injecting vector {}: {error:?}", self.vectors[at])));
                    }
                }
                made
            }
            Kind::Device(device) => {
                let made = self.clock.now();
                if !device.fire(self.vectors[at]) {
                    return Err(device.gone().unwrap_or_else(|| Error::new("the device is gone")));
                }
                made
            }
        };
        let paid = self.clock.now();
        Ok(Sent { vector: self.vectors[at], planned: planned.unwrap_or(made), made, paid })
    }

    /// The same, not to be measured.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub fn warm_up(&mut self) -> Result<Sent> {
        Ok(Sent { planned: 0, ..self.signal(None)? })
    }
}
