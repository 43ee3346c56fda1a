//! The kernel's side: `KVM_SET_GSI_ROUTING` and `KVM_IRQFD`.
//!
//! What cannot be delivered from within the write, the kernel's irqfd leaves to a work item. A step is over when that
//! has run, and nothing tells; but work items of one CPU start in their order. So after a signal the [`SENTINEL`] is
//! signalled, whose message (a broadcast) is never delivered at once either: when its vector is there, so is
//! everything before it. This needs a thread that stays on its CPU.

use super::compare::View;
use super::machine::{IRR, Machine};
use super::ops::{Answer, EVENTS, Fd, Op, RESAMPLES, World};
use pollvisor::error::{Error, Result};
use pollvisor::sys::fd::EventFd;
use pollvisor_core::ids::Gsi;
use pollvisor_core::irqfd::{FLAG_DEASSIGN, FLAG_RESAMPLE};
use pollvisor_core::route::{Msi, RawRoute};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// The GSI that says that the work before is done; it is in every table that is not empty.
pub const SENTINEL: Gsi = Gsi(4095);
const SENTINEL_VECTOR: u8 = 0xfe;
const PATIENCE: Duration = Duration::from_secs(5);
/// A number that no descriptor has.
pub const CLOSED: i32 = i32::MAX;

/// The sentinel's route.
#[must_use]
pub fn sentinel() -> RawRoute {
    RawRoute::msi(SENTINEL, Msi::fixed(u32::MAX, SENTINEL_VECTOR))
}

#[derive(Debug)]
struct One {
    machine: Machine,
    /// `None` without a LAPIC to see it in.
    sentinel: Option<EventFd>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Kernel {
    worlds: [One; 3],
    events: [EventFd; EVENTS],
    resamples: [EventFd; RESAMPLES],
    plain: File,
    /// Where each event is bound, by the kernel's own answers.
    bound: [Option<World>; EVENTS],
}

/// So many eventfds.
///
/// # Errors
/// EMFILE.
pub fn eventfds<const N: usize>() -> Result<[EventFd; N]> {
    let events = (0..N).map(|_| EventFd::new()).collect::<Result<Vec<_>>>()?;
    events.try_into().map_err(|_| Error::new("as many as were asked for"))
}

/// Something open that is not an eventfd.
///
/// # Errors
/// The kernel's.
pub fn plain() -> Result<File> {
    File::open("/dev/null").map_err(|e| Error::os("opening /dev/null", &e))
}

impl Kernel {
    /// Three VMs without routes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> Result<Self> {
        let one = |world: World| -> Result<One> {
            let machine = Machine::new(world.irqchip())?;
            let mut this = One { machine, sentinel: None };
            if world != World::Bare {
                this.machine.vm().fd().set_gsi_routing(0, &[sentinel()])?;
                let event = EventFd::new()?;
                this.machine.vm().fd().irqfd(event.as_fd().as_raw_fd(), SENTINEL, 0, None)?;
                this.sentinel = Some(event);
            }
            Ok(this)
        };
        Ok(Self {
            worlds: [one(World::Kernel)?, one(World::Split)?, one(World::Bare)?],
            events: eventfds()?,
            resamples: eventfds()?,
            plain: plain()?,
            bound: [None; EVENTS],
        })
    }

    /// Whether it lets two VMs bind one eventfd, as it does before 6.17.
    ///
    /// # Errors
    /// When an eventfd cannot be bound at all.
    pub fn shares(&self) -> Result<bool> {
        let event = EventFd::new()?;
        let number = event.as_fd().as_raw_fd();
        let [first, second] = [World::Kernel, World::Split].map(|world| {
            let vm = self.worlds[world as usize].machine.vm().fd();
            move |flags| vm.irqfd(number, Gsi(0), flags, None)
        });
        first(0)?;
        let shared = match second(0) {
            Ok(()) => second(FLAG_DEASSIGN).map(|()| true),
            Err(error) if error.errno() == Some(libc::EBUSY) => Ok(false),
            Err(error) => Err(error),
        };
        first(FLAG_DEASSIGN)?;
        shared
    }

    /// A world's VM.
    #[must_use]
    pub fn machine(&mut self, world: World) -> &mut Machine {
        &mut self.worlds[world as usize].machine
    }

