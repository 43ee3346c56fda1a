//! Opening a device for VFIO, by its group and a container or by its own file and an iommufd, and closing it again.
//!
//! What is open is kept in the core's [`group`](pollvisor_core::group) tables; every system call here has its transition
//! there, so that nothing is opened that the rules forbid, and what the bus tells of a sibling finds its group.
//!
//! ```text
//!  group:  members known ─ viable? ─► open group ─► SET_CONTAINER ─► SET_IOMMU, map memory ─► KVM-VFIO ─► GET_DEVICE_FD
//!  cdev:   members known ─ viable? ─► open device ─► KVM-VFIO ─► BIND_IOMMUFD ─► IOAS with memory ─► ATTACH
//!  back:   device ─► KVM-VFIO ─► group ─► container or IOAS, with the last one
//! ```

mod news;

use super::members::{check, device_name, holder};
use crate::devices::{DeviceAddress, Host, Member, members, vfio_path};
use crate::error::{Error, Result};
use crate::sys::iommufd::{IoasId, Iommufd};
use crate::sys::kvm::VmFd;
use crate::sys::kvm::device::KvmVfio;
use crate::sys::vfio::{Container, Device, DmaAccess, Group};
use pollvisor_core::group::{
    BusEvent, CdevFile, ContainerId, DeviceFile, DeviceName, GroupError, GroupFile, GroupId, Holder,
    Resolved, Vfio,
};
use pollvisor_core::teardown::device::{Closed, Gone};
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vfio_bindings::bindings::vfio::VFIO_TYPE1v2_IOMMU;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const CONTAINERS: usize = 4;
const GROUPS: usize = 32;
const DEVICES: usize = 256;

type Tables = Vfio<Arc<Container>, (), CONTAINERS, GROUPS, DEVICES>;

/// See the module's text. One a VM.
#[derive(Debug)]
pub struct Opener {
    host: Host,
    vm: Arc<VmFd>,
    memory: Arc<GuestMemoryMmap>,
    tables: Box<Tables>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    kvm: Option<Arc<KvmVfio>>,
    groups: BTreeMap<u32, OpenGroup>,
    container: Option<(ContainerId, Arc<Container>)>,
    ioas: Option<(Arc<Iommufd>, IoasId)>,
}

#[derive(Debug)]
struct OpenGroup {
    id: GroupId,
    /// The group's own file; none when its devices are open by theirs.
    file: Option<(GroupFile, Group)>,
    /// Who is in it, by name.
    names: HashMap<String, DeviceName>,
    devices: u32,
}

/// How a device is open; to be given back to [`Opener::close`].
#[derive(Debug)]
#[must_use = "the device stays in its group's container until it is closed"]
pub struct Opening {
    group: u32,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Group(DeviceFile),
    Own(CdevFile, OwnedFd),
}

impl Opening {
    /// The device's IOMMU group.
    #[must_use]
    pub fn group(&self) -> u32 {
        self.group
    }

    /// Whether it is open by its own file and an iommufd.
    #[must_use]
    pub fn is_iommufd(&self) -> bool {
        matches!(self.way, Way::Own(..))
    }
}

fn relax() {
    std::thread::yield_now();
}

impl Opener {
    /// Opens devices for a VM with this memory, which they may reach all of and nothing else.
    #[must_use]
    pub fn new(host: Host, vm: Arc<VmFd>, memory: Arc<GuestMemoryMmap>) -> Self {
        Self { host, vm, memory, tables: Box::default(), open: Mutex::default() }
    }

    /// Opens devices that reach no memory at all: for who wants nothing but their interrupts.
    #[must_use]
    pub fn without_memory(host: Host, vm: Arc<VmFd>) -> Self {
        Self::new(host, vm, Arc::new(GuestMemoryMmap::new()))
    }

