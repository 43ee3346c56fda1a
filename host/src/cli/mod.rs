//! The command line: Cloud Hypervisor's grammar of `key=value,…`, rt-tests' names for measuring.

use crate::pin::parse_list;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// A VMM for Linux KVM whose interrupt path is polled and measured.
///
/// Without a command: `run` with its defaults, about five seconds.
#[derive(Debug, Parser)]
#[command(name = "pollvisor", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `run`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a guest, send it interrupts, and print how long each stage took
    Run(Box<RunArgs>),
}

/// What signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceArg {
    /// An eventfd per vector
    Eventfd,
    /// A bell per vector, in shared memory
    Doorbell,
}

/// Who delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeliveryArg {
    /// A poller that never sleeps
    Polled,
    /// The kernel, by KVM_IRQFD
    Irqfd,
    /// A thread that sleeps in epoll_wait
    Blocking,
}

/// What the guest does between interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IdleArg {
    /// HLT, handled by KVM
    Hlt,
    /// A PAUSE loop
    Spin,
    /// HLT that stays in the guest
    HltNoexit,
}

/// Which guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GuestArg {
    /// The one built in: a handler that says when it ran
    Builtin,
    /// None runs: the LAPICs only accept
    None,
}

/// The flags of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Interrupt vectors, 1 to 4096
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub vectors: usize,
    /// What signals
    #[arg(long, value_enum, default_value_t = SourceArg::Eventfd)]
    pub source: SourceArg,
    /// Who delivers
    #[arg(long, value_enum, default_value_t = DeliveryArg::Polled)]
    pub delivery: DeliveryArg,
    /// Time between signals, over all vectors in turn; 0 for no pause (units: ns us ms s; a bare number is us)
    #[arg(short, long, default_value = "200us", value_parser = interval, value_name = "TIME")]
    pub interval: Duration,
    /// How long to measure (units: ms s m h; a bare number is s)
    #[arg(short = 'D', long, default_value = "4s", value_parser = duration, value_name = "TIME")]
    pub duration: Duration,
    /// How long to run before measuring
    #[arg(long, default_value = "500ms", value_parser = duration, value_name = "TIME")]
    pub warm_up: Duration,
    /// Where the poller runs: cpu=N[,fifo=on|off]
    #[arg(long, value_parser = poller, value_name = "cpu=N")]
    pub poller: Option<PollerArg>,
    /// vCPUs and where they run.
    #[arg(
        long,
        value_parser = cpus,
        value_name = "boot=N",
        help = "vCPUs and where they run: boot=N[,affinity=[0@[2],1@[3]]]"
    )]
    pub cpus: Option<CpusArg>,
    /// What the guest does between interrupts
    #[arg(long, value_enum, default_value_t = IdleArg::Hlt)]
    pub guest_idle: IdleArg,
    /// Which guest runs
    #[arg(long, value_enum, default_value_t = GuestArg::Builtin)]
    pub guest: GuestArg,
    /// How long KVM polls before it lets a halted vCPU's CPU sleep, in nanoseconds
    #[arg(long, value_name = "NS")]
    pub halt_poll: Option<u32>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Write an HdrHistogram interval log, tagged by stage
    #[arg(long, value_name = "FILE")]
    pub hlog: Option<PathBuf>,
    /// No live lines
    #[arg(short, long)]
    pub quiet: bool,
}

/// `--poller`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollerArg {
    /// The CPU.
    pub cpu: usize,
    /// SCHED_FIFO; `None`: when the CPU is isolated.
    pub fifo: Option<bool>,
}

/// `--cpus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpusArg {
    /// How many.
    pub boot: u32,
    /// (vCPU, CPU).
    pub affinity: Vec<(u32, usize)>,
}

/// Splits `key=value,key=value`, minding brackets.
fn options(text: &str) -> Result<Vec<(&str, &str)>, String> {
    let mut parts = Vec::new();
    for part in split(text)? {
        let pair = part.split_once('=').ok_or_else(|| format!("`{part}` is not key=value"))?;
        if parts.iter().any(|(key, _)| *key == pair.0) {
            return Err(format!("`{}` is given twice", pair.0));
        }
        parts.push(pair);
    }
    Ok(parts)
}

/// Splits at the commas that are not within brackets.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0u32, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1).ok_or_else(|| format!("`{text}`: a ] too many"))?,
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    if depth != 0 {
        return Err(format!("`{text}`: a ] is missing"));
    }
    parts.push(&text[from..]);
    Ok(parts)
}

fn number<T: std::str::FromStr>(key: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{key}=`{text}` is not a number"))
}

fn switch(key: &str, text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{key}=`{text}`: on or off")),
    }
}

