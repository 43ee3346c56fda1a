//! Interrupts while things move: vectors handed over, masked and unmasked, re-programmed; two devices at once.

use crate::lab::devices::{Access, Kind};
use crate::lab::in_guest::{Delivery, Guest, InGuest};
use crate::lab::{Context, Need, Scenario};
use pollvisor::assign::Via;
use pollvisor::error::{Error, Result};
use pollvisor_core::irqfd::Outcome;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "motion: hand-over every 10 ms for 10 s: igb",
        needs: &[Need::Kvm, Need::Igb],
        run: |c| hand_over(c, Need::Igb),
    },
    Scenario {
        name: "motion: hand-over every 10 ms for 10 s: nvme",
        needs: &[Need::Kvm, Need::Nvme],
        run: |c| hand_over(c, Need::Nvme),
    },
    Scenario {
        name: "motion: a masked vector is pending, and fires once",
        needs: &[Need::Kvm, Need::Igb],
        run: pending,
    },
    Scenario {
        name: "motion: mask storm: polled",
        needs: &[Need::Kvm, Need::Igb],
        run: |c| storm(c, Delivery::Polled),
    },
    Scenario {
        name: "motion: mask storm: irqfd",
        needs: &[Need::Kvm, Need::Igb],
        run: |c| storm(c, Delivery::Irqfd),
    },
    Scenario {
        name: "motion: mask storm: blocking",
        needs: &[Need::Kvm, Need::Igb],
        run: |c| storm(c, Delivery::Blocking),
    },
    Scenario { name: "motion: re-programmed while it fires", needs: &[Need::Kvm, Need::Igb], run: reprogram },
    Scenario {
        name: "motion: two devices, two pollers",
        needs: &[Need::Kvm, Need::Igb, Need::Nvme],
        run: two,
    },
];

/// Nothing may come for so long before it counts as nothing.
const NOTHING: Duration = Duration::from_millis(100);

fn attached(
    guest: &mut Guest,
    context: &Context,
    need: Need,
    (kind, vectors): (Kind, u16),
    via: Via,
) -> Result<InGuest> {
    let device = guest.attach(context, need, (kind, vectors), via, false)?;
    device.ok_or_else(|| Error::new(format!("{} has no {kind:?}", need.name())))
}

/// Every vector to the kernel and back each 10 ms, while each raise has to reach its handler once.
fn hand_over(context: &mut Context, need: Need) -> Result<()> {
    let mut guest = Guest::start(Delivery::Polled, Kind::Msix)?;
    let polled = guest.via(Delivery::Polled, 0)?;
    let mut device = attached(&mut guest, context, need, (Kind::Msix, 4), polled.clone())?;
    let before: u64 = guest.handled(&device).iter().sum();
    let (assigned, vectors) = (device.assigned.clone(), device.gates.len());
    let (stop, moves) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut raised = 0;
    std::thread::scope(|scope| -> Result<()> {
        let mover = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                let even = moves.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
                for vector in 0..vectors {
                    assigned.hand_over(vector, if even { Via::Kernel } else { polled.clone() })?;
                }
                sleep(Duration::from_millis(10));
            }
            Ok(())
        });
        let began = Instant::now();
        let mut result = Ok(());
        while began.elapsed() < Duration::from_secs(10) && result.is_ok() {
            let vector = u16::try_from(raised % vectors as u64).unwrap_or(0);
            result = guest.raise(&mut device, vector).map_err(|e| e.context(format!("raise {raised}")));
            raised += 1;
        }
        stop.store(true, Ordering::Relaxed);
        result.and(mover.join().map_err(|_| Error::new("the mover panicked"))?)
    })?;
    sleep(NOTHING);
    let ran = guest.handled(&device).iter().sum::<u64>() - before;
    let counted = guest.ledger(&mut device);
    let moves = moves.load(Ordering::Relaxed);
    context.note(format!(
        "{raised} raised, {ran} handled, {moves} hand-overs of {vectors} vectors; by pollers {counted:?}"
    ));
    if ran != raised || counted.dropped > 0 || counted.delivered == 0 || counted.delivered >= raised {
        return Err(Error::new(format!("{raised} raised, {ran} handlers ran, counted {counted:?}")));
    }
    guest.session.stop()
}

