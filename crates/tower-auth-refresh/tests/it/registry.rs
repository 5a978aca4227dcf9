//! The session registry: lookup, loading, eviction, and the limit on concurrent refreshes.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::error::Error;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{join, join_all};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tower::{BoxError, ServiceExt, service_fn};
use tower_auth_refresh::layer::PerRequest;
use tower_auth_refresh::refresh::RevokeRequest;
use tower_auth_refresh::registry::SessionRegistryBuilder;
use tower_auth_refresh::session::SessionErrorKind;
use tower_auth_refresh::{
    AuthRefresh, AuthRefreshLayer, NotRefreshed, RefreshError, RefreshErrorKind, RefreshReport, RefreshRequest,
    ReplayBody, Session, SessionRegistry, SessionRegistryError, SessionState, Tokens,
};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, FaultyStore, StoreFault};
use tower_layer::Layer;

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// The default refresh time-out.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The time-out of a store call.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// A client for many users, over an API and an authorization server that the test answers call by call.
struct ManyUsers {
    sessions: SessionRegistry<u32>,
    stores: Arc<Database>,
    client: AuthRefresh<Api, PerRequest>,
    api: ApiCalls,
    auth: AuthCalls,
    revoked: Arc<Mutex<Vec<Tokens>>>,
}

/// A durable store for each user.
#[derive(Default)]
struct Database(Mutex<HashMap<u32, FaultyStore>>);

impl Database {
    fn of(&self, user: u32) -> FaultyStore {
        self.0.lock().unwrap().entry(user).or_insert_with(faulty_store).clone()
    }
}

impl ManyUsers {
    /// Keeps the sessions in memory only.
    fn in_memory(configure: impl FnOnce(SessionRegistryBuilder<u32>) -> SessionRegistryBuilder<u32>) -> Self {
        Self::new(|_, builder| configure(builder))
    }

    /// Keeps the sessions in durable stores.
    fn durable(configure: impl FnOnce(SessionRegistryBuilder<u32>) -> SessionRegistryBuilder<u32>) -> Self {
        Self::new(|database, builder| configure(builder.store_factory(move |user| Arc::new(database.of(*user)))))
    }

    fn new(configure: impl FnOnce(Arc<Database>, SessionRegistryBuilder<u32>) -> SessionRegistryBuilder<u32>) -> Self {
        let (service, auth) = script();
        let (revoke, revoked) = revocations();
        let template = Session::builder(service).revoke(revoke);
        let stores = Arc::<Database>::default();
        let sessions = configure(Arc::clone(&stores), SessionRegistry::builder(template)).build().unwrap();
        let (service, api) = script();
        let client = AuthRefreshLayer::per_request(origin()).layer(service);
        Self { sessions, stores, client, api, auth, revoked }
    }

    /// Signs users in, each with the [`pair`] of that user's number, and keeps no handle on their sessions.
    async fn sign_in(&self, users: impl IntoIterator<Item = u32>) {
        for user in users {
            self.sessions.sign_in(user, pair(user)).await.unwrap();
        }
        // Waits for the background work of the sign-ins.
        self.sessions.wait_idle().await;
        settle().await;
    }

    /// Stores the sign-ins of these users, as another process would.
    async fn store(&self, users: impl IntoIterator<Item = u32>) {
        for user in users {
            let store = self.stores.of(user);
            store.sign_in_as_peer(&pair(user)).await;
        }
    }

    async fn get(&self, user: u32) -> Session {
        self.sessions.get(&user).await.unwrap().unwrap()
    }

    /// Looks up a session in a new task.
    fn spawn_get(&self, user: u32) -> JoinHandle<Session> {
        let sessions = self.sessions.clone();
        tokio::spawn(async move { sessions.get(&user).await.unwrap().unwrap() })
    }

    /// Refreshes a session in a new task.
    async fn refresh(&self, user: u32) -> JoinHandle<Result<Tokens, NotRefreshed>> {
        let session = self.get(user).await;
        tokio::spawn(async move { session.refresh().await })
    }

    /// Calls [`SessionRegistry::wait_idle`] in a new task.
    fn spawn_wait_idle(&self) -> JoinHandle<()> {
        let sessions = self.sessions.clone();
        tokio::spawn(async move { sessions.wait_idle().await })
    }

    /// Looks up a session, and returns the number of reads of its store.
    async fn loads(&self, user: u32) -> usize {
        self.stores.of(user).clear_calls();
        self.sessions.get(&user).await.unwrap();
        self.stores.of(user).count(StoreCall::Load)
    }

    /// Returns true if a session is in memory. Nothing is loaded: the store can't be read during the lookup.
    async fn is_in_memory(&self, user: u32) -> bool {
        let store = self.stores.of(user);
        store.inject(StoreCall::Load, StoreFault::fail());
        let found = self.sessions.get(&user).await;
        store.clear_faults_of(StoreCall::Load);
        found.is_ok()
    }

    /// Sends a request with this session.
    fn send(&self, session: Session) -> JoinHandle<Response<Full<Bytes>>> {
        let request = Request::get(format!("{ORIGIN}/")).extension(session).body(Full::default()).unwrap();
        let client = self.client.clone();
        tokio::spawn(async move { client.oneshot(request).await.unwrap() })
    }
}

fn is_full<T>(result: &Result<T, SessionRegistryError>) -> bool {
    matches!(result, Err(SessionRegistryError::Full))
}

/// Asserts that both handles share one session: a sign-in through one is visible through the other.
async fn assert_same(one: &Session, other: &Session) {
    one.sign_in(pair(4711)).await.unwrap();
    assert_eq!(other.tokens(), pair(4711));
}

// Lookup and loading.

#[tokio::test]
async fn a_user_who_signed_in_is_found_by_key_and_no_other() {
    let it = ManyUsers::in_memory(|builder| builder);
    let session = it.sessions.sign_in(1, pair(1)).await.unwrap();
    assert!(it.sessions.get(&2).await.unwrap().is_none());
    assert_same(&session, &it.get(1).await).await;
    assert_eq!((it.sessions.len(), it.sessions.is_empty()), (1, false));
}

