//! A guest that writes at random to all that it can reach of an assigned device, and to its interrupt controllers: its VMM
//! goes on, answers, does not grow, and gives the device back. `SCRIBBLE_SEED=n` (with `--append`, as a parameter of the
//! lab's kernel) makes a run again, `SCRIBBLE_SECONDS=n` a longer one.

use crate::lab::devices::Kind;
use crate::lab::in_guest::{Delivery, Guest, InGuest};
use crate::lab::{Context, Need, Scenario, trace};
use crate::scribble::{
    self, ADDRESS, ADDRESS_HIGH, BAR, CONFIG_ADDRESS, DATA, EOI, HEADER_ADDRESS, SWITCH, Vitals, WILD, every,
    memory, ports,
};
use pollvisor::error::{Error, Result};
use pollvisor::guest::driver::Driver;
use pollvisor::guest::scribble::Place;
use pollvisor::platform::ECAM_BASE;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The scenarios.
pub const SCENARIOS: &[Scenario] =
    &[Scenario { name: "hostile: igb scribbled over", needs: &[Need::Kvm, Need::Igb], run: scribbled_over }];

const MINUTE: Duration = Duration::from_secs(60);
/// What is taken in the first seconds is taken once.
const SETTLED: Duration = Duration::from_secs(5);
/// Accesses between two looks. A reset takes igb a tenth of a second.
const ACCESSES: u64 = 1000;
/// A guest that has not made them by then has stopped itself.
const PATIENCE: Duration = Duration::from_secs(20);
/// The end of a guest hangs when it takes longer; it takes less than one.
const TEARDOWN: Duration = Duration::from_secs(60);
const COMMAND: u16 = 4;
const BARS: u16 = 0x10;
const POWER: u8 = 1;
const MSI: u8 = 5;
const MSIX: u8 = 0x11;
const EXPRESS: u8 = 0x10;

fn scribbled_over(context: &mut Context) -> Result<()> {
    let (seed, time) = (scribble::seed(), scribble::duration(MINUTE));
    // The most of it one guest, which nothing that it writes can stop.
    let mut guest = Hostile::attach(context)?;
    guest.scribble(seed, time * 3 / 4, false)?;
    context.note(guest.end(true)?);
    // Then guests that may stop themselves, one after the other.
    let (began, before) = (Instant::now(), Vitals::now());
    let mut guests = 0;
    while guests == 0 || began.elapsed() < time / 4 {
        guests += 1;
        let mut guest = Hostile::attach(context)?;
        guest.scribble(seed.wrapping_add(guests), (time / 4).saturating_sub(began.elapsed()), true)?;
        context.note(guest.end(false)?);
    }
    let after = before.check()?;
    context.note(format!("{guests} guests of the second kind; {before:?}, then {after:?}"));
    // And the device is as it was before.
    let mut guest = Guest::start(Delivery::Polled, Kind::Msix)?;
    let via = guest.via(Delivery::Polled, 0)?;
    let device = guest.attach(context, Need::Igb, (Kind::Msix, 4), via, false)?;
    let mut device = device.ok_or_else(|| Error::new("igb has no MSI-X any more"))?;
    (0..4).try_for_each(|vector| guest.raise(&mut device, vector))?;
    guest.session.stop()
}

/// A guest with igb, and what a driver knew of it before it was scribbled over.
struct Hostile {
    guest: Guest,
    device: InGuest,
    bars: Vec<u64>,
    capabilities: [u16; 4],
    accesses: u64,
    fired: u64,
}

impl Hostile {
    fn attach(context: &Context) -> Result<Self> {
        let mut guest = Guest::start(Delivery::Polled, Kind::Msix)?;
        let via = guest.via(Delivery::Polled, 0)?;
        let device = guest.attach(context, Need::Igb, (Kind::Msix, 10), via, false)?;
        let device = device.ok_or_else(|| Error::new("igb has no MSI-X"))?;
        let driver = guest.session.driver(&device.assigned);
        let bars = (0..6).map(|n| driver.config(BARS + 4 * n, 4)).collect::<Result<_>>()?;
        let at =
            |id| driver.capability(id)?.ok_or_else(|| Error::new(format!("igb has no capability {id:#x}")));
        let capabilities = [at(POWER)?, at(MSI)?, at(MSIX)?, at(EXPRESS)?];
        Ok(Self { guest, device, bars, capabilities, accesses: 0, fired: 0 })
    }

