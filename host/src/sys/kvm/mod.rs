//! Handles of KVM's objects: one method per ioctl, the structs of kvm-bindings, no policy.

pub mod device;
mod vcpu;

pub use vcpu::{Exit, VcpuFd};

use super::ioctl::{self as io, Ioctl};
use super::mem::Mapping;
use crate::error::{Error, Result};
use kvm_bindings as kb;
use pollvisor_core::ids::{Gsi, VcpuId};
use pollvisor_core::route::{Msi, RawRoute};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// `/dev/kvm`.
#[derive(Debug)]
pub struct Kvm(File);

impl Kvm {
    /// Opens it and checks its version.
    ///
    /// # Errors
    /// Without it, without permission, or with another version: with the remedy.
    pub fn open() -> Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/kvm").map_err(|error| {
            let error = Error::os("opening /dev/kvm", &error);
            error
                .remedy_for(
                    libc::ENOENT,
                    "a machine with virtualisation enabled in its firmware and the kvm-intel or kvm-amd module loaded \
                     (modprobe kvm-amd); inside a VM or container, /dev/kvm has to be passed in",
                )
                .remedy_for(libc::EACCES, "join the group of /dev/kvm (sudo usermod -aG kvm $USER, then log in again)")
                .remedy_for(libc::ENODEV, "load the kvm-intel or kvm-amd module; check that the firmware allows it")
                .remedy_for(libc::EBUSY, "stop the other hypervisor that has the processor's virtualisation")
        })?;
        let kvm = Self(file);
        let version = io::value(kvm.0.as_fd(), &io::KVM_GET_API_VERSION, 0)?;
        if u32::try_from(version) != Ok(kb::KVM_API_VERSION) {
            return Err(Error::new(format!(
                "KVM has API version {version}, this needs {}",
                kb::KVM_API_VERSION
            )));
        }
        Ok(kvm)
    }

    /// The value of a capability, 0 when it is not there.
    #[must_use]
    pub fn capability(&self, capability: u32) -> u32 {
        let value = io::value(self.0.as_fd(), &io::KVM_CHECK_EXTENSION, capability as usize);
        value.ok().and_then(|v| u32::try_from(v).ok()).unwrap_or(0)
    }

    /// The first ioctl of the table that this kernel does not have.
    #[must_use]
    pub fn missing(&self) -> Option<&'static str> {
        let missing =
            |entry: &&(&'static str, u32, Option<u32>)| entry.2.is_some_and(|cap| self.capability(cap) == 0);
        io::TABLE.iter().find(missing).map(|entry| entry.0)
    }

    /// A new VM.
    ///
    /// # Errors
    /// ENOMEM and the like.
    pub fn create_vm(&self) -> Result<VmFd> {
        let fd = io::value(self.0.as_fd(), &io::KVM_CREATE_VM, 0)?;
        let run_size = io::value(self.0.as_fd(), &io::KVM_GET_VCPU_MMAP_SIZE, 0)?;
        // SAFETY: just made, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(VmFd {
            fd,
            run_size: usize::try_from(run_size).unwrap_or(0),
            memory: None,
            slots: Mutex::default(),
        })
    }

    /// What CPUID this host can show a guest.
    ///
    /// # Errors
    /// The kernel's.
    pub fn supported_cpuid(&self) -> Result<Vec<kb::kvm_cpuid_entry2>> {
        let mut cpuid =
            kb::CpuId::new(kb::KVM_MAX_CPUID_ENTRIES).map_err(|_| Error::new("too many CPUID entries"))?;
        // SAFETY: the wrapper has room for as many entries as it says.
        unsafe { io::write(self.0.as_fd(), &io::KVM_GET_SUPPORTED_CPUID, cpuid.as_mut_fam_struct_ptr())? };
        Ok(cpuid.as_slice().to_vec())
    }
}

/// Memory slots that are used at the most; KVM has at least 509 (`KVM_CAP_NR_MEMSLOTS`).
const MAX_SLOTS: u32 = 500;

/// A VM. Keeps the guest's memory mapped as long as it lives.
#[derive(Debug)]
pub struct VmFd {
    fd: OwnedFd,
    run_size: usize,
    memory: Option<Arc<GuestMemoryMmap>>,
    /// What else is mapped into the guest, by slot.
    slots: Mutex<BTreeMap<u32, Arc<Mapping>>>,
}

impl AsFd for VmFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn get<T: Copy>(fd: BorrowedFd<'_>, ioctl: &Ioctl<T>, zero: T) -> Result<T> {
    let mut value = zero;
    // SAFETY: used with plain structs only, without pointers or arrays behind them.
    unsafe { io::write(fd, ioctl, &raw mut value)? };
    Ok(value)
}

