//! What a test has to say beside its verdict: kept until it is known whether the test failed.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

static KEPT: AtomicBool = AtomicBool::new(false);

thread_local! {
    static NOTES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// From now on notes are kept for [`taken`], where they were printed before.
pub fn keep() {
    KEPT.store(true, Ordering::Relaxed);
}

/// Prints a line, or keeps it.
pub fn note(line: String) {
    if KEPT.load(Ordering::Relaxed) {
        NOTES.with_borrow_mut(|notes| notes.push(line));
    } else {
        println!("{line}");
    }
}

/// What this thread has kept, and no longer does.
#[must_use]
pub fn taken() -> Vec<String> {
    NOTES.take()
}

/// [`println!`], for tests.
#[macro_export]
macro_rules! note {
    ($($what:tt)*) => { $crate::note::note(format!($($what)*)) };
}
