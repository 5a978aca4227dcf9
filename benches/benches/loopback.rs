//! Throughput over real connections, 64 requests in flight: `loopback/{h1,h2}/{bare,ours}`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tower_auth_refresh_benches::loopback::{Http, Server};
use tower_auth_refresh_benches::stack;

/// Requests per iteration.
const REQUESTS: usize = 6400;

fn loopback(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    let (server, session) = runtime.block_on(async { (Server::start().await, stack::session().await) });
    for (name, http) in [("h1", Http::H1), ("h2", Http::H2)] {
        let (bare, ours) = server.clients(http, &session);
        let mut group = criterion.benchmark_group(format!("loopback/{name}"));
        group.throughput(Throughput::Elements(REQUESTS as u64)).sample_size(20);
        group.bench_function("bare", |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| runtime.block_on(server.get(&bare, REQUESTS))).sum());
        });
        group.bench_function("ours", |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| runtime.block_on(server.get(&ours, REQUESTS))).sum());
        });
        group.finish();
    }
}

criterion_group!(benches, loopback);
criterion_main!(benches);
