//! A comparison with an earlier run's JSON: the ratio of each path's percentiles, with a bootstrap interval.
//!
//! Resampling *n* samples and taking their quantile *q* draws from the empirical distribution at a rank whose share is
//! Beta distributed around *q*, so the rank is drawn and not the samples. Near normal, that is, with at least ten samples on
//! either side; with fewer there is no interval.
//!
//! Samples that wait behind the same delay are not independent: a delay of *t* at *r* signals a second holds *t r* of them,
//! so *n* is the count divided by 1 + *t r*. What slow moods of a machine do to all samples of a run is not in the interval;
//! for that, worse is only what is worse by more than [`MARGIN`] at the interval's lower end.

use super::machine;
use super::table::layout;
use super::{float, json, microseconds};
use crate::model::{PathResult, Results};
use hdrhistogram::Histogram;
use pollvisor::error::{Error, Result};
use std::path::{Path, PathBuf};

/// What a ratio's whole interval has to exceed to count.
pub const MARGIN: f64 = 1.1;

/// An earlier run.
#[derive(Debug)]
pub struct Baseline {
    path: PathBuf,
    results: Results,
}

/// What became of the figures since.
#[derive(Debug)]
pub struct Comparison {
    /// For people.
    pub table: String,
    /// Whether something got significantly worse.
    pub worse: bool,
}

impl Baseline {
    /// Reads the JSON of an earlier run.
    ///
    /// # Errors
    /// When it cannot be read, or is something else.
    pub fn read(path: &Path) -> Result<Self> {
        let what = format!("reading the baseline {}", path.display());
        let remedy = "--baseline with a file that --json wrote";
        let text = std::fs::read_to_string(path).map_err(|e| Error::os(what.clone(), &e).remedy(remedy))?;
        let results = json::parse(&text).map_err(|e| e.context(what).remedy(remedy))?;
        Ok(Self { path: path.to_path_buf(), results })
    }

    /// Refuses to compare two machines, unless forced.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, machine: &serde_json::Value, force: bool) -> Result<()> {
        let (then, now) = (machine::headline(&self.results.machine), machine::headline(machine));
        if then != now {
            let file = self.path.display();
            let what = format!(
                "the baseline {file} is of the other accelerator: its figures say nothing about these"
            );
            return Err(
                Error::new(what).remedy("a baseline of this one, or the --accel that it was made with")
            );
        }
        let differences = machine::differences(&self.results.machine, machine);
        if force || differences.is_empty() {
            return Ok(());
        }
        let (file, what) = (self.path.display(), differences.join("; "));
        Err(Error::new(format!("the baseline {file} is of another machine: {what}"))
            .remedy("a baseline of this machine, or --force"))
    }

    /// Compares what both runs measured.
    ///
    /// # Errors
    /// As [`check`](Self::check), or when a histogram cannot be decoded.
    pub fn compare(&self, now: &Results, force: bool) -> Result<Comparison> {
        self.check(&now.machine, force)?;
        let then = &self.results;
        let (mut rows, mut worse, mut alone) = (Vec::new(), false, Vec::new());
        let same = |a: &PathResult, b: &PathResult| name(a) == name(b);
        for path in &now.paths {
            let Some(before) = then.paths.iter().find(|before| same(before, path)) else {
                alone.push(format!("{}: not in the baseline", name(path)));
                continue;
            };
            let (Some((stage, was)), Some((_, is))) = (
                before
                    .main_stage()
                    .filter(|(stage, _)| path.main_stage().is_some_and(|(now, _)| now == *stage)),
                path.main_stage(),
            ) else {
                alone.push(format!("{}: no latency of the same stage in both", name(path)));
                continue;
            };
            let decode = |what: &str, stage: &crate::model::Stage| {
                stage.decode().map_err(|e| e.context(format!("{}, {what}", name(path))))
            };
            let (was, is) = (decode("the baseline", was)?, decode("this run", is)?);
            for (percentile, quantile) in [("p50", 0.5), ("p99", 0.99)] {
                let (was, is) = (Sampled::of(&was, before), Sampled::of(&is, path));
                let Some(change) = Change::of(&was, &is, quantile) else { continue };
                worse |= change.verdict() == WORSE;
                rows.push(change.row(path, stage, percentile));
            }
        }
        for before in then.paths.iter().filter(|before| !now.paths.iter().any(|path| same(before, path))) {
            alone.push(format!("{}: in the baseline only", name(before)));
        }
        let header = ["path", "load", "stage", "", "vectors", "then µs", "now µs", "ratio", "95 %", ""];
        let mut table = format!("against {}, of {}\n", self.path.display(), then.began);
        if !rows.is_empty() {
            table.push_str(&layout(&header, 4, rows));
        }
        alone.iter().for_each(|line| table.push_str(&format!("note: {line}\n")));
        if force {
            let differences = machine::differences(&then.machine, &now.machine);
            differences.iter().for_each(|line| table.push_str(&format!("note: another machine: {line}\n")));
        }
        Ok(Comparison { table, worse })
    }
}