fn poller(text: &str) -> Result<PollerArg, String> {
    let (mut cpu, mut fifo) = (None, None);
    for (key, value) in options(text)? {
        match key {
            "cpu" => cpu = Some(number(key, value)?),
            "fifo" => fifo = Some(switch(key, value)?),
            _ => return Err(format!("`{key}` is not known; cpu and fifo are")),
        }
    }
    Ok(PollerArg { cpu: cpu.ok_or("cpu=N is missing")?, fifo })
}

fn cpus(text: &str) -> Result<CpusArg, String> {
    let (mut boot, mut affinity) = (None, Vec::new());
    for (key, value) in options(text)? {
        match key {
            "boot" => boot = Some(number(key, value)?),
            "affinity" => affinity = pairs(value)?,
            _ => return Err(format!("`{key}` is not known; boot and affinity are")),
        }
    }
    let boot: u32 = boot.ok_or("boot=N is missing")?;
    if let Some((vcpu, _)) = affinity.iter().find(|(vcpu, _)| *vcpu >= boot) {
        return Err(format!("affinity names vCPU {vcpu}, and boot={boot}"));
    }
    Ok(CpusArg { boot, affinity })
}

/// `[0@[2],1@[3]]`.
fn pairs(text: &str) -> Result<Vec<(u32, usize)>, String> {
    let inner =
        |text: &'_ str| -> Option<String> { Some(text.strip_prefix('[')?.strip_suffix(']')?.to_string()) };
    let list = inner(text).ok_or_else(|| format!("affinity=`{text}`: a list like [0@[2],1@[3]]"))?;
    let mut pairs: Vec<(u32, usize)> = Vec::new();
    for part in split(&list)? {
        let wrong = || format!("affinity: `{part}` is not like 0@[2]");
        let (vcpu, cpus) = part.split_once('@').ok_or_else(wrong)?;
        let vcpu = number("affinity", vcpu)?;
        let cpus = parse_list(&inner(cpus).ok_or_else(wrong)?)?;
        let [cpu] = cpus[..] else { return Err(format!("affinity: vCPU {vcpu} needs exactly one CPU")) };
        if pairs.iter().any(|(other, _)| *other == vcpu) {
            return Err(format!("affinity: vCPU {vcpu} is given twice"));
        }
        pairs.push((vcpu, cpu));
    }
    Ok(pairs)
}

fn interval(text: &str) -> Result<Duration, String> {
    time(text, "us")
}

fn duration(text: &str) -> Result<Duration, String> {
    time(text, "s")
}

/// `10s`, `5m`, `1h`, `200us`, `1.5ms`; a bare number is in `unit`.
fn time(text: &str, unit: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (value, given) = text.split_at(at);
    let seconds = match if given.is_empty() { unit } else { given } {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("`{other}` is not a unit of time; ns us ms s m h are")),
    };
    let value: f64 = value.parse().map_err(|_| format!("`{text}` is not a time"))?;
    Duration::try_from_secs_f64(value * seconds).map_err(|_| format!("`{text}` is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar() {
        assert_eq!(poller("cpu=4"), Ok(PollerArg { cpu: 4, fifo: None }));
        assert_eq!(poller("cpu=4,fifo=on"), Ok(PollerArg { cpu: 4, fifo: Some(true) }));
        let expected = CpusArg { boot: 2, affinity: vec![(0, 2), (1, 3)] };
        assert_eq!(cpus("boot=2,affinity=[0@[2],1@[3]]"), Ok(expected));
        for wrong in ["", "cpu", "cpu=x", "cpu=1,cpu=2", "fifo=on", "cpu=1,fifo=maybe", "cpu=1,core=2"] {
            assert!(poller(wrong).is_err(), "{wrong}");
        }
        for wrong in [
            "affinity=[0@[1]]",
            "boot=1,affinity=[1@[1]]",
            "boot=1,affinity=0@1",
            "boot=1,affinity=[0@[1-2]]",
            "boot=1,affinity=[0@[1]",
            "boot=2,affinity=[0@[1],0@[2]]",
            "boot=1]",
        ] {
            assert!(cpus(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(interval("200"), Ok(Duration::from_micros(200)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(interval("1.5ms"), Ok(Duration::from_micros(1500)));
        for wrong in ["", "s", "1x", "1..2s", "-1s", "9999999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_command_is_run() {
        let bare = Cli::parse_from(["pollvisor", "--vectors", "3"]);
        assert!(bare.command.is_none() && bare.run.vectors == 3);
        assert!(matches!(Cli::parse_from(["pollvisor", "run", "-D", "1s"]).command, Some(Command::Run(_))));
    }
}
