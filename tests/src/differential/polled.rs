//! Our side as a whole: the three worlds, and the descriptors they share.

use super::compare::{View, program};
use super::kernel::{CLOSED, eventfds, plain};
use super::ops::{Answer, EVENTS, Fd, Op, RESAMPLES, World};
use super::ours::{Known, Ours};
use pollvisor::error::Result;
use pollvisor::sys::fd::{EventFd, resolve};
use pollvisor_core::ids::{EventKey, Gsi, SourceId};
use pollvisor_core::irqfd::{Assign, AssignError, FLAG_DEASSIGN, FLAG_RESAMPLE};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

/// Where an eventfd is bound.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Whose.
    pub world: World,
    /// To what.
    pub gsi: u32,
    /// Whether it is a resampling one.
    pub level: bool,
    id: SourceId,
}

/// See the module's text.
pub struct Polled<'a> {
    worlds: [Ours<'a>; 3],
    known: &'a Known,
    events: [Arc<EventFd>; EVENTS],
    resamples: [EventFd; RESAMPLES],
    plain: File,
    bound: [Option<Bound>; EVENTS],
    /// Signals in eventfds that nobody watches.
    held: [u64; EVENTS],
}

impl<'a> Polled<'a> {
    /// With eventfds of its own, noted in `known`.
    ///
    /// # Errors
    /// EMFILE.
    pub fn new(worlds: [Ours<'a>; 3], known: &'a Known) -> Result<Self> {
        let this = Self {
            worlds,
            known,
            events: eventfds()?.map(Arc::new),
            resamples: eventfds()?,
            plain: plain()?,
            bound: [None; EVENTS],
            held: [0; EVENTS],
        };
        for event in &this.events {
            known.borrow_mut().insert(event.key()?, event.clone());
        }
        for event in &this.resamples {
            let copy = event.as_fd().try_clone_to_owned();
            let copy = copy.map_err(|e| pollvisor::Error::os("duplicating an eventfd", &e))?;
            known.borrow_mut().insert(event.key()?, Arc::new(EventFd::from_fd(copy)?));
        }
        Ok(this)
    }

    /// Where each event is bound.
    #[must_use]
    pub fn bound(&self) -> &[Option<Bound>; EVENTS] {
        &self.bound
    }

    /// One of its VMs.
    #[must_use]
    pub fn world(&self, world: World) -> &Ours<'a> {
        &self.worlds[world as usize]
    }

    /// What there is to see.
    ///
    /// # Errors
    /// The kernel's.
    pub fn view(&self, world: World) -> Result<View> {
        self.world(world).view(&self.resamples)
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
    /// When the machinery of the test fails, or a signal is lost; a step's own error is an answer.
    pub fn apply(&mut self, op: &Op) -> Result<Answer> {
        let mut answer = Answer::default();
        match op {
            Op::Routes { world, flags, routes } => {
                answer.errno = self.world(*world).set_routes(*flags, routes);
            }
            Op::Irqfd { world, fd, gsi, flags, resample } => {
                let result = self.irqfd(*world, *fd, *gsi, *flags, *resample);
                answer.errno = result.err().map_or(0, |error| error.errno() as i32);
                self.world(*world).settle()?;
                if result == Err(AssignError::Busy) && flags & FLAG_RESAMPLE != 0 {
                    self.lower_as_the_kernel(*world, *gsi);
                }
            }
            Op::Close(event) => self.close(*event)?,
            Op::Signal { event, writes, value } => {
                let total = u64::from(*writes) * value;
                match self.bound[*event] {
                    Some(bound) => self.world(bound.world).expect(total),
                    None => self.held[*event] += total,
                }
                (0..*writes).for_each(|_| self.events[*event].signal(*value));
                if let Some(bound) = self.bound[*event] {
                    self.world(bound.world).settle()?;
                }
            }
            Op::Read(event) => {
                answer.count = self.events[*event].take();
                self.held[*event] = 0;
            }
            Op::Program { pin, entry } => {
                program(&self.world(World::Kernel).machine().borrow(), *pin, *entry)?;
            }
            Op::End(vector) => self.world(World::Kernel).end(*vector)?,
        }
        Ok(answer)
    }

    /// `KVM_IRQFD` as a caller of ours has it: flags, descriptors, then the core.
    fn irqfd(
        &mut self,
        world: World,
        fd: Fd,
        gsi: u32,
        flags: u32,
        resample: Fd,
    ) -> std::result::Result<(), AssignError> {
        let one = &self.worlds[world as usize];
        one.check_flags(flags)?;
        let key = resolve(self.number(fd))?;
        if flags & FLAG_DEASSIGN != 0 {
            let matched = one.deassign(key, Gsi(gsi));
            let gone = |bound: &Bound| bound.world == world && bound.gsi == gsi;
            if let Fd::Event(event) = fd
                && self.bound[event].as_ref().is_some_and(gone)
            {
                assert_eq!(matched, 1, "a bound eventfd matches");
                self.bound[event] = None;
            } else {
                assert_eq!(matched, 0, "nothing else matches");
            }
            return Ok(());
        }
        let resample = match flags & FLAG_RESAMPLE {
            0 => None,
            _ => Some(resolve(self.number(resample))?),
        };
        let pending = if let Fd::Event(event) = fd { self.held[event] } else { 0 };
        let id = one.assign(Assign { key, gsi: Gsi(gsi), resample, slot: None }, pending)?;
        if let Fd::Event(event) = fd {
            self.bound[event] = Some(Bound { world, gsi, level: resample.is_some(), id });
            self.held[event] = 0;
        }
        Ok(())
    }

    /// The kernel joins the GSI's resampler before it finds the eventfd busy, and when it leaves that again as the last
    /// one, it lowers whatever line the GSI has now, raised by whom it may be. With us a refusal changes nothing, so
    /// here it is made up for.
    fn lower_as_the_kernel(&self, world: World, gsi: u32) {
        let mut bound = self.bound.iter().flatten();
        if !bound.any(|bound| bound.world == world && bound.gsi == gsi && bound.level) {
            self.world(world).lower(Gsi(gsi));
        }
    }

    /// We hold what we watch, so closing does not unbind by itself: its producer's end is told as a hang-up.
    fn close(&mut self, event: usize) -> Result<()> {
        let key: EventKey = self.events[event].key()?;
        if let Some(bound) = self.bound[event].take() {
            assert!(self.world(bound.world).hang_up(bound.id), "it was active");
            self.world(bound.world).settle()?;
        }
        self.known.borrow_mut().remove(&key);
        let fresh = Arc::new(EventFd::new()?);
        self.known.borrow_mut().insert(fresh.key()?, fresh.clone());
        self.events[event] = fresh;
        self.held[event] = 0;
        Ok(())
    }
}
