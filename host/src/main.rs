//! The command `pollvisor`.
#![deny(unsafe_code)]

use clap::Parser;
use pollvisor::cli::{Cli, Command};
use pollvisor::devices::{Host, command};
use std::process::ExitCode;

/// Exit codes as rtla has them: 0 done, 1 bad use or failure, 2 kept for thresholds.
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
        Some(Command::Devices(command)) => command::devices(&host, &command),
        Some(Command::Mdev(command)) => command::mdev(&host, &command),
        None => pollvisor::run::run(&cli.run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pollvisor: {error}");
            ExitCode::from(FAILED)
        }
    }
}
