//! A device that VFIO has, as a source: its vectors signal eventfds, and VFIO's loopback fires them, so that all but the
//! hardware is measured. No guest has the device, and it reaches no memory.

use pollvisor::accel::kvm::Vm;
use pollvisor::accel::{Idle, VmConfig};
use pollvisor::assign::{Irqs, Opener, Opening};
use pollvisor::cli::DeviceArg;
use pollvisor::devices::{DeviceAddress, Host};
use pollvisor::error::{Error, Result};
use pollvisor::pci::Bdf;
use pollvisor::sys::fd::EventFd;
use pollvisor_core::line::{Kind, Single};
use pollvisor_core::route::Irqchip;
use pollvisor_core::teardown::device::Opened;
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

/// See the module's text. Dropping it closes the device.
#[derive(Debug)]
pub struct Device {
    address: DeviceAddress,
    /// `None` once it is closed.
    irqs: Option<Irqs>,
    kind: Kind,
    events: Vec<Arc<EventFd>>,
    wanted_back: Arc<EventFd>,
    failed: Arc<EventFd>,
    gone: OnceLock<String>,
    opener: Opener,
    opening: Option<Opening>,
    /// What the device's group is known to.
    _vm: Vm,
}

/// `--device`: as `pollvisor run` has it, or an address alone.
pub fn device(text: &str) -> std::result::Result<DeviceArg, String> {
    if let Ok(address) = text.parse::<Bdf>() {
        return Ok(DeviceAddress::Pci(address).into());
    }
    let device: DeviceArg = text.parse()?;
    let mut plain = DeviceArg::from(device.address);
    plain.iommufd = device.iommufd;
    if plain == device {
        Ok(device)
    } else {
        Err("path=, host= and iommufd= only: no guest has the device".into())
    }
}

impl Device {
    /// Opens it and binds `vectors` of its vectors, all when it is not said.
    ///
    /// # Errors
    /// What is in the way, and what to do; that it has fewer, or none that eventfds are signalled by.
    pub fn open(device: &DeviceArg, vectors: Option<usize>) -> Result<Arc<Self>> {
        let address = device.address;
        let told = |error: Error| error.context(address);
        let config = VmConfig { irqchip: Irqchip::Split, idle: Idle::Halt, halt_poll_ns: None };
        let vm = Vm::new(&config, None)?;
        let opener = Opener::without_memory(Host::default(), vm.fd().clone());
        let (file, opening) = opener.open(address, device.iommufd)?;
        let mut made = Self {
            address,
            irqs: None,
            kind: Kind::Msix,
            events: Vec::new(),
            wanted_back: Arc::new(EventFd::new()?),
            failed: Arc::new(EventFd::new()?),
            gone: OnceLock::new(),
            opener,
            opening: Some(opening),
            _vm: vm,
        };
        let irqs = made.irqs.insert(Irqs::new(Arc::new(file)).map_err(told)?);
        let there = |kind: Kind| usize::try_from(irqs.count(kind)).unwrap_or(0);
        let kind = [Kind::Msix, Kind::Msi].into_iter().find(|kind| there(*kind) > 0);
        made.kind = kind.ok_or_else(|| told(Error::new("it has neither MSI-X nor MSI")))?;
        let (most, name) = (there(made.kind), if made.kind == Kind::Msix { "MSI-X" } else { "MSI" });
        let wanted = vectors.unwrap_or(most);
        if wanted == 0 || wanted > most {
            return Err(told(
                Error::new(format!("it has {most} {name} vectors, not {wanted}"))
                    .remedy(format!("--vectors {most}, or less")),
            ));
        }
        made.events = (0..wanted).map(|_| EventFd::new().map(Arc::new)).collect::<Result<_>>()?;
        irqs.enable(made.kind, &made.events).map_err(told)?;
        // False where the device cannot tell.
        let _it_can = irqs.listen(Single::Request, &made.wanted_back).map_err(told)?;
        let _it_can = irqs.listen(Single::Error, &made.failed).map_err(told)?;
        Ok(Arc::new(made))
    }

    /// How many of its vectors are bound.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.events.len()
    }

    /// What its vectors signal, with nothing in it.
    #[must_use]
    pub fn events(&self) -> Vec<Arc<EventFd>> {
        for event in &self.events {
            let _of_the_last_path = event.take();
        }
        self.events.clone()
    }

    /// Fires a vector. False: it cannot any more, and [`gone`](Self::gone) says why.
    pub fn fire(&self, vector: usize) -> bool {
        let number = u32::try_from(vector).unwrap_or(u32::MAX);
        let fired = match &self.irqs {
            Some(irqs) => irqs.fire(self.kind, number),
            None => Err(Error::new("it is closed")),
        };
        fired.map_err(|error| self.gone.get_or_init(|| error.to_string())).is_ok()
    }

    /// Why nothing more is to be had of it, if so.
    #[must_use]
    pub fn gone(&self) -> Option<Error> {
        if self.wanted_back.take() > 0 {
            self.gone.get_or_init(|| "the host wants it back".into());
        }
        if self.failed.take() > 0 {
            self.gone.get_or_init(|| "it reported a fatal error".into());
        }
        self.gone.get().map(|why| Error::new(why.clone()).context(self.address))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Interrupts, the device, its group: nothing signals the eventfds when they go.
        if let Some(mut irqs) = self.irqs.take() {
            // A device that is gone has nothing to release.
            let _released = irqs.release();
        }
        if let Some(opening) = self.opening.take() {
            let Ok(unmapped) = Opened::new().back_out().unmap_bars(|| Ok::<_, Infallible>(()));
            let Ok(closed) = unmapped.close_device(|| Ok::<_, Infallible>(()));
            let _gone = self.opener.close(opening, closed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_its_address_or_as_run_has_it() {
        let plain = device("0000:01:00.0").unwrap();
        for same in ["01:00.0", "host=01:00.0", "path=/sys/bus/pci/devices/0000:01:00.0/"] {
            assert_eq!(device(same), Ok(plain.clone()), "{same}");
        }
        assert_eq!(device("host=01:00.0,iommufd=on").unwrap().iommufd, Some(true));
        for wrong in ["", "nic", "host=", "01:00.9", "host=01:00.0,delivery=polled", "host=01:00.0,id=nic"] {
            assert!(device(wrong).is_err(), "{wrong}");
        }
    }
}
