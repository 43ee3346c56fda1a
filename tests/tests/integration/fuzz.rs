//! A few thousand inputs for each fuzzing entry point, the same ones every time.

use crate::harness::tests;
use pollvisor_tests::fuzz::driver::{Inputs, shrink};
use pollvisor_tests::fuzz::{self, TARGETS, Target};

tests! {
    shared [] => route, msix, ioapic, irq_set, config, every_entry_point_has_a_fuzz_target,
        the_same_seed_makes_the_same_inputs, a_failure_is_made_shorter;
}

fn some(target: Target, count: usize) {
    target(&[]);
    for seed in 0..4 {
        let mut inputs = Inputs::new(seed);
        for _ in 0..count {
            target(&inputs.make());
        }
    }
}

fn route() {
    some(fuzz::route, 1000);
}

fn msix() {
    some(fuzz::msix, 2000);
}

fn ioapic() {
    some(fuzz::ioapic, 2000);
}

fn irq_set() {
    some(fuzz::irq_set, 4000);
}

fn config() {
    some(fuzz::config, 1000);
}

fn every_entry_point_has_a_fuzz_target() {
    let manifest = include_str!("../../fuzz/Cargo.toml");
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}

fn the_same_seed_makes_the_same_inputs() {
    let (mut a, mut b) = (Inputs::new(7), Inputs::new(7));
    assert!((0..100).all(|_| a.make() == b.make()));
}

fn a_failure_is_made_shorter() {
    let long: Vec<u8> = (0..200).collect();
    assert_eq!(shrink(long, |input| input.contains(&50) && input.contains(&150)), [50, 150]);
}
