//! The overhead of a stack: the cost of a successful call minus the cost of the bare call.

use crate::rounds::Median;
use crate::shape::{Requests, Shape};
use crate::stack::Candidate;

/// Consecutive calls of one stack. Few, so that a disturbance affects all stacks alike.
const CALLS: u64 = 512;

/// Returns the cost of the bare call, the first of `candidates`, then the overheads of the others, in nanoseconds.
///
/// # Panics
///
/// If `candidates` is empty.
#[must_use]
pub fn overhead(candidates: &mut [Candidate], requests: &Requests, shape: Shape, rounds: usize) -> Vec<Median> {
    let mut figures = vec![Vec::with_capacity(rounds); candidates.len()];
    for round in 0..rounds {
        let mut costs = vec![0.; candidates.len()];
        // Each round starts with a different stack, so that the order favours none.
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
