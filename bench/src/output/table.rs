//! The results for a terminal.

use super::{COLUMNS, float, machine, measured, microseconds};
use crate::model::{PathResult, Results, Stage};
use comfy_table::{CellAlignment, Table, presets};

/// Everything, in tables.
#[must_use]
pub fn table(results: &Results) -> String {
    let mut text = format!("{}\n", machine::headline(&results.machine));
    if results.interrupted {
        text.push_str("interrupted: what was measured until then\n");
    }
    if !results.paths.is_empty() {
        let titles = titles(&results.paths);
        if !titles.is_empty() {
            text.push_str(&format!("{titles}\n"));
        }
        text.push_str(&paths(&results.paths));
        text.push_str(&stages(&results.paths));
        text.push_str(&ledger(&results.paths));
    }
    let o = &results.overhead;
    text.push_str(&format!(
        "one timestamp costs {:.1} ns and an empty loop's turn {:.1} ns: in every figure, and not taken off\n{}\n",
        o.timestamp_ns,
        o.empty_loop_ns,
        machine::line(&results.machine),
    ));
    let warnings = machine::warnings(&results.machine);
    warnings.iter().for_each(|warning| text.push_str(&format!("note: {warning}\n")));
    results.errors.iter().for_each(|error| text.push_str(&format!("error: {error}\n")));
    text
}

/// What the percentiles of the paths are of.
pub fn titles(paths: &[PathResult]) -> String {
    let mut titles: Vec<_> =
        paths.iter().filter_map(PathResult::main_stage).map(|(title, _)| title).collect();
    titles.dedup();
    titles.join(", ")
}