fn set<T>(fd: BorrowedFd<'_>, ioctl: &Ioctl<T>, value: &T) -> Result<i32> {
    // SAFETY: used with plain structs only, without pointers or arrays behind them.
    unsafe { io::read(fd, ioctl, value) }
}

/// A `kvm_lapic_state` as bytes: the APIC's register page.
pub type Lapic = [u8; 1024];

impl VmFd {
    /// The rate of this host's TSC as its kernel knows it, in kHz.
    ///
    /// # Errors
    /// ENOTTY before Linux 5.16.
    pub fn tsc_khz(&self) -> Result<u64> {
        let khz = io::value(self.fd.as_fd(), &io::KVM_GET_TSC_KHZ, 0)?;
        Ok(u64::try_from(khz).unwrap_or(0))
    }

    /// Switches a capability on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enable(&self, capability: u32, arguments: [u64; 4]) -> Result<()> {
        let cap = kb::kvm_enable_cap { cap: capability, args: arguments, ..Default::default() };
        set(self.fd.as_fd(), &io::KVM_ENABLE_CAP, &cap).map(drop)
    }

    /// The chips all in the kernel.
    ///
    /// # Errors
    /// The kernel's; EEXIST when there are chips.
    pub fn create_irqchip(&self) -> Result<()> {
        io::value(self.fd.as_fd(), &io::KVM_CREATE_IRQCHIP, 0).map(drop)
    }

    /// Where three pages of guest-physical address space are free, which some processors need.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_tss_address(&self, address: u32) -> Result<()> {
        io::value(self.fd.as_fd(), &io::KVM_SET_TSS_ADDR, address as usize).map(drop)
    }

    /// Gives the guest its memory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn map_memory(&mut self, memory: Arc<GuestMemoryMmap>) -> Result<()> {
        for (slot, region) in memory.iter().enumerate() {
            let host = memory
                .get_host_address(region.start_addr())
                .map_err(|e| Error::new(format!("guest memory at {:#x}: {e}", region.start_addr().0)))?;
            let slot = u32::try_from(slot).map_err(|_| Error::new("too many memory regions"))?;
            let entry = kb::kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the region is a mapping that `memory` owns, and `self` keeps `memory` below.
            unsafe { io::read(self.fd.as_fd(), &io::KVM_SET_USER_MEMORY_REGION, &raw const entry)? };
        }
        self.memory = Some(memory);
        Ok(())
    }

    /// Maps device memory into the guest at `address`; the slot's number.
    ///
    /// # Errors
    /// EINVAL for what is not whole pages, EEXIST where it overlaps another slot, ENOSPC without a free slot.
    pub fn add_slot(&self, address: u64, mapping: &Arc<Mapping>) -> Result<u32> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let first = self.memory.as_ref().map_or(0, |memory| memory.num_regions());
        let first = u32::try_from(first).unwrap_or(u32::MAX);
        let free = (first..MAX_SLOTS).find(|slot| !slots.contains_key(slot));
        let slot = free.ok_or_else(|| Error::new("all memory slots of the VM are taken (ENOSPC)"))?;
        let entry = kb::kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: address,
            memory_size: mapping.length() as u64,
            userspace_addr: mapping.address() as u64,
        };
        // SAFETY: the mapping lives as long as its slot, in `slots`. It is not memory that Rust refers to.
        let added = unsafe { io::read(self.fd.as_fd(), &io::KVM_SET_USER_MEMORY_REGION, &raw const entry) };
        added.map_err(|e| e.context(format!("mapping {} bytes at {address:#x}", mapping.length())))?;
        slots.insert(slot, mapping.clone());
        Ok(slot)
    }

    /// Takes a slot of [`add_slot`](Self::add_slot) out of the guest. No vCPU sees it when this returns.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_slot(&self, slot: u32) -> Result<()> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if !slots.contains_key(&slot) {
            return Err(Error::new(format!("memory slot {slot} is not in use")));
        }
        let entry = kb::kvm_userspace_memory_region { slot, ..Default::default() };
        set(self.fd.as_fd(), &io::KVM_SET_USER_MEMORY_REGION, &entry)?;
        slots.remove(&slot);
        Ok(())
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> Option<&Arc<GuestMemoryMmap>> {
        self.memory.as_ref()
    }

    /// A virtual CPU.
    ///
    /// # Errors
    /// The kernel's; EEXIST, EINVAL for an ID out of range.
    pub fn create_vcpu(&self, id: VcpuId) -> Result<VcpuFd> {
        let fd = io::value(self.fd.as_fd(), &io::KVM_CREATE_VCPU, id.0 as usize)?;
        // SAFETY: just made, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        VcpuFd::new(fd, self.run_size, id, self.memory.clone())
    }

    /// Injects a message; whether a LAPIC accepted it. The hot call: one ioctl, nothing else.
    ///
    /// # Errors
    /// The kernel's, as an error number.
    #[inline]
    pub fn signal_msi(&self, msi: &Msi) -> std::result::Result<bool, i32> {
        let argument = kb::kvm_msi {
            address_lo: msi.address_lo,
            address_hi: msi.address_hi,
            data: msi.data,
            flags: if msi.devid.is_some() { kb::KVM_MSI_VALID_DEVID } else { 0 },
            devid: msi.devid.unwrap_or(0),
            pad: [0; 12],
        };
        let number = libc::c_ulong::from(io::KVM_SIGNAL_MSI.number);
        // SAFETY: reads one plain struct.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), number, &raw const argument) };
        if result < 0 {
            return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
        }
        Ok(result > 0)
    }

    /// Sets a line of the kernel's own chips.
    ///
    /// # Errors
    /// ENXIO without chips.
    pub fn irq_line(&self, gsi: Gsi, level: bool) -> Result<()> {
        let mut line = kb::kvm_irq_level { level: level.into(), ..Default::default() };
        line.__bindgen_anon_1.irq = gsi.0;
        set(self.fd.as_fd(), &io::KVM_IRQ_LINE, &line).map(drop)
    }

    /// Replaces the kernel's GSI routing table, unchecked.
    ///
    /// # Errors
    /// EINVAL for every mistake that [`pollvisor_core::route`] knows.
    pub fn set_gsi_routing(&self, flags: u32, routes: &[RawRoute]) -> Result<()> {
        let mut table = RoutingTable::new(routes, flags);
        // SAFETY: `nr` entries follow the header, in one allocation.
        unsafe { io::read(self.fd.as_fd(), &io::KVM_SET_GSI_ROUTING, table.pointer())? };
        Ok(())
    }

    /// Binds an eventfd to a GSI in the kernel, or unbinds it; flags are `KVM_IRQFD_FLAG_*`.
    ///
    /// # Errors
    /// Those of [`pollvisor_core::irqfd::AssignError`].
    pub fn irqfd(&self, event: i32, gsi: Gsi, flags: u32, resample: Option<i32>) -> Result<()> {
        let argument = kb::kvm_irqfd {
            fd: event.cast_unsigned(),
            gsi: gsi.0,
            flags,
            resamplefd: resample.map_or(0, i32::cast_unsigned),
            pad: [0; 16],
        };
        set(self.fd.as_fd(), &io::KVM_IRQFD, &argument).map(drop)
    }

    /// The state of one of the kernel's chips (0, 1: PICs, 2: I/O APIC).
    ///
    /// # Errors
    /// ENXIO without chips, EINVAL for another one.
    pub fn irqchip(&self, chip: u32) -> Result<kb::kvm_irqchip> {
        get(self.fd.as_fd(), &io::KVM_GET_IRQCHIP, kb::kvm_irqchip { chip_id: chip, ..Default::default() })
    }

    /// Sets the state of one of the kernel's chips.
    ///
    /// # Errors
    /// As [`irqchip`](Self::irqchip).
    pub fn set_irqchip(&self, state: &kb::kvm_irqchip) -> Result<()> {
        set(self.fd.as_fd(), &io::KVM_SET_IRQCHIP, state).map(drop)
    }
}

