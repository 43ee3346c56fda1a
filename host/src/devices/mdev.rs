//! Mediated devices: parts of a parent device that its driver makes on demand
//! (`Documentation/driver-api/vfio-mediated-device.rst`).

use super::sysfs::{self, Write};
use super::{DeviceAddress, Host, group, paths};
use crate::error::{Error, Result};
use pollvisor_core::mediated::Uuid;
use serde::{Serialize, Serializer};
use std::path::Path;

/// A kind of device that a parent can make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MdevType {
    /// The parent's name in `/sys/class/mdev_bus`, for PCI its address.
    pub parent: String,
    /// What `create` knows it by.
    pub id: String,
    /// Its name for people.
    pub name: Option<String>,
    /// What it is, in the driver's words.
    pub description: Option<String>,
    /// How many more can be made; `None`: not said.
    pub available: Option<u32>,
    /// The API of the device made, `vfio-pci` and others.
    pub device_api: Option<String>,
}

/// A mediated device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mdev {
    /// Its name.
    #[serde(serialize_with = "text")]
    pub uuid: Uuid,
    /// Who made it.
    pub parent: Option<String>,
    /// The [`MdevType::id`] that it is of.
    pub mdev_type: Option<String>,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its group.
    pub iommu_group: Option<u32>,
}

fn text<S: Serializer>(uuid: &Uuid, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(uuid)
}

/// The types that the host's parents offer; none without a parent.
#[must_use]
pub fn types(host: &Host) -> Vec<MdevType> {
    let parents = host.sys.join("class/mdev_bus");
    let of = |parent: String| {
        let folder = parents.join(&parent).join("mdev_supported_types");
        sysfs::names(&folder).into_iter().map(move |id| {
            let attribute = |name: &str| sysfs::read(folder.join(&id).join(name));
            MdevType {
                name: attribute("name"),
                description: attribute("description"),
                available: attribute("available_instances").and_then(|text| text.parse().ok()),
                device_api: attribute("device_api"),
                parent: parent.clone(),
                id,
            }
        })
    };
    sysfs::names(&parents).into_iter().flat_map(of).collect()
}

/// The mediated devices there are.
#[must_use]
pub fn devices(host: &Host) -> Vec<Mdev> {
    let folder = host.sys.join("bus/mdev/devices");
    let device = |name: String| {
        let node = folder.join(&name);
        let real = node.canonicalize().ok();
        let parent = real.as_ref().and_then(|real| real.parent()?.file_name()?.to_str());
        Some(Mdev {
            uuid: name.parse().ok()?,
            parent: parent.map(ToString::to_string),
            mdev_type: sysfs::link_name(node.join("mdev_type")),
            driver: group::driver(&node),
            iommu_group: group::group(&node),
        })
    };
    sysfs::names(&folder).into_iter().filter_map(device).collect()
}

/// Has `parent` make a device of the type `id`, named `uuid` or else by a random UUID; its name.
///
/// # Errors
/// The kernel's: EEXIST for a UUID in use, EUSERS or ENOSPC without instances left, as the parent's driver says it, ENODEV
/// when the parent is not there or is going. EINVAL for what is not a UUID.
pub fn create(host: &Host, parent: &str, id: &str, uuid: Option<&str>) -> Result<Uuid> {
    create_with(host, parent, id, uuid, &mut sysfs::write)
}

/// Removes a device.
///
/// # Errors
/// The kernel's: ENODEV when there is none, EAGAIN while it is made or removed. EINVAL for what is not a UUID.
pub fn remove(host: &Host, uuid: &str) -> Result<Uuid> {
    remove_with(host, uuid, &mut sysfs::write)
}

fn create_with(host: &Host, parent: &str, id: &str, uuid: Option<&str>, write: Write<'_>) -> Result<Uuid> {
    let uuid = match uuid {
        Some(text) => parse(text)?,
        None => random(host)?,
    };
    let types = types(host);
    let mut offered = types.iter().filter(|offer| offer.parent == parent).peekable();
    if offered.peek().is_none() {
        return Err(os(format!("`{parent}` is no parent of mediated devices"), libc::ENODEV)
            .remedy("load its driver's support for them; `pollvisor mdev list` shows the parents"));
    }
    let ids: Vec<_> = offered.map(|offer| offer.id.as_str()).collect();
    if !ids.contains(&id) {
        return Err(os(format!("{parent} makes no mediated devices of type `{id}`"), libc::EINVAL)
            .remedy(format!("one of its types: {}", ids.join(", "))));
    }
    let path =
        host.sys.join("class/mdev_bus").join(parent).join("mdev_supported_types").join(id).join("create");
    put(&path, &uuid.to_string(), write).map_err(|error| {
        const NONE_LEFT: &str = "remove a mediated device of this parent first: no instances are left";
        // Of a parent that went between the look and the write, nothing is there to be written to.
        let gone = || os(format!("{parent} makes no mediated devices any more"), libc::ENODEV);
        let error = if error.errno() == Some(libc::ENOENT) { gone() } else { error };
        error
            .remedy_for(libc::EEXIST, "choose another UUID: a mediated device has this one")
            .remedy_for(libc::EUSERS, NONE_LEFT)
            .remedy_for(libc::ENOSPC, NONE_LEFT)
            .remedy_for(libc::ENODEV, "the parent is going away: wait for its driver to come back")
            .remedy_for(libc::EINVAL, "the driver refuses: the kernel may say why (dmesg)")
    })?;
    Ok(uuid)
}

