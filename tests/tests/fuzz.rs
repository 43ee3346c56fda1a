//! A few thousand inputs for each fuzzing entry point, the same ones every time.
#![cfg(not(loom))]

use pollvisor_tests::fuzz::driver::{Inputs, shrink};
use pollvisor_tests::fuzz::{self, TARGETS, Target};

fn some(target: Target, count: usize) {
    target(&[]);
    for seed in 0..4 {
        let mut inputs = Inputs::new(seed);
        for _ in 0..count {
            target(&inputs.make());
        }
    }
}

#[test]
fn route() {
    some(fuzz::route, 1000);
}

#[test]
fn msix() {
    some(fuzz::msix, 2000);
}

#[test]
fn ioapic() {
    some(fuzz::ioapic, 2000);
}

#[test]
fn irq_set() {
    some(fuzz::irq_set, 4000);
}

#[test]
fn config() {
    some(fuzz::config, 1000);
}

#[test]
fn every_entry_point_has_a_fuzz_target() {
    let manifest = include_str!("../fuzz/Cargo.toml");
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}

#[test]
fn the_same_seed_makes_the_same_inputs() {
    let (mut a, mut b) = (Inputs::new(7), Inputs::new(7));
    assert!((0..100).all(|_| a.make() == b.make()));
}

#[test]
fn a_failure_is_made_shorter() {
    let long: Vec<u8> = (0..200).collect();
    assert_eq!(shrink(long, |input| input.contains(&50) && input.contains(&150)), [50, 150]);
}
