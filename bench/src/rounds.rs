//! Contenders in interleaved rounds.
//!
//! Every path has a VM of its own for the whole run. A round is: for every number of vectors and every path in turn, its
//! poller is woken, a warm-up, signals at a fixed pace to the vectors in turn, its poller is parked. A round takes about
//! a tenth of a second and a ratio is made within it, so the machine's moods cancel; what is printed is the median over
//! the rounds. Noise is noted in the same windows: gaps by the loops that spin there anyway, a poller's between its idle
//! passes (one look at the clock more in each) and the producer's between signals; of a path that sleeps the producer's only,
//! for a loop on its core would keep it awake. Acceptance is checked, not assumed: every ledger has to add up, and at the end the LAPICs' request
//! registers are read back.

use crate::common::{Bench, quantile};
use crate::measure::matching::{Found, Matching};
use crate::measure::stats::{median, median_ci95};
use crate::measure::{add, float, histogram};
use crate::model::{Load, PathResult, Stage};
use crate::noise::{Noted, Window};
use crate::produce::gap;
use crate::way::{self, Config, Path, Trigger, Way};
use hdrhistogram::Histogram;
use pollvisor::accel::Accelerator;
use pollvisor::clock::Clock;
use pollvisor::error::{Error, Result};
use std::time::{Duration, Instant};

/// How a round goes.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Signals, and as many before to warm up.
    pub samples: u32,
    /// Cycles between signals.
    pub pace: u64,
}

/// One path at one number of vectors, kept for the whole run; its poller is parked while others are measured.
pub struct Contender {
    /// What takes its interrupts.
    accelerator: Accelerator,
    /// Which path.
    pub path: Path,
    /// How many vectors.
    pub vectors: usize,
    /// The median of each round, in nanoseconds.
    pub p50s: Vec<f64>,
    way: Box<dyn Way>,
    trigger: Trigger,
    matching: Matching,
    all: Found,
    active: Duration,
    noted: Option<Noted>,
    gaps: Option<Histogram<u64>>,
    own_gaps: Histogram<u64>,
}

/// How long the last signals may take to be accounted for.
pub const SETTLE: Duration = Duration::from_secs(5);

impl Contender {
    /// Sets it up, every vector signalled once, and parks it.
    ///
    /// # Errors
    /// Why this path cannot be had here.
    pub fn new(
        bench: &Bench,
        path: Path,
        vectors: usize,
        cpu: usize,
        per_context: usize,
        turn: Turn,
    ) -> Result<Self> {
        let samples = vectors.max(turn.samples as usize * 2) + 64;
        let flight = bench.threshold.records();
        let (cpus, device) = (vec![cpu], None);
        let config = Config {
            accelerator: bench.accelerator(),
            path,
            vectors,
            producers: 1,
            cpus,
            per_context,
            samples,
            gaps: path.spins(),
            flight,
            device,
        };
        let (way, mut triggers) = way::start(&config, bench.clock)?;
        let trigger = triggers.pop().ok_or_else(|| Error::new("a path without a producer"))?;
        let mut made = Self {
            accelerator: bench.accelerator(),
            path,
            vectors,
            p50s: Vec::new(),
            way,
            trigger,
            matching: Matching::new(bench.clock, vectors, path.is_by_producer())?,
            all: Found::new()?,
            active: Duration::ZERO,
            noted: None,
            gaps: None,
            own_gaps: histogram()?,
        };
        // So that nothing is measured for its first time.
        for _ in 0..vectors {
            made.warm_up(turn, bench.clock)?;
        }
        made.settle()?;
        made.matching.reset()?;
        made.matching.watch = bench.watch(1);
        made.gaps.iter_mut().for_each(Histogram::reset);
        made.own_gaps.reset();
        made.way.park();
        if made.accelerator == Accelerator::Software {
            made.way.clear_requests()?;
        }
        Ok(made)
    }

