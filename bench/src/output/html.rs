//! The results as one page: style and plots are in it, nothing is fetched, no script runs.

use super::plot::{self, Series};
use super::rows::{Colours, by_group, groups, table};
use super::svg::escape;
use super::table::stage_rows;
use super::{COLUMNS, Extra, STAGES, float, machine, measured, microseconds};
use crate::model::{PathResult, Results, Stage};
use hdrhistogram::Histogram;
use std::fmt::Write;

/// The page.
#[must_use]
pub fn html(results: &Results, extra: &Extra) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <title>Interrupt latency, {began}</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n\
         <h1>Interrupt latency, path by path</h1>\n\
         <p><strong>{headline}</strong></p>\n<p>{machine}</p>\n<code class=\"command\">{command}</code>\n<p>Began {began}, took {seconds:.1} s.</p>\n",
        css = include_str!("report.css"),
        began = escape(&results.began),
        headline = escape(machine::headline(&results.machine)),
        machine = escape(&machine::line(&results.machine)),
        command = escape(&results.command),
        seconds = results.seconds,
    );
    let mut notice = |class: &str, text: &str| {
        page.push_str(&format!("<p class=\"{class}\">{}</p>\n", escape(text)));
    };
    if results.interrupted {
        notice("bad", "This run was ended early: what is here was measured until then.");
    }
    results.errors.iter().for_each(|error| notice("bad", error));
    machine::warnings(&results.machine).iter().for_each(|warning| notice("note", warning));
    let colours = Colours::of(&results.paths);
    if results.paths.is_empty() {
        page.push_str("<p>Nothing was measured.</p>\n");
    } else {
        page.push_str(&ratios(&results.paths, &colours));
        page.push_str(&percentiles(&results.paths, &colours));
        page.push_str(&distributions(&results.paths, &colours));
        page.push_str(&stages(&results.paths, &colours));
        page.push_str(&ledger(&results.paths, &colours));
        page.push_str(&noise(&results.paths, &colours));
    }
    if !extra.text.is_empty() {
        page.push_str(&format!("<h2>Findings</h2>\n<pre>{}</pre>\n", escape(&extra.text)));
    }
    page.push_str(&overhead(results));
    page.push_str(&fingerprint(results));
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn dash() -> String {
    "–".into()
}

fn ratios(paths: &[PathResult], colours: &Colours) -> String {
    let ends = paths.iter().filter_map(|path| path.ratio_ci95).flatten();
    let all: Vec<f64> = ends.chain(paths.iter().filter_map(|path| path.ratio_to_irqfd)).collect();
    let low = all.iter().copied().fold(f64::INFINITY, f64::min);
    let high = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let row = |path: &PathResult| {
        let [p50, p99, p999] = path.own_cells();
        vec![vec![
            colours.name(path),
            p50,
            p99,
            p999,
            path.ratio_to_irqfd.map_or_else(dash, |ratio| format!("{ratio:.2}")),
            path.ratio_ci95.map_or_else(dash, |[low, high]| format!("{low:.2} to {high:.2}")),
            path.ratio_to_irqfd.map_or_else(String::new, |ratio| {
                plot::interval(ratio, path.ratio_ci95, colours.get(path), [low, high])
            }),
            measured(path.producer_p50_ns),
            format!("{:.0}", path.per_second),
            path.cpu_ns_per_interrupt.map_or_else(dash, |ns| format!("{ns:.0}")),
        ]]
    };
    let header = [
        "path",
        "p50 µs",
        "p99",
        "p99.9",
        "× irqfd",
        "95 %",
        "",
        "producer p50",
        "per second",
        "CPU ns each",
    ];
    let title = super::table::titles(paths);
    let title = if title.is_empty() { "Latency".into() } else { format!("Latency, {}", escape(&title)) };
    format!(
        "<h2>{title}</h2>\n<p>Ratios to the in-kernel irqfd are made within a round, with a 95 % bootstrap interval over the \
         rounds. The upright line is at one. A closed load makes a signal after the last one; an open \
         load goes by a schedule that does not wait, and counts from when a signal was due. \
         * fewer than ten samples beyond it.</p>\n{}",
        table(&header, 1, &by_group(paths, row))
    )
}

