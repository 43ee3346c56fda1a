//! The half about routes and irqfds: the loop, and what is looked at after each step.

use super::generate::{self, Known};
use super::kernel::{Kernel, sentinel};
use super::ops::{Answer, EVENTS, Op, World};
use super::ours::{Ours, table};
use super::polled::Polled;
use super::{EPISODE, Failure, Half, History, Tally};
use fastrand::Rng;
use pollvisor::error::Result;
use pollvisor::source::Backend;
use pollvisor_core::irqfd::Bindings;
use std::ops::Range;

/// All worlds are looked at every so many steps; between, the one a step is about.
const ALL_EVERY: u64 = 256;

/// `ops` steps from `seed`.
///
/// # Errors
/// The first difference, or what kept the test from going on.
pub fn run(ops: u64, seed: u64) -> std::result::Result<Tally, Failure> {
    let mut history = History::new(Half::Irqfd, seed);
    let mut rng = Rng::with_seed(seed);
    let mut tally = Tally::new(&Op::KINDS);
    let mut step = 0;
    while step < ops {
        let until = ops.min(step + EPISODE);
        episode(step..until, &mut rng, &mut history, &mut tally)?;
        step = until;
    }
    Ok(tally)
}

fn episode(
    steps: Range<u64>,
    rng: &mut Rng,
    history: &mut History,
    tally: &mut Tally,
) -> std::result::Result<(), Failure> {
    let backend = if rng.bool() { Backend::AIO } else { Backend::EpollSpin };
    let tables = World::ALL.map(table);
    let (bindings, known) = (Box::new(Bindings::new()), super::ours::Known::default());
    let ours = |world: World| Ours::new(world, &tables[world as usize], &bindings, &known, backend);
    let sides = || -> Result<_> {
        let worlds = [ours(World::Kernel)?, ours(World::Split)?, ours(World::Bare)?];
        let (mut kernel, mut polled) = (Kernel::new()?, Polled::new(worlds, &known)?);
        begin(&mut kernel, &mut polled)?;
        Ok((kernel, polled))
    };
    let (mut kernel, mut polled) = sides().map_err(|error| history.broken(&error))?;
    let is_shared = kernel.shares().map_err(|error| history.broken(&error))?;
    let mut state = Known { is_shared, ..Known::default() };
    for step in steps {
        let op = generate::step(rng, &state);
        history.note(step, format!("{op:?}"));
        let answers = apply(&mut kernel, &mut polled, &op).map_err(|error| history.broken(&error))?;
        if answers.0 != answers.1 {
            return Err(history.differ(&answers.0, &answers.1));
        }
        tally.count(op.kind(), answers.0.errno);
        for world in World::ALL {
            if step.is_multiple_of(ALL_EVERY) || concerns(&op, &state, world) {
                look(world, &mut kernel, &polled, &mut state, tally, history)?;
            }
        }
        for (known, bound) in state.bound.iter_mut().zip(polled.bound()) {
            *known = bound.map(|bound| (bound.world, bound.gsi, bound.level));
        }
        if let Op::Routes { world: World::Kernel, routes, .. } = op
            && answers.0.errno == 0
        {
            state.routes = routes;
        }
    }
    Ok(())
}

/// The kernel gives a VM with chips routes at birth, we do not: both start with the same table.
fn begin(kernel: &mut Kernel, polled: &mut Polled<'_>) -> Result<()> {
    for world in World::ALL {
        apply(kernel, polled, &Op::Routes { world, flags: 0, routes: vec![sentinel()] })?;
    }
    Ok(())
}

fn apply(kernel: &mut Kernel, polled: &mut Polled<'_>, op: &Op) -> Result<(Answer, Answer)> {
    let theirs = kernel.apply(op).map_err(|e| e.context("the kernel's side"))?;
    let ours = polled.apply(op).map_err(|e| e.context("our side"))?;
    for event in 0..EVENTS {
        if polled.bound()[event].is_none() && kernel.bound(event).is_some() {
            kernel.unbound(event);
        }
    }
    Ok((theirs, ours))
}

/// Whether `op` may change something in `world`.
fn concerns(op: &Op, state: &Known, world: World) -> bool {
    let of = match op {
        Op::Routes { world, .. } | Op::Irqfd { world, .. } => Some(*world),
        Op::Close(event) | Op::Signal { event, .. } | Op::Read(event) => {
            state.bound[*event].map(|(world, ..)| world)
        }
        Op::Program { .. } | Op::End(_) => Some(World::Kernel),
    };
    of == Some(world)
}

fn look(
    world: World,
    kernel: &mut Kernel,
    polled: &Polled<'_>,
    state: &mut Known,
    tally: &mut Tally,
    history: &History,
) -> std::result::Result<(), Failure> {
    let broken = |error| history.broken(&error);
    let (theirs, ours) = (kernel.view(world).map_err(broken)?, polled.view(world).map_err(broken)?);
    if theirs != ours {
        return Err(history.differ(&theirs, &ours));
    }
    tally.interrupts += u64::from(theirs.requested());
    tally.resampled += theirs.resampled();
    if let Some(entries) = theirs.entries() {
        state.entries = entries;
    }
    if theirs.is_marked() {
        kernel.machine(world).forget().map_err(broken)?;
        polled.world(world).machine().borrow().forget().map_err(broken)?;
    }
    Ok(())
}