    /// Path and size, for errors.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} at {} vectors", self.path.name(self.accelerator), self.vectors)
    }

    fn warm_up(&mut self, turn: Turn, clock: Clock) -> Result<()> {
        let sent = self.trigger.warm_up()?;
        self.matching.sent(&[sent]);
        pause(clock, sent.made + turn.pace, &mut self.own_gaps);
        Ok(())
    }

    /// One round's turn.
    ///
    /// # Errors
    /// When signals are lost, or the poller is.
    pub fn measure(&mut self, turn: Turn, clock: Clock) -> Result<()> {
        let began = Instant::now();
        self.way.unpark();
        let window = Window::narrow(&self.way.threads());
        for _ in 0..turn.samples {
            self.warm_up(turn, clock)?;
        }
        for _ in 0..turn.samples {
            let sent = self.trigger.signal(None)?;
            self.matching.sent(&[sent]);
            pause(clock, sent.made + turn.pace, &mut self.own_gaps);
        }
        self.settle()?;
        let noted = window.close();
        self.noted = Some(match self.noted.take() {
            Some(before) => before.with(noted),
            None => noted,
        });
        self.way.park();
        if self.accelerator == Accelerator::Software {
            // Each round begins alike: no vector is requested. They are counted as discarded.
            self.way.clear_requests()?;
        }
        self.active += began.elapsed();
        self.p50s.push(quantile(&self.matching.found.accepted, 0.5));
        self.all.take(&mut self.matching.found)
    }

    /// Waits until every signal is accounted for.
    fn settle(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            let taken = self.way.take()?;
            self.matching.took(&taken);
            match (&mut self.gaps, taken.gaps) {
                (Some(all), Some(gaps)) => add(all, &gaps)?,
                (all @ None, gaps) => *all = gaps,
                (Some(_), None) => {}
            }
            if self.matching.open() == 0 || began.elapsed() > SETTLE {
                self.matching.run();
                return self.matching.check();
            }
        }
    }

    /// Asks whether the LAPICs have it all, takes it down, and says what was found. `irqfd` and `direct`: the medians of
    /// these two, round by round.
    ///
    /// # Errors
    /// When a LAPIC does not have what it should.
    pub fn finish(mut self, irqfd: Option<&[f64]>, direct: Option<&[f64]>) -> Result<PathResult> {
        // A last signal to each, to emptied LAPICs; no part of what was measured.
        let (ledger, coalesced) = (self.matching.ledger, self.way.coalesced());
        self.way.clear_requests()?;
        self.way.unpark();
        for _ in 0..self.vectors {
            let sent = self.trigger.warm_up()?;
            self.matching.sent(&[sent]);
        }
        self.settle()?;
        for vector in 0..self.vectors {
            if !self.way.is_requested(vector)? {
                return Err(Error::new(format!("{}: no LAPIC has vector {vector}", self.name())));
            }
        }
        let left_over: u64 = (0..self.vectors).map(|vector| self.way.left_over(vector)).sum();
        self.way.stop()?;
        let mut result = result((self.path, self.accelerator), self.vectors, 1, Load::Closed, &self.all);
        result.coalesced = coalesced;
        result.rounds = self.p50s.len();
        result.ledger = ledger;
        result.ledger.delivered = ledger.delivered.saturating_sub(left_over);
        result.ledger.dropped += left_over;
        result.per_second = float(result.ledger.delivered) / self.active.as_secs_f64().max(1e-9);
        if let Some(noted) = &self.noted {
            noted.put(&mut result);
        }
        result.gaps = self.gaps.as_ref().map(Stage::of);
        if !self.own_gaps.is_empty() {
            result.stages.insert("producer_gaps".into(), Stage::of(&self.own_gaps));
        }
        if let Some(irqfd) = irqfd {
            let ratios = ratios(&self.p50s, irqfd);
            (result.ratio_to_irqfd, result.ratio_ci95) = (Some(median(&ratios)), Some(median_ci95(&ratios)));
        }
        if let Some(direct) = direct {
            let ratios = ratios(&self.p50s, direct);
            result.ratio_to_direct = Some(median(&ratios));
            result.ratio_to_direct_ci95 = Some(median_ci95(&ratios));
        }
        Ok(result)
    }
}

/// A path's result as far as its latencies go.
#[must_use]
pub fn result(
    (path, accelerator): (Path, Accelerator),
    vectors: usize,
    producers: usize,
    load: Load,
    found: &Found,
) -> PathResult {
    let stages = [
        (accelerator.signal_to_accepted().key(), &found.accepted),
        ("signal_to_seen", &found.seen),
        (accelerator.seen_to_injected().key(), &found.injected),
        ("producer", &found.paid),
    ];
    let open = matches!(load, Load::Open { .. });
    let late = open.then_some(("producer_late", &found.late));
    let stages = stages.into_iter().chain(late).filter(|(_, histogram)| !histogram.is_empty());
    PathResult {
        path: path.name(accelerator),
        vectors,
        producers,
        rounds: 1,
        load,
        p50_ns: quantile(&found.accepted, 0.5),
        p99_ns: quantile(&found.accepted, 0.99),
        p999_ns: quantile(&found.accepted, 0.999),
        producer_p50_ns: quantile(&found.paid, 0.5),
        ratio_to_irqfd: None,
        ratio_ci95: None,
        ratio_to_direct: None,
        ratio_to_direct_ci95: None,
        coalesced: None,
        ledger: crate::model::Ledger::default(),
        stages: stages.map(|(name, histogram)| (name.to_string(), Stage::of(histogram))).collect(),
        uncorrected: open.then(|| Stage::of(&found.uncorrected)),
        per_second: 0.0,
        cpu_ns_per_interrupt: None,
        gaps: None,
        context_switches: None,
        delivery_switches: None,
        steal_ns: None,
    }
}

