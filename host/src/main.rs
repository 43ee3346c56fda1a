//! pollvisor.
fn main() {}
