//! The scenarios on assigned devices: from outside, where it boots labs for them, and in there.

#[cfg(loom)]
fn main() {}

#[cfg(not(loom))]
fn main() -> std::process::ExitCode {
    imp::main()
}

#[cfg(not(loom))]
mod imp {
    use clap::{Parser, Subcommand};
    use pollvisor::error::Result;
    use pollvisor_tests::lab::{Scenario, drive, runner};
    use std::process::ExitCode;
    use std::time::Duration;

    /// Scenarios on assigned devices. A NAME is a scenario's name or the beginning of one; none given: all.
    #[derive(Parser)]
    #[command(name = "lab")]
    struct Arguments {
        #[command(subcommand)]
        what: What,
    }

    #[derive(Subcommand)]
    enum What {
        /// Boot labs, run scenarios in them, say what came of each. The last lines can be read by a program.
        Drive {
            #[command(flatten)]
            options: drive::Options,
            /// Say which scenarios there are and what they need, and run none.
            #[arg(long)]
            list: bool,
            names: Vec<String>,
        },
        /// Run scenarios on this machine, one after the other, each in a process of its own.
        Run {
            names: Vec<String>,
            /// Seconds that one may take.
            #[arg(long, default_value_t = 200)]
            limit: u64,
        },
        /// Run one, in this process.
        One { name: String },
    }

    pub fn main() -> ExitCode {
        match carry_out(Arguments::parse().what) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("lab: {error}");
                ExitCode::from(2)
            }
        }
    }

    fn carry_out(what: What) -> Result<ExitCode> {
        Ok(match what {
            What::Drive { list: true, names, .. } => {
                runner::select(&names)?.into_iter().for_each(say);
                ExitCode::SUCCESS
            }
            What::Drive { options, names, .. } => {
                let good = drive::run(&runner::select(&names)?, &options)?;
                ExitCode::from(u8::from(!good))
            }
            What::Run { names, limit } => runner::run(&runner::select(&names)?, Duration::from_secs(limit)),
            What::One { name } => runner::one(runner::exactly(&name)?),
        })
    }

    fn say(scenario: &Scenario) {
        let needs: Vec<&str> = scenario.needs.iter().map(|need| need.name()).collect();
        println!("{}\t{}", scenario.name, needs.join(", "));
    }
}