#[tokio::test]
async fn a_second_sign_in_reuses_the_session() {
    let it = ManyUsers::durable(|builder| builder);
    let held = it.sessions.sign_in(1, pair(1)).await.unwrap();
    let again = it.sessions.sign_in(1, pair(2)).await.unwrap();
    assert_eq!(held.tokens(), pair(2));
    assert_same(&held, &again).await;
    assert_eq!(it.sessions.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_lookups_of_a_session_load_it_once() {
    let it = ManyUsers::durable(|builder| builder);
    it.store([1]).await;
    let store = it.stores.of(1);
    store.inject(StoreCall::Load, StoreFault::hang_until_cleared());
    let lookup: Vec<_> = (0..1_000).map(|_| it.spawn_get(1)).collect();
    settle().await;
    store.clear_faults();
    let sessions: Vec<_> = join_all(lookup).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(store.calls(), [StoreCall::Load]);
    sessions[0].sign_in(pair(7)).await.unwrap();
    assert!(sessions.iter().all(|session| session.tokens() == pair(7)));
}

#[tokio::test(start_paused = true)]
async fn a_session_is_loaded_once_although_the_first_lookup_is_dropped() {
    let it = ManyUsers::durable(|builder| builder);
    it.store([1]).await;
    let store = it.stores.of(1);
    store.inject(StoreCall::Load, StoreFault::hang_until_cleared());
    let first = it.sessions.get(&1).now_or_never();
    assert!(first.is_none());
    let second = it.spawn_get(1);
    settle().await;
    store.clear_faults();
    assert_eq!(second.await.unwrap().tokens(), pair(1));
    assert_eq!(store.calls(), [StoreCall::Load]);
}

#[tokio::test]
async fn a_session_in_memory_is_found_without_waiting() {
    let it = ManyUsers::durable(|builder| builder);
    it.sign_in([1]).await;
    let found = it.sessions.get(&1).now_or_never().expect("at the first poll");
    assert_eq!(found.unwrap().unwrap().tokens(), pair(1));
}

#[tokio::test(start_paused = true)]
async fn a_store_failure_fails_all_waiting_lookups_and_the_next_lookup_tries_again() {
    // A call that panics at once fails before another look-up can wait for it.
    for (fault, calls) in [
        (StoreFault::fail(), 1),
        (StoreFault::hang_until_cleared(), 1),
        (StoreFault::panic(), 1),
        (StoreFault::panic_on_call(), 10),
    ] {
        let it = ManyUsers::durable(|builder| builder);
        it.store([1]).await;
        let store = it.stores.of(1);
        store.inject(StoreCall::Load, fault);
        let gate = store.hold(StoreCall::Load);
        let lookups = join_all((0..10).map(|_| it.sessions.get(&1)));
        let (errors, ()) = join(lookups, async {
            settle().await;
            gate.open();
        })
        .await;
        for error in errors {
            let error = error.unwrap_err();
            assert!(matches!(&error, SessionRegistryError::Session(_)), "{fault:?}: {error}");
        }
        assert_eq!(store.calls(), vec![StoreCall::Load; calls], "{fault:?}");
        store.clear_faults();
        assert_eq!(it.get(1).await.tokens(), pair(1), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_that_hangs_fails_after_its_own_time_and_leaves_no_task_behind() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let it = ManyUsers::durable(|builder| builder);
    it.store(1..=4).await;
    for user in 1..=4 {
        it.stores.of(user).inject(StoreCall::Load, StoreFault::hang_until_cleared());
    }
    let before = tasks();
    assert!(it.sessions.get(&4).now_or_never().is_none(), "its caller is dropped");
    let look_up = |user, after| {
        let sessions = &it.sessions;
        async move {
            sleep(after).await;
            let begun = Instant::now();
            let error = sessions.get(&user).await.unwrap_err();
            assert_eq!(error.to_string(), "the session's store failed");
            assert_eq!(error.source().unwrap().to_string(), "the store didn't answer in time");
            begun.elapsed()
        }
    };
    let times = [(1, 0), (1, 1_300), (2, 300), (3, 2_200)].map(|(user, after)| (user, Duration::from_millis(after)));
    let elapsed = join_all(times.map(|(user, after)| look_up(user, after))).await;
    let its_own = STORE_TIMEOUT * 9 / 10..=STORE_TIMEOUT;
    assert!([0, 2, 3].iter().all(|load| its_own.contains(&elapsed[*load])), "{elapsed:?}");
    assert_eq!(elapsed[1] + times[1].1, elapsed[0], "that of the load which it has joined");
    sleep(SECOND).await;
    assert_eq!(tasks(), before);
    for user in 1..=4 {
        it.stores.of(user).clear_faults();
        assert_eq!(it.get(user).await.tokens(), pair(user));
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_whose_first_caller_is_not_polled_for_long_still_succeeds() {
    let it = ManyUsers::durable(|builder| builder);
    it.store([1]).await;
    it.stores.of(1).inject(StoreCall::Load, StoreFault::hang_until_cleared());
    let mut first = Box::pin(it.sessions.get(&1));
    assert!((&mut first).now_or_never().is_none());
    sleep(SECOND).await;
    it.stores.of(1).clear_faults();
    sleep(2 * STORE_TIMEOUT).await;
    assert_eq!(first.await.unwrap().unwrap().tokens(), pair(1));
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_load_that_hangs_and_is_out_of_date_search_again_at_once() {
    for is_shared in [false, true] {
        let it = ManyUsers::durable(|builder| builder);
        it.store([1, 2]).await;
        for user in [1, 2] {
            it.stores.of(user).inject(StoreCall::Load, StoreFault::hang_until_cleared().times(1));
        }
        let lookups: Vec<_> =
            [1, 2].into_iter().cycle().take(if is_shared { 4 } else { 2 }).map(|user| it.spawn_get(user)).collect();
        settle().await;
        let begun = Instant::now();
        it.sessions.changed(&1);
        it.sessions.sign_in(2, pair(7)).await.unwrap();
        for (at, found) in lookups.into_iter().enumerate() {
            assert_eq!(found.await.unwrap().tokens(), if at % 2 == 0 { pair(1) } else { pair(7) });
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}

#[tokio::test]
async fn a_lookup_that_is_done_and_not_dropped_keeps_no_session() {
    let it = ManyUsers::durable(|builder| builder.max_sessions(1));
    it.store([1, 2]).await;
    let mut first = Box::pin(it.sessions.get(&1));
    drop((&mut first).await.unwrap());
    assert_eq!(it.get(2).await.tokens(), pair(2), "there is room for it");
    drop(first);
}

#[tokio::test]
async fn a_user_missing_in_the_store_is_looked_up_there_each_time() {
    let it = ManyUsers::durable(|builder| builder);
    assert_eq!(it.loads(1).await, 1);
    assert_eq!(it.loads(1).await, 1);
    it.store([1]).await;
    assert_eq!(it.get(1).await.tokens(), pair(1));
    assert_eq!(it.sessions.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_during_a_load_overrides_the_loaded_record() {
    let it = ManyUsers::durable(|builder| builder);
    it.store([1]).await;
    let store = it.stores.of(1);
    // The load has read the old record, and hangs.
    store.inject(StoreCall::Load, StoreFault::hang_until_cleared().after_effect());
    let lookup = it.spawn_get(1);
    settle().await;
    let signing_in = {
        let sessions = it.sessions.clone();
        tokio::spawn(async move { sessions.sign_in(1, pair(2)).await.unwrap() })
    };
    settle().await;
    store.clear_faults();
    let (found, signed_in) = (lookup.await.unwrap(), signing_in.await.unwrap());
    assert_eq!(found.tokens(), pair(2));
    assert_same(&found, &signed_in).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_read_before_a_sign_in_is_not_used_after_the_session_is_evicted() {
    let it = ManyUsers::durable(|builder| builder.max_sessions(1));
    it.store([1]).await;
    let store = it.stores.of(1);
    store.inject(StoreCall::Load, StoreFault::hang_until_cleared().after_effect().times(1));
    // Its caller is dropped, so that no session is in use.
    assert!(it.sessions.get(&1).now_or_never().is_none());
    settle().await;
    it.sessions.sign_in(1, pair(2)).await.unwrap();
    // Evicts user 1: the capacity is 1.
    it.sign_in([9]).await;
    store.clear_faults();
    settle().await;
    assert!(it.sessions.peek(&1).is_none());
    assert_eq!(it.get(1).await.tokens(), pair(2));
    assert_eq!(it.sessions.len(), 1);
}

#[tokio::test]
async fn without_a_store_a_new_user_is_signed_in_without_waiting() {
    let it = ManyUsers::in_memory(|builder| builder);
    let session = it.sessions.sign_in(1, pair(1)).now_or_never().expect("at the first poll").unwrap();
    assert!(it.sessions.wait_idle().now_or_never().is_some(), "no write is pending");
    // The session's own store holds its tokens, so a refresh can claim them.
    let refreshing = it.refresh(1).await;
    let mut auth = it.auth;
    auth.next().await.answer(Ok(pair(11)));
    refreshing.await.unwrap().unwrap();
    assert_eq!(session.tokens(), pair(11));
}

thread_local! {
    /// If set, the only user whose key may be hashed.
    static HASHED: Cell<Option<u32>> = const { Cell::new(None) };
}

#[derive(Clone, PartialEq, Eq)]
struct PanickingKey(u32);

impl Hash for PanickingKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        assert!(HASHED.get().is_none_or(|user| user == self.0), "the key panics, as injected");
        self.0.hash(state);
    }
}

#[tokio::test]
async fn a_key_that_panics_does_not_affect_other_sessions() {
    let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
    let sessions = SessionRegistry::builder(Session::builder(refresh)).build().unwrap();
    // Users sign in and out, so that the table grows and is compacted.
    for user in 0..10_000 {
        HASHED.set(Some(user));
        sessions.sign_in(PanickingKey(user), pair(user)).await.unwrap();
        if let Some(gone) = user.checked_sub(3_000).filter(|gone| gone % 100 != 0) {
            HASHED.set(Some(gone));
            sessions.sign_out(&PanickingKey(gone)).await.unwrap();
        }
    }
    HASHED.set(None);
    for user in (0..7_000).step_by(100).chain(7_000..10_000) {
        assert_eq!(sessions.get(&PanickingKey(user)).await.unwrap().unwrap().tokens(), pair(user));
    }
}

#[tokio::test]
async fn without_refresh_tokens_a_session_can_start_with_extra_members_that_identify_its_user() {
    let refresh = service_fn(|request: RefreshRequest| {
        let tenant = request.tokens().extra("tenant").and_then(|tenant| tenant.as_str()).map(access);
        std::future::ready(tenant.map(Tokens::from_access_token).ok_or(RefreshError::misconfigured("no tenant")))
    });
    let sessions = SessionRegistry::builder(Session::client_credentials(refresh)).build().unwrap();
    assert!(sessions.get(&1).await.unwrap().is_none());
    for (user, tenant) in [(1, "one"), (2, "two")] {
        let extra = serde_json::from_value(serde_json::json!({ "tenant": tenant })).unwrap();
        let session = sessions.sign_in(user, Tokens::default().with_extra(extra)).await.unwrap();
        for _ in 0..2 {
            session.refresh().await.ok();
            assert_eq!(session.tokens().access_token(), Some(&access(tenant)));
        }
    }
}

// Sign-out.

#[tokio::test]
async fn a_sign_out_affects_no_other_session() {
    let it = ManyUsers::durable(|builder| builder);
    it.sign_in(1..=100).await;
    it.sessions.sign_out(&50).await.unwrap();
    assert_eq!(it.sessions.len(), 99);
    assert!(it.sessions.get(&50).await.unwrap().is_none());
    assert_eq!(it.stores.of(50).tokens().await, None);
    assert_eq!(*it.revoked.lock().unwrap(), [pair(50)]);
    for user in (1..=100).filter(|user| *user != 50) {
        assert_eq!(it.get(user).await.tokens(), pair(user));
        assert_eq!(it.stores.of(user).tokens().await, Some(pair(user)));
    }
}

#[tokio::test]
async fn a_user_who_is_not_in_memory_is_signed_out_in_the_store() {
    let it = ManyUsers::durable(|builder| builder);
    it.store([1]).await;
    it.sessions.sign_out(&1).await.unwrap();
    assert_eq!(it.stores.of(1).tokens().await, None);
    assert_eq!(*it.revoked.lock().unwrap(), [pair(1)]);
    assert!(it.sessions.is_empty());
    // Signing out an unknown user is no error.
    it.sessions.sign_out(&2).await.unwrap();
}

#[tokio::test]
async fn a_sign_out_needs_no_free_place() {
    let it = ManyUsers::durable(|builder| builder.max_sessions(1));
    let _held = it.sessions.sign_in(1, pair(1)).await.unwrap();
    it.store([2]).await;
    assert!(is_full(&it.sessions.get(&2).await));
    it.sessions.sign_out(&2).await.unwrap();
    assert_eq!(it.stores.of(2).tokens().await, None);
    assert_eq!(*it.revoked.lock().unwrap(), [pair(2)]);
}

#[tokio::test]
async fn a_sign_out_of_a_user_who_is_not_in_memory_evicts_no_session() {
    let it = ManyUsers::durable(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    it.store([2]).await;
    it.sessions.sign_out(&2).await.unwrap();
    assert_eq!(it.stores.of(2).tokens().await, None);
    assert!(it.is_in_memory(1).await);
    assert_eq!(it.sessions.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lookup_during_a_sign_out_that_found_no_free_place_gets_the_same_session() {
    let it = ManyUsers::durable(|builder| builder.max_sessions(1));
    let held = it.sessions.sign_in(1, pair(1)).await.unwrap();
    it.store([2]).await;
    it.stores.of(2).inject(StoreCall::Clear, StoreFault::hang_until_cleared());
    let signing_out = {
        let sessions = it.sessions.clone();
        tokio::spawn(async move { sessions.sign_out(&2).await })
    };
    settle().await;
    // Frees a place.
    drop(held);
    assert_eq!(it.get(2).await.state(), SessionState::SignedOut);
    it.stores.of(2).clear_faults();
    signing_out.await.unwrap().unwrap();
    assert!(it.sessions.get(&2).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_that_is_aborted_keeps_no_place() {
    let it = ManyUsers::durable(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    it.store([2, 3]).await;
    for user in [2, 3] {
        it.stores.of(user).inject(StoreCall::Load, StoreFault::hang_until_cleared());
        let signing_out = {
            let sessions = it.sessions.clone();
            tokio::spawn(async move { sessions.sign_out(&user).await })
        };
        settle().await;
        signing_out.abort();
        settle().await;
        it.stores.of(user).clear_faults();
        settle().await;
    }
    it.sign_in([4]).await;
    assert_eq!(it.sessions.len(), 1);
}

#[tokio::test]
async fn a_held_session_that_was_signed_out_is_reused_by_the_next_sign_in() {
    let it = ManyUsers::in_memory(|builder| builder);
    let held = it.sessions.sign_in(1, pair(1)).await.unwrap();
    it.sessions.sign_out(&1).await.unwrap();
    assert_eq!(held.state(), SessionState::SignedOut);
    let again = it.sessions.sign_in(1, pair(2)).await.unwrap();
    assert_eq!(held.tokens(), pair(2));
    assert_same(&held, &again).await;
}

#[tokio::test]
async fn a_session_that_is_over_is_looked_up_in_its_store_again() {
    let it = ManyUsers::durable(|builder| builder);
    let session = it.sessions.sign_in(1, pair(1)).await.unwrap();
    session.sign_out().await.unwrap();
    drop(session);
    assert!(it.sessions.get(&1).await.unwrap().is_none());
    // A sign-in in another process.
    it.store([1]).await;
    assert_eq!(it.get(1).await.tokens(), pair(1));
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_prevents_the_eviction_of_its_session() {
    let it = ManyUsers::durable(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    // The sign-out holds the session while it waits for the store, so there is no place for another user.
    it.stores.of(1).inject(StoreCall::Clear, StoreFault::hang_until_cleared());
    let signing_out = {
        let sessions = it.sessions.clone();
        tokio::spawn(async move { sessions.sign_out(&1).await })
    };
    settle().await;
    assert!(is_full(&it.sessions.sign_in(2, pair(2)).await));
    it.stores.of(1).clear_faults();
    signing_out.await.unwrap().unwrap();
    it.sign_in([2]).await;
    assert_eq!(it.stores.of(1).tokens().await, None);
    // The other order: evicted first, then signed out.
    it.sign_in([3]).await;
    assert!(!it.is_in_memory(2).await);
    it.sessions.sign_out(&2).await.unwrap();
    assert_eq!(it.stores.of(2).tokens().await, None);
    assert_eq!(*it.revoked.lock().unwrap(), [pair(1), pair(2)]);
}

// Capacity and eviction.

#[tokio::test]
async fn the_capacity_is_never_exceeded_and_evicted_sessions_are_loaded_again() {
    let it = ManyUsers::durable(|builder| builder.max_sessions(100));
    it.sign_in(1..=1_000).await;
    assert_eq!(it.sessions.len(), 100);
    for user in 1..=1_000 {
        assert_eq!(it.get(user).await.tokens(), pair(user));
        assert_eq!(it.sessions.len(), 100);
    }
    assert!(it.revoked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_least_recently_used_session_is_evicted_first() {
    let it = ManyUsers::durable(|builder| builder.max_sessions(3));
    it.sign_in(1..=3).await;
    it.get(1).await;
    it.sign_in([4]).await;
    assert!(!it.is_in_memory(2).await);
    for user in [1, 3, 4] {
        assert!(it.is_in_memory(user).await, "{user}");
    }
}

#[tokio::test]
async fn a_refused_sign_in_finds_the_only_evictable_session_when_it_is_retried() {
    const USERS: u32 = 20_000;
    let it = ManyUsers::in_memory(|builder| builder.max_sessions(USERS as usize));
    for user in 0..USERS {
        it.sessions.sign_in(user, pair(user)).await.unwrap();
    }
    it.get(4711).await.sign_out().await.unwrap();
    // Each attempt scans some thousands of sessions, and the next continues there: no scan blocks other users longer.
    let mut refused = 0;
    while is_full(&it.sessions.sign_in(USERS, pair(USERS)).await) {
        refused += 1;
        assert!(refused <= 10);
    }
    assert!(it.sessions.get(&4711).await.unwrap().is_none());
    assert_eq!(it.get(USERS).await.tokens(), pair(USERS));
}

#[tokio::test]
async fn a_registry_full_of_sessions_without_a_store_refuses_a_sign_in_and_evicts_none() {
    let it = ManyUsers::in_memory(|builder| builder.max_sessions(100));
    it.sign_in(1..=100).await;
    for user in 101..=200 {
        let refused = it.sessions.sign_in(user, pair(user)).await;
        let message = refused.as_ref().unwrap_err().to_string();
        let expected =
            "the session registry is full: all sessions are in use, or could not be brought back after an eviction";
        assert_eq!(message, expected);
        assert!(is_full(&refused));
    }
    for user in 1..=100 {
        assert_eq!(it.get(user).await.tokens(), pair(user));
    }
    // A user with a session can sign in again, and a sign-out frees a place.
    it.sessions.sign_in(1, pair(300)).await.unwrap();
    it.sessions.sign_out(&2).await.unwrap();
    it.sessions.sign_in(101, pair(101)).await.unwrap();
    assert_eq!(it.sessions.len(), 100);
}

#[tokio::test]
async fn a_held_session_is_never_evicted() {
    let it = ManyUsers::durable(|builder| builder.max_sessions(100));
    let mut held = Vec::new();
    for user in 1..=99 {
        held.push(it.sessions.sign_in(user, pair(user)).await.unwrap());
    }
    it.sign_in(100..=1_000).await;
    for (user, held) in (1..).zip(&held) {
        assert_eq!(it.loads(user).await, 0);
        assert_same(held, &it.get(user).await).await;
    }
    // The only evictable session among them is found, at any position.
    assert_eq!(it.sessions.len(), 100);
    held.push(it.get(5_000).now_or_never().unwrap_or(it.sessions.sign_in(5_000, pair(1)).await.unwrap()));
    assert!(is_full(&it.sessions.sign_in(5_001, pair(1)).await));
    held.pop();
    it.sign_in([5_001]).await;
}

#[tokio::test(start_paused = true)]
async fn a_watched_session_is_never_evicted() {
    let it = ManyUsers::durable(|builder| builder.max_sessions(1).idle_timeout(8 * MINUTE));
    let mut watcher = it.sessions.sign_in(1, pair(1)).await.unwrap().subscribe();
    sleep(60 * MINUTE).await;
    assert!(is_full(&it.sessions.sign_in(2, pair(2)).await));
    it.sessions.sign_out(&1).await.unwrap();
    it.sessions.sign_in(1, pair(3)).await.unwrap().sign_out().await.unwrap();
    watcher.changed().await.expect("the watcher has the same session");
    assert_eq!(*watcher.borrow_and_update(), SessionState::SignedOut);
    drop(watcher);
    it.sign_in([2]).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_with_a_flight_is_never_evicted() {
    let mut it = ManyUsers::durable(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    let refreshing = it.refresh(1).await;
    let refresh = it.auth.next().await;
    // Even if the flight has no waiter.
    refreshing.abort();
    settle().await;
    assert!(is_full(&it.sessions.sign_in(2, pair(2)).await));
    refresh.answer(Ok(pair(11)));
    it.sessions.wait_idle().await;
    settle().await;
    it.sign_in([2]).await;
    assert!(!it.is_in_memory(1).await);
    assert_eq!(it.get(1).await.tokens(), pair(11));
}

#[tokio::test(start_paused = true)]
async fn a_session_with_unsaved_tokens_is_never_evicted() {
    let mut it = ManyUsers::durable(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    let store = it.stores.of(1);
    store.inject(StoreCall::Commit, StoreFault::fail());
    let refreshing = it.refresh(1).await;
    it.auth.next().await.answer(Ok(pair(11)));
    refreshing.await.unwrap().unwrap();
    for _ in 0..10 {
        sleep(MINUTE).await;
        assert!(is_full(&it.sessions.sign_in(2, pair(2)).await));
    }
    store.clear_faults();
    sleep(2 * MINUTE).await;
    it.sign_in([2]).await;
    assert_eq!(it.get(1).await.tokens(), pair(11));
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_that_was_not_saved_is_found_and_never_evicted() {
    let it = ManyUsers::durable(|builder| builder.max_sessions(1));
    it.stores.of(1).inject(StoreCall::Replace, StoreFault::fail());
    let error = it.sessions.sign_in(1, pair(1)).await.unwrap_err();
    assert_eq!(error.to_string(), "the session has changed, but its store failed");
    let SessionRegistryError::Session(error) = error else { panic!("{error:?}") };
    assert_eq!((error.kind(), error.took_effect()), (SessionErrorKind::Store, true));
    assert_eq!(it.get(1).await.tokens(), pair(1));
    assert!(is_full(&it.sessions.sign_in(2, pair(2)).await));
    it.stores.of(1).clear_faults();
    it.sessions.wait_idle().await;
    settle().await;
    assert_eq!(it.stores.of(1).tokens().await, Some(pair(1)));
    it.sign_in([2]).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_in_its_cool_down_is_not_evicted_which_would_allow_another_call() {
    let mut it = ManyUsers::durable(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    let refreshing = it.refresh(1).await;
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no")));
    refreshing.await.unwrap().unwrap_err();
    settle().await;
    assert!(is_full(&it.sessions.sign_in(2, pair(2)).await));
    sleep(SECOND).await;
    it.sign_in([2]).await;
}

#[tokio::test(start_paused = true)]
async fn the_loop_guard_against_an_api_is_not_lost_by_eviction() {
    let mut it = ManyUsers::durable(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    let begun = Instant::now();
    let mut refreshes = 0;
    while begun.elapsed() < 60 * MINUTE {
        // Evicts the session before each request, if that is possible.
        let _ = it.sessions.sign_in(2, pair(2)).await;
        let Ok(Some(session)) = it.sessions.get(&1).await else { panic!("its place can't be freed") };
        let response = it.send(session);
        while !response.is_finished() {
            tokio::select! {
                call = it.api.next() => call.reply(401).await,
                refresh = it.auth.next() => {
                    refreshes += 1;
                    refresh.answer(Ok(pair(100 + refreshes)));
                }
                () = settle() => {}
            }
        }
        sleep(SECOND).await;
    }
    assert!((1..=75).contains(&refreshes), "{refreshes}");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_has_ended_frees_its_place() {
    let mut it = ManyUsers::in_memory(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    let refreshing = it.refresh(1).await;
    it.auth.next().await.answer(Err(RefreshError::rejected("expired")));
    refreshing.await.unwrap().unwrap_err();
    settle().await;
    it.sign_in([2]).await;
    assert!(it.sessions.get(&1).await.unwrap().is_none());
}

// Idle time-out.

#[tokio::test(start_paused = true)]
async fn an_idle_session_is_evicted_if_its_store_can_restore_it() {
    // Each load is of a session that was evicted.
    let it = ManyUsers::durable(|builder| builder.idle_timeout(8 * MINUTE).recheck(Duration::MAX));
    it.sign_in(1..=3).await;
    let _held = it.get(1).await;
    for _ in 0..16 {
        sleep(MINUTE).await;
        // A session that is looked up isn't idle.
        it.get(2).await;
    }
    assert_eq!(it.sessions.len(), 2);
    assert_eq!(it.loads(1).await + it.loads(2).await, 0);
    assert_eq!(it.loads(3).await, 1);
    assert!(it.revoked.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_without_a_store_is_signed_out_and_its_tokens_are_revoked() {
    let it = ManyUsers::in_memory(|builder| builder.idle_timeout(8 * MINUTE));
    it.sign_in(1..=3).await;
    let held = it.get(1).await;
    for minute in 1..=16 {
        sleep(MINUTE).await;
        it.get(2).await;
        let gone = it.sessions.len() == 2;
        assert!(if minute < 8 { !gone } else { gone || minute <= 10 }, "{minute}");
    }
    assert_eq!(*it.revoked.lock().unwrap(), [pair(3)]);
    assert!(it.sessions.get(&3).await.unwrap().is_none());
    assert_eq!(held.tokens(), pair(1));
    drop(held);
    sleep(10 * MINUTE).await;
    settle().await;
    assert!(it.sessions.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_revoke_service_that_hangs_does_not_keep_idle_sessions() {
    // Just within the time-out.
    const NEARLY: Duration = Duration::from_secs(29);
    let [hanging, most] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let counters = [&hanging, &most].map(Arc::clone);
    let revoke = service_fn(move |_: RevokeRequest| {
        let [hanging, most] = counters.clone();
        async move {
            most.fetch_max(hanging.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            sleep(NEARLY).await;
            hanging.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, BoxError>(())
        }
    });
    let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
    let sessions =
        SessionRegistry::builder(Session::builder(refresh).revoke(revoke)).idle_timeout(8 * MINUTE).build().unwrap();
    for user in 0..1_000 {
        sessions.sign_in(user, pair(user)).await.unwrap();
    }
    let begun = Instant::now();
    sleep(5 * MINUTE).await;
    sessions.sign_in(1_000, pair(1_000)).await.unwrap();
    sleep(5 * MINUTE + SECOND).await;
    assert_eq!(sessions.len(), 1, "all idle sessions are removed");
    sleep(5 * MINUTE).await;
    assert!(sessions.is_empty());
    // At most 16 revocations run at a time, and all tokens are revoked.
    sessions.wait_idle().await;
    assert_eq!([hanging, most].map(|it| it.load(Ordering::SeqCst)), [0, 16]);
    assert!(begun.elapsed() > NEARLY * 1_000 / 16);
}

/// A key that is compared by identity, and whose references are counted.
#[derive(Clone)]
struct CountedKey(Arc<()>);

impl PartialEq for CountedKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for CountedKey {}

impl Hash for CountedKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_are_freed_with_the_last_registry_handle_even_while_a_revocation_hangs() {
    let revoke = service_fn(|_: RevokeRequest| std::future::pending::<Result<(), BoxError>>());
    let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
    let sessions =
        SessionRegistry::builder(Session::builder(refresh).revoke(revoke)).idle_timeout(8 * MINUTE).build().unwrap();
    let [idle, used] = [(); 2].map(|()| CountedKey(Arc::new(())));
    sessions.sign_in(idle.clone(), pair(1)).await.unwrap();
    sessions.sign_in(used.clone(), pair(2)).await.unwrap();
    for _ in 0..9 {
        sleep(MINUTE).await;
        sessions.get(&used).await.unwrap();
    }
    settle().await;
    assert_eq!([&idle, &used].map(|key| Arc::strong_count(&key.0)), [1, 2]);
    drop(sessions);
    assert_eq!(Arc::strong_count(&used.0), 1);
}

#[tokio::test(start_paused = true)]
async fn without_an_idle_timeout_no_session_is_ever_signed_out() {
    let it = ManyUsers::in_memory(|builder| builder);
    it.sign_in([1]).await;
    sleep(24 * 60 * MINUTE).await;
    assert_eq!(it.get(1).await.tokens(), pair(1));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_over_is_removed() {
    let it = ManyUsers::in_memory(|builder| builder);
    let session = it.sessions.sign_in(1, pair(1)).await.unwrap();
    session.sign_out().await.unwrap();
    sleep(5 * MINUTE).await;
    assert_eq!(it.sessions.len(), 1, "a handle is held");
    drop(session);
    sleep(2 * MINUTE).await;
    assert!(it.sessions.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_has_no_task_and_the_registry_has_one_that_ends_with_it() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let it = ManyUsers::in_memory(|builder| builder.idle_timeout(MINUTE));
    it.sign_in(1..=1_000).await;
    assert_eq!(tasks(), before + 1);
    drop(it);
    settle().await;
    assert_eq!(tasks(), before);
}

#[test]
fn a_registry_is_not_built_outside_a_runtime() {
    let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
    let error = SessionRegistry::<u32>::builder(Session::builder(refresh)).build().unwrap_err();
    assert_eq!(error.to_string(), "the session has no running tokio runtime");
}

#[test]
fn a_load_whose_runtime_shuts_down_answers_its_callers() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (home, other) = (runtime(), runtime());
    let (service, _auth): (_, AuthCalls) = script();
    let sessions = {
        let _home = home.enter();
        let builder = SessionRegistry::builder(Session::builder(service));
        let store = || {
            let store = faulty_store();
            store.inject(StoreCall::Load, StoreFault::hang_until_cleared());
            store
        };
        builder.store_factory(move |_: &u32| Arc::new(store())).build().unwrap()
    };
    let looked_up = sessions.clone();
    let found = other.spawn(async move { looked_up.get(&1).await });
    other.block_on(tokio::task::yield_now());
    drop(home);
    // The second is begun after the shutdown.
    let found = async { [found.await.unwrap(), sessions.get(&2).await] };
    for found in other.block_on(async { tokio::time::timeout(15 * SECOND, found).await.unwrap() }) {
        let error = found.unwrap_err();
        assert!(matches!(&error, SessionRegistryError::Session(why) if why.kind() == SessionErrorKind::Runtime));
        assert_eq!(error.source().unwrap().to_string(), "the task that loads the session is gone");
    }
}

// The limit on concurrent refreshes.

#[tokio::test(start_paused = true)]
async fn ten_thousand_sessions_expire_together_and_the_limit_on_refreshes_holds() {
    const USERS: u32 = 10_000;
    const LIMIT: usize = 100;
    let [running, most, calls] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
    let counters = [&running, &most, &calls].map(Arc::clone);
    let refresh = service_fn(move |request: RefreshRequest| {
        let [running, most, calls] = counters.clone();
        async move {
            calls.fetch_add(1, Ordering::SeqCst);
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            sleep(Duration::from_millis(50)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            let user: u32 = request.refresh_token().unwrap().expose_secret()[1..].parse().unwrap();
            Ok::<_, RefreshError>(pair(user + USERS))
        }
    });
    let sessions = SessionRegistry::builder(Session::builder(refresh)).max_concurrent_refreshes(LIMIT).build().unwrap();
    for user in 0..USERS {
        sessions.sign_in(user, pair(user)).await.unwrap();
    }
    let begun = Instant::now();
    let refreshing = (0..USERS).map(|user| {
        let sessions = sessions.clone();
        tokio::spawn(async move { sessions.get(&user).await.unwrap().unwrap().refresh().await })
    });
    for refreshed in join_all(refreshing).await {
        refreshed.unwrap().unwrap();
    }
    assert_eq!([running, most, calls].map(|it| it.load(Ordering::SeqCst)), [0, LIMIT, USERS as usize]);
    // As fast as the limit allows, plus the jitter that spreads the calls.
    let rounds = u32::try_from(USERS as usize / LIMIT).unwrap();
    let elapsed = begun.elapsed();
    assert!((rounds * Duration::from_millis(50)..rounds * Duration::from_millis(65)).contains(&elapsed), "{elapsed:?}");
    for user in 0..USERS {
        assert_eq!(sessions.get(&user).await.unwrap().unwrap().tokens(), pair(user + USERS));
    }
}

/// Starts the refreshes of these users, one after the other.
async fn begin_refreshes(
    it: &ManyUsers,
    users: impl IntoIterator<Item = u32>,
) -> Vec<JoinHandle<Result<Tokens, NotRefreshed>>> {
    let mut refreshing = Vec::new();
    for user in users {
        refreshing.push(it.refresh(user).await);
        settle().await;
    }
    refreshing
}

#[tokio::test(start_paused = true)]
async fn permits_are_granted_in_the_order_of_arrival() {
    let mut it = ManyUsers::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in(1..=100).await;
    let refreshing = begin_refreshes(&it, 1..=100).await;
    for user in 1..=100 {
        let refresh = it.auth.next().await;
        assert_eq!(refresh.presented(), format!("r{user}"));
        assert!(it.auth.is_idle().await);
        refresh.answer(Ok(pair(1_000)));
    }
    for refreshed in join_all(refreshing).await {
        refreshed.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn refreshes_that_waited_together_do_not_call_together() {
    let mut it = ManyUsers::in_memory(|builder| builder.max_concurrent_refreshes(50));
    it.sign_in(1..=100).await;
    let refreshing = begin_refreshes(&it, 1..=100).await;
    let begun = Instant::now();
    // A refresh that finds a free permit is not delayed.
    let first = it.auth.take(50).await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    for refresh in first {
        refresh.answer(Ok(pair(1_000)));
    }
    let mut times = HashSet::new();
    for _ in 0..50 {
        let refresh = it.auth.next().await;
        times.insert(begun.elapsed());
        refresh.answer(Ok(pair(1_000)));
    }
    assert!(times.len() > 5, "{times:?}");
    join_all(refreshing).await;
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_permit_is_no_attempt_and_does_not_shorten_the_refresh_time_out() {
    let mut it = ManyUsers::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in([1, 2]).await;
    begin_refreshes(&it, [1, 2]).await;
    let first = it.auth.next().await;
    sleep(Duration::from_secs(29)).await;
    first.answer(Ok(pair(11)));
    // The second refresh fails twice, and its third attempt takes nearly all of its own time.
    for _ in 0..2 {
        it.auth.next().await.answer(Err(RefreshError::unavailable("later")));
    }
    let third = it.auth.next().await;
    sleep(Duration::from_secs(28)).await;
    third.answer(Ok(pair(12)));
    it.sessions.wait_idle().await;
    assert_eq!(it.get(2).await.tokens(), pair(12));
}

#[tokio::test(start_paused = true)]
async fn no_request_waits_for_a_permit_beyond_its_deadline_and_its_session_keeps_its_place() {
    let mut it = ManyUsers::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in([1, 2]).await;
    begin_refreshes(&it, [1]).await;
    // Never answered.
    drop(it.auth.next().await);
    sleep(TIMEOUT / 2).await;
    let begun = Instant::now();
    let response = it.send(it.get(2).await);
    it.api.next().await.reply(401).await;
    let second = it.auth.next().await;
    assert_eq!(second.presented(), "r2");
    assert!((TIMEOUT / 2..TIMEOUT / 2 + SECOND).contains(&begun.elapsed()));
    // The second refresh is not answered in time either.
    let response = response.await.unwrap();
    assert_eq!(begun.elapsed(), TIMEOUT + STORE_TIMEOUT);
    assert_eq!(failure(&response).kind(), RefreshErrorKind::InDoubt);
    second.answer(Ok(pair(12)));
    it.sessions.wait_idle().await;
    assert_eq!(it.get(2).await.tokens(), pair(12));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_answered_before_its_permit_is_granted_reports_that_nothing_was_sent() {
    let mut it = ManyUsers::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in(1..=4).await;
    begin_refreshes(&it, 1..=3).await;
    // Each refresh runs until its time-out.
    let first = it.auth.next().await;
    let begun = Instant::now();
    let response = it.send(it.get(4).await);
    it.api.next().await.reply(401).await;
    let response = response.await.unwrap();
    assert_eq!(begun.elapsed(), TIMEOUT + STORE_TIMEOUT);
    assert!(matches!(failure(&response).kind(), RefreshErrorKind::Unavailable));
    drop(first);
    for _ in 2..=3 {
        drop(it.auth.next().await);
    }
    // The refresh still gets its permit, for later requests.
    let last = it.auth.next().await;
    assert_eq!(last.presented(), "r4");
    last.answer(Ok(pair(14)));
    settle().await;
    assert_eq!(it.get(4).await.tokens(), pair(14));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_arrives_after_others_timed_out_waits_its_own_time_for_the_same_refresh() {
    let mut it = ManyUsers::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in(1..=4).await;
    begin_refreshes(&it, 1..=3).await;
    let begun = Instant::now();
    let early = it.send(it.get(4).await);
    it.api.next().await.reply(401).await;
    // Each refresh runs until its time-out: the fourth permit is granted after 90 s.
    failure(&early.await.unwrap());
    assert_eq!(begun.elapsed(), TIMEOUT + STORE_TIMEOUT);
    sleep(TIMEOUT).await;
    let late = it.send(it.get(4).await);
    let by_hand = it.refresh(4).await;
    for _ in 1..=3 {
        drop(it.auth.next().await);
    }
    it.auth.next().await.answer(Ok(pair(14)));
    it.api.reply(1, "a14", 200).await;
    assert_eq!(late.await.unwrap().status(), 200);
    by_hand.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_waiter_is_answered_at_its_own_deadline_or_up_to_a_second_before() {
    let it = ManyUsers::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in(1..=5).await;
    begin_refreshes(&it, 1..=4).await;
    let begun = Instant::now();
    let mut waits = Vec::new();
    // The permit of user 5 would be granted after 120 s.
    for arrival in [0, 500, 999, 1_001, 20_000, 34_999, 35_001, 50_000].map(Duration::from_millis) {
        sleep(arrival.saturating_sub(begun.elapsed())).await;
        let refresh = it.refresh(5).await;
        waits.push(tokio::spawn(async move {
            let begun = Instant::now();
            (refresh.await.unwrap(), begun.elapsed())
        }));
    }
    for (refreshed, waited) in join_all(waits).await.into_iter().map(Result::unwrap) {
        assert!(matches!(refreshed, Err(NotRefreshed::Failed(_))), "{refreshed:?}");
        assert!((TIMEOUT + 4 * SECOND..=TIMEOUT + STORE_TIMEOUT).contains(&waited), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_for_a_permit_before_it_was_sent_does_not_wait_again() {
    let mut it = ManyUsers::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in(1..=4).await;
    begin_refreshes(&it, 1..=3).await;
    let refused = it.send(it.get(4).await);
    it.api.next().await.reply(401).await;
    settle().await;
    let begun = Instant::now();
    let held_back = it.send(it.get(4).await);
    it.api.reply(1, "a4", 401).await;
    assert_eq!(begun.elapsed(), TIMEOUT + STORE_TIMEOUT);
    for response in [refused, held_back] {
        let response = response.await.unwrap();
        assert!(matches!(failure(&response).kind(), RefreshErrorKind::Unavailable));
    }
    assert_eq!(begun.elapsed(), TIMEOUT + STORE_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_signed_out_while_it_waits_for_a_permit_is_not_refreshed() {
    let mut it = ManyUsers::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in(1..=3).await;
    let refreshing = begin_refreshes(&it, 1..=3).await;
    let first = it.auth.next().await;
    it.sessions.sign_out(&2).await.unwrap();
    first.answer(Ok(pair(11)));
    // The next permit is granted to user 3.
    let third = it.auth.next().await;
    assert_eq!(third.presented(), "r3");
    third.answer(Ok(pair(13)));
    let refreshed: Vec<_> = join_all(refreshing).await.into_iter().map(Result::unwrap).collect();
    assert!(matches!(refreshed[..], [Ok(_), Err(NotRefreshed::SessionChanged), Ok(_)]), "{refreshed:?}");
    assert!(it.auth.is_idle().await);
}

// Waiting until the registry is idle.

#[tokio::test(start_paused = true)]
async fn wait_idle_returns_once_no_flight_is_up_and_nothing_is_unsaved() {
    let mut it = ManyUsers::durable(|builder| builder);
    it.sign_in([1]).await;
    it.sessions.wait_idle().await;
    it.stores.of(1).inject(StoreCall::Commit, StoreFault::fail());
    // The flight has no waiter.
    begin_refreshes(&it, [1]).await[0].abort();
    let idle = it.spawn_wait_idle();
    settle().await;
    assert!(!idle.is_finished(), "a flight is up");
    it.auth.next().await.answer(Ok(pair(11)));
    sleep(MINUTE).await;
    assert!(!idle.is_finished(), "the tokens are not saved");
    it.stores.of(1).clear_faults();
    idle.await.unwrap();
    assert_eq!(it.stores.of(1).tokens().await, Some(pair(11)));
}

#[tokio::test(start_paused = true)]
async fn wait_idle_waits_for_late_tokens_that_have_to_be_revoked() {
    let mut it = ManyUsers::in_memory(|builder| builder);
    it.sign_in([1]).await;
    begin_refreshes(&it, [1]).await;
    let refresh = it.auth.next().await;
    it.sessions.sign_out(&1).await.unwrap();
    let idle = it.spawn_wait_idle();
    settle().await;
    assert!(!idle.is_finished());
    refresh.answer(Ok(pair(11)));
    idle.await.unwrap();
    assert_eq!(*it.revoked.lock().unwrap(), [pair(1), pair(11)]);
}

// Isolation of users.

/// The user of a token `a{user}-{n}` or `r{user}-{n}`.
fn user_of(token: &str) -> &str {
    token[1..].split_once('-').unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_users_never_get_each_others_tokens() {
    const USERS: u32 = 64;
    const REQUESTS: u32 = 100;
    let issued = Arc::new(AtomicUsize::new(0));
    let issue = {
        let issued = Arc::clone(&issued);
        move |user: &str| {
            let n = issued.fetch_add(1, Ordering::SeqCst);
            Tokens::new(access(&format!("a{user}-{n}")), refresh(&format!("r{user}-{n}")))
        }
    };
    let refresh = {
        let issue = issue.clone();
        service_fn(move |request: RefreshRequest| {
            let tokens = issue(user_of(request.refresh_token().unwrap().expose_secret()));
            async move {
                tokio::task::yield_now().await;
                Ok::<_, RefreshError>(tokens)
            }
        })
    };
    let expired = Arc::new(Mutex::new(HashSet::new()));
    let api = service_fn(move |request: Request<ReplayBody<Full<Bytes>>>| {
        let shown = |headers: &HeaderMap| headers.get(AUTHORIZATION).map(|it| it.to_str().unwrap()[7..].to_owned());
        let token = shown(request.headers());
        let user = request.uri().path()[1..].to_owned();
        if let Some(token) = &token {
            assert_eq!(user_of(token), user);
        }
        // A token is valid for one request.
        let good = token.is_some_and(|token| expired.lock().unwrap().insert(token));
        async move { Ok::<_, Infallible>(response(if good { 200 } else { 401 })) }
    });
    let client = AuthRefreshLayer::per_request(origin()).layer(api);
    // Fewer places than users, so that sessions are evicted and loaded.
    let database = Arc::<Database>::default();
    let stores = Arc::clone(&database);
    let sessions = SessionRegistry::builder(Session::builder(refresh))
        .max_sessions(USERS as usize / 2)
        .max_concurrent_refreshes(8)
        .store_factory(move |user| Arc::new(stores.of(*user)))
        .build()
        .unwrap();
    let users = (0..USERS).map(|user| {
        let (sessions, client, issue) = (sessions.clone(), client.clone(), issue.clone());
        tokio::spawn(async move {
            let mut good = 0;
            let mut sent = 0;
            while sent < REQUESTS {
                if fastrand::u8(..) < 8 {
                    sessions.sign_out(&user).await.unwrap();
                }
                let session = match sessions.get(&user).await {
                    Ok(None) => sessions.sign_in(user, issue(&user.to_string())).await.map(Some),
                    found => found,
                };
                // A registry whose every session is in use has no place for another.
                let session = match session {
                    Ok(session) => session.unwrap(),
                    Err(error) => {
                        assert!(matches!(error, SessionRegistryError::Full), "{error}");
                        tokio::task::yield_now().await;
                        continue;
                    }
                };
                sent += 1;
                let tokens = session.tokens();
                if let Some(token) = tokens.access_token() {
                    assert_eq!(user_of(token.expose_secret()), user.to_string());
                }
                let request = Request::get(format!("{ORIGIN}/{user}")).extension(session).body(Full::default());
                let response = client.clone().oneshot(request.unwrap()).await.unwrap();
                good += u32::from(response.status() == 200);
                if let Some(report) = response.extensions().get::<RefreshReport>() {
                    assert!(!matches!(report, RefreshReport::NotReplayable(_)), "{report}");
                }
            }
            good
        })
    });
    let good: u32 = join_all(users.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap).sum();
    assert_eq!(good, USERS * REQUESTS);
    assert!(sessions.len() <= USERS as usize / 2);
    assert!(issued.load(Ordering::SeqCst) > 1_000);
}

#[tokio::test]
async fn wait_idle_waits_for_a_sign_in_whose_caller_was_dropped() {
    let it = ManyUsers::durable(|builder| builder);
    let mut sign_in = Box::pin(it.sessions.sign_in(1, pair(1)));
    assert!((&mut sign_in).now_or_never().is_none());
    drop(sign_in);
    assert!(it.sessions.wait_idle().now_or_never().is_none());
}

/// Panics when it is dropped, if it is armed.
struct PanicOnDrop(bool);

impl Drop for PanicOnDrop {
    fn drop(&mut self) {
        assert!(!self.0, "the service panics, as injected");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_dies_after_its_waiters_timed_out_frees_its_session() {
    let service = service_fn(|request: RefreshRequest| {
        let panics = PanicOnDrop(*request.tokens() == pair(2));
        async move {
            let _panics = panics;
            std::future::pending::<()>().await;
            Err::<Tokens, _>(RefreshError::unavailable("never"))
        }
    });
    let sessions = SessionRegistry::builder(Session::builder(service)).max_concurrent_refreshes(1).build().unwrap();
    let one = sessions.sign_in(1_u32, pair(1)).await.unwrap();
    let two = sessions.sign_in(2_u32, pair(2)).await.unwrap();
    for session in [one, two.clone()] {
        tokio::spawn(async move { session.refresh().await });
        settle().await;
    }
    // The second refresh waits for its permit, runs, and panics at its time-out.
    sleep(300 * SECOND).await;
    sessions.wait_idle().await;
    let begun = Instant::now();
    assert!(two.refresh().await.is_err());
    assert!(begun.elapsed() >= SECOND, "another refresh was tried");
}
