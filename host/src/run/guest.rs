//! `run --kernel`: boots a guest, and says at the end, and at SIGUSR1, how long its devices' interrupts took.
//!
//! Exit codes: 0 the guest shut down, 3 it rebooted, 4 it panicked (told by its pvpanic driver, or a triple fault; without
//! that driver a panic with `panic=-1` is a reboot), 1 our own failure, 128 and the signal's number when it was stopped.
//! SIGTERM, SIGINT and SIGHUP press the power button and leave the guest `--grace`; a second one, SIGQUIT and Ctrl-A x
//! end it at once.

use super::devices::{self, budget};
use super::guest_devices::{Attached, Turns, delivery};
use super::guest_report::GuestReport;
use super::name;
use super::place::{self, Places};
use super::tuning::{self, Tuning};
use crate::accel::Accelerator;
use crate::accel::VmConfig;
use crate::boot::load::Boot;
use crate::boot::memory;
use crate::cli::{DeliveryArg, IrqchipArg, MemoryArg, RunArgs};
use crate::clock::Clock;
use crate::devices::Host;
use crate::error::{Error, Result};
use crate::legacy::{Console, End, Ending, Wish};
use crate::machine::Machine;
use crate::pin::Placement;
use crate::session::{GuestSession, GuestSessionConfig};
use crate::source::Backend;
use pollvisor_core::route::Irqchip;
use signal_hook::iterator::{Handle, Signals};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const REBOOT: u8 = 3;
const PANIC: u8 = 4;
const SIGNAL: u8 = 128;
/// How often a vCPU that failed is looked for.
const TICK: Duration = Duration::from_millis(100);
const GRACE: Duration = Duration::from_secs(10);
const MEMORY: u64 = 512 << 20;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Guest(End),
    Signal(i32),
    Failed,
}

impl How {
    fn code(self) -> u8 {
        match self {
            Self::Guest(End::Shutdown) => 0,
            Self::Guest(End::Reboot) => REBOOT,
            Self::Guest(End::Panic) => PANIC,
            Self::Signal(number) => SIGNAL.saturating_add(u8::try_from(number).unwrap_or(0)),
            Self::Failed => 1,
        }
    }
}

/// Runs it, and prints the figures.
///
/// # Errors
/// What is in the way, and what to do about it.
pub(super) fn run(args: &RunArgs) -> Result<u8> {
    check(args)?;
    let ending = Arc::new(Ending::default());
    let _signals = Listener::start(&ending)?;
    // A guest runs all the same where nothing can be timed.
    let (clock, untimed) = match Clock::calibrate() {
        Ok(clock) => (clock, None),
        Err(error) => (Clock::uncertain(), Some(error)),
    };
    let mut places = place::place(args)?;
    let tuning = Tuning::new(args, args.boot.memory.unwrap_or(MemoryArg::of(MEMORY)), &places)?;
    settle(&mut places, args, tuning.pin)?;
    let mut machine = Machine::this(Accelerator::Kvm, clock);
    let memory = Arc::new(memory::allocate(&tuning.memory)?);
    let host = Host::default();
    let config = config(args, &places, &host, &tuning)?;
    let mut session = GuestSession::new(&config, memory, host, clock, &ending)?;
    let mut attached = Vec::new();
    for device in &args.device {
        let device = tuning.device(device, delivery(args, device), &places);
        attached.push(Arc::new(Attached::new(&session, &device, args)?));
    }
    (machine.idle, machine.source) = ("linux".into(), "vfio".into());
    machine.delivery = name(args.delivery);
    machine.locked = tuning.memory.mlock;
    let began = Instant::now();
    session.run()?;
    machine.warnings.extend(untimed.map(|error| tuning::line(&error)));
    machine.warnings.extend_from_slice(&tuning.lacking);
    machine.warnings.extend_from_slice(session.warnings());
    if args.boot.profile.is_some() {
        machine.warnings.iter().for_each(|lacking| eprintln!("pollvisor: {lacking}"));
    }

    let mut total = session.empty_figures();
    let mut turns = Turns::new(&attached, args.hand_over);
    let (how, failed) =
        watch(&mut session, &ending, args.boot.grace.unwrap_or(GRACE), &mut turns, |session| {
            total.add(&session.take_figures());
            eprint!("{}", GuestReport::new(&attached, &total, &machine, began.elapsed()).table());
        });
    total.add(&session.take_figures());
    machine.warnings.extend(session.fleet()?.news().iter().map(ToString::to_string));
    let mut report = GuestReport::new(&attached, &total, &machine, began.elapsed());
    report.handed_over(args.hand_over.map(|_| turns.moves()));
    drop((attached, turns));
    let (late, stopped) = session.stop();
    report.add_late(&late);
    report.ended(how);
    print(args, &report)?;
    match (how, failed.and(stopped)) {
        // A triple fault ends its vCPU with an error, which this is.
        (How::Guest(End::Panic), _) => Ok(how.code()),
        (_, result) => result.map(|()| how.code()),
    }
}

