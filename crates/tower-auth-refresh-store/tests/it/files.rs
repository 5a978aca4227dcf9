//! The files as such: locks, names, unfinished files, and the runtime that the store is called on.

use std::fs;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tower_auth_refresh::store::{ClaimOutcome, CommitOutcome, Entry, Epoch, TokenStore};
use tower_auth_refresh::{AccessToken, RefreshToken, Session, Tokens};
use tower_auth_refresh_store::{FileStore, StoreErrorKind};
use tower_auth_refresh_testkit::TestKit;

use crate::kind;
use crate::peer::{Peer, file_url};
use crate::support::{LEASE, TestDirectory, claimed, entry};

#[test]
fn a_store_outlives_the_process_so_that_its_sessions_can_be_evicted() {
    let directory = TestDirectory::new();
    assert!(FileStore::open_single(directory.path()).unwrap().is_durable());
}

#[tokio::test]
async fn a_record_of_almost_a_mebibyte_can_be_refreshed() {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    let long = |byte: &str| Tokens::new(AccessToken::new(byte.repeat(1_048_000)).unwrap(), token("r"));
    let version = store.replace(&Entry::new(Epoch::from(7), 1, long("a"))).await.unwrap();
    let claim = claimed(&*store, &version).await;
    // With the space for the next record, the claim is longer than a record can be.
    assert!(store.renew(&claim, LEASE).await.unwrap());
    let next = Entry::new(Epoch::from(7), 2, long("b"));
    assert!(matches!(store.commit(&claim, &next).await.unwrap(), CommitOutcome::Stored(_)));
    assert_eq!(*store.load().await.unwrap().unwrap().entry(), next);
}

fn token(text: &str) -> RefreshToken {
    RefreshToken::new(text).unwrap()
}

#[tokio::test]
async fn a_call_that_finds_the_lock_taken_fails_in_time_and_a_read_succeeds() {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    let version = store.replace(&entry(1)).await.unwrap();
    let lock = directory.file(".lock");
    let held = fs::File::open(&lock).unwrap();
    held.lock().unwrap();
    let begun = Instant::now();
    let second = entry(2);
    let outcomes = tokio::join!(store.replace(&second), store.load(), store.claim(&version, LEASE));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(kind(outcomes.0, &lock), StoreErrorKind::Unavailable);
    assert_eq!(outcomes.1.unwrap().unwrap().generation(), 1);
    outcomes.2.unwrap_err();
    drop(held);
    // What was given up is not made later.
    assert_eq!(store.load().await.unwrap().unwrap().version(), &version);
    claimed(&*store, &version).await;
}

#[tokio::test]
async fn a_claim_that_is_granted_after_its_call_was_dropped_is_given_back() {
    let directory = TestDirectory::new();
    let [store, peer] = [(); 2].map(|()| FileStore::open_single(directory.path()).unwrap());
    let version = store.replace(&entry(1)).await.unwrap();
    let lock = fs::File::open(directory.file(".lock")).unwrap();
    lock.lock().unwrap();
    let mut call = store.claim(&version, LEASE);
    assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(call);
    drop(lock);
    // The handle makes one call at a time.
    store.load().await.unwrap();
    assert!(!claimed(&*peer, &version).await.is_in_doubt());
}

#[tokio::test]
async fn sessions_and_namespaces_have_files_of_their_own_and_no_key_is_a_path() {
    let directory = TestDirectory::new();
    let keys = ["", "ada", "da", "../ada", "/etc/passwd", "CON", "a\0b", "ADA"];
    let namespaces = ["", "a", "da"];
    let mut stores = Vec::new();
    for namespace in namespaces {
        let files = FileStore::builder(directory.path()).namespace(namespace).open().unwrap();
        stores.extend(keys.map(|key| files.store(key)));
    }
    for (generation, store) in stores.iter().enumerate() {
        assert_eq!(store.load().await.unwrap(), None);
        store.replace(&entry(generation as u64)).await.unwrap();
    }
    for (generation, store) in stores.iter().enumerate() {
        assert_eq!(store.load().await.unwrap().unwrap().generation(), generation as u64);
    }
    assert_eq!(directory.files(".record").len(), keys.len() * namespaces.len());
}

#[tokio::test]
async fn an_unfinished_file_of_a_dead_process_is_removed_and_that_of_a_live_one_is_not() {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    store.replace(&entry(1)).await.unwrap();
    let unfinished = directory.file(".record").with_extension("record.0123.tmp");
    fs::write(&unfinished, "refresh-token").unwrap();
    let lock = fs::File::open(directory.file(".lock")).unwrap();
    lock.lock().unwrap();
    FileStore::open(directory.path()).unwrap();
    assert!(unfinished.exists());
    drop(lock);
    let foreign = ["notes.2026.tmp", "notes.tmp", ".tmp"].map(|name| directory.path().join(name));
    for path in &foreign {
        fs::write(path, "").unwrap();
    }
    FileStore::open(directory.path()).unwrap();
    assert!(!unfinished.exists());
    assert!(foreign.iter().all(|path| path.exists()), "a store removes its own files only");
    assert_eq!(store.load().await.unwrap().unwrap().generation(), 1);
}

#[tokio::test]
async fn the_claim_of_a_process_that_is_killed_is_taken_over_at_once_in_doubt() {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    let version = store.replace(&entry(1)).await.unwrap();
    let peer = Peer::start(&file_url(&directory)).await;
    claimed(&peer, &version).await;
    let busy = store.claim(&version, LEASE).await.unwrap();
    assert!(matches!(busy, ClaimOutcome::Busy { retry_in } if retry_in > LEASE / 2), "{busy:?}");
    peer.kill();
    assert!(claimed(&*store, &version).await.is_in_doubt());
}

#[tokio::test]
async fn a_claim_reserves_the_space_of_the_next_record_and_a_renewal_no_more() {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    let version = store.replace(&entry(1)).await.unwrap();
    let length = |ending| fs::metadata(directory.file(ending)).unwrap().len();
    let claim = claimed(&*store, &version).await;
    assert_eq!(length(".claim"), length(".record") + 4096);
    assert!(store.renew(&claim, LEASE).await.unwrap());
    assert_eq!(length(".claim"), length(".record") + 4096);
}

#[test]
fn a_call_outside_of_a_runtime_is_an_error() {
    let directory = TestDirectory::new();
    let store = FileStore::open_single(directory.path()).unwrap();
    let outcome = store.load().as_mut().poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(outcome) = outcome else { panic!("it waits") };
    assert_eq!(kind(outcome, directory.path()), StoreErrorKind::Misconfigured);
}

#[tokio::test]
async fn a_session_goes_on_where_the_last_process_ended() {
    let kit = TestKit::new();
    let directory = TestDirectory::new();
    let build = async || {
        let store: Arc<dyn TokenStore> = FileStore::open_single(directory.path()).unwrap();
        Session::builder(kit.refresh_service()).store(store).build().await.unwrap()
    };
    build().await.sign_in(kit.sign_in("ada").try_into().unwrap()).await.unwrap();
    for _ in 0..3 {
        build().await.refresh().await.unwrap();
    }
    build().await.sign_out().await.unwrap();
    assert!(build().await.tokens().is_empty());
    assert_eq!((kit.counters().refreshes, kit.violations()), (3, vec![]));
    assert_eq!(directory.files("").len(), 1, "the lock alone is left");
}
