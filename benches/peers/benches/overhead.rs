//! The cost of a call that succeeds at the first attempt, in all stacks: `overhead/{shape}/{stack}`.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use tower_auth_refresh_benches::shape::{Requests, Shape};
use tower_auth_refresh_benches::stack::session;
use tower_auth_refresh_peers::stack::all;

fn overhead(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    let _entered = runtime.enter();
    let session = runtime.block_on(session());
    let requests = Requests::new(session.clone());
    for shape in Shape::ALL {
        let mut group = criterion.benchmark_group(format!("overhead/{}", shape.name()));
        for mut stack in runtime.block_on(all(shape, &session)) {
            group.bench_function(stack.name(), |bencher| {
                bencher.iter_custom(|iterations| stack.time(&requests, shape, iterations));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = overhead
}
criterion_main!(benches);
