//! Who drives a function: vfio-pci, for a guest, or the host's own driver.
//!
//! `driver_override` says which driver alone may have it (`pci_match_device`), `unbind` takes it from the one that does,
//! and `drivers_probe` offers it around. All three are done when `write` returns; only the `driver` link tells whether a
//! driver took it.

use super::Host;
use super::config::Config;
use super::group::{class, driver, is_vfio};
use super::in_use::InUse;
use super::list::{node, sriov};
use super::obstacle::is_bridge;
use super::sysfs::{self, Write};
use crate::error::{Error, Result};
use crate::pci::Bdf;
use std::path::{Path, PathBuf};

const VFIO: &str = "vfio-pci";
/// Clears `driver_override`.
const NOTHING: &str = "\n";

/// A function's drivers, before and now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebound {
    /// The function.
    pub address: Bdf,
    /// The driver that had it.
    pub before: Option<String>,
    /// The driver that has it now.
    pub now: Option<String>,
}

/// Gives a function to vfio-pci. One that a VFIO driver has already is left as it is.
///
/// # Errors
/// When it carries what the host uses: a mounted disk, swap, the default route; when it is a bridge or has virtual
/// functions; without vfio-pci; without permission. When it fails half-way, it is undone, and the error says which driver
/// has the function then.
pub fn bind(host: &Host, address: Bdf) -> Result<Rebound> {
    bind_with(host, address, &mut sysfs::write)
}

/// Gives a function back to the host's drivers. One that a host driver has already is left as it is. While a VMM has the
/// function, the kernel waits for it.
///
/// # Errors
/// When there is no such function, or without permission. That no driver takes it is no error: `now` is `None`.
pub fn unbind(host: &Host, address: Bdf) -> Result<Rebound> {
    unbind_with(host, address, &mut sysfs::write)
}

fn bind_with(host: &Host, address: Bdf, write: Write<'_>) -> Result<Rebound> {
    let node = node(host, address)?;
    let before = driver(&node);
    if before.as_deref().is_some_and(is_vfio) {
        return Ok(Rebound { address, now: before.clone(), before });
    }
    refuse(host, address, &node)?;
    if !host.sys.join("bus/pci/drivers").join(VFIO).is_dir() {
        return Err(Error::new(format!("binding {address}: the driver {VFIO} is not loaded"))
            .remedy("modprobe vfio-pci"));
    }
    let earlier =
        sysfs::read(node.join("driver_override")).filter(|text| !matches!(text.as_str(), "" | "(null)"));
    let mut steps = Steps { host, address, node: &node, write };
    // When this fails, nothing has changed yet.
    steps.set_override(VFIO).map_err(|error| error.context(format!("binding {address} to {VFIO}")))?;
    let Err(error) = steps.give_to_vfio() else {
        return Ok(Rebound { address, before, now: driver(&node) });
    };
    let back = steps.give_back(earlier.as_deref().unwrap_or(NOTHING));
    let now = driver(&node);
    let undone = if back.is_ok() && now == before { "undone" } else { "not undone" };
    let state = driver_now(now.as_deref());
    Err(error.context(format!("binding {address} to {VFIO} failed ({undone}, {state})")))
}

fn unbind_with(host: &Host, address: Bdf, write: Write<'_>) -> Result<Rebound> {
    let node = node(host, address)?;
    let before = driver(&node);
    let mut steps = Steps { host, address, node: &node, write };
    if before.as_deref().is_none_or(is_vfio) {
        steps.give_to_host().map_err(|error| {
            let now = driver_now(driver(&node).as_deref());
            error.context(format!("unbinding {address} from {VFIO} failed ({now})"))
        })?;
    }
    Ok(Rebound { address, before, now: driver(&node) })
}

/// What is never done.
fn refuse(host: &Host, address: Bdf, node: &Path) -> Result<()> {
    if is_bridge(&Config::read(node), class(node)) {
        return Err(Error::new(format!("{address} is a bridge, and those cannot be assigned"))
            .remedy("bind the devices behind it"));
    }
    if sriov(node).is_some_and(|sriov| sriov.enabled > 0) {
        return Err(Error::new(format!("{address} has virtual functions, which need its host driver"))
            .remedy(format!(
                "bind those, or remove them: echo 0 > {}",
                host.sys.join(format!("bus/pci/devices/{address}/sriov_numvfs")).display()
            )));
    }
    let in_use = InUse::read(host)?;
    let mut found = in_use.by(node);
    if found.is_empty() {
        found = in_use.claimed(node);
    }
    let Some(first) = found.first() else { return Ok(()) };
    let what: Vec<_> = found.iter().map(|obstacle| obstacle.what.as_str()).collect();
    let refused = Error::new(format!("refusing to take {address} from the host: {}", what.join("; ")));
    Err(refused.remedy(&first.remedy))
}

fn driver_now(driver: Option<&str>) -> String {
    driver.map_or("it has no driver now".into(), |driver| format!("its driver is {driver}"))
}

/// The writes that move a function.
struct Steps<'a> {
    host: &'a Host,
    address: Bdf,
    node: &'a Path,
    write: Write<'a>,
}

impl Steps<'_> {
    fn give_to_vfio(&mut self) -> Result<()> {
        self.leave_driver()?;
        self.probe()?;
        if driver(self.node).as_deref() == Some(VFIO) {
            return Ok(());
        }
        let remedy = if self.node.join("iommu_group").exists() {
            format!("the kernel says why: dmesg | grep {}", self.address)
        } else {
            "enable the IOMMU (intel_iommu=on, firmware): the function has no IOMMU group".to_string()
        };
        Err(Error::new(format!("{VFIO} did not take it")).remedy(remedy))
    }

    fn give_to_host(&mut self) -> Result<()> {
        self.set_override(NOTHING)?;
        self.leave_driver()?;
        self.probe()
    }

    fn give_back(&mut self, earlier: &str) -> Result<()> {
        self.set_override(earlier)?;
        if driver(self.node).is_none() { self.probe() } else { Ok(()) }
    }

    fn set_override(&mut self, driver: &str) -> Result<()> {
        self.put(self.node.join("driver_override"), driver)
    }

    fn leave_driver(&mut self) -> Result<()> {
        let driver = self.node.join("driver");
        if driver.exists() { self.put(driver.join("unbind"), &self.address.to_string()) } else { Ok(()) }
    }

    fn probe(&mut self) -> Result<()> {
        self.put(self.host.sys.join("bus/pci/drivers_probe"), &self.address.to_string())
    }

    fn put(&mut self, path: PathBuf, text: &str) -> Result<()> {
        (self.write)(&path, text).map_err(|error| sysfs::write_error(&path, text, &error))
    }
}

#[cfg(test)]
mod tests;