/// That no flag is given that this guest cannot do.
fn check(args: &RunArgs) -> Result<()> {
    let given = [("--vectors", args.vectors.is_some()), ("--hlog", args.hlog.is_some())];
    if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
        return Err(
            Error::new(format!("{flag} is for the built-in guest")).remedy("leave it out with --kernel")
        );
    }
    let polled = by_poller(args, DeliveryArg::Polled) || by_poller(args, DeliveryArg::Blocking);
    if args.hand_over.is_some() && !polled {
        return Err(Error::new("--hand-over: no poller delivers a device, so there is nothing to hand over")
            .remedy("--device host=BDF with --delivery polled or blocking"));
    }
    devices::hand_over_takes_time(args)?;
    devices::no_device_twice(args)
}

/// Waits for the end, and hands over meanwhile. `show`: somebody wants to see the figures.
fn watch(
    session: &mut GuestSession,
    ending: &Ending,
    grace: Duration,
    turns: &mut Turns,
    mut show: impl FnMut(&GuestSession),
) -> (How, Result<()>) {
    let mut asked: Option<(Instant, i32)> = None;
    loop {
        match ending.wait(turns.pause(TICK)) {
            Wish::Ended(end) => return (How::Guest(end), Ok(())),
            Wish::Show => show(session),
            Wish::Stop(signal) if signal == libc::SIGQUIT || asked.is_some() => {
                return (How::Signal(signal), Ok(()));
            }
            Wish::Stop(signal) => {
                asked = Some((Instant::now(), signal));
                if let Err(error) = session.press_button() {
                    return (How::Failed, Err(error));
                }
            }
            Wish::Nothing => turns.take(),
        }
        if let Some((_, signal)) = asked.filter(|(since, _)| since.elapsed() >= grace) {
            return (How::Signal(signal), Ok(()));
        }
        if let Err(error) = session.check_vcpus() {
            // It may have told of the end first.
            return match ending.wait(Duration::ZERO) {
                Wish::Ended(end) => (How::Guest(end), Ok(())),
                _ => (How::Failed, Err(error)),
            };
        }
    }
}

fn print(args: &RunArgs, report: &GuestReport) -> Result<()> {
    let text = if args.json { report.json()? } else { report.table() };
    // The guest has standard output.
    if console(args) == Console::Tty {
        eprint!("{text}")
    } else {
        print!("{text}")
    }
    Ok(())
}

fn console(args: &RunArgs) -> Console {
    args.boot.serial.clone().unwrap_or(Console::Tty)
}

/// Places this thread, and so those it makes. A vCPU that nobody placed is pinned only to keep it off a poller's CPU, or
/// when `pin`.
fn settle(places: &mut Places, args: &RunArgs, pin: bool) -> Result<()> {
    places.vcpus.iter_mut().for_each(|vcpu| vcpu.fifo = args.boot.vcpu_fifo);
    if pin || by_poller(args, DeliveryArg::Polled) || args.hand_over.is_some() {
        let house = Placement { cpu: places.housekeeping, fifo: Some(false) };
        house.apply("housekeeping")?;
        return Ok(());
    }
    let given = args.cpus.as_ref().map_or(&[][..], |cpus| &cpus.affinity);
    for (id, vcpu) in (0..).zip(&mut places.vcpus) {
        vcpu.cpu = vcpu.cpu.filter(|_| given.iter().any(|(given, _)| *given == id));
    }
    Ok(())
}

fn by_poller(args: &RunArgs, wanted: DeliveryArg) -> bool {
    args.device.iter().any(|device| delivery(args, device) == wanted)
}

fn config(args: &RunArgs, places: &Places, host: &Host, tuning: &Tuning) -> Result<GuestSessionConfig> {
    let boot = &args.boot;
    let kernel = boot.kernel.clone().ok_or_else(|| Error::new("no kernel").remedy("--kernel FILE"))?;
    let mut pollers = Vec::new();
    if by_poller(args, DeliveryArg::Polled) {
        pollers.push((Backend::AIO, places.poller));
    }
    if by_poller(args, DeliveryArg::Blocking) {
        pollers.push((Backend::EpollBlock, Placement { cpu: None, fifo: None }));
    }
    Ok(GuestSessionConfig {
        vm: VmConfig {
            irqchip: if args.irqchip == IrqchipArg::Kernel { Irqchip::Kernel } else { Irqchip::Split },
            idle: tuning.idle,
            halt_poll_ns: tuning.halt_poll_ns,
        },
        boot: Boot {
            kernel,
            initramfs: boot.initramfs.clone(),
            cmdline: boot.cmdline.clone().unwrap_or_else(|| "console=ttyS0".into()),
        },
        console: console(args),
        dedicated: tuning.dedicated,
        pollers,
        vcpus: places.vcpus.clone(),
        slots: args.device.iter().map(|device| budget(host, device)).sum(),
    })
}

/// The thread that hears signals.
struct Listener {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn start(ending: &Arc<Ending>) -> Result<Self> {
        let all = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1];
        let mut signals = Signals::new(all).map_err(|e| Error::os("handling signals", &e))?;
        let (handle, ending) = (signals.handle(), ending.clone());
        let thread = crate::pin::thread("signals").spawn(move || {
            for signal in signals.forever() {
                if signal == libc::SIGUSR1 { ending.show() } else { ending.stop(signal) }
            }
        });
        let thread = thread.map_err(|e| Error::os("starting the thread for signals", &e))?;
        Ok(Self { handle, thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}
