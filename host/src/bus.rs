//! The guest's two address spaces outside its memory: I/O ports and memory-mapped registers, and who answers there.

use crate::error::{Error, Result};
use crate::sys::kvm::Exit;
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};
use vm_device::bus::{Bus, BusRange, MmioAddress, PioAddress};

/// Something that answers at a range of addresses. Called by any vCPU, several at once, without a lock of the bus, so that
/// it may change the bus itself.
pub trait Device: Send + Sync + Debug {
    /// The guest reads at `offset` from the range's beginning. All of `data` is filled.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u64, data: &[u8]);
}

type Ranges<A> = RwLock<Bus<A, Arc<dyn Device>>>;

/// See the module's text. What nobody answers reads as ones and swallows writes, as an empty bus does.
#[derive(Default)]
pub struct Buses {
    ports: Ranges<PioAddress>,
    memory: Ranges<MmioAddress>,
}

impl Debug for Buses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buses").finish_non_exhaustive()
    }
}

impl Buses {
    /// Puts a device at `length` ports from `base` on.
    ///
    /// # Errors
    /// When another one is there.
    pub fn add_ports(&self, base: u16, length: u16, device: Arc<dyn Device>) -> Result<()> {
        let taken = |e| Error::new(format!("I/O ports {base:#x}+{length:#x}: {e}"));
        let range = BusRange::new(PioAddress(base), length).map_err(taken)?;
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        ports.register(range, device).map_err(taken)
    }

    /// Puts a device at `length` bytes of memory space from `base` on.
    ///
    /// # Errors
    /// When another one is there.
    pub fn add_memory(&self, base: u64, length: u64, device: Arc<dyn Device>) -> Result<()> {
        let taken = |e| Error::new(format!("memory space {base:#x}+{length:#x}: {e}"));
        let range = BusRange::new(MmioAddress(base), length).map_err(taken)?;
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        memory.register(range, device).map_err(taken)
    }

    /// Takes the device whose ports begin at `base` away. A vCPU that is inside it may still finish.
    pub fn remove_ports(&self, base: u16) {
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        if ports.device(PioAddress(base)).is_some_and(|(range, _)| range.base() == PioAddress(base)) {
            ports.deregister(PioAddress(base));
        }
    }

    /// Takes the device whose memory begins at `base` away, as [`remove_ports`](Self::remove_ports).
    pub fn remove_memory(&self, base: u64) {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        if memory.device(MmioAddress(base)).is_some_and(|(range, _)| range.base() == MmioAddress(base)) {
            memory.deregister(MmioAddress(base));
        }
    }

    fn port(&self, port: u16) -> Option<(u64, Arc<dyn Device>)> {
        let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
        let (range, device) = ports.device(PioAddress(port))?;
        Some((u64::from(port - range.base().0), device.clone()))
    }

    fn at(&self, address: u64) -> Option<(u64, Arc<dyn Device>)> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let (range, device) = memory.device(MmioAddress(address))?;
        Some((address - range.base().0, device.clone()))
    }

    /// The guest reads memory space.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.at(address) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes memory space.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.at(address) {
            device.write(offset, data);
        }
    }

    /// Carries out an exit that is an access; false: it was another one.
    pub fn serve(&self, exit: &mut Exit<'_>) -> bool {
        match exit {
            Exit::PortRead { port, size, data } => {
                let device = self.port(*port);
                for data in data.chunks_mut(*size) {
                    match &device {
                        Some((offset, device)) => device.read(*offset, data),
                        None => data.fill(0xff),
                    }
                }
            }
            Exit::PortWrite { port, size, data } => {
                if let Some((offset, device)) = self.port(*port) {
                    data.chunks(*size).for_each(|data| device.write(offset, data));
                }
            }
            Exit::MmioRead { address, data } => self.read(*address, data),
            Exit::MmioWrite { address, data } => self.write(*address, data),
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Scratch(Mutex<[u8; 16]>);

    impl Device for Scratch {
        fn read(&self, offset: u64, data: &mut [u8]) {
            let from = usize::try_from(offset).expect("within the range");
            data.copy_from_slice(&self.0.lock().expect("no panic")[from..from + data.len()]);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            let from = usize::try_from(offset).expect("within the range");
            self.0.lock().expect("no panic")[from..from + data.len()].copy_from_slice(data);
        }
    }

    #[test]
    fn accesses_reach_their_device_and_nobody_reads_as_ones() {
        let buses = Buses::default();
        buses.add_memory(0x1000, 16, Arc::new(Scratch::default())).expect("free");
        assert!(buses.add_memory(0x100f, 16, Arc::new(Scratch::default())).is_err(), "they overlap");
        buses.write(0x1004, &[1, 2]);
        let mut data = [0; 2];
        buses.read(0x1004, &mut data);
        assert_eq!(data, [1, 2]);
        buses.remove_memory(0x1001);
        buses.read(0x1004, &mut data);
        assert_eq!(data, [1, 2], "not where it begins");
        buses.remove_memory(0x1000);
        buses.read(0x1004, &mut data);
        assert_eq!(data, [0xff; 2]);
    }

    #[test]
    fn a_repeated_port_access_is_so_many_accesses() {
        let buses = Buses::default();
        buses.add_ports(0x60, 4, Arc::new(Scratch::default())).expect("free");
        assert!(buses.serve(&mut Exit::PortWrite { port: 0x62, size: 2, data: &[1, 2, 3, 4] }));
        let mut data = [0; 4];
        assert!(buses.serve(&mut Exit::PortRead { port: 0x62, size: 2, data: &mut data }));
        assert_eq!(data, [3, 4, 3, 4], "the last write, read twice");
        assert!(!buses.serve(&mut Exit::Halted));
    }
}