/// What a chip's state is made of: the bytes behind [`VmFd::irqchip`]'s number.
pub type ChipBytes = [u8; 512];

/// A chip's state as bytes.
#[must_use]
pub fn chip_bytes(state: &kb::kvm_irqchip) -> ChipBytes {
    // SAFETY: the union's largest member, plain bytes; the kernel or `chip_from` wrote them all.
    unsafe { state.chip.dummy }.map(i8::cast_unsigned)
}

/// The state of the chip `id` from its bytes.
#[must_use]
pub fn chip_from(id: u32, bytes: &ChipBytes) -> kb::kvm_irqchip {
    let mut state = kb::kvm_irqchip { chip_id: id, ..Default::default() };
    state.chip.dummy = bytes.map(u8::cast_signed);
    state
}

/// `struct kvm_irq_routing` with its entries behind it, more than the kernel takes if need be.
struct RoutingTable(Vec<u64>);

impl RoutingTable {
    fn new(routes: &[RawRoute], flags: u32) -> Self {
        const WORDS: usize = size_of::<kb::kvm_irq_routing_entry>() / 8;
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let count = u32::try_from(routes.len()).unwrap_or(u32::MAX);
        let mut words = Vec::with_capacity(1 + routes.len() * WORDS);
        words.push(pair(count, flags));
        for route in routes {
            words.push(pair(route.gsi, route.kind));
            words.push(pair(route.flags, 0));
            words.push(pair(route.words[0], route.words[1]));
            words.push(pair(route.words[2], route.words[3]));
            words.resize(words.len() + WORDS - 4, 0);
        }
        Self(words)
    }

    fn pointer(&mut self) -> *const kb::kvm_irq_routing {
        self.0.as_ptr().cast()
    }
}
