//! Ioctls whose number carries no size: the struct says its own, VFIO's in `argsz`, iommufd's in `size`.
//!
//! Set here from the type, and looked at again when the kernel has answered.

use super::ioctl::{self as io, Ioctl};
use crate::error::{Error, Result};
use iommufd_bindings as ib;
use std::os::fd::BorrowedFd;
use vfio_bindings::bindings::vfio as vb;

/// A plain struct that starts with its size in bytes.
pub trait SelfSized: Default {
    /// The field.
    fn size(&mut self) -> &mut u32;
}

macro_rules! self_sized {
    ($($field:ident: $($type:path),*;)*) => {
        $($(impl SelfSized for $type {
            fn size(&mut self) -> &mut u32 {
                &mut self.$field
            }
        })*)*
    };
}

self_sized! {
    argsz: vb::vfio_group_status, vb::vfio_device_info, vb::vfio_region_info, vb::vfio_irq_info,
        vb::vfio_iommu_type1_info, vb::vfio_iommu_type1_dma_map, vb::vfio_iommu_type1_dma_unmap,
        vb::vfio_device_bind_iommufd, vb::vfio_device_attach_iommufd_pt, vb::vfio_device_detach_iommufd_pt;
    size: ib::iommu_destroy, ib::iommu_ioas_alloc, ib::iommu_ioas_map, ib::iommu_ioas_unmap;
}

/// More than any kernel has to say about a region or an IOMMU.
const LIMIT: usize = 1 << 20;

/// Makes the call and gives the struct back as the kernel left it.
///
/// # Safety
/// Pointers inside `argument` must be valid for what the kernel does with them, for as long as it does.
///
/// # Errors
/// The kernel's; when it says that it filled in less than the struct.
pub unsafe fn call<T: SelfSized>(fd: BorrowedFd<'_>, ioctl: &Ioctl<T>, mut argument: T) -> Result<T> {
    let size = in_32_bits(ioctl, size_of::<T>())?;
    *argument.size() = size;
    // SAFETY: the size is that of the struct; for the rest the caller vouches.
    unsafe { io::write(fd, ioctl, &raw mut argument)? };
    let back = *argument.size();
    if back < size {
        return Err(Error::new(format!("{}: the kernel filled in {back} of {size} bytes", ioctl.name)));
    }
    Ok(argument)
}

/// Makes a call whose answer is followed by a chain of capabilities: first with the struct alone, then with as much
/// as the kernel asks for. What it wrote, struct and chain.
///
/// # Errors
/// The kernel's; when the size it asks for is less than the struct, beyond reason, or never enough.
pub fn info<T: SelfSized + Plain>(fd: BorrowedFd<'_>, ioctl: &Ioctl<T>, asked: T) -> Result<Vec<u8>> {
    const { assert!(align_of::<T>() <= align_of::<u64>()) };
    let mut room = size_of::<T>();
    for _ in 0..4 {
        let mut argument = asked;
        *argument.size() = in_32_bits(ioctl, room)?;
        let mut words = vec![0u64; room.div_ceil(8)];
        let place = words.as_mut_ptr().cast::<T>();
        // SAFETY: there is room for the struct, aligned, and for as many bytes as it says; it has no pointers.
        let needed = unsafe {
            place.write(argument);
            io::write(fd, ioctl, place)?;
            *(*place).size()
        };
        let needed = usize::try_from(needed).unwrap_or(usize::MAX);
        if !(size_of::<T>()..=LIMIT).contains(&needed) {
            return Err(Error::new(format!("{}: the kernel asks for {needed} bytes", ioctl.name)));
        }
        if needed <= room {
            return Ok(words.iter().flat_map(|word| word.to_ne_bytes()).take(room).collect());
        }
        room = needed;
    }
    Err(Error::new(format!("{}: the kernel asks for more every time", ioctl.name)))
}

/// No pointers inside, so any value is fine for the kernel.
pub trait Plain: Copy {}
impl Plain for vb::vfio_region_info {}
impl Plain for vb::vfio_iommu_type1_info {}

fn in_32_bits<T>(ioctl: &Ioctl<T>, size: usize) -> Result<u32> {
    u32::try_from(size).map_err(|_| Error::new(format!("{}: {size} bytes are too many", ioctl.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_the_first_field() {
        fn at<T: SelfSized>() -> usize {
            let mut value = T::default();
            let field = std::ptr::from_mut(value.size()).addr();
            field - std::ptr::from_ref(&value).addr()
        }
        assert_eq!(at::<vb::vfio_region_info>(), 0);
        assert_eq!(at::<vb::vfio_iommu_type1_dma_unmap>(), 0);
        assert_eq!(at::<ib::iommu_ioas_map>(), 0);
    }
}
