//! Durable stores beside the bare work: `stores/file/restart` reads sessions at their first use, `stores/file/refresh`
//! refreshes one.
//!
//! Also prints the throughput beside that of the bare work, as the median ratio of rounds that take turns.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;
use tower_auth_refresh_benches::rounds::Median;
use tower_auth_refresh_benches::stores::{REFRESHES, SESSIONS, fill, time_reads, time_refreshes, time_restart};
use tower_auth_refresh_store::FileStore;

const ROUNDS: usize = 9;

fn file(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let directory = Directory::new();
    let files = FileStore::open(&directory.0).expect("a private directory");
    let store = move |user: u64| files.store(user.to_be_bytes());
    runtime.block_on(fill(&store));
    let records: Arc<Vec<_>> = Arc::new(directory.records());
    let read_file = move |user: u64| {
        let records = Arc::clone(&records);
        let read = spawn_blocking(move || fs::read(&records[usize::try_from(user).expect("64 bits")]));
        async { assert!(!read.await.expect("no panic").expect("the file is there").is_empty()) }
    };
    let scratch = directory.0.join("scratch");
    let restart = || runtime.block_on(time_restart(&store));
    let bare_restart = || runtime.block_on(time_reads(&read_file));
    compare(criterion, "stores/file/restart", SESSIONS, restart, bare_restart);
    let refresh = || runtime.block_on(time_refreshes(store(0)));
    let bare_refresh = || time_writes(&runtime, &scratch);
    compare(criterion, "stores/file/refresh", REFRESHES.into(), refresh, bare_refresh);
}

/// Measures a store and the bare work, which both do something `count` times.
fn compare(
    criterion: &mut Criterion,
    name: &str,
    count: u64,
    ours: impl Fn() -> Duration,
    bare: impl Fn() -> Duration,
) {
    let ratios = (0..ROUNDS).map(|_| bare().as_secs_f64() / ours().as_secs_f64());
    println!("{name}: {:.2} of the throughput of the bare work, median of rounds", Median::of(ratios).value);
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10);
    let each = |time: &dyn Fn() -> Duration, rounds: u64| {
        let total: Duration = (0..rounds).map(|_| time()).sum();
        total.div_f64(f64::from(u32::try_from(count).expect("few")))
    };
    group.bench_function("ours", |bencher| bencher.iter_custom(|rounds| each(&ours, rounds)));
    group.bench_function("bare", |bencher| bencher.iter_custom(|rounds| each(&bare, rounds)));
    group.finish();
}

/// Replaces two files durably for each refresh, as a claim and a commit do.
fn time_writes(runtime: &Runtime, scratch: &Path) -> Duration {
    let begun = Instant::now();
    for _ in 0..REFRESHES * 2 {
        let (draft, path) = (scratch.with_extension("draft"), scratch.to_owned());
        let write = move || {
            let mut file = File::create_new(&draft)?;
            file.write_all(&[1; 1024])?;
            file.sync_all()?;
            fs::rename(draft, &path)?;
            File::open(path.parent().expect("a directory"))?.sync_all()
        };
        runtime.block_on(runtime.spawn_blocking(write)).expect("no panic").expect("the disk has space");
    }
    begun.elapsed()
}

/// A directory in memory if possible, which is removed in the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let on_disk = std::env::var_os("TMPDIR").is_some() || !memory.is_dir();
        let parent = if on_disk { std::env::temp_dir() } else { memory.to_owned() };
        Self(parent.join(format!("tower-auth-refresh-bench-{}", std::process::id())))
    }

    fn records(&self) -> Vec<PathBuf> {
        let paths = fs::read_dir(&self.0).expect("a directory").map(|file| file.expect("a file").path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "record")).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

criterion_group!(benches, file);
criterion_main!(benches);
