//! Runs the fuzzing entry points for a while, on any toolchain: a seed in, inputs a second out, and a file to replay
//! when one panics.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(loom)]
    return ExitCode::from(2);
    #[cfg(not(loom))]
    run::main()
}

#[cfg(not(loom))]
mod run {
    use pollvisor_tests::fuzz::driver::{Inputs, shrink};
    use pollvisor_tests::fuzz::{TARGETS, Target};
    use std::panic::{catch_unwind, set_hook, take_hook};
    use std::path::{Path, PathBuf};
    use std::process::ExitCode;
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    const USAGE: &str = "usage: fuzz [--seconds N] [--target NAME] [--seed S] [--artifacts DIR]
       fuzz --target NAME --input FILE
targets: route, msix, ioapic, irq_set; without one, all of them share the time";

    #[derive(Debug)]
    struct Options {
        seconds: f64,
        targets: Vec<(&'static str, Target)>,
        seed: u64,
        artifacts: PathBuf,
        input: Option<PathBuf>,
    }

    fn options() -> Result<Options, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut options = Options {
            seconds: 10.0,
            targets: TARGETS.to_vec(),
            seed: u64::from(now.subsec_nanos()) ^ now.as_secs() << 20,
            artifacts: PathBuf::from("."),
            input: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} wants a value"))?;
            let bad = || format!("{name} cannot be {value}");
            match name.as_str() {
                "--seconds" => {
                    options.seconds =
                        value.parse().ok().filter(|s| (0.0..1e9).contains(s)).ok_or_else(bad)?;
                }
                "--seed" => options.seed = value.parse().map_err(|_| bad())?,
                "--artifacts" => options.artifacts = value.into(),
                "--input" => options.input = Some(value.into()),
                "--target" => {
                    options.targets.retain(|(name, _)| *name == value);
                    if options.targets.is_empty() {
                        return Err(bad());
                    }
                }
                _ => return Err(format!("what is {name}?")),
            }
        }
        if options.input.is_some() && options.targets.len() > 1 {
            return Err("--input wants a --target".into());
        }
        Ok(options)
    }

    pub fn main() -> ExitCode {
        let options = match options() {
            Ok(options) => options,
            Err(error) => {
                eprintln!("fuzz: {error}\n{USAGE}");
                return ExitCode::from(2);
            }
        };
        let done = match &options.input {
            Some(file) => replay(options.targets[0].1, file),
            None => fuzz(&options),
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("fuzz: {error}");
                ExitCode::FAILURE
            }
        }
    }

    /// Panics where the input does.
    fn replay(target: Target, file: &Path) -> Result<(), String> {
        let input = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        target(&input);
        println!("{}: {} bytes, no panic", file.display(), input.len());
        Ok(())
    }

    fn fuzz(options: &Options) -> Result<(), String> {
        let share = Duration::from_secs_f64(options.seconds / options.targets.len() as f64);
        for (name, target) in &options.targets {
            println!("{name}: seed {}", options.seed);
            let (mut inputs, mut count) = (Inputs::new(options.seed), 0u64);
            let start = Instant::now();
            while start.elapsed() < share {
                // A look at the clock costs as much as a small input.
                for _ in 0..64 {
                    let input = inputs.make();
                    count += 1;
                    if catch_unwind(|| target(&input)).is_err() {
                        return Err(failed(options, name, *target, input, count));
                    }
                }
            }
            let rate = count as f64 / start.elapsed().as_secs_f64();
            println!("{name}: {count} inputs, {rate:.0} a second, no panic");
        }
        Ok(())
    }

    /// Keeps what failed, made shorter.
    fn failed(options: &Options, name: &str, target: Target, input: Vec<u8>, count: u64) -> String {
        // Every attempt that still fails would say so.
        let hook = take_hook();
        set_hook(Box::new(|_| {}));
        let short = shrink(input, |input| catch_unwind(|| target(input)).is_err());
        set_hook(hook);
        let file = options.artifacts.join(format!("fuzz-{name}-{}.input", options.seed));
        let kept = match std::fs::write(&file, &short) {
            Ok(()) => format!(
                "replay: cargo run -p pollvisor-tests --bin fuzz -- --target {name} --input {}",
                file.display()
            ),
            Err(error) => format!("{} cannot be written: {error}; its bytes: {short:?}", file.display()),
        };
        format!(
            "{name} failed with input {count} of seed {}, {} bytes when made shorter\n{kept}",
            options.seed,
            short.len()
        )
    }
}