/// Spins until it is time for the next signal; what interrupts that is a gap.
pub fn pause(clock: Clock, until: u64, gaps: &mut Histogram<u64>) {
    let mut last = clock.now();
    while last < until {
        std::hint::spin_loop();
        let now = clock.now();
        gap(clock, last, now, gaps);
        last = now;
    }
}

/// The ratios of two measurements, round by round.
#[must_use]
pub fn ratios(over: &[f64], under: &[f64]) -> Vec<f64> {
    over.iter().zip(under).map(|(over, under)| over / under.max(1.0)).collect()
}

/// All contenders, interleaved; those that cannot be had here are errors, and the others go on.
#[derive(Default)]
pub struct Field {
    /// Those that can.
    pub contenders: Vec<Contender>,
    /// Why others cannot.
    pub errors: Vec<String>,
}

impl Field {
    /// Sets them up, until Ctrl-C.
    pub fn new(
        bench: &Bench,
        paths: &[Path],
        sizes: &[usize],
        cpu: usize,
        per_context: usize,
        turn: Turn,
    ) -> Self {
        let mut field = Self::default();
        for vectors in sizes {
            for path in paths {
                if bench.is_over() {
                    return field;
                }
                if !path.is_on(bench.accelerator()) {
                    continue;
                }
                bench.progress(&format!("setting {} at {vectors} vectors up", path.key()));
                match Contender::new(bench, *path, *vectors, cpu, per_context, turn) {
                    Ok(made) => field.contenders.push(made),
                    Err(e) => {
                        field
                            .errors
                            .push(e.context(format!("{} at {vectors} vectors", path.key())).to_string());
                    }
                }
            }
        }
        field
    }

    /// The rounds. A contender that fails leaves, and is an error. Ctrl-C and the threshold end it after the round that is
    /// on.
    pub fn run(&mut self, bench: &Bench, rounds: u32, turn: Turn) {
        for round in 1..=rounds {
            let mut gone = Vec::new();
            for (at, one) in self.contenders.iter_mut().enumerate() {
                if let Err(error) = one.measure(turn, bench.clock) {
                    self.errors.push(error.context(one.name()).to_string());
                    gone.push(at);
                }
                let name = one.name();
                bench.check(&name, &mut one.matching.watch, one.way.flights(), 1);
            }
            for at in gone.into_iter().rev() {
                self.contenders.swap_remove(at);
            }
            bench.progress(&format!("round {round} of {rounds}"));
            if bench.is_over() {
                return;
            }
        }
    }

    /// The medians of a path, round by round; nothing when it is not there.
    #[must_use]
    pub fn p50s(&self, path: Path, vectors: usize) -> &[f64] {
        self.contenders
            .iter()
            .find(|one| (one.path, one.vectors) == (path, vectors))
            .map_or(&[], |one| &one.p50s)
    }

    /// The median ratio of two contenders, if both are there.
    #[must_use]
    pub fn ratio(&self, over: (Path, usize), under: (Path, usize)) -> Option<f64> {
        let ratios = ratios(self.p50s(over.0, over.1), self.p50s(under.0, under.1));
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    /// Takes everything down.
    pub fn finish(mut self) -> (Vec<PathResult>, Vec<String>) {
        let bases = |path: Path| -> Vec<(usize, Vec<f64>)> {
            let those = self.contenders.iter().filter(|one| one.path == path);
            those.map(|one| (one.vectors, one.p50s.clone())).collect()
        };
        let (irqfd, direct) = (bases(Path::Irqfd), bases(Path::Direct));
        let mut results = Vec::new();
        for one in self.contenders {
            let (name, vectors) = (one.name(), one.vectors);
            let of = |bases: &[(usize, Vec<f64>)]| -> Option<Vec<f64>> {
                bases.iter().find(|base| base.0 == vectors).map(|base| base.1.clone())
            };
            match one.finish(of(&irqfd).as_deref(), of(&direct).as_deref()) {
                Ok(result) => results.push(result),
                Err(error) => self.errors.push(error.context(name).to_string()),
            }
        }
        (results, self.errors)
    }
}