/// A table whose numbers stand at the right; `left` columns do not hold numbers.
pub fn layout(header: &[&str], left: usize, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(left) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

fn paths(paths: &[PathResult]) -> String {
    let header = [
        "path",
        "load",
        "vectors",
        "p50 µs",
        "p99",
        "p99.9",
        "producer p50",
        "× irqfd",
        "95 %",
        "× direct",
        "/s",
        "CPU ns each",
    ];
    let row = |path: &PathResult| {
        let [p50, p99, p999] = path.own_cells();
        vec![
            path.path.clone(),
            path.load_name(),
            path.size(),
            p50,
            p99,
            p999,
            measured(path.producer_p50_ns),
            path.ratio_to_irqfd.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
            path.ratio_ci95.map_or_else(|| "-".into(), |[low, high]| format!("{low:.2} to {high:.2}")),
            path.ratio_to_direct.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
            format!("{:.0}", path.per_second),
            path.cpu_ns_per_interrupt.map_or_else(|| "-".into(), |ns| format!("{ns:.0}")),
        ]
    };
    layout(&header, 2, paths.iter().map(row).collect())
}

/// The lines of the table of stages: path, size, load, name of the stage, figures. The uncorrected ones follow those that
/// they belong to.
pub fn stage_rows(paths: &[PathResult]) -> Vec<(&PathResult, &'static str, &Stage)> {
    let mut rows = Vec::new();
    for path in paths {
        for (key, name) in super::STAGES {
            let Some(stage) = path.stages.get(key).filter(|stage| stage.count > 0) else { continue };
            rows.push((path, name, stage));
            if let (Some((main, _)), Some(uncorrected)) = (path.main_stage(), &path.uncorrected)
                && main == name
                && uncorrected.count > 0
            {
                rows.push((path, "  not counting the wait", uncorrected));
            }
        }
    }
    rows
}

fn stages(paths: &[PathResult]) -> String {
    let mut header = vec!["path", "load", "stage, µs", "vectors", "count", "min"];
    header.extend(COLUMNS.map(|(name, _)| name));
    header.push("max");
    let rows = stage_rows(paths);
    if rows.is_empty() {
        return String::new();
    }
    let thin = rows.iter().any(|(_, _, stage)| COLUMNS.iter().any(|(_, beyond)| stage.is_thin(*beyond)));
    let uncorrected = paths.iter().any(|path| path.uncorrected.is_some());
    let row = |(path, name, stage): &(&PathResult, &str, &Stage)| {
        let mut cells = vec![
            path.path.clone(),
            path.load_name(),
            (*name).to_string(),
            path.size(),
            stage.count.to_string(),
            microseconds(float(stage.min_ns)),
        ];
        cells.extend(stage.cells());
        cells.push(microseconds(float(stage.max_ns)));
        cells
    };
    let mut text = layout(&header, 3, rows.iter().map(row).collect());
    if thin {
        text.push_str("* fewer than ten samples beyond it\n");
    }
    if uncorrected {
        text.push_str(
            "open load: from the time a signal was due; not counting the wait: from when it was made\n",
        );
    }
    text
}

fn ledger(paths: &[PathResult]) -> String {
    let header = [
        "path",
        "load",
        "vectors",
        "sent",
        "= delivered",
        "+ merged",
        "+ dropped",
        "missing",
        "gaps",
        "longest, µs",
        "switches",
        "stolen, µs",
    ];
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let row = |path: &PathResult| {
        let l = &path.ledger;
        vec![
            path.path.clone(),
            path.load_name(),
            path.size(),
            l.sent.to_string(),
            l.delivered.to_string(),
            l.merged.to_string(),
            l.dropped.to_string(),
            l.missing().to_string(),
            or_dash(path.gaps.as_ref().map(|gaps| gaps.count.to_string())),
            or_dash(path.gaps.as_ref().map(|gaps| microseconds(float(gaps.max_ns)))),
            or_dash(path.context_switches.map(|count| count.to_string())),
            or_dash(path.steal_ns.map(|ns| microseconds(float(ns)))),
        ]
    };
    layout(&header, 2, paths.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::sample;

    fn line<'a>(text: &'a str, words: &[&str]) -> &'a str {
        let found = text.lines().find(|line| words.iter().all(|word| line.contains(word)));
        found.unwrap_or_else(|| panic!("no line with {words:?} in\n{text}"))
    }

    #[test]
    fn it_holds_what_there_is_and_marks_what_is_thin() {
        let results = sample::results();
        let text = table(&results);
        let irqfd = line(&text, &["irqfd ", "closed", "1.00 to 1.00"]);
        assert!(irqfd.contains("0.889"), "{irqfd}");
        // 5050 samples: five beyond p99.9, fifty beyond p99.
        let cells: Vec<_> = irqfd.split_whitespace().collect();
        assert_eq!([cells[5].ends_with('*'), cells[6].ends_with('*')], [false, true], "{irqfd}");
        line(&text, &["open, 100 000 /s poisson", "signal → accepted", "40000"]);
        line(&text, &["open, 100 000 /s poisson", "not counting the wait", "40000"]);
        line(&text, &["polled_eventfd", "5050", "5048", " 2 ", " 0 ", " 12 ", "1500"]);
        line(&text, &["9.9 ns", "not taken off"]);
        line(&text, &["Linux 6.1.0-18-amd64, Example CPU <X>"]);
        line(&text, &["note: CPUs [0, 1]"]);
        assert!(!text.contains("signal → handler"), "nobody measured it");
        assert!(!text.contains("interrupted"));
    }

    #[test]
    fn a_run_that_ended_early_says_so() {
        let mut results = sample::results();
        results.paths.truncate(1);
        (results.interrupted, results.errors) = (true, vec!["polled: no AIO".into()]);
        results.paths[0].ledger.dropped = 3;
        results.paths[0].stages.clear();
        results.paths[0].p50_ns = 0.0;
        let text = table(&results);
        line(&text, &["interrupted"]);
        line(&text, &["error: polled: no AIO"]);
        line(&text, &["irqfd", " -3 "]);
        assert!(!text.contains("0.000"), "what was not measured is not zero: {text}");
        assert!(!text.contains("stage, µs"), "there is none: {text}");
        results.paths.clear();
        line(&table(&results), &["one timestamp"]);
    }
}
