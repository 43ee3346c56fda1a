//! Medians, and how sure one can be of them.

/// The median; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The 95 % bootstrap interval of the median: 2000 resamples, from a fixed seed, so that a result can be had again.
pub fn median_ci95(values: &[f64]) -> [f64; 2] {
    const RESAMPLES: usize = 2000;
    if values.len() < 2 {
        let only = median(values);
        return [only, only];
    }
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        // xorshift64*: any generator will do to pick samples.
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        usize::try_from(random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap_or(0)
    };
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| median(&(0..values.len()).map(|_| values[next() % values.len()]).collect::<Vec<_>>()))
        .collect();
    medians.sort_by(f64::total_cmp);
    [medians[RESAMPLES / 40], medians[RESAMPLES - 1 - RESAMPLES / 40]]
}

/// The exponent b of y = a x^b through these points: least squares on logarithms. `None` of less than two different x.
pub fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<(f64, f64)> =
        points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0).map(|(x, y)| (x.ln(), y.ln())).collect();
    let count = super::float(logs.len() as u64);
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = logs.iter().map(|point| (point.0 - x).powi(2)).sum();
    let both: f64 = logs.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    (spread > 0.0).then(|| both / spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }

    #[test]
    fn an_exponent_is_found_again() {
        let points: Vec<(f64, f64)> = [1.0, 8.0, 64.0, 512.0].map(|x: f64| (x, 3.0 * x.powf(0.25))).into();
        assert!((exponent(&points).unwrap() - 0.25).abs() < 1e-9);
        assert_eq!(exponent(&points[..1]), None);
        assert_eq!(exponent(&[(2.0, 1.0), (2.0, 5.0)]), None);
    }

    #[test]
    fn the_interval_holds_the_median_and_shrinks_with_the_spread() {
        let wide: Vec<f64> = (0..21).map(f64::from).collect();
        let [low, high] = median_ci95(&wide);
        assert!(low < 10.0 && high > 10.0 && low > 2.0 && high < 18.0, "{low} {high}");
        let narrow: Vec<f64> = wide.iter().map(|v| 10.0 + v / 100.0).collect();
        let [low, high] = median_ci95(&narrow);
        assert!(high - low < 0.2);
    }
}
