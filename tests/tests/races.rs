//! The table of races says what is so.

use pollvisor_tests::races::{COUNT, catalogue, faults, models_without_twin, mutations, unplanted};
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

#[test]
fn every_race_is_covered_by_what_exists() {
    assert_eq!(catalogue().count(), usize::from(COUNT));
    assert_eq!(faults(root()), [""; 0]);
}

#[test]
fn every_mutation_is_planted() {
    assert!(mutations(root()).len() > 30, "the list was not read");
    assert_eq!(unplanted(root()), [""; 0]);
}

#[test]
fn every_model_can_fail() {
    assert_eq!(models_without_twin(root()), [""; 0]);
}
