//! When signals are to be made: absolute times, which do not wait for anybody.

use clap::ValueEnum;
use pollvisor::clock::Clock;

/// The shape of an open loop's schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// The same time between all
    Fixed,
    /// Exponential times in between, of that mean
    Poisson,
}

impl Shape {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Poisson => "poisson",
        }
    }
}

/// Planned times in TSC cycles, one after the other, without end.
#[derive(Debug, Clone)]
pub struct Schedule {
    shape: Shape,
    start: u64,
    /// Cycles since the start, of the next time, and between two on average.
    at: f64,
    mean: f64,
    random: u64,
}

impl Schedule {
    /// A schedule from `start` on, so many times a second; `seed` makes it another one of the same shape.
    #[must_use]
    pub fn new(shape: Shape, clock: Clock, start: u64, per_second: f64, seed: u64) -> Self {
        let mean = super::float(clock.khz()) * 1000.0 / per_second;
        Self { shape, start, at: 0.0, mean, random: (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }

    /// A number from 0 to 1, neither of them included (xorshift64*).
    fn uniform(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let bits = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 12;
        (super::float(bits) + 0.5) / super::float(1 << 52)
    }
}

impl Iterator for Schedule {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "cycles of a run, not below 0"
        )]
        let now = self.start + self.at as u64;
        self.at += match self.shape {
            Shape::Fixed => self.mean,
            Shape::Poisson => -self.uniform().ln() * self.mean,
        };
        Some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK_KHZ: u64 = 2_500_000;

    fn gaps(shape: Shape, per_second: f64, seed: u64) -> Vec<f64> {
        let schedule = Schedule::new(shape, Clock::from_khz(CLOCK_KHZ), 1_000, per_second, seed);
        let times: Vec<u64> = schedule.take(100_001).collect();
        assert_eq!(times[0], 1_000);
        times.windows(2).map(|pair| crate::measure::float(pair[1] - pair[0])).collect()
    }

    #[test]
    fn fixed_times_do_not_drift() {
        // 2.5e9 / 30 is no whole number of cycles.
        let mut schedule = Schedule::new(Shape::Fixed, Clock::from_khz(CLOCK_KHZ), 0, 30.0, 0);
        assert_eq!(schedule.nth(30_000), Some(2_500_000_000_000 - 1), "a cycle off at the most");
    }

    #[test]
    fn poisson_has_the_mean_and_the_spread_of_an_exponential() {
        let gaps = gaps(Shape::Poisson, 10_000.0, 3);
        let mean = gaps.iter().sum::<f64>() / 1e5;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / 1e5;
        assert!((mean / 250_000.0 - 1.0).abs() < 0.02, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "{}", variance.sqrt());
        let beyond = crate::measure::float(gaps.iter().filter(|gap| **gap > 3.0 * mean).count() as u64) / 1e5;
        assert!((beyond - (-3.0f64).exp()).abs() < 0.005, "{beyond} are longer than thrice the mean");
    }

    #[test]
    fn seeds_differ() {
        assert_ne!(gaps(Shape::Poisson, 1e4, 0), gaps(Shape::Poisson, 1e4, 1));
    }
}
