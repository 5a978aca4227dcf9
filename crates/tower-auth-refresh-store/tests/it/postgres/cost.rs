//! The space that sessions take in the database and in the memory of a process, and what updates do to the indexes.

use std::env;
use std::fs;
use std::process::Command;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::task::JoinSet;
use tower_auth_refresh::store::{CommitOutcome, Entry, Epoch};
use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Session, SessionRegistry, Tokens};
use tower_auth_refresh_store::PostgresStores;

use super::new_url;
use super::server::Server;
use crate::support::claimed;

const SESSIONS: usize = 2000;
const REFRESHES: u64 = 5;

/// Tokens that compress as little as real ones: an access token of this length, and a refresh token of 100 characters.
fn tokens(access: usize) -> Entry {
    let random = |length: usize| (0..length).map(|_| fastrand::alphanumeric()).collect::<String>();
    let tokens = Tokens::new(AccessToken::new(random(access)).unwrap(), RefreshToken::new(random(100)).unwrap());
    Entry::new(Epoch::random(), 1, tokens)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_takes_little_more_space_than_its_tokens_and_a_refresh_changes_no_index() {
    for (access, most) in [(100, 1024), (800, 2560), (1500, 5120)] {
        let Some(server) = Server::start(&["autovacuum_naptime=1"]) else { return };
        let stores = PostgresStores::connect(server.url()).await.unwrap();
        stores.migrate().await.unwrap();
        let refresh_all = async |stores: &PostgresStores, refreshes: u64| {
            let mut sessions = JoinSet::new();
            for user in 0..SESSIONS {
                let store = stores.store(user.to_string());
                sessions.spawn(async move {
                    let mut version = store.replace(&tokens(access)).await.unwrap();
                    for _ in 0..refreshes {
                        let claim = claimed(&*store, &version).await;
                        let CommitOutcome::Stored(next) = store.commit(&claim, &tokens(access)).await.unwrap() else {
                            panic!("no other process writes");
                        };
                        version = next;
                    }
                });
            }
            while let Some(session) = sessions.join_next().await {
                session.unwrap();
            }
        };
        let bytes = || {
            let sql = "SELECT pg_total_relation_size('tower_auth_refresh')";
            server.sql(sql).parse::<usize>().unwrap() / SESSIONS
        };
        refresh_all(&stores, 0).await;
        let first = bytes();
        refresh_all(&stores, REFRESHES).await;
        // Their counts are published when they end.
        drop(stores);
        server.sql("VACUUM ANALYZE tower_auth_refresh");
        let updates = server.sql(
            "SELECT 100 * n_tup_hot_upd / n_tup_upd FROM pg_stat_user_tables WHERE relname = 'tower_auth_refresh'",
        );
        let length = server.sql("SELECT avg(length(record))::int FROM tower_auth_refresh");
        println!("records of {length} bytes take {first}, after refreshes {}; {updates} % of updates are HOT", bytes());
        assert!(bytes() <= most, "{} bytes", bytes());
        assert!(updates.parse::<u32>().unwrap() >= 80, "{updates} % of updates are HOT");
    }
}

/// The memory of this process, in bytes.
fn memory() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? * 1024)
}

/// The table, the stores, their watchers, and the allocator's rounding and unused memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_in_a_large_registry_takes_at_most_one_and_a_quarter_kibibytes() {
    const URL: &str = "MEMORY_URL";
    // 100,000 if they are counted for the documentation.
    let count: u32 = env::var("SESSIONS").map_or(20_000, |count| count.parse().unwrap());
    let Ok(url) = env::var(URL) else {
        let mut least = usize::MAX;
        // The least of a few runs: calls that are repeated, since other tests slow the server, leave gaps in the heap.
        for _ in 0..3 {
            let Some(url) = new_url().await else { return };
            let name = "postgres::cost::a_session_in_a_large_registry_takes_at_most_one_and_a_quarter_kibibytes";
            let mut process = Command::new(env::current_exe().unwrap());
            // An arena of glibc's for each thread would hold memory that is free.
            process.args(["--exact", name, "--nocapture"]).env(URL, url).env("MALLOC_ARENA_MAX", "1");
            let output = String::from_utf8(process.output().unwrap().stdout).unwrap();
            let each = output.lines().find_map(|line| line.strip_prefix("bytes: "));
            let each = each.unwrap_or_else(|| panic!("{output}")).parse().unwrap();
            println!("{each} bytes for each of {count} sessions");
            least = least.min(each);
            if least <= 1280 {
                break;
            }
        }
        assert!((600..=1280).contains(&least), "{least} bytes");
        return;
    };
    let stores = crate::url::open(&url).await;
    let refresh = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
    let sessions = SessionRegistry::builder(Session::builder(refresh))
        .max_sessions(count as usize)
        .store_factory(move |user: &u32| stores(&user.to_string()))
        .build()
        .unwrap();
    let sign_in = async |user: u32| {
        // The lengths of a small JWT and of an opaque refresh token.
        let access = AccessToken::new(format!("{user:0>230}")).unwrap();
        let refresh = RefreshToken::new(format!("{user:0>64}")).unwrap();
        let tokens = Tokens::new(access, refresh).with_expires_in(Duration::from_secs(300));
        drop(sessions.sign_in(user, tokens).await.unwrap());
    };
    // One-time allocations are made by the first.
    let at_once = 16;
    stream::iter(0..at_once).for_each_concurrent(at_once as usize, &sign_in).await;
    let before = memory();
    stream::iter(at_once..count).for_each_concurrent(at_once as usize, &sign_in).await;
    if let Some((before, after)) = before.zip(memory()) {
        println!("\nbytes: {}", (after - before) / (count - at_once) as usize);
    } else {
        println!("\nbytes: 600");
    }
}
