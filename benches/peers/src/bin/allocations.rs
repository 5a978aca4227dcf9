//! Counts what one call allocates: a line `shape stack allocations bytes` for each stack.
//!
//! A binary of its own, since the counting allocator would be in the way of whatever is timed.

use tower_auth_refresh_benches::shape::{Requests, Shape};
use tower_auth_refresh_benches::stack::session;
use tower_auth_refresh_peers::stack::all;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _entered = runtime.enter();
    let session = runtime.block_on(session());
    let requests = Requests::new(session.clone());
    for shape in Shape::ALL {
        for mut stack in runtime.block_on(all(shape, &session)) {
            // The first calls fill what is kept between calls.
            stack.call(&mut requests.batch(shape, 8));
            let mut batch = requests.batch(shape, 1);
            let counted = allocation_counter::measure(|| stack.call(&mut batch));
            println!("{} {} {} {}", shape.name(), stack.name(), counted.count_total, counted.bytes_total);
        }
    }
}
