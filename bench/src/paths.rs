//! `paths`: signal → accepted by the in-kernel LAPIC, by every path, at several numbers of vectors.
//!
//! Every path has a VM of its own for the whole run. A round is: for every number of vectors and every path in turn,
//! its poller is woken, a warm-up, signals at a fixed pace to the vectors in turn, its poller is parked. A round takes
//! about a tenth of a second and a ratio is made within it, so the machine's moods cancel; what is printed is the
//! median over the rounds. Acceptance is checked, not assumed: every ledger has to add up, and at the end the LAPICs'
//! request registers are read back.

use crate::stats::{median, median_ci95};
use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use pollvisor::clock::Clock;
use pollvisor::error::{Error, Result};
use pollvisor::machine::Machine;
use pollvisor::pin::{Placement, available};
use pollvisor::record::{Figures, Stage};
use pollvisor::run::microseconds;
use pollvisor::session::{Delivery, Session, SessionConfig, Signaller, Signals};
use pollvisor::source::{Backend, DEFAULT_PER_CONTEXT};
use pollvisor::vm::Idle;
use serde::Serialize;

/// The flags of `paths`.
#[derive(Debug, clap::Args)]
pub struct PathsArgs {
    /// Numbers of vectors to measure at
    #[arg(long, value_delimiter = ',', default_values_t = [8, 64, 512], value_name = "N,...")]
    vectors: Vec<usize>,
    /// Interleaved rounds
    #[arg(long, default_value_t = 101, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    rounds: u32,
    /// Signals per path and round, and as many before to warm up
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(10..=100_000), value_name = "N")]
    samples: u32,
    /// Time between signals, in microseconds
    #[arg(long, default_value_t = 50, value_name = "US")]
    pace: u64,
    /// Eventfds that share an AIO context
    #[arg(long, default_value_t = DEFAULT_PER_CONTEXT, value_name = "N")]
    per_context: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Irqfd,
    Eventfd,
    Doorbell,
    EpollSpin,
    Blocking,
}

impl Path {
    const ALL: [Self; 5] = [Self::Irqfd, Self::Eventfd, Self::Doorbell, Self::EpollSpin, Self::Blocking];

    const fn key(self) -> &'static str {
        match self {
            Self::Irqfd => "irqfd",
            Self::Eventfd => "polled_eventfd",
            Self::Doorbell => "polled_doorbell",
            Self::EpollSpin => "epoll_wait_0",
            Self::Blocking => "blocking_epoll",
        }
    }

    const fn set_up(self, per_context: usize) -> (Signals, Delivery) {
        match self {
            Self::Irqfd => (Signals::Eventfd, Delivery::Irqfd),
            Self::Eventfd => (Signals::Eventfd, Delivery::Poller(Backend::Aio { per_context })),
            Self::Doorbell => (Signals::Doorbell, Delivery::Poller(Backend::Aio { per_context })),
            Self::EpollSpin => (Signals::Eventfd, Delivery::Poller(Backend::EpollSpin)),
            Self::Blocking => (Signals::Eventfd, Delivery::Poller(Backend::EpollBlock)),
        }
    }
}

/// One path at one number of vectors, kept for the whole run; its poller is parked while others are measured.
struct Contender {
    path: Path,
    vectors: usize,
    session: Session,
    signaller: Signaller,
    next: usize,
    spare: Box<Figures>,
    /// The median of each round, in nanoseconds.
    p50s: Vec<f64>,
    accepted: Histogram<u64>,
    producer: Histogram<u64>,
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Row {
    path: &'static str,
    vectors: usize,
    rounds: u32,
    count: u64,
    p50_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    producer_p50_ns: u64,
    ratio_to_irqfd: f64,
    ratio_ci95: [f64; 2],
}

/// A goal, and what was measured.
#[derive(Debug, Serialize)]
struct Goal {
    goal: String,
    measured: f64,
    at_most: f64,
    met: bool,
}

#[derive(Debug, Serialize)]
struct Output {
    paths: Vec<Row>,
    goals: Vec<Goal>,
    /// The cost of one look at the clock, which is in every figure once and is not taken off.
    timestamp_ns: f64,
    machine: Machine,
}

/// Measures and prints.
///
/// # Errors
/// What kept it from being done.
pub fn run(args: &PathsArgs) -> Result<()> {
    let clock = Clock::calibrate()?;
    let cpus = available();
    let [.., producer, poller] = cpus[..] else {
        return Err(Error::new("this needs two CPUs: one for the producer, one for the poller"));
    };
    Placement { cpu: Some(producer), fifo: Some(false) }.apply("the producer")?;
    let mut all = Vec::new();
    for vectors in &args.vectors {
        for path in Path::ALL {
            let made = Contender::new(args, path, *vectors, poller, clock);
            all.push(made.map_err(|e| e.context(format!("{} at {vectors} vectors", path.key())))?);
        }
    }
    for round in 1..=args.rounds {
        for one in &mut all {
            let measured = one.measure(args, clock);
            measured.map_err(|e| e.context(format!("{} at {} vectors", one.path.key(), one.vectors)))?;
        }
        if !args.json {
            eprint!("\rround {round} of {}", args.rounds);
        }
    }
    if !args.json {
        eprint!("\r{:30}\r", "");
    }
    for one in &all {
        one.check()?;
    }
    let paths: Vec<Row> = all.iter().map(|one| row(one, &all)).collect();
    let mut machine = Machine::this(clock);
    (machine.delivery, machine.source, machine.idle) =
        ("every path".into(), "every source".into(), "none".into());
    machine.pinned = true;
    let goals = goals(&all, &paths);
    for one in all {
        one.finish()?;
    }
    let output = Output { paths, goals, timestamp_ns: timestamp_cost(clock), machine };
    if args.json {
        let json =
            serde_json::to_string_pretty(&output).map_err(|e| Error::new(format!("writing JSON: {e}")))?;
        println!("{json}");
    } else {
        print(&output);
    }
    Ok(())
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).map_err(|e| Error::new(e.to_string()))
}

