//! Counts what one call allocates: a line `shape stack allocations bytes` for each stack; and what one session of many
//! takes: a line `sessions count allocations bytes` for each number of them.
//!
//! A binary of its own, since the counting allocator would be in the way of whatever is timed.

use tower_auth_refresh_benches::registry::{SIZES, fill};
use tower_auth_refresh_benches::shape::{Requests, Shape};
use tower_auth_refresh_benches::stack::session;
use tower_auth_refresh_peers::stack::all;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let entered = runtime.enter();
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
    } // All on this thread, whose allocations are counted.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    drop(entered);
    for count in SIZES {
        let mut sessions = None;
        let counted = allocation_counter::measure(|| sessions = Some(runtime.block_on(fill(count))));
        let of = count.cast_signed();
        println!("sessions {count} {} {}", counted.count_current / of, counted.bytes_current / of);
    }
}
