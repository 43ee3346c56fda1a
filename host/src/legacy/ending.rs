//! Why a guest ends, and what is wanted meanwhile: told by vCPUs, signals and the terminal, heard by the main thread.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Why a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It switched itself off.
    Shutdown,
    /// It asked to be started again.
    Reboot,
    /// It told of a panic, or its first vCPU met a triple fault.
    Panic,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Nothing; time went by.
    Nothing,
    /// The guest ended.
    Ended(End),
    /// Somebody wants it to end: the signal's number.
    Stop(i32),
    /// Somebody wants to see the figures.
    Show,
}

#[derive(Debug, Default)]
struct State {
    end: Option<End>,
    /// Signals that were not heard yet: a number each, at most one of a kind.
    stop: Option<i32>,
    show: bool,
}

/// See the module's text. It holds one of each, however often a guest tells.
#[derive(Debug, Default)]
pub struct Ending {
    state: Mutex<State>,
    changed: Condvar,
}

impl Ending {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest ends; the first reason stays.
    pub fn end(&self, end: End) {
        self.change(|state| state.end = state.end.or(Some(end)));
    }

    /// Somebody wants it to end.
    pub fn stop(&self, signal: i32) {
        self.change(|state| state.stop = Some(signal));
    }

    /// Somebody wants to see the figures.
    pub fn show(&self) {
        self.change(|state| state.show = true);
    }

    /// Waits up to `time` for something to do. An end is told again and again, the rest once.
    pub fn wait(&self, time: Duration) -> Wish {
        let idle = |state: &mut State| state.end.is_none() && state.stop.is_none() && !state.show;
        let waited = self.changed.wait_timeout_while(self.lock(), time, idle);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut state.show) {
            return Wish::Show;
        }
        match (state.end, state.stop.take()) {
            (Some(end), _) => Wish::Ended(end),
            (None, Some(signal)) => Wish::Stop(signal),
            (None, None) => Wish::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_stays_and_the_rest_is_told_once() {
        let ending = Ending::default();
        assert_eq!(ending.wait(Duration::ZERO), Wish::Nothing);
        ending.stop(15);
        ending.show();
        assert_eq!(ending.wait(Duration::MAX), Wish::Show);
        assert_eq!(ending.wait(Duration::MAX), Wish::Stop(15));
        assert_eq!(ending.wait(Duration::ZERO), Wish::Nothing);
        ending.end(End::Panic);
        ending.end(End::Reboot);
        assert_eq!(ending.wait(Duration::MAX), Wish::Ended(End::Panic));
        assert_eq!(ending.wait(Duration::MAX), Wish::Ended(End::Panic));
    }
}
