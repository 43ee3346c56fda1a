//! The producer's side of a session.

use crate::clock::Clock;
use crate::source::Port;
use crate::sys::doorbell::Producer;
use crate::sys::fd::EventFd;
use std::sync::Arc;

#[derive(Debug)]
pub(super) enum Kind {
    Events { events: Vec<Arc<EventFd>>, port: Option<Arc<Port>> },
    Bells(Producer),
}

/// The producer's side: makes signals and says when.
#[derive(Debug)]
pub struct Signaller {
    pub(super) clock: Clock,
    pub(super) kind: Kind,
}

impl Signaller {
    /// Signals `vector`. The time it did, and the time it was done: with an in-kernel irqfd, the LAPIC has it then.
    #[inline]
    pub fn signal(&mut self, vector: usize) -> (u64, u64) {
        match &mut self.kind {
            Kind::Events { events, port } => {
                let event = &events[vector];
                if let Some(port) = port {
                    port.prepare_stamp(vector);
                }
                let now = self.clock.now();
                if let Some(port) = port {
                    port.stamp(vector, now);
                }
                event.signal(1);
                (now, self.clock.now())
            }
            Kind::Bells(producer) => {
                let now = self.clock.now();
                producer.ring(vector, now);
                (now, now)
            }
        }
    }

    /// Signals `vector` without a time, so that its latency is not recorded: to warm up.
    pub fn warm_up(&mut self, vector: usize) {
        match &mut self.kind {
            Kind::Events { events, port } => {
                if let Some(port) = port {
                    port.stamp(vector, 0);
                }
                events[vector].signal(1);
            }
            Kind::Bells(producer) => producer.ring(vector, 0),
        }
    }

    /// Signals nobody took, taken now; after the session's sources are detached.
    #[must_use]
    pub fn left_over(&self, vector: usize) -> u64 {
        match &self.kind {
            Kind::Events { events, .. } => events[vector].take(),
            Kind::Bells(_) => 0,
        }
    }
}
