//! The scenarios, from outside: boots labs for them, and says what came of each. It is what `tests/lab/run` runs.
//!
//! A scenario is run again for one reason only: the emulator left the signature of one of its faults ([`fault`]). A failure
//! without one, and a crash of the lab's kernel without one, is ours and stands.

pub mod boot;
pub mod fault;
mod machine;

use super::{Need, Scenario};
use boot::{Boot, End, Verdict};
use fault::Fault;
use machine::Machine;
pub use machine::Options;
use pollvisor::error::{Error, Result};
use std::collections::{BTreeMap, VecDeque};

/// How often the emulator may spoil one scenario, and one run of this program.
const SPOILED: usize = 3;
const SPOILED_IN_ALL: usize = 12;
/// Where a machine ended that had run all its scenarios.
const AFTER: &str = "after the last one";

/// What can share a machine with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lab {
    /// Without a guest: with one emulator thread, where QEMU loses no access to a device.
    NoGuest,
    /// With the built-in guest: without nested paging, where QEMU does not mix up guest and lab.
    BuiltIn,
    /// With Linux as a guest, which is too slow without nested paging: each has a machine of its own.
    Linux,
}

impl Lab {
    /// That of a scenario.
    #[must_use]
    pub fn of(scenario: &Scenario) -> Self {
        let needs = |need| scenario.needs.contains(&need);
        if needs(Need::Linux) {
            Self::Linux
        } else if needs(Need::Kvm) {
            Self::BuiltIn
        } else {
            Self::NoGuest
        }
    }
}

/// What came of all.
#[derive(Debug, Default)]
struct Account {
    passed: usize,
    skipped: Vec<(String, String)>,
    failed: Vec<(String, String)>,
    /// Every time the emulator spoiled a scenario.
    spoiled: Vec<(Fault, String)>,
}

/// Runs these scenarios; whether none failed.
///
/// # Errors
/// When there is no lab.
pub fn run(chosen: &[&'static Scenario], options: &Options) -> Result<bool> {
    let machine = Machine::new(chosen, options)?;
    let mut account = Account::default();
    for lab in [Lab::NoGuest, Lab::BuiltIn, Lab::Linux] {
        let names: Vec<String> = chosen
            .iter()
            .filter(|scenario| Lab::of(scenario) == lab)
            .map(|scenario| scenario.name.to_owned())
            .collect();
        let size = if lab == Lab::Linux { 1 } else { names.len().max(1) };
        for together in names.chunks(size) {
            account.run(together, &mut |names| machine.boot(lab, names))?;
        }
    }
    account.say();
    Ok(account.failed.is_empty())
}

impl Account {
    /// Boots until each of these has ended.
    fn run(&mut self, names: &[String], boot: &mut dyn FnMut(&[String]) -> Result<Boot>) -> Result<()> {
        let mut waiting: VecDeque<String> = names.to_vec().into();
        while !waiting.is_empty() {
            let Boot { verdicts, end } = boot(waiting.make_contiguous())?;
            let mut again = Vec::new();
            for (name, verdict) in verdicts {
                let Some(at) = waiting.iter().position(|other| *other == name) else {
                    return Err(Error::new(format!("the lab ran `{name}`, which nobody asked for")));
                };
                waiting.remove(at);
                match verdict {
                    Verdict::Passed => self.passed += 1,
                    Verdict::Skipped(why) => self.skipped.push((name, why)),
                    Verdict::Failed { why, fault: None } => self.failed.push((name, why)),
                    Verdict::Failed { why, fault: Some(fault) } => {
                        again.extend(self.spoil(fault, name, &why));
                    }
                }
            }
            // The one that ran when the machine ended; those after it have not begun.
            match (waiting.pop_front(), end) {
                (Some(name), End::Done) => self.failed.push((name, "the lab ended before it".to_owned())),
                (Some(name), End::Ours(why)) => self.failed.push((name, why)),
                (Some(name), End::Faulty(fault)) => again.extend(self.spoil(fault, name, fault.name())),
                (None, End::Done) => {}
                (None, End::Ours(why)) => self.failed.push((AFTER.to_owned(), why)),
                (None, End::Faulty(fault)) => self.spoiled.push((fault, AFTER.to_owned())),
            }
            waiting.extend(again);
        }
        Ok(())
    }

    /// The scenario, to be run again; or it has failed, when that was too often.
    fn spoil(&mut self, fault: Fault, name: String, why: &str) -> Option<String> {
        println!("spoiled by the emulator, {}: {name}", fault.name());
        self.spoiled.push((fault, name.clone()));
        let times = self.spoiled.iter().filter(|(_, other)| *other == name).count();
        if times <= SPOILED && self.spoiled.len() <= SPOILED_IN_ALL {
            return Some(name);
        }
        self.failed.push((name, format!("spoiled by the emulator {times} times, {}: {why}", fault.name())));
        None
    }

    /// How often by each fault.
    fn by_fault(&self) -> BTreeMap<Fault, Vec<&str>> {
        let mut counts: BTreeMap<_, Vec<&str>> = BTreeMap::new();
        for (fault, name) in &self.spoiled {
            counts.entry(*fault).or_default().push(name);
        }
        counts
    }

    /// The closing lines: a program can read them. The last is `N passed, M failed, K skipped`.
    fn say(&self) {
        println!();
        for (fault, names) in self.by_fault() {
            println!("repeated\t{}\t{}\t{}", names.len(), fault.name(), names.join(" | "));
        }
        for (name, why) in &self.skipped {
            println!("skipped\t{name}\t{why}");
        }
        for (name, why) in &self.failed {
            println!("failed\t{name}\t{why}");
        }
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len());
    }
}

#[cfg(test)]
mod tests;
