//! Eventfds and epoll.

use crate::error::{Error, Result};
use pollvisor_core::ids::EventKey;
use pollvisor_core::irqfd::AssignError;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// An eventfd: a counter that a write adds to and a read takes.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one, at 0, non-blocking, closed on exec.
    ///
    /// # Errors
    /// EMFILE or ENFILE when descriptors run out.
    pub fn new() -> Result<Self> {
        // SAFETY: no pointers; a descriptor returned is ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(Error::last_os("making an eventfd")
                .remedy_for(libc::EMFILE, "raise the limit of open files (ulimit -n)"));
        }
        // SAFETY: just made, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes over a descriptor that came from elsewhere, if it is an eventfd.
    ///
    /// # Errors
    /// EINVAL when it is none.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let eventfd = Self(fd);
        eventfd.key()?;
        Ok(eventfd)
    }

    /// Adds `signals`. Never blocks: a counter at its limit stays there, and stays readable.
    #[inline]
    pub fn signal(&self, signals: u64) {
        // SAFETY: reads 8 bytes of a local.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const signals).cast(), 8) };
    }

    /// Takes what the counter holds, 0 when nothing.
    #[inline]
    #[must_use]
    pub fn take(&self) -> u64 {
        take(self.0.as_fd())
    }

    /// Sleeps until the counter is not 0, or `timeout` milliseconds are over (-1: for ever).
    pub fn wait(&self, timeout: i32) {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one struct.
        unsafe { libc::poll(&raw mut poll, 1, timeout) };
    }

    /// What it is, whichever descriptor names it: the kernel's `eventfd-id`.
    ///
    /// # Errors
    /// EINVAL when this is not an eventfd.
    pub fn key(&self) -> Result<EventKey> {
        key_of(self.0.as_fd())
    }
}

/// The identity of the eventfd behind `fd`.
///
/// # Errors
/// EINVAL when it is not an eventfd.
pub fn key_of(fd: BorrowedFd<'_>) -> Result<EventKey> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let info = std::fs::read_to_string(&path).map_err(|e| Error::os(format!("reading {path}"), &e))?;
    let not = || {
        let invalid = std::io::Error::from_raw_os_error(libc::EINVAL);
        Error::os(format!("descriptor {} is not an eventfd", fd.as_raw_fd()), &invalid)
    };
    eventfd_id(&info).ok_or_else(not)
}

/// The identity of the eventfd behind a number that came from outside, as `KVM_IRQFD` looks it up.
///
/// # Errors
/// `BadFd` when nothing is open there, `NotEventfd`.
pub fn resolve(fd: i32) -> std::result::Result<EventKey, AssignError> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).map_err(|_| AssignError::BadFd)?;
    eventfd_id(&info).ok_or(AssignError::NotEventfd)
}

fn eventfd_id(info: &str) -> Option<EventKey> {
    info.lines().find_map(|line| line.strip_prefix("eventfd-id:")?.trim().parse().ok()).map(EventKey)
}

/// Takes what the counter of an eventfd holds, 0 when nothing.
#[inline]
#[must_use]
pub fn take(fd: BorrowedFd<'_>) -> u64 {
    let mut count = 0u64;
    // SAFETY: writes 8 bytes to a local.
    let got = unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
    if got == 8 { count } else { 0 }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An epoll instance.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

/// What an [`Epoll`] reports: the number given at [`Epoll::add`], and whether it is a hang-up.
pub type EpollEvent = libc::epoll_event;

impl Epoll {
    /// A new one, closed on exec.
    ///
    /// # Errors
    /// EMFILE or ENFILE when descriptors run out.
    pub fn new() -> Result<Self> {
        // SAFETY: no pointers; a descriptor returned is ours.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(Error::last_os("making an epoll instance"));
        }
        // SAFETY: just made, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches `fd` for readiness, level-triggered, under `token`.
    ///
    /// # Errors
    /// EEXIST, ENOMEM, ENOSPC (`fs.epoll.max_user_watches`), EPERM.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64) -> Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: one struct, and `fd` is open.
        let result = unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event)
        };
        if result < 0 { Err(Error::last_os("watching a descriptor with epoll")) } else { Ok(()) }
    }

    /// Watches `fd` no more.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        // SAFETY: no struct is read for DEL.
        unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), std::ptr::null_mut());
        }
    }

    /// Fills `events`, waiting `timeout` milliseconds (0: not at all, -1: for ever); how many there are. An
    /// interruption by a signal counts as none.
    #[inline]
    pub fn wait(&self, events: &mut [EpollEvent], timeout: i32) -> usize {
        let room = i32::try_from(events.len()).unwrap_or(i32::MAX);
        // SAFETY: at most `room` structs are written to the slice.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), room, timeout) };
        usize::try_from(count).unwrap_or(0)
    }
}

/// A descriptor that becomes readable when the process `pid` is gone.
///
/// # Errors
/// ESRCH when it is gone already.
pub fn pidfd(pid: u32) -> Result<OwnedFd> {
    // SAFETY: no pointers; a descriptor returned is ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: just made, and nobody else has it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(Error::last_os(format!("watching process {pid} (pidfd_open)"))),
    }
}
