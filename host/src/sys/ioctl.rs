//! Ioctls as a table: one constant each, its number made from the type that it carries.
//!
//! `_IOC(dir, type, nr, size)` of `asm-generic/ioctl.h`. VFIO's and iommufd's numbers carry no size; their structs
//! say it, see [`super::sized`].

use crate::error::{Error, Result};
use iommufd_bindings as ib;
use kvm_bindings as kb;
use std::ffi::c_char;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use vfio_bindings::bindings::vfio as vb;

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

const fn ioc(direction: u32, kind: u32, nr: u32, size: usize) -> u32 {
    assert!(size < 1 << 14);
    #[allow(clippy::cast_possible_truncation, reason = "checked above")]
    let size = size as u32;
    direction << 30 | size << 16 | kind << 8 | nr
}

/// How the argument is passed.
#[derive(Debug)]
pub enum Arg {
    /// A plain number, or nothing.
    Value,
    /// A struct the kernel reads.
    Read,
    /// A struct the kernel writes, and may read.
    Write,
}

/// One ioctl that carries a `T`.
#[derive(Debug)]
pub struct Ioctl<T> {
    /// Its request number.
    pub number: u32,
    /// Its name in the kernel's headers.
    pub name: &'static str,
    /// The `KVM_CAP_*` that says whether it is there, where one does.
    pub capability: Option<u32>,
    carries: PhantomData<fn(T)>,
}

const KVMIO: u32 = kb::KVMIO;

const fn make<T>(number: u32, name: &'static str, capability: Option<u32>) -> Ioctl<T> {
    Ioctl { number, name, capability, carries: PhantomData }
}
const fn io(nr: u32, name: &'static str) -> Ioctl<()> {
    make(ioc(NONE, KVMIO, nr, 0), name, None)
}
const fn iow<T>(nr: u32, name: &'static str, capability: Option<u32>) -> Ioctl<T> {
    make(ioc(WRITE, KVMIO, nr, size_of::<T>()), name, capability)
}
const fn ior<T>(nr: u32, name: &'static str, capability: Option<u32>) -> Ioctl<T> {
    make(ioc(READ, KVMIO, nr, size_of::<T>()), name, capability)
}
const fn iowr<T>(nr: u32, name: &'static str, capability: Option<u32>) -> Ioctl<T> {
    make(ioc(READ | WRITE, KVMIO, nr, size_of::<T>()), name, capability)
}
const fn vfio<T>(nr: u32, name: &'static str) -> Ioctl<T> {
    make(ioc(NONE, vb::VFIO_TYPE as u32, vb::VFIO_BASE + nr, 0), name, None)
}
const fn iommufd<T>(nr: u32, name: &'static str) -> Ioctl<T> {
    make(ioc(NONE, ib::IOMMUFD_TYPE as u32, nr, 0), name, None)
}

