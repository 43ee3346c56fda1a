//! The plots: percentiles with one line for each path, a distribution for each path, an interval.

use super::float;
use super::svg::{Scale, Svg, time};
use hdrhistogram::Histogram;

/// One path's figures to draw.
#[derive(Debug)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// The number of its colour; one path has the same everywhere.
    pub colour: usize,
    /// Its latencies, in nanoseconds.
    pub histogram: Histogram<u64>,
}

/// How many colours the style sheet has. Beyond that they begin again, with dashes.
pub const COLOURS: usize = 8;

/// The class of a colour.
pub fn class(colour: usize) -> String {
    format!("c{}{}", colour % COLOURS, if colour >= COLOURS { " again" } else { "" })
}

/// The least and the greatest of all; the lower end is no less than a nanosecond.
pub fn range<'a>(histograms: impl Iterator<Item = &'a Histogram<u64>>) -> [f64; 2] {
    let (mut low, mut high) = (f64::INFINITY, 1.0f64);
    for histogram in histograms.filter(|histogram| !histogram.is_empty()) {
        (low, high) = (low.min(float(histogram.min())), high.max(float(histogram.max())));
    }
    [if low.is_finite() { low.max(1.0) } else { 1.0 }, high]
}

const PERCENT: [(f64, &str); 8] = [
    (2.0, "50 %"),
    (10.0, "90 %"),
    (100.0, "99 %"),
    (1000.0, "99.9 %"),
    (1e4, "99.99 %"),
    (1e5, "99.999 %"),
    (1e6, "99.9999 %"),
    (1e7, "99.99999 %"),
];

/// Latency against 1/(1-p), both by their logarithm. A line is dashed where fewer than ten samples lie beyond.
pub fn percentiles(name: &str, series: &[Series], [low, high]: [f64; 2]) -> String {
    const SIZE: [f64; 2] = [960.0, 340.0];
    // Top, right, bottom, left. On the right are the names.
    let longest = series.iter().map(|series| series.name.chars().count()).max().unwrap_or(0);
    let names = f64::from(u32::try_from(longest).unwrap_or(u32::MAX)) * 7.5 + 24.0;
    let edge = [12.0, names.min(400.0), 26.0, 62.0];
    let most = series.iter().map(|series| series.histogram.len()).max().unwrap_or(0);
    let x = Scale::new(1.0, float(most).max(100.0), edge[3], SIZE[0] - edge[1]);
    let y = Scale::new(low * 0.9, high * 1.1, SIZE[1] - edge[2], edge[0]);
    let mut svg = Svg::new(SIZE[0], SIZE[1], name);
    grid_y(&mut svg, &y, edge[3], SIZE[0] - edge[1]);
    for (value, label) in PERCENT.into_iter().filter(|(value, _)| *value <= float(most).max(100.0)) {
        svg.line("grid", [x.at(value), edge[0]], [x.at(value), SIZE[1] - edge[2]]);
        svg.text("tick", [x.at(value), SIZE[1] - edge[2] + 17.0], "middle", label);
    }
    svg.line("axis", [edge[3], SIZE[1] - edge[2]], [SIZE[0] - edge[1], SIZE[1] - edge[2]]);
    let mut ends = Vec::new();
    for (at, one) in series.iter().enumerate() {
        let count = float(one.histogram.len());
        let value = |beyond: f64| float(one.histogram.value_at_quantile(1.0 - 1.0 / beyond)).max(1.0);
        let point = |beyond: f64| [x.at(beyond), y.at(value(beyond))];
        // Twenty to a decade, at the same places for all; whole powers of ten, where the dots are, among them.
        let steps = |from: f64, to: f64| -> Vec<[f64; 2]> {
            let between =
                (0..).map(|step| 10f64.powf(f64::from(step) / 20.0)).skip_while(|beyond| *beyond <= from);
            let mut points = vec![point(from)];
            points.extend(between.take_while(|beyond| *beyond < to).map(point));
            points.push(point(to));
            points
        };
        let sure = (count / 10.0).max(1.0);
        let class = class(one.colour);
        svg.path(&format!("line {class}"), &steps(1.0, sure));
        svg.path(&format!("line thin {class}"), &steps(sure, count.max(1.0)));
        for (beyond, label) in PERCENT.into_iter().filter(|(value, _)| *value <= count) {
            let few = if beyond > sure { ", fewer than ten samples beyond" } else { "" };
            let title = format!("{}: {label} within {}{few}", one.name, time(value(beyond)));
            svg.dot(&format!("dot {class}"), point(beyond), &title);
        }
        ends.push((point(count.max(1.0)), at));
    }
    // The names at the ends of their lines, pushed apart where they would cover each other.
    ends.sort_by(|a, b| a.0[1].total_cmp(&b.0[1]));
    let room = 15.0;
    let mut last = f64::NEG_INFINITY;
    let mut places: Vec<f64> = ends
        .iter()
        .map(|(end, _)| {
            last = end[1].max(last + room);
            last
        })
        .collect();
    let mut limit = SIZE[1] - edge[2];
    for place in places.iter_mut().rev() {
        *place = place.min(limit);
        limit = *place - room;
    }
    for ((end, at), place) in ends.iter().zip(places) {
        let class = class(series[*at].colour);
        let from = SIZE[0] - edge[1];
        svg.path(&format!("leader {class}"), &[*end, [from + 4.0, end[1]], [from + 12.0, place]]);
        svg.text("label", [from + 16.0, place + 4.0], "start", &series[*at].name);
    }
    svg.finish()
}

