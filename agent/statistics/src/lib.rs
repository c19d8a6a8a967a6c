//! Statistics of a series of samples, for the report of the benches and for `headstart bench`.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Resamples of the bootstrap. With a thousand, the bounds are the 25th and the 975th median.
const RESAMPLES: usize = 1_000;

/// The percentile `percent` of ascending samples by nearest rank: the smallest sample that at least that part of all
/// samples does not exceed. `NaN` without samples.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank is between 1 and the number of samples"
)]
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// The arithmetic mean; `NaN` without samples.
#[expect(clippy::cast_precision_loss, reason = "small counts")]
pub fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

/// The 95 % interval of the median by the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap,
/// 1993, chapter 13). The resamples depend only on the number of samples, so that a report can be reproduced.
pub fn median_interval(sorted: &[f64]) -> (f64, f64) {
    if sorted.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let mut random = StdRng::seed_from_u64(u64::try_from(sorted.len()).unwrap_or_default());
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            // The samples ascend, so the median of a resample is the sample at the median of its indexes.
            let mut picked: Vec<usize> =
                (0..sorted.len()).map(|_| random.random_range(0..sorted.len())).collect();
            let middle = (picked.len() - 1) / 2;
            sorted[*picked.select_nth_unstable(middle).1]
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (percentile(&medians, 2.5), percentile(&medians, 97.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        for (percent, value) in
            [(0.0, 1.0), (50.0, 50.0), (90.0, 90.0), (99.0, 99.0), (99.1, 100.0), (100.0, 100.0)]
        {
            assert!((percentile(&hundred, percent) - value).abs() < f64::EPSILON, "{percent}");
        }
        // The usual example of the definition, with five samples.
        let five = [15.0, 20.0, 35.0, 40.0, 50.0];
        let ranks = [5.0, 30.0, 40.0, 50.0, 100.0].map(|percent| percentile(&five, percent));
        assert_eq!(ranks.map(|value| value.to_string()), ["15", "20", "20", "35", "50"]);
        assert!(percentile(&[], 50.0).is_nan() && mean(&[]).is_nan());
        assert!((mean(&hundred) - 50.5).abs() < f64::EPSILON);
    }

    #[test]
    fn the_interval_of_a_median_is_what_order_statistics_say() {
        // Of 100 samples, the 40th and the 61st hold the median with 95 % (binomial, n = 100, p = 1/2).
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        let (low, high) = median_interval(&hundred);
        assert!((38.0..=43.0).contains(&low) && (58.0..=63.0).contains(&high), "{low} {high}");
        assert_eq!(median_interval(&hundred), (low, high));
        assert_eq!(median_interval(&[7.0]), (7.0, 7.0));
        assert!(median_interval(&[]).0.is_nan());
    }
}