    /// Opens a device: by its own file when `iommufd` says so, or, where it says nothing, when the host offers that.
    ///
    /// # Errors
    /// No such device, no IOMMU, another driver, a group that is not viable, no permission: with what to do.
    pub fn open(&self, address: DeviceAddress, iommufd: Option<bool>) -> Result<(Device, Opening)> {
        let paths = vfio_path(&self.host, address)?;
        let told = |e: Error| e.context(address);
        if paths.noiommu {
            return Err(told(Error::new("no IOMMU confines it: it could write to all of the host's memory"))
                .remedy("switch the IOMMU on (firmware; intel_iommu=on), enable_unsafe_noiommu_mode off"));
        }
        let Some(number) = paths.group else {
            if let DeviceAddress::Mdev(uuid) = address {
                return Err(told(Error::new("no driver has it any more")).remedy(format!(
                    "pollvisor mdev remove {uuid}, and create another: a mediated device gets its driver when it is created"
                )));
            }
            return Err(told(Error::new("it is in no IOMMU group: the host has no IOMMU, or it is off"))
                .remedy("switch the IOMMU on (firmware; intel_iommu=on), then restart the host"));
        };
        let members = members(&self.host, number);
        check(address, number, &members)?;
        let own = match (iommufd, &paths.cdev) {
            (Some(true), None) => {
                return Err(told(Error::new("iommufd=on, and it has no file in /dev/vfio/devices"))
                    .remedy("a kernel with CONFIG_VFIO_DEVICE_CDEV, or iommufd=off"));
            }
            (Some(true), path) => path.as_ref(),
            (None, path) => path.as_ref().filter(|_| self.host.dev.join("iommu").exists()),
            (Some(false), _) => None,
        };
        let mut open = self.lock();
        let id = self.know(&mut open, number, &members)?;
        let opened = match own {
            Some(path) => self.open_own(&mut open, number, id, address, path),
            None => self.open_by_group(&mut open, number, id, address),
        };
        if let Some(group) = open.groups.get_mut(&number) {
            group.devices += u32::from(opened.is_ok());
        }
        if opened.is_err() {
            self.forget_if_unused(&mut open, number);
        }
        opened.map_err(told)
    }

    /// Closes a device's way after the device itself: KVM, group, container.
    pub fn close(&self, opening: Opening, closed: Closed) -> Gone {
        let mut open = self.lock();
        let Opening { group: number, way } = opening;
        if let Some(group) = open.groups.get_mut(&number) {
            group.devices -= 1;
        }
        let last = open.groups.get(&number).is_none_or(|group| group.devices == 0);
        let Ok(unlinked) = closed.leave_kvm(|| {
            let kvm = open.kvm.clone();
            // What is refused was not there; closing the files ends it all the same.
            let _removed = match (&way, open.groups.get(&number).and_then(|group| group.file.as_ref())) {
                (Way::Own(_, file), _) => kvm.map(|kvm| kvm.remove(file.as_fd())),
                (Way::Group(_), Some((_, group))) if last => kvm.map(|kvm| kvm.remove(group.as_fd())),
                _ => None,
            };
            Ok::<_, Infallible>(())
        });
        let Ok(gone) = unlinked.leave_container(|| {
            // A handle that was revoked is closed already; a driver that comes back is dropped here, without a lock of
            // the tables.
            match way {
                Way::Group(file) => drop(self.tables.close_device(file, relax)),
                Way::Own(file, duplicate) => {
                    let _closed = self.tables.close_cdev(file);
                    drop(duplicate);
                }
            }
            self.forget_if_unused(&mut open, number);
            Ok::<_, Infallible>(())
        });
        gone
    }

