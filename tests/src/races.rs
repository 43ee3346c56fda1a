//! Which model, test or argument covers each of the 48 races.
//!
//! Three kinds of cover, strongest first: a loom *model* tries every interleaving, and has a twin with the rule broken
//! that must fail; a *test* takes the one order that matters; *by construction* says why the order does not exist, and
//! where that can be seen. [`faults`] keeps the table honest: what it names must be in the source.

mod check;
mod devices;
mod interrupts;
mod lifecycles;
mod poller;

pub use check::{faults, models_without_twin, mutations, unplanted};

use pollvisor_core::prim::Mutation;

/// How many there are.
pub const COUNT: u8 = 48;

/// One race: what happens if nobody takes care, and who does.
#[derive(Clone, Copy, Debug)]
pub struct Race {
    /// From 1.
    pub number: u8,
    /// The interleaving, and what comes of it.
    pub what: &'static str,
    /// The rule that rules it out.
    pub rule: &'static str,
    /// What shows that the rule is kept; never empty.
    pub covers: &'static [Cover],
}

/// What shows that a rule is kept. Files are named from the workspace's root.
#[derive(Clone, Copy, Debug)]
pub enum Cover {
    /// A loom model.
    Model {
        /// Where it is.
        file: &'static str,
        /// The test that passes.
        test: &'static str,
        /// The test of the same scenario with the rule broken, which has to fail.
        twin: &'static str,
        /// How it is broken.
        mutation: Mutation,
    },
    /// A test of the one order, or of random ones.
    Test {
        /// Where it is.
        file: &'static str,
        /// Its name.
        test: &'static str,
    },
    /// The code cannot express it.
    ByConstruction {
        /// Why not.
        argument: &'static str,
        /// Where that is to be seen.
        file: &'static str,
        /// The declaration there.
        item: &'static str,
    },
}

/// All races, in order.
pub fn catalogue() -> impl Iterator<Item = &'static Race> {
    interrupts::RACES.iter().chain(devices::RACES).chain(lifecycles::RACES).chain(poller::RACES)
}

const fn model(file: &'static str, test: &'static str, twin: &'static str, mutation: Mutation) -> Cover {
    Cover::Model { file, test, twin, mutation }
}

const fn test(file: &'static str, test: &'static str) -> Cover {
    Cover::Test { file, test }
}

const fn by(argument: &'static str, file: &'static str, item: &'static str) -> Cover {
    Cover::ByConstruction { argument, file, item }
}

const LINES: &str = "tests/tests/loom_life/line.rs";
const GROUPS: &str = "tests/tests/loom_life/group.rs";
const CHILDREN: &str = "tests/tests/loom_life/mediated.rs";
const PATH_LIFE: &str = "tests/tests/loom_path/life.rs";
const PATH_SIGNALS: &str = "tests/tests/loom_path/path.rs";
const PATH_RESAMPLE: &str = "tests/tests/loom_path/resample.rs";
const PATH_ROUTES: &str = "tests/tests/loom_path/routes.rs";
const PATH_SYNC: &str = "tests/tests/loom_path/sync.rs";
const IRQFD_TESTS: &str = "core/src/irqfd/tests/lifecycle.rs";
const RESAMPLE_TESTS: &str = "core/src/irqfd/tests/resample.rs";
const ROUTE_TESTS: &str = "core/src/route/tests.rs";
const IOAPIC_TESTS: &str = "core/src/ioapic/tests.rs";
const INTX_TESTS: &str = "core/src/line/tests/intx.rs";
const LINE_TESTS: &str = "core/src/line/tests/mod.rs";
const MEDIATED_TESTS: &str = "core/src/mediated/tests.rs";
const GROUP_TESTS: &str = "core/src/group/tests/mod.rs";
