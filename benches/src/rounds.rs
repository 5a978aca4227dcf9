//! Ratios that hold on a noisy machine: what is compared runs in turns, in short rounds, and each round gives one
//! ratio of its own.

use std::time::{Duration, Instant};

/// How wide an interval may be that a figure near 1 is judged by.
pub const PRECISE: f64 = 0.04;

/// Rounds that are played in any case, and between two looks at the interval.
const FEWEST: usize = 40;

/// The median of some figures, and the interval that holds the true one with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Median {
    /// The median itself.
    pub value: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

impl Median {
    /// Of figures that are independent of each other. The interval is the sign test's: it assumes nothing of how they
    /// are distributed.
    ///
    /// # Panics
    ///
    /// Without any.
    #[must_use]
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let n = figures.len();
        let value = f64::midpoint(figures[(n - 1) / 2], figures[n / 2]);
        let reach = sign_test_reach(n);
        Self { value, low: figures[reach], high: figures[n - 1 - reach] }
    }

    /// How wide the interval is.
    #[must_use]
    pub fn width(self) -> f64 {
        self.high - self.low
    }
}

/// How much time `other` takes in relation to `one`, the two taking turns for as long as it takes to know it within
/// [`PRECISE`], or until `patience` is at its end.
pub async fn ratio(
    mut one: impl AsyncFnMut() -> Duration,
    mut other: impl AsyncFnMut() -> Duration,
    patience: Duration,
) -> Median {
    // To warm up connections and caches.
    for _ in 0..3 {
        one().await;
        other().await;
    }
    let begun = Instant::now();
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
        let late = begun.elapsed() > patience;
        if ratios.len() >= FEWEST && (late || ratios.len() % FEWEST == 0) {
            let median = Median::of(ratios.iter().copied());
            if late || median.width() <= PRECISE {
                return median;
            }
        }
    }
}

/// Up to so many figures the binomial distribution can be summed up; with more its first term is too small for a number,
/// and the normal distribution as good.
const EXACT: usize = 1000;

/// The largest `k` such that the `k`-th smallest and largest of `n` figures hold the median between them with 95 %.
fn sign_test_reach(n: usize) -> usize {
    if n > EXACT {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "thousands of rounds"
        )]
        return (n as f64 / 2. - 0.98 * (n as f64).sqrt()) as usize;
    }
    // The binomial distribution of `n` tosses of a coin, summed up from below.
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
    fn the_interval_is_that_of_the_tables() {
        // The order statistics of the sign test at 95 %, counted from 1: 2..9 of 10, 6..15 of 20, 40..61 of 100.
        for (n, low, high) in [(10, 2., 9.), (20, 6., 15.), (100, 40., 61.)] {
            let median = Median::of((1..=n).map(f64::from));
            assert_eq!((median.low, median.high), (low, high), "{n}");
        }
    }

    #[test]
    fn the_interval_of_many_figures_goes_on_from_that_of_few() {
        let width = |n| Median::of((1..=n).map(f64::from)).width();
        assert!((0.95..1.05).contains(&(width(1001) / width(1000))));
        assert!((1.9..2.1).contains(&(width(40_000) / width(10_000))));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let median = Median::of([3., 1., 2., 10.]);
        assert!((median.value - 2.5).abs() < f64::EPSILON);
        assert_eq!((median.low, median.high), (1., 10.));
    }
}
