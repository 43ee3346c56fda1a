//! The lane itself: what the core's poller sees as its [`Source`].

use super::aio::{AioSource, DEFAULT_PER_CONTEXT};
use super::bells::{Bells, is_bell};
use super::epoll::EpollSource;
use super::port::{Command, Port};
use crate::error::{Error, Result};
use pollvisor_core::source::{Drained, Fired, Source};
use std::sync::Arc;

/// How a lane watches eventfds. Doorbells are always polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Linux AIO's completion rings, read in memory; so many sources per context.
    Aio {
        /// Sources per context.
        per_context: usize,
    },
    /// `epoll_wait` without waiting, every pass: a system call each.
    EpollSpin,
    /// `epoll_wait` with waiting: what other VMMs do.
    EpollBlock,
}

impl Backend {
    /// AIO as measured best.
    pub const AIO: Self = Self::Aio { per_context: DEFAULT_PER_CONTEXT };
}

#[derive(Debug)]
enum Events {
    Aio(AioSource),
    Epoll(EpollSource),
}

/// See the module's text. One poller's.
#[derive(Debug)]
pub struct Lane {
    port: Arc<Port>,
    events: Events,
    bells: Bells,
    blocking: bool,
    /// Who is asked first in this pass.
    bells_first: bool,
    /// Whether the first one had nothing more in this pass.
    second: bool,
}

/// Commands taken per pass at the most.
const COMMANDS: usize = 16;

impl Lane {
    /// A lane for irqfd slots below `slots`.
    ///
    /// # Errors
    /// EAGAIN when `fs.aio-max-nr` is used up, EMFILE.
    pub fn new(backend: Backend, slots: usize) -> Result<Self> {
        let blocking = backend == Backend::EpollBlock;
        let (events, cancellers) = match backend {
            Backend::Aio { per_context } => {
                let source = AioSource::new(slots, per_context)?;
                let cancellers = source.cancellers();
                (Events::Aio(source), cancellers)
            }
            Backend::EpollSpin | Backend::EpollBlock => (Events::Epoll(EpollSource::new(slots)?), [].into()),
        };
        let port = Port::new(slots, cancellers, blocking)?;
        if let Events::Epoll(source) = &events {
            source.watch_wake(&port)?;
        }
        Ok(Self { port, events, bells: Bells::new(slots), blocking, bells_first: true, second: false })
    }

    /// AIO where this kernel has it, else epoll and why.
    ///
    /// # Errors
    /// When neither can be had.
    pub fn polled(slots: usize) -> Result<(Self, Option<Error>)> {
        match Self::new(Backend::AIO, slots) {
            Ok(lane) => Ok((lane, None)),
            Err(why) => Ok((Self::new(Backend::EpollSpin, slots)?, Some(why))),
        }
    }

    /// The control side.
    #[must_use]
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Carries out what control threads asked for, a bounded number of them. Before a pass, never within one.
    #[inline]
    pub fn obey(&mut self) {
        let Self { port, events, bells, .. } = self;
        let called = port.receive(COMMANDS, |command| carry_out(command, port, events, bells));
        if called && let Events::Aio(source) = events {
            source.retry(port);
        }
    }

    /// Whether this lane sleeps between events.
    #[must_use]
    pub fn is_blocking(&self) -> bool {
        self.blocking
    }

    /// Sleeps until there is an event or a command; on a lane that polls, nothing.
    ///
    /// ```text
    ///  sender                          poller
    ///  commands.push                   obey: takes some
    ///  waiting := true                 next: wake.take()      clears the wake of commands that came since, or were too many
    ///  wake.signal                     wait: waiting? ──► no sleep
    /// ```
    /// A wake that was taken was signalled after its `waiting`, so that is seen here; one that was not ends the sleep.
    pub fn wait(&mut self) {
        if self.blocking
            && !self.port.is_called()
            && let Events::Epoll(source) = &mut self.events
        {
            source.wait();
        }
    }

    #[inline]
    fn next_of(&mut self, bells: bool) -> Option<Fired> {
        if bells {
            return self.bells.next();
        }
        match &mut self.events {
            Events::Aio(source) => source.next(&self.port),
            Events::Epoll(source) => source.next(&self.port),
        }
    }
}

#[cold]
fn carry_out(command: Command, port: &Port, events: &mut Events, bells: &mut Bells) {
    match (command, events) {
        (Command::Hook { id, event }, Events::Aio(source)) => source.hook(id, event, port),
        (Command::Hook { id, event }, Events::Epoll(source)) => source.hook(id, event, port),
        (Command::Region { number, consumer, listeners }, _) => bells.add(number, consumer, listeners, port),
        (Command::HookBell { id, region, bell }, _) => bells.hook(id, region, bell, port),
        (Command::Unhook { id }, _) if bells.unhook(id, port) => {}
        (Command::Unhook { id }, Events::Aio(source)) => source.unhook(id, port),
        (Command::Unhook { id }, Events::Epoll(source)) => source.unhook(id, port),
    }
}

impl Source for Lane {
    #[inline]
    fn next(&mut self) -> Option<Fired> {
        if !self.second {
            if let Some(fired) = self.next_of(self.bells_first) {
                return Some(fired);
            }
            self.second = true;
        }
        let fired = self.next_of(!self.bells_first);
        if fired.is_none() {
            self.second = false;
            self.bells_first = !self.bells_first;
        }
        fired
    }

    #[inline]
    fn drain(&mut self, fired: &Fired) -> Drained {
        if is_bell(fired) {
            return self.bells.drain(fired);
        }
        match &mut self.events {
            Events::Aio(source) => source.drain(fired, &self.port),
            Events::Epoll(source) => source.drain(fired, &self.port),
        }
    }

    #[inline]
    fn rearm(&mut self, fired: &Fired) {
        if !is_bell(fired)
            && let Events::Aio(source) = &mut self.events
        {
            source.rearm(fired);
        }
    }

    #[inline]
    fn flush(&mut self) {
        match &mut self.events {
            Events::Aio(source) => source.flush(&self.port),
            Events::Epoll(source) => source.flush(),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Nobody takes commands any more, and nothing is watched: contexts and epoll go with us.
        self.port.close();
    }
}
