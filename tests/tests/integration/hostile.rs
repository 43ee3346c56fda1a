//! A guest that writes at random to everything the machine has that is no device of the host's: the PCI bus, its ports,
//! the I/O APIC, the LAPIC's end of interrupt, the serial port, the power registers. Its VMM goes on, answers, and does
//! not grow. `SCRIBBLE_SEED` makes a run again, `SCRIBBLE_SECONDS` a longer one.

use crate::harness::tests;
use pollvisor::accel::kvm::VcpuThread;
use pollvisor::accel::{Idle, VmConfig};
use pollvisor::clock::Clock;
use pollvisor::guest::puppet::Puppet;
use pollvisor::guest::scribble::Place;
use pollvisor::guest::{Guest, Role};
use pollvisor::interrupts::{Attach, Source};
use pollvisor::legacy::{Console, Ending, PANIC_PORT, POWER_PORT, Power, SERIAL_PORT, Serial, press_button};
use pollvisor::pin::Placement;
use pollvisor::platform::{ECAM_BASE, Platform};
use pollvisor::poller::PollerThread;
use pollvisor::record::Figures;
use pollvisor::source::{Backend, Lane};
use pollvisor::sys::fd::EventFd;
use pollvisor_core::ids::{Gsi, SourceId, VcpuId};
use pollvisor_core::ioapic::Pin;
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::route::Irqchip;
use pollvisor_tests::note;
use pollvisor_tests::scribble::{self, CONFIG_ADDRESS, EOI, SWITCH, Vitals, WILD, memory, ports};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

tests! {
    kvm [] => a_guest_that_scribbles_does_its_vmm_no_harm;
}

const NOWHERE: Placement = Placement { cpu: None, fifo: Some(false) };
/// The line's pin, and the slot that it is counted in.
const PIN: u8 = 17;
const SLOT: usize = 2;
const ACCESSES: u64 = 2000;
/// A guest that has not made its accesses by then has stopped itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// A machine with the old devices, a line on a pin, and a poller that delivers it by sleeping.
struct Machine {
    _serial: Serial,
    vcpu: Option<VcpuThread>,
    poller: Option<PollerThread>,
    line: (Arc<EventFd>, SourceId),
    puppet: Puppet,
    platform: Platform,
}

impl Machine {
    fn new() -> Self {
        let guest = Guest::new().expect("memory");
        let config = VmConfig { irqchip: Irqchip::Split, idle: Idle::Halt, halt_poll_ns: None };
        let clock = Clock::calibrate().expect("clock");
        let platform = Platform::new(&config, guest.memory().clone(), clock, 4).expect("a machine");
        let (parts, ending) = (platform.parts(), Arc::new(Ending::default()));
        Power::add(&parts.buses, &ending).expect("free");
        let serial = Serial::add(&Console::Off, &parts.buses, &parts.interrupts, &ending).expect("free");
        let vcpu = platform.create_vcpu(VcpuId(0)).expect("a vCPU");
        guest.prepare(&vcpu, Role::Puppet).expect("registers");
        let vcpu = VcpuThread::start(vcpu, NOWHERE, platform.exits()).expect("a thread");
        let lane = Lane::new(Backend::EpollBlock, 4).expect("a lane");
        let figures = Figures::new(&[], 4, false);
        let poller =
            PollerThread::start(platform.interrupts(), lane, figures, NOWHERE, "line").expect("a poller");
        let event = Arc::new(EventFd::new().expect("event"));
        let ioapic = parts.ioapic.clone().expect("a split irqchip");
        ioapic.set_resampler(Pin::new(PIN).expect("a pin"), true).expect("routes");
        let attach = Attach {
            source: Source::Event(event.clone()),
            gsi: Gsi(PIN.into()),
            port: poller.port(),
            resample: Some(Arc::new(EventFd::new().expect("event"))),
            slot: Some(2),
        };
        let id = platform.interrupts().attach_with(attach).expect("bound");
        let puppet = Puppet::new(guest, parts.vm.clone(), VcpuId(0));
        let (vcpu, poller) = (Some(vcpu), Some(poller));
        Self { _serial: serial, vcpu, poller, line: (event, id), puppet, platform }
    }