    /// Where an event is bound.
    #[must_use]
    pub fn bound(&self, event: usize) -> Option<World> {
        self.bound[event]
    }

    /// What there is to see.
    ///
    /// # Errors
    /// The kernel's.
    pub fn view(&self, world: World) -> Result<View> {
        View::of(&self.worlds[world as usize].machine, world, &self.resamples, Some(SENTINEL_VECTOR))
    }

    fn number(&self, fd: Fd) -> i32 {
        match fd {
            Fd::Event(event) => self.events[event].as_fd().as_raw_fd(),
            Fd::Resample(event) => self.resamples[event].as_fd().as_raw_fd(),
            Fd::Plain => self.plain.as_raw_fd(),
            Fd::Closed => CLOSED,
        }
    }

    /// Does it, and waits until it is done.
    ///
    /// # Errors
    /// When the machinery of the test fails; a step's own error is an answer.
    pub fn apply(&mut self, op: &Op) -> Result<Answer> {
        match op {
            Op::Routes { world, flags, routes } => {
                let fd = self.worlds[*world as usize].machine.vm().fd().clone();
                let answer = Answer::of(&fd.set_gsi_routing(*flags, routes));
                if answer.errno == 0 && routes.is_empty() {
                    fd.set_gsi_routing(0, &[sentinel()])?;
                }
                Ok(answer)
            }
            Op::Irqfd { world, fd, gsi, flags, resample } => {
                let number = if flags & FLAG_RESAMPLE == 0 { None } else { Some(self.number(*resample)) };
                let vm = self.worlds[*world as usize].machine.vm().fd().clone();
                let answer = Answer::of(&vm.irqfd(self.number(*fd), Gsi(*gsi), *flags, number));
                if let (Fd::Event(event), 0, 0) = (*fd, answer.errno, flags & FLAG_DEASSIGN) {
                    self.bound[event] = Some(*world);
                    self.settle(*world)?;
                    // What was pending has been delivered, and stays in the counter: see `super`.
                    let _pending = self.events[event].take();
                }
                Ok(answer)
            }
            Op::Close(event) => {
                self.events[*event] = EventFd::new()?;
                if let Some(world) = self.bound[*event].take() {
                    self.flush(world)?;
                }
                Ok(Answer::default())
            }
            Op::Signal { event, writes, value } => {
                (0..*writes).for_each(|_| self.events[*event].signal(*value));
                self.bound[*event].map_or(Ok(()), |world| self.settle(world))?;
                Ok(Answer::default())
            }
            Op::Read(event) => Ok(Answer { errno: 0, count: self.events[*event].take() }),
            Op::Program { pin, entry } => {
                super::compare::program(self.machine(World::Kernel), *pin, *entry)?;
                Ok(Answer::default())
            }
            Op::End(vector) => {
                let machine = self.machine(World::Kernel);
                machine.serve(*vector)?;
                machine.end()?;
                Ok(Answer::default())
            }
        }
    }

    /// A deassign took these; the kernel does not say which, so our side's answer is asked.
    pub fn unbound(&mut self, event: usize) {
        self.bound[event] = None;
    }

    /// Waits for every shutdown that is queued: a deassign does, whatever it matches.
    fn flush(&self, world: World) -> Result<()> {
        let one = &self.worlds[world as usize];
        let Some(event) = &one.sentinel else { return Ok(()) };
        one.machine.vm().fd().irqfd(event.as_fd().as_raw_fd(), Gsi(0), FLAG_DEASSIGN, None)
    }

    /// Waits for every injection that is queued.
    fn settle(&self, world: World) -> Result<()> {
        let one = &self.worlds[world as usize];
        let Some(event) = &one.sentinel else { return Ok(()) };
        event.signal(1);
        let began = Instant::now();
        while !pollvisor::accel::kvm::requested(&one.machine.lapic()?, SENTINEL_VECTOR) {
            if began.elapsed() > PATIENCE {
                return Err(Error::new("the sentinel's interrupt did not come"));
            }
            std::thread::yield_now();
        }
        // It must be seen to come next time, too.
        one.machine.change(|lapic| lapic[IRR + 7 * 16 + 3] &= !(1 << 6))
    }
}
