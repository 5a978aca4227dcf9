//! Durable stores beside the bare work: `stores/file/restart/64` reads sessions at their first use, 64 at once,
//! `stores/file/refresh` refreshes one; likewise `stores/redis` and `stores/postgres`, beside the bare clients that the
//! stores are built on.
//!
//! A group whose server isn't installed is skipped, as is one whose name doesn't contain the first argument.
//!
//! Also prints the throughput beside that of the bare work, as the median ratio of rounds that take turns.
//!
//! Both use the allocator of the gateway, as many threads free what others have allocated.

#![expect(clippy::unwrap_used, reason = "the servers' modules are those of tests")]

#[path = "../../crates/tower-auth-refresh-store/tests/it/directory.rs"]
mod directory;
#[path = "../../crates/tower-auth-refresh-store/tests/it/postgres/server.rs"]
#[expect(dead_code, reason = "shared with the tests of the store")]
mod postgres_server;
#[path = "../../crates/tower-auth-refresh-store/tests/it/redis/server.rs"]
#[expect(dead_code, reason = "shared with the tests of the store")]
mod redis_server;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use mimalloc::MiMalloc;
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;
use tokio_postgres::types::{ToSql, Type};
use tower_auth_refresh_benches::rounds::Median;
use tower_auth_refresh_benches::stores::{
    CONCURRENCY, REFRESHES, fill, reads, time_reads, time_refreshes, time_restart,
};
use tower_auth_refresh_store::{FileStore, PostgresStores, RedisStores};

use self::directory::TestDirectory;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The fewest whose median has an interval of 95 % are 6: from the least to the greatest.
const ROUNDS: usize = 9;

/// The table of the store.
const TABLE: &str = "tower_auth_refresh";

/// The connections of the bare client of PostgreSQL: as many as those of the store.
const CONNECTIONS: usize = 4;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}

fn file(criterion: &mut Criterion) {
    if !is_any_wanted("file") {
        return;
    }
    let runtime = runtime();
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
    for concurrency in CONCURRENCY {
        let restart = || runtime.block_on(time_restart(&store, concurrency));
        let bare_restart = || runtime.block_on(time_reads(read_file.clone(), concurrency));
        compare(criterion, &format!("stores/file/restart/{concurrency}"), reads(concurrency), restart, bare_restart);
    }
    let refresh = || runtime.block_on(time_refreshes(store(0)));
    let bare_refresh = || time_writes(&runtime, &scratch);
    compare(criterion, "stores/file/refresh", REFRESHES.into(), refresh, bare_refresh);
}

fn redis(criterion: &mut Criterion) {
    if !is_any_wanted("redis") {
        return;
    }
    let runtime = runtime();
    let Some(server) = runtime.block_on(redis_server::Server::start()) else { return };
    let stores = runtime.block_on(RedisStores::connect(&server.url())).expect("a server");
    let store = move |user: u64| stores.store(user.to_be_bytes());
    runtime.block_on(fill(&store));
    let client = redis::Client::open(server.url()).expect("a URL");
    let mut connection = runtime.block_on(client.get_multiplexed_async_connection()).expect("a server");
    let names = runtime.block_on(redis::cmd("KEYS").arg("*").query_async(&mut connection));
    let names: Arc<Vec<String>> = Arc::new(names.expect("an answer"));
    let get = connection.clone();
    let read = move |user: u64| {
        let (names, mut connection) = (Arc::clone(&names), get.clone());
        async move {
            let get = redis::cmd("GET").arg(&names[usize::try_from(user).expect("64 bits")]).to_owned();
            let record: Vec<u8> = get.query_async(&mut connection).await.expect("an answer");
            assert!(!record.is_empty());
        }
    };
    for concurrency in CONCURRENCY {
        let restart = || runtime.block_on(time_restart(&store, concurrency));
        let bare_restart = || runtime.block_on(time_reads(read.clone(), concurrency));
        compare(criterion, &format!("stores/redis/restart/{concurrency}"), reads(concurrency), restart, bare_restart);
    }
    let refresh = || runtime.block_on(time_refreshes(store(0)));
    let bare_refresh = || {
        let begun = Instant::now();
        for _ in 0..REFRESHES * 2 {
            let mut connection = connection.clone();
            let set = redis::cmd("SET").arg("scratch").arg(&[1_u8; 1024][..]).to_owned();
            runtime.block_on(async move { set.query_async::<()>(&mut connection).await }).expect("an answer");
        }
        begun.elapsed()
    };
    compare(criterion, "stores/redis/refresh", REFRESHES.into(), refresh, bare_refresh);
}

