//! The space that sessions take in the database, and what their updates do to its indexes.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tower_auth_refresh::store::{CommitOutcome, Entry, Epoch, TokenStore};
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

/// Makes a call on each session's store, with new tokens, some at the same time.
async fn for_each<F: Future<Output = ()>>(
    stores: &PostgresStores,
    access: usize,
    call: impl Fn(Arc<dyn TokenStore>, Entry) -> F,
) {
    let calls = stream::iter(0..SESSIONS);
    calls.for_each_concurrent(16, |user| call(stores.store(user.to_string()), tokens(access))).await;
}

async fn refresh(store: Arc<dyn TokenStore>, entry: Entry) {
    let record = store.load().await.unwrap().unwrap();
    let claim = claimed(&*store, record.version()).await;
    let CommitOutcome::Stored(_) = store.commit(&claim, &entry).await.unwrap() else {
        panic!("no other process writes");
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_takes_little_more_space_than_its_tokens_and_a_refresh_changes_no_index() {
    for (access, most) in [(100, 1024), (800, 2560), (1500, 5120)] {
        let Some(server) = Server::start(&["autovacuum=off"]) else { return };
        let stores = PostgresStores::connect(server.url()).await.unwrap();
        stores.migrate().await.unwrap();
        let bytes = || {
            let sql = "SELECT pg_total_relation_size('tower_auth_refresh')";
            server.sql(sql).parse::<usize>().unwrap() / SESSIONS
        };
        for_each(&stores, access, |store, entry| async move { drop(store.replace(&entry).await.unwrap()) }).await;
        let first = bytes();
        for _ in 0..REFRESHES {
            for_each(&stores, access, refresh).await;
            // In place of autovacuum, which may fall behind on a busy machine, and whose snapshot would keep dead rows.
            server.sql("VACUUM tower_auth_refresh");
        }
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