    /// Whether what is counted agrees with what is open.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.tables.is_consistent()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a group and who is in it into the tables.
    fn know(&self, open: &mut Open, number: u32, members: &[Member]) -> Result<GroupId> {
        if let Some(group) = open.groups.get(&number) {
            return Ok(group.id);
        }
        let told = |e: GroupError| Error::new(format!("IOMMU group {number}: {e}"));
        let id = self.tables.register(false).map_err(told)?;
        let mut names = HashMap::new();
        for member in members {
            let name = device_name(&member.name);
            names.insert(member.name.clone(), name);
            let _new = self.tables.notify(id, name, BusEvent::Add).map_err(told)?;
            match holder(member) {
                Holder::Ours => self.tables.add_device(id, name).map_err(told)?,
                Holder::Driverless => {}
                other => drop(self.tables.notify(id, name, BusEvent::Bound(other)).map_err(told)?),
            }
        }
        open.groups.insert(number, OpenGroup { id, file: None, names, devices: 0 });
        if !self.tables.is_viable(id) {
            self.forget_if_unused(open, number);
            return Err(told(GroupError::NotUsable));
        }
        Ok(id)
    }

    fn kvm(&self, open: &mut Open) -> Result<Arc<KvmVfio>> {
        if open.kvm.is_none() {
            open.kvm = Some(Arc::new(KvmVfio::new(self.vm.as_fd())?));
        }
        open.kvm.clone().ok_or_else(|| Error::new("KVM's VFIO device is gone"))
    }

    fn open_by_group(
        &self,
        open: &mut Open,
        number: u32,
        id: GroupId,
        address: DeviceAddress,
    ) -> Result<(Device, Opening)> {
        let told = |e: GroupError| Error::new(format!("IOMMU group {number}: {e}"));
        if open.groups.get(&number).is_some_and(|group| group.file.is_none()) {
            let fd = Group::open(number)?;
            if !fd.status()?.viable {
                return Err(told(GroupError::NotUsable)
                    .remedy("`pollvisor devices list` shows which driver has which device of the group"));
            }
            let file = self.tables.open_group(id, true).map_err(told)?;
            if let Err(error) = self.enter_container(open, file, &fd) {
                let _left = self.tables.close_group(file, relax);
                return Err(error);
            }
            let linked = self.kvm(open).and_then(|kvm| kvm.add(fd.as_fd()));
            if let Some(group) = open.groups.get_mut(&number) {
                group.file = Some((file, fd));
            }
            linked?;
        }
        let Some((file, fd)) = open.groups.get(&number).and_then(|group| group.file.as_ref()) else {
            return Err(told(GroupError::NoGroup));
        };
        let name = device_name(&address.to_string());
        let device_file = self.tables.get_device(*file, name).map_err(told)?;
        match fd.device(&address.to_string()) {
            Ok(device) => Ok((device, Opening { group: number, way: Way::Group(device_file) })),
            Err(error) => {
                let _closed = self.tables.close_device(device_file, relax);
                Err(error)
            }
        }
    }

    /// SET_CONTAINER, and for the first group SET_IOMMU and the guest's memory.
    fn enter_container(&self, open: &mut Open, file: GroupFile, fd: &Group) -> Result<()> {
        let told = |e: GroupError| Error::new(format!("IOMMU group {}: {e}", fd.number()));
        let (id, container) = match &open.container {
            Some((id, container)) => (*id, container.clone()),
            None => {
                let container = Arc::new(Container::open()?);
                (self.tables.open_container().map_err(told)?, container)
            }
        };
        let first = open.container.is_none();
        let entered = self.tables.set_container(file, Resolved::Container(id), relax).map_err(told);
        let entered = entered.and_then(|()| fd.set_container(&container));
        let entered = entered.and_then(|()| if first { self.set_iommu(id, &container) } else { Ok(()) });
        match entered {
            Ok(()) => {
                open.container = Some((id, container));
                Ok(())
            }
            Err(error) => {
                if first {
                    let _closed = self.tables.close_container(id);
                }
                Err(error)
            }
        }
    }

