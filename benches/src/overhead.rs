//! What a call costs over the bare one, when nothing is wrong.

use crate::rounds::Median;
use crate::shape::{Requests, Shape};
use crate::stack::Candidate;

/// Calls of one stack in a row. Short, so that whatever disturbs one stack disturbs all of them.
const CALLS: u64 = 512;

/// The first of `candidates` is the bare call. Returns its cost in nanoseconds, then of each other what it costs over
/// it.
///
/// # Panics
///
/// Without a candidate.
#[must_use]
pub fn overhead(candidates: &mut [Candidate], requests: &Requests, shape: Shape, rounds: usize) -> Vec<Median> {
    let mut figures = vec![Vec::with_capacity(rounds); candidates.len()];
    for round in 0..rounds {
        let mut costs = vec![0.; candidates.len()];
        // Each round begins with another stack, so that none always follows the same one.
        for i in 0..candidates.len() {
            let i = (i + round) % candidates.len();
            #[expect(clippy::cast_precision_loss, reason = "a few hundred calls")]
            let nanoseconds = candidates[i].time(requests, shape, CALLS).as_nanos() as f64 / CALLS as f64;
            costs[i] = nanoseconds;
        }
        let bare = costs[0];
        figures[0].push(bare);
        for (figures, cost) in figures.iter_mut().zip(&costs).skip(1) {
            figures.push(cost - bare);
        }
    }
    figures.into_iter().map(Median::of).collect()
}
