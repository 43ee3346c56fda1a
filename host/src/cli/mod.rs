//! The command line: Cloud Hypervisor's grammar of `key=value,…`, rt-tests' names for measuring.

mod boot;
mod device;
mod grammar;

pub use crate::devices::DeviceAddress;
pub use boot::{BootArgs, MemoryArg, Profile};
pub use device::DeviceArg;
pub use grammar::{duration, interval};

use crate::pci::Bdf;
use crate::pin::parse_list;
use clap::{Args, Parser, Subcommand, ValueEnum};
use grammar::{bracketed, number, options, split, switch};
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
    /// Show the host's PCI devices, and give them to vfio-pci or back
    #[command(subcommand)]
    Devices(DevicesCommand),
    /// Show, create and remove mediated devices
    #[command(subcommand)]
    Mdev(MdevCommand),
}

/// `pollvisor devices`.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum DevicesCommand {
    /// Show every PCI device, and what is in the way of assigning it
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give devices to vfio-pci; refused for one that the host itself uses
    Bind {
        /// PCI addresses, such as 0000:01:00.0 or 01:00.0
        #[arg(required = true, value_name = "BDF")]
        addresses: Vec<Bdf>,
    },
    /// Give devices back to the host's drivers; waits while a VMM has one
    Unbind {
        /// PCI addresses, such as 0000:01:00.0 or 01:00.0
        #[arg(required = true, value_name = "BDF")]
        addresses: Vec<Bdf>,
    },
    /// Fire every vector of devices through eventfd, poller and guest by VFIO's loopback, and print how long it took
    Test {
        /// PCI addresses, such as 0000:01:00.0 or 01:00.0
        #[arg(required = true, value_name = "BDF")]
        addresses: Vec<Bdf>,
        /// The flags of `run`.
        #[command(flatten)]
        run: Box<RunArgs>,
    },
}

/// `pollvisor mdev`.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum MdevCommand {
    /// Show what can be created, and what there is
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Create a mediated device and print its UUID
    Create {
        /// Whose it is, as `mdev list` names it
        parent: String,
        /// Which kind, as `mdev list` names it
        #[arg(value_name = "TYPE")]
        kind: String,
        /// Its name; a random one when not given
        uuid: Option<String>,
    },
    /// Remove a mediated device
    Remove {
        /// Its name
        uuid: String,
    },
}

/// What runs the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum AccelArg {
    /// KVM where /dev/kvm can be opened, else the software machine
    #[default]
    Auto,
    /// KVM
    Kvm,
    /// The software machine: a software LAPIC, no guest code; runs anywhere, compares with nothing but itself
    Software,
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

/// Which kind of a device's interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InterruptArg {
    /// The best that the device has: MSI-X, else MSI, else INTx
    Auto,
    /// MSI-X
    Msix,
    /// MSI, one vector
    Msi,
    /// INTx
    Intx,
}

/// Where the interrupt chips live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IrqchipArg {
    /// The LAPICs in the kernel, the I/O APIC here; kernel for INTx by irqfd
    Auto,
    /// The LAPICs in the kernel, the I/O APIC here
    Split,
    /// All in the kernel
    Kernel,
}

/// The flags of `run`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RunArgs {
    /// What runs the guest
    #[arg(long, value_enum, default_value_t = AccelArg::Auto)]
    pub accel: AccelArg,
    /// Interrupt vectors, 1 to 4096 [default: 8; with devices all they have]
    #[arg(long, value_name = "N")]
    pub vectors: Option<usize>,
    /// A device to assign; its vectors are fired by VFIO's loopback. Any number of times
    #[arg(
        long,
        value_name = "host=BDF",
        help = "A device whose vectors are fired, by VFIO's loopback: host=01:00.0 or path=/sys/bus/pci/devices/0000:01:00.0\
                [,id=NAME,iommufd=on|off,x_exclude_mmap_bars=[2],irq_cpus=@[2-5,8],delivery=polled|irqfd|blocking]"
    )]
    pub device: Vec<DeviceArg>,
    /// Which of a device's interrupts
    #[arg(long, value_enum, default_value_t = InterruptArg::Auto)]
    pub interrupt: InterruptArg,
    /// Where the interrupt chips of a guest with devices live
    #[arg(long, value_enum, default_value_t = IrqchipArg::Auto)]
    pub irqchip: IrqchipArg,
    /// Hand devices' vectors over between poller and irqfd this often (units: us ms s; a bare number is us)
    #[arg(long, value_parser = interval, value_name = "TIME")]
    pub hand_over: Option<Duration>,
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
    /// Where the poller runs, and which vectors of assigned devices it has, the others being the kernel's:
    /// cpu=N[,fifo=on|off,vectors=[nic0:0-3]]
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
    /// The flags of a guest that is booted.
    #[command(flatten, next_help_heading = "A guest that is booted")]
    pub boot: BootArgs,
}

impl RunArgs {
    /// Vectors of the built-in sources.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.vectors.unwrap_or(8)
    }
}

/// `--poller`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollerArg {
    /// The CPU.
    pub cpu: usize,
    /// SCHED_FIFO; `None`: when the CPU is isolated.
    pub fifo: Option<bool>,
    /// Devices by name and those of their vectors that it has; empty: all, of all.
    pub vectors: Vec<(String, Vec<usize>)>,
}