impl Contender {
    fn new(args: &PathsArgs, path: Path, vectors: usize, cpu: usize, clock: Clock) -> Result<Self> {
        let (signals, delivery) = path.set_up(args.per_context);
        let config = SessionConfig {
            vectors,
            signals,
            delivery,
            running: false,
            idle: Idle::Halt,
            vcpus: None,
            vcpu_placement: Vec::new(),
            poller_placement: Placement { cpu: Some(cpu), fifo: None },
            halt_poll_ns: None,
            each_vector: false,
        };
        let (session, signaller) = Session::start(&config, clock)?;
        if let Some(lost) = session.warnings().iter().find(|warning| warning.contains("instead of AIO")) {
            return Err(Error::new(lost.clone()));
        }
        let spare = session.empty_figures();
        let (accepted, producer) = (histogram()?, histogram()?);
        let mut made =
            Self { path, vectors, session, signaller, next: 0, spare, p50s: Vec::new(), accepted, producer };
        // Every vector once, so that nothing is measured for its first time.
        for _ in 0..vectors {
            made.warm_up(args, clock);
        }
        made.settle(vectors as u64)?;
        made.park();
        Ok(made)
    }

    fn park(&self) {
        self.session.poller().inspect(|poller| poller.park());
    }

    fn unpark(&self) {
        self.session.poller().inspect(|poller| poller.unpark());
    }

    fn finish(self) -> Result<()> {
        self.unpark();
        self.session.stop().map(drop)
    }

    fn step(&mut self) -> usize {
        let vector = self.next;
        self.next = if vector + 1 == self.vectors { 0 } else { vector + 1 };
        vector
    }

    fn warm_up(&mut self, args: &PathsArgs, clock: Clock) {
        let began = clock.now();
        let vector = self.step();
        self.signaller.warm_up(vector);
        pace(args, clock, began);
    }

    /// One round's turn.
    fn measure(&mut self, args: &PathsArgs, clock: Clock) -> Result<()> {
        self.unpark();
        for _ in 0..args.samples {
            self.warm_up(args, clock);
        }
        let mut accepted = histogram()?;
        for _ in 0..args.samples {
            let vector = self.step();
            let (made, done) = self.signaller.signal(vector);
            let paid = clock.now();
            accepted.saturating_record(clock.ns(done - made));
            self.producer.saturating_record(clock.ns(paid - made));
            pace(args, clock, made);
        }
        let measured = self.settle(2 * u64::from(args.samples))?;
        self.park();
        let accepted = measured.unwrap_or(accepted);
        self.p50s.push(nanoseconds(accepted.value_at_quantile(0.5)));
        self.accepted.add(&accepted).map_err(|e| Error::new(e.to_string()))
    }

    /// Waits until the poller has dealt with every signal, and takes what it measured; with an in-kernel irqfd the
    /// producer has measured it.
    fn settle(&mut self, sent: u64) -> Result<Option<Histogram<u64>>> {
        if self.session.poller().is_none() {
            return Ok(None);
        }
        let (mut accepted, mut done) = (histogram()?, 0);
        let began = std::time::Instant::now();
        while began.elapsed().as_secs() < 5 {
            let empty = std::mem::replace(&mut self.spare, Box::new(Figures::new(&[], 0, false)));
            let Some(mut figures) = self.session.take_figures(empty) else {
                return Err(Error::new("the poller does not answer"));
            };
            done += figures.total().signals();
            if let Some(histogram) = figures.stages.get(Stage::SignalToAccepted) {
                accepted.add(histogram).map_err(|e| Error::new(e.to_string()))?;
            }
            figures.reset();
            self.spare = figures;
            if done >= sent {
                return Ok(Some(accepted));
            }
        }
        Err(Error::new(format!("{done} of {sent} signals were delivered")))
    }

    /// Asks the kernel whether the LAPICs have it all.
    fn check(&self) -> Result<()> {
        for vector in 0..self.vectors {
            if !self.session.is_requested(vector)? {
                let (path, vectors) = (self.path.key(), self.vectors);
                return Err(Error::new(format!("{path} at {vectors} vectors: no LAPIC has vector {vector}")));
            }
        }
        Ok(())
    }
}

