//! The command `pollvisor`.
#![deny(unsafe_code)]

use clap::Parser;
use pollvisor::cli::{Cli, Command};
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
    let args = match cli.command {
        Some(Command::Run(args)) => *args,
        None => cli.run,
    };
    match pollvisor::run::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pollvisor: {error}");
            ExitCode::from(FAILED)
        }
    }
}
