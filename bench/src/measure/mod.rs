//! From signals and deliveries to figures: nothing in here touches the machine.

pub mod matching;
pub mod schedule;
pub mod stats;
pub mod watch;

use hdrhistogram::Histogram;
use pollvisor::error::{Error, Result};
use pollvisor::record::LONGEST_NS;

/// An empty histogram of nanoseconds, exact to three digits.
///
/// # Errors
/// Never with these bounds.
pub fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3).map_err(|e| Error::new(e.to_string()))
}

/// Adds a histogram to another one of the same bounds.
///
/// # Errors
/// When the bounds differ.
pub fn add(to: &mut Histogram<u64>, from: &Histogram<u64>) -> Result<()> {
    to.add(from).map_err(|e| Error::new(format!("adding histograms: {e}")))
}

/// A count as a float, for ratios; exact below 2^53.
#[allow(clippy::cast_precision_loss, reason = "a ratio of counts")]
#[must_use]
pub fn float(count: u64) -> f64 {
    count as f64
}