fn remove_with(host: &Host, uuid: &str, write: Write<'_>) -> Result<Uuid> {
    let uuid = parse(uuid)?;
    let address = DeviceAddress::Mdev(uuid);
    let node = address.node(host);
    if !node.is_dir() {
        return Err(paths::missing(address));
    }
    let busy = || os(format!("{address} is being made or removed"), libc::EAGAIN);
    // The kernel makes this link last and takes it away first. Before it is there, `remove` would answer EAGAIN and be gone
    // all the same (`remove_store`): nobody could remove the device any more.
    let removed =
        if node.join("mdev_type").is_symlink() { put(&node.join("remove"), "1", write) } else { Err(busy()) };
    removed.map_err(|error| {
        let error = match error.errno() {
            // Somebody else's removal took it, which may wait for a VMM.
            Some(libc::ENOENT | libc::EAGAIN) if node.is_dir() => busy(),
            Some(libc::ENOENT | libc::EAGAIN) => return paths::missing(address),
            _ => error,
        };
        error
            .remedy_for(
                libc::EAGAIN,
                "try again when that is over; a removal waits until the VMM that has it gives it back. What stays so goes \
                 with its parent's driver (modprobe -r)",
            )
            .remedy_for(libc::ENODEV, "it is gone already")
            .remedy_for(libc::EBUSY, "stop the VMM that has it")
    })?;
    Ok(uuid)
}

fn put(path: &Path, text: &str, write: Write<'_>) -> Result<()> {
    write(path, text).map_err(|error| sysfs::write_error(path, text, &error))
}

fn parse(text: &str) -> Result<Uuid> {
    text.parse().map_err(|bad| {
        os(format!("`{text}`: {bad}"), libc::EINVAL).remedy("leave it out, and a random one is taken")
    })
}

/// A version 4 UUID from the kernel.
fn random(host: &Host) -> Result<Uuid> {
    parse(sysfs::must_read(&host.proc.join("sys/kernel/random/uuid"))?.trim())
}

