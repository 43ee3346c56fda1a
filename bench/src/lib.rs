//! The benchmark: interrupt paths side by side, under loads that do not wait. It drives pollvisor's public API, and the
//! crates that other VMMs are made of.
#![deny(unsafe_code)]

mod common;
mod costs;
mod drive;
mod latency;
mod measure;
mod model;
mod noise;
mod output;
mod overhead;
mod paths;
mod produce;
mod rounds;
mod saturation;
mod scaling;
mod startup;
mod table;
mod threshold;
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
    /// Chosen paths under a load that does not wait for them
    Latency(latency::LatencyArgs),
    /// Interrupts a second and poller, as fast as it goes
    Saturation(saturation::SaturationArgs),
    /// How medians grow with vectors and producers
    Scaling(scaling::ScalingArgs),
    /// What control calls cost, and the data path meanwhile; what a start costs
    Costs(costs::CostsArgs),
    /// What measuring itself costs
    Overhead(overhead::OverheadArgs),
}

/// Does what the process's arguments say. Here and not in the binary, so that the tests run these very lines.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _printed = error.print();
            return if error.use_stderr() { ExitCode::from(common::FAILED) } else { ExitCode::SUCCESS };
        }
    };
    let done = match &cli.command {
        Command::Paths(args) => paths::run(args),
        Command::Latency(args) => latency::run(args),
        Command::Saturation(args) => saturation::run(args),
        Command::Scaling(args) => scaling::run(args),
        Command::Costs(args) => costs::run(args),
        Command::Overhead(args) => overhead::run(args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("pollvisor-bench: {error}");
        ExitCode::from(common::FAILED)
    })
}
