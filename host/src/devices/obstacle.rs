//! What stands in the way of assigning a function, and what to do about it.

use super::config::Config;
use super::group::{Member, is_vfio};
use super::in_use::InUse;
use super::{Class, Host, VfioPaths};
use crate::pci::Bdf;
use crate::sys::access;
use serde::Serialize;
use std::path::Path;

/// A reason why a function cannot be assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// The reason.
    pub what: String,
    /// What the user can do.
    pub remedy: String,
}

impl Obstacle {
    pub(super) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

/// vfio-pci takes ordinary functions alone (`vfio_pci_core_register_device`).
pub(super) fn is_bridge(config: &Config, class: Option<Class>) -> bool {
    config.header_type.map_or_else(|| class.is_some_and(Class::is_pci_bridge), |kind| kind != 0)
}

/// What is looked at.
pub(super) struct Candidate<'a> {
    pub(super) address: Bdf,
    /// Its node in sysfs, without links.
    pub(super) node: &'a Path,
    pub(super) driver: Option<&'a str>,
    pub(super) is_bridge: bool,
    pub(super) paths: &'a VfioPaths,
    /// The others of its group.
    pub(super) others: &'a [Member],
}

/// All that is in the way, the gravest first.
pub(super) fn obstacles(host: &Host, candidate: &Candidate<'_>, in_use: &InUse) -> Vec<Obstacle> {
    let Candidate { address, node, driver, is_bridge, paths, others } = *candidate;
    if is_bridge {
        return vec![Obstacle::new("it is a bridge", "assign the devices behind it")];
    }
    let mut found = in_use.by(node);
    if paths.group.is_none() {
        found.push(Obstacle::new(
            "it has no IOMMU group",
            "enable the IOMMU: intel_iommu=on on the kernel's command line (AMD: on by default) and VT-d or AMD-Vi in \
             the firmware",
        ));
    }
    let ours = driver.is_some_and(is_vfio);
    if !ours {
        let what = driver.map_or("no driver has it".into(), |driver| format!("{driver} has it"));
        let remedy = format!("pollvisor devices bind {address}");
        found.push(Obstacle::new(format!("{what}, and vfio-pci has to"), remedy));
    }
    for other in others.iter().filter(|other| !other.is_viable()) {
        let (name, driver) = (&other.name, other.driver.as_deref().unwrap_or_default());
        let remedy = match other.address() {
            Some(_) => format!("pollvisor devices bind {name}"),
            None => format!("unbind {name} from {driver}"),
        };
        found.push(Obstacle::new(format!("{name} of its IOMMU group is driven by {driver}"), remedy));
    }
    if ours {
        found.extend(permission(host, paths));
    }
    found
}

/// The group's node with the container, or the function's own with iommufd: one of the ways is enough.
fn permission(host: &Host, paths: &VfioPaths) -> Option<Obstacle> {
    let (group, container) = (paths.group_node(host)?, host.dev.join("vfio/vfio"));
    let may = |path: &Path| access::may_read_and_write(path);
    let lacking = [&group, &container].into_iter().find(|path| !may(path))?;
    if paths.cdev.as_ref().is_some_and(|cdev| may(cdev)) && may(&host.dev.join("iommu")) {
        return None;
    }
    let name = lacking.display();
    Some(if lacking.exists() {
        Obstacle::new(format!("no permission for {name}"), format!("sudo chown $USER {name}, or run as root"))
    } else {
        Obstacle::new(format!("there is no {name}"), "modprobe vfio-pci; in a container: pass the node in")
    })
}