/// A stage's histograms of a group, as far as they can be decoded; an open load's with and without the wait.
fn series(group: &[&PathResult], key: &str, colours: &Colours) -> Vec<Series> {
    let mut all = Vec::new();
    for path in group {
        let colour = colours.get(path);
        let is_main = path.main_stage().is_some_and(|(main, _)| STAGES.contains(&(key, main)));
        let uncorrected = path.uncorrected.as_ref().filter(|_| is_main);
        let named = [(path.stages.get(key), "", 0), (uncorrected, ", no wait", plot::COLOURS)];
        for (stage, suffix, dashed) in named {
            let Some(histogram) = stage.and_then(decode) else { continue };
            all.push(Series { name: format!("{}{suffix}", path.path), colour: colour + dashed, histogram });
        }
    }
    all
}

fn decode(stage: &Stage) -> Option<Histogram<u64>> {
    stage.decode().ok().filter(|histogram| !histogram.is_empty())
}

fn percentiles(paths: &[PathResult], colours: &Colours) -> String {
    let mut any = false;
    let mut text = String::from(
        "<h2>Percentiles</h2>\n<p>How long the slowest took: each step to the right is a tenth of the samples. Dotted where fewer \
         than ten samples lie beyond. Point at a dot for its value. No wait: from when a signal was made, and not from when it \
         was due.</p>\n",
    );
    let groups = groups(paths);
    // The stages from the signal to an end are the answer; those within are folded away.
    for (folded, keys) in [(false, &STAGES[2..4]), (true, &[STAGES[0], STAGES[1], STAGES[4], STAGES[5]])] {
        let mut plots = String::new();
        for (key, stage) in keys {
            let drawn: Vec<_> =
                groups.iter().map(|(name, group)| (name, series(group, key, colours))).collect();
            let range = plot::range(drawn.iter().flat_map(|(_, all)| all.iter().map(|one| &one.histogram)));
            for (name, all) in drawn.iter().filter(|(_, all)| !all.is_empty()) {
                let name = format!("{stage}, {name}");
                let plot = plot::percentiles(&name, all, range);
                plots.push_str(&format!("<h3>{}</h3>\n<div class=\"card\">{plot}</div>\n", escape(&name)));
            }
        }
        if folded && !plots.is_empty() {
            plots = format!(
                "<details><summary>The stages on the way, and the producer</summary>\n{plots}</details>\n"
            );
        }
        any |= !plots.is_empty();
        text.push_str(&plots);
    }
    if any { text } else { String::new() }
}

fn distributions(paths: &[PathResult], colours: &Colours) -> String {
    let histogram = |path: &PathResult| decode(path.main_stage()?.1);
    let all: Vec<_> = paths.iter().map(|path| (path, histogram(path))).collect();
    let range = plot::range(all.iter().filter_map(|(_, histogram)| histogram.as_ref()));
    if all.iter().all(|(_, histogram)| histogram.is_none()) {
        return String::new();
    }
    let mut text = String::from(
        "<h2>Distributions</h2>\n<p>All on one scale; the height is by the square root, so that a rare sample is to be seen. \
         The grey line is the gaps on the poller's core, what was taken from it meanwhile: where a tail follows it, the \
         machine made the tail and not the path.</p>\n<div class=\"grid\">\n",
    );
    for (path, histogram) in all {
        let Some(histogram) = histogram else { continue };
        let gaps = path.gaps.as_ref().and_then(decode);
        let series = Series { name: path.path.clone(), colour: colours.get(path), histogram };
        text.push_str(&format!(
            "<div class=\"card\"><h3>{}</h3><small>{} vectors, {}</small>{}</div>\n",
            colours.name(path),
            path.size(),
            escape(&path.load_name()),
            plot::distribution(&series, gaps.as_ref(), range),
        ));
    }
    text + "</div>\n"
}

