//! Concurrent callers whose token has expired: `stampede/{callers}/{ours,bare_twice}`.

use criterion::{Criterion, criterion_group, criterion_main};
use tower_auth_refresh_benches::stampede;

fn stampede(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    for callers in [10, 100, 1_000, 10_000, 100_000] {
        let mut group = criterion.benchmark_group(format!("stampede/{callers}"));
        group.bench_function("bare_twice", |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| runtime.block_on(stampede::bare_twice(callers))).sum());
        });
        group.bench_function("ours", |bencher| {
            bencher.iter_custom(|rounds| {
                let round = || {
                    let outcome = runtime.block_on(stampede::ours(callers));
                    assert_eq!((outcome.refreshes, outcome.failures), (1, 0));
                    outcome.wall
                };
                (0..rounds).map(|_| round()).sum()
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = stampede
}
criterion_main!(benches);