fn grid_y(svg: &mut Svg, y: &Scale, left: f64, right: f64) {
    for tick in y.ticks() {
        svg.line("grid", [left, y.at(tick)], [right, y.at(tick)]);
        svg.text("tick", [left - 8.0, y.at(tick) + 4.0], "end", &time(tick));
    }
}

/// Bins of a distribution in each decade.
const BINS: f64 = 24.0;

/// How many samples from `low` on are in each logarithmic bin that has any.
fn bins(histogram: &Histogram<u64>, low: f64) -> Vec<(f64, f64)> {
    let mut bins: Vec<(f64, f64)> = Vec::new();
    for step in histogram.iter_recorded() {
        let value = float(step.value_iterated_to()).max(1.0);
        let bin = (value.log10() * BINS).floor();
        match bins.last_mut() {
            _ if value < low => {}
            Some((last, count)) if (*last - bin).abs() < 0.5 => *count += float(step.count_at_value()),
            _ => bins.push((bin, float(step.count_at_value()))),
        }
    }
    bins
}

/// One path's distribution; behind it, as a line and on the same scale, that of something else, such as the gaps on its
/// core.
pub fn distribution(series: &Series, behind: Option<&Histogram<u64>>, [low, high]: [f64; 2]) -> String {
    const SIZE: [f64; 2] = [310.0, 130.0];
    const BASE: f64 = SIZE[1] - 24.0;
    let x = Scale::new(low, high, 10.0, SIZE[0] - 14.0);
    let mut svg = Svg::new(SIZE[0], SIZE[1], &format!("distribution of {}", series.name));
    for tick in Scale::new(low, high.max(low * 3000.0), 0.0, 1.0).ticks() {
        if tick <= high {
            svg.line("grid", [x.at(tick), 20.0], [x.at(tick), BASE]);
            svg.text("tick", [x.at(tick), BASE + 16.0], "middle", &time(tick));
        }
    }
    // The height is by the square root of the share: a tail of a thousandth is still to be seen.
    let most = bins(&series.histogram, 0.0).iter().map(|(_, count)| *count).fold(1.0, f64::max);
    let outline = |histogram: &Histogram<u64>| {
        let (mut points, mut last) = (vec![], None);
        for (bin, count) in bins(histogram, low) {
            let share = (count / most).min(1.0);
            let edge = |bin: f64| x.at(10f64.powf(bin / BINS));
            let top = BASE - share.sqrt() * (BASE - 24.0);
            if last.is_none_or(|last: f64| bin - last > 1.5) {
                if let Some(last) = last {
                    points.push([edge(last + 1.0), BASE]);
                }
                points.push([edge(bin), BASE]);
            }
            points.extend([[edge(bin), top], [edge(bin + 1.0), top]]);
            last = Some(bin);
        }
        if let Some(&[end, _]) = points.last() {
            points.push([end, BASE]);
        }
        points
    };
    svg.path(&format!("area {}", class(series.colour)), &outline(&series.histogram));
    if let Some(behind) = behind.filter(|behind| !behind.is_empty()) {
        svg.path("behind", &outline(behind));
    }
    svg.line("axis", [10.0, BASE], [SIZE[0] - 14.0, BASE]);
    let mut last = f64::NEG_INFINITY;
    for (quantile, label) in [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9")] {
        let value = float(series.histogram.value_at_quantile(quantile)).max(1.0);
        let at = x.at(value);
        svg.line("mark", [at, 16.0], [at, BASE]);
        // Room for the label between this mark and the last label's end.
        if at - last > 24.0 {
            svg.text("tick", [at, 11.0], "middle", label);
            last = at + 10.0;
        }
    }
    svg.finish()
}

