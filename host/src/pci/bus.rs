//! Bus 0 of segment 0, as the guest reaches it: memory-mapped (ECAM) and through the ports 0xcf8 and 0xcfc.

use super::aligned;
use crate::error::{Error, Result};
use std::fmt::Debug;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// How many bytes of the guest's memory the bus's configuration spaces take: one bus.
pub const ECAM_SIZE: u64 = 1 << 20;
/// How many slots the bus has.
pub const SLOTS: u8 = 32;
/// The host bridge's vendor and device, in the order of the registers. The vendor is nobody's: no driver binds to it.
pub const HOST_BRIDGE_ID: [u16; 2] = [0x7076, 1];

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const LAST: u16 = 0xcff;
/// CONFIG_ADDRESS: 31 enable, 23:16 bus, 15:11 device, 10:8 function, 7:2 register; the rest is zero.
const IMPLEMENTED: u32 = 0x80ff_fffc;

/// Something on the guest's bus: 4096 bytes of configuration space. Accesses are of 1, 2 or 4 bytes, naturally
/// aligned: the bus splits others.
pub trait Function: Send + Sync + Debug {
    /// The guest reads at `offset`; all of `data` is filled.
    fn read_config(&self, offset: u16, data: &mut [u8]);
    /// The guest writes at `offset`.
    fn write_config(&self, offset: u16, data: &[u8]);
}

/// The bus: 32 slots, function 0 each, slot 0 a host bridge. What is absent reads as all ones and drops writes.
#[derive(Debug)]
pub struct RootBus {
    slots: RwLock<[Option<Arc<dyn Function>>; SLOTS as usize]>,
    address: AtomicU32,
}

impl Default for RootBus {
    fn default() -> Self {
        Self::new()
    }
}

impl RootBus {
    /// A bus with its host bridge only.
    #[must_use]
    pub fn new() -> Self {
        let mut slots = [const { None }; SLOTS as usize];
        slots[0] = Some(Arc::new(HostBridge) as Arc<dyn Function>);
        Self { slots: RwLock::new(slots), address: AtomicU32::new(0) }
    }

    /// Puts `function` into a slot, the lowest free one when none is named; says which.
    ///
    /// # Errors
    /// The slot is taken, or not one of the bus's; no slot is free.
    pub fn insert(&self, slot: Option<u8>, function: Arc<dyn Function>) -> Result<u8> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = slot.or_else(|| (0..).zip(slots.iter()).find(|(_, f)| f.is_none()).map(|(n, _)| n))
        else {
            return Err(Error::new(format!("no slot of {SLOTS} is free on the guest's PCI bus")));
        };
        match slots.get_mut(usize::from(slot)) {
            Some(free @ None) => *free = Some(function),
            Some(Some(_)) => {
                return Err(Error::new(format!("slot {slot} of the guest's PCI bus is taken"))
                    .remedy("choose another slot, or none for the first free one"));
            }
            None => {
                return Err(Error::new(format!("the guest's PCI bus has no slot {slot}"))
                    .remedy(format!("choose a slot from 1 to {}", SLOTS - 1)));
            }
        }
        Ok(slot)
    }

    /// Takes the function out of `slot`, as when a device vanishes. The host bridge stays.
    pub fn remove(&self, slot: u8) -> Option<Arc<dyn Function>> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.get_mut(usize::from(slot)).filter(|_| slot != 0)?.take()
    }

    /// The guest reads `offset` bytes into the ECAM area; all of `data` is filled.
    pub fn ecam_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        for (at, range) in aligned(offset, data.len()) {
            if let (Some((function, register)), Some(piece)) = (self.at(at), data.get_mut(range)) {
                function.read_config(register, piece);
            }
        }
    }

    /// The guest writes `offset` bytes into the ECAM area.
    pub fn ecam_write(&self, offset: u64, data: &[u8]) {
        for (at, range) in aligned(offset, data.len()) {
            if let (Some((function, register)), Some(piece)) = (self.at(at), data.get(range)) {
                function.write_config(register, piece);
            }
        }
    }

    /// The guest reads a port of 0xcf8 to 0xcff; all of `data` is filled.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let (ADDRESS, Ok(data)) = (port, <&mut [u8; 4]>::try_from(&mut *data)) {
            *data = self.address.load(Ordering::Relaxed).to_le_bytes();
        } else if let Some((offset, length)) = self.selected(port, data.len()) {
            self.ecam_read(offset, data.get_mut(..length).unwrap_or_default());
        }
    }

    /// The guest writes a port of 0xcf8 to 0xcff. CONFIG_ADDRESS is there for accesses of four bytes only.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        if let (ADDRESS, Ok(data)) = (port, <[u8; 4]>::try_from(data)) {
            self.address.store(u32::from_le_bytes(data) & IMPLEMENTED, Ordering::Relaxed);
        } else if let Some((offset, length)) = self.selected(port, data.len()) {
            self.ecam_write(offset, data.get(..length).unwrap_or_default());
        }
    }

    /// What an access of CONFIG_DATA goes to: a place in the ECAM area, and how many bytes of it.
    fn selected(&self, port: u16, length: usize) -> Option<(u64, usize)> {
        let address = self.address.load(Ordering::Relaxed);
        if !(DATA..=LAST).contains(&port) || address >> 31 == 0 {
            return None;
        }
        let [register, function, bus, _] = address.to_le_bytes();
        let place = u64::from(bus) << 20 | u64::from(function) << 12 | u64::from(register);
        Some((place + u64::from(port - DATA), length.min(usize::from(LAST - port) + 1)))
    }

    /// The function at a place in the ECAM area, and the place in it. It is called with the bus unlocked.
    fn at(&self, offset: u64) -> Option<(Arc<dyn Function>, u16)> {
        let register = u16::try_from(offset & 0xfff).ok()?;
        // 19:15 device, 14:12 function.
        let slot = usize::try_from(offset >> 15).ok().filter(|_| offset >> 12 & 7 == 0)?;
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        Some((slots.get(slot)?.clone()?, register))
    }
}

