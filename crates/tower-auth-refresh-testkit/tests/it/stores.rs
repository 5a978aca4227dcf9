//! The conformance suite on `MemoryStore`, `FaultyStore`, and sessions on a store that fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, Epoch, MemoryStore, Presented, Record, TokenStore, Version,
};
use tower_auth_refresh::{NotRefreshed, RefreshErrorKind, Session, Tokens};
use tower_auth_refresh_testkit::conformance::{self, Call, FaultyStore, Handles, StoreFault};
use tower_auth_refresh_testkit::{Fault, Route, TestKit};

fn entry(generation: u64) -> Entry {
    Entry::new(Epoch::from(1), generation, Tokens::default())
}

async fn memory() -> Handles {
    let store: Arc<dyn TokenStore> = Arc::new(MemoryStore::new());
    [store.clone(), store]
}

#[tokio::test(start_paused = true)]
async fn a_memory_store_conforms_on_paused_time() {
    conformance::stores(Duration::from_secs(10), memory).await;
}

#[tokio::test(start_paused = true)]
async fn sessions_on_a_memory_store_conform_on_paused_time() {
    conformance::sessions(Duration::from_secs(10), memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_store_conforms_on_real_time_and_threads() {
    conformance::stores(Duration::from_millis(400), memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_on_a_memory_store_conform_on_real_time_and_threads() {
    conformance::sessions(Duration::from_millis(400), memory).await;
}

#[tokio::test(start_paused = true)]
async fn a_faulty_store_without_faults_conforms() {
    let faulty = async || {
        let store: Arc<dyn TokenStore> = Arc::new(FaultyStore::new(MemoryStore::new()));
        [store.clone(), store]
    };
    conformance::stores(Duration::from_secs(10), faulty).await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_slower_than_a_lease_is_no_defect_of_the_store() {
    const LEASE: Duration = Duration::from_secs(1);
    for call in [Call::Claim, Call::Renew] {
        // As slow as a claim that is reported when most of its lease has passed.
        let slow = async || {
            let store = FaultyStore::new(MemoryStore::new());
            store.inject(call, StoreFault::delay(LEASE));
            let store: Arc<dyn TokenStore> = Arc::new(store);
            [store.clone(), store]
        };
        conformance::stores(LEASE, slow).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_applies_before_or_after_the_effect_of_its_call() {
    let store = FaultyStore::new(MemoryStore::new());
    let replace = async || store.replace(&entry(1)).await;
    store.inject(Call::Replace, StoreFault::fail().times(1));
    store.inject(Call::Replace, StoreFault::fail().after_effect().times(1));
    replace().await.unwrap_err();
    assert_eq!(store.load().await.unwrap(), None);
    replace().await.unwrap_err();
    assert!(store.load().await.unwrap().is_some());
    replace().await.unwrap();

    store.inject(Call::Load, StoreFault::delay(Duration::from_secs(3)).times(1));
    let begun = Instant::now();
    store.load().await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    store.inject(Call::Load, StoreFault::hang());
    timeout(Duration::from_secs(3600), store.load()).await.unwrap_err();
    store.clear_faults();
    store.load().await.unwrap();
    assert_eq!((store.count(Call::Replace), store.count(Call::Load)), (3, 5));
}

#[tokio::test]
async fn a_fault_applies_after_the_set_number_of_calls() {
    let store = FaultyStore::new(MemoryStore::new());
    store.inject_any(StoreFault::fail().after_calls(2).times(1));
    let mut failed = Vec::new();
    for _ in 0..4 {
        failed.push(store.load().await.is_err());
    }
    assert_eq!(failed, [false, false, true, false]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_until_the_fault_is_cleared_then_completes() {
    for fault in [StoreFault::hang_until_cleared(), StoreFault::hang_until_cleared().after_effect()] {
        let store = FaultyStore::new(MemoryStore::new());
        store.inject(Call::Load, StoreFault::fail());
        store.inject(Call::Replace, fault);
        let replacing = tokio::spawn({
            let store = store.clone();
            async move { store.replace(&entry(1)).await.unwrap() }
        });
        sleep(Duration::from_secs(3600)).await;
        assert!(!replacing.is_finished());
        let took_effect = store.inner().load().await.unwrap().is_some();
        assert_eq!(took_effect, fault == StoreFault::hang_until_cleared().after_effect());
        store.clear_faults_of(Call::Replace);
        let version = replacing.await.unwrap();
        assert_eq!(store.inner().load().await.unwrap().unwrap().version(), &version);
        store.load().await.unwrap_err();
        assert_eq!(store.calls(), [Call::Replace, Call::Load]);
        store.clear_calls();
        assert_eq!(store.calls(), []);
    }
}

#[tokio::test]
async fn a_panic_is_injected_into_the_call_or_into_its_future() {
    let store = FaultyStore::new(MemoryStore::new());
    store.inject(Call::Load, StoreFault::panic_on_call().times(1));
    store.inject(Call::Load, StoreFault::panic().times(1));
    assert!(catch_unwind(AssertUnwindSafe(|| drop(store.load()))).is_err());
    let load = tokio::spawn({
        let store = store.clone();
        async move { store.load().await }
    });
    assert!(load.await.unwrap_err().is_panic());
    store.load().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_busy_until_now_grants_no_second_claim() {
    let store = FaultyStore::new(MemoryStore::new());
    store.inject(Call::Claim, StoreFault::busy_until_now());
    let lease = Duration::from_secs(60);
    let version = store.replace(&entry(1)).await.unwrap();
    assert!(matches!(store.claim(&version, lease).await.unwrap(), ClaimOutcome::Claimed(_)));
    let busy = store.claim(&version, lease).await.unwrap();
    assert!(matches!(busy, ClaimOutcome::Busy { retry_in: Duration::ZERO }), "{busy:?}");
}

#[tokio::test]
async fn a_yielding_store_is_pending_before_and_after_the_effect() {
    let store = FaultyStore::new(MemoryStore::new()).yielding().durable();
    assert!(store.is_durable() && !store.inner().is_durable());
    let entry = entry(1);
    let mut replacing = store.replace(&entry);
    let mut poll = || replacing.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(poll().is_pending());
    assert_eq!(store.inner().load().await.unwrap(), None);
    assert!(poll().is_pending());
    assert!(store.inner().load().await.unwrap().is_some());
    assert!(poll().is_ready());
}

#[tokio::test]
async fn a_held_call_takes_effect_when_the_gate_opens() {
    let store = FaultyStore::new(MemoryStore::new());
    let gate = store.hold(Call::Replace);
    let replacing = tokio::spawn({
        let store = store.clone();
        async move { store.replace(&entry(1)).await.unwrap() }
    });
    gate.arrived(1).await;
    assert_eq!(store.load().await.unwrap(), None);
    gate.open();
    let version = replacing.await.unwrap();
    assert_eq!(store.load().await.unwrap().unwrap().version(), &version);
}

#[tokio::test(start_paused = true)]
async fn a_faulty_store_without_faults_conforms_after_it_has_lost_its_writes() {
    let rewound = async || {
        let store = FaultyStore::new(MemoryStore::new());
        store.replace(&entry(1)).await.unwrap();
        store.rewind(None).await;
        let store: Arc<dyn TokenStore> = Arc::new(store);
        [store.clone(), store]
    };
    conformance::stores(Duration::from_secs(10), rewound).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_lost_its_writes_shows_the_earlier_version_and_no_claim() {
    const LEASE: Duration = Duration::from_secs(60);
    let store = FaultyStore::new(MemoryStore::new());
    // Another process sees the same record.
    let peer = FaultyStore::new(store.clone());
    let claim = async |version: &Version| match peer.claim(version, LEASE).await.unwrap() {
        ClaimOutcome::Claimed(claim) => claim,
        other => panic!("{other:?}"),
    };
    let first = store.replace(&entry(1)).await.unwrap();
    let early = store.snapshot().await;
    assert_eq!(early, Some(Record::new(first.clone(), entry(1))));

    for _ in 0..2 {
        let lost = claim(&first).await;
        let CommitOutcome::Stored(second) = peer.commit(&lost, &entry(2)).await.unwrap() else { panic!() };
        store.inject_any(StoreFault::fail());
        store.rewind(early.clone()).await;
        store.clear_faults();
        assert_eq!(peer.load().await.unwrap(), early);
        assert!(matches!(peer.claim(&second, LEASE).await.unwrap(), ClaimOutcome::Changed(found) if found == early));
        assert!(
            matches!(peer.clear(&second).await.unwrap(), ClearOutcome::Conflict(found) if Some(&found) == early.as_ref())
        );
        assert!(!peer.renew(&lost, LEASE).await.unwrap(), "the claim was lost");

        let again = claim(&first).await;
        assert!(!again.is_in_doubt() && *again.version() == first && again.id() != lost.id());
        assert!(peer.renew(&again, LEASE).await.unwrap());
        peer.release(&again, Presented::InDoubt).await.unwrap();
        assert!(claim(&first).await.is_in_doubt());
        let late = Claim::new(second, lost.id().clone(), false);
        assert!(
            matches!(peer.commit(&late, &entry(3)).await.unwrap(), CommitOutcome::Conflict(found) if found == early)
        );
        store.rewind(early.clone()).await;
    }
    store.rewind(None).await;
    assert_eq!((store.snapshot().await, peer.load().await.unwrap()), (None, None));
    let claimed = peer.claim(&first, LEASE).await.unwrap();
    assert!(matches!(claimed, ClaimOutcome::Changed(None)), "{claimed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_session_recovers_from_a_store_that_fails_or_hangs_at_any_call() {
    let faults =
        [StoreFault::fail(), StoreFault::fail().after_effect(), StoreFault::hang(), StoreFault::hang().after_effect()];
    for fault in faults {
        for call in 0.. {
            let kit = TestKit::new();
            let store = FaultyStore::new(MemoryStore::new());
            let tokens: Tokens = kit.sign_in("ada").try_into().unwrap();
            let build = async || loop {
                let builder = Session::builder(kit.refresh_service()).tokens(tokens.clone()).store(store.clone());
                if let Ok(session) = builder.build().await {
                    return session;
                }
            };
            store.inject_any(fault.after_calls(call).times(1));
            let session = build().await;
            for _ in 0..3 {
                let _ = session.refresh().await;
            }
            let failed_call = store.calls().get(call).copied();

            // The fault applies once. From here on, the sessions recover, at the latest when a lease has expired.
            let peer = build().await;
            for session in [&session, &peer, &session] {
                let begun = Instant::now();
                while session.refresh().await.is_err() {
                    assert!(begun.elapsed() < Duration::from_secs(120), "{fault:?} at call {call}, {failed_call:?}");
                    sleep(Duration::from_secs(1)).await;
                }
            }
            assert_eq!(kit.violations(), [], "{fault:?} at call {call}, {failed_call:?}");
            assert_eq!(kit.user("ada").max_concurrent_refreshes, 1, "{fault:?} at call {call}, {failed_call:?}");
            if failed_call.is_none() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn the_refresh_service_of_the_kit_classifies_failures() {
    use RefreshErrorKind::{InDoubt, Misconfigured, Rejected};
    let cases: [(Fault, RefreshErrorKind); 9] = [
        (Fault::status(401), Rejected),
        (Fault::status(400), Rejected),
        (Fault::status(403), Misconfigured),
        (Fault::status(500), InDoubt),
        (Fault::drop_connection(), InDoubt),
        (Fault::malformed(), InDoubt),
        (Fault::endless(), InDoubt),
        (Fault::alter(|answer| answer["access_token"] = "two\r\nlines".into()), InDoubt),
        (Fault::alter(|answer| *answer = serde_json::json!({ "error": "server_error" })), InDoubt),
    ];
    // Returns the error with which a session's refresh fails.
    let refresh_error = async |fault: Fault| {
        let kit = TestKit::new();
        let tokens: Tokens = kit.sign_in("ada").try_into().unwrap();
        kit.inject(Route::Refresh, fault);
        let builder = Session::builder(kit.refresh_service()).tokens(tokens);
        let session = builder.refresh_timeout(Duration::from_millis(50)).build().await.unwrap();
        match session.refresh().await.unwrap_err() {
            NotRefreshed::Failed(error) | NotRefreshed::Ended(error) => error,
            other => panic!("{other:?}"),
        }
    };
    for (fault, expected) in cases {
        let shown = format!("{fault:?}");
        assert_eq!(refresh_error(fault).await.kind(), expected, "{shown}");
    }
    let unavailable = refresh_error(Fault::status(503).header("retry-after", "7")).await;
    assert_eq!(unavailable.kind(), RefreshErrorKind::Unavailable);
    assert_eq!(unavailable.retry_after(), Some(Duration::from_secs(7)));
}
