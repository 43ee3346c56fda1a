//! Priorities, timer slack, thread signals, locked memory limits.

use crate::error::{Error, Result};
use std::os::unix::thread::JoinHandleExt;

/// Makes the calling thread `SCHED_FIFO` with this priority (1..=99).
///
/// # Errors
/// EPERM without `CAP_SYS_NICE` or an RLIMIT_RTPRIO.
pub fn fifo(priority: i32) -> Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: a plain struct, of this thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } != 0 {
        return Err(Error::last_os(format!("SCHED_FIFO priority {priority} for this thread")).remedy_for(
            libc::EPERM,
            "grant CAP_SYS_NICE or raise the rtprio limit (ulimit -r), or leave out fifo=on",
        ));
    }
    Ok(())
}

/// What has to be allowed before memory is locked: with less, a later allocation would fail where an unlocked one works.
const ENOUGH_TO_LOCK: u64 = 1 << 30;

/// Locks all pages of this process, present and future, each when it is first touched: what a warm-up touched stays.
///
/// # Errors
/// When the limit is too low, or EPERM.
pub fn lock_memory() -> Result<()> {
    if let Some(limit) = memlock_limit()
        && limit < ENOUGH_TO_LOCK
    {
        return Err(Error::new(format!("memory is not locked: the limit is {} KiB", limit / 1024))
            .remedy("raise the memlock limit (ulimit -l unlimited)"));
    }
    // SAFETY: no pointers.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } != 0 {
        return Err(Error::last_os("locking memory (mlockall)")
            .remedy("raise the memlock limit (ulimit -l unlimited) or grant CAP_IPC_LOCK"));
    }
    Ok(())
}

/// That so many bytes may be locked.
///
/// # Errors
/// With the limit, when it is less.
pub fn may_lock(bytes: u64) -> Result<()> {
    match memlock_limit() {
        Some(limit) if limit < bytes => {
            Err(Error::new(format!("{} KiB are not locked: the limit is {} KiB", bytes / 1024, limit / 1024))
                .remedy("raise the memlock limit (ulimit -l unlimited)"))
        }
        _ => Ok(()),
    }
}

/// How many bytes this process may lock; `None`: as many as there are.
#[must_use]
fn memlock_limit() -> Option<u64> {
    // SAFETY: CAP_IPC_LOCK lifts the limit; only root is recognised here.
    if unsafe { libc::geteuid() } == 0 {
        return None;
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one struct.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Lets this process have as many descriptors as it may: the usual soft limit of 1024 is less than a guest's vectors.
pub fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads and writes one struct; a refusal leaves the limit, and what runs into it says so.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Sets the calling thread's timer slack, so that its sleeps end when they should.
pub fn timer_slack(nanoseconds: u64) {
    // SAFETY: no pointers; a refusal leaves the default, which is only less exact.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, nanoseconds, 0, 0, 0) };
}

/// The signal that takes a vCPU thread out of `KVM_RUN`.
fn kick_signal() -> i32 {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: i32) {}

/// Makes the kick a signal that interrupts system calls and does nothing else. Once per process is enough.
pub fn handle_kicks() {
    let handler: extern "C" fn(i32) = on_kick;
    // SAFETY: a zeroed sigaction is valid (no flags, so no SA_RESTART; empty mask); the handler does nothing, which
    // is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut());
    }
}

/// Interrupts the system call that `thread` is in, or nothing.
pub fn kick<T>(thread: &std::thread::JoinHandle<T>) {
    // SAFETY: the handle keeps the thread's ID valid until it is joined.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
}

/// The number of memory faults (minor, major) and context switches (voluntary, forced) of the calling thread.
#[must_use]
pub fn thread_usage() -> (i64, i64, i64, i64) {
    // SAFETY: writes one struct, for which all zeroes are valid.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
        usage
    };
    (usage.ru_minflt, usage.ru_majflt, usage.ru_nvcsw, usage.ru_nivcsw)
}

/// Lets a thread run on these CPUs alone.
///
/// # Errors
/// EINVAL when none of them is there for this process; ESRCH when the thread has ended.
pub fn set_affinity(thread: u32, cpus: &[usize]) -> Result<()> {
    // SAFETY: all zeroes are an empty set; `CPU_SET` checks its bounds; the kernel reads the one set.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let fits = |cpu: &&usize| **cpu < 8 * size_of::<libc::cpu_set_t>();
        cpus.iter().filter(fits).for_each(|cpu| libc::CPU_SET(*cpu, &mut set));
        libc::sched_setaffinity(thread.cast_signed(), size_of_val(&set), &raw const set)
    };
    if result != 0 {
        return Err(Error::last_os(format!("moving a thread to the CPUs {cpus:?}"))
            .remedy_for(libc::EINVAL, "CPUs that this process may use (see taskset -p $$)"));
    }
    Ok(())
}

/// The kernel's number of the calling thread.
#[must_use]
pub fn thread_id() -> u32 {
    // SAFETY: no pointers.
    unsafe { libc::gettid() }.cast_unsigned()
}
