//! The scenarios on assigned devices, for inside the lab: `tests/lab/run` brings it there.

#[cfg(loom)]
fn main() {}

#[cfg(not(loom))]
fn main() -> std::process::ExitCode {
    imp::main()
}

#[cfg(not(loom))]
mod imp {
    use clap::Parser;
    use pollvisor_tests::lab::runner;
    use std::process::ExitCode;
    use std::time::Duration;

    /// Runs scenarios on assigned devices, one after the other, each in a process of its own.
    #[derive(Parser)]
    #[command(name = "lab")]
    struct Arguments {
        /// Those with this name, or whose names begin so; none given: all.
        names: Vec<String>,
        /// Say which there are and what they need, and run none.
        #[arg(long)]
        list: bool,
        /// Run this one, in this process.
        #[arg(long, value_name = "NAME", conflicts_with_all = ["names", "list"])]
        one: Option<String>,
        /// Seconds that one may take.
        #[arg(long, default_value_t = 200)]
        limit: u64,
    }

    pub fn main() -> ExitCode {
        let arguments = Arguments::parse();
        let alone = arguments.one.is_some();
        let names = arguments.one.map_or(arguments.names, |name| vec![name]);
        let chosen = match runner::select(&names) {
            Ok(chosen) => chosen,
            Err(error) => {
                eprintln!("lab: {error}");
                return ExitCode::from(2);
            }
        };
        if arguments.list {
            for scenario in chosen {
                let needs: Vec<&str> = scenario.needs.iter().map(|need| need.name()).collect();
                println!("{}\t{}", scenario.name, needs.join(", "));
            }
            return ExitCode::SUCCESS;
        }
        match &chosen[..] {
            [scenario] if alone => runner::one(scenario),
            _ if alone => {
                eprintln!("lab: --one wants the name of one scenario");
                ExitCode::from(2)
            }
            _ => runner::run(&chosen, Duration::from_secs(arguments.limit)),
        }
    }
}
