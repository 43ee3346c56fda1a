//! Results for people.

use crate::common::{Report, cost_line};
use crate::measure::float;
use crate::model::{Load, PathResult};
use comfy_table::{CellAlignment, Table, presets};
use pollvisor::accel::Accelerator;
use pollvisor::run::microseconds;

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(header);
    table
}

fn right(mut table: Table) -> Table {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nanoseconds, not below 0")]
fn us(ns: f64) -> String {
    microseconds(ns.round() as u64)
}

/// What the machine did meanwhile: the longest that was taken from the core of the poller or of the producer, what the
/// hypervisor took, and how often who delivers gave its CPU away or lost it.
const NOISE: [&str; 3] = ["worst gap", "stolen ms", "switches own+lost"];

fn noise(path: &PathResult) -> [String; 3] {
    let own = path.stages.get("producer_gaps");
    let longest = path.gaps.iter().chain(own).filter(|gaps| gaps.count > 0).map(|gaps| gaps.max_ns).max();
    [
        longest.map_or_else(|| "-".into(), microseconds),
        path.steal_ns.map_or_else(|| "-".into(), |ns| format!("{:.0}", float(ns) / 1e6)),
        path.delivery_switches
            .map_or_else(|| "-".into(), |made| format!("{}+{}", made.voluntary, made.involuntary)),
    ]
}

/// Side by side: ratios to the in-kernel irqfd, where there is one, and to the producer that injects itself.
pub fn ratios(paths: &[PathResult]) -> Table {
    let has_irqfd = paths.iter().any(|path| path.ratio_to_irqfd.is_some());
    let ratios: &[&str] = if has_irqfd { &["× irqfd", "95 %", "× direct"] } else { &["× direct", "95 %"] };
    let header = ["path", "vectors", "p50 µs", "p99", "p99.9", "producer p50"];
    // Where the LAPICs tell.
    let tells = paths.iter().any(|path| path.coalesced.is_some());
    let coalesced: &[&str] = if tells { &["coalesced"] } else { &[] };
    let mut table = table(&[&header[..], ratios, coalesced, &NOISE].concat());
    let cells = |ratio: Option<f64>, ci: Option<[f64; 2]>| {
        [
            ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
            ci.map_or_else(|| "-".into(), |[low, high]| format!("{low:.2} to {high:.2}")),
        ]
    };
    for path in paths {
        let irqfd = cells(path.ratio_to_irqfd, path.ratio_ci95);
        let direct = cells(path.ratio_to_direct, path.ratio_to_direct_ci95);
        table.add_row(
            [
                path.path.clone(),
                path.vectors.to_string(),
                us(path.p50_ns),
                us(path.p99_ns),
                us(path.p999_ns),
                format!("{:.3}", path.producer_p50_ns / 1000.0),
            ]
            .into_iter()
            .chain(irqfd.into_iter().filter(|_| has_irqfd))
            .chain(direct.into_iter().take(if has_irqfd { 1 } else { 2 }))
            .chain(tells.then(|| path.coalesced.map_or_else(|| "-".into(), |count| count.to_string())))
            .chain(noise(path)),
        );
    }
    right(table)
}

/// By numbers of vectors and producers.
pub fn sizes(paths: &[PathResult]) -> Table {
    let mut table =
        table(&["path", "vectors", "producers", "load", "p50 µs", "p99", "p99.9", "producer p50"]);
    for path in paths {
        table.add_row([
            path.path.clone(),
            path.vectors.to_string(),
            path.producers.to_string(),
            load(path),
            us(path.p50_ns),
            us(path.p99_ns),
            us(path.p999_ns),
            format!("{:.3}", path.producer_p50_ns / 1000.0),
        ]);
    }
    right(table)
}

fn load(path: &PathResult) -> String {
    match &path.load {
        Load::Closed => "closed".to_string(),
        Load::Open { per_second, schedule } => format!("{per_second:.0}/s {schedule}"),
    }
}

/// One after the other, with what the machine did meanwhile.
pub fn latency(paths: &[PathResult]) -> Table {
    let header = ["path", "vectors", "load", "p50 µs", "p99", "p99.9", "max", "uncorrected p99"];
    let mut table = table(&[&header[..], &NOISE].concat());
    for path in paths {
        let of = |stage: &Option<crate::model::Stage>, of: fn(&crate::model::Stage) -> u64| {
            stage.as_ref().filter(|s| s.count > 0).map_or_else(|| "-".into(), |s| microseconds(of(s)))
        };
        table.add_row(
            [
                path.path.clone(),
                path.vectors.to_string(),
                load(path),
                us(path.p50_ns),
                us(path.p99_ns),
                us(path.p999_ns),
                path.main_stage().map_or_else(|| "-".into(), |(_, stage)| microseconds(stage.max_ns)),
                of(&path.uncorrected, |stage| stage.p99_ns),
            ]
            .into_iter()
            .chain(noise(path)),
        );
    }
    right(table)
}

/// How many.
pub fn rates(paths: &[PathResult]) -> Table {
    let mut table = table(&[
        "path",
        "vectors",
        "offered",
        "interrupts/s",
        "CPU ns each",
        "sent",
        "delivered",
        "merged",
        "dropped",
    ]);
    for path in paths {
        table.add_row([
            path.path.clone(),
            path.vectors.to_string(),
            if matches!(path.load, Load::Closed) { "all it can".into() } else { load(path) },
            format!("{:.0}", path.per_second),
            path.cpu_ns_per_interrupt.map_or_else(|| "-".into(), |ns| format!("{ns:.0}")),
            path.ledger.sent.to_string(),
            path.ledger.delivered.to_string(),
            path.ledger.merged.to_string(),
            path.ledger.dropped.to_string(),
        ]);
    }
    right(table)
}

/// Every stage of every path: control-plane calls and the data path beside them.
pub fn stages(paths: &[PathResult]) -> Table {
    let mut table = table(&["meanwhile", "stage, µs", "count", "min", "p50", "p99", "max"]);
    for path in paths {
        for (name, stage) in &path.stages {
            table.add_row([
                path.path.clone(),
                name.clone(),
                stage.count.to_string(),
                microseconds(stage.min_ns),
                microseconds(stage.p50_ns),
                microseconds(stage.p99_ns),
                microseconds(stage.max_ns),
            ]);
        }
    }
    right(table)
}

/// How long a bar is at the most.
const WIDTH: f64 = 40.0;

/// A bar as long as `value` is to `most`, to an eighth of a character.
fn bar(value: f64, most: f64) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 320")]
    let eighths = (value / most.max(1.0) * WIDTH * 8.0).round().clamp(0.0, WIDTH * 8.0) as usize;
    "█".repeat(eighths / 8) + PARTS[eighths % 8]
}