/// What the guest's bus hangs on: an ID and a class, all of it read-only.
#[derive(Debug)]
struct HostBridge;

impl Function for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let [[a, b], [c, d]] = HOST_BRIDGE_ID.map(u16::to_le_bytes);
        // Class 06 bridge, 00 host.
        let registers = [a, b, c, d, 0, 0, 0, 0, 0, 0, 0x00, 0x06];
        for (at, to) in (usize::from(offset)..).zip(data) {
            *to = registers.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&self, _offset: u16, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Registers without rules, and the longest access seen.
    #[derive(Debug)]
    struct Ram(Mutex<Vec<u8>>);

    impl Ram {
        fn new() -> Arc<Self> {
            Arc::new(Self(Mutex::new((0..=255).cycle().take(4096).collect())))
        }
    }

    impl Function for Ram {
        fn read_config(&self, offset: u16, data: &mut [u8]) {
            assert!(matches!(data.len(), 1 | 2 | 4) && usize::from(offset).is_multiple_of(data.len()));
            let at = usize::from(offset);
            data.copy_from_slice(&self.0.lock().unwrap()[at..at + data.len()]);
        }

        fn write_config(&self, offset: u16, data: &[u8]) {
            assert!(matches!(data.len(), 1 | 2 | 4) && usize::from(offset).is_multiple_of(data.len()));
            let at = usize::from(offset);
            self.0.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        }
    }

    fn ecam<const N: usize>(bus: &RootBus, offset: u64) -> [u8; N] {
        let mut data = [0x5a; N];
        bus.ecam_read(offset, &mut data);
        data
    }

    fn port<const N: usize>(bus: &RootBus, port: u16) -> [u8; N] {
        let mut data = [0x5a; N];
        bus.port_read(port, &mut data);
        data
    }

    #[test]
    fn slots() {
        let bus = RootBus::default();
        assert_eq!(bus.insert(Some(2), Ram::new()), Ok(2));
        assert_eq!(bus.insert(None, Ram::new()), Ok(1));
        assert_eq!(bus.insert(None, Ram::new()), Ok(3));
        for taken in [0, 2, 32, 255] {
            assert!(bus.insert(Some(taken), Ram::new()).is_err(), "{taken}");
        }
        assert!(bus.remove(0).is_none() && bus.remove(32).is_none() && bus.remove(2).is_some());
        assert!(bus.remove(2).is_none());
        assert_eq!(ecam(&bus, 2 << 15), [0xff; 4]);
        assert_eq!(ecam(&bus, 1 << 15), [0, 1, 2, 3]);
        for slot in (2..32).filter(|slot| *slot != 3) {
            assert_eq!(bus.insert(None, Ram::new()), Ok(slot));
        }
        assert!(bus.insert(None, Ram::new()).is_err());
    }

    #[test]
    fn the_host_bridge_is_read_only() {
        let bus = RootBus::new();
        bus.ecam_write(0, &[0; 4]);
        bus.ecam_write(8, &[0xff; 4]);
        assert_eq!(ecam(&bus, 0), [0x76, 0x70, 1, 0]);
        assert_eq!(ecam(&bus, 8), [0, 0, 0, 6]);
        assert_eq!(ecam(&bus, 0xffc), [0; 4]);
    }

    #[test]
    fn ecam_splits_and_ends() {
        let bus = RootBus::new();
        assert_eq!(bus.insert(Some(31), Ram::new()), Ok(31));
        let base = 31 << 15;
        assert_eq!(ecam(&bus, base + 0x103), [3, 4, 5, 6, 7, 8, 9, 10]);
        bus.ecam_write(base + 0x101, &[0xa1, 0xa2, 0xa3, 0xa4]);
        assert_eq!(ecam(&bus, base + 0x100), [0, 0xa1, 0xa2, 0xa3, 0xa4, 5]);
        // Function 1 is absent, and so is what comes after the bus.
        assert_eq!(ecam(&bus, base + 0xffe), [0xfe, 0xff, 0xff, 0xff]);
        assert_eq!(ecam(&bus, base + 0x1000), [0xff; 2]);
        assert_eq!(ecam(&bus, ECAM_SIZE), [0xff; 4]);
        assert_eq!(ecam(&bus, u64::MAX), [0xff; 4]);
        bus.ecam_write(u64::MAX, &[0; 8]);
    }

    #[test]
    fn ports() {
        let bus = RootBus::new();
        assert_eq!(bus.insert(Some(1), Ram::new()), Ok(1));
        // Without the enable bit there is nothing.
        bus.port_write(0xcf8, &0x0000_0800u32.to_le_bytes());
        assert_eq!(port(&bus, 0xcfc), [0xff; 4]);
        bus.port_write(0xcf8, &0xff00_0847u32.to_le_bytes());
        assert_eq!(port(&bus, 0xcf8), 0x8000_0844u32.to_le_bytes());
        assert_eq!(port(&bus, 0xcfc), [0x44, 0x45, 0x46, 0x47]);
        assert_eq!(port(&bus, 0xcfe), [0x46, 0x47]);
        assert_eq!(port(&bus, 0xcff), [0x47]);
        // Not further than the last port, and CONFIG_ADDRESS is no bytes.
        assert_eq!(port(&bus, 0xcfe), [0x46, 0x47, 0xff, 0xff]);
        assert_eq!(port(&bus, 0xcf9), [0xff; 4]);
        assert_eq!(port(&bus, 0xcf8), [0xff; 2]);
        bus.port_write(0xcf9, &[0; 1]);
        bus.port_write(0xcf8, &[0; 2]);
        bus.port_write(0xcfd, &[0xaa]);
        bus.port_write(0xcfe, &[0xbb, 0xcc, 0xdd, 0xee]);
        assert_eq!(port(&bus, 0xcfc), [0x44, 0xaa, 0xbb, 0xcc]);
        assert_eq!(ecam(&bus, (1 << 15) + 0x48), [0x48, 0x49]);
        // Another bus, another function, another slot.
        for address in [0x8001_0800u32, 0x8000_0900, 0x8000_1000] {
            bus.port_write(0xcf8, &address.to_le_bytes());
            assert_eq!(port(&bus, 0xcfc), [0xff; 4], "{address:#x}");
        }
    }
}