    fn set_iommu(&self, id: ContainerId, container: &Arc<Container>) -> Result<()> {
        container.set_iommu(VFIO_TYPE1v2_IOMMU)?;
        let told = |(e, _): (GroupError, _)| Error::new(format!("the container: {e}"));
        self.tables.set_iommu(id, container.clone()).map_err(told)?;
        for region in self.memory.iter() {
            let GuestAddress(iova) = region.start_addr();
            container.map(region, iova, DmaAccess::ReadWrite)?;
        }
        Ok(())
    }

    fn open_own(
        &self,
        open: &mut Open,
        number: u32,
        id: GroupId,
        address: DeviceAddress,
        path: &std::path::Path,
    ) -> Result<(Device, Opening)> {
        let told = |e: GroupError| Error::new(format!("{}: {e}", path.display()));
        let name = device_name(&address.to_string());
        let file = self.tables.open_cdev(id, name).map_err(told)?;
        let opened = self.bind_own(open, file, path);
        match opened {
            Ok((device, duplicate)) => {
                Ok((device, Opening { group: number, way: Way::Own(file, duplicate) }))
            }
            Err(error) => {
                let _closed = self.tables.close_cdev(file);
                Err(error)
            }
        }
    }

    fn bind_own(&self, open: &mut Open, file: CdevFile, path: &std::path::Path) -> Result<(Device, OwnedFd)> {
        let device = Device::open_cdev(path)?;
        let duplicate = device.as_fd().try_clone_to_owned();
        let duplicate =
            duplicate.map_err(|e| Error::os(format!("{}: a second descriptor", path.display()), &e))?;
        let kvm = self.kvm(open)?;
        kvm.add(device.as_fd())?;
        let bound = self.tables.bind(file).map_err(|e| Error::new(format!("{}: {e}", path.display())));
        let bound = bound.and_then(|()| self.ioas(open)).and_then(|(iommufd, ioas)| {
            device.bind_iommufd(&iommufd)?;
            device.attach(ioas)
        });
        if let Err(error) = bound {
            let _removed = kvm.remove(device.as_fd());
            return Err(error);
        }
        Ok((device, duplicate))
    }

    fn ioas(&self, open: &mut Open) -> Result<(Arc<Iommufd>, IoasId)> {
        if let Some((iommufd, ioas)) = &open.ioas {
            return Ok((iommufd.clone(), *ioas));
        }
        let iommufd = Arc::new(Iommufd::open()?);
        let ioas = iommufd.alloc_ioas()?;
        for region in self.memory.iter() {
            let GuestAddress(iova) = region.start_addr();
            iommufd.map(ioas, region, iova, DmaAccess::ReadWrite)?;
        }
        open.ioas = Some((iommufd.clone(), ioas));
        Ok((iommufd, ioas))
    }

    /// Closes what nobody uses any more.
    fn forget_if_unused(&self, open: &mut Open, number: u32) {
        let Some(group) = open.groups.get(&number).filter(|group| group.devices == 0) else { return };
        let id = group.id;
        let group = open.groups.remove(&number);
        for name in group.iter().flat_map(|group| group.names.values()) {
            // Those that are not ours are not there to be removed.
            let _files_are_closed = self.tables.remove_device(id, *name, relax);
        }
        if let Some((file, fd)) = group.and_then(|group| group.file) {
            drop(fd);
            // The container's driver comes back with its last group, to be dropped here.
            let _closed = self.tables.close_group(file, relax);
        }
        // Of a group that is in nobody's hands nothing is left to revoke.
        if let Ok((unlisted, revoked)) = self.tables.unlist(id, relax) {
            drop(revoked);
            let quiet = unlisted.unregister_notifier(relax);
            if let Err((not_idle, _)) = quiet.free() {
                eprintln!("pollvisor: IOMMU group {number}: {not_idle}");
            }
        }
        if open.groups.values().all(|group| group.file.is_none())
            && let Some((id, container)) = open.container.take()
        {
            let _closed = self.tables.close_container(id);
            drop(container);
        }
        if open.groups.is_empty() {
            open.ioas = None;
        }
    }
}
