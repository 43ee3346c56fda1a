//! One path under load: producers on threads of their own, a collector beside them, the ledger closed at the end.

use crate::common::Bench;
use crate::measure::matching::{Found, Matching};
use crate::measure::schedule::Shape;
use crate::measure::{add, float, histogram};
use crate::model::{Load, PathResult, Stage};
use crate::noise::{Kind, Noise, Window};
use crate::produce::{Log, Pace, Plan, Produced, produce};
use crate::rounds::{SETTLE, result};
use crate::way::{self, Config, Cpus, Device, Path, Trigger, Way};
use hdrhistogram::Histogram;
use pollvisor::cli::duration;
use pollvisor::error::{Error, Result};
use pollvisor::flight::EVENTS;
use pollvisor::pin::{Placement, not_isolated};
use pollvisor::source::DEFAULT_PER_CONTEXT;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The flags that say how a path is loaded.
#[derive(Debug, Clone, clap::Args)]
pub struct DriveArgs {
    /// Interrupt vectors, 1 to 4096 [default: 64; of a device: all it has]
    #[arg(long, value_name = "N")]
    pub vectors: Option<usize>,
    /// Producers; each vector has one
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub producers: usize,
    /// Pollers, each on a CPU of its own, where the path has pollers
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub pollers: usize,
    /// Eventfds that share an AIO context
    #[arg(long, default_value_t = DEFAULT_PER_CONTEXT, value_name = "N")]
    pub per_context: usize,
    /// How long to measure each (units: ms s m h; a bare number is s)
    #[arg(short = 'D', long, default_value = "2s", value_parser = duration, value_name = "TIME")]
    pub duration: Duration,
    /// How long to run each before measuring
    #[arg(long, default_value = "200ms", value_parser = duration, value_name = "TIME")]
    pub warm_up: Duration,
    /// Other work on every CPU meanwhile
    #[arg(long, value_enum, default_value_t = Kind::None)]
    pub noise: Kind,
}

impl DriveArgs {
    /// How many vectors, where no device has fewer.
    #[must_use]
    pub fn vectors(&self) -> usize {
        const USUAL: usize = 64;
        self.vectors.unwrap_or(USUAL)
    }
}

/// How signals are made, over all producers.
#[derive(Debug, Clone, Copy)]
pub enum Rate {
    /// By a schedule: its shape, signals in a second, signals at once.
    Open(Shape, f64, usize),
    /// So many a second at the most, each producer's next one after its last.
    Closed(f64),
    /// So many a second, only counted; 0: as fast as it goes.
    Flood(f64),
}

impl Rate {
    fn pace(self, bench: &Bench, producers: usize) -> Pace {
        let producers = float(producers as u64);
        match self {
            Self::Open(shape, per_second, burst) => {
                Pace::Open { shape, per_second: per_second / producers, burst }
            }
            Self::Closed(per_second) => {
                Pace::Closed(bench.clock.cycles(Duration::from_secs_f64(producers / per_second)))
            }
            Self::Flood(0.0) => Pace::Flood(0),
            Self::Flood(per_second) => {
                Pace::Flood(bench.clock.cycles(Duration::from_secs_f64(producers / per_second)))
            }
        }
    }

    /// Signals in a second that have to be kept one by one.
    fn kept(self) -> f64 {
        match self {
            Self::Open(_, per_second, _) | Self::Closed(per_second) => per_second,
            Self::Flood(_) => 0.0,
        }
    }

    fn load(self) -> Load {
        match self {
            Self::Open(shape, per_second, _) => Load::Open { per_second, schedule: shape.name().into() },
            Self::Flood(per_second) if per_second > 0.0 => {
                Load::Open { per_second, schedule: Shape::Fixed.name().into() }
            }
            Self::Closed(_) | Self::Flood(_) => Load::Closed,
        }
    }
}

/// How often the collector looks.
const LOOK: Duration = Duration::from_millis(100);
/// Looks that may come late before samples are lost.
const SLACK: f64 = 5.0;
/// Samples that are kept at the most between two looks.
const MOST_KEPT: usize = 1 << 20;

/// What came of a path.
pub struct Driven {
    /// Its result.
    pub result: PathResult,
    /// What a reader should know.
    pub warnings: Vec<String>,
    /// Why it ended early: what was measured until then is in the result all the same.
    pub gone: Option<Error>,
}

