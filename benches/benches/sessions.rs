//! Lookups in a registry of many sessions: `sessions/lookup/{count}`.
//!
//! Also prints `sessions/memory/{count}` and the median time of a lookup. On a busy machine, interruptions dominate the
//! mean.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tower_auth_refresh_benches::registry::{LOOKUPS, SIZES, fill, lookup_ns, time_lookups};

fn sessions(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime starts");
    let mut group = criterion.benchmark_group("sessions/lookup");
    for count in SIZES {
        let mut sessions = None;
        // Only this thread's allocations are counted: the runtime is single-threaded.
        let counted = allocation_counter::measure(|| sessions = Some(runtime.block_on(fill(count))));
        let sessions = sessions.expect("filled");
        println!("sessions/memory/{count}: {} bytes each", counted.bytes_current / count.cast_signed());
        println!("sessions/lookup/{count}: {:.0} ns, median of rounds", lookup_ns(&sessions, count, 500).value);
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter_custom(|lookups| {
                let rounds = lookups.div_ceil(LOOKUPS.into());
                let elapsed: Duration = (0..rounds).map(|_| time_lookups(&sessions, count)).sum();
                #[expect(clippy::cast_precision_loss, reason = "a few million lookups")]
                let share = lookups as f64 / (rounds * u64::from(LOOKUPS)) as f64;
                elapsed.mul_f64(share)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, sessions);
criterion_main!(benches);
