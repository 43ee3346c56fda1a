//! Stress on real KVM, with exact accounting: signals sent = delivered + merged + dropped, and nothing after a teardown.
#![cfg(not(loom))]

mod churn;
mod hang_up;
mod late;
mod ledger;

/// One of these tests at a time: each has threads enough for the machine, and two pollers on a CPU wait for each other.
#[cfg(test)]
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
