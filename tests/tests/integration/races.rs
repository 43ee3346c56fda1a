//! The table of races says what is so.

use crate::harness::tests;
use crate::need::Need;
use pollvisor_tests::races::{COUNT, catalogue, faults, models_without_twin, mutations, unplanted};
use std::path::Path;

tests! {
    shared [Need::Sources] => every_race_is_covered_by_what_exists, every_mutation_is_planted, every_model_can_fail,
        a_test_that_is_not_registered_covers_nothing;
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

fn every_race_is_covered_by_what_exists() {
    assert_eq!(catalogue().count(), usize::from(COUNT));
    assert_eq!(faults(root(), &crate::names()), [""; 0]);
}

fn every_mutation_is_planted() {
    assert!(mutations(root()).len() > 30, "the list was not read");
    assert_eq!(unplanted(root()), [""; 0]);
}

fn every_model_can_fail() {
    assert_eq!(models_without_twin(root()), [""; 0]);
}

fn a_test_that_is_not_registered_covers_nothing() {
    let all = crate::names();
    let but: Vec<_> = all.iter().filter(|name| *name != "fuzz::irq_set").cloned().collect();
    assert_eq!(all.len(), but.len() + 1);
    let faults = faults(root(), &but);
    assert!(matches!(&faults[..], [one] if one.contains("irq_set is not among the tests")), "{faults:?}");
}
