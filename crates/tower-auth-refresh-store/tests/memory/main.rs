//! A session with a durable store takes at most 1.25 KiB of its process's memory.
#![cfg(all(feature = "file", target_os = "linux"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

#[path = "../it/directory.rs"]
mod directory;
#[cfg(feature = "postgres")]
#[path = "../it/postgres/server.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod postgres_server;
#[cfg(feature = "redis")]
#[path = "../it/redis/server.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod redis_server;
#[path = "../it/url.rs"]
mod url;

use std::env;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tower_auth_refresh::store::{Entry, Epoch};
use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Session, SessionRegistry, Tokens};

use crate::directory::TestDirectory;

const SESSIONS: usize = 100_000;
const STORE: &str = "MEMORY_STORE";

#[test]
fn a_session_with_a_file_store_takes_little_memory() {
    let directory = TestDirectory::new();
    assert_little_memory(&format!("file:{}", directory.path().display()));
}

#[cfg(feature = "redis")]
#[test]
fn a_session_with_a_store_in_redis_takes_little_memory() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(server) = runtime.block_on(redis_server::Server::start()) {
        assert_little_memory(&server.url());
    }
}

#[cfg(feature = "postgres")]
#[test]
fn a_session_with_a_store_in_postgres_takes_little_memory() {
    if let Some(server) = postgres_server::Server::start(&[]) {
        assert_little_memory(&server.url());
    }
}

/// Measures the sessions of a store in a process of its own.
fn assert_little_memory(url: &str) {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "in_a_process_of_its_own", "--nocapture"])
        .env(STORE, url)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let grown: usize = text.lines().find_map(|line| line.strip_prefix("bytes: ")).unwrap().parse().unwrap();
    let each = grown / SESSIONS;
    println!("{each} bytes for each of {SESSIONS} sessions");
    assert!((700..=1280).contains(&each), "{each} bytes");
}

/// The table, the sessions, the stores' handles, the tokens, and the allocator's rounding and unused memory.
#[test]
fn in_a_process_of_its_own() {
    let Ok(url) = env::var(STORE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stores = Arc::new(url::open(&url).await);
        // The lengths of a small JWT and of an opaque refresh token.
        let access = AccessToken::new("a".repeat(230)).unwrap();
        let tokens = Tokens::new(access, RefreshToken::new("r".repeat(64)).unwrap());
        let tokens = tokens.with_expires_in(Duration::from_secs(3600));
        stores("ada").replace(&Entry::new(Epoch::random(), 1, tokens)).await.unwrap();

        let refresh = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
        let sessions = SessionRegistry::builder(Session::builder(refresh))
            .max_sessions(SESSIONS)
            // Each session has a handle and tokens of its own. That they are read from one record makes no difference.
            .store_factory(move |_: &u128| stores("ada"))
            .build()
            .unwrap();
        let read = async |user: usize| assert!(sessions.get(&(user as u128)).await.unwrap().is_some());
        // One-time allocations are made by the first sessions.
        for user in 0..100 {
            read(user).await;
        }
        let before = memory();
        for user in 100..SESSIONS {
            read(user).await;
        }
        println!("\nbytes: {}", memory() - before);
    });
}

/// Returns the memory of this process, in bytes.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}
