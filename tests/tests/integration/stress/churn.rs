//! Attach, detach and re-route under full load: after each call returned, nothing it ended is delivered.
//!
//! A producer signals all eventfds in turn as fast as it can, attached or not. Per step the LAPIC's request register is
//! cleared after the call returned, the producer is let signal again, and then the register must not hold what was torn
//! down. At the end the ledger has to be exact to the signal.
//!
//! Where the poller shares its CPU with the others a step takes two time slices, so this needs a second one. `POLLVISOR_CHURN=10`
//! makes ten times the steps.

use crate::harness::tests;
use crate::need::Need;
use pollvisor::accel::{Idle, VmConfig};
use pollvisor::accel::{Vcpu, Vm};
use pollvisor::clock::Clock;
use pollvisor::interrupts::{Interrupts, Running, Source};
use pollvisor::pin::{Placement, available};
use pollvisor::poller::PollerThread;
use pollvisor::record::Figures;
use pollvisor::source::Lane;
use pollvisor::sys::fd::EventFd;
use pollvisor_core::ids::{Gsi, SourceId, VcpuId};
use pollvisor_core::irqfd::Outcome;
use pollvisor_core::route::{Irqchip, Msi, RawRoute};
use pollvisor_tests::note;
use pollvisor_tests::rig::Accel;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

tests! {
    each [Need::Cpus(2)] => attaches_and_detaches, route_replacements;
}

const SOURCES: usize = 8;
const VECTOR: u8 = 0x40;
/// The environment's number of times that the usual steps are made.
const TIMES: &str = "POLLVISOR_CHURN";
/// What that many steps may take, all of which are made or the test fails. With a CPU of the poller's own a thousand take a
/// fraction of a second, on a machine that is busy elsewhere some seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// `usual` steps, or as many times more as the environment says.
fn steps(usual: usize) -> usize {
    let times =
        std::env::var(TIMES).map_or(1, |text| text.parse().unwrap_or_else(|e| panic!("{TIMES}={text}: {e}")));
    usual * times
}

struct Load {
    sent: Vec<AtomicU64>,
    stop: AtomicBool,
}

struct Bench {
    poller: PollerThread,
    interrupts: Running,
    vcpu: Vcpu,
    events: Vec<Arc<EventFd>>,
    load: Arc<Load>,
    producer: JoinHandle<()>,
    _vm: Vm,
}

fn gsi(source: usize) -> Gsi {
    Gsi(u32::try_from(source).expect("small"))
}

/// Source `i` to vector `VECTOR + i`, or 0x40 further.
fn routes(shift: u8) -> Vec<RawRoute> {
    let vector = |i: usize| VECTOR + shift + u8::try_from(i).expect("small");
    (0..SOURCES).map(|i| RawRoute::msi(gsi(i), Msi::fixed(0, vector(i)))).collect()
}

impl Bench {
    fn new(accel: Accel) -> Self {
        let cpus = available();
        // Threads that this one starts stay with it, off the poller's CPU when there is another.
        Placement { cpu: cpus.first().copied(), fifo: Some(false) }.apply("the test").expect("a CPU");
        let clock = Clock::calibrate().expect("clock");
        let config = VmConfig { irqchip: Irqchip::Split, idle: Idle::Halt, halt_poll_ns: None };
        let vm = accel.vm(&config);
        let vcpu = vm.create_vcpu(VcpuId(0)).expect("vCPU");
        let inject = vm.injector().expect("injector");
        let interrupts = Interrupts::start(Irqchip::Split, inject, clock, SOURCES * 2).expect("interrupts");
        interrupts.set_routes(&routes(0)).expect("routes");
        let (lane, fallback) = Lane::polled(SOURCES * 2).expect("lane");
        assert!(fallback.is_none(), "{fallback:?}");
        let figures = Figures::new(&[], SOURCES * 2, false);
        let place = Placement { cpu: cpus.last().copied(), fifo: Some(false) };
        let poller = PollerThread::start(&interrupts, lane, figures, place, "poller").expect("poller");
        let events: Vec<_> = (0..SOURCES).map(|_| Arc::new(EventFd::new().expect("eventfd"))).collect();
        let load =
            Arc::new(Load { sent: (0..SOURCES).map(|_| AtomicU64::new(0)).collect(), stop: false.into() });
        let (its_load, its_events) = (load.clone(), events.clone());
        let producer = std::thread::spawn(move || {
            while !its_load.stop.load(Ordering::Relaxed) {
                for (event, sent) in its_events.iter().zip(&its_load.sent) {
                    event.signal(1);
                    sent.fetch_add(1, Ordering::Release);
                }
                // The one who tears down, the workers and this thread may have a single CPU between them.
                std::thread::yield_now();
            }
        });
        Self { poller, interrupts, vcpu, events, load, producer, _vm: vm }
    }

