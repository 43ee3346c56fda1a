//! Linux AIO poll: readiness of many descriptors, read from memory without a system call.
//!
//! `io_submit` of `IOCB_CMD_POLL` arms a descriptor once. When it becomes readable, the kernel, in the writer's own
//! context, puts an event into the completion ring; the ring is mapped, and its address is the context's handle
//! (`fs/aio.c`). The reader owns `head`, the kernel `tail`:
//!
//! ```text
//!  kernel (in the signaller)             reader (poller)
//!  io_events[tail % nr] := event         t := tail               (Acquire, pairs with the kernel's smp_wmb)
//!  smp_wmb; tail := tail + 1             head ≠ t: copy io_events[head]
//!                                        head := head + 1 mod nr (Release: the copy is done before the room is free)
//! ```
//! A wake-up completes in place only if it gets the context's lock; against an `io_submit` on the same context it is
//! handed to a kworker of the signaller's CPU instead (race 47). Nothing is lost then, it is only later.

use crate::error::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

const CMD_POLL: u16 = 5;
const MAGIC: u32 = 0xa10a_10a1;

/// `struct iocb` of `linux/aio_abi.h`, little-endian.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    /// For a poll: the event mask.
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct IoEvent {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// `struct aio_ring`, less the events that follow it.
#[repr(C)]
#[derive(Debug)]
struct Ring {
    id: u32,
    nr: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
    compat_features: u32,
    incompat_features: u32,
    header_length: u32,
}

/// A completion: which descriptor, and its poll events (0: cancelled).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The number given at [`Context::arm`].
    pub data: u64,
    /// `POLLIN`, `POLLHUP`, …; negative: an error number.
    pub events: i64,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    /// All of it is armed.
    All,
    /// The kernel has no memory at the moment: the rest waits for the next [`submit`](Context::submit).
    Later,
    /// The poll with this number, as given at [`arm`](Context::arm), was refused for good and dropped; the rest waits.
    Refused(u64),
}

/// An AIO context with room for a fixed number of polls. `arm`, `submit` and `pop` are for its one poller; `cancel` is
/// for anybody, through [`Context::canceller`].
#[derive(Debug)]
pub struct Context {
    handle: usize,
    nr: u32,
    head: u32,
    iocbs: Box<[Iocb]>,
    batch: Vec<*mut Iocb>,
    /// How many times more the kernel is to have no memory.
    #[cfg(test)]
    pub(crate) no_memory: u32,
}

// SAFETY: the pointers are into `iocbs` and the kernel's ring, both of which move with the context; nothing in it is
// tied to a thread.
unsafe impl Send for Context {}

impl Context {
    /// A context for `polls` polls.
    ///
    /// # Errors
    /// EAGAIN when `fs.aio-max-nr` is used up, ENOSYS where the kernel has no AIO, and a ring of unknown form.
    pub fn new(polls: usize) -> Result<Self> {
        let mut handle = 0usize;
        // SAFETY: writes one word.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, polls, &raw mut handle) };
        if result < 0 {
            return Err(Error::last_os(format!("making an AIO context for {polls} polls"))
                .remedy_for(libc::EAGAIN, "raise sysctl fs.aio-max-nr (see fs.aio-nr for what is in use)")
                .remedy_for(libc::ENOSYS, "a kernel with CONFIG_AIO; the epoll fallback is used meanwhile"));
        }
        let mut context = Self {
            handle,
            nr: 0,
            head: 0,
            iocbs: vec![Iocb::default(); polls].into_boxed_slice(),
            batch: Vec::with_capacity(polls),
            #[cfg(test)]
            no_memory: 0,
        };
        let ring = context.ring();
        if ring.magic != MAGIC || ring.incompat_features != 0 {
            return Err(Error::new(
                "the kernel's AIO ring is not of the form that can be read from user space",
            ));
        }
        (context.nr, context.head) = (ring.nr, ring.head.load(Ordering::Relaxed));
        Ok(context)
    }

    #[inline(always)]
    fn ring(&self) -> &Ring {
        // SAFETY: the handle of a live context is the address of its mapped ring. The kernel writes `tail` only, an
        // atomic here; the plain fields are constant.
        unsafe { &*(self.handle as *const Ring) }
    }