fn stages(paths: &[PathResult], colours: &Colours) -> String {
    let mut header = vec!["path", "stage, µs", "count", "min"];
    header.extend(COLUMNS.map(|(name, _)| name));
    header.push("max");
    let rows = |path: &PathResult| {
        let stages = stage_rows(std::slice::from_ref(path)).into_iter().enumerate();
        let row = |(at, (_, name, stage)): (usize, (&PathResult, &str, &Stage))| {
            let mut cells =
                vec![if at == 0 { colours.name(path) } else { String::new() }, escape(name.trim())];
            cells.extend([stage.count.to_string(), microseconds(float(stage.min_ns))]);
            cells.extend(stage.cells());
            cells.push(microseconds(float(stage.max_ns)));
            cells
        };
        stages.map(row).collect()
    };
    if stage_rows(paths).is_empty() {
        return String::new();
    }
    let table = table(&header, 2, &by_group(paths, rows));
    format!("<h2>Every stage</h2>\n<p>What was not measured is absent.</p>\n{table}")
}

fn ledger(paths: &[PathResult], colours: &Colours) -> String {
    let row = |path: &PathResult| {
        let l = &path.ledger;
        let missing = match l.missing() {
            0 => "0".into(),
            missing => format!("<strong>{missing}</strong>"),
        };
        let counts = [l.sent, l.delivered, l.merged, l.dropped].map(|count| count.to_string());
        let mut cells = vec![colours.name(path)];
        cells.extend(counts);
        cells.push(missing);
        vec![cells]
    };
    let header = ["path", "sent", "= delivered", "+ merged", "+ dropped", "missing"];
    format!(
        "<h2>Ledger</h2>\n<p>Every signal is in it. Merged: an earlier one's interrupt stood for it.</p>\n{}",
        table(&header, 1, &by_group(paths, row))
    )
}

fn noise(paths: &[PathResult], colours: &Colours) -> String {
    let row = |path: &PathResult| {
        let gap = |of: fn(&Stage) -> u64| {
            path.gaps.as_ref().map_or_else(dash, |gaps| microseconds(float(of(gaps))))
        };
        vec![vec![
            colours.name(path),
            measured(path.p999_ns),
            path.gaps.as_ref().map_or_else(dash, |gaps| gaps.count.to_string()),
            gap(|gaps| gaps.p50_ns),
            gap(|gaps| gaps.p99_ns),
            gap(|gaps| gaps.max_ns),
            path.stages.get("producer_gaps").map_or_else(dash, |gaps| microseconds(float(gaps.max_ns))),
            path.context_switches.map_or_else(dash, |count| count.to_string()),
            path.delivery_switches.map_or_else(dash, |made| made.voluntary.to_string()),
            path.delivery_switches.map_or_else(dash, |made| made.involuntary.to_string()),
            path.steal_ns.map_or_else(dash, |ns| microseconds(float(ns))),
        ]]
    };
    let header = [
        "path",
        "latency p99.9, µs",
        "gaps",
        "gap p50, µs",
        "p99",
        "longest",
        "longest of the producer",
        "switches",
        "own of who delivers",
        "lost",
        "stolen, µs",
    ];
    format!(
        "<h2>Noise</h2>\n<p>Gaps in the time stamp counter as the poller's core sees it, and the longest as the producer's does; context \
         switches, and of those that delivered how many they made to wait and how many were forced on them; and time that the \
         hypervisor took, beside the tail that they explain.</p>\n{}",
        table(&header, 1, &by_group(paths, row))
    )
}

