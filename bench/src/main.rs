//! The benchmark: every path side by side, in interleaved rounds of one run. It drives pollvisor's public API only.
#![deny(unsafe_code)]

#[allow(dead_code, reason = "until every subcommand makes its results of it")]
mod model;
#[allow(dead_code, reason = "until every subcommand writes its results with it")]
mod output;
mod paths;
mod stats;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Measures pollvisor's interrupt paths against one another
#[derive(Debug, Parser)]
#[command(name = "pollvisor-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// From the signal until the in-kernel LAPIC has the interrupt, no vCPU running, by every path
    Paths(paths::PathsArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _printed = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let Command::Paths(args) = cli.command;
    match paths::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pollvisor-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
