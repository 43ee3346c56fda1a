//! The integration tests that need KVM, in the lab's: a machine without `/dev/kvm` proves so, slowly, what one with it proves.
//!
//! `tests/lab/run` brings the tests' binaries. Each scenario is a part of them by the names of its tests; the first has what no
//! other names, so that a new module is not forgotten.

use crate::lab::{Context, Need, Scenario};
use pollvisor::error::{Error, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// What each of [`BINARIES`] is called here, before its own name.
pub const TESTS_OF: &str = "tests-of-";
/// The tests of both commands together, and those of their inner parts.
pub const BINARIES: [&str; 3] = ["integration", "pollvisor", "pollvisor_bench"];

const NEEDS: &[Need] = &[Need::Kvm, Need::Integration, Need::Benchmark, Need::Igb];

/// The parts that have a scenario of their own, by the modules of the tests.
const LEDGER: &[&str] = &["kvm::stress::ledger::", "kvm::stress::hang_up::"];
const CHURN: &[&str] = &["kvm::stress::churn::"];
const HOSTILE: &[&str] = &["kvm::hostile::"];
/// All halves of it: routes and irqfds, the I/O APIC, and what comes beside them in that module.
const DIFFERENTIAL: &[&str] = &["kvm::differential::"];
const COMMAND: &[&str] = &["kvm::command::"];
const BENCHMARK: &[&str] = &["kvm::bench::"];
/// A real function of the machine, which only the lab gives away: also without a guest.
const DEVICES: &[&str] = &["devices::"];
const PARTS: &[&[&str]] = &[LEDGER, CHURN, HOSTILE, DIFFERENTIAL, COMMAND, BENCHMARK, DEVICES];

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "kvm: platform, poller death, late, idle, and what is named nowhere else",
        needs: NEEDS,
        run: |c| pass(c, &["kvm::"], &PARTS.concat()),
    },
    Scenario { name: "kvm: ledgers", needs: NEEDS, run: |c| pass(c, LEDGER, &[]) },
    Scenario {
        name: "kvm: attached, detached, routed under load",
        needs: NEEDS,
        run: |c| pass(c, CHURN, &[]),
    },
    Scenario { name: "kvm: hostile", needs: NEEDS, run: |c| pass(c, HOSTILE, &[]) },
    Scenario { name: "kvm: differential", needs: NEEDS, run: |c| pass(c, DIFFERENTIAL, &[]) },
    Scenario { name: "kvm: the command, by each delivery", needs: NEEDS, run: |c| pass(c, COMMAND, &[]) },
    Scenario { name: "kvm: the benchmark, and its rivals", needs: NEEDS, run: |c| pass(c, BENCHMARK, &[]) },
    Scenario { name: "kvm: a function of the host's", needs: NEEDS, run: |c| pass(c, DEVICES, &[]) },
    Scenario { name: "kvm: inner parts", needs: NEEDS, run: inner },
];

/// Runs the tests named so, without those named `skipped`.
fn pass(context: &mut Context, named: &[&str], skipped: &[&str]) -> Result<()> {
    let skipped: Vec<&str> = skipped.iter().flat_map(|name| ["--skip", name]).collect();
    run(context, "integration", &[named, &skipped].concat())
}

/// The unit tests that their runner ignores, as not every machine has what they need. Not those that read what other programs
/// make of our files.
fn inner(context: &mut Context) -> Result<()> {
    let arguments = ["--ignored", "--test-threads", "1", "--skip", "output::readers"];
    run(context, "pollvisor", &arguments)?;
    run(context, "pollvisor_bench", &arguments)
}

/// Runs tests of a binary. None may be ignored: the lab has all that they need.
fn run(context: &mut Context, binary: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(format!("./{TESTS_OF}{binary}"));
    command.args(arguments);
    command.env("POLLVISOR_REQUIRE", "kvm,cpus,ptrace,lab,rivals").env("POLLVISOR_BIN_DIR", ".");
    command.env("POLLVISOR_DEVICE", context.address(Need::Igb)?.to_string());
    let broken = |e| Error::os(format!("running the tests of {binary}"), &e);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(broken)?;
    let mut text = String::new();
    // As it comes: one that hangs has said which test it is in.
    for line in child.stdout.take().into_iter().flat_map(|output| BufReader::new(output).lines()) {
        let line = line.map_err(broken)?;
        if !line.is_empty() {
            context.note(&line);
        }
        text.push_str(&line);
        text.push('\n');
    }
    let status = child.wait().map_err(broken)?;
    let [passed, failed, ignored] = totals(&text)
        .ok_or_else(|| Error::new(format!("the tests of {binary}: {status}, without a result")))?;
    if !status.success() || failed + ignored > 0 {
        return Err(Error::new(format!("{passed} tests passed, {failed} failed, {ignored} were ignored")));
    }
    if passed == 0 {
        return Err(Error::new(format!("{binary} has no test for {arguments:?}")));
    }
    Ok(())
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; ...`
fn totals(text: &str) -> Option<[u64; 3]> {
    let line = text.lines().rev().find_map(|line| line.strip_prefix("test result: "))?;
    let count = |what: &str| {
        line.split([';', '.']).find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
    };
    Some([count("passed")?, count("failed")?, count("ignored")?])
}

#[cfg(test)]
mod tests {
    use super::totals;

    #[test]
    fn the_runners_totals() {
        let text = "test a ... ok\n\ntest result: FAILED. 14 passed; 1 failed; 2 ignored; 0 measured; 9 filtered out; finished in 1.05s\n";
        assert_eq!(totals(text), Some([14, 1, 2]));
        assert_eq!(totals("Killed"), None);
    }
}
