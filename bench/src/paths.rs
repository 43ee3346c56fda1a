//! `paths`: signal → accepted by the in-kernel LAPIC, by every path, at several numbers of vectors.
//!
//! One round is: for every number of vectors and every path, a VM of its own, a warm-up, and signals at a fixed pace
//! to the vectors in turn. A ratio is made within a round, so the machine's moods cancel; what is printed is the median
//! of the rounds. Acceptance is checked, not assumed: at the end of each measurement the LAPICs' request registers are
//! read back, and the ledger has to add up.

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
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    rounds: u32,
    /// Signals per measurement
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(100..), value_name = "N")]
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

/// One measurement.
struct Sample {
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
    let mut samples: Vec<(Path, usize, Vec<Sample>)> = Vec::new();
    for vectors in &args.vectors {
        samples.extend(Path::ALL.map(|path| (path, *vectors, Vec::new())));
    }
    for round in 1..=args.rounds {
        for (path, vectors, list) in &mut samples {
            let sample = measure(args, *path, *vectors, poller, clock);
            list.push(sample.map_err(|e| e.context(format!("{} at {vectors} vectors", path.key())))?);
        }
        if !args.json {
            eprint!("\rround {round} of {}", args.rounds);
        }
    }
    if !args.json {
        eprint!("\r{:30}\r", "");
    }
    let paths: Vec<Row> =
        samples.iter().map(|(path, vectors, list)| row(*path, *vectors, list, &samples)).collect();
    let mut machine = Machine::this(clock);
    (machine.delivery, machine.source, machine.idle) =
        ("every path".into(), "every source".into(), "none".into());
    machine.pinned = true;
    let goals = goals(&samples, &paths);
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

fn measure(args: &PathsArgs, path: Path, vectors: usize, cpu: usize, clock: Clock) -> Result<Sample> {
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
    let (session, mut signaller) = Session::start(&config, clock)?;
    if let Some(lost) = session.warnings().iter().find(|warning| warning.contains("instead of AIO")) {
        return Err(Error::new(lost.clone()));
    }
    let histogram =
        || Histogram::new_with_bounds(1, 10_000_000_000, 3).map_err(|e| Error::new(e.to_string()));
    let (mut accepted, mut producer) = (histogram()?, histogram()?);
    let mut sent = 0u64;
    let mut signal = |signaller: &mut Signaller, count: u32, record: bool| {
        for _ in 0..count {
            let vector = usize::try_from(sent % vectors as u64).unwrap_or(0);
            let (made, done) = signaller.signal(vector);
            let paid = clock.now();
            if record {
                accepted.saturating_record(clock.ns(done - made));
                producer.saturating_record(clock.ns(paid - made));
            }
            sent += 1;
            let until = made + clock.cycles(std::time::Duration::from_micros(args.pace));
            while clock.now() < until {
                std::hint::spin_loop();
            }
        }
    };
    // Every vector at least once, so that nothing is measured for its first time.
    let warm_up = u32::try_from(vectors).unwrap_or(u32::MAX).max(200);
    signal(&mut signaller, warm_up, false);
    let mut total = *session.empty_figures();
    settle(&session, u64::from(warm_up), &mut total)?;
    total.reset();
    signal(&mut signaller, args.samples, true);
    settle(&session, u64::from(args.samples), &mut total)?;
    for vector in 0..vectors {
        if !session.is_requested(vector)? {
            return Err(Error::new(format!("vector {vector} was signalled, and its LAPIC does not have it")));
        }
    }
    if let Some(histogram) = total.stages.get(Stage::SignalToAccepted) {
        accepted.reset();
        accepted.add(histogram).map_err(|e| Error::new(e.to_string()))?;
    }
    session.stop()?;
    Ok(Sample { accepted, producer })
}

/// Waits until the poller has dealt with every signal; with an in-kernel irqfd that is at once.
fn settle(session: &Session, sent: u64, total: &mut Figures) -> Result<()> {
    if session.poller().is_none() {
        return Ok(());
    }
    let began = std::time::Instant::now();
    while began.elapsed().as_secs() < 5 {
        if let Some(figures) = session.take_figures(session.empty_figures()) {
            total.add(&figures);
        }
        if total.total().signals() >= sent {
            return Ok(());
        }
    }
    Err(Error::new(format!("{} of {sent} signals were delivered", total.total().signals())))
}

fn p50s(samples: &[Sample]) -> Vec<f64> {
    #[allow(clippy::cast_precision_loss, reason = "nanoseconds")]
    samples.iter().map(|sample| sample.accepted.value_at_quantile(0.5) as f64).collect()
}

type All = [(Path, usize, Vec<Sample>)];

fn of(all: &All, path: Path, vectors: usize) -> &[Sample] {
    all.iter().find(|(p, v, _)| (*p, *v) == (path, vectors)).map_or(&[], |(_, _, list)| list)
}

/// The ratios of two measurements, round by round.
fn ratios(over: &[Sample], under: &[Sample]) -> Vec<f64> {
    p50s(over).iter().zip(p50s(under)).map(|(over, under)| over / under.max(1.0)).collect()
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "nanoseconds"
)]
fn row(path: Path, vectors: usize, list: &[Sample], all: &All) -> Row {
    let at = |pick: fn(&Sample) -> &Histogram<u64>, quantile: f64| {
        let each: Vec<f64> = list.iter().map(|s| pick(s).value_at_quantile(quantile) as f64).collect();
        median(&each) as u64
    };
    let ratios = ratios(list, of(all, Path::Irqfd, vectors));
    Row {
        path: path.key(),
        vectors,
        rounds: u32::try_from(list.len()).unwrap_or(u32::MAX),
        count: list.iter().map(|sample| sample.accepted.len()).sum(),
        p50_ns: at(|s| &s.accepted, 0.5),
        p99_ns: at(|s| &s.accepted, 0.99),
        p999_ns: at(|s| &s.accepted, 0.999),
        producer_p50_ns: at(|s| &s.producer, 0.5),
        ratio_to_irqfd: median(&ratios),
        ratio_ci95: median_ci95(&ratios),
    }
}

fn goals(all: &All, rows: &[Row]) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut goal = |goal: String, measured: f64, at_most: f64| {
        goals.push(Goal { goal, measured, at_most, met: measured <= at_most });
    };
    let mut sizes: Vec<usize> = all.iter().map(|(_, vectors, _)| *vectors).collect();
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
