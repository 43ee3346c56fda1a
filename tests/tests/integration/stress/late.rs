//! A poller that comes late to its commands: what was hooked and unhooked meanwhile is over only when it says so. An end
//! that is believed early leaves a poll armed behind the slot's next owner, and every signal counts twice.

use crate::harness::tests;
use pollvisor::accel::{Idle, VmConfig};
use pollvisor::clock::Clock;
use pollvisor::interrupts::{Interrupts, Source};
use pollvisor::pin::Placement;
use pollvisor::poller::PollerThread;
use pollvisor::record::Figures;
use pollvisor::source::{Backend, Lane};
use pollvisor::sys::fd::EventFd;
use pollvisor_core::ids::{Gsi, VcpuId};
use pollvisor_core::irqfd::{Outcome, State};
use pollvisor_core::route::{Irqchip, Msi, RawRoute};
use pollvisor_tests::rig::Accel;
use std::sync::Arc;
use std::time::{Duration, Instant};

tests! {
    each [] => an_end_is_not_believed_before_the_poller_says_it;
}

const LINE: Gsi = Gsi(0);
const SLOTS: usize = 4;
/// Signals that the second owner gets; an early end doubles them.
const SIGNALS: u64 = 100;

fn wait(what: &str, is: impl Fn() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn an_end_is_not_believed_before_the_poller_says_it(accel: Accel) {
    for backend in [Backend::AIO, Backend::EpollSpin] {
        let config = VmConfig { irqchip: Irqchip::Split, idle: Idle::Halt, halt_poll_ns: None };
        let vm = accel.vm(&config);
        let _vcpu = vm.create_vcpu(VcpuId(0)).expect("vCPU");
        let clock = Clock::calibrate().expect("clock");
        let inject = vm.injector().expect("injector");
        let interrupts = Interrupts::start(Irqchip::Split, inject, clock, SLOTS).expect("interrupts");
        interrupts.set_routes(&[RawRoute::msi(LINE, Msi::fixed(0, 0x40))]).expect("routes");
        let lane = Lane::new(backend, SLOTS).expect("lane");
        let nowhere = Placement { cpu: None, fifo: Some(false) };
        let figures = Figures::new(&[], SLOTS, false);
        let poller = PollerThread::start(&interrupts, lane, figures, nowhere, "late").expect("poller");
        let event = Arc::new(EventFd::new().expect("eventfd"));
        let attach = || interrupts.attach(Source::Event(event.clone()), LINE, poller.port()).expect("attach");

        poller.park();
        let id = attach();
        std::thread::scope(|scope| {
            let ending = scope.spawn(|| interrupts.detach(id));
            // It has begun: the irqfd is off the list, and only the poller's answer is missing.
            let state = || interrupts.irqfds().state(id);
            wait("the detach begins", || !matches!(state(), State::Allocated | State::Listed));
            std::thread::sleep(Duration::from_millis(30));
            assert!(!ending.is_finished(), "{backend:?}: over, and the poller has not even begun");
            assert!(state() != State::Free, "{backend:?}: free, and the poller has not even begun");
            poller.unpark();
            assert!(ending.join().expect("no panic"));
        });
        event.signal(1);
        let passed = poller.passes();
        wait("the poller passes", || poller.passes() > passed);
        assert_eq!(event.take(), 1, "{backend:?}: nobody watches it");

        let id = attach();
        for _ in 0..SIGNALS {
            event.signal(1);
            std::thread::sleep(Duration::from_micros(100));
        }
        interrupts.detach(id);
        let figures = poller.stop().expect("the poller ran to the end");
        let mut all: Outcome = figures.total();
        // Its slot is not told.
        (0..SLOTS).for_each(|slot| all += interrupts.slow_path(slot));
        let Outcome { delivered, merged, dropped, .. } = all;
        // A poller that had no CPU has left some.
        assert_eq!((delivered + merged + event.take(), dropped), (SIGNALS, 0), "{backend:?}");
        // An interrupt for nothing is what a poll left behind by an earlier owner makes.
        assert_eq!(figures.spurious, 0, "{backend:?}");
    }
}