/// The medians by numbers of vectors, and by numbers of producers, as bars on one scale each.
fn bars(report: &Report) -> String {
    let mut text = String::new();
    for with in ["vectors", "producers"] {
        let by_producers = with == "producers";
        // Vectors in rounds, which are closed; producers by a schedule.
        let points: Vec<_> = (report.results.paths.iter())
            .filter(|path| matches!(path.load, Load::Open { .. }) == by_producers && path.p50_ns > 0.0)
            .filter(|path| report.growth.iter().any(|growth| growth.with == with && growth.path == path.path))
            .collect();
        let most = points.iter().map(|path| path.p50_ns).fold(0.0, f64::max);
        if most <= 0.0 {
            continue;
        }
        text.push_str(&format!("p50, µs, by {with}\n"));
        let mut last = "";
        for path in points {
            let name = if path.path == last { "" } else { &path.path };
            let size = if by_producers { path.producers } else { path.vectors };
            let drawn = bar(path.p50_ns, most);
            text.push_str(&format!("{name:<16} {size:>5} {drawn} {}\n", us(path.p50_ns)));
            last = &path.path;
        }
    }
    text
}

/// What follows from the figures: growth, with a plot, and goals.
pub fn findings(report: &Report) -> String {
    let mut text = bars(report);
    for growth in &report.growth {
        let (path, with) = (&growth.path, growth.with);
        let (exponent, ratio) = (growth.exponent, growth.ratio);
        text.push_str(&format!("{path}: p50 grows as {with}^{exponent:.3}, {ratio:.2} times in all\n"));
    }
    for goal in &report.goals {
        let mark = if goal.met { "met    " } else { "NOT MET" };
        let (most, bound) = match (goal.at_most, goal.at_least) {
            (Some(most), _) => (most, "at most"),
            (None, least) => (least.unwrap_or(0.0), "at least"),
        };
        text.push_str(&format!("{mark} {}: {:.3}, {bound} {most:.3}\n", goal.goal, goal.measured));
    }
    text
}

/// Everything that stands around a subcommand's table, but its findings.
pub fn text(report: &Report, accelerator: Accelerator, table: fn(&[PathResult]) -> Table) -> String {
    let (results, mut text) = (&report.results, String::new());
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line(accelerator.headline().into());
    if !results.paths.is_empty() {
        let what = match accelerator {
            Accelerator::Kvm => "signal → accepted by the in-kernel LAPIC, no vCPU running",
            Accelerator::Software => "signal → posted to the software LAPIC, no vCPU running",
        };
        line(format!("{what}\n{}", table(&results.paths)));
    }
    results.errors.iter().for_each(|error| line(format!("not measured: {error}")));
    let coalesced: u64 = results.paths.iter().filter_map(|path| path.coalesced).sum();
    if accelerator == Accelerator::Software {
        line(format!(
            "{coalesced} interrupts, warm-up and all, found their vector requested already: no vCPU takes them"
        ));
    }
    let steal: u64 = results.paths.iter().filter_map(|path| path.steal_ns).sum();
    if steal > 0 {
        line(format!("the hypervisor took {:.0} ms of CPU time meanwhile", float(steal) / 1e6));
    }
    line(cost_line(&results.overhead));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Growth;
    use crate::output::sample;

    #[test]
    fn bars_are_to_scale() {
        assert_eq!(bar(100.0, 100.0), "█".repeat(40));
        assert_eq!(bar(50.0, 100.0), "█".repeat(20));
        assert_eq!((bar(1.25, 100.0).as_str(), bar(0.0, 100.0).as_str()), ("▌", ""));
        assert_eq!(bar(5.0, 0.0), "█".repeat(40), "not longer, whatever it is of");
    }

    #[test]
    fn a_plot_for_each_growth_and_nothing_without() {
        let mut report = Report { results: sample::results(), goals: Vec::new(), growth: Vec::new() };
        assert_eq!(findings(&report), "");
        let growth = |with| Growth { path: "polled_doorbell".into(), with, exponent: 0.06, ratio: 1.3 };
        report.growth = vec![growth("vectors"), growth("producers")];
        let text = findings(&report);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "p50, µs, by vectors");
        let sizes: Vec<_> = lines[1..4].iter().map(|line| line[16..22].trim()).collect();
        assert_eq!(sizes, ["8", "64", "512"]);
        assert!(lines[1].starts_with("polled_doorbell") && lines[2].starts_with("   "), "{text}");
        assert!(lines[3].matches('█').count() == 40 && lines[1].matches('█').count() < 35, "{text}");
        assert!(lines[4] == "p50, µs, by producers" && lines[5].contains(" 1 █"), "{text}");
        assert!(text.contains("polled_doorbell: p50 grows as vectors^0.060, 1.30 times in all"), "{text}");
    }
}