/// `--cpus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpusArg {
    /// How many.
    pub boot: u32,
    /// (vCPU, CPU).
    pub affinity: Vec<(u32, usize)>,
}

fn poller(text: &str) -> Result<PollerArg, String> {
    let (mut cpu, mut fifo, mut vectors) = (None, None, Vec::new());
    for (key, value) in options(text)? {
        match key {
            "cpu" => cpu = Some(number(key, value)?),
            "fifo" => fifo = Some(switch(key, value)?),
            "vectors" => vectors = some_vectors(value)?,
            _ => return Err(format!("`{key}` is not known; cpu, fifo and vectors are")),
        }
    }
    Ok(PollerArg { cpu: cpu.ok_or("cpu=N is missing")?, fifo, vectors })
}

/// `[nic0:0-3,8,nic1:2]`.
fn some_vectors(text: &str) -> Result<Vec<(String, Vec<usize>)>, String> {
    let wrong = || format!("vectors=`{text}`: a list like [nic0:0-3,nic1:2]");
    let mut all: Vec<(String, Vec<usize>)> = Vec::new();
    for part in bracketed(text).ok_or_else(wrong)?.split(',') {
        let (name, list) = part.rsplit_once(':').map_or((None, part), |(name, list)| (Some(name), list));
        if let Some(name) = name {
            if name.is_empty() || all.iter().any(|(other, _)| other == name) {
                return Err(wrong());
            }
            all.push((name.to_string(), Vec::new()));
        }
        let vectors = parse_list(list).ok().filter(|vectors| !vectors.is_empty()).ok_or_else(wrong)?;
        all.last_mut().ok_or_else(wrong)?.1.extend(vectors);
    }
    Ok(all)
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
    if boot == 0 {
        return Err("boot=0: a guest needs a vCPU".into());
    }
    if let Some((vcpu, _)) = affinity.iter().find(|(vcpu, _)| *vcpu >= boot) {
        return Err(format!("affinity names vCPU {vcpu}, and boot={boot}"));
    }
    Ok(CpusArg { boot, affinity })
}

/// `[0@[2],1@[3]]`.
fn pairs(text: &str) -> Result<Vec<(u32, usize)>, String> {
    let list = bracketed(text).ok_or_else(|| format!("affinity=`{text}`: a list like [0@[2],1@[3]]"))?;
    let mut pairs: Vec<(u32, usize)> = Vec::new();
    for part in split(list)? {
        let wrong = || format!("affinity: `{part}` is not like 0@[2]");
        let (vcpu, cpus) = part.split_once('@').ok_or_else(wrong)?;
        let vcpu = number("affinity", vcpu)?;
        let cpus = parse_list(bracketed(cpus).ok_or_else(wrong)?)?;
        let [cpu] = cpus[..] else { return Err(format!("affinity: vCPU {vcpu} needs exactly one CPU")) };
        if pairs.iter().any(|(other, _)| *other == vcpu) {
            return Err(format!("affinity: vCPU {vcpu} is given twice"));
        }
        pairs.push((vcpu, cpu));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar() {
        assert_eq!(poller("cpu=4"), Ok(PollerArg { cpu: 4, fifo: None, vectors: vec![] }));
        assert_eq!(poller("cpu=4,fifo=on"), Ok(PollerArg { cpu: 4, fifo: Some(true), vectors: vec![] }));
        let vectors = vec![("nic0".to_string(), vec![0, 1, 8]), ("0000:01:00.0".to_string(), vec![2])];
        let some = poller("cpu=4,vectors=[nic0:0-1,8,0000:01:00.0:2]");
        assert_eq!(some, Ok(PollerArg { cpu: 4, fifo: None, vectors }));
        for wrong in
            ["vectors=0", "vectors=[0]", "vectors=[nic0:]", "vectors=[:0]", "vectors=[nic0:0,nic0:1]"]
        {
            assert!(poller(&format!("cpu=4,{wrong}")).is_err(), "{wrong}");
        }
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
    fn no_command_is_run() {
        let bare = Cli::parse_from(["pollvisor", "--vectors", "3"]);
        assert!(bare.command.is_none() && bare.run.vectors == Some(3));
        assert!(matches!(Cli::parse_from(["pollvisor", "run", "-D", "1s"]).command, Some(Command::Run(_))));
    }

    #[test]
    fn device_commands() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["pollvisor"], words].concat());
        let addresses =
            vec!["01:00.0".parse().expect("an address"), "0001:02:00.1".parse().expect("an address")];
        match parse(&["devices", "bind", "01:00.0", "0001:02:00.1"]).expect("valid").command {
            Some(Command::Devices(command)) => assert_eq!(command, DevicesCommand::Bind { addresses }),
            other => panic!("{other:?}"),
        }
        match parse(&["mdev", "create", "p", "t"]).expect("valid").command {
            Some(Command::Mdev(MdevCommand::Create { parent, kind, uuid: None })) => {
                assert_eq!((parent.as_str(), kind.as_str()), ("p", "t"));
            }
            other => panic!("{other:?}"),
        }
        for wrong in [
            &["devices"][..],
            &["devices", "bind"],
            &["devices", "bind", "01:00"],
            &["devices", "bind", "--force", "01:00.0"],
            &["mdev", "create", "p"],
            &["mdev", "remove"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