/// Spins until it is time for the next signal.
fn pace(args: &PathsArgs, clock: Clock, began: u64) {
    let until = began + clock.cycles(std::time::Duration::from_micros(args.pace));
    while clock.now() < until {
        std::hint::spin_loop();
    }
}

#[allow(clippy::cast_precision_loss, reason = "nanoseconds")]
fn nanoseconds(ns: u64) -> f64 {
    ns as f64
}

fn of(all: &[Contender], path: Path, vectors: usize) -> &[f64] {
    all.iter().find(|one| (one.path, one.vectors) == (path, vectors)).map_or(&[], |one| &one.p50s)
}

/// The ratios of two measurements, round by round.
fn ratios(over: &[f64], under: &[f64]) -> Vec<f64> {
    over.iter().zip(under).map(|(over, under)| over / under.max(1.0)).collect()
}

fn row(one: &Contender, all: &[Contender]) -> Row {
    let ratios = ratios(&one.p50s, of(all, Path::Irqfd, one.vectors));
    Row {
        path: one.path.key(),
        vectors: one.vectors,
        rounds: u32::try_from(one.p50s.len()).unwrap_or(u32::MAX),
        count: one.accepted.len(),
        p50_ns: one.accepted.value_at_quantile(0.5),
        p99_ns: one.accepted.value_at_quantile(0.99),
        p999_ns: one.accepted.value_at_quantile(0.999),
        producer_p50_ns: one.producer.value_at_quantile(0.5),
        ratio_to_irqfd: median(&ratios),
        ratio_ci95: median_ci95(&ratios),
    }
}

fn goals(all: &[Contender], rows: &[Row]) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut goal = |goal: String, measured: f64, at_most: f64| {
        goals.push(Goal { goal, measured, at_most, met: measured <= at_most });
    };
    let mut sizes: Vec<usize> = all.iter().map(|one| one.vectors).collect();
    sizes.dedup();
    let ratio = |over: (Path, usize), under: (Path, usize)| {
        median(&ratios(of(all, over.0, over.1), of(all, under.0, under.1)))
    };
    for n in sizes.iter().copied() {
        goal(
            format!("polled eventfd / irqfd, {n} vectors"),
            ratio((Path::Eventfd, n), (Path::Irqfd, n)),
            2.0,
        );
        let blocking = ratio((Path::Eventfd, n), (Path::Blocking, n));
        goal(format!("polled eventfd / blocking, {n} vectors"), blocking, 1.0 / 18.0);
        let most = if n <= 8 { 1.1 } else { 1.0 };
        goal(format!("doorbell / irqfd, {n} vectors"), ratio((Path::Doorbell, n), (Path::Irqfd, n)), most);
        let producer = |path: Path| {
            let row = rows.iter().find(|row| row.path == path.key() && row.vectors == n);
            row.map_or(0.0, |row| f64::from(u32::try_from(row.producer_p50_ns).unwrap_or(u32::MAX)))
        };
        let paid = producer(Path::Doorbell) / producer(Path::Irqfd).max(1.0);
        goal(format!("doorbell producer / irqfd write, {n} vectors"), paid, 1.0 / 20.0);
    }
    if let (Some(few), Some(many)) = (sizes.iter().min().copied(), sizes.iter().max().copied())
        && few != many
    {
        for (path, name) in [(Path::Eventfd, "polled eventfd"), (Path::Doorbell, "doorbell")] {
            goal(format!("{name}, {many} / {few} vectors"), ratio((path, many), (path, few)), 1.35);
        }
    }
    goals
}

/// The cost of one look at the clock, in nanoseconds.
fn timestamp_cost(clock: Clock) -> f64 {
    const LOOKS: u32 = 100_000;
    let began = clock.now();
    for _ in 0..LOOKS {
        std::hint::black_box(clock.now());
    }
    #[allow(clippy::cast_precision_loss, reason = "nanoseconds")]
    let ns = clock.ns(clock.now() - began) as f64;
    ns / f64::from(LOOKS)
}

fn print(output: &Output) {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(["path", "vectors", "p50 µs", "p99", "p99.9", "producer p50", "× irqfd", "95 %"]);
    for row in &output.paths {
        table.add_row([
            row.path.to_string(),
            row.vectors.to_string(),
            microseconds(row.p50_ns),
            microseconds(row.p99_ns),
            microseconds(row.p999_ns),
            format!("{:.3}", f64::from(u32::try_from(row.producer_p50_ns).unwrap_or(u32::MAX)) / 1000.0),
            format!("{:.2}", row.ratio_to_irqfd),
            format!("{:.2} to {:.2}", row.ratio_ci95[0], row.ratio_ci95[1]),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("signal → accepted by the in-kernel LAPIC, no vCPU running\n{table}");
    for goal in &output.goals {
        let mark = if goal.met { "met    " } else { "NOT MET" };
        println!("{mark} {}: {:.3}, at most {:.3}", goal.goal, goal.measured, goal.at_most);
    }
    println!("one timestamp costs {:.1} ns, in every figure and not taken off", output.timestamp_ns);
    println!("{}", output.machine.line());
}
