//! HdrHistogram's percentile distribution, the text its plotter reads: a file for each path and stage, as the plotter
//! draws one line for each file. Values are in microseconds.

use super::{float, keys};
use crate::model::Results;
use hdrhistogram::Histogram;
use pollvisor::error::{Error, Result};
use std::fs::File;
use std::path::Path;

/// Nanoseconds in the unit that is written.
const SCALE: f64 = 1000.0;
/// Lines for each halving of what is beyond; the plotter's usual number.
const PER_HALF: u32 = 5;

/// Makes the folder and finds out whether files can be made in it.
///
/// # Errors
/// When they cannot.
pub fn prepare(folder: &Path) -> Result<()> {
    let failed = |e: std::io::Error| {
        Error::os(format!("creating files in {}", folder.display()), &e)
            .remedy("--hgrm with a folder, or a new name in a writable one")
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let probe = folder.join(".pollvisor-bench");
    File::create(&probe).and_then(|_| std::fs::remove_file(&probe)).map_err(failed)
}

/// Writes `path-vectors-stage.hgrm` for every path and stage into `folder`, which is there already.
///
/// # Errors
/// The first that could not be written; the others are.
pub fn write(results: &Results, folder: &Path) -> Result<()> {
    let mut outcome = Ok(());
    for (path, key) in results.paths.iter().zip(keys(results)) {
        for (stage, figures) in path.distributions() {
            let file = folder.join(format!("{key}-{stage}.hgrm"));
            let written = figures.decode().and_then(|histogram| {
                std::fs::write(&file, text(&histogram)).map_err(|e| {
                    Error::os(format!("writing {}", file.display()), &e)
                        .remedy("free some space, or leave out --hgrm")
                })
            });
            outcome = outcome.and(written.map_err(|e| e.context(format!("{key}, {stage}"))));
        }
    }
    outcome
}

/// One distribution, as `outputPercentileDistribution` of HdrHistogram's Java writes it.
#[must_use]
pub fn text(histogram: &Histogram<u64>) -> String {
    let mut text =
        format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut total = 0;
    for step in histogram.iter_quantiles(PER_HALF) {
        total += step.count_since_last_iteration();
        let value = float(step.value_iterated_to()) / SCALE;
        let quantile = step.quantile_iterated_to();
        text.push_str(&format!("{value:>12.3} {quantile:>14.12} {total:>10}"));
        if quantile < 1.0 {
            text.push_str(&format!(" {:>14.2}", 1.0 / (1.0 - quantile)));
        }
        text.push('\n');
    }
    let (mean, deviation, max) =
        (histogram.mean() / SCALE, histogram.stdev() / SCALE, float(histogram.max()) / SCALE);
    // As many sub-buckets as give that many significant digits to twice the precision: the format's own definition.
    let sub_buckets = (2 * 10u64.pow(u32::from(histogram.sigfig()))).next_power_of_two();
    text + &format!(
        "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]\n\
         #[Max     = {max:>12.3}, Total count    = {:>12}]\n\
         #[Buckets = {:>12}, SubBuckets     = {sub_buckets:>12}]\n",
        histogram.len(),
        histogram.buckets(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::sample;

    /// The format by its description: lines of value, percentile, running count and, but for the last, 1/(1-percentile);
    /// comments begin with `#`.
    fn parse(text: &str) -> (Vec<[f64; 4]>, Vec<(String, f64)>) {
        let (mut rows, mut footer) = (Vec::new(), Vec::new());
        let mut lines = text.lines();
        let head: Vec<_> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(head, ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]);
        assert_eq!(lines.next(), Some(""));
        for line in lines {
            if let Some(inside) = line.strip_prefix("#[").and_then(|rest| rest.strip_suffix(']')) {
                for pair in inside.split(", ") {
                    let (name, value) = pair.split_once('=').unwrap();
                    footer.push((name.trim().to_string(), value.trim().parse().unwrap()));
                }
            } else {
                assert!(footer.is_empty(), "a line after the footer: {line}");
                let cells: Vec<f64> = line.split_whitespace().map(|cell| cell.parse().unwrap()).collect();
                let beyond = cells.get(3).copied().unwrap_or(f64::INFINITY);
                rows.push([cells[0], cells[1], cells[2], beyond]);
            }
        }
        (rows, footer)
    }

    #[test]
    fn an_independent_reader_finds_what_was_recorded() {
        let results = sample::results();
        for (path, stage, histogram) in results.paths.iter().flat_map(|path| {
            path.distributions().into_iter().map(|(stage, s)| (&path.path, stage, s.decode().unwrap()))
        }) {
            let (rows, footer) = parse(&text(&histogram));
            let of = |name: &str| footer.iter().find(|(n, _)| n == name).unwrap().1;
            let near = |a: f64, b: f64| (a - b).abs() <= 0.001 + b.abs() * 1e-3;
            assert!(near(of("Mean"), histogram.mean() / 1000.0), "{path} {stage}");
            assert!(near(of("StdDeviation"), histogram.stdev() / 1000.0));
            assert!(near(of("Max"), float(histogram.max()) / 1000.0));
            assert!(near(of("Total count"), float(histogram.len())));
            assert!(near(of("SubBuckets"), 2048.0) && of("Buckets") >= 1.0);
            assert!(rows.len() > 20 && rows.is_sorted_by(|a, b| a[0] <= b[0] && a[1] < b[1] && a[2] <= b[2]));
            for row in &rows {
                // Where a percentile falls on a sample exactly, rounding may take the next one.
                let at = |quantile| float(histogram.value_at_quantile(quantile)) / 1000.0;
                let (least, most) = (at(row[1]), at((row[1] + 1.0 / float(histogram.len())).min(1.0)));
                assert!(
                    (least - 0.001..=most + 0.001).contains(&row[0]),
                    "{path} {stage}: {row:?}, {least}, {most}"
                );
                // Printed to two places of the one and twelve of the other.
                assert!((1.0 / row[3] - (1.0 - row[1])).abs() < 0.006 / row[3] + 1e-12, "{row:?}");
                // The count is of all samples up to the value that is printed.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nanoseconds")]
                let until = float(histogram.count_between(0, (row[0] * 1000.0).round() as u64));
                assert!(near(row[2], until), "{path} {stage}: {row:?} against {until}");
            }
            assert_eq!(rows.last().unwrap()[1..3], [1.0, float(histogram.len())]);
        }
    }

    #[test]
    fn a_folder_is_made_and_one_broken_histogram_leaves_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("a/b");
        prepare(&inside).unwrap();
        assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 0);
        let mut results = sample::results();
        results.paths[0].stages.get_mut("signal_to_accepted").unwrap().histogram.clear();
        assert!(write(&results, &inside).unwrap_err().to_string().contains("irqfd-8, signal_to_accepted"));
        let expected: usize = results.paths.iter().map(|path| path.distributions().len()).sum();
        assert_eq!(std::fs::read_dir(&inside).unwrap().count(), expected - 1);
    }
}
