//! The space that sessions take in the database, and what their updates do to its indexes.

use tokio::task::JoinSet;
use tower_auth_refresh::store::{CommitOutcome, Entry, Epoch};
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
