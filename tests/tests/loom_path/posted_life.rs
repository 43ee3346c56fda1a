//! The descriptor against everything that ends or changes a vCPU, L6 and L8 to L10: parking, switching the APIC off, INIT,
//! and an irqfd's end.

use crate::posted_twin::{Futex, ID, Vcpu};
use crate::spawn;
use pollvisor_core::ids::Trigger::Edge;
use pollvisor_core::inject::{Accepted, Inject, InjectError, LineSource};
use pollvisor_core::lapic::{
    self, Delivery, Destination, Event, Interrupt, Lapic, Mode, Request, Role, Time,
};
use pollvisor_core::poll::Poller;
use pollvisor_core::prim::{AtomicU32, Mutation, Ordering, planted};
use pollvisor_core::route::{Chip, Msi, RawRoute};
use pollvisor_tests::model::{GSI, Hook, World, check, check_broken};
use std::sync::Arc;

const VECTOR: u8 = 0x21;
const OTHER: u8 = 0x31;
const SVR: u32 = 0x80f;

struct Parking {
    vcpu: Vcpu,
    /// 1: the owner is parked.
    parked: AtomicU32,
    waiter: Futex,
}

impl Parking {
    /// The owner's side: nothing is posted behind its back that a resumed owner would not find.
    fn park(&self, lapic: &mut Lapic) {
        self.vcpu.harvest(lapic);
        self.parked.store(1, Ordering::Release);
        self.waiter.wake();
        while let Some(expect) = self.vcpu.posted().parking() {
            self.vcpu.futex.wait(self.vcpu.posted().word(), expect);
        }
    }
}

/// L6. A request to park against a post and a sleep: the owner parks, and takes the interrupt before or after.
fn parking() {
    let (vcpu, mut lapic) = Vcpu::new();
    let world = Arc::new(Parking { vcpu, parked: AtomicU32::new(0), waiter: Futex::new() });
    let sender = spawn(&world, |world| world.vcpu.post(VECTOR, Edge));
    let control = spawn(&world, |world| {
        if world.vcpu.posted().stop().is_some() {
            world.vcpu.futex.wake();
        }
        while world.parked.load(Ordering::Acquire) == 0 {
            world.waiter.wait(&world.parked, 0);
        }
        let _wake = world.vcpu.posted().unstop();
        world.vcpu.futex.wake();
    });
    let (mut taken, mut parked) = (false, false);
    while !(taken && parked) {
        world.vcpu.harvest(&mut lapic);
        if world.vcpu.posted().parking().is_some() {
            world.park(&mut lapic);
            parked = true;
        } else if lapic.take().is_some() {
            let _end = lapic.eoi();
            taken = true;
        } else {
            world.vcpu.halt();
        }
    }
    sender.join().unwrap();
    control.join().unwrap();
    assert_eq!(lapic.pending(&world.vcpu.shared), 0);
}