/// A ratio and its interval on a scale that all rows share, with a mark at one. Nothing of what is not a number.
pub fn interval(ratio: f64, ci95: Option<[f64; 2]>, colour: usize, [low, high]: [f64; 2]) -> String {
    let ci95 = ci95.filter(|ends| ends.iter().all(|end| end.is_finite()));
    if !ratio.is_finite() {
        return String::new();
    }
    let x = Scale::new(low.min(1.0) * 0.8, high.max(1.0) * 1.25, 4.0, 146.0);
    let mut svg = Svg::new(150.0, 18.0, &format!("{ratio:.2}"));
    svg.line("one", [x.at(1.0), 0.0], [x.at(1.0), 18.0]);
    if let Some([low, high]) = ci95 {
        svg.line(&format!("whisker {}", class(colour)), [x.at(low), 9.0], [x.at(high), 9.0]);
    }
    let title = ci95.map_or_else(
        || format!("{ratio:.2}"),
        |[low, high]| format!("{ratio:.2}, 95 % from {low:.2} to {high:.2}"),
    );
    svg.dot(&format!("dot {}", class(colour)), [x.at(ratio), 9.0], &title);
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::sample;

    fn series(name: &str, histogram: Histogram<u64>) -> Series {
        Series { name: name.into(), colour: 9, histogram }
    }

    #[test]
    fn bins_hold_every_sample_once() {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        (0..100).for_each(|_| histogram.record(1000).unwrap());
        (0..50).for_each(|_| histogram.record(100_000).unwrap());
        assert_eq!(bins(&histogram, 0.0), [(72.0, 100.0), (120.0, 50.0)]);
        assert_eq!(bins(&histogram, 2000.0), [(120.0, 50.0)]);
    }

    #[test]
    fn odd_histograms_are_drawn_without_a_panic_and_without_nan() {
        let mut one = Histogram::<u64>::new(3).unwrap();
        one.record(0).unwrap();
        for histogram in [Histogram::new(3).unwrap(), one, sample::histogram(900.0, 4.0, 20)] {
            let range = range([&histogram].into_iter());
            let all = [series("<x>", histogram)];
            let drawn =
                percentiles("<y>", &all, range) + &distribution(&all[0], Some(&all[0].histogram), range);
            assert!(!drawn.contains("NaN") && !drawn.contains("inf") && !drawn.contains("<x>"), "{drawn}");
        }
        assert_eq!(interval(f64::NAN, None, 0, [0.5, 2.0]), "");
        let drawn = interval(1.5, Some([0.0, f64::INFINITY]), 0, [0.0, f64::NAN]);
        assert!(!drawn.contains("NaN") && !drawn.contains("inf") && !drawn.contains("whisker"), "{drawn}");
    }

    #[test]
    fn a_line_is_dashed_where_few_samples_are_beyond() {
        let drawn = percentiles("x", &[series("a", sample::histogram(900.0, 4.0, 5050))], [500.0, 1e6]);
        assert!(drawn.contains("class=\"line c1 again\"") && drawn.contains("class=\"line thin c1 again\""));
        assert!(drawn.contains("<title>a: 99 % within") && drawn.contains("fewer than ten"));
    }
}
