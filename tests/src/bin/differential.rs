//! The differential against the kernel, for as long as one likes.

#[cfg(loom)]
fn main() {}

#[cfg(not(loom))]
fn main() -> std::process::ExitCode {
    imp::main()
}

#[cfg(not(loom))]
mod imp {
    use clap::{Parser, ValueEnum};
    use pollvisor_tests::differential::{self as d, Half};
    use std::process::ExitCode;

    /// Random steps against the kernel's irqfds, I/O APIC and local APICs, and against ours; the first difference ends it.
    #[derive(Parser)]
    #[command(name = "differential")]
    struct Arguments {
        /// Steps in all, shared by the three comparisons.
        #[arg(long, default_value_t = 200_000)]
        ops: u64,
        /// Where the random numbers begin; not given: somewhere.
        #[arg(long)]
        seed: Option<u64>,
        /// One comparison only; it has all the steps then.
        #[arg(long)]
        only: Option<Only>,
    }

    #[derive(Clone, Copy, ValueEnum)]
    enum Only {
        Irqfd,
        Ioapic,
        Lapic,
    }

    pub fn main() -> ExitCode {
        let arguments = Arguments::parse();
        let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
        println!("seed {seed}");
        let third = arguments.ops / 3;
        let halves: &[(Half, u64)] = match arguments.only {
            Some(Only::Irqfd) => &[(Half::Irqfd, arguments.ops)],
            Some(Only::Ioapic) => &[(Half::Ioapic, arguments.ops)],
            Some(Only::Lapic) => &[(Half::Lapic, arguments.ops)],
            None => &[(Half::Irqfd, third), (Half::Ioapic, third), (Half::Lapic, arguments.ops - 2 * third)],
        };
        for (half, ops) in halves {
            let began = std::time::Instant::now();
            match d::run(*half, *ops, seed) {
                Ok(tally) => {
                    let seconds = began.elapsed().as_secs_f64();
                    println!("{}: {ops} steps agree, {seconds:.1} s: {tally}", half.name());
                }
                Err(failure) => {
                    eprintln!("{failure}");
                    return ExitCode::FAILURE;
                }
            }
        }
        ExitCode::SUCCESS
    }
}
