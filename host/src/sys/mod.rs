//! The floor: every `unsafe` block and every raw system call of this crate is in here, behind safe functions.
//!
//! * [`ioctl`] the table of ioctls: number derived from the struct it carries, capability beside it
//! * [`sized`] ioctls whose struct says its own size
//! * [`kvm`], [`vfio`], [`iommufd`] the kernel's objects · [`aio`] the completion ring read in user memory
//! * [`doorbell`] shared memory that a producer rings · [`fd`] eventfds, epoll · [`mem`] mappings, locked pages
//! * [`futex`] a wait on a word
//! * [`terminal`] the user's terminal · [`tsc`] the clock · [`sched`] priorities and signals · [`access`] permissions · [`guest_code`] the built-in guest,
//!   [`guest_scribble`] when it is hostile · [`guest_memory`] memory of a guest

pub mod access;
pub mod aio;
pub mod doorbell;
pub mod fd;
pub mod futex;
pub mod guest_code;
pub mod guest_memory;
pub mod guest_scribble;
pub mod ioctl;
pub mod iommufd;
pub mod kvm;
pub mod mem;
pub mod sched;
pub mod sized;
pub mod terminal;
pub mod tsc;
#[cfg(feature = "uring")]
pub mod uring;
pub mod vfio;
