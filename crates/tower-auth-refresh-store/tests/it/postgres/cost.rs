//! The space that sessions take in the database, and what their updates do to its indexes.

use std::sync::Arc;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use tower_auth_refresh::store::{CommitOutcome, Entry, Epoch, TokenStore, Version};
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};
use tower_auth_refresh_store::PostgresStores;

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

/// Makes a call on each session's store, with its version and new tokens, some at the same time. Returns the versions that
/// the calls have written.
async fn for_each<F: Future<Output = Version>>(
    stores: &PostgresStores,
    access: usize,
    versions: Vec<Option<Version>>,
    call: impl Fn(Arc<dyn TokenStore>, Option<Version>, Entry) -> F,
) -> Vec<Option<Version>> {
    let calls = stream::iter(versions.into_iter().enumerate());
    let calls = calls.map(|(user, version)| call(stores.store(user.to_string()), version, tokens(access)));
    calls.buffered(16).map(Some).collect().await
}

async fn sign_in(store: Arc<dyn TokenStore>, _: Option<Version>, entry: Entry) -> Version {
    store.replace(&entry).await.unwrap()
}

async fn refresh(store: Arc<dyn TokenStore>, version: Option<Version>, entry: Entry) -> Version {
    let claim = claimed(&*store, &version.unwrap()).await;
    let CommitOutcome::Stored(version) = store.commit(&claim, &entry).await.unwrap() else {
        panic!("no other process writes");
    };
    version
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_takes_little_more_space_than_its_tokens_and_a_refresh_changes_no_index() {
    let sizes = [(100, 1024), (800, 2560), (1500, 5120)];
    join_all(sizes.map(|(access, most)| measure(access, most))).await;
}

/// Asserts that sessions with access tokens of this length take at most so many bytes each.
async fn measure(access: usize, most: usize) {
    // The space doesn't depend on whether writes reach the disk.
    let Some(server) = Server::start(&["autovacuum=off", "fsync=off"]) else { return };
    let stores = PostgresStores::connect(server.url()).await.unwrap();
    stores.migrate().await.unwrap();
    let bytes = || {
        let sql = "SELECT pg_total_relation_size('tower_auth_refresh')";
        server.sql(sql).parse::<usize>().unwrap() / SESSIONS
    };
    let mut versions = for_each(&stores, access, vec![None; SESSIONS], sign_in).await;
    let first = bytes();
    for _ in 0..REFRESHES {
        versions = for_each(&stores, access, versions, refresh).await;
        // In place of autovacuum, which may fall behind on a busy machine, and whose snapshot would keep dead rows.
        server.sql("VACUUM tower_auth_refresh");
    }
    // Their counts are published when they end.
    drop(stores);
    server.sql("VACUUM ANALYZE tower_auth_refresh");
    let updates = server
        .sql("SELECT 100 * n_tup_hot_upd / n_tup_upd FROM pg_stat_user_tables WHERE relname = 'tower_auth_refresh'");
    let length = server.sql("SELECT avg(length(record))::int FROM tower_auth_refresh");
    println!("records of {length} bytes take {first}, after refreshes {}; {updates} % of updates are HOT", bytes());
    assert!(bytes() <= most, "{} bytes", bytes());
    assert!(updates.parse::<u32>().unwrap() >= 80, "{updates} % of updates are HOT");
}
