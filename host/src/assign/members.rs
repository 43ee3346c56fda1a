//! Who is in an IOMMU group, as the core knows them.

use crate::devices::{DeviceAddress, Member};
use crate::error::{Error, Result};
use pollvisor_core::group::{DeviceName, Holder};
use std::hash::{DefaultHasher, Hash, Hasher};

/// What is in the way of a device, said before anything is opened.
pub(super) fn check(address: DeviceAddress, number: u32, members: &[Member]) -> Result<()> {
    let name = address.to_string();
    let own = members.iter().find(|member| member.name == name);
    if let Some(member) = own
        && holder(member) != Holder::Ours
    {
        let driver = member.driver.as_deref().unwrap_or("no driver");
        return Err(Error::new(format!("{name} has {driver}, not vfio-pci"))
            .remedy(format!("pollvisor devices bind {name}")));
    }
    let foreign = members.iter().find(|member| !member.is_viable());
    if let Some(member) = foreign {
        let driver = member.driver.as_deref().unwrap_or("none");
        return Err(Error::new(format!(
            "{name}: its IOMMU group {number} is not viable: {} of the same group has the host's driver {driver}",
            member.name
        ))
        .remedy(format!("pollvisor devices bind {}, or a slot whose devices are isolated by ACS", member.name)));
    }
    Ok(())
}

/// Who holds a device, to the core.
pub(super) fn holder(member: &Member) -> Holder {
    match member.driver.as_deref() {
        None => Holder::Driverless,
        Some("pci-stub") => Holder::Stub,
        Some("pcieport") if member.is_viable() => Holder::Bridge,
        Some(_) if member.is_viable() => Holder::Ours,
        Some(_) => Holder::Foreign,
    }
}

/// A device's name to the core: its own, hashed. Names of one group differ, and are few.
pub(super) fn device_name(name: &str) -> DeviceName {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    DeviceName(hasher.finish())
}
