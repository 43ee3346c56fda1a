//! Stress with exact accounting: signals sent = delivered + merged + dropped, and nothing after a teardown.

mod churn;
pub mod hang_up;
mod late;
mod ledger;

use crate::harness::Test;

pub fn all() -> Vec<Test> {
    [churn::tests(), hang_up::tests(), late::tests(), ledger::tests()].into_iter().flatten().collect()
}
