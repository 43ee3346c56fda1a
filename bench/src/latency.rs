//! `latency`: chosen paths, one after the other, under a load that does not wait for them, or under one that does.

use crate::common::{Bench, Findings, OutputArgs};
use crate::drive::{DriveArgs, Rate, drive};
use crate::measure::schedule::Shape;
use crate::table;
use crate::way::{Device, Path, device};
use pollvisor::accel::choose;
use pollvisor::cli::DeviceArg;
use pollvisor::error::{Error, Result};
use std::process::ExitCode;
use std::sync::Arc;

/// The flags of `latency`.
#[derive(Debug, clap::Args)]
pub struct LatencyArgs {
    /// Which paths [default: polled_eventfd,polled_doorbell; of a device: irqfd,polled_eventfd,blocking_epoll]
    #[arg(long = "path", value_enum, value_delimiter = ',', value_name = "PATH,...")]
    paths: Vec<Path>,
    /// Fire this device's vectors by VFIO's loopback, instead of writing to eventfds; by each path in turn
    ///
    /// host=BDF, path=/sys/bus/pci/devices/BDF, or the address alone; it has to be bound to vfio-pci. This is all of an
    /// assigned device's way but the hardware: VFIO's eventfd, whoever takes it, the LAPIC. A device's own interrupts, by a
    /// guest that drives it, are what `pollvisor run --device` measures.
    #[arg(long, value_parser = device, value_name = "DEVICE", verbatim_doc_comment)]
    device: Option<DeviceArg>,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    drive: DriveArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The flags that say when signals are made.
#[derive(Debug, Clone, clap::Args)]
pub struct LoadArgs {
    /// Signals in a second, over all producers
    #[arg(long, default_value_t = 20_000.0, value_parser = rate, value_name = "N")]
    rate: f64,
    /// The schedule: latencies are from the planned times, whatever became of the producer
    #[arg(long, value_enum, default_value_t = Shape::Fixed)]
    schedule: Shape,
    /// Signals at once, to one vector after the other
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096), value_name = "N")]
    burst: u32,
    /// No schedule: each signal so long after the last one as the rate says. What is late delays the next, and hides
    #[arg(long, conflicts_with_all = ["schedule", "burst"])]
    closed: bool,
}

/// A rate, from one a minute to ten million a second.
pub fn rate(text: &str) -> std::result::Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (1.0 / 60.0..=1e7).contains(&rate) { Ok(rate) } else { Err("from 0.0167 to 10000000 a second".into()) }
}

impl LoadArgs {
    /// The load they mean.
    #[must_use]
    pub fn rate(&self) -> Rate {
        if self.closed {
            Rate::Closed(self.rate)
        } else {
            Rate::Open(self.schedule, self.rate, usize::try_from(self.burst).unwrap_or(1))
        }
    }
}

/// Measures and prints.
///
/// # Errors
/// When no path could be measured.
pub fn run(args: &LatencyArgs) -> Result<ExitCode> {
    use Path::{BlockingEpoll, Irqfd, PolledDoorbell, PolledEventfd};
    if args.device.is_some() {
        let why = "maps nothing into a guest and runs no driver";
        choose(args.output.accel)?.refuse(&[("--device", true, why)])?;
    }
    let source = args.device.as_ref().map(|device| format!("vfio-loopback {}", device.address));
    let bench = Bench::begin_with(&args.output, source)?;
    let device = args.device.as_ref().map(|device| Device::open(device, args.drive.vectors)).transpose()?;
    let paths = match &args.paths[..] {
        [] if device.is_some() => &[Irqfd, PolledEventfd, BlockingEpoll][..],
        [] => &[PolledEventfd, PolledDoorbell],
        given => given,
    };
    let mut findings = Findings::default();
    drive_all(&bench, &args.drive, paths, args.load.rate(), device.as_ref(), &mut findings)?;
    // Closed before the report: the host may be waiting for it.
    drop(device);
    bench.finish(findings, table::latency)
}

/// Drives paths one after the other; one that fails is an error among the findings. Ends early on Ctrl-C, when the
/// threshold is hit, and when the device is gone.
///
/// # Errors
/// When all failed: the first one's.
pub fn drive_all(
    bench: &Bench,
    args: &DriveArgs,
    paths: &[Path],
    rate: Rate,
    device: Option<&Arc<Device>>,
    findings: &mut Findings,
) -> Result<()> {
    let mut first: Option<Error> = None;
    for path in paths {
        match drive(bench, args, *path, rate, device) {
            Ok(driven) => {
                findings.paths.push(driven.result);
                findings.warnings.extend(driven.warnings);
                if let Some(gone) = driven.gone {
                    findings.errors.push(gone.context(path.name(bench.accelerator())).to_string());
                    break;
                }
            }
            Err(error) => {
                let error = error.context(path.name(bench.accelerator()));
                findings.errors.push(error.to_string());
                first = first.or(Some(error));
            }
        }
        if bench.is_over() {
            break;
        }
    }
    first.filter(|_| findings.paths.is_empty()).map_or(Ok(()), Err)
}
