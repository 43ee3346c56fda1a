//! The guest's accesses to an assigned device: configuration space, and what of its BARs is not mapped.

use super::{Assigned, ENTRY, Space, State};
use crate::error::Result;
use crate::pci::{Function, Place, Written};
use pollvisor_core::msix::Access;

impl Assigned {
    /// What follows from the guest's write.
    fn settle(&self, state: &mut State, written: Written) -> Result<()> {
        let mut result = written.error.map_or(Ok(()), Err);
        if written.reset {
            result = result.and(self.reset(state));
        }
        if written.decode_changed {
            result = result.and(state.bars.follow(&state.config, &self.parts, &self.me));
        }
        if written.msi.is_some() || written.msix.is_some() {
            result = result.and(self.follow(state));
        }
        if let Some(msi) = written.msi {
            state.wiring.send(&msi.fire, &self.parts);
        }
        result
    }

    /// The guest's function-level reset.
    fn reset(&self, state: &mut State) -> Result<()> {
        let State { wiring, bars, config, space, device, .. } = state;
        let _messages_gone = config.reset(&Space(device, space));
        let result = wiring.follow(config, &self.parts);
        let result = result.and(bars.follow(config, &self.parts, &self.me));
        result.and(device.reset())
    }

    pub(super) fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Ok(mut state) = self.enter() else { return };
        let State { wiring, bars, config, device, .. } = &mut **state;
        if let Some(msix) = config.msix() {
            let within = |place: Place| place.within(bar).is_some_and(|at| at.contains(&offset));
            if within(msix.table) {
                let _filled: Access = msix.function.read_table(offset - msix.table.offset, data);
                return;
            }
            if within(msix.pba) {
                wiring.gather(config, 0..usize::MAX, &self.parts);
                if let Some(msix) = config.msix() {
                    let _filled: Access = msix.function.read_pba(offset - msix.pba.offset, data);
                }
                return;
            }
        }
        if let Some(region) = bars.region(bar)
            && device.read(region, offset, data).is_err()
        {
            data.fill(0xff);
        }
    }

    pub(super) fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) {
        let Ok(mut state) = self.enter() else { return };
        let State { wiring, bars, config, device, .. } = &mut **state;
        if let Some(msix) = config.msix() {
            let within = |place: Place| place.within(bar).is_some_and(|at| at.contains(&offset));
            if within(msix.table) {
                let at = offset - msix.table.offset;
                let first = usize::try_from(at / ENTRY).unwrap_or(usize::MAX);
                // What waits is pending before the guest unmasks.
                wiring.gather(config, first..first.saturating_add(2), &self.parts);
                let Some(msix) = config.msix() else { return };
                let written = msix.function.write_table(at, data);
                let routes = written.routes.iter();
                let routes: Vec<_> =
                    routes.map(|route| (usize::from(route.vector), route.message.map(Into::into))).collect();
                let before = wiring.changes();
                let updated = wiring.update(&routes, &self.parts);
                wiring.send(&written.fire, &self.parts);
                self.send_to_cpus(before, &state);
                if let Err(error) = updated {
                    self.complain(&error);
                }
                return;
            }
            if within(msix.pba) {
                return;
            }
        }
        if let Some(region) = bars.region(bar)
            && let Err(error) = device.write(region, offset, data)
        {
            self.complain(&error);
        }
    }
}

impl Function for Assigned {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        match self.enter() {
            Ok(state) => state.config.read(&Space(&state.device, &state.space), offset, data),
            Err(_) => data.fill(0xff),
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let Ok(mut state) = self.enter() else { return };
        let state = &mut **state;
        // What waits is pending before the guest unmasks, or disables.
        state.wiring.gather(&mut state.config, 0..usize::MAX, &self.parts);
        let written = state.config.write(&Space(&state.device, &state.space), offset, data);
        if let Err(error) = self.settle(state, written) {
            self.complain(&error);
        }
    }
}
