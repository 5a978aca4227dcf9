//! Uploads of 64 MiB in frames of 16 KiB over loopback: `upload/{bare,under_limit,over_limit,replayed}`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tower_auth_refresh_benches::upload::{LENGTH, Upload, Uploads};

fn upload(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("runtime starts");
    let uploads = runtime.block_on(Uploads::new());
    let mut group = criterion.benchmark_group("upload");
    group.throughput(Throughput::Bytes(LENGTH as u64)).sample_size(20);
    for (name, upload) in [
        ("bare", Upload::Bare),
        ("under_limit", Upload::UnderLimit),
        ("over_limit", Upload::OverLimit),
        ("replayed", Upload::Replayed),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| runtime.block_on(uploads.upload(upload))).sum());
        });
    }
    group.finish();
}

criterion_group!(benches, upload);
criterion_main!(benches);
