//! The statement that reads is prepared on a direct connection, and on no other.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::BoxError;
use tower_auth_refresh::store::{Record, TokenStore};
use tower_auth_refresh_store::PostgresStores;

use super::pooler::Pooler;
use super::server::{PASSWORD, Server, url_at};
use crate::proxy::Proxy;
use crate::support::entry;

const LOGGED: &str = "log_statement=all";

/// Returns a store whose calls all share one connection, with a record of generation 1.
async fn stored(url: String) -> Arc<dyn TokenStore> {
    let stores = PostgresStores::builder(url).connections(NonZeroUsize::MIN).connect().await.unwrap();
    stores.migrate().await.unwrap();
    let store = stores.store("ada");
    store.replace(&entry(1)).await.unwrap();
    store
}

async fn read(store: &Arc<dyn TokenStore>, times: usize) {
    for _ in 0..times {
        assert_eq!(store.load().await.unwrap().unwrap().generation(), 1);
    }
}

/// Returns the numbers of reads that the server has executed so far: prepared ones, and others.
fn reads(server: &Server) -> (usize, usize) {
    let log = server.log();
    let executed = |name: &str| {
        let is_read =
            |line: &&str| line.contains(&format!("execute {name}")) && line.contains("pg_is_in_recovery(), clock");
        log.lines().filter(is_read).count()
    };
    (executed("s"), executed("<unnamed>"))
}

/// Reads until a read is prepared: that is done aside.
async fn until_prepared(store: &Arc<dyn TokenStore>, server: &Server) {
    let (begun, (before, _)) = (Instant::now(), reads(server));
    while reads(server).0 == before {
        read(store, 1).await;
        assert!(begun.elapsed() < Duration::from_secs(30), "no read is prepared");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_prepared_on_a_direct_connection_and_behind_a_proxy_or_a_pooler_it_is_not() {
    let Some(server) = Server::start(&[LOGGED]) else { return };
    let Some(pooler) = Pooler::start(&server).await else { return };
    let proxy = Proxy::start(server.port()).await;
    read(&stored(url_at(proxy.port())).await, 5).await;
    read(&stored(url_at(pooler.port())).await, 5).await;
    assert_eq!(reads(&server), (0, 10));
    let log = server.log();
    assert!(!log.contains("plan_cache_mode") && !log.contains("execute s"), "a setting or a statement is left behind");
    let store = stored(server.url()).await;
    until_prepared(&store, &server).await;
    let (prepared, others) = reads(&server);
    read(&store, 5).await;
    assert_eq!(reads(&server), (prepared + 5, others));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_socket_of_the_file_system_a_read_is_not_prepared() {
    // Relative to the directory of its data.
    let Some(server) = Server::start(&[LOGGED, "unix_socket_directories=."]) else { return };
    let directory = server.data();
    let url = format!("postgres://postgres:{PASSWORD}@/postgres?host={}&port={}", directory.display(), server.port());
    read(&stored(url).await, 5).await;
    assert_eq!(reads(&server), (0, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_read_that_the_server_refuses_is_sent_unprepared_from_then_on() {
    let Some(server) = Server::start(&[LOGGED]) else { return };
    let store = stored(server.url()).await;
    until_prepared(&store, &server).await;
    let (prepared, others) = reads(&server);
    // The server plans anew, without a word.
    server.sql("ALTER TABLE tower_auth_refresh ADD COLUMN note text; ANALYZE tower_auth_refresh");
    read(&store, 1).await;
    server.sql(
        "BEGIN; ALTER TABLE tower_auth_refresh RENAME TO old; CREATE TABLE tower_auth_refresh (LIKE old INCLUDING ALL);
        INSERT INTO tower_auth_refresh SELECT * FROM old; DROP TABLE old; COMMIT",
    );
    read(&store, 1).await;
    assert_eq!(reads(&server), (prepared + 2, others));
    // "cached plan must not change result type"
    server.sql("ALTER TABLE tower_auth_refresh ALTER expires_at TYPE timestamptz(3)");
    read(&store, 3).await;
    assert_eq!(reads(&server), (prepared + 2, others + 3));
    assert_eq!(server.log().matches("cached plan").count(), 1, "it is tried once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_prepared_once_there_is_a_table() {
    let Some(server) = Server::start(&[LOGGED]) else { return };
    let stores = PostgresStores::builder(server.url()).connections(NonZeroUsize::MIN).connect().await.unwrap();
    let store = stores.store("ada");
    for _ in 0..2 {
        let error = store.load().await.unwrap_err();
        assert!(error.to_string().contains("42P01"), "{error}");
    }
    stores.migrate().await.unwrap();
    store.replace(&entry(1)).await.unwrap();
    until_prepared(&store, &server).await;
}

/// Calls a function with each process that waits for a lock, once there is one.
fn once_waiting(server: &Server, function: &str) {
    let call = format!("SELECT {function}(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'");
    let begun = Instant::now();
    while server.sql(&call).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "no statement waits for a lock");
    }
}

fn spawn_load(store: &Arc<dyn TokenStore>) -> JoinHandle<Result<Option<Record>, BoxError>> {
    let store = Arc::clone(store);
    tokio::spawn(async move { store.load().await })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preparation_that_is_cancelled_fails_no_read_and_is_made_again() {
    let Some(server) = Server::start(&[LOGGED]) else { return };
    let store = stored(server.url()).await;
    let lock = server.begin("LOCK TABLE tower_auth_refresh IN ACCESS EXCLUSIVE MODE");
    // The first read waits for the lock, and the preparation behind it, or the other way round.
    let first = spawn_load(&store);
    once_waiting(&server, "pg_cancel_backend");
    let second = spawn_load(&store);
    once_waiting(&server, "pg_cancel_backend");
    drop(lock);
    assert!(second.await.unwrap().unwrap().is_some());
    if let Err(error) = first.await.unwrap() {
        assert!(error.to_string().contains("57014"), "{error}");
    }
    until_prepared(&store, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_during_a_preparation_is_followed_by_one_that_prepares_its_own() {
    let Some(server) = Server::start(&[LOGGED]) else { return };
    let store = stored(server.url()).await;
    let lock = server.begin("LOCK TABLE tower_auth_refresh IN ACCESS EXCLUSIVE MODE");
    let read = spawn_load(&store);
    once_waiting(&server, "pg_terminate_backend");
    drop(lock);
    assert!(read.await.unwrap().unwrap().is_some());
    until_prepared(&store, &server).await;
}

/// A plan that is made while the table has one page, and is kept when it has thousands.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_read_finds_its_row_by_the_index_however_small_the_table_is() {
    let plans = ["session_preload_libraries=auto_explain", "auto_explain.log_min_duration=0"];
    let Some(server) = Server::start(&[LOGGED, plans[0], plans[1]]) else { return };
    let store = stored(server.url()).await;
    until_prepared(&store, &server).await;
    server.sql("ANALYZE tower_auth_refresh");
    let (prepared, others, logged) = (reads(&server).0, reads(&server).1, server.log().len());
    read(&store, 5).await;
    assert_eq!(reads(&server), (prepared + 5, others));
    let log = server.log().split_off(logged);
    assert_eq!((log.matches("Index Scan using").count(), log.matches("Seq Scan").count()), (5, 0), "{log}");
}
