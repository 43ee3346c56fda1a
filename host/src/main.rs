//! The command `pollvisor`.
#![deny(unsafe_code)]

use clap::Parser;
use pollvisor::cli::{Cli, Command};
use pollvisor::devices::{Host, command};
use std::process::ExitCode;

/// Exit codes as rtla has them: 0 done, 1 bad use or failure, 2 kept for thresholds. A guest that is booted adds 3 and 4,
/// and 128 and a signal's number: see `run::guest`.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _printed = error.print();
            return if error.use_stderr() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS };
        }
    };
    let host = Host::default();
    let done = match cli.command {
        Some(Command::Run(args)) => pollvisor::run::run(&args),
        Some(Command::Devices(command)) => command::devices(&host, &command).map(|()| 0),
        Some(Command::Mdev(command)) => command::mdev(&host, &command).map(|()| 0),
        None => pollvisor::run::run(&cli.run),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("pollvisor: {error}");
            ExitCode::from(FAILED)
        }
    }
}
