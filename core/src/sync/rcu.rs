//! Two copies of a large table: readers use the current one, a writer builds the next one in the other.
//!
//! ```text
//!  writer (one at a time)                        reader (deferred worker, online)
//!  next := copy[1 - current], built at leisure   i := current  (Acquire, pairs with the Release below)
//!  current := 1 - current   (Release)            uses copy[i] until its next tick
//!  grace period: nobody reads the old copy       tick
//!  return; the old copy is the next `next`
//! ```
//! The writer's exclusion lasts until its grace period is over, so the copy it is handed is one that no reader
//! has had since an earlier grace period. A writer that panics before leaves the grace period to the next one.

#![allow(unsafe_code)]

use super::{Grace, Reader};
use crate::prim::{AtomicU32, AtomicUsize, Mutation, Ordering, UnsafeCell, model_failed, planted};

/// A table that is replaced whole. Owns the [`Grace`] domain its readers register with.
#[derive(Debug)]
pub struct Rcu<T> {
    grace: Grace,
    /// [`FREE`], [`TAKEN`] or [`OWING`].
    writer: AtomicU32,
    current: AtomicUsize,
    copies: [UnsafeCell<T>; 2],
}

/// No writer; nobody reads the copy that is not current.
const FREE: u32 = 0;
/// A writer is at work.
const TAKEN: u32 = 1;
/// No writer, but the last one did not see its grace period through.
const OWING: u32 = 2;

// SAFETY: `T` is handed out by `&T` to several threads (hence `Sync`) and by `&mut T` to one writer at a time,
// of a copy that no reader holds; `T` is moved in by whichever thread made the table (hence `Send`).
unsafe impl<T: Send + Sync> Sync for Rcu<T> {}

impl<T> Rcu<T> {
    /// A table whose current copy is `current`; `spare` is what the first writer overwrites.
    pub fn new(current: T, spare: T) -> Self {
        Self {
            grace: Grace::new(),
            writer: AtomicU32::new(FREE),
            current: AtomicUsize::new(0),
            copies: [UnsafeCell::new(current), UnsafeCell::new(spare)],
        }
    }

    /// The domain that readers of this table register with.
    pub fn grace(&self) -> &Grace {
        &self.grace
    }

    /// Runs `f` on the current table. Never waits.
    ///
    /// # Panics
    /// When `reader` is offline or of another domain: both are mistakes of this program.
    pub fn read<R>(&self, reader: &Reader<'_>, f: impl FnOnce(&T) -> R) -> R {
        assert!(
            reader.is_online() && reader.is_of(&self.grace),
            "an Rcu is read by an online reader of its own"
        );
        // Acquire: pairs with the Release store in `replace`.
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: `replace` makes no `&mut` to this copy before a grace period has passed since it stopped being
        // current, and `reader`, online and borrowed for the whole of `f`, cannot tick in between.
        self.copies[current].with(|table| f(unsafe { &*table }))
    }

    /// Builds the next table from the current one, publishes it, and waits until nobody reads the old one.
    ///
    /// `build(current, next)` fills `next`, whose content is stale; if it fails nothing changes. `publish(next, switch)`
    /// calls `switch`, which makes `next` the current table, and refreshes what caches it, before the grace period.
    /// `relax` is called while waiting, for another writer or for readers.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn replace<E>(
        &self,
        build: impl FnOnce(&T, &mut T) -> Result<(), E>,
        publish: impl FnOnce(&T, &dyn Fn()),
        mut relax: impl FnMut(),
    ) -> Result<(), E> {
        let before = loop {
            // Acquire: pairs with the Release in `Exclusive::drop`.
            match self.writer.swap(TAKEN, Ordering::Acquire) {
                TAKEN => relax(),
                free => break free,
            }
        };
        let mut exclusive = Exclusive { writer: &self.writer, after: before };
        if before == OWING {
            self.grace.synchronize(&mut relax);
            exclusive.after = FREE;
        }
        let now = self.current.load(Ordering::Relaxed);
        let next = 1 - now;
        self.copies[now].with(|old| {
            self.copies[next].with_mut(|new| {
                // SAFETY: `writer` is ours until the grace period below is over. No writer has `new`; no reader
                // has it either: it stopped being current in an earlier `replace`, and a grace period has passed
                // since, waited for there or, had that one panicked, above. `old` is only ever read while it is
                // current.
                let (old, new) = unsafe { (&*old, &mut *new) };
                build(old, new)
            })
        })?;
        exclusive.after = OWING;
        self.copies[next].with(|new| {
            // Release: pairs with the Acquire load in `read`.
            // SAFETY: `new` is not written again before the next `replace`, which needs `writer`.
            publish(unsafe { &*new }, &|| self.current.store(next, Ordering::Release));
        });
        if !planted(Mutation::RouteNoGrace) {
            self.grace.synchronize(relax);
        }
        exclusive.after = FREE;
        Ok(())
    }
}

/// Gives the writer's exclusion back, also when a closure panics; then with what is owed.
struct Exclusive<'a> {
    writer: &'a AtomicU32,
    after: u32,
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        if model_failed() {
            return;
        }
        // Release: pairs with the Acquire in `replace`.
        self.writer.store(self.after, Ordering::Release);
    }
}
