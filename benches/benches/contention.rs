//! Concurrent calls through one session: `contention/{threads}/{stack}`.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use tower_auth_refresh_benches::contention::{Contention, Shared};
use tower_auth_refresh_benches::stack;

fn contention(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    let contention = Contention::new(runtime.block_on(stack::session()));
    for threads in [1, 2, 4] {
        let mut group = criterion.benchmark_group(format!("contention/{threads}"));
        for (name, stack) in [("bare", Shared::Bare), ("ours", Shared::Ours), ("rwlock", Shared::RwLock)] {
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|rounds| {
                    (0..rounds).map(|_| Duration::from_secs_f64(contention.round(stack, threads) / 1e9)).sum()
                });
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).warm_up_time(Duration::from_millis(300));
    targets = contention
}
criterion_main!(benches);