fn os(what: String, errno: i32) -> Error {
    Error::os(what, &std::io::Error::from_raw_os_error(errno))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
    const PARENT: &str = "0000:00:02.0";

    /// A GPU that offers one type.
    fn parent() -> (Fixture, String) {
        let fixture = Fixture::new();
        let at = fixture.pci(PARENT, 0x03_0000, Some("i915"), None);
        let kind = format!("{at}/mdev_supported_types/i915-GVTg_V5_4");
        fixture.file(&format!("{kind}/available_instances"), "2\n");
        fixture.file(&format!("{kind}/device_api"), "vfio-pci\n");
        fixture.file(&format!("{kind}/description"), "low_gm_size: 128MB\n");
        fixture.file(&format!("{kind}/create"), "");
        fixture.link(&format!("sys/class/mdev_bus/{PARENT}"), &fixture.path(&at));
        (fixture, at)
    }

    fn device(fixture: &Fixture, at: &str) {
        let node = fixture.folder(&format!("{at}/{UUID}"));
        fixture.file(&format!("{at}/{UUID}/remove"), "");
        let kind = fixture.path(&format!("{at}/mdev_supported_types/i915-GVTg_V5_4"));
        fixture.link(&format!("{at}/{UUID}/mdev_type"), &kind);
        fixture.link(&format!("sys/bus/mdev/devices/{UUID}"), &node);
    }

    #[test]
    fn types_and_devices() {
        let (fixture, at) = parent();
        let offer = MdevType {
            parent: PARENT.into(),
            id: "i915-GVTg_V5_4".into(),
            name: None,
            description: Some("low_gm_size: 128MB".into()),
            available: Some(2),
            device_api: Some("vfio-pci".into()),
        };
        assert_eq!(types(&fixture.host), [offer]);
        assert!(devices(&fixture.host).is_empty());
        device(&fixture, &at);
        let uuid = UUID.parse().expect("a UUID");
        let mdev_type = Some("i915-GVTg_V5_4".into());
        let expected = Mdev { uuid, parent: Some(PARENT.into()), mdev_type, driver: None, iommu_group: None };
        assert_eq!(devices(&fixture.host), [expected]);
        assert!(types(&Fixture::new().host).is_empty());
    }

    #[test]
    fn made_and_removed_by_one_write() {
        let (fixture, at) = parent();
        let upper = UUID.to_uppercase();
        assert_eq!(
            create(&fixture.host, PARENT, "i915-GVTg_V5_4", Some(&upper)),
            Ok(UUID.parse().expect("it"))
        );
        assert_eq!(fixture.read(&format!("{at}/mdev_supported_types/i915-GVTg_V5_4/create")), UUID);
        device(&fixture, &at);
        remove(&fixture.host, UUID).expect("removed");
        assert_eq!(fixture.read(&format!("{at}/{UUID}/remove")), "1");
    }

    #[test]
    fn a_random_name_is_the_kernels() {
        let (fixture, at) = parent();
        let error = create(&fixture.host, PARENT, "i915-GVTg_V5_4", None).expect_err("no /proc file");
        assert_eq!(error.errno(), Some(libc::ENOENT));
        fixture.file("proc/sys/kernel/random/uuid", format!("{UUID}\n"));
        create(&fixture.host, PARENT, "i915-GVTg_V5_4", None).expect("made");
        assert_eq!(fixture.read(&format!("{at}/mdev_supported_types/i915-GVTg_V5_4/create")), UUID);
    }

    #[test]
    fn the_kernels_errors_pass_through_with_a_remedy() {
        let (fixture, at) = parent();
        let fails = |errno| move |_: &Path, _: &str| Err(std::io::Error::from_raw_os_error(errno));
        for (errno, word) in [
            (libc::EEXIST, "another UUID"),
            (libc::EUSERS, "no instances are left"),
            (libc::ENOSPC, "no instances are left"),
            (libc::ENODEV, "going away"),
            (libc::EACCES, "root"),
        ] {
            let error = create_with(&fixture.host, PARENT, "i915-GVTg_V5_4", Some(UUID), &mut fails(errno))
                .expect_err(word);
            assert_eq!(error.errno(), Some(errno));
            assert!(error.to_string().contains(word), "{error}");
        }
        device(&fixture, &at);
        for (errno, word) in [(libc::EAGAIN, "try again"), (libc::ENODEV, "gone"), (libc::EPERM, "root")] {
            let error = remove_with(&fixture.host, UUID, &mut fails(errno)).expect_err(word);
            assert_eq!(error.errno(), Some(errno));
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn one_that_comes_or_goes_is_not_written_to() {
        let (fixture, at) = parent();
        device(&fixture, &at);
        let gone = |_: &Path, _: &str| Err(std::io::Error::from_raw_os_error(libc::ENOENT));
        let error =
            remove_with(&fixture.host, UUID, &mut { gone }).expect_err("another's removal took the file");
        assert_eq!(error.errno(), Some(libc::EAGAIN), "{error}");
        std::fs::remove_file(fixture.path(&format!("{at}/{UUID}/mdev_type"))).expect("the link");
        let error = remove_with(&fixture.host, UUID, &mut |_, _| panic!("a write")).expect_err("half there");
        assert_eq!(error.errno(), Some(libc::EAGAIN), "{error}");
        let error = create_with(&fixture.host, PARENT, "i915-GVTg_V5_4", Some(UUID), &mut { gone });
        assert_eq!(error.expect_err("the parent is gone").errno(), Some(libc::ENODEV));
    }

    #[test]
    fn wrong_names_write_nothing() {
        let (fixture, at) = parent();
        let host = &fixture.host;
        let mut never = |_: &Path, _: &str| panic!("a write");
        for bad in ["", "x", "83b8f4f2509f382f3c1ee6bfe0fa1001", "../../../../../../etc"] {
            let error = create_with(host, PARENT, "i915-GVTg_V5_4", Some(bad), &mut never).expect_err(bad);
            assert_eq!(error.errno(), Some(libc::EINVAL));
            assert_eq!(remove_with(host, bad, &mut never).expect_err(bad).errno(), Some(libc::EINVAL));
        }
        let error =
            create_with(host, "../x", "i915-GVTg_V5_4", Some(UUID), &mut never).expect_err("no parent");
        assert_eq!(error.errno(), Some(libc::ENODEV));
        let error = create_with(host, PARENT, "other", Some(UUID), &mut never).expect_err("no type");
        assert!(error.to_string().contains("i915-GVTg_V5_4"), "{error}");
        assert_eq!(remove_with(host, UUID, &mut never).expect_err("unknown").errno(), Some(libc::ENODEV));
        assert_eq!(fixture.read(&format!("{at}/mdev_supported_types/i915-GVTg_V5_4/create")), "");
    }
}