    fn attach(&self, source: usize) -> SourceId {
        let event = Source::Event(self.events[source].clone());
        self.interrupts.attach(event, gsi(source), self.poller.port()).expect("attach")
    }

    fn clear(&mut self) {
        self.vcpu.clear_requests().expect("LAPIC");
    }

    fn holds(&self, vector: u8) -> bool {
        self.vcpu.is_requested(vector).expect("LAPIC")
    }

    fn wait_signalled(&self, source: usize, times: u64) {
        let until = self.load.sent[source].load(Ordering::Acquire) + times;
        self.wait(|| self.load.sent[source].load(Ordering::Acquire) >= until);
    }

    fn wait(&self, there: impl Fn() -> bool) {
        let began = Instant::now();
        while !there() {
            assert!(began.elapsed().as_secs() < 20, "nothing moves any more");
            std::thread::yield_now();
        }
    }

    /// `step` for each number below `times`: all of them.
    fn steps(&mut self, times: usize, mut step: impl FnMut(&mut Self, usize)) {
        let (began, patience) = (Instant::now(), PATIENCE * u32::try_from(times / 1000).expect("few"));
        for now in 0..times {
            step(self, now);
            assert!(began.elapsed() < patience, "{now} of {times} steps in {patience:?}");
        }
        note!("{times} steps in {:.1} s", began.elapsed().as_secs_f64());
    }

    /// Stops the load, detaches what is attached, and makes up the account.
    fn finish(self, ids: &[SourceId]) {
        self.load.stop.store(true, Ordering::Relaxed);
        self.producer.join().expect("producer");
        for id in ids {
            assert!(self.interrupts.detach(*id));
        }
        let figures = self.poller.stop().expect("figures");
        let mut all: Outcome = figures.total();
        (0..SOURCES * 2).for_each(|slot| all += self.interrupts.slow_path(slot));
        let left: u64 = self.events.iter().map(|event| event.take()).sum();
        let sent: u64 = self.load.sent.iter().map(|sent| sent.load(Ordering::Relaxed)).sum();
        note!("{sent} sent: {all:?}, {left} not taken, {} deferred", figures.deferred);
        assert_eq!(all.signals() + left, sent);
        assert_eq!((all.dropped, figures.spurious), (0, 0));
        assert!(all.delivered > 0);
        if let Some(counts) = self.vcpu.counts() {
            assert_eq!(counts.accepted() + all.coalesced, all.delivered, "the LAPIC's account: {counts:?}");
        }
    }
}

fn attaches_and_detaches(accel: Accel) {
    let times = steps(10_000);
    let mut bench = Bench::new(accel);
    let mut ids: Vec<_> = (0..SOURCES).map(|source| bench.attach(source)).collect();
    bench.steps(times, |bench, step| {
        let source = step % SOURCES;
        let vector = VECTOR + u8::try_from(source).expect("small");
        assert!(bench.interrupts.detach(ids[source]), "step {step}: gone by itself");
        bench.clear();
        bench.wait_signalled(source, 1);
        assert!(!bench.holds(vector), "step {step}: delivered after its detach returned");
        assert!(!bench.interrupts.detach(ids[source]), "a stale handle did something");
        ids[source] = bench.attach(source);
    });
    bench.finish(&ids);
}

fn route_replacements(accel: Accel) {
    let times = steps(1000);
    let mut bench = Bench::new(accel);
    let ids: Vec<_> = (0..SOURCES).map(|source| bench.attach(source)).collect();
    let tables = [routes(0), routes(0x40)];
    bench.steps(times, |bench, step| {
        bench.interrupts.set_routes(&tables[(step + 1) % 2]).expect("routes");
        bench.clear();
        bench.wait_signalled(SOURCES - 1, 1);
        let old = VECTOR + if step.is_multiple_of(2) { 0 } else { 0x40 };
        for source in 0..SOURCES {
            let vector = old + u8::try_from(source).expect("small");
            assert!(!bench.holds(vector), "step {step}: delivered by a route that was replaced");
        }
    });
    // And the new ones work: each source arrives where the last table says.
    bench.clear();
    bench.wait_signalled(SOURCES - 1, 2);
    let vector = VECTOR + if times.is_multiple_of(2) { 0 } else { 0x40 };
    bench.wait(|| bench.holds(vector));
    bench.finish(&ids);
}