fn overhead(results: &Results) -> String {
    let o = &results.overhead;
    format!(
        "<h2>What measuring costs</h2>\n<p>One timestamp costs {:.1} ns and an empty loop's turn {:.1} ns. Both are in every figure, and \
         not taken off.</p>\n",
        o.timestamp_ns, o.empty_loop_ns
    )
}

fn fingerprint(results: &Results) -> String {
    let mut text = String::from("<h2>The machine</h2>\n<div class=\"wide\"><table><tbody>\n");
    for (key, value) in
        results.machine.as_object().into_iter().flatten().filter(|(key, _)| *key != "warnings")
    {
        let value = value.as_str().map_or_else(|| value.to_string(), ToString::to_string);
        let _to_memory = writeln!(
            text,
            "<tr><th class=\"l\">{}</th><td class=\"l w\">{}</td></tr>",
            escape(key),
            escape(&value)
        );
    }
    text + "</tbody></table></div>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::sample;

    #[test]
    fn it_is_one_small_page_that_fetches_nothing() {
        let mut results = sample::results();
        let page = html(&results, &Extra::default());
        assert!(page.len() < 250_000, "{} bytes", page.len());
        for word in ["http", "src=", "@import", "url(", "<script", "NaN"] {
            assert!(!page.contains(word), "{word}");
        }
        results.paths = (0..3).flat_map(|_| results.paths.clone()).collect();
        assert!(
            html(&results, &Extra::default()).len() < 500_000,
            "three times as much, {} bytes",
            html(&results, &Extra::default()).len()
        );
    }

    #[test]
    fn every_row_has_its_tables_columns() {
        let page = html(&sample::results(), &sample::extra());
        for table in page.split("<table><thead>").skip(1) {
            let (head, rest) = table.split_once("</thead>").unwrap();
            let body = rest.split_once("</table>").unwrap().0;
            let columns = head.matches("<th").count();
            for row in body.lines().filter(|row| row.starts_with("<tr><td")) {
                assert_eq!(row.matches("<td").count(), columns, "{row}");
            }
            assert_eq!(
                body.matches("colspan").count(),
                body.matches(&format!("colspan=\"{columns}\"")).count()
            );
        }
        assert_eq!(page.matches("<thead>").count(), 4);
    }

    #[test]
    fn everything_from_outside_is_text() {
        let evil = "<script>alert('1')</script>\"&";
        let mut results = sample::results();
        results.command = evil.into();
        let extra = Extra { text: evil.into(), ..Extra::default() };
        results.began = evil.into();
        results.errors = vec![evil.into()];
        for key in ["kernel", "cpu", "idle", "source", "delivery"] {
            results.machine[key] = evil.into();
        }
        results.machine[evil] = evil.into();
        results.machine["warnings"] = serde_json::json!([evil]);
        for path in &mut results.paths {
            path.path = evil.into();
            path.load = crate::model::Load::Open { per_second: 1.0, schedule: evil.into() };
        }
        let page = html(&results, &extra);
        assert!(!page.contains("<script") && !page.contains("'1'") && page.contains("&lt;script&gt;"));
    }

    #[test]
    fn a_run_that_ended_early_still_makes_a_page() {
        let mut results = sample::results();
        results.interrupted = true;
        results.paths[0].stages.clear();
        results.paths[1].stages.get_mut("signal_to_accepted").unwrap().histogram = "broken".into();
        results.paths[2].ratio_to_irqfd = Some(f64::NAN);
        results.paths[3].ratio_ci95 = Some([f64::NAN, f64::INFINITY]);
        assert!(html(&results, &Extra::default()).contains("ended early"));
        results.paths.truncate(1);
        let page = html(&results, &Extra::default());
        assert!(!page.contains("Percentiles") && !page.contains("Every stage") && page.contains("Ledger"));
        results.paths.clear();
        results.machine = serde_json::Value::Null;
        assert!(html(&results, &Extra::default()).contains("Nothing was measured"));
    }
}