/// What has to be the same for two paths to be compared.
fn name(path: &PathResult) -> String {
    format!("{}, {} vectors, {} producers, {}", path.path, path.vectors, path.producers, path.load_name())
}

const WORSE: &str = "worse";

/// A histogram, and how fast its samples came.
struct Sampled<'a> {
    histogram: &'a Histogram<u64>,
    per_second: f64,
}

impl<'a> Sampled<'a> {
    fn of(histogram: &'a Histogram<u64>, path: &PathResult) -> Self {
        Self { histogram, per_second: path.per_second.max(0.0) }
    }

    /// The value of a quantile, in nanoseconds, no less than one.
    fn at(&self, quantile: f64) -> f64 {
        float(self.histogram.value_at_quantile(quantile.clamp(0.0, 1.0))).max(1.0)
    }

    /// How many independent samples there are around a quantile.
    fn independent(&self, quantile: f64) -> f64 {
        float(self.histogram.len()) / (1.0 + self.at(quantile) * 1e-9 * self.per_second)
    }
}

struct Change {
    was: f64,
    is: f64,
    ci95: Option<[f64; 2]>,
}

impl Change {
    /// `None` when there is nothing to compare.
    fn of(was: &Sampled, is: &Sampled, quantile: f64) -> Option<Self> {
        let both = !was.histogram.is_empty() && !is.histogram.is_empty();
        let change =
            || Self { was: was.at(quantile), is: is.at(quantile), ci95: ratio_ci95(was, is, quantile) };
        both.then(change)
    }

    fn verdict(&self) -> &'static str {
        match self.ci95 {
            Some([low, _]) if low > MARGIN => WORSE,
            Some([_, high]) if high < 1.0 / MARGIN => "better",
            Some(_) => "",
            None => "too few samples",
        }
    }

    fn row(&self, path: &PathResult, stage: &str, percentile: &str) -> Vec<String> {
        vec![
            path.path.clone(),
            path.load_name(),
            stage.into(),
            percentile.into(),
            path.size(),
            microseconds(self.was),
            microseconds(self.is),
            format!("{:.2}", self.is / self.was),
            self.ci95.map_or_else(|| "-".into(), |[low, high]| format!("{low:.2} to {high:.2}")),
            self.verdict().into(),
        ]
    }
}

/// The 95 % bootstrap interval of the ratio of two histograms' quantiles, from a fixed seed; `None` with fewer than ten
/// independent samples on either side of one of them.
fn ratio_ci95(was: &Sampled, is: &Sampled, quantile: f64) -> Option<[f64; 2]> {
    const RESAMPLES: usize = 2000;
    let enough = |one: &Sampled| one.independent(quantile) * quantile.min(1.0 - quantile) >= 9.999;
    if !enough(was) || !enough(is) {
        return None;
    }
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut draw = |one: &Sampled| {
        // A sum of twelve uniform ones is normal enough out to three deviations.
        let normal: f64 = (0..12).map(|_| uniform(&mut random)).sum::<f64>() - 6.0;
        one.at(quantile + normal * (quantile * (1.0 - quantile) / one.independent(quantile)).sqrt())
    };
    let mut ratios: Vec<f64> = (0..RESAMPLES).map(|_| draw(is) / draw(was)).collect();
    ratios.sort_by(f64::total_cmp);
    Some([ratios[RESAMPLES / 40], ratios[RESAMPLES - 1 - RESAMPLES / 40]])
}

