//! A short run of the differential against the kernel; the `differential` binary makes long ones.

use crate::harness::tests;
use pollvisor_tests::differential::{self, Half};
use pollvisor_tests::note;

tests! {
    kvm [] => irqfds_and_routes_do_what_the_kernels_do, the_ioapic_does_what_the_kernels_does,
        the_local_apic_does_what_the_kernels_does;
}

const STEPS: u64 = 10_000;
const SEED: &str = "POLLVISOR_SEED";

/// Given, to see a run again; else another one each time.
fn seed() -> u64 {
    match std::env::var(SEED) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{SEED}={text} is not a number")),
        Err(_) => fastrand::u64(..),
    }
}

fn agree(half: Half) {
    let seed = seed();
    note!("{SEED}={seed}");
    match differential::run(half, STEPS, seed) {
        Ok(tally) => note!("{}: {tally}", half.name()),
        Err(failure) => panic!("{failure}"),
    }
}

fn irqfds_and_routes_do_what_the_kernels_do() {
    agree(Half::Irqfd);
}

fn the_ioapic_does_what_the_kernels_does() {
    agree(Half::Ioapic);
}

fn the_local_apic_does_what_the_kernels_does() {
    agree(Half::Lapic);
}
