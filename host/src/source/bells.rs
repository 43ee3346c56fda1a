//! The doorbell regions of a lane.

use super::port::{Hooked, MAX_REGIONS, Port};
use crate::sys::doorbell::Consumer;
use pollvisor_core::ids::SourceId;
use pollvisor_core::source::Fired;

#[derive(Debug)]
struct Watched {
    consumer: Box<Consumer>,
    listeners: Box<[Option<SourceId>]>,
}

#[derive(Debug)]
pub(super) struct Bells {
    regions: heapless::Vec<Watched, MAX_REGIONS>,
    /// Where the bell of a slot is.
    places: Box<[Option<(usize, usize)>]>,
    cursor: usize,
    left: usize,
}

/// A token says where the event came from and how many signals it is: they are taken when it is seen.
const BELL: u64 = 1 << 63;
const SIGNALS: u64 = u32::MAX as u64;

pub(super) const fn is_bell(fired: &Fired) -> bool {
    fired.token & BELL != 0
}

pub(super) const fn signals(fired: &Fired) -> u64 {
    fired.token & SIGNALS
}

impl Bells {
    pub(super) fn new(slots: usize) -> Self {
        Self { regions: heapless::Vec::new(), places: vec![None; slots].into(), cursor: 0, left: 0 }
    }

    pub(super) fn add(
        &mut self,
        number: usize,
        consumer: Box<Consumer>,
        listeners: Box<[Option<SourceId>]>,
        port: &Port,
    ) {
        if self.regions.len() != number || self.regions.push(Watched { consumer, listeners }).is_err() {
            port.fault();
        }
    }

    pub(super) fn hook(&mut self, id: SourceId, region: usize, bell: usize, port: &Port) {
        if let Some(watched) = self.regions.get_mut(region) {
            watched.listeners[bell] = Some(id);
            watched.consumer.listen(bell, true);
            self.places[id.slot()] = Some((region, bell));
        } else {
            port.fault();
        }
        port.set(id.slot(), Hooked::Watched);
    }

    /// False when this slot has no bell.
    pub(super) fn unhook(&mut self, id: SourceId, port: &Port) -> bool {
        let Some((region, bell)) = self.places[id.slot()].take() else { return false };
        if let Some(watched) = self.regions.get_mut(region) {
            watched.consumer.listen(bell, false);
            watched.listeners[bell] = None;
        }
        port.set(id.slot(), Hooked::Idle);
        true
    }

    #[inline]
    pub(super) fn next(&mut self) -> Option<Fired> {
        while self.left > 0 {
            let region = &mut self.regions[self.cursor];
            if let Some(rung) = region.consumer.next_rung()
                && let Some(id) = region.listeners[rung.bell]
            {
                let token = BELL | rung.signals.min(SIGNALS);
                return Some(Fired { id, token, stamp: rung.stamp, hang_up: false });
            }
            self.cursor = if self.cursor + 1 == self.regions.len() { 0 } else { self.cursor + 1 };
            self.left -= 1;
        }
        self.left = self.regions.len();
        None
    }
}