macro_rules! table {
    ($($name:ident : $type:ty = $make:expr;)*) => {
        $(#[doc = concat!("`", stringify!($name), "`")] pub const $name: Ioctl<$type> = $make;)*
        /// Every entry: name, number, capability. For tests and for people.
        pub const TABLE: &[(&str, u32, Option<u32>)] = &[$((stringify!($name), $name.number, $name.capability)),*];
    };
}

table! {
    KVM_GET_API_VERSION: () = io(0x00, "KVM_GET_API_VERSION");
    KVM_CREATE_VM: () = io(0x01, "KVM_CREATE_VM");
    KVM_CHECK_EXTENSION: () = io(0x03, "KVM_CHECK_EXTENSION");
    KVM_GET_VCPU_MMAP_SIZE: () = io(0x04, "KVM_GET_VCPU_MMAP_SIZE");
    KVM_GET_SUPPORTED_CPUID: kb::kvm_cpuid2 = iowr(0x05, "KVM_GET_SUPPORTED_CPUID", Some(kb::KVM_CAP_EXT_CPUID));
    KVM_GET_TSC_KHZ: () = io(0xa3, "KVM_GET_TSC_KHZ");
    KVM_CREATE_VCPU: () = io(0x41, "KVM_CREATE_VCPU");
    KVM_SET_USER_MEMORY_REGION: kb::kvm_userspace_memory_region =
        iow(0x46, "KVM_SET_USER_MEMORY_REGION", Some(kb::KVM_CAP_USER_MEMORY));
    KVM_SET_TSS_ADDR: () = io(0x47, "KVM_SET_TSS_ADDR");
    KVM_CREATE_IRQCHIP: () = io(0x60, "KVM_CREATE_IRQCHIP");
    KVM_IRQ_LINE: kb::kvm_irq_level = iow(0x61, "KVM_IRQ_LINE", Some(kb::KVM_CAP_IRQCHIP));
    KVM_GET_IRQCHIP: kb::kvm_irqchip = iowr(0x62, "KVM_GET_IRQCHIP", Some(kb::KVM_CAP_IRQCHIP));
    KVM_SET_IRQCHIP: kb::kvm_irqchip = ior(0x63, "KVM_SET_IRQCHIP", Some(kb::KVM_CAP_IRQCHIP));
    KVM_SET_GSI_ROUTING: kb::kvm_irq_routing = iow(0x6a, "KVM_SET_GSI_ROUTING", Some(kb::KVM_CAP_IRQ_ROUTING));
    KVM_IRQFD: kb::kvm_irqfd = iow(0x76, "KVM_IRQFD", Some(kb::KVM_CAP_IRQFD));
    KVM_RUN: () = io(0x80, "KVM_RUN");
    KVM_GET_REGS: kb::kvm_regs = ior(0x81, "KVM_GET_REGS", None);
    KVM_SET_REGS: kb::kvm_regs = iow(0x82, "KVM_SET_REGS", None);
    KVM_GET_SREGS: kb::kvm_sregs = ior(0x83, "KVM_GET_SREGS", None);
    KVM_SET_SREGS: kb::kvm_sregs = iow(0x84, "KVM_SET_SREGS", None);
    KVM_GET_MSRS: kb::kvm_msrs = iowr(0x88, "KVM_GET_MSRS", None);
    KVM_SET_MSRS: kb::kvm_msrs = iow(0x89, "KVM_SET_MSRS", None);
    KVM_GET_LAPIC: kb::kvm_lapic_state = ior(0x8e, "KVM_GET_LAPIC", Some(kb::KVM_CAP_IRQCHIP));
    KVM_SET_LAPIC: kb::kvm_lapic_state = iow(0x8f, "KVM_SET_LAPIC", Some(kb::KVM_CAP_IRQCHIP));
    KVM_INTERRUPT: kb::kvm_interrupt = iow(0x86, "KVM_INTERRUPT", None);
    KVM_SET_CPUID2: kb::kvm_cpuid2 = iow(0x90, "KVM_SET_CPUID2", Some(kb::KVM_CAP_EXT_CPUID));
    KVM_GET_MP_STATE: kb::kvm_mp_state = ior(0x98, "KVM_GET_MP_STATE", Some(kb::KVM_CAP_MP_STATE));
    KVM_SET_MP_STATE: kb::kvm_mp_state = iow(0x99, "KVM_SET_MP_STATE", Some(kb::KVM_CAP_MP_STATE));
    KVM_GET_VCPU_EVENTS: kb::kvm_vcpu_events = ior(0x9f, "KVM_GET_VCPU_EVENTS", Some(kb::KVM_CAP_VCPU_EVENTS));
    KVM_SET_VCPU_EVENTS: kb::kvm_vcpu_events = iow(0xa0, "KVM_SET_VCPU_EVENTS", Some(kb::KVM_CAP_VCPU_EVENTS));
    KVM_ENABLE_CAP: kb::kvm_enable_cap = iow(0xa3, "KVM_ENABLE_CAP", Some(kb::KVM_CAP_ENABLE_CAP_VM));
    KVM_SIGNAL_MSI: kb::kvm_msi = iow(0xa5, "KVM_SIGNAL_MSI", Some(kb::KVM_CAP_SIGNAL_MSI));
    // Linux 6.1 has these on x86 and does not say so by KVM_CAP_DEVICE_CTRL.
    KVM_CREATE_DEVICE: kb::kvm_create_device = iowr(0xe0, "KVM_CREATE_DEVICE", None);
    KVM_SET_DEVICE_ATTR: kb::kvm_device_attr = iow(0xe1, "KVM_SET_DEVICE_ATTR", None);
    KVM_GET_DEVICE_ATTR: kb::kvm_device_attr = iow(0xe2, "KVM_GET_DEVICE_ATTR", None);
    VFIO_GET_API_VERSION: () = vfio(0, "VFIO_GET_API_VERSION");
    VFIO_CHECK_EXTENSION: () = vfio(1, "VFIO_CHECK_EXTENSION");
    VFIO_SET_IOMMU: () = vfio(2, "VFIO_SET_IOMMU");
    VFIO_GROUP_GET_STATUS: vb::vfio_group_status = vfio(3, "VFIO_GROUP_GET_STATUS");
    VFIO_GROUP_SET_CONTAINER: i32 = vfio(4, "VFIO_GROUP_SET_CONTAINER");
    VFIO_GROUP_UNSET_CONTAINER: () = vfio(5, "VFIO_GROUP_UNSET_CONTAINER");
    VFIO_GROUP_GET_DEVICE_FD: c_char = vfio(6, "VFIO_GROUP_GET_DEVICE_FD");
    VFIO_DEVICE_GET_INFO: vb::vfio_device_info = vfio(7, "VFIO_DEVICE_GET_INFO");
    VFIO_DEVICE_GET_REGION_INFO: vb::vfio_region_info = vfio(8, "VFIO_DEVICE_GET_REGION_INFO");
    VFIO_DEVICE_GET_IRQ_INFO: vb::vfio_irq_info = vfio(9, "VFIO_DEVICE_GET_IRQ_INFO");
    VFIO_DEVICE_SET_IRQS: vb::vfio_irq_set = vfio(10, "VFIO_DEVICE_SET_IRQS");
    VFIO_DEVICE_RESET: () = vfio(11, "VFIO_DEVICE_RESET");
    VFIO_IOMMU_GET_INFO: vb::vfio_iommu_type1_info = vfio(12, "VFIO_IOMMU_GET_INFO");
    VFIO_IOMMU_MAP_DMA: vb::vfio_iommu_type1_dma_map = vfio(13, "VFIO_IOMMU_MAP_DMA");
    VFIO_IOMMU_UNMAP_DMA: vb::vfio_iommu_type1_dma_unmap = vfio(14, "VFIO_IOMMU_UNMAP_DMA");
    VFIO_DEVICE_BIND_IOMMUFD: vb::vfio_device_bind_iommufd = vfio(18, "VFIO_DEVICE_BIND_IOMMUFD");
    VFIO_DEVICE_ATTACH_IOMMUFD_PT: vb::vfio_device_attach_iommufd_pt = vfio(19, "VFIO_DEVICE_ATTACH_IOMMUFD_PT");
    VFIO_DEVICE_DETACH_IOMMUFD_PT: vb::vfio_device_detach_iommufd_pt = vfio(20, "VFIO_DEVICE_DETACH_IOMMUFD_PT");
    IOMMU_DESTROY: ib::iommu_destroy = iommufd(ib::IOMMUFD_CMD_DESTROY, "IOMMU_DESTROY");
    IOMMU_IOAS_ALLOC: ib::iommu_ioas_alloc = iommufd(ib::IOMMUFD_CMD_IOAS_ALLOC, "IOMMU_IOAS_ALLOC");
    IOMMU_IOAS_IOVA_RANGES: ib::iommu_ioas_iova_ranges = iommufd(ib::IOMMUFD_CMD_IOAS_IOVA_RANGES, "IOMMU_IOAS_IOVA_RANGES");
    IOMMU_IOAS_MAP: ib::iommu_ioas_map = iommufd(ib::IOMMUFD_CMD_IOAS_MAP, "IOMMU_IOAS_MAP");
    IOMMU_IOAS_UNMAP: ib::iommu_ioas_unmap = iommufd(ib::IOMMUFD_CMD_IOAS_UNMAP, "IOMMU_IOAS_UNMAP");
}

/// An ioctl that carries a number or nothing.
///
/// # Errors
/// The kernel's, naming the ioctl.
pub fn value(fd: BorrowedFd<'_>, ioctl: &Ioctl<()>, argument: usize) -> Result<i32> {
    // SAFETY: ioctls of `Ioctl<()>` take no pointer.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(ioctl.number), argument) };
    checked(ioctl.name, result)
}

/// An ioctl whose struct the kernel only reads.
///
/// # Safety
/// Pointers inside `argument` must be valid for what the kernel does with them, for as long as it does, and a
/// variable-length array that it says it has must follow it. Where it says its own size, that is no lie.
///
/// # Errors
/// The kernel's, naming the ioctl.
pub unsafe fn read<T>(fd: BorrowedFd<'_>, ioctl: &Ioctl<T>, argument: *const T) -> Result<i32> {
    // SAFETY: the number was made from `T` and says how much is read, or `T` itself says it; for the rest the caller vouches.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(ioctl.number), argument) };
    checked(ioctl.name, result)
}

/// An ioctl whose struct the kernel writes.
///
/// # Safety
/// As for [`read`].
///
/// # Errors
/// The kernel's, naming the ioctl.
pub unsafe fn write<T>(fd: BorrowedFd<'_>, ioctl: &Ioctl<T>, argument: *mut T) -> Result<i32> {
    // SAFETY: the number was made from `T` and says how much is written, or `T` itself says it; for the rest the caller vouches.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(ioctl.number), argument) };
    checked(ioctl.name, result)
}

fn checked(name: &str, result: i32) -> Result<i32> {
    if result < 0 { Err(Error::last_os(name)) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        for (name, number) in [
            ("KVM_GET_API_VERSION", 0xae00),
            ("KVM_SET_USER_MEMORY_REGION", 0x4020_ae46),
            ("KVM_GET_IRQCHIP", 0xc208_ae62),
            ("KVM_SET_IRQCHIP", 0x8208_ae63),
            ("KVM_SET_GSI_ROUTING", 0x4008_ae6a),
            ("KVM_IRQFD", 0x4020_ae76),
            ("KVM_SIGNAL_MSI", 0x4020_aea5),
            ("KVM_IRQ_LINE", 0x4008_ae61),
            ("KVM_GET_LAPIC", 0x8400_ae8e),
            ("KVM_SET_LAPIC", 0x4400_ae8f),
            ("KVM_ENABLE_CAP", 0x4068_aea3),
            ("KVM_SET_DEVICE_ATTR", 0x4018_aee1),
            ("KVM_GET_REGS", 0x8090_ae81),
            ("KVM_SET_SREGS", 0x4138_ae84),
            ("KVM_INTERRUPT", 0x4004_ae86),
            ("KVM_GET_MP_STATE", 0x8004_ae98),
            ("KVM_GET_VCPU_EVENTS", 0x8040_ae9f),
            ("KVM_SET_VCPU_EVENTS", 0x4040_aea0),
            ("KVM_SET_MP_STATE", 0x4004_ae99),
            ("VFIO_GET_API_VERSION", 0x3b64),
            ("VFIO_CHECK_EXTENSION", 0x3b65),
            ("KVM_CREATE_DEVICE", 0xc00c_aee0),
            ("VFIO_GROUP_GET_DEVICE_FD", 0x3b6a),
            ("VFIO_DEVICE_SET_IRQS", 0x3b6e),
            ("VFIO_IOMMU_UNMAP_DMA", 0x3b72),
            ("VFIO_DEVICE_BIND_IOMMUFD", 0x3b76),
            ("VFIO_DEVICE_DETACH_IOMMUFD_PT", 0x3b78),
            ("IOMMU_DESTROY", 0x3b80),
            ("IOMMU_IOAS_ALLOC", 0x3b81),
            ("IOMMU_IOAS_IOVA_RANGES", 0x3b84),
            ("IOMMU_IOAS_MAP", 0x3b85),
            ("IOMMU_IOAS_UNMAP", 0x3b86),
        ] {
            let entry = TABLE.iter().find(|entry| entry.0 == name).expect(name);
            assert_eq!(entry.1, number, "{name} is {:#x}", entry.1);
        }
    }

    #[test]
    fn no_number_stands_twice() {
        for (at, entry) in TABLE.iter().enumerate() {
            assert!(TABLE[..at].iter().all(|other| other.1 != entry.1), "{}", entry.0);
        }
    }
}