    /// The next completion. No system call.
    #[inline]
    pub fn pop(&mut self) -> Option<Completion> {
        let ring = self.ring();
        // Acquire: pairs with the kernel's smp_wmb before it moves the tail.
        if ring.tail.load(Ordering::Acquire) == self.head {
            return None;
        }
        let events = self.handle + size_of::<Ring>();
        // SAFETY: `head` is below `nr`, and the kernel does not write this event again before `head` moves.
        let event = unsafe { (events as *const IoEvent).add(self.head as usize).read() };
        self.head = if self.head + 1 == self.nr { 0 } else { self.head + 1 };
        // Release: the event was copied.
        self.ring().head.store(self.head, Ordering::Release);
        Some(Completion { data: event.data, events: event.result })
    }

    /// Arms poll number `place` for `fd` to be readable, at the next [`submit`](Self::submit). `place` must be idle: never
    /// armed, or its completion popped.
    pub fn arm(&mut self, place: usize, fd: BorrowedFd<'_>, data: u64) {
        let iocb = &mut self.iocbs[place];
        *iocb = Iocb {
            data,
            opcode: CMD_POLL,
            fd: fd.as_raw_fd().unsigned_abs(),
            buf: u64::from(libc::POLLIN.unsigned_abs()),
            ..Iocb::default()
        };
        let pointer: *mut Iocb = iocb;
        self.batch.push(pointer);
    }

    /// Arms the last poll of this number again.
    #[inline]
    pub fn rearm(&mut self, place: usize) {
        let pointer: *mut Iocb = &raw mut self.iocbs[place];
        self.batch.push(pointer);
    }

    /// Makes what was armed take effect, in one system call; one readable by now completes at once.
    #[inline]
    pub fn submit(&mut self) -> Submitted {
        let mut done = 0;
        while done < self.batch.len() {
            #[cfg(test)]
            if self.no_memory > 0 {
                self.no_memory -= 1;
                return self.stopped(done, libc::ENOMEM);
            }
            let rest = &mut self.batch[done..];
            // SAFETY: every pointer is to an element of `iocbs`, which is neither moved nor freed before the context
            // is destroyed.
            let count =
                unsafe { libc::syscall(libc::SYS_io_submit, self.handle, rest.len(), rest.as_mut_ptr()) };
            match usize::try_from(count) {
                Ok(count) if count > 0 => done += count,
                _ => {
                    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
                    return self.stopped(done, errno);
                }
            }
        }
        self.batch.clear();
        Submitted::All
    }

    /// The kernel took the first `done` of the batch, and not the next one.
    #[cold]
    fn stopped(&mut self, done: usize, errno: i32) -> Submitted {
        if matches!(errno, libc::EAGAIN | libc::ENOMEM) {
            self.batch.drain(..done);
            return Submitted::Later;
        }
        let place = self.place(self.batch[done]);
        self.batch.drain(..=done);
        Submitted::Refused(self.iocbs[place].data)
    }

    fn place(&self, iocb: *mut Iocb) -> usize {
        (iocb as usize - self.iocbs.as_ptr() as usize) / size_of::<Iocb>()
    }

    /// Takes back a poll that was armed and waits for [`submit`](Self::submit); whether there was one.
    pub fn withdraw(&mut self, place: usize) -> bool {
        let before = self.batch.len();
        let pointer: *mut Iocb = &raw mut self.iocbs[place];
        self.batch.retain(|other| *other != pointer);
        self.batch.len() < before
    }

    /// Whether anything waits for [`submit`](Self::submit).
    #[inline]
    #[must_use]
    pub fn has_batch(&self) -> bool {
        !self.batch.is_empty()
    }

    /// What another thread needs to cancel poll number `place` of this context.
    #[must_use]
    pub fn canceller(&self, place: usize) -> Canceller {
        Canceller { handle: self.handle, iocb: &raw const self.iocbs[place] as usize }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: cancels what is armed and waits for it, so `iocbs` can go; the ring is unmapped, and nobody else reads it.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.handle) };
    }
}

/// Cancels one poll. The kernel does it in a kworker of the *calling* CPU, so this is not for a poller: spinning at real-
/// time priority it would wait for itself.
#[derive(Debug, Clone, Copy)]
pub struct Canceller {
    handle: usize,
    iocb: usize,
}

