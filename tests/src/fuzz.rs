//! Entry points for fuzzing: each makes of any bytes a run of what a guest or a caller can do, and asserts that the
//! result is what a reference, as plain as it can be, says. None may panic otherwise.
//!
//! Three ways in: `tests/fuzz` for a fuzzer that sees coverage, `cargo run -p pollvisor-tests --bin fuzz` for any
//! machine, `tests/tests/integration/fuzz.rs` for a few thousand inputs with the other tests. All take the same bytes, so an input
//! found by one fails the others.

mod bytes;
mod config;
pub mod driver;
mod ioapic;
mod irq_set;
mod msix;
mod route;

pub use config::config;
pub use ioapic::ioapic;
pub use irq_set::irq_set;
pub use msix::msix;
pub use route::route;

/// An entry point.
pub type Target = fn(&[u8]);

/// Every entry point, by name.
pub const TARGETS: [(&str, Target); 5] =
    [("route", route), ("msix", msix), ("ioapic", ioapic), ("irq_set", irq_set), ("config", config)];
