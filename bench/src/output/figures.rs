//! What all outputs say in the same words: stages, loads, percentiles and their marks, numbers, names of files and tags.

use crate::model::{Load, PathResult, Results, Stage};

/// The stages in the order of an interrupt's way, with their names; then what is of the producer alone.
pub const STAGES: [(&str, &str); 9] = [
    ("signal_to_seen", "signal → seen"),
    ("seen_to_injected", "seen → injected"),
    ("seen_to_posted", "seen → posted"),
    ("signal_to_accepted", "signal → accepted"),
    ("signal_to_posted", "signal → posted"),
    ("signal_to_handler", "signal → handler"),
    ("producer", "producer's cost"),
    ("producer_late", "producer's lateness"),
    ("producer_gaps", "gaps on its core"),
];
/// Where in [`STAGES`] those are that end with the LAPIC's acceptance, and with the handler.
const ACCEPTED: usize = 3;
/// The key of what an open loop's latencies would be without the wait for their turn.
pub const UNCORRECTED: &str = "uncorrected";
/// The key of the gaps on the poller's core.
pub const GAPS: &str = "gaps";

impl PathResult {
    /// The stage that the percentiles of the path itself are of.
    pub fn main_stage(&self) -> Option<(&'static str, &Stage)> {
        let of = |at: usize| {
            let stage = self.stages.get(STAGES[at].0).filter(|stage| stage.count > 0)?;
            Some((STAGES[at].1, stage))
        };
        of(ACCEPTED).or_else(|| of(ACCEPTED + 1)).or_else(|| of(ACCEPTED + 2))
    }

    /// Every distribution that was measured, by its key.
    pub fn distributions(&self) -> Vec<(&str, &Stage)> {
        let known = STAGES.iter().filter_map(|(key, _)| Some((*key, self.stages.get(*key)?)));
        let others = self.stages.iter().filter(|(key, _)| STAGES.iter().all(|(known, _)| key != known));
        known
            .chain(others.map(|(key, stage)| (key.as_str(), stage)))
            .chain(self.uncorrected.as_ref().map(|stage| (UNCORRECTED, stage)))
            .chain(self.gaps.as_ref().map(|stage| (GAPS, stage)))
            .filter(|(_, stage)| stage.count > 0)
            .collect()
    }

    /// The cells of its own percentiles, marked as those of a stage; dashes where there was no latency to measure.
    pub fn own_cells(&self) -> [String; 3] {
        let stage = self.main_stage().map(|(_, stage)| stage);
        [(self.p50_ns, 2), (self.p99_ns, 100), (self.p999_ns, 1000)].map(|(ns, beyond)| {
            let mark = if stage.is_some_and(|stage| stage.is_thin(beyond)) { "*" } else { "" };
            measured(ns) + mark
        })
    }

    /// The load, for people.
    pub fn load_name(&self) -> String {
        match &self.load {
            Load::Closed => "closed".into(),
            Load::Open { per_second, schedule } => format!("open, {} /s {schedule}", grouped(*per_second)),
        }
    }

    /// How many vectors, and producers where there are several.
    pub fn size(&self) -> String {
        if self.producers == 1 {
            self.vectors.to_string()
        } else {
            format!("{} × {} producers", self.vectors, self.producers)
        }
    }
}

/// A name for each path's files and tags: letters, digits, `_` and `-`, and none twice.
pub fn keys(results: &Results) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for path in &results.paths {
        let mut key = format!("{}-{}", path.path, path.vectors);
        if path.producers != 1 {
            key.push_str(&format!("x{}", path.producers));
        }
        if let Load::Open { per_second, schedule } = &path.load {
            key.push_str(&format!("-open_{per_second:.0}_{schedule}"));
        }
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let mut key: String = key.chars().map(plain).collect();
        while keys.contains(&key) {
            key.push_str("-again");
        }
        keys.push(key);
    }
    keys
}

/// Nanoseconds as microseconds, to two or three figures; a dash where there are none.
pub fn microseconds(ns: f64) -> String {
    match ns {
        ns if !ns.is_finite() => "-".into(),
        ns if ns < 1000.0 => format!("{:.3}", ns / 1000.0),
        ns if ns < 10_000.0 => format!("{:.2}", ns / 1000.0),
        ns if ns < 100_000.0 => format!("{:.1}", ns / 1000.0),
        ns => format!("{:.0}", ns / 1000.0),
    }
}

/// The same of what cannot be nothing: 0 is what was not measured.
pub fn measured(ns: f64) -> String {
    microseconds(if ns > 0.0 { ns } else { f64::NAN })
}

/// A count as a float: exact up to 2⁵³.
#[allow(clippy::cast_precision_loss, reason = "for display, and for ratios")]
pub fn float(count: u64) -> f64 {
    count as f64
}

/// A number without decimals, its thousands set apart.
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        let left = digits.len() - at;
        if at > 0 && left.is_multiple_of(3) && !text.ends_with('-') {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Percentiles in the order of the columns, with how many samples in how many lie beyond.
pub const COLUMNS: [(&str, u64); 6] =
    [("p50", 2), ("p90", 10), ("p99", 100), ("p99.9", 1000), ("p99.99", 10_000), ("p99.999", 100_000)];

impl Stage {
    pub fn percentiles(&self) -> [u64; 6] {
        [self.p50_ns, self.p90_ns, self.p99_ns, self.p999_ns, self.p9999_ns, self.p99999_ns]
    }

    /// Whether fewer than ten samples lie beyond the percentile that one in `beyond` exceeds.
    pub fn is_thin(&self, beyond: u64) -> bool {
        self.count / beyond < 10
    }

    /// The cells of the percentiles: microseconds, with a mark where fewer than ten samples lie beyond.
    pub fn cells(&self) -> Vec<String> {
        let cell = |(ns, (_, beyond)): (u64, (&str, u64))| {
            format!("{}{}", microseconds(float(ns)), if self.is_thin(beyond) { "*" } else { "" })
        };
        self.percentiles().into_iter().zip(COLUMNS).map(cell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::sample;

    #[test]
    fn names_are_plain_and_none_is_there_twice() {
        let mut results = sample::results();
        results.paths.truncate(1);
        results.paths[0].path = "../a b,\n".into();
        results.paths.push(results.paths[0].clone());
        assert_eq!(keys(&results), ["___a_b__-8", "___a_b__-8-again"]);
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!([0.0, 999.0, 1000.0, 1_234_567.0].map(grouped), ["0", "999", "1 000", "1 234 567"]);
        assert_eq!([9.9, 1234.0, 12_345.0, f64::NAN].map(microseconds), ["0.010", "1.23", "12.3", "-"]);
    }
}
