//! The command `pollvisor`, from the process's arguments to its exit code.

use crate::cli::{Cli, Command};
use crate::devices::{Host, command};
use clap::Parser;
use std::process::ExitCode;

/// Exit codes as rtla has them: 0 done, 1 bad use or failure, 2 kept for thresholds. A guest that is booted adds 3 and 4,
/// and 128 and a signal's number: see `run::guest`.
const FAILED: u8 = 1;

/// Does what the process's arguments say. Here and not in the binary, so that the tests run these very lines.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _printed = error.print();
            return if error.use_stderr() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS };
        }
    };
    let host = Host::default();
    let done = match cli.command {
        Some(Command::Run(args)) => crate::run::run(&args),
        Some(Command::Devices(command)) => command::devices(&host, &command).map(|()| 0),
        Some(Command::Mdev(command)) => command::mdev(&host, &command).map(|()| 0),
        None => crate::run::run(&cli.run),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("pollvisor: {error}");
            ExitCode::from(FAILED)
        }
    }
}