#[test]
fn a_request_to_park_is_heard_and_loses_nothing() {
    check(3, parking);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_harvest_that_clears_stop_does_not_park() {
    check_broken(Mutation::HarvestClearsStop, 3, parking);
}

struct Told {
    vcpu: Vcpu,
    /// What the other side wrote before it asked.
    written: AtomicU32,
}

impl Told {
    fn new() -> (Arc<Self>, Lapic) {
        let (vcpu, lapic) = Vcpu::new();
        (Arc::new(Self { vcpu, written: AtomicU32::new(0) }), lapic)
    }

    fn wake(&self, owed: bool) {
        if owed {
            self.vcpu.futex.wake();
        }
    }

    fn assert_written(&self) {
        assert_eq!(self.written.load(Ordering::Relaxed), 1, "not what was written before");
    }
}

/// L6 and L11. Parking depends on no sender: this one stops before the wake that it was told to make.
fn stopping() {
    let (world, mut lapic) = Told::new();
    let stuck = spawn(&world, |world| {
        let _never_woken = world.vcpu.posted().post(VECTOR, Edge);
    });
    let control = spawn(&world, |world| {
        world.written.store(1, Ordering::Relaxed);
        world.wake(world.vcpu.posted().stop().is_some());
    });
    while world.vcpu.posted().parking().is_none() {
        world.vcpu.harvest(&mut lapic);
        if lapic.take().is_some() {
            let _end = lapic.eoi();
        }
        world.vcpu.halt();
    }
    world.assert_written();
    stuck.join().unwrap();
    control.join().unwrap();
}

#[test]
fn a_request_to_park_needs_no_sender() {
    check(3, stopping);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_request_to_park_that_leaves_the_wake_to_a_sender_is_not_heard() {
    check_broken(Mutation::StopTrustsOn, 3, stopping);
}

#[test]
#[should_panic(expected = "not what was written before")]
fn a_request_to_park_without_release_tells_nothing() {
    check_broken(Mutation::StopRelaxed, 3, stopping);
}

/// L6. Who is unparked sees what was done meanwhile.
fn unparking() {
    let (world, _lapic) = Told::new();
    let _awake = world.vcpu.posted().stop();
    let control = spawn(&world, |world| {
        world.written.store(1, Ordering::Relaxed);
        let _wake = world.vcpu.posted().unstop();
        world.wake(true);
    });
    while let Some(expect) = world.vcpu.posted().parking() {
        world.vcpu.futex.wait(world.vcpu.posted().word(), expect);
    }
    world.assert_written();
    control.join().unwrap();
}

#[test]
fn who_is_unparked_sees_what_was_done() {
    check(3, unparking);
}

#[test]
#[should_panic(expected = "not what was written before")]
fn unparking_without_release_tells_nothing() {
    check_broken(Mutation::StopRelaxed, 3, unparking);
}

/// L2, of events: a processor that is told to start, or to handle an NMI, finds what its sender prepared.
fn telling() {
    let (world, mut lapic) = Told::new();
    let sender = spawn(&world, |world| {
        world.written.store(1, Ordering::Relaxed);
        world.wake(world.vcpu.posted().post_nmi().is_some());
    });
    loop {
        world.vcpu.harvest(&mut lapic);
        if lapic.event() == Some(Event::Nmi) {
            break;
        }
        world.vcpu.halt();
    }
    world.assert_written();
    sender.join().unwrap();
}

#[test]
fn an_event_brings_what_its_sender_prepared() {
    check(3, telling);
}

#[test]
#[should_panic(expected = "not what was written before")]
fn an_event_without_release_brings_nothing() {
    check_broken(Mutation::AnnounceRelaxed, 3, telling);
}

fn fixed(destination: Destination) -> Interrupt {
    let request = Request::Vector { vector: VECTOR, trigger: Edge };
    Interrupt { destination, lowest_priority: false, request }
}

/// L8. An x2APIC is disabled by software, then switched off, against interrupts. Some are for it; one is to 0xff, which is
/// everybody's in xAPIC mode: that is what half of the last change would look like.
fn switching() {
    let (vcpu, mut lapic) = Vcpu::new();
    let vcpu = Arc::new(vcpu);
    let accepted = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = Arc::clone(&accepted);
    let sender = spawn(&vcpu, move |vcpu| {
        let vcpus = core::slice::from_ref(&vcpu.shared);
        let send = |id| lapic::deliver(vcpus, &fixed(Destination::Physical(id)), |_| vcpu.futex.wake());
        assert_eq!(send(0xff), Delivery::Blocked, "by an address that never was");
        for _ in 0..2 {
            if let Delivery::Accepted { coalesced, .. } = send(ID) {
                count.fetch_add(1, Ordering::SeqCst);
                vcpu.coalesced.fetch_add(coalesced.into(), Ordering::SeqCst);
            }
        }
    });
    let disabled = lapic.write_msr(&vcpu.shared, SVR, 0xff, Time::default());
    assert!(disabled.is_ok());
    if planted(Mutation::AddressInTwo) {
        let mut half = Lapic::new(ID, Role::Bsp);
        half.set_up(&vcpu.shared, Mode::XApic, true);
    }
    let off = lapic.write_msr(&vcpu.shared, lapic::MSR_APIC_BASE, 0, Time::default());
    assert!(off.is_ok() && lapic.take().is_none());
    sender.join().unwrap();
    vcpu.assert_ledger(&lapic, accepted.load(Ordering::SeqCst));
    vcpu.harvest(&mut lapic);
    vcpu.assert_ledger(&lapic, accepted.load(Ordering::SeqCst));
    assert_eq!(lapic.pending(&vcpu.shared), 0, "an APIC that is off keeps nothing");
}

#[test]
fn a_post_acts_on_one_whole_address() {
    check(3, switching);
}

#[test]
#[should_panic(expected = "by an address that never was")]
fn an_address_published_in_two_steps_is_seen_between() {
    check_broken(Mutation::AddressInTwo, 3, switching);
}

/// L9. An INIT against posts: what its sender posted before is gone, what another one posts is gone or waits.
fn init() {
    let (vcpu, mut lapic) = Vcpu::new();
    let vcpu = Arc::new(vcpu);
    let a = spawn(&vcpu, |vcpu| {
        vcpu.post(VECTOR, Edge);
        if vcpu.posted().post_init().is_some() {
            vcpu.futex.wake();
        }
    });
    let b = spawn(&vcpu, |vcpu| vcpu.post(OTHER, Edge));
    loop {
        vcpu.harvest(&mut lapic);
        if lapic.event() == Some(Event::Init) {
            break;
        }
        vcpu.halt();
    }
    assert!(!lapic.is_requested(&vcpu.shared, VECTOR), "an interrupt from before the INIT");
    a.join().unwrap();
    b.join().unwrap();
    vcpu.assert_ledger(&lapic, 2);
    vcpu.harvest(&mut lapic);
    vcpu.assert_ledger(&lapic, 2);
}

#[test]
fn an_init_discards_what_was_posted_before() {
    check(3, init);
}

#[test]
#[should_panic(expected = "an interrupt from before the INIT")]
fn an_init_that_keeps_the_pir_lets_it_through() {
    check_broken(Mutation::InitKeepsPir, 3, init);
}

/// A VM with one irqfd, whose messages are posted to one vCPU.
struct Posting {
    world: World<1>,
    vcpu: Vcpu,
}

impl Inject for Posting {
    fn msi(&self, msi: &Msi) -> Result<Accepted, InjectError> {
        let vcpus = core::slice::from_ref(&self.vcpu.shared);
        match lapic::deliver_msi(vcpus, msi, |_| self.vcpu.futex.wake()) {
            Delivery::Accepted { apics, coalesced } => Ok(Accepted { coalesced: apics == coalesced }),
            Delivery::Blocked => Err(InjectError::Blocked),
        }
    }

    fn pin(&self, _: Chip, _: u32, _: bool, _: LineSource) -> Result<(), InjectError> {
        Err(InjectError::Blocked)
    }
}

/// L10. A poller's pass against an irqfd's shutdown: once that returned, a harvest has all that was ever posted for it. What
/// the deferred worker delivers meanwhile, the world has.
fn ending() {
    let (vcpu, mut lapic) = Vcpu::new();
    let posting = Posting { world: World::new(Hook::Level), vcpu };
    let fixed = [RawRoute::msi(GSI, Msi::fixed(ID, VECTOR))];
    posting.world.irqfds.set_routes(&posting.world, 0, &fixed).expect("a good table");
    let id = posting.world.assign();
    let posting = Arc::new(posting);
    posting.world.fd.signal();
    let poller = spawn(&posting, |posting| {
        let mut poller = Poller::new(&posting.world.irqfds).expect("a seat");
        poller.pass(&mut &posting.world.fd, posting, &mut &posting.world.ledger);
    });
    assert!(posting.world.irqfds.deassign_id(&posting.world, id));
    posting.vcpu.harvest(&mut lapic);
    let taken = u64::from(lapic.take().is_some());
    poller.join().unwrap();
    assert_eq!(lapic.pending(&posting.vcpu.shared), 0, "a post after the shutdown");
    posting.vcpu.assert_ledger(&lapic, taken);
}

#[test]
fn nothing_is_posted_after_a_shutdown() {
    check(3, ending);
}

#[test]
#[should_panic(expected = "a post after the shutdown")]
fn a_shutdown_without_grace_is_followed_by_posts() {
    check_broken(Mutation::GraceNoWait, 3, ending);
}