struct Drive<'a> {
    bench: &'a Bench,
    args: &'a DriveArgs,
    rate: Rate,
    device: Option<&'a Device>,
    vectors: usize,
    cpus: &'a Cpus,
    name: String,
    room: usize,
    way: Box<dyn Way>,
    triggers: Vec<Trigger>,
    matching: Matching,
    gaps: Option<Histogram<u64>>,
    window: Window,
}

/// What one phase saw beside the matching.
struct Phase {
    produced: Vec<Produced>,
    seconds: f64,
}

/// Sets a path up, warms it up, loads it, and takes it down. `device`: whose vectors are fired.
///
/// # Errors
/// Why it cannot be had here, or what does not add up.
pub fn drive(
    bench: &Bench,
    args: &DriveArgs,
    path: Path,
    rate: Rate,
    device: Option<&Arc<Device>>,
) -> Result<Driven> {
    if device.is_some() && !path.is_by_eventfd() {
        return Err(Error::new("VFIO signals eventfds, and nothing else").remedy("another --path"));
    }
    if args.duration.is_zero() {
        return Err(Error::new("--duration 0: nothing would be measured"));
    }
    let cpus = Cpus::of(&bench.cpus, args.pollers)?;
    // The collector and what it starts; producers and pollers move on to their own.
    let house = Placement { cpu: cpus.producers.last().copied(), fifo: Some(false) };
    house.apply("the collector")?;
    let kept = (rate.kept() * LOOK.as_secs_f64() * SLACK).min(float(MOST_KEPT as u64));
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounded just now, not below 0"
    )]
    let room = if matches!(rate, Rate::Flood(_)) { 0 } else { kept as usize + 1024 };
    let vectors = device.map_or(args.vectors(), |device| device.vectors());
    let config = Config {
        accelerator: bench.accelerator(),
        path,
        vectors,
        producers: args.producers,
        cpus: cpus.pollers.clone(),
        per_context: args.per_context,
        samples: room,
        gaps: path.spins(),
        flight: bench.threshold.records(),
        device: device.cloned(),
    };
    let (way, triggers) = way::start(&config, bench.clock)?;
    let matching = Matching::new(bench.clock, vectors, path.is_by_producer())?;
    let window = Window::open(&way.threads());
    let name = path.name(bench.accelerator());
    let (device, cpus, gaps) = (device.map(|device| &**device), &cpus, None);
    let mut drive =
        Drive { bench, args, rate, device, vectors, cpus, name, room, way, triggers, matching, gaps, window };
    let noise = Noise::start(args.noise, &bench.cpus)?;
    if !args.warm_up.is_zero() {
        drive.phase(args.warm_up)?;
        drive.matching.reset()?;
        drive.gaps = None;
    }
    drive.matching.watch = bench.watch(args.pollers.max(args.producers));
    drive.window = Window::open(&drive.way.threads());
    let phase = drive.phase(args.duration)?;
    drop(noise);
    drive.finish(path, &phase)
}

