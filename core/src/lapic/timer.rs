//! The timer, on clocks that are passed in (SDM 5.4).
//!
//! Nothing runs: the count is what the register said at some moment, and that moment. Whoever looks later works out what
//! happened in between. An expiry that nobody looked at for *k* periods is one interrupt, and the period keeps its phase.

use super::lvt::TimerMode;
use super::{Lapic, Lvt};

/// A moment, by both clocks that a LAPIC timer can follow. Neither goes backwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Cycles of the bus clock, which the counts divide.
    pub bus: u64,
    /// The guest's TSC.
    pub tsc: u64,
}

/// When to call [`Lapic::advance`] at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// At this bus cycle.
    Bus(u64),
    /// At this TSC value.
    Tsc(u64),
}

/// A count that runs: `from` at bus cycle `since`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    since: u64,
    from: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timer {
    initial: u32,
    divide: u32,
    /// `None`: at 0, and stopped.
    count: Option<Count>,
    /// In TSC-deadline mode; 0: none.
    deadline: u64,
}

impl Timer {
    pub(super) const RESET: Self = Self { initial: 0, divide: 0, count: None, deadline: 0 };

    /// 2, 4, 8, 16, 32, 64, 128, 1 by bits 3, 1 and 0.
    const fn divisor(self) -> u64 {
        match self.divide & 3 | self.divide >> 1 & 4 {
            7 => 1,
            code => 2 << code,
        }
    }

    pub(super) const fn initial(self) -> u32 {
        self.initial
    }

    pub(super) const fn divide(self) -> u32 {
        self.divide
    }

    pub(super) const fn deadline(self) -> u64 {
        self.deadline
    }

    /// The current count.
    pub(super) fn current(self, now: Time) -> u32 {
        let Some(Count { since, from }) = self.count else { return 0 };
        let elapsed = now.bus.saturating_sub(since) / self.divisor();
        from.saturating_sub(u32::try_from(elapsed).unwrap_or(u32::MAX))
    }

    fn expiry(self) -> Option<u64> {
        self.count.map(|Count { since, from }| since.saturating_add(u64::from(from) * self.divisor()))
    }

    /// A new initial count starts the timer; 0 stops it.
    fn start(&mut self, initial: u32, now: Time) {
        self.initial = initial;
        self.count = (initial != 0).then_some(Count { since: now.bus, from: initial });
    }

    /// A new divide value keeps the count.
    pub(super) fn set_divide(&mut self, divide: u32, now: Time) {
        let current = self.current(now);
        self.divide = divide;
        self.count = self.count.map(|_| Count { since: now.bus, from: current });
    }

    pub(super) const fn disarm(&mut self) {
        self.initial = 0;
        self.count = None;
        self.deadline = 0;
    }

    /// Whether it has expired by `now`, once however often.
    fn expire(&mut self, mode: TimerMode, now: Time) -> bool {
        if mode == TimerMode::TscDeadline {
            let due = self.deadline != 0 && now.tsc >= self.deadline;
            self.deadline = if due { 0 } else { self.deadline };
            return due;
        }
        let Some(expiry) = self.expiry().filter(|expiry| now.bus >= *expiry) else { return false };
        let period = u64::from(self.initial) * self.divisor();
        self.count = (mode == TimerMode::Periodic)
            .then(|| Count { since: expiry + (now.bus - expiry) / period * period, from: self.initial });
        true
    }
}

impl Lapic {
    /// Lets the timer expire, if its time came by `now`. At the [`deadline`](Self::deadline); accesses to registers do it too.
    pub fn advance(&mut self, now: Time) {
        if self.timer.expire(self.timer_mode(), now) {
            let _lost_if_masked = self.fire(Lvt::Timer);
        }
    }

    /// When the timer makes its next interrupt, if it is going to.
    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        if self.is_masked(Lvt::Timer) {
            return None;
        }
        match self.timer_mode() {
            TimerMode::TscDeadline => {
                (self.timer.deadline != 0).then_some(Deadline::Tsc(self.timer.deadline))
            }
            _ => self.timer.expiry().map(Deadline::Bus),
        }
    }

    /// The initial count register; nothing in TSC-deadline mode.
    pub(super) fn set_initial_count(&mut self, initial: u32, now: Time) {
        if self.timer_mode() != TimerMode::TscDeadline {
            self.timer.start(initial, now);
        }
    }

    /// The deadline MSR; nothing in another mode.
    pub(super) fn set_deadline(&mut self, deadline: u64, now: Time) {
        if self.timer_mode() == TimerMode::TscDeadline {
            self.timer.deadline = deadline;
            self.advance(now);
        }
    }
}
