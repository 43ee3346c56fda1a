//! Interrupts that a device raises by its own registers, into the built-in guest's handlers: every kind that the device
//! has, by every way of delivery, a thousand each, every one accounted for.

use crate::lab::devices::Kind;
use crate::lab::in_guest::{Delivery, Guest};
use crate::lab::{Context, Need, Scenario, trace};
use pollvisor::error::{Error, Result};
use pollvisor::guest::SCRATCH;
use pollvisor_core::irqfd::Outcome;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "guest: igb", needs: &[Need::Kvm, Need::Igb], run: |c| all(c, Need::Igb, false) },
    Scenario {
        name: "guest: e1000e",
        needs: &[Need::Kvm, Need::E1000e],
        run: |c| all(c, Need::E1000e, false),
    },
    Scenario { name: "guest: edu", needs: &[Need::Kvm, Need::Edu], run: |c| all(c, Need::Edu, false) },
    Scenario { name: "guest: nvme", needs: &[Need::Kvm, Need::Nvme], run: |c| all(c, Need::Nvme, false) },
    Scenario { name: "guest: where KVM enters it", needs: &[Need::Kvm], run: entered },
    Scenario {
        name: "cdev: guest: nvme",
        needs: &[Need::Iommufd, Need::Kvm, Need::Nvme],
        run: |c| all(c, Need::Nvme, true),
    },
];

/// What a failure's cause is looked for in (`trace::astray`) has the guest's addresses, and a sound guest's are its own.
fn entered(_: &mut Context) -> Result<()> {
    let guest = Guest::start(Delivery::Polled, Kind::Msix)?;
    let stop = AtomicBool::new(false);
    let (entered, astray) = std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                guest.session.puppet().read(SCRATCH.start, 4)?;
            }
            Ok::<_, Error>(())
        });
        let seen = (trace::entered(), trace::astray());
        stop.store(true, Ordering::Relaxed);
        busy.join().map_err(|_| Error::new("the reader panicked"))??;
        Ok::<_, Error>(seen)
    })?;
    match entered?.get(&0) {
        Some(rip) if *rip < GUEST_END && astray.is_none() => {}
        seen => return Err(Error::new(format!("vCPU 0 was entered at {seen:x?}; astray: {astray:?}"))),
    }
    guest.session.stop()
}

/// The built-in guest's memory ends below this.
const GUEST_END: u64 = 1 << 32;

/// Raises of each kind by each way.
const RAISES: u64 = 1000;

fn all(context: &mut Context, need: Need, iommufd: bool) -> Result<()> {
    for delivery in [Delivery::Polled, Delivery::Irqfd, Delivery::Blocking] {
        for kind in [Kind::Msix, Kind::Msi, Kind::Intx] {
            let began = Instant::now();
            let told = |e: Error| e.context(format!("{kind:?}, {delivery:?}"));
            if let Some(vectors) = thousand(context, need, kind, delivery, iommufd).map_err(told)? {
                let took = began.elapsed().as_secs_f64();
                context.note(format!("{kind:?}, {delivery:?}: {RAISES} on {vectors} vectors, {took:.2} s"));
            }
        }
    }
    Ok(())
}

/// A thousand of one kind; none: the device has none of it.
fn thousand(
    context: &mut Context,
    need: Need,
    kind: Kind,
    delivery: Delivery,
    iommufd: bool,
) -> Result<Option<usize>> {
    let mut guest = Guest::start(delivery, kind)?;
    let via = guest.via(delivery, 0)?;
    let Some(mut device) = guest.attach(context, need, (kind, 16), via, iommufd)? else {
        return Ok(None);
    };
    let vectors = u64::try_from(device.gates.len()).unwrap_or(1);
    let before = guest.handled(&device);
    for n in 0..RAISES {
        guest
            .raise(&mut device, u16::try_from(n % vectors).unwrap_or(0))
            .map_err(|e| e.context(format!("raise {n}")))?;
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    let ran: u64 = guest.handled(&device).iter().zip(&before).map(|(now, before)| now - before).sum();
    let counted = guest.ledger(&mut device);
    // The kernel's irqfd counts nothing; the handlers do.
    let expected = if delivery == Delivery::Irqfd { 0 } else { RAISES };
    let exact = counted == Outcome { delivered: expected, ..Outcome::default() } && ran == RAISES;
    if device.driver.counts_exactly() && !exact {
        return Err(Error::new(format!("{RAISES} raised, {ran} handlers ran, counted {counted:?}")));
    }
    if ran < RAISES {
        return Err(Error::new(format!("{RAISES} raised, only {ran} handlers ran")));
    }
    let mut hands = guest.hands(&device);
    device.driver.quiet(&mut hands)?;
    drop(device);
    guest.session.stop()?;
    Ok(Some(usize::try_from(vectors).unwrap_or(0)))
}