impl Canceller {
    /// Cancels the poll if it is armed: its completion follows. One that has completed is left alone.
    pub fn cancel(&self) {
        let mut event = IoEvent::default();
        // SAFETY: both are compared by the kernel with what it has, and refused when unknown; of the iocb it reads the
        // `key`, which is mapped as long as the context lives (a fault is refused, too).
        unsafe { libc::syscall(libc::SYS_io_cancel, self.handle, self.iocb, &raw mut event) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd::EventFd;
    use std::os::fd::AsFd;

    #[test]
    fn layout_is_the_kernels() {
        assert_eq!((size_of::<Iocb>(), size_of::<IoEvent>(), size_of::<Ring>()), (64, 32, 32));
        assert_eq!((std::mem::offset_of!(Iocb, fd), std::mem::offset_of!(Iocb, buf)), (20, 24));
    }

    #[test]
    fn one_shot_and_level_checked() {
        let mut context = Context::new(2).expect("AIO");
        let event = EventFd::new().expect("eventfd");
        context.arm(1, event.as_fd(), 7);
        assert_eq!(context.submit(), Submitted::All);
        assert_eq!(context.pop(), None);
        event.signal(1);
        assert_eq!(context.pop(), Some(Completion { data: 7, events: 1 }));
        event.signal(1);
        assert_eq!(context.pop(), None, "one shot");
        context.rearm(1);
        assert_eq!(context.submit(), Submitted::All);
        assert_eq!(context.pop(), Some(Completion { data: 7, events: 1 }), "level-checked at submit");
        assert_eq!(event.take(), 2);
    }

    #[test]
    fn one_that_is_refused_does_not_hold_up_the_others() {
        use std::os::fd::AsRawFd;
        let mut context = Context::new(3).expect("AIO");
        let (first, last) = (EventFd::new().expect("eventfd"), EventFd::new().expect("eventfd"));
        context.arm(0, first.as_fd(), 10);
        // SAFETY: never used as what it claims to be: no process has as many descriptors.
        context.arm(1, unsafe { BorrowedFd::borrow_raw(first.as_fd().as_raw_fd() + 1_000_000) }, 11);
        context.arm(2, last.as_fd(), 12);
        assert_eq!(context.submit(), Submitted::Refused(11));
        assert!(context.has_batch());
        assert_eq!(context.submit(), Submitted::All);
        last.signal(1);
        first.signal(1);
        assert_eq!(context.pop().map(|completion| completion.data), Some(12));
        assert_eq!(context.pop().map(|completion| completion.data), Some(10));
    }

    #[test]
    fn what_waits_for_memory_can_be_taken_back() {
        let mut context = Context::new(2).expect("AIO");
        let event = EventFd::new().expect("eventfd");
        context.arm(0, event.as_fd(), 10);
        context.arm(1, event.as_fd(), 11);
        context.no_memory = 1;
        assert_eq!(context.submit(), Submitted::Later);
        assert!(context.withdraw(0) && !context.withdraw(0));
        assert_eq!(context.submit(), Submitted::All);
        event.signal(1);
        assert_eq!((context.pop().map(|one| one.data), context.pop()), (Some(11), None));
    }

    #[test]
    fn the_ring_wraps() {
        let mut context = Context::new(1).expect("AIO");
        let event = EventFd::new().expect("eventfd");
        context.arm(0, event.as_fd(), 0);
        for _ in 0..3 * context.nr {
            assert_eq!(context.submit(), Submitted::All);
            event.signal(1);
            assert!(context.pop().is_some());
            assert_eq!(event.take(), 1);
            context.rearm(0);
        }
    }

    #[test]
    fn cancel_completes_without_events() {
        let mut context = Context::new(1).expect("AIO");
        let event = EventFd::new().expect("eventfd");
        context.arm(0, event.as_fd(), 3);
        assert_eq!(context.submit(), Submitted::All);
        context.canceller(0).cancel();
        let completion = loop {
            match context.pop() {
                Some(completion) => break completion,
                None => std::thread::yield_now(),
            }
        };
        assert_eq!(completion, Completion { data: 3, events: 0 });
        context.canceller(0).cancel();
    }
}
