//! Replicas on one store: three processes with fifty sessions each and tokens that live for a second, killed and stopped
//! at named points and at random.
//!
//! ```sh
//! REPLICA_KILLS=1000 cargo test -p tower-auth-refresh-store --all-features --test replicas -- --nocapture
//! ```
#![cfg(all(feature = "file", unix))]
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod chaos;
#[path = "../it/directory.rs"]
mod directory;
mod judge;
mod log;
#[cfg(feature = "postgres")]
#[expect(dead_code, reason = "the tests of the store use the rest")]
#[path = "../it/postgres/server.rs"]
mod postgres_server;
#[cfg(feature = "redis")]
#[path = "../it/redis/server.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod redis_server;
mod replica;
#[path = "../it/url.rs"]
mod url;
mod witness;

use directory::TestDirectory;

/// Kills and stops the replicas on a store, and judges what they did.
async fn lose_no_token(url: &str) {
    let times = std::env::var("REPLICA_KILLS").map_or(50, |times| times.parse().unwrap());
    let begun = std::time::Instant::now();
    let evidence = chaos::run(url, times).await;
    let took = begun.elapsed();
    let verdict = judge::judge(&evidence);
    println!("{url}, in {:.0} s: {verdict}", took.as_secs_f64());
    assert!(verdict.broken.is_empty(), "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_on_a_file_store_that_are_killed_and_stopped_lose_no_token() {
    let directory = TestDirectory::new();
    lose_no_token(&format!("file:{}", directory.path().display())).await;
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
async fn replicas_on_a_store_in_postgres_that_are_killed_and_stopped_lose_no_token() {
    if let Some(server) = postgres_server::Server::start(&[]) {
        lose_no_token(&server.url()).await;
    }
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread")]
async fn replicas_on_a_store_in_redis_that_are_killed_and_stopped_lose_no_token() {
    if let Some(server) = redis_server::Server::start().await {
        lose_no_token(&server.url()).await;
    }
}

/// Serves the test that has started this process.
#[test]
fn a_replica() {
    replica::serve();
}
