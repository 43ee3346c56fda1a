//! The interrupt path and its lifecycles under loom: every interleaving of each model, and for each rule the code
//! keeps a twin with the rule broken, which has to fail.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p pollvisor-tests --release --test loom_path`
#![cfg(loom)]

mod handover;
mod life;
mod path;
mod posted;
mod posted_life;
mod posted_twin;
mod resample;
mod routes;
mod sync;

use loom::thread;
use std::sync::Arc;

/// Starts a model thread on a shared world.
fn spawn<T: Send + Sync + 'static>(world: &Arc<T>, f: impl FnOnce(&T) + 'static) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || f(&world))
}
