//! The lock of the control plane. A poller never takes one.

#[cfg(not(loom))]
mod imp {
    /// What [`SpinLock::lock`](super::SpinLock::lock) returns; dropping it unlocks.
    pub type SpinGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T>;
    pub(super) type Inner<T> = spin::mutex::SpinMutex<T>;

    #[inline]
    pub(super) fn lock<T>(inner: &Inner<T>) -> SpinGuard<'_, T> {
        inner.lock()
    }
}

#[cfg(loom)]
mod imp {
    /// What [`SpinLock::lock`](super::SpinLock::lock) returns; dropping it unlocks.
    pub type SpinGuard<'a, T> = loom::sync::MutexGuard<'a, T>;
    pub(super) type Inner<T> = loom::sync::Mutex<T>;

    pub(super) fn lock<T>(inner: &Inner<T>) -> SpinGuard<'_, T> {
        inner.lock().expect("a model thread panicked inside a lock")
    }
}

pub use imp::SpinGuard;

/// A spinlock for short, bounded critical sections between control threads: `spin`'s, and loom's in a model.
///
/// It is not re-entrant, and nothing is waited for and nothing is dropped that could wait while one is held.
#[derive(Debug)]
pub struct SpinLock<T>(imp::Inner<T>);

impl<T> SpinLock<T> {
    /// An unlocked lock around `value`.
    pub fn new(value: T) -> Self {
        Self(imp::Inner::new(value))
    }

    /// Takes the lock, spinning while another control thread holds it.
    #[inline]
    pub fn lock(&self) -> SpinGuard<'_, T> {
        imp::lock(&self.0)
    }
}

impl<T: Default> Default for SpinLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}