    /// Ends it; what became of the line's signals, and the mistake of the vCPU, if it made one.
    fn stop(mut self) -> (Outcome, pollvisor::Result<()>) {
        let interrupts = self.platform.interrupts();
        assert!(interrupts.detach(self.line.1), "it was bound");
        let figures = self.poller.take().expect("until now").stop().expect("it ran to the end");
        let mut outcome = figures.ledger[SLOT];
        outcome += interrupts.slow_path(SLOT);
        (outcome, self.vcpu.take().expect("until now").stop())
    }
}

/// `wild`: with values that stop the guest sooner or later.
fn places(wild: bool) -> Vec<Place<'static>> {
    let mut places = scribble::ioapic(wild);
    places.extend([
        memory(ECAM_BASE, 1 << 20, WILD),
        memory(ECAM_BASE, 1 << 12, WILD),
        ports(0xcf8, 8, CONFIG_ADDRESS),
        ports(0xcf8, 8, WILD),
        ports(SERIAL_PORT, 8, WILD),
        ports(SERIAL_PORT, 2, SWITCH),
        ports(POWER_PORT, 4, WILD),
        ports(PANIC_PORT & !7, 8, WILD),
        EOI,
    ]);
    places
}

/// One machine, scribbled at until `until`, or until the guest has stopped itself. Whether it has not.
fn scribbled(seed: u64, until: Instant, wild: bool) -> bool {
    let machine = Machine::new();
    let mut random = fastrand::Rng::with_seed(seed);
    let (stop, signals) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut before, mut rounds) = (None, 0);
    let began = Instant::now();
    let alive = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                machine.line.0.signal(1);
                signals.fetch_add(1, Ordering::Relaxed);
                press_button(machine.platform.interrupts());
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let mut alive = true;
        while alive && Instant::now() < until {
            let (puppet, places) = (&machine.puppet, places(wild));
            rounds += 1;
            alive = puppet.scribble(random.u64(..), ACCESSES, &places, PATIENCE).is_ok();
            // What a first time takes once is not growth.
            if before.is_none() && began.elapsed() > Duration::from_secs(1) {
                before = Some(Vitals::now());
            }
        }
        stop.store(true, Ordering::Relaxed);
        alive
    });
    // A pin's pause after a storm of ends of interrupt is a thread, for ten milliseconds.
    std::thread::sleep(Duration::from_millis(50));
    if let Some(before) = before {
        let after = before.check().expect("it stays as large as it was");
        note!("{before:?}, then {after:?}");
    }
    let (outcome, vcpu) = machine.stop();
    note!("{} accesses, {outcome:?}, {vcpu:?}", rounds * ACCESSES);
    assert_eq!(outcome.signals(), signals.into_inner(), "every signal is accounted for: {outcome:?}");
    assert!(wild || (alive && vcpu.is_ok()), "nothing that it wrote can stop this guest: {vcpu:?}");
    alive
}

fn a_guest_that_scribbles_does_its_vmm_no_harm() {
    let time = scribble::duration(Duration::from_secs(4)) / 2;
    let seed = scribble::seed();
    assert!(scribbled(seed, Instant::now() + time, false));
    let (began, mut machines, mut stopped) = (Instant::now(), 0, 0);
    let before = Vitals::now();
    while machines == 0 || began.elapsed() < time {
        machines += 1;
        stopped += u32::from(!scribbled(seed + machines, began + time, true));
    }
    let after = before.check().expect("nothing stays of a machine");
    note!(
        "{machines} machines of wild guests, {stopped} of which stopped themselves; {before:?}, then {after:?}"
    );
}