/// xorshift64*, from 0 to 1.
fn uniform(random: &mut u64) -> f64 {
    *random ^= *random >> 12;
    *random ^= *random << 25;
    *random ^= *random >> 27;
    float(random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) / float(1 << 53)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Stage;
    use crate::output::sample;

    fn baseline(results: Results) -> Baseline {
        Baseline { path: "then.json".into(), results }
    }

    fn slower(results: &mut Results, path: &str, factor: f64) {
        for path in results.paths.iter_mut().filter(|one| one.path == path && one.vectors == 64) {
            let stage = path.stages.get_mut("signal_to_accepted").unwrap();
            *stage = Stage::of(&sample::histogram(float(stage.p50_ns) * factor, 4.0, 5050));
        }
    }

    #[test]
    fn the_same_is_neither_better_nor_worse() {
        let comparison = baseline(sample::results()).compare(&sample::results(), false).unwrap();
        assert!(!comparison.worse, "{}", comparison.table);
        assert!(!comparison.table.contains("worse") && !comparison.table.contains("better"));
        assert_eq!(comparison.table.matches("p99 ").count(), sample::results().paths.len());
    }

    #[test]
    fn twice_as_long_is_worse_and_half_as_long_better_and_a_twentieth_neither() {
        for (factor, worse, word) in [(2.0, true, "worse"), (0.5, false, "better"), (1.05, false, " 1.05 ")] {
            let mut now = sample::results();
            slower(&mut now, "polled_eventfd", factor);
            let comparison = baseline(sample::results()).compare(&now, false).unwrap();
            assert_eq!(comparison.worse, worse, "{}", comparison.table);
            let words = comparison.table.lines().filter(|line| line.contains(word));
            let words: Vec<_> = words.filter(|line| line.contains("polled_eventfd")).collect();
            assert_eq!(words.len(), 2, "{factor}: {}", comparison.table);
        }
    }

    fn slow(histogram: &Histogram<u64>) -> Sampled<'_> {
        Sampled { histogram, per_second: 0.0 }
    }

    #[test]
    fn samples_behind_one_delay_are_one() {
        let (mut stalled, calm) = (sample::histogram(900.0, 0.0, 5000), sample::histogram(900.0, 0.0, 5000));
        (0..100).for_each(|at| stalled.record(50_000_000 + at * 100_000).unwrap());
        let per_second = 20_000.0;
        let [stalled, calm] = [&stalled, &calm].map(|histogram| Sampled { histogram, per_second });
        assert_eq!(Change::of(&calm, &stalled, 0.99).unwrap().verdict(), "too few samples");
        assert_eq!(Change::of(&calm, &stalled, 0.5).unwrap().verdict(), "");
        let stalled = Sampled { per_second: 0.1, ..stalled };
        assert_eq!(Change::of(&calm, &stalled, 0.99).unwrap().verdict(), WORSE);
    }

    #[test]
    fn few_samples_have_no_interval_and_no_verdict() {
        let (few, many) = (sample::histogram(900.0, 4.0, 999), sample::histogram(9000.0, 4.0, 5050));
        let (few, many) = (slow(&few), slow(&many));
        assert!(ratio_ci95(&few, &many, 0.99).is_none());
        assert_eq!(Change::of(&few, &many, 0.99).unwrap().verdict(), "too few samples");
        assert_eq!(Change::of(&few, &many, 0.5).unwrap().verdict(), WORSE);
        assert!(Change::of(&slow(&Histogram::new(3).unwrap()), &many, 0.5).is_none());
    }

    /// The drawn ranks against the bootstrap done in full.
    #[test]
    fn the_interval_is_that_of_resampling() {
        let (was, is) = (sample::histogram(900.0, 4.0, 1200), sample::histogram(1500.0, 4.0, 1200));
        let samples = |h: &Histogram<u64>| -> Vec<u64> {
            h.iter_recorded()
                .flat_map(|s| vec![s.value_iterated_to(); usize::try_from(s.count_at_value()).unwrap()])
                .collect()
        };
        let mut random = 7u64;
        for quantile in [0.5, 0.99] {
            let mut median = |all: &[u64]| {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
                let index = |share: f64| (share * float(1200)) as usize;
                let mut picked: Vec<u64> = (0..1200).map(|_| all[index(uniform(&mut random))]).collect();
                picked.sort_unstable();
                float(picked[index(quantile)])
            };
            let (all_was, all_is) = (samples(&was), samples(&is));
            let mut ratios: Vec<f64> = (0..400).map(|_| median(&all_is) / median(&all_was)).collect();
            ratios.sort_by(f64::total_cmp);
            let [low, high] = ratio_ci95(&slow(&was), &slow(&is), quantile).unwrap();
            let wide = (ratios[389] - ratios[10]) * 0.3;
            assert!(
                (low - ratios[10]).abs() < wide && (high - ratios[389]).abs() < wide,
                "{quantile}: {low} {high} against {} {}",
                ratios[10],
                ratios[389]
            );
        }
    }

    #[test]
    fn another_machine_is_refused_unless_forced() {
        let mut then = sample::results();
        then.machine["kernel"] = "5.4".into();
        let baseline = baseline(then);
        let error = baseline.compare(&sample::results(), false).unwrap_err().to_string();
        assert!(
            error.contains("kernel: 5.4 there, 6.1.0-18-amd64 here") && error.contains("--force"),
            "{error}"
        );
        let forced = baseline.compare(&sample::results(), true).unwrap();
        assert!(forced.table.contains("another machine: kernel"));
    }

    #[test]
    fn what_only_one_of_them_has_is_said() {
        let (mut then, mut now) = (sample::results(), sample::results());
        then.paths.retain(|path| path.path != "irqfd");
        now.paths.retain(|path| path.path != "blocking_epoll");
        let table = baseline(then).compare(&now, false).unwrap().table;
        assert!(
            table.contains("note: irqfd, 8 vectors, 1 producers, closed: not in the baseline"),
            "{table}"
        );
        assert!(table.contains("blocking_epoll, 512 vectors, 1 producers, closed: in the baseline only"));
    }

    #[test]
    fn a_file_that_is_no_result_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["", "{}", "[1,2]", "\u{0}"] {
            std::fs::write(file.path(), text).unwrap();
            let error = Baseline::read(file.path()).unwrap_err().to_string();
            assert!(error.contains("reading the baseline") && error.contains("--json"), "{error}");
        }
        std::fs::write(file.path(), json::json(&sample::results(), &sample::extra()).unwrap()).unwrap();
        assert_eq!(Baseline::read(file.path()).unwrap().results.paths.len(), sample::results().paths.len());
    }
}
