//! The cost of a call that succeeds at the first attempt: `overhead/{shape}/{stack}`.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use tower_auth_refresh_benches::shape::{Requests, Shape};
use tower_auth_refresh_benches::stack;

fn overhead(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    let session = runtime.block_on(stack::session());
    let requests = Requests::new(session.clone());
    for shape in Shape::ALL {
        let mut group = criterion.benchmark_group(format!("overhead/{}", shape.name()));
        for mut candidate in stack::light(shape, &session) {
            group.bench_function(candidate.name(), |bencher| {
                bencher.iter_custom(|iterations| candidate.time(&requests, shape, iterations));
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
