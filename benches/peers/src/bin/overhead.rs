//! What a call costs in one process: a line `shape stack nanoseconds` for each stack, the bare one's in full, of the
//! others what they cost over it.
//!
//! A binary of its own, to be run many times: which addresses a process happens to get is worth some nanoseconds.

use tower_auth_refresh_benches::overhead::overhead;
use tower_auth_refresh_benches::shape::{Requests, Shape};
use tower_auth_refresh_benches::stack::session;
use tower_auth_refresh_peers::stack::all;

const ROUNDS: usize = 120;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
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
