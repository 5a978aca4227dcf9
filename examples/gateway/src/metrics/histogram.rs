//! A Prometheus histogram of durations.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Exposition, increment, load};

const BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0];

#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// One count per bucket, not cumulative. The last bucket has no bound.
    counts: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl Histogram {
    pub(super) fn observe(&self, seconds: f64) {
        let at = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        increment(&self.counts[at]);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a duration is positive and short")]
        let microseconds = (seconds * 1e6) as u64;
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }

    /// Returns the sum of several histograms.
    pub(super) fn sum<'a>(histograms: impl Iterator<Item = &'a Self>) -> Self {
        let sum = Self::default();
        for histogram in histograms {
            for (count, more) in sum.counts.iter().zip(&histogram.counts) {
                count.fetch_add(load(more), Ordering::Relaxed);
            }
            sum.microseconds.fetch_add(load(&histogram.microseconds), Ordering::Relaxed);
        }
        sum
    }

    /// Writes the samples. `labels` are those of all, or empty.
    pub(super) fn render(&self, page: &mut Exposition, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (at, count) in self.counts.iter().enumerate() {
            total += load(count);
            let bound = BOUNDS.get(at).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            let _ = writeln!(page.0, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
        }
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 microseconds, 285 years")]
        let seconds = load(&self.microseconds) as f64 / 1e6;
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(page.0, "{name}_sum{labels} {seconds}\n{name}_count{labels} {total}");
    }
}
