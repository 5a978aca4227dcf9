//! Ratios that are robust on a noisy machine: the two sides take turns in short rounds, and each round yields a ratio.

use std::time::{Duration, Instant};

/// The largest width of a confidence interval that is precise enough for a ratio near 1.
pub const MAX_INTERVAL: f64 = 0.04;

/// The minimum number of rounds, and the number of rounds between two evaluations of the interval.
const MIN_ROUNDS: usize = 40;

/// A median with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Median {
    /// The median itself.
    pub value: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

impl Median {
    /// Computes the median of independent figures.
    ///
    /// The interval is that of the sign test, which makes no assumption about the distribution.
    ///
    /// # Panics
    ///
    /// If there are no figures.
    #[must_use]
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let n = figures.len();
        let value = f64::midpoint(figures[(n - 1) / 2], figures[n / 2]);
        let reach = sign_test_reach(n);
        Self { value, low: figures[reach], high: figures[n - 1 - reach] }
    }

    /// Returns the width of the interval.
    #[must_use]
    pub fn width(self) -> f64 {
        self.high - self.low
    }
}

/// Measures the time of `other` divided by that of `one`.
///
/// The two take turns until the interval is at most [`MAX_INTERVAL`] wide or `time_limit` has passed.
pub async fn ratio(
    mut one: impl AsyncFnMut() -> Duration,
    mut other: impl AsyncFnMut() -> Duration,
    time_limit: Duration,
) -> Median {
    // Warms up connections and caches.
    for _ in 0..3 {
        one().await;
        other().await;
    }
    let start = Instant::now();
    let mut ratios = Vec::new();
    loop {
        let (one, other) = if ratios.len() % 2 == 0 {
            let one = one().await;
            (one, other().await)
        } else {
            let other = other().await;
            (one().await, other)
        };
        ratios.push(other.as_secs_f64() / one.as_secs_f64());
        let timed_out = start.elapsed() > time_limit;
        if ratios.len() >= MIN_ROUNDS && (timed_out || ratios.len() % MIN_ROUNDS == 0) {
            let median = Median::of(ratios.iter().copied());
            if timed_out || median.width() <= MAX_INTERVAL {
                return median;
            }
        }
    }
}

/// The largest number of figures for which the binomial distribution is summed.
///
/// Beyond it, the first term underflows `f64`, and the normal approximation is accurate enough.
const MAX_EXACT: usize = 1000;

/// Returns the largest index `k`, counted from 0, such that the `k`-th smallest and `k`-th largest of `n` figures
/// enclose the median with 95 % confidence.
fn sign_test_reach(n: usize) -> usize {
    if n > MAX_EXACT {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "thousands of rounds"
        )]
        return (n as f64 / 2. - 0.98 * (n as f64).sqrt()) as usize;
    }
    // The cumulative binomial distribution of `n` fair coin tosses.
    let mut term = 0.5_f64.powi(i32::try_from(n).expect("few rounds"));
    let mut below = term;
    let mut k = 0;
    while below <= 0.025 {
        k += 1;
        #[expect(clippy::cast_precision_loss, reason = "few rounds")]
        let factor = (n - k + 1) as f64 / k as f64;
        term *= factor;
        below += term;
    }
    k.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_matches_published_tables() {
        // The order statistics of the sign test at 95 %, counted from 1: 2..9 of 10, 6..15 of 20, 40..61 of 100.
        for (n, low, high) in [(10, 2., 9.), (20, 6., 15.), (100, 40., 61.)] {
            let median = Median::of((1..=n).map(f64::from));
            assert_eq!((median.low, median.high), (low, high), "{n}");
        }
    }

    #[test]
    fn the_exact_and_the_approximate_interval_agree() {
        let width = |n| Median::of((1..=n).map(f64::from)).width();
        assert!((0.95..1.05).contains(&(width(1001) / width(1000))));
        assert!((1.9..2.1).contains(&(width(40_000) / width(10_000))));
    }

    #[test]
    fn the_median_of_an_even_number_is_the_midpoint() {
        let median = Median::of([3., 1., 2., 10.]);
        assert!((median.value - 2.5).abs() < f64::EPSILON);
        assert_eq!((median.low, median.high), (1., 10.));
    }
}