/// Masked: no handler, the pending bit; unmasked: one interrupt for all of them.
fn pending(context: &mut Context) -> Result<()> {
    for delivery in [Delivery::Polled, Delivery::Irqfd, Delivery::Blocking] {
        let mut guest = Guest::start(delivery, Kind::Msix)?;
        let via = guest.via(delivery, 0)?;
        let mut device = attached(&mut guest, context, Need::Igb, (Kind::Msix, 2), via)?;
        guest.raise(&mut device, 1)?;
        let before = guest.handled(&device);
        let expect = |what: &str, good: bool| {
            if good { Ok(()) } else { Err(Error::new(format!("{delivery:?}: {what}"))) }
        };
        let driver = guest.session.driver(&device.assigned);
        expect("pending before anything was", !driver.pending(1)?)?;
        driver.mask(1, true)?;
        let mut hands = guest.hands(&device);
        for _ in 0..3 {
            device.driver.raise(&mut hands, 1)?;
        }
        sleep(NOTHING);
        expect("a masked vector's handler ran", guest.handled(&device) == before)?;
        expect("no pending bit", driver.pending(1)? && !driver.pending(0)?)?;
        driver.mask(1, false)?;
        sleep(NOTHING);
        let now = guest.handled(&device);
        expect("not one interrupt at the unmasking", now[1] == before[1] + 1 && now[0] == before[0])?;
        expect("still pending", !driver.pending(1)?)?;
        let counted = guest.ledger(&mut device);
        let all = Outcome { delivered: counted.delivered, merged: 2, dropped: 0, ..Outcome::default() };
        expect(&format!("counted {counted:?}"), counted == all && counted.delivered <= 2)?;
        guest.session.stop()?;
    }
    Ok(())
}

/// One thread fires a vector by loopback while the guest masks and unmasks it: sent = delivered + merged + dropped.
fn storm(context: &mut Context, delivery: Delivery) -> Result<()> {
    let mut guest = Guest::start(delivery, Kind::Msix)?;
    let via = guest.via(delivery, 0)?;
    let mut device = attached(&mut guest, context, Need::Igb, (Kind::Msix, 1), via)?;
    let before = guest.handled(&device)[0];
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut flips = 0;
    std::thread::scope(|scope| -> Result<()> {
        let assigned = device.assigned.clone();
        let firing = scope.spawn(|| -> Result<()> {
            let assigned = assigned;
            while !stop.load(Ordering::Relaxed) {
                assigned.fire(0)?;
                sent.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
            }
            Ok(())
        });
        let began = Instant::now();
        let driver = guest.session.driver(&device.assigned);
        let mut result = Ok(());
        while began.elapsed() < Duration::from_secs(5) && result.is_ok() {
            result = driver.mask(0, true).and_then(|()| driver.mask(0, false));
            flips += 2;
        }
        stop.store(true, Ordering::Relaxed);
        result.and(firing.join().map_err(|_| Error::new("the firing thread panicked"))?)
    })?;
    sleep(NOTHING);
    let (sent, ran) = (sent.load(Ordering::Relaxed), guest.handled(&device)[0] - before);
    let counted = guest.ledger(&mut device);
    context.note(format!(
        "{delivery:?}: {sent} fired, {flips} flips of the mask, {ran} handled, counted {counted:?}"
    ));
    let good = match delivery {
        // The kernel counts nothing of its own; what control threads took while it was masked is theirs.
        Delivery::Irqfd => counted.signals() <= sent && ran > 0 && ran <= sent && counted.dropped == 0,
        _ => counted.signals() == sent && ran <= counted.delivered && ran > 0 && counted.dropped == 0,
    };
    if !good {
        return Err(Error::new(format!("{sent} fired, {ran} handlers ran, counted {counted:?}")));
    }
    // And it is not worn out.
    guest.raise(&mut device, 0)?;
    guest.session.stop()
}

