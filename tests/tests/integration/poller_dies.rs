//! A poller that ends by itself, which it should never do: the session ends with its error, and whoever waits for the
//! poller does not hang.

use crate::harness::tests;
use pollvisor::clock::Clock;
use pollvisor::devices::Host;
use pollvisor::pin::Placement;
use pollvisor::session::{DeviceSession, DeviceSessionConfig, Signals};
use pollvisor::source::{Backend, Command, Port};
use pollvisor_core::ids::{Generation, SourceId};
use pollvisor_core::route::Irqchip;
use pollvisor_tests::rig::{Accel, POLLED, accepting};
use std::time::{Duration, Instant};

tests! {
    each [] => a_session_ends_with_its_pollers_error;
    kvm [] => a_guest_with_devices_ends_with_its_pollers_error;
}

/// A command that makes no sense: a slot that is not there.
fn kill(port: &Port) {
    let id = SourceId { index: u32::MAX, generation: Generation(0) };
    port.send(Command::Unhook { id }, std::thread::yield_now);
}

fn wait(what: &str, is: impl Fn() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn a_session_ends_with_its_pollers_error(accel: Accel) {
    let (session, mut signaller) = accepting(accel, 4, Signals::Eventfd, POLLED);
    assert!(!session.has_failed());
    kill(session.poller().expect("it polls").port());
    wait("it is noticed", || session.has_failed());
    // Nobody hears this, nor waits for anybody.
    signaller.signal(0);
    let error = session.stop().expect_err("its poller panicked").to_string();
    assert!(error.contains("poller panicked, and nobody watches its sources"), "{error}");
}

fn a_guest_with_devices_ends_with_its_pollers_error() {
    let place = Placement { cpu: None, fifo: Some(false) };
    let config = DeviceSessionConfig {
        irqchip: Irqchip::Split,
        pollers: vec![(Backend::EpollBlock, place), (Backend::EpollBlock, place)],
        vcpus: vec![place],
        slots: 4,
        each_vector: false,
    };
    let clock = Clock::calibrate().expect("a clock");
    let session = DeviceSession::start(&config, Host::default(), clock).expect("a session");
    kill(session.pollers()[1].port());
    wait("it is noticed", || session.has_failed());
    let error = session.stop().expect_err("its poller panicked").to_string();
    assert!(error.contains("poller 1 panicked, and nobody watches its sources"), "{error}");
}
