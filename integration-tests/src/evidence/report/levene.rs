//! Levene's test: whether groups of samples vary equally.

use anyhow::{Result, ensure};
use headstart_statistics::mean;

use super::Basis;

/// The statistic, and how likely one as large is when all groups vary equally.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Levene {
    /// W, which is F-distributed with k - 1 and N - k degrees of freedom.
    pub w: f64,
    /// P(F >= W).
    pub p: f64,
}

/// How many samples each group needs before a p that is not small says anything. Of samples with the tail of latencies
/// (exponential), one group with seven times the variance of the other, the test tells 99 of 100 pairs of groups of 60 apart
/// at p = 0.01, and 30 of 100 pairs of groups of 10 (by simulation).
pub const SAMPLES_NEEDED: usize = 60;

/// The classic form, with distances from each group's mean (H. Levene, Robust tests for equality of variances, in:
/// Contributions to Probability and Statistics, 1960, pages 278-292); Brown and Forsythe's has medians in their place.
/// It wants two groups of two samples, and some distance that is not that of its group's others.
#[expect(clippy::cast_precision_loss, reason = "small counts")]
pub fn levene(groups: &[&[f64]]) -> Result<Levene> {
    ensure!(
        groups.len() >= 2 && groups.iter().all(|group| group.len() >= 2),
        "Levene's test wants two groups of two samples"
    );
    let distances = groups.iter().map(|group| {
        let middle = mean(group);
        group.iter().map(|sample| (sample - middle).abs()).collect::<Vec<_>>()
    });
    let distances: Vec<_> = distances.collect();
    let all = mean(&distances.concat());
    let (mut between, mut within) = (0.0, 0.0);
    for group in &distances {
        let own = mean(group);
        between += group.len() as f64 * (own - all).powi(2);
        within += group.iter().map(|distance| (distance - own).powi(2)).sum::<f64>();
    }
    ensure!(within > 0.0, "Levene's test wants groups whose samples are not all as far from their mean");
    let count: usize = groups.iter().map(|group| group.len()).sum();
    let (above, below) = ((groups.len() - 1) as f64, (count - groups.len()) as f64);
    let w = between / above / (within / below);
    // The upper tail of F as an incomplete beta function (Abramowitz and Stegun, 26.6.2).
    let p = incomplete_beta(below / (above * w + below), below / 2.0, above / 2.0);
    Ok(Levene { w, p })
}

/// What a test of these groups is based on.
pub fn basis(groups: &[&[f64]]) -> Basis {
    let samples = groups.iter().map(|group| group.len()).min().unwrap_or_default();
    Basis { samples, needs: SAMPLES_NEEDED }
}

/// The regularised incomplete beta function by its continued fraction (NIST Digital Library of Mathematical Functions,
/// 8.17.22), which is evaluated from the front (Lentz's method, same work, 3.10(iii)).
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    // It converges fast below the mean of the distribution; beyond, symmetry helps (8.17.4).
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    if x <= 0.0 {
        return 0.0;
    }
    let nonzero = |value: f64| if value.abs() < f64::MIN_POSITIVE { f64::MIN_POSITIVE } else { value };
    // After its first term, 1/1, of which nothing is above.
    let (mut fraction, mut c, mut d) = (1.0, f64::INFINITY, 1.0);
    let mut step = |numerator: f64| {
        d = 1.0 / nonzero(1.0 + numerator * d);
        c = nonzero(1.0 + numerator / c);
        fraction *= c * d;
        (c * d - 1.0).abs() < 1e-15
    };
    // Far more than it takes: about the root of the larger of a and b.
    for m in (0..10_000).map(f64::from) {
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let n = m + 1.0;
        let even = n * (b - n) * x / ((a + 2.0 * n - 1.0) * (a + 2.0 * n));
        let settled = step(odd);
        if step(even) && settled {
            break;
        }
    }
    let front = a * x.ln() + b * (-x).ln_1p() - ln_beta(a, b);
    front.exp() / a * fraction
}

fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// Stirling's series (NIST Digital Library of Mathematical Functions, 5.11.1) from 10 on; below, by the recurrence
/// (5.5.1).
fn ln_gamma(mut x: f64) -> f64 {
    let mut product = 1.0;
    while x < 10.0 {
        product *= x;
        x += 1.0;
    }
    let square = x * x;
    let series =
        (1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - 1.0 / (1680.0 * square)) / square) / square) / x;
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series - f64::ln(product)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(value: f64, expected: f64) {
        assert!((value - expected).abs() <= 1e-9 * expected.abs(), "{value}, not {expected}");
    }

    // Expected: scipy.stats.levene(..., center="mean").
    #[test]
    fn it_says_what_scipy_says() {
        let a = [8.88, 9.12, 9.04, 8.98, 9.00, 9.08, 9.01, 8.85, 9.06, 8.99];
        let b = [8.88, 8.95, 9.29, 9.44, 9.15, 9.58, 8.36, 9.18, 8.67, 9.05];
        let c = [8.95, 9.12, 8.95, 8.85, 9.03, 8.84, 9.07, 8.98, 8.86, 8.98];
        let long: Vec<f64> = (1..=200).map(f64::from).collect();
        let wide: Vec<f64> = (1..=150).map(|sample| f64::from(sample) * 1.3).collect();
        let (even, far) = ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 10.0]);
        let cases: [(&[&[f64]], f64, f64); 4] = [
            (&[&a, &b, &c], 7.905_194_483_442_054, 0.001_983_795_817_472_729),
            (&[&a, &c], 0.244_528_301_886_812_38, 0.626_935_584_722_488_9),
            (&[&long, &wide], 0.163_272_026_459_827_08, 0.686_409_936_729_346_7),
            (&[&even, &far], 3.2, 0.123_849_169_805_445_89),
        ];
        for (groups, w, p) in cases {
            let found = levene(groups).unwrap();
            near(found.w, w);
            near(found.p, p);
        }
    }

    #[test]
    fn too_few_samples_and_none_that_vary_are_no_test() {
        assert!(levene(&[&[1.0, 2.0]]).is_err());
        assert!(levene(&[&[1.0, 2.0], &[1.0]]).is_err());
        assert!(levene(&[&[1.0, 2.0], &[1.0, 5.0]]).is_err());
    }
}
