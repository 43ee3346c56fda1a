//! Stress on real KVM, with exact accounting: signals sent = delivered + merged + dropped, and nothing after a teardown.
#![cfg(not(loom))]

mod churn;
mod hang_up;
mod late;
mod ledger;
