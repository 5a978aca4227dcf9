//! Loads of one moment, which share a call.

use futures_util::future::join_all;
#[cfg(feature = "redis")]
use tower_auth_refresh_store::{StoreError, StoreErrorKind};

use crate::peer::file_url;
use crate::support::{TestDirectory, entry};
use crate::url::open;

/// More than share one call.
const USERS: u64 = 300;

/// Asserts that each load finds the record of its own session, of which others have none, and some are loaded twice.
async fn each_finds_its_own(url: &str) {
    let store = open(url).await;
    let key = |user: u64| format!("user-{user}");
    let is_signed_in = |user: u64| user.is_multiple_of(3);
    for user in (0..USERS).filter(|user| is_signed_in(*user)) {
        store(&key(user)).replace(&entry(user)).await.unwrap();
    }
    // In another order than that of the records.
    let users: Vec<_> = (0..USERS).rev().chain(0..USERS / 2).collect();
    let stores: Vec<_> = users.iter().map(|user| store(&key(*user))).collect();
    let found = join_all(stores.iter().map(|store| store.load())).await;
    for (user, found) in users.iter().zip(found) {
        let generation = found.unwrap().map(|record| record.generation());
        assert_eq!(generation, is_signed_in(*user).then_some(*user), "user {user}");
    }
    // A call that finds no record at all.
    let store = store("absent");
    assert!(join_all([store.load(), store.load()]).await.iter().all(|found| matches!(found, Ok(None))));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_load_of_one_moment_finds_its_own_record_in_files() {
    let directory = TestDirectory::new();
    each_finds_its_own(&file_url(&directory)).await;
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread")]
async fn each_load_of_one_moment_finds_its_own_record_in_redis() {
    let Some(server) = crate::redis::Server::start().await else { return };
    each_finds_its_own(&server.url()).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_load_that_redis_refuses_fails_no_other_of_its_moment() {
    let Some(server) = crate::redis::Server::start().await else { return };
    let store = open(&server.url()).await;
    let stores: Vec<_> = ["ada", "grace", "alan"].map(&store).into();
    stores[0].replace(&entry(1)).await.unwrap();
    let keys = server.command("KEYS tar:*").await;
    let name = keys.lines().nth(2).unwrap();
    server.command(&format!("DEL {name}")).await;
    server.command(&format!("RPUSH {name} of-another-program")).await;
    stores[2].replace(&entry(3)).await.unwrap();
    // Polled at once, so that they share a call.
    let found = join_all(stores.iter().map(|store| store.load())).await;
    let error = found[0].as_ref().unwrap_err().downcast_ref::<StoreError>().unwrap();
    assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
    assert!(matches!(&found[1], Ok(None)));
    assert!(matches!(&found[2], Ok(Some(record)) if record.generation() == 3));
}

#[cfg(all(feature = "postgres", unix))]
#[tokio::test(flavor = "multi_thread")]
async fn each_load_of_one_moment_finds_its_own_record_in_postgres() {
    let Some(url) = crate::postgres::new_url().await else { return };
    each_finds_its_own(&url).await;
}
