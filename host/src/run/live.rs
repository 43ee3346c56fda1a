//! The live lines: one per vector, refreshed in place, as cyclictest has them.

use super::report::microseconds;
use crate::record::{Figures, Stage};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Lines that fit a terminal; further vectors are summed up in the last.
const LINES: usize = 16;

/// See the module's text. Draws on stderr, so that stdout holds the result alone.
#[derive(Debug)]
pub struct Live {
    _all: MultiProgress,
    lines: Vec<ProgressBar>,
    vectors: usize,
}

impl Live {
    /// Lines for `vectors` vectors; none when stderr is not a terminal.
    #[must_use]
    pub fn new(vectors: usize) -> Self {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        let line = |_| all.add(ProgressBar::new_spinner().with_style(style.clone()));
        let lines = (0..vectors.min(LINES)).map(line).collect();
        Self { lines, vectors, _all: all }
    }

    /// Shows how things are. `sent`: signals so far, over all vectors.
    pub fn show(&self, figures: &Figures, stage: Stage, sent: u64) {
        for (vector, line) in self.lines.iter().enumerate() {
            if vector + 1 == LINES && self.vectors > LINES {
                line.set_message(format!("… and {} more vectors; {sent} signals", self.vectors - vector));
                continue;
            }
            let Some(histogram) = figures.vectors.get(vector).and_then(|stages| stages.get(stage)) else {
                continue;
            };
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a mean of u64s")]
            let mean = histogram.mean() as u64;
            line.set_message(format!(
                "V:{vector:4} C:{:9} Min:{:>8} Act:{:>8} Avg:{:>8} Max:{:>8} µs, {}",
                histogram.len(),
                microseconds(if histogram.is_empty() { 0 } else { histogram.min() }),
                microseconds(figures.latest[vector]),
                microseconds(mean),
                microseconds(histogram.max()),
                stage.name(),
            ));
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.lines.iter().for_each(ProgressBar::finish_and_clear);
    }
}