/// The guest sends an unmasked vector to one gate and to another, in turn: none is lost, and each arrives at one of them.
fn reprogram(context: &mut Context) -> Result<()> {
    for delivery in [Delivery::Polled, Delivery::Irqfd] {
        let mut guest = Guest::start(delivery, Kind::Msix)?;
        let via = guest.via(delivery, 0)?;
        let mut device = attached(&mut guest, context, Need::Igb, (Kind::Msix, 1), via)?;
        let gates = [device.gates[0], guest.session.gates(1)?[0]];
        let handled = |guest: &Guest| gates.map(|(vcpu, gate)| guest.session.guest().handled(vcpu, gate));
        for n in 0..300usize {
            let to = n % 2;
            // As a driver moves an interrupt to another CPU, but without masking it first.
            guest.session.driver(&device.assigned).set_entry(0, gates[to])?;
            let before = handled(&guest);
            let mut hands = guest.hands(&device);
            device.driver.raise(&mut hands, 0)?;
            let began = Instant::now();
            while handled(&guest) == before {
                if began.elapsed() > Duration::from_secs(5) {
                    return Err(Error::new(format!("{delivery:?}: lost at {n}")));
                }
                std::thread::yield_now();
            }
            let mut expected = before;
            expected[to] += 1;
            if handled(&guest) != expected {
                let now = handled(&guest);
                return Err(Error::new(format!(
                    "{delivery:?}, raise {n}: {expected:?} expected, {now:?} ran"
                )));
            }
        }
        guest.session.stop()?;
    }
    Ok(())
}

/// Each device on a poller of its own, both raising at once.
fn two(context: &mut Context) -> Result<()> {
    const ROUNDS: u64 = 300;
    let mut guest = Guest::with_pollers(Delivery::Polled, Kind::Msix, 2)?;
    let vias = [guest.via(Delivery::Polled, 0)?, guest.via(Delivery::Polled, 1)?];
    let [first, second] = vias;
    let mut igb = attached(&mut guest, context, Need::Igb, (Kind::Msix, 4), first)?;
    let mut nvme = attached(&mut guest, context, Need::Nvme, (Kind::Msix, 4), second)?;
    let before = [&igb, &nvme].map(|device| guest.handled(device).iter().sum::<u64>());
    let _left_behind = (guest.ledger(&mut igb), guest.ledger(&mut nvme));
    let mut hands = [guest.hands(&igb), guest.hands(&nvme)];
    for n in 0..ROUNDS {
        let vector = u16::try_from(n % 4).unwrap_or(0);
        for (device, hands) in [&mut igb, &mut nvme].into_iter().zip(&mut hands) {
            device.driver.raise(hands, vector)?;
        }
        let began = Instant::now();
        let expected = n + 1;
        for ((device, hands), before) in [&mut igb, &mut nvme].into_iter().zip(&mut hands).zip(before) {
            while guest.handled(device).iter().sum::<u64>() < before + expected {
                if began.elapsed() > Duration::from_secs(5) {
                    return Err(Error::new(format!("{}: lost at {n}", device.driver.name())));
                }
                std::thread::yield_now();
            }
            device.driver.acknowledge(hands, vector)?;
        }
    }
    sleep(NOTHING);
    let figures = guest.session.take_figures().total();
    let ran = [&igb, &nvme].map(|device| guest.handled(device).iter().sum::<u64>());
    if ran != before.map(|before| before + ROUNDS)
        || figures != (Outcome { delivered: 2 * ROUNDS, ..Outcome::default() })
    {
        return Err(Error::new(format!(
            "{ROUNDS} raised on each, {ran:?} after {before:?}, counted {figures:?}"
        )));
    }
    // One goes, the other does not notice.
    guest.session.fleet()?.detach(&igb.assigned)?;
    guest.raise(&mut nvme, 1)?;
    let mut hands = guest.hands(&nvme);
    if hands.read(0, 0, 8) == u64::MAX {
        return Err(Error::new("the remaining device reads as ones"));
    }
    guest.session.stop()
}
