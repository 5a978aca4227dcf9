//! The statement that reads is prepared on a direct connection, and on no other.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tower_auth_refresh::store::TokenStore;
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

/// While one waits for a lock, and another one for the server to go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_preparation_that_is_cancelled_or_cut_off_fails_no_read() {
    let Some(server) = Server::start(&[LOGGED]) else { return };
    let store = stored(server.url()).await;
    for end in ["pg_cancel_backend", "pg_terminate_backend"] {
        let lock = server.begin("LOCK TABLE tower_auth_refresh IN ACCESS EXCLUSIVE MODE");
        let first = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.load().await }
        });
        let waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        let begun = Instant::now();
        let process = loop {
            let process = server.sql(waiting);
            if !process.is_empty() {
                break process;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "no statement waits for the lock");
        };
        server.sql(&format!("SELECT {end}({process})"));
        drop(lock);
        first.await.unwrap().map_or_else(|error| assert!(error.to_string().contains("57014"), "{error}"), drop);
        until_prepared(&store, &server).await;
        // The next one has a connection that has prepared nothing.
        server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tower-auth-refresh'",
        );
    }
}

/// A plan that is made while the table has one page, and is kept when it has thousands.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_finds_its_row_by_the_index_however_small_the_table_is() {
    let Some(server) = Server::start(&[LOGGED]) else { return };
    let store = stored(server.url()).await;
    until_prepared(&store, &server).await;
    // Known to be small from now on: a read that isn't prepared scans it whole.
    server.sql("ANALYZE tower_auth_refresh");
    // That of the migration reports its scans at its end.
    let processes = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tower-auth-refresh'";
    while server.sql(processes) != "1" {
        sleep(Duration::from_millis(10)).await;
    }
    let scans =
        || server.sql("SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'tower_auth_refresh'");
    let before = scans();
    let (before, _) = before.split_once('|').unwrap();
    // A server process reports its scans once a second, at the end of a statement.
    let begun = Instant::now();
    let found = loop {
        read(&store, 10).await;
        let scans = scans();
        let (by_table, by_index) = scans.split_once('|').unwrap();
        if by_table != before || by_index.parse::<usize>().unwrap() >= 10 {
            break by_table.to_owned();
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "no scan is reported: {scans}");
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(found, before);
}
