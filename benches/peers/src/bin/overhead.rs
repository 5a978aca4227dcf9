//! Measures the cost of a call in one process: prints a line `shape stack nanoseconds` for each stack.
//!
//! The bare stack's line has the cost of a call, the other lines the overhead. A separate binary, to be run many times:
//! the addresses that a process is given change a figure by some nanoseconds.

use tower_auth_refresh_benches::overhead::overhead;
use tower_auth_refresh_benches::shape::{Requests, Shape};
use tower_auth_refresh_benches::stack::session;
use tower_auth_refresh_peers::stack::all;

const ROUNDS: usize = 120;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    let _entered = runtime.enter();
    let session = runtime.block_on(session());
    let requests = Requests::new(session.clone());
    for shape in Shape::ALL {
        let mut stacks = runtime.block_on(all(shape, &session));
        let medians = overhead(&mut stacks, &requests, shape, ROUNDS);
        for (stack, median) in stacks.iter().zip(&medians) {
            println!("{} {} {}", shape.name(), stack.name(), median.value);
        }
    }
}
