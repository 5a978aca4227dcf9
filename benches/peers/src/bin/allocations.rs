//! Counts the allocations of one call and of one session.
//!
//! Prints a line `shape stack allocations bytes` for each stack, and a line `sessions count allocations bytes` for each
//! number of sessions. A separate binary, since the counting allocator would distort the timings.

use tower_auth_refresh_benches::registry::{SIZES, fill};
use tower_auth_refresh_benches::shape::{Requests, Shape};
use tower_auth_refresh_benches::stack::session;
use tower_auth_refresh_peers::stack::all;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    let entered = runtime.enter();
    let session = runtime.block_on(session());
    let requests = Requests::new(session.clone());
    for shape in Shape::ALL {
        for mut stack in runtime.block_on(all(shape, &session)) {
            // The first calls fill caches.
            stack.call(&mut requests.batch(shape, 8));
            let mut batch = requests.batch(shape, 1);
            let counted = allocation_counter::measure(|| stack.call(&mut batch));
            println!("{} {} {} {}", shape.name(), stack.name(), counted.count_total, counted.bytes_total);
        }
    }
    // Only this thread's allocations are counted.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime starts");
    drop(entered);
    for count in SIZES {
        let mut sessions = None;
        let counted = allocation_counter::measure(|| sessions = Some(runtime.block_on(fill(count))));
        let divisor = count.cast_signed();
        println!("sessions {count} {} {}", counted.count_current / divisor, counted.bytes_current / divisor);
    }
}
