//! Records whose end has passed.

use std::fs;
use std::time::{Duration, SystemTime};

use tower_auth_refresh::store::{ClaimOutcome, Presented, TokenStore};
use tower_auth_refresh_store::{FileStore, StoreErrorKind};

use crate::support::{LEASE, TestDirectory, claimed, entry};

fn ended() -> SystemTime {
    SystemTime::now() - Duration::from_secs(1)
}

#[tokio::test]
async fn records_are_deleted_after_their_end_and_no_sooner() {
    let directory = TestDirectory::new();
    let files = FileStore::open(directory.path()).unwrap();
    let ends = [Some(ended()), Some(SystemTime::now() + LEASE), None];
    for (user, end) in ends.into_iter().enumerate() {
        let entry = end.map_or(entry(1), |end| entry(1).with_expires_at(end));
        files.store([u8::try_from(user).unwrap()]).replace(&entry).await.unwrap();
    }
    // Of another program, and no session's.
    let other = FileStore::builder(directory.path()).namespace("other").open().unwrap();
    other.store("ada").replace(&entry(1).with_expires_at(ended())).await.unwrap();
    fs::write(directory.path().join("notes.record"), "mine").unwrap();
    assert!(files.store([0]).load().await.unwrap().is_some(), "read until it is deleted");

    assert_eq!(files.delete_expired().await.unwrap(), 2);
    assert_eq!(files.delete_expired().await.unwrap(), 0);
    assert_eq!(files.store([0]).load().await.unwrap(), None);
    for user in [1, 2] {
        assert!(files.store([user]).load().await.unwrap().is_some());
    }
    assert_eq!(directory.files(".record").len(), 3);
    assert_eq!(directory.files(".lock").len(), 4, "a lock is never removed");
}

#[tokio::test]
async fn a_record_that_is_being_refreshed_is_left() {
    let directory = TestDirectory::new();
    let files = FileStore::open(directory.path()).unwrap();
    let store = files.store("ada");
    let version = store.replace(&entry(1).with_expires_at(ended())).await.unwrap();
    let claim = claimed(&*store, &version).await;
    assert_eq!(files.delete_expired().await.unwrap(), 0);
    let found = files.store("ada").claim(&version, LEASE).await.unwrap();
    assert!(matches!(found, ClaimOutcome::Busy { .. }), "{found:?}");
    store.release(&claim, Presented::InDoubt).await.unwrap();
    assert_eq!(files.delete_expired().await.unwrap(), 1);
    assert!(directory.files(".claim").is_empty());
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_left_and_the_others_are_deleted() {
    let directory = TestDirectory::new();
    let files = FileStore::open(directory.path()).unwrap();
    let ended = entry(1).with_expires_at(ended());
    files.store("ada").replace(&ended).await.unwrap();
    let damaged = directory.file(".record");
    fs::write(&damaged, fs::read(&damaged).unwrap().split_last().unwrap().1).unwrap();
    files.store("bob").replace(&ended).await.unwrap();
    assert_eq!(files.delete_expired().await.unwrap(), 1);
    assert_eq!(directory.files(".record"), [damaged]);
}

#[tokio::test]
async fn a_lock_that_is_held_is_an_error_after_the_others_are_deleted() {
    let directory = TestDirectory::new();
    let files = FileStore::open(directory.path()).unwrap();
    let ended = entry(1).with_expires_at(ended());
    files.store("ada").replace(&ended).await.unwrap();
    let lock = fs::File::open(directory.file(".lock")).unwrap();
    lock.lock().unwrap();
    files.store("bob").replace(&ended).await.unwrap();
    let error = files.delete_expired().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert_eq!(directory.files(".record").len(), 1);
    drop(lock);
    assert_eq!(files.delete_expired().await.unwrap(), 1);
}
