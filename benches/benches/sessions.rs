//! Many sessions by key: `sessions/lookup/{count}`, and `sessions/memory/{count}`, which is printed. So is the median of
//! the look-ups: where other work goes on, their mean is that of the interruptions.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tower_auth_refresh_benches::registry::{LOOK_UPS, SIZES, fill, look_up, look_ups};

fn sessions(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("sessions/lookup");
    for count in SIZES {
        let mut sessions = None;
        // All is done on this thread, whose allocations are counted.
        let counted = allocation_counter::measure(|| sessions = Some(runtime.block_on(fill(count))));
        let sessions = sessions.expect("it was filled");
        println!("sessions/memory/{count}: {} bytes each", counted.bytes_current / count.cast_signed());
        println!("sessions/lookup/{count}: {:.0} ns, the median of rounds", look_ups(&sessions, count, 500).value);
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter_custom(|look_ups| {
                let rounds = look_ups.div_ceil(LOOK_UPS.into());
                let elapsed: Duration = (0..rounds).map(|_| look_up(&sessions, count)).sum();
                #[expect(clippy::cast_precision_loss, reason = "a few million look-ups")]
                let share = look_ups as f64 / (rounds * u64::from(LOOK_UPS)) as f64;
                elapsed.mul_f64(share)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, sessions);
criterion_main!(benches);
