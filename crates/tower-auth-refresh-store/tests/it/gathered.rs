//! Loads of one moment, which share a call.

use futures_util::future::join_all;

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

#[cfg(all(feature = "postgres", unix))]
#[tokio::test(flavor = "multi_thread")]
async fn each_load_of_one_moment_finds_its_own_record_in_postgres() {
    let Some(url) = crate::postgres::new_url().await else { return };
    each_finds_its_own(&url).await;
}
