//! The kernel's wait on a 32-bit word (futex(2)), private to this process.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Why [`wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// Somebody called [`wake`], or the word was another one already, or a signal came: look again.
    Look,
    /// The time is over.
    Timeout,
}

/// Sleeps while `word` is `expected`, until a [`wake`], and at most `timeout`. May return early; look at the word again.
///
/// The kernel compares under its own lock: a wake after a change of the word is never missed.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> Woken {
    let time = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(std::ptr::null(), |time| &raw const *time);
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word lives for the call, as does the time, which is null or valid; the kernel writes neither.
    let result = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, expected, time) };
    if result != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ETIMEDOUT) {
        Woken::Timeout
    } else {
        Woken::Look
    }
}

/// Wakes one thread that sleeps on `word`. Never blocks: any thread may call it, a poller too.
pub fn wake(word: &AtomicU32) {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word lives for the call; the kernel only takes its address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, 1) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_wait_ends_by_a_wake_by_another_value_and_by_its_time() {
        let word = Arc::new(AtomicU32::new(1));
        assert_eq!(wait(&word, 2, None), Woken::Look, "another value");
        assert_eq!(wait(&word, 1, Some(Duration::from_millis(1))), Woken::Timeout);
        let its = word.clone();
        let sleeper = std::thread::spawn(move || {
            while its.load(Ordering::Acquire) == 1 {
                wait(&its, 1, None);
            }
        });
        word.store(2, Ordering::Release);
        wake(&word);
        sleeper.join().expect("it was woken");
    }
}
