//! This binary as another program: the commands under test, so that they are never older than their tests, and children
//! that a test watches or kills.
//!
//! `POLLVISOR_BIN_DIR` names a folder with the commands as a user has them; else they are this binary, which calls the
//! same `main`.

use crate::{idle, stress};
use pollvisor_tests::rig::Accel;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// What it is then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The command `pollvisor`.
    Pollvisor,
    /// The command `pollvisor-bench`.
    PollvisorBench,
    /// A producer, until it is killed.
    Producer,
    /// A poller with nothing to do.
    IdlePoller,
    /// Waits for the end of its input.
    Nothing,
}

const ROLE: &str = "POLLVISOR_TEST_ROLE";
const ACCEL: &str = "POLLVISOR_TEST_ACCEL";
const BIN_DIR: &str = "POLLVISOR_BIN_DIR";
const ALL: [Role; 5] =
    [Role::Pollvisor, Role::PollvisorBench, Role::Producer, Role::IdlePoller, Role::Nothing];

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Pollvisor => "pollvisor",
            Self::PollvisorBench => "pollvisor-bench",
            Self::Producer => "producer",
            Self::IdlePoller => "idle-poller",
            Self::Nothing => "nothing",
        }
    }
}

/// A program to start.
///
/// # Panics
/// When `POLLVISOR_BIN_DIR` is set and the command is not there: nothing else is tested in its place.
pub fn command(role: Role) -> Command {
    if let (Role::Pollvisor | Role::PollvisorBench, Some(folder)) = (role, std::env::var_os(BIN_DIR)) {
        let file = PathBuf::from(folder).join(role.name());
        assert!(file.exists(), "{BIN_DIR}: {} is not there", file.display());
        return Command::new(file);
    }
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.arg0(role.name()).env(ROLE, role.name());
    command
}

/// A program of this binary's own, with an accelerator.
pub fn child(role: Role, accel: Accel) -> Command {
    let mut command = command(role);
    command.env(ACCEL, accel.name());
    command
}

/// What this process was started to be, done; `None`: the runner of the tests.
pub fn play() -> Option<ExitCode> {
    let name = std::env::var(ROLE).ok()?;
    let role = ALL.into_iter().find(|role| role.name() == name).unwrap_or_else(|| panic!("{ROLE}={name}"));
    let accel = || {
        let name = std::env::var(ACCEL).expect(ACCEL);
        Accel::ALL.into_iter().find(|accel| accel.name() == name).expect(ACCEL)
    };
    match role {
        Role::Pollvisor => return Some(pollvisor::command::main()),
        Role::PollvisorBench => return Some(pollvisor_bench::main()),
        Role::Producer => stress::hang_up::producer(),
        Role::IdlePoller => idle::poller(accel()),
        Role::Nothing => drop(std::io::stdin().read_to_end(&mut Vec::new())),
    }
    Some(ExitCode::SUCCESS)
}
