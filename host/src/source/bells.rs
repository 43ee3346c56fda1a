//! The doorbell regions of a lane.

use super::port::{Hooked, MAX_REGIONS, Port};
use crate::sys::doorbell::Consumer;
use pollvisor_core::ids::SourceId;
use pollvisor_core::poll::BATCH;
use pollvisor_core::source::{Drained, Fired};

#[derive(Debug)]
struct Watched {
    consumer: Box<Consumer>,
    listeners: Box<[Option<SourceId>]>,
}

#[derive(Debug, Default)]
pub(super) struct Bells {
    regions: heapless::Vec<Watched, MAX_REGIONS>,
    /// Where the bell of a slot is.
    places: Box<[Option<(usize, usize)>]>,
    cursor: usize,
    left: usize,
    /// What this pass's events carried: a ring is taken when it is seen.
    carried: [Drained; BATCH],
    next_carried: usize,
}

/// A token says that the event is a bell's, and where what it carried is kept until the drain.
const BELL: u64 = 1 << 63;

pub(super) const fn is_bell(fired: &Fired) -> bool {
    fired.token & BELL != 0
}

impl Bells {
    pub(super) fn new(slots: usize) -> Self {
        Self { places: vec![None; slots].into(), ..Self::default() }
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
                let at = self.next_carried;
                self.next_carried = (at + 1) % BATCH;
                self.carried[at] = Drained { signals: rung.signals, stamp: rung.stamp };
                return Some(Fired { id, token: BELL | at as u64, hang_up: false });
            }
            self.cursor = if self.cursor + 1 == self.regions.len() { 0 } else { self.cursor + 1 };
            self.left -= 1;
        }
        self.left = self.regions.len();
        None
    }

    #[inline]
    pub(super) fn drain(&self, fired: &Fired) -> Drained {
        // A pass takes at most BATCH events, so none is overwritten before its drain.
        self.carried[usize::try_from(fired.token & !BELL).unwrap_or(0) % BATCH]
    }
}
