//! A server without space.

use std::sync::Arc;

use tower_auth_refresh::store::{ClaimOutcome, TokenStore};
use tower_auth_refresh::{AccessToken, RefreshToken, Session, Tokens};
use tower_auth_refresh_store::{PostgresStores, StoreError, StoreErrorKind};
use tower_auth_refresh_testkit::TestKit;

use super::server::Server;
use crate::support::{LEASE, entry};

/// The longest file of the server, as a full disk: that of its log of writes, and too little for its table.
const LIMIT_KIB: u64 = 1024;

/// Fills the table, and the one for long values, until there is no room even for a short one.
fn fill(server: &Server) {
    for length in [5000, 1500, 100] {
        for rows in [20, 1] {
            let fill = format!(
                "INSERT INTO tower_auth_refresh (key, version, record)
                SELECT decode(md5(random()::text), 'hex'), '', convert_to(repeat('x', {length}), 'UTF8')
                FROM generate_series(1, {rows})"
            );
            let error = std::iter::repeat_with(|| server.try_sql(&fill)).find_map(Result::err).unwrap();
            assert!(error.contains("could not extend file"), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_a_claim_fails_before_the_token_is_presented() {
    let Some(server) = Server::start_with_limit(LIMIT_KIB) else { return };
    let stores = PostgresStores::connect(server.url()).await.unwrap();
    stores.migrate().await.unwrap();
    // No page keeps room for updates, and long values are long in the file as well.
    server.sql("ALTER TABLE tower_auth_refresh SET (fillfactor = 100), ALTER record SET STORAGE EXTERNAL");
    let kit = TestKit::new();
    let mut sessions = Vec::new();
    // Some with tokens that the server keeps apart from the row.
    for (user, length) in (0..20).map(|user| (format!("user {user}"), if user % 2 == 0 { 100 } else { 6000 })) {
        let store = stores.store(&user);
        let pair = kit.sign_in(&user);
        let random: String = (0..length).map(|_| fastrand::alphanumeric()).collect();
        let members = serde_json::json!({"id_token": random}).as_object().unwrap().clone();
        let tokens: Tokens = pair.try_into().unwrap();
        let session = Session::builder(kit.refresh_service()).tokens(tokens.with_extra(members)).store(store);
        sessions.push(session.build().await.unwrap());
    }
    fill(&server);
    let (mut refreshed, mut failed) = (0, 0);
    for session in &sessions {
        match session.refresh().await {
            Ok(_) => refreshed += 1,
            Err(error) => {
                failed += 1;
                assert!(session.tokens().refresh_token().is_some(), "{error:?}");
            }
        }
    }
    println!("on a full disk {refreshed} sessions were refreshed and {failed} weren't");
    assert!(failed > 0);
    assert_eq!(kit.counters().refreshes, refreshed, "a claim that failed has presented its token");

    server.sql("DELETE FROM tower_auth_refresh WHERE version = ''");
    server.sql("VACUUM tower_auth_refresh");
    for session in &sessions {
        session.refresh().await.unwrap();
    }
    assert_eq!(kit.violations(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_takes_as_much_space_as_the_commit_will() {
    let Some(server) = Server::start_with_limit(LIMIT_KIB) else { return };
    let stores = PostgresStores::connect(server.url()).await.unwrap();
    stores.migrate().await.unwrap();
    // Kept apart from the row: a claim that wrote the row alone would not notice that there is no room for this.
    let random: String = (0..6000).map(|_| fastrand::alphanumeric()).collect();
    let tokens = Tokens::new(AccessToken::new(random).unwrap(), RefreshToken::new("r1").unwrap());
    let long = tower_auth_refresh::store::Entry::new(entry(1).epoch(), 1, tokens);
    let mut last: Option<(Arc<dyn TokenStore>, _)> = None;
    let full = loop {
        let store = stores.store(fastrand::u64(..).to_be_bytes());
        match store.replace(&long).await {
            Ok(version) => last = Some((store, version)),
            Err(error) => break error,
        }
    };
    let is_full = |error: tower::BoxError| {
        let error = error.downcast::<StoreError>().unwrap();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("could not extend file"), "{error}");
    };
    is_full(full);
    let (store, version) = last.unwrap();
    is_full(store.claim(&version, LEASE).await.unwrap_err());
    // Nothing has been claimed.
    let version_number = version.to_u128().unwrap();
    server.sql(&format!("DELETE FROM tower_auth_refresh WHERE version <> '\\x{version_number:032x}'"));
    server.sql("VACUUM tower_auth_refresh");
    assert!(
        matches!(store.claim(&version, LEASE).await.unwrap(), ClaimOutcome::Claimed(claim) if !claim.is_in_doubt())
    );
}
