//! Stores that push changes: sessions that are told of them by their store, and look again.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tower_auth_refresh::store::{Entry, Epoch, MemoryStore, TokenStore};
use tower_auth_refresh::{Session, SessionRegistry, SessionState};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, FaultyStore, StoreFault};

use crate::support::*;

/// The default bound of a recheck.
const RECHECK: Duration = Duration::from_secs(5);

/// The only user's key.
const USER: u32 = 1;

fn pushing_store() -> FaultyStore {
    FaultyStore::new(MemoryStore::new()).yielding().durable().pushing()
}

fn registry(store: &FaultyStore) -> SessionRegistry<u32> {
    let (service, _) = script::<_, _, tower_auth_refresh::RefreshError>();
    let row = store.clone();
    SessionRegistry::builder(Session::builder(service))
        .store_factory(move |_: &u32| Arc::new(row.clone()))
        .build()
        .unwrap()
}

/// Two replicas on one store, with the user signed in and in the memory of both.
async fn fleet() -> ([SessionRegistry<u32>; 2], FaultyStore) {
    let store = pushing_store();
    let replicas = [registry(&store), registry(&store)];
    replicas[0].sign_in(USER, pair(1)).await.unwrap();
    assert!(get(&replicas[1]).await.is_some());
    settle().await;
    (replicas, store)
}

async fn get(sessions: &SessionRegistry<u32>) -> Option<Session> {
    sessions.get(&USER).await.unwrap()
}

async fn single_session(store: &FaultyStore) -> Session {
    let (service, _) = script::<_, _, tower_auth_refresh::RefreshError>();
    Session::builder(service).store(store.clone()).build().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_on_another_replica_reaches_the_handles_in_no_time() {
    let ([a, b], store) = fleet().await;
    let session = get(&b).await.unwrap();
    let mut changes = session.subscribe();
    store.clear_calls();
    let start = Instant::now();
    a.sign_out(&USER).await.unwrap();
    changes.changed().await.unwrap();
    assert_eq!((session.state(), start.elapsed()), (SessionState::SignedOut, Duration::ZERO));
    drop((session, changes));
    assert!(get(&b).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_on_another_replica_is_in_force_within_the_bound_while_the_push_is_cut() {
    for pause in [100, 1_000, 2_400, 2_600, 4_900] {
        let ([a, b], store) = fleet().await;
        let start = Instant::now();
        store.cut_push();
        a.sign_out(&USER).await.unwrap();
        while get(&b).await.is_some() {
            assert!(start.elapsed() < RECHECK, "{pause}");
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_that_was_missed_is_in_force_at_the_first_use_after_the_push_is_up_again() {
    let ([a, b], store) = fleet().await;
    store.cut_push();
    a.sign_out(&USER).await.unwrap();
    settle().await;
    assert!(get(&b).await.is_some(), "no message, and the last look was a moment ago");
    store.clear_calls();
    store.restore_push();
    settle().await;
    assert_eq!(store.calls(), [], "nothing is read until the session is used");
    assert!(get(&b).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_on_another_replica_is_adopted_in_no_time() {
    let ([a, b], _) = fleet().await;
    let session = get(&b).await.unwrap();
    a.sign_in(USER, pair(7)).await.unwrap();
    settle().await;
    assert_eq!(session.tokens(), pair(7));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_told_of_its_own_sign_in_and_sign_out_goes_on_as_before() {
    let store = pushing_store();
    let sessions = registry(&store);
    let session = sessions.sign_in(USER, pair(1)).await.unwrap();
    settle().await;
    assert_eq!((session.tokens(), session.generation().get()), (pair(1), 1));
    session.sign_out().await.unwrap();
    session.sign_in(pair(2)).await.unwrap();
    settle().await;
    assert_eq!((session.tokens(), session.generation().get()), (pair(2), 2));
}

#[tokio::test(start_paused = true)]
async fn a_change_while_the_session_is_loaded_is_not_missed() {
    let store = pushing_store();
    store.replace(&Entry::new(Epoch::random(), 1, pair(1))).await.unwrap();
    let sessions = registry(&store);
    // The answer is under way when the record is deleted.
    let slow = store.clone();
    slow.inject(StoreCall::Load, StoreFault::delay(Duration::from_secs(1)).after_effect().times(1));
    let loading = tokio::spawn(async move { get(&sessions).await.map(|found| (sessions, found)) });
    settle().await;
    let record = store.snapshot().await.unwrap();
    store.clear(record.version()).await.unwrap();
    let (sessions, stale) = loading.await.unwrap().unwrap();
    drop(stale);
    assert!(get(&sessions).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_missed_during_a_look_is_in_force_at_the_next_use() {
    let ([_, b], store) = fleet().await;
    // The answer is under way when the record is deleted.
    store.inject(StoreCall::Load, StoreFault::delay(Duration::from_secs(1)).after_effect().times(1));
    b.changed(&USER);
    settle().await;
    store.cut_push();
    store.clear(store.snapshot().await.unwrap().version()).await.unwrap();
    store.restore_push();
    tokio::time::sleep(Duration::from_secs(1)).await;
    settle().await;
    assert!(get(&b).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_session_in_no_registry_looks_at_once_whether_it_is_told_or_may_have_missed_something() {
    for is_missed in [false, true] {
        let store = pushing_store();
        store.replace(&Entry::new(Epoch::random(), 1, pair(1))).await.unwrap();
        let session = single_session(&store).await;
        if is_missed {
            store.cut_push();
        }
        store.clear(store.snapshot().await.unwrap().version()).await.unwrap();
        if is_missed {
            settle().await;
            assert_eq!(session.state(), SessionState::Active);
            store.restore_push();
        }
        settle().await;
        assert_eq!(session.state(), SessionState::SignedOut);
    }
}

#[test]
fn a_report_outside_of_any_runtime_panics_neither_before_nor_after_the_session_and_its_runtime_are_gone() {
    let store = FaultyStore::new(MemoryStore::new()).durable().pushing();
    let report = || {
        let store = store.clone();
        let report = thread::spawn(move || {
            store.restore_push();
            store.clear(&0_u64.into()).now_or_never().unwrap().unwrap();
        });
        report.join().unwrap();
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (sessions, session) = runtime.block_on(async {
        let sessions = registry(&store);
        sessions.sign_in(USER, pair(1)).await.unwrap();
        (sessions, single_session(&store).await)
    });
    report();
    drop(runtime);
    report();
    drop((sessions, session));
    report();
}
