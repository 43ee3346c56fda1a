//! Models of the lifecycles: mediated devices, groups, INTx lines. Each has a twin with a planted mistake, so
//! that a model which cannot see the mistake fails its own test.
#![cfg(loom)]

mod group;
mod line;
mod mediated;

use pollvisor_core::prim::{Mutation, plant};
use std::sync::atomic::AtomicUsize as StdAtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// Every interleaving.
fn model(planted: Option<Mutation>, f: impl Fn() + Sync + Send + 'static) {
    bounded(None, planted, f);
}

/// Every interleaving with at most so many preemptions.
fn bounded(preemptions: Option<usize>, planted: Option<Mutation>, f: impl Fn() + Sync + Send + 'static) {
    plant(planted);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(f);
    plant(None);
}

/// Notes what must not happen, to be asserted when all threads are joined: a panic while another thread is inside
/// a gate would unwind that thread too, in which loom aborts. Not one of loom's atomics, so it orders nothing.
#[derive(Debug, Default)]
struct Faults(StdAtomicUsize);

impl Faults {
    fn unless(&self, fine: bool) {
        self.0.fetch_add(usize::from(!fine), Relaxed);
    }

    fn none(&self) -> bool {
        self.0.load(Relaxed) == 0
    }
}