impl Drive<'_> {
    /// Produces for `duration`, and waits until every signal is accounted for.
    fn phase(&mut self, duration: Duration) -> Result<Phase> {
        const AHEAD: Duration = Duration::from_millis(2);
        let clock = self.bench.clock;
        let stop = AtomicBool::new(false);
        let logs: Vec<Log> = self.triggers.iter().map(|_| Log::new(self.room)).collect();
        let start = clock.now() + clock.cycles(AHEAD);
        let plan = Plan {
            pace: self.rate.pace(self.bench, self.args.producers),
            start,
            end: start + clock.cycles(duration),
            seed: 0,
        };
        let mut triggers = std::mem::take(&mut self.triggers);
        let (began, cpus) = (Instant::now(), self.cpus);
        let produced = std::thread::scope(|scope| -> Result<Vec<Produced>> {
            let stop = &stop;
            let threads: Vec<_> = (triggers.iter_mut().zip(&logs).enumerate())
                .map(|(number, (trigger, log))| {
                    let plan = Plan { seed: number as u64, ..plan };
                    scope.spawn(move || {
                        cpus.producer(number).apply("a producer")?;
                        produce(trigger, &plan, clock, log, stop)
                    })
                })
                .collect();
            let mut result = Ok(());
            let pause = self.pause().min(duration / 4);
            while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                std::thread::sleep(pause);
                result = result.and_then(|()| self.look(&logs));
                self.window.look();
                self.check();
                let gone = self.device.is_some_and(|device| device.gone().is_some());
                if result.is_err() || gone || self.bench.is_over() {
                    stop.store(true, Ordering::Relaxed);
                }
                let (seconds, all) = (began.elapsed().as_secs_f64(), duration.as_secs_f64());
                self.bench.progress(&format!("{}: {seconds:.1} of {all:.1} s", self.name));
            }
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Produced>>| {
                thread.join().unwrap_or_else(|_| Err(Error::new("a producer panicked")))
            };
            result.and(threads.into_iter().map(join).collect())
        })?;
        self.triggers = triggers;
        self.matching.counted(produced.iter().map(|one| one.counted).sum());
        let settling = Instant::now();
        loop {
            self.look(&logs)?;
            if self.matching.open() == 0 || settling.elapsed() > SETTLE {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.matching.run();
        self.check();
        let ended = produced.iter().map(|one| one.ended).max().unwrap_or(start);
        Ok(Phase { produced, seconds: float(clock.ns(ended.saturating_sub(start))) / 1e9 })
    }

    /// How long between two looks: with a flight recorder not longer than a quarter of its events take, at the rate that is
    /// asked for.
    fn pause(&self) -> Duration {
        const LEAST: f64 = 0.001;
        let events = float((EVENTS / 4 * self.args.pollers) as u64);
        if !self.bench.threshold.records() || self.rate.kept() <= 0.0 {
            return LOOK;
        }
        Duration::from_secs_f64((events / self.rate.kept()).clamp(LEAST, LOOK.as_secs_f64()))
    }

    /// Deals with a latency beyond the threshold.
    fn check(&mut self) {
        let threads = if self.way.threads().is_empty() { self.args.producers } else { 1 };
        self.bench.check(&self.name, &mut self.matching.watch, self.way.flights(), threads);
    }

    /// Takes what the path took, then what the producers made: a delivery whose signal is not logged yet waits for it.
    fn look(&mut self, logs: &[Log]) -> Result<()> {
        let taken = self.way.take()?;
        self.matching.took(&taken);
        if let Some(gaps) = &taken.gaps {
            match &mut self.gaps {
                Some(all) => add(all, gaps)?,
                all => *all = Some(gaps.clone()),
            }
        }
        for log in logs {
            self.matching.sent(&log.take());
        }
        self.matching.run();
        Ok(())
    }

    fn finish(mut self, path: Path, phase: &Phase) -> Result<Driven> {
        let noted = std::mem::replace(&mut self.window, Window::narrow(&[])).close();
        let (vectors, producers) = (self.vectors, self.args.producers);
        // The producers' vectors take turns, so this many signals have been everywhere.
        if self.matching.ledger.sent >= (vectors * producers) as u64 {
            for vector in 0..vectors {
                if !self.way.is_requested(vector)? {
                    return Err(Error::new(format!("{}: no LAPIC has vector {vector}", self.name)));
                }
            }
        }
        let left_over = (0..vectors).map(|vector| self.way.left_over(vector)).sum();
        self.matching.refused(left_over);
        self.matching.check()?;
        let mut warnings = self.way.warnings();
        let placed: Vec<_> = (self.cpus.pollers.iter())
            .chain(&self.cpus.producers)
            .map(|cpu| Placement { cpu: Some(*cpu), fifo: None })
            .collect();
        warnings.extend(not_isolated(&placed));
        if producers > self.cpus.producers.len() {
            let there = self.cpus.producers.len();
            warnings.push(format!("{producers} producers share {there} CPUs, and are late where they do"));
        }
        let unmade: u64 = phase.produced.iter().map(|one| one.unmade).sum();
        if unmade > 0 {
            warnings.push(format!(
                "{}: {unmade} planned signals were not made: it cannot go that fast",
                self.name
            ));
        }
        let mut own_gaps = histogram()?;
        for one in &phase.produced {
            add(&mut own_gaps, &one.gaps)?;
        }
        let found = std::mem::replace(&mut self.matching.found, Found::new()?);
        let mut result =
            result((path, self.bench.accelerator()), vectors, producers, self.rate.load(), &found);
        result.ledger = self.matching.ledger;
        result.per_second = float(result.ledger.delivered) / phase.seconds.max(1e-9);
        noted.put(&mut result);
        if !own_gaps.is_empty() {
            result.stages.insert("producer_gaps".into(), Stage::of(&own_gaps));
        }
        result.gaps = self.gaps.as_ref().map(Stage::of);
        result.coalesced = self.way.coalesced();
        self.way.stop()?;
        Ok(Driven { result, warnings, gone: self.device.and_then(Device::gone) })
    }
}
