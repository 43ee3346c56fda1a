//! One boot of the lab: the scenarios it is to run, what came of each, and how the machine ended.

use super::fault::{self, Fault};
use crate::lab::percpu::Areas;
use crate::lab::runner::{AREAS, BEGIN, FAILED, PASSED, SKIPPED};
use pollvisor::error::{Error, Result};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// What a scenario came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It lacks something that may be missing.
    Skipped(String),
    /// It failed, and the lab lives.
    Failed {
        /// The result's own line.
        why: String,
        /// Whose fault it is, if not ours.
        fault: Option<Fault>,
    },
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It switched itself off when all was done.
    Done,
    /// By a fault of its emulator.
    Faulty(Fault),
    /// By a crash of its kernel that carries no signature, or its time was over.
    Ours(String),
}

/// What came of a boot.
#[derive(Debug, PartialEq, Eq)]
pub struct Boot {
    /// The scenarios that ended, in their order.
    pub verdicts: Vec<(String, Verdict)>,
    /// How the machine did.
    pub end: End,
}

/// Boots with `command`, which is `tests/lab/lab run ...`, prints what it prints, and reads the console it leaves at `log`.
///
/// # Errors
/// When there is no lab to boot.
pub fn boot(command: &mut Command, log: &Path, guest_memory: u64) -> Result<Boot> {
    let broken = |error| Error::os("starting tests/lab/lab", &error);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(broken)?;
    let mut reading = Reading::new(guest_memory);
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n').map_while(std::result::Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            println!("{line}");
            reading.line(line);
        }
    }
    let status = child.wait().map_err(broken)?;
    let console = || String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let end = match status.code() {
        Some(122) => gone(&console()),
        Some(123) => End::Faulty(Fault::Still),
        Some(124) => End::Ours("the lab's time was over".to_owned()),
        Some(125) | None => return Err(Error::new(format!("tests/lab/lab: {status}"))),
        Some(_) => End::Done,
    };
    Ok(Boot { verdicts: reading.verdicts, end })
}

/// A machine that ended without a status, by its console.
fn gone(console: &str) -> End {
    match (Fault::in_lab(console), fault::crash(console)) {
        (Some(fault), _) => End::Faulty(fault),
        (None, crash) => End::Ours(format!("the lab's kernel crashed: {}", crash.unwrap_or_default())),
    }
}

/// The output's lines so far.
struct Reading {
    guest_memory: u64,
    areas: Areas,
    /// What the scenario that runs has printed.
    lines: Vec<String>,
    verdicts: Vec<(String, Verdict)>,
}

impl Reading {
    fn new(guest_memory: u64) -> Self {
        Self { guest_memory, areas: Areas::default(), lines: Vec::new(), verdicts: Vec::new() }
    }

    fn line(&mut self, line: String) {
        let mut parts = line.splitn(3, '\t');
        let (kind, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let why = parts.next().unwrap_or_default().to_owned();
        let verdict = match kind {
            AREAS => return self.areas = Areas::parse(name).unwrap_or_default(),
            BEGIN => return self.lines.clear(),
            PASSED => Verdict::Passed,
            SKIPPED => Verdict::Skipped(why),
            FAILED => {
                let fault = Fault::in_scenario(&self.lines, &why, &self.areas, self.guest_memory);
                Verdict::Failed { why, fault }
            }
            _ => return self.lines.push(line),
        };
        self.verdicts.push((name.to_owned(), verdict));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, Verdict)> {
        let mut reading = Reading::new(256 << 20);
        text.lines().for_each(|line| reading.line(line.to_owned()));
        reading.verdicts
    }

    #[test]
    fn what_came_of_each() {
        let oops = "    console: [ 3.9] Oops: stack guard page: 0000\n    console: [ 3.9] RAX: ffff88807dd2cdc0 RBX: 0";
        let text = format!(
            "areas\t100000 ffff88807dd00000\nbegin\tlinux: igb\n{oops}\nFAILED\tlinux: igb\tno reply\n\
             begin\tlife: a\n    panicked at x\nFAILED\tlife: a\tpanicked\nbegin\tb\nok\tb\t1.0 s\nSKIPPED\tc\tno module"
        );
        let failed = |why: &str, fault| Verdict::Failed { why: why.into(), fault };
        let expected = [
            ("linux: igb", failed("no reply", Some(Fault::LabPerCpu))),
            ("life: a", failed("panicked", None)),
            ("b", Verdict::Passed),
            ("c", Verdict::Skipped("no module".into())),
        ];
        assert_eq!(read(&text), expected.map(|(name, verdict)| (name.to_owned(), verdict)));
    }

    #[test]
    fn how_a_machine_ended() {
        assert_eq!(gone("[ 1.0] up"), End::Faulty(Fault::Silent));
        let End::Ours(why) = gone("[ 1.0] up\n[ 9.0] BUG: kernel NULL pointer dereference") else {
            panic!("a crash is ours");
        };
        assert!(why.ends_with("BUG: kernel NULL pointer dereference"), "{why}");
    }
}
