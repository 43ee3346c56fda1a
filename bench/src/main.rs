//! The benchmark: interrupt paths side by side, under loads that do not wait. It drives pollvisor's public API, and the
//! crates that other VMMs are made of.
#![deny(unsafe_code)]

mod common;
mod measure;
#[allow(dead_code, reason = "reading results back is for who compares them")]
mod model;
mod noise;
mod overhead;
mod paths;
mod produce;
mod rounds;
mod table;
mod way;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Measures interrupt paths of KVM guests against one another
#[derive(Debug, Parser)]
#[command(name = "pollvisor-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// From the signal until the in-kernel LAPIC has the interrupt, no vCPU running, by every path side by side
    Paths(paths::PathsArgs),
    /// What measuring itself costs
    Overhead(overhead::OverheadArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _printed = error.print();
            return if error.use_stderr() { ExitCode::from(common::FAILED) } else { ExitCode::SUCCESS };
        }
    };
    let done = match &cli.command {
        Command::Paths(args) => paths::run(args),
        Command::Overhead(args) => overhead::run(args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("pollvisor-bench: {error}");
        ExitCode::from(common::FAILED)
    })
}
