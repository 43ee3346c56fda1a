//! The machine that guests with devices see, on real KVM and without any device: GSIs to give away, and the way of a level
//! through our I/O APIC and back, by a guest that ends its interrupts itself.

use crate::harness::tests;
use pollvisor::accel::kvm::VcpuThread;
use pollvisor::accel::{Idle, VmConfig};
use pollvisor::chips::IOAPIC_BASE;
use pollvisor::clock::Clock;
use pollvisor::guest::puppet::Puppet;
use pollvisor::guest::{Guest, Role};
use pollvisor::interrupts::{Attach, Source};
use pollvisor::pin::Placement;
use pollvisor::platform::Platform;
use pollvisor::poller::PollerThread;
use pollvisor::record::Figures;
use pollvisor::source::{Backend, Lane};
use pollvisor::sys::fd::EventFd;
use pollvisor_core::ids::{Gsi, VcpuId};
use pollvisor_core::ioapic::Pin;
use pollvisor_core::route::Irqchip;
use std::sync::Arc;
use std::time::{Duration, Instant};

tests! {
    kvm [] => more_vectors_than_there_are_is_said, a_level_comes_again_until_its_device_is_served;
}

const NOWHERE: Placement = Placement { cpu: None, fifo: Some(false) };
const SPLIT: VmConfig = VmConfig { irqchip: Irqchip::Split, idle: Idle::Halt, halt_poll_ns: None };

fn platform(guest: &Guest, slots: usize) -> Platform {
    let clock = Clock::calibrate().expect("clock");
    Platform::new(&SPLIT, guest.memory().clone(), clock, slots).expect("a machine")
}

fn more_vectors_than_there_are_is_said() {
    let guest = Guest::new().expect("memory");
    let machine = platform(&guest, 10);
    let routes = &machine.parts().routes;
    let seven = routes.allocate(7).expect("seven of ten");
    let error = routes.allocate(4).expect_err("three are left").to_string();
    assert!(error.contains("4 interrupt vectors are wanted and 3 are left (ENOSPC)"), "{error}");
    routes.free(&seven).expect("they come back");
    let mut slots: Vec<_> =
        routes.allocate(10).expect("all").into_iter().map(|gsi| routes.slot(gsi)).collect();
    slots.sort_unstable();
    assert_eq!(slots, (0..10).collect::<Vec<_>>(), "each has a slot of its own");
}

/// A device that holds its line until it is served: the guest's end of interrupt asks it, and it answers.
fn a_level_comes_again_until_its_device_is_served() {
    const PIN: u8 = 17;
    const VECTOR: u8 = 0x40;
    let guest = Guest::new().expect("memory");
    let machine = platform(&guest, 4);
    let vcpu = machine.create_vcpu(VcpuId(0)).expect("a vCPU");
    guest.prepare(&vcpu, Role::Puppet).expect("registers");
    let thread = VcpuThread::start(vcpu, NOWHERE, machine.exits()).expect("a thread");
    let puppet = Puppet::new(guest.clone(), machine.parts().vm.clone(), VcpuId(0));
    let entry = |low: u64| {
        for (register, value) in [(0x11, 0), (0x10, low)] {
            puppet.write(IOAPIC_BASE, 4, register + 2 * u64::from(PIN)).expect("select");
            puppet.write(IOAPIC_BASE + 0x10, 4, value).expect("window");
        }
    };
    let lane = Lane::new(Backend::AIO, 4).expect("a lane");
    let figures = Figures::new(&[], 4, false);
    let poller =
        PollerThread::start(machine.interrupts(), lane, figures, NOWHERE, "level").expect("a poller");
    let (event, ended) = (Arc::new(EventFd::new().expect("event")), Arc::new(EventFd::new().expect("event")));
    let ioapic = machine.parts().ioapic.clone().expect("a split irqchip");
    ioapic.set_resampler(Pin::new(PIN).expect("a pin"), true).expect("routes");
    let attach = Attach {
        source: Source::Event(event.clone()),
        gsi: Gsi(PIN.into()),
        port: poller.port(),
        resample: Some(ended.clone()),
        slot: Some(2),
    };
    let id = machine.interrupts().attach_with(attach).expect("bound");
    let handled = || guest.handled(VcpuId(0), VECTOR);
    let wait = |what: &str, there: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !there() {
            assert!(began.elapsed() < Duration::from_secs(10), "{what}");
            // A KVM that emulates its guest tells of an end of interrupt with the next exit, and a halt is none.
            puppet.port_read(0x80, 1).expect("an access");
        }
    };
    // The guest has run on: it would have taken what was there.
    let settle = || {
        for _ in 0..20 {
            puppet.port_read(0x80, 1).expect("an access");
        }
    };
    // So many signals are through the poller and the deferred worker, and the guest has run since.
    let total = std::cell::RefCell::new(Figures::new(&[], 4, false));
    let taken = |signals: u64| {
        wait("the signal is taken", &|| {
            if let Some(figures) = poller.take_figures(Box::new(Figures::new(&[], 4, false))) {
                total.borrow_mut().add(&figures);
            }
            let mut outcome = total.borrow().total();
            outcome += machine.interrupts().slow_path(2);
            outcome.signals() >= signals
        });
        settle();
    };
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    entry(u64::from(VECTOR) | LEVEL);
    let mut ends = 0;
    for run in 1..=20u64 {
        event.signal(1);
        wait("the handler ran", &|| handled() >= run);
        wait("the device is asked at the end of interrupt", &|| {
            ended.wait(10);
            ended.take() > 0
        });
        ends += 1;
    }
    assert_eq!((handled(), ends), (20, 20), "one run and one question each");

    // Masked, the pin keeps what came; unmasked, the device is asked instead of the guest interrupted (race 20).
    entry(u64::from(VECTOR) | LEVEL | MASKED);
    event.signal(1);
    taken(21);
    assert_eq!(handled(), 20, "masked");
    entry(u64::from(VECTOR) | LEVEL);
    wait("the device is asked at the unmasking", &|| {
        ended.wait(10);
        ended.take() > 0
    });
    settle();
    assert_eq!(handled(), 20, "nothing is asserted any more");
    event.signal(1);
    wait("and it is heard again", &|| handled() == 21);

    assert!(machine.interrupts().detach(id));
    event.signal(1);
    let passed = poller.passes();
    wait("the poller passes", &|| poller.passes() > passed);
    settle();
    assert_eq!((handled(), event.take()), (21, 1), "nothing after the end");
    thread.stop().expect("the vCPU ran to the end");
    poller.stop().expect("the poller ran to the end");
}