fn postgres(criterion: &mut Criterion) {
    if !is_any_wanted("postgres") {
        return;
    }
    let runtime = runtime();
    // Relative to the directory of its data.
    let Some(server) = postgres_server::Server::start(&["unix_socket_directories=."]) else { return };
    let stores = runtime.block_on(PostgresStores::connect(server.url())).expect("a server");
    runtime.block_on(stores.migrate()).expect("a table");
    let store = move |user: u64| stores.store(user.to_be_bytes());
    runtime.block_on(fill(&store));
    let connect_all =
        |url: &str| Arc::new((0..CONNECTIONS).map(|_| runtime.block_on(connect(url))).collect::<Vec<_>>());
    let clients = connect_all(&server.url());
    // As behind a pooler, neither side prepares its statement here.
    let place = format!("127.0.0.1:{}", server.port());
    let socket =
        format!("{}?host={}&port={}", server.url().replace(&place, ""), server.data().display(), server.port());
    let unprepared_stores = runtime.block_on(PostgresStores::connect(&socket)).expect("a server");
    let unprepared_store = move |user: u64| unprepared_stores.store(user.to_be_bytes());
    let unprepared_clients = connect_all(&socket);
    let keys = runtime.block_on(clients[0].query(&format!("SELECT key FROM {TABLE}"), &[])).expect("rows");
    let keys: Arc<Vec<Vec<u8>>> = Arc::new(keys.iter().map(|row| row.get(0)).collect());
    let select = format!("SELECT version, record FROM {TABLE} WHERE key = $1");
    let prepare = |client: &tokio_postgres::Client| runtime.block_on(client.prepare(&select)).expect("a statement");
    let statements: Arc<Vec<_>> = Arc::new(clients.iter().map(prepare).collect());
    let unprepared_select: Arc<str> = select.as_str().into();
    for concurrency in CONCURRENCY {
        // One at a time, on one connection, as the store's: its process has all that it needs in the processor's caches.
        let connections = CONNECTIONS.min(concurrency);
        let (shared_keys, readers, statements) = (Arc::clone(&keys), Arc::clone(&clients), Arc::clone(&statements));
        let read = move |user: u64| {
            let (keys, clients, statements) = (Arc::clone(&shared_keys), Arc::clone(&readers), Arc::clone(&statements));
            async move {
                let user = usize::try_from(user).expect("64 bits");
                let (client, select) = (&clients[user % connections], &statements[user % connections]);
                assert_eq!(client.query(select, &[&keys[user]]).await.expect("an answer").len(), 1);
            }
        };
        let (shared_keys, readers, select) =
            (Arc::clone(&keys), Arc::clone(&unprepared_clients), Arc::clone(&unprepared_select));
        let read_unprepared = move |user: u64| {
            let (keys, clients, select) = (Arc::clone(&shared_keys), Arc::clone(&readers), Arc::clone(&select));
            async move {
                let user = usize::try_from(user).expect("64 bits");
                let key = (&keys[user] as &(dyn ToSql + Sync), Type::BYTEA);
                let rows = clients[user % connections].query_typed(&select, &[key]).await.expect("an answer");
                assert_eq!(rows.len(), 1);
            }
        };
        let count = reads(concurrency);
        let restart = || runtime.block_on(time_restart(&store, concurrency));
        let bare_restart = || runtime.block_on(time_reads(read.clone(), concurrency));
        compare(criterion, &format!("stores/postgres/restart/{concurrency}"), count, restart, bare_restart);
        let restart = || runtime.block_on(time_restart(&unprepared_store, concurrency));
        let bare_restart = || runtime.block_on(time_reads(read_unprepared.clone(), concurrency));
        compare(criterion, &format!("stores/postgres/unprepared/{concurrency}"), count, restart, bare_restart);
    }
    let refresh = || runtime.block_on(time_refreshes(store(0)));
    let scratch = format!("UPDATE {TABLE} SET record = $1 WHERE key = (SELECT key FROM {TABLE} LIMIT 1)");
    let bare_refresh = || {
        let begun = Instant::now();
        let record = vec![1_u8; 1024];
        for _ in 0..REFRESHES * 2 {
            let record = (&record as &(dyn ToSql + Sync), Type::BYTEA);
            assert_eq!(runtime.block_on(clients[0].execute_typed(&scratch, &[record])).expect("an answer"), 1);
        }
        begun.elapsed()
    };
    compare(criterion, "stores/postgres/refresh", REFRESHES.into(), refresh, bare_refresh);
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("a server");
    tokio::spawn(connection);
    client
}

/// Returns `true` if a group's name contains the first argument.
fn is_wanted(group: &str) -> bool {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    filter.is_none_or(|filter| group.contains(&filter))
}

/// Returns `true` if any group of a store is wanted.
fn is_any_wanted(store: &str) -> bool {
    let restarts = CONCURRENCY.map(|concurrency| format!("stores/{store}/restart/{concurrency}"));
    let unprepared = CONCURRENCY.map(|concurrency| format!("stores/{store}/unprepared/{concurrency}"));
    let groups = restarts.iter().chain(&unprepared);
    groups.into_iter().any(|group| is_wanted(group)) || is_wanted(&format!("stores/{store}/refresh"))
}

/// Measures a store and the bare work, which both do something `count` times.
fn compare(
    criterion: &mut Criterion,
    name: &str,
    count: u64,
    ours: impl Fn() -> Duration,
    bare: impl Fn() -> Duration,
) {
    if !is_wanted(name) {
        return;
    }
    let ratios = (0..ROUNDS).map(|_| bare().as_secs_f64() / ours().as_secs_f64());
    let Median { value, low, high } = Median::of(ratios);
    println!("{name}: {value:.2} of the throughput of the bare work, median of rounds ({low:.2} to {high:.2})");
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

criterion_group!(benches, file, redis, postgres);
criterion_main!(benches);