    /// Round after round, until the guest has stopped itself. What it does in each hangs on `seed`.
    fn scribble(&mut self, seed: u64, time: Duration, wild: bool) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(seed);
        let (began, mut settled) = (Instant::now(), None);
        for round in 0.. {
            if began.elapsed() >= time {
                break;
            }
            let alive = self.round(&mut random, round, wild);
            match alive {
                Err(_) if wild => break,
                alive => alive?,
            }
            if settled.is_none() && began.elapsed() > SETTLED {
                settled = Some(Vitals::now());
            }
        }
        settled.map_or(Ok(()), |before| before.check().map(drop))
    }

    /// A driver puts the device in order and sets its interrupts up, the next delivery; then all is scribbled over while
    /// they are fired. Whatever was fired is accounted for, but by the kernel, which does not count.
    fn round(&mut self, random: &mut fastrand::Rng, round: u32, wild: bool) -> Result<()> {
        let delivery = [Delivery::Polled, Delivery::Blocking, Delivery::Irqfd][(round % 3) as usize];
        let quiet = random.bool();
        self.put_in_order(if quiet { 0 } else { random.u8(..4) }, delivery)?;
        let _others = self.guest.ledger(&mut self.device);
        let places = self.places(wild, quiet)?;
        let (stop, fired) = (AtomicBool::new(false), AtomicU64::new(0));
        let (assigned, guest) = (&*self.device.assigned, &self.guest);
        let scribbled = std::thread::scope(|scope| {
            scope.spawn(|| {
                // Vector 0 could be INTx's, which is not counted while it is masked.
                for vector in (1..10).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                    fired.fetch_add(u64::from(assigned.fire(vector).is_ok()), Ordering::Relaxed);
                    sleep(Duration::from_micros(300));
                }
            });
            let scribbled = guest.session.puppet().scribble(random.u64(..), ACCESSES, &places, PATIENCE);
            let scribbled = scribbled.map_err(|error| match trace::astray() {
                Some(astray) => error.context(astray),
                None => error,
            });
            stop.store(true, Ordering::Relaxed);
            scribbled
        });
        // The VMM answers, whatever became of the guest.
        self.device.assigned.set_up()?;
        scribbled?;
        self.accesses += ACCESSES;
        self.fired += fired.load(Ordering::Relaxed);
        self.put_in_order(3, Delivery::Polled)?;
        let counted = self.guest.ledger(&mut self.device).signals();
        if delivery != Delivery::Irqfd && counted != fired.load(Ordering::Relaxed) {
            return Err(Error::new(format!(
                "round {round}, {delivery:?}: {} fired and {counted} accounted for",
                fired.load(Ordering::Relaxed)
            )));
        }
        Ok(())
    }

    /// What a driver does with a device that it finds in any state. `kind`: 0 and 1 MSI-X, 2 MSI, 3 nothing.
    fn put_in_order(&mut self, kind: u8, delivery: Delivery) -> Result<()> {
        let driver = self.guest.session.driver(&self.device.assigned);
        let [power, ..] = self.capabilities;
        driver.set_config(power + 4, 1, 0)?;
        for (n, bar) in (0..).zip(&self.bars) {
            driver.set_config(BARS + 4 * n, 4, *bar)?;
        }
        driver.set_config(COMMAND, 2, 0)?;
        driver.enable()?;
        driver.disable_msix()?;
        driver.disable_msi()?;
        driver.disable_intx()?;
        let via = self.guest.via(delivery, 0)?;
        (0..self.device.gates.len())
            .try_for_each(|vector| self.device.assigned.hand_over(vector, via.clone()))?;
        match kind {
            0 | 1 => driver.enable_msix(&self.device.gates),
            2 => driver.enable_msi(self.device.gates[0]),
            _ => Ok(()),
        }
    }

    /// `quiet`: its configuration stays as it is, so that it goes on interrupting.
    fn places(&self, wild: bool, quiet: bool) -> Result<Vec<Place<'static>>> {
        let driver = self.guest.session.driver(&self.device.assigned);
        let config = ECAM_BASE + (u64::from(self.device.assigned.slot()) << 15);
        let [power, msi, msix, express] = self.capabilities.map(|at| config + u64::from(at));
        let (table, pending) =
            (place(&driver, self.capabilities[2] + 4)?, place(&driver, self.capabilities[2] + 8)?);
        let mut places = scribble::ioapic(wild);
        places.extend([
            every(table, 0x100, 16, ADDRESS),
            every(table + 4, 0x100, 16, ADDRESS_HIGH),
            every(table + 8, 0x100, 16, DATA),
            every(table + 12, 0x100, 16, SWITCH),
            memory(pending, 0x40, WILD),
            EOI,
        ]);
        if quiet {
            return Ok(places);
        }
        places.extend([
            memory(config, 0x10, WILD),
            every(config + u64::from(BARS), 0x20, 4, BAR),
            memory(config + u64::from(COMMAND), 2, SWITCH),
            memory(power, 8, WILD),
            memory(msi + 2, 2, SWITCH),
            every(msi + 4, 1, 1, ADDRESS),
            every(msi + 8, 1, 1, ADDRESS_HIGH),
            every(msi + 12, 1, 1, DATA),
            every(msix + 3, 1, 1, WILD),
            every(msix + 2, 1, 1, SWITCH),
            memory(express, 0x10, WILD),
            memory(config + 0x100, 0x100, WILD),
            ports(0xcf8, 1, HEADER_ADDRESS),
            ports(0xcfc, 4, BAR),
        ]);
        if wild {
            places.extend([
                memory(config, 0x1000, WILD),
                memory(table, 0x100, WILD),
                memory(table, 0x1000, WILD),
                ports(0xcf8, 1, CONFIG_ADDRESS),
                ports(0xcf8, 8, WILD),
                memory(ECAM_BASE, 1 << 20, WILD),
            ]);
        }
        Ok(places)
    }

    /// Everything goes, within its bound; what it was, in words. `whole`: that the guest has not stopped itself.
    fn end(self, whole: bool) -> Result<String> {
        let Self { guest, device, accesses, fired, .. } = self;
        let began = Instant::now();
        let gone = guest.session.fleet()?.detach(&device.assigned)?;
        drop(device);
        let consistent = guest.session.fleet()?.is_consistent();
        let stopped = guest.session.stop();
        let took = began.elapsed();
        if !gone || !consistent || took > TEARDOWN {
            return Err(Error::new(format!("the end: gone {gone}, consistent {consistent}, took {took:?}")));
        }
        let of_itself = match stopped {
            Err(error) if whole => return Err(error),
            Err(error) => format!("; it stopped itself: {error}"),
            Ok(()) => String::new(),
        };
        Ok(format!("{accesses} accesses, {fired} interrupts fired, its end took {took:.1?}{of_itself}"))
    }
}

/// Where the BAR and offset in a register of the MSI-X capability are.
fn place(driver: &Driver<'_>, register: u16) -> Result<u64> {
    let place = driver.config(register, 4)?;
    let bar = u8::try_from(place & 7).unwrap_or(0);
    Ok(driver.bar(bar)? + (place & !7))
}
