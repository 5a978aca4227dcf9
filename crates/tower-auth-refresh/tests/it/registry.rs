//! Many sessions by key: found, loaded, forgotten, and refreshed a few at a time.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tower::{BoxError, ServiceExt, service_fn};
use tower_auth_refresh::store::{Epoch, TokenStore};
use tower_auth_refresh::{
    AuthRefresh, AuthRefreshLayer, NotRefreshed, PerRequest, RefreshError, RefreshErrorKind, RefreshReport,
    RefreshRequest, ReplayBody, RevokeRequest, Session, SessionRegistry, SessionRegistryBuilder, SessionRegistryError,
    SessionState, Tokens,
};
use tower_layer::Layer;

use crate::faulty::{Fault, FaultyStore, Op};
use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// How long a refresh may take, unless the builder says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long a call to the store may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client of many users, over an API and an authorization server whose every answer the test decides.
struct Many {
    sessions: SessionRegistry<u32>,
    stores: Arc<Database>,
    client: AuthRefresh<Api, PerRequest>,
    api: ApiCalls,
    auth: AuthCalls,
    revoked: Arc<Mutex<Vec<Tokens>>>,
}

/// A durable store for each user.
#[derive(Default)]
struct Database(Mutex<HashMap<u32, Arc<FaultyStore>>>);

impl Database {
    fn of(&self, user: u32) -> Arc<FaultyStore> {
        self.0.lock().unwrap().entry(user).or_insert_with(FaultyStore::new).clone()
    }
}

impl Many {
    /// Whose sessions are in memory alone.
    fn in_memory(configure: impl FnOnce(SessionRegistryBuilder<u32>) -> SessionRegistryBuilder<u32>) -> Self {
        Self::new(|_, builder| configure(builder))
    }

    /// Whose sessions are in durable stores.
    fn durable(configure: impl FnOnce(SessionRegistryBuilder<u32>) -> SessionRegistryBuilder<u32>) -> Self {
        Self::new(|database, builder| configure(builder.store_factory(move |user| database.of(*user))))
    }

    fn new(configure: impl FnOnce(Arc<Database>, SessionRegistryBuilder<u32>) -> SessionRegistryBuilder<u32>) -> Self {
        let (service, auth) = script();
        let revoked = Arc::<Mutex<Vec<Tokens>>>::default();
        let log = Arc::clone(&revoked);
        let template = Session::builder(service).revoke(service_fn(move |request: RevokeRequest| {
            log.lock().unwrap().push(request.tokens().clone());
            std::future::ready(Ok::<_, BoxError>(()))
        }));
        let stores = Arc::<Database>::default();
        let sessions = configure(Arc::clone(&stores), SessionRegistry::builder(template)).build().unwrap();
        let (service, api) = script();
        let client = AuthRefreshLayer::per_request(origin()).layer(service);
        Self { sessions, stores, client, api, auth, revoked }
    }

    /// Users sign in, each with the [`pair`] of his number; nobody holds their sessions.
    async fn sign_in(&self, users: impl IntoIterator<Item = u32>) {
        for user in users {
            self.sessions.sign_in(user, pair(user)).await.unwrap();
        }
        // What was done for it is over.
        self.sessions.wait_idle().await;
        settle().await;
    }

    /// Somebody signed in elsewhere: the store has it.
    async fn store(&self, users: impl IntoIterator<Item = u32>) {
        for user in users {
            let store = self.stores.of(user);
            store.without_faults().replace(Epoch::random(), &pair(user)).await.unwrap();
        }
    }

    async fn get(&self, user: u32) -> Session {
        self.sessions.get(&user).await.unwrap().unwrap()
    }

    /// Asks for a session, in a task of its own.
    fn ask(&self, user: u32) -> JoinHandle<Session> {
        let sessions = self.sessions.clone();
        tokio::spawn(async move { sessions.get(&user).await.unwrap().unwrap() })
    }

    /// Refreshes a session, in a task of its own.
    async fn refresh(&self, user: u32) -> JoinHandle<Result<(), NotRefreshed>> {
        let session = self.get(user).await;
        tokio::spawn(async move { session.refresh().await })
    }

    /// Waits for all sessions to land, in a task of its own.
    fn land(&self) -> JoinHandle<()> {
        let sessions = self.sessions.clone();
        tokio::spawn(async move { sessions.wait_idle().await })
    }

    /// Asks for a session, and tells how often its store was read for it.
    async fn loads(&self, user: u32) -> usize {
        self.stores.of(user).calls();
        self.sessions.get(&user).await.unwrap();
        self.stores.of(user).calls().into_iter().filter(|op| *op == Op::Load).count()
    }

    /// Whether a session is in memory, found out without touching it: its store can't be read.
    async fn has(&self, user: u32) -> bool {
        let store = self.stores.of(user);
        store.fault(Op::Load, Fault::Fail);
        let found = self.sessions.get(&user).await;
        store.lift(Op::Load);
        found.is_ok()
    }

    /// A request with this session.
    fn send(&self, session: Session) -> JoinHandle<Response<Full<Bytes>>> {
        let request = Request::get(format!("{ORIGIN}/")).extension(session).body(Full::default()).unwrap();
        let client = self.client.clone();
        tokio::spawn(async move { client.oneshot(request).await.unwrap() })
    }
}

fn is_full<T>(result: &Result<T, SessionRegistryError>) -> bool {
    matches!(result, Err(SessionRegistryError::Full))
}

/// What one holder does with a session the other sees: it is one and the same.
async fn assert_same(one: &Session, other: &Session) {
    one.sign_in(pair(4711)).await.unwrap();
    assert_eq!(other.tokens(), pair(4711));
}

// Found and loaded.

#[tokio::test]
async fn who_signed_in_is_found_by_his_key_and_nobody_else() {
    let it = Many::in_memory(|builder| builder);
    let session = it.sessions.sign_in(1, pair(1)).await.unwrap();
    assert!(it.sessions.get(&2).await.unwrap().is_none());
    assert_same(&session, &it.get(1).await).await;
    assert_eq!((it.sessions.len(), it.sessions.is_empty()), (1, false));
}

#[tokio::test]
async fn another_sign_in_goes_on_in_the_same_session() {
    let it = Many::durable(|builder| builder);
    let held = it.sessions.sign_in(1, pair(1)).await.unwrap();
    let again = it.sessions.sign_in(1, pair(2)).await.unwrap();
    assert_eq!(held.tokens(), pair(2));
    assert_same(&held, &again).await;
    assert_eq!(it.sessions.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_ask_for_a_missing_session_and_it_is_loaded_once() {
    let it = Many::durable(|builder| builder);
    it.store([1]).await;
    let store = it.stores.of(1);
    store.fault(Op::Load, Fault::Hang);
    let asking: Vec<_> = (0..1_000).map(|_| it.ask(1)).collect();
    settle().await;
    store.heal();
    let sessions: Vec<_> = join_all(asking).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(store.calls(), [Op::Load]);
    sessions[0].sign_in(pair(7)).await.unwrap();
    assert!(sessions.iter().all(|session| session.tokens() == pair(7)));
}

#[tokio::test(start_paused = true)]
async fn who_asked_first_goes_away_and_the_session_is_still_loaded_once() {
    let it = Many::durable(|builder| builder);
    it.store([1]).await;
    let store = it.stores.of(1);
    store.fault(Op::Load, Fault::Hang);
    let first = it.sessions.get(&1).now_or_never();
    assert!(first.is_none());
    let second = it.ask(1);
    settle().await;
    store.heal();
    assert_eq!(second.await.unwrap().tokens(), pair(1));
    assert_eq!(store.calls(), [Op::Load]);
}

#[tokio::test]
async fn a_session_in_memory_is_found_without_waiting() {
    let it = Many::durable(|builder| builder);
    it.sign_in([1]).await;
    let found = it.sessions.get(&1).now_or_never().expect("at the first poll");
    assert_eq!(found.unwrap().unwrap().tokens(), pair(1));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_fails_all_who_asked_and_the_next_to_ask_tries_again() {
    for fault in [Fault::Fail, Fault::Hang, Fault::Panic, Fault::PanicNow] {
        let it = Many::durable(|builder| builder);
        it.store([1]).await;
        let store = it.stores.of(1);
        store.fault(Op::Load, fault);
        for error in join_all((0..10).map(|_| it.sessions.get(&1))).await {
            let error = error.unwrap_err();
            assert!(matches!(&error, SessionRegistryError::Session(_)), "{fault:?}: {error}");
        }
        assert_eq!(store.calls(), [Op::Load], "{fault:?}");
        store.heal();
        assert_eq!(it.get(1).await.tokens(), pair(1), "{fault:?}");
    }
}

#[tokio::test]
async fn who_is_missing_in_the_store_too_is_looked_for_anew_each_time() {
    let it = Many::durable(|builder| builder);
    assert_eq!(it.loads(1).await, 1);
    assert_eq!(it.loads(1).await, 1);
    it.store([1]).await;
    assert_eq!(it.get(1).await.tokens(), pair(1));
    assert_eq!(it.sessions.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_is_quicker_than_a_load_and_what_was_read_is_out_of_date() {
    let it = Many::durable(|builder| builder);
    it.store([1]).await;
    let store = it.stores.of(1);
    // It has read the old record, and hangs.
    store.fault(Op::Load, Fault::HangLate);
    let asking = it.ask(1);
    settle().await;
    let signing_in = {
        let sessions = it.sessions.clone();
        tokio::spawn(async move { sessions.sign_in(1, pair(2)).await.unwrap() })
    };
    settle().await;
    store.heal();
    let (asked, signed_in) = (asking.await.unwrap(), signing_in.await.unwrap());
    assert_eq!(asked.tokens(), pair(2));
    assert_same(&asked, &signed_in).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_a_sign_in_does_not_come_back_after_that_is_forgotten() {
    let it = Many::durable(|builder| builder.max_sessions(1));
    it.store([1]).await;
    let store = it.stores.of(1);
    let release = store.hold(Op::Load);
    let asking = it.ask(1);
    settle().await;
    it.sessions.sign_in(1, pair(2)).await.unwrap();
    // There is room for one alone.
    it.sign_in([9]).await;
    drop(release);
    assert_eq!(asking.await.unwrap().tokens(), pair(2));
    assert_eq!(it.sessions.len(), 1);
}

#[tokio::test]
async fn in_memory_alone_a_new_user_is_signed_in_without_waiting() {
    let it = Many::in_memory(|builder| builder);
    let session = it.sessions.sign_in(1, pair(1)).now_or_never().expect("at the first poll").unwrap();
    assert!(it.sessions.wait_idle().now_or_never().is_some(), "nothing is to be saved");
    // What is in its store is what it says.
    let refreshing = it.refresh(1).await;
    let mut auth = it.auth;
    auth.next().await.answer(Ok(pair(11)));
    refreshing.await.unwrap().unwrap();
    assert_eq!(session.tokens(), pair(11));
}

thread_local! {
    /// Whose key may be hashed, if not everybody's.
    static HASHED: Cell<Option<u32>> = const { Cell::new(None) };
}

#[derive(Clone, PartialEq, Eq)]
struct Moody(u32);

impl Hash for Moody {
    fn hash<H: Hasher>(&self, state: &mut H) {
        assert!(HASHED.get().is_none_or(|user| user == self.0), "the key panics, as the test wants it to");
        self.0.hash(state);
    }
}

#[tokio::test]
async fn a_key_that_panics_costs_nobody_else_his_place() {
    let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
    let sessions = SessionRegistry::builder(Session::builder(refresh)).build().unwrap();
    // They come and go, so that the table grows, and is tidied up.
    for user in 0..10_000 {
        HASHED.set(Some(user));
        sessions.sign_in(Moody(user), pair(user)).await.unwrap();
        if let Some(gone) = user.checked_sub(3_000).filter(|gone| gone % 100 != 0) {
            HASHED.set(Some(gone));
            sessions.sign_out(&Moody(gone)).await.unwrap();
        }
    }
    HASHED.set(None);
    for user in (0..7_000).step_by(100).chain(7_000..10_000) {
        assert_eq!(sessions.get(&Moody(user)).await.unwrap().unwrap().tokens(), pair(user));
    }
}

#[tokio::test]
async fn where_no_refresh_token_is_needed_a_session_is_begun_with_what_tells_whose_it_is() {
    let refresh = service_fn(|request: RefreshRequest| {
        let tenant = request.tokens().extra("tenant").and_then(|tenant| tenant.as_str()).map(access);
        std::future::ready(tenant.map(Tokens::from_access_token).ok_or(RefreshError::misconfigured("whose?")))
    });
    let sessions = SessionRegistry::builder(Session::builder(refresh).client_credentials()).build().unwrap();
    assert!(sessions.get(&1).await.unwrap().is_none());
    for (user, tenant) in [(1, "one"), (2, "two")] {
        let whose = serde_json::from_value(serde_json::json!({ "tenant": tenant })).unwrap();
        let session = sessions.sign_in(user, Tokens::default().with_extra(whose)).await.unwrap();
        for _ in 0..2 {
            session.refresh().await.ok();
            assert_eq!(session.tokens().access_token(), Some(&access(tenant)));
        }
    }
}

// Signed out.

#[tokio::test]
async fn a_sign_out_touches_no_other() {
    let it = Many::durable(|builder| builder);
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
async fn who_is_not_in_memory_is_signed_out_of_his_store() {
    let it = Many::durable(|builder| builder);
    it.store([1]).await;
    it.sessions.sign_out(&1).await.unwrap();
    assert_eq!(it.stores.of(1).tokens().await, None);
    assert_eq!(*it.revoked.lock().unwrap(), [pair(1)]);
    assert!(it.sessions.is_empty());
    // Nor is it an error to sign out nobody.
    it.sessions.sign_out(&2).await.unwrap();
}

#[tokio::test]
async fn a_sign_out_needs_no_room() {
    let it = Many::durable(|builder| builder.max_sessions(1));
    let _held = it.sessions.sign_in(1, pair(1)).await.unwrap();
    it.store([2]).await;
    assert!(is_full(&it.sessions.get(&2).await));
    it.sessions.sign_out(&2).await.unwrap();
    assert_eq!(it.stores.of(2).tokens().await, None);
    assert_eq!(*it.revoked.lock().unwrap(), [pair(2)]);
}

#[tokio::test]
async fn a_sign_out_of_somebody_who_is_not_in_memory_forgets_nobody_else() {
    let it = Many::durable(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    it.store([2]).await;
    it.sessions.sign_out(&2).await.unwrap();
    assert_eq!(it.stores.of(2).tokens().await, None);
    assert!(it.has(1).await);
    assert_eq!(it.sessions.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_during_a_sign_out_that_found_no_room_has_the_same_session() {
    let it = Many::durable(|builder| builder.max_sessions(1));
    let held = it.sessions.sign_in(1, pair(1)).await.unwrap();
    it.store([2]).await;
    it.stores.of(2).fault(Op::Clear, Fault::Hang);
    let signing_out = {
        let sessions = it.sessions.clone();
        tokio::spawn(async move { sessions.sign_out(&2).await })
    };
    settle().await;
    // There is room now.
    drop(held);
    assert_eq!(it.get(2).await.state(), SessionState::SignedOut);
    it.stores.of(2).heal();
    signing_out.await.unwrap().unwrap();
    assert!(it.sessions.get(&2).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_that_is_given_up_takes_nobodys_room_for_good() {
    let it = Many::durable(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    it.store([2, 3]).await;
    for user in [2, 3] {
        it.stores.of(user).fault(Op::Load, Fault::Hang);
        let signing_out = {
            let sessions = it.sessions.clone();
            tokio::spawn(async move { sessions.sign_out(&user).await })
        };
        settle().await;
        signing_out.abort();
        settle().await;
        it.stores.of(user).heal();
        settle().await;
    }
    it.sign_in([4]).await;
    assert_eq!(it.sessions.len(), 1);
}

#[tokio::test]
async fn whoever_holds_a_session_that_was_signed_out_has_the_same_after_the_next_sign_in() {
    let it = Many::in_memory(|builder| builder);
    let held = it.sessions.sign_in(1, pair(1)).await.unwrap();
    it.sessions.sign_out(&1).await.unwrap();
    assert_eq!(held.state(), SessionState::SignedOut);
    let again = it.sessions.sign_in(1, pair(2)).await.unwrap();
    assert_eq!(held.tokens(), pair(2));
    assert_same(&held, &again).await;
}

#[tokio::test]
async fn a_session_that_is_over_is_looked_for_in_its_store_again() {
    let it = Many::durable(|builder| builder);
    let session = it.sessions.sign_in(1, pair(1)).await.unwrap();
    session.sign_out().await.unwrap();
    drop(session);
    assert!(it.sessions.get(&1).await.unwrap().is_none());
    // In another process.
    it.store([1]).await;
    assert_eq!(it.get(1).await.tokens(), pair(1));
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_beats_the_eviction_of_the_same_session() {
    let it = Many::durable(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    // The sign-out has the session and waits for its store; there is no room for another user meanwhile.
    it.stores.of(1).fault(Op::Clear, Fault::Hang);
    let signing_out = {
        let sessions = it.sessions.clone();
        tokio::spawn(async move { sessions.sign_out(&1).await })
    };
    settle().await;
    assert!(is_full(&it.sessions.sign_in(2, pair(2)).await));
    it.stores.of(1).heal();
    signing_out.await.unwrap().unwrap();
    it.sign_in([2]).await;
    assert_eq!(it.stores.of(1).tokens().await, None);
    // The other way round: forgotten first, then signed out.
    it.sign_in([3]).await;
    assert!(!it.has(2).await);
    it.sessions.sign_out(&2).await.unwrap();
    assert_eq!(it.stores.of(2).tokens().await, None);
    assert_eq!(*it.revoked.lock().unwrap(), [pair(1), pair(2)]);
}

// As many as fit.

#[tokio::test]
async fn there_are_never_more_than_fit_and_whoever_was_forgotten_comes_back() {
    let it = Many::durable(|builder| builder.max_sessions(100));
    it.sign_in(1..=1_000).await;
    assert_eq!(it.sessions.len(), 100);
    for user in 1..=1_000 {
        assert_eq!(it.get(user).await.tokens(), pair(user));
        assert_eq!(it.sessions.len(), 100);
    }
    assert!(it.revoked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_longest_unused_is_forgotten_first() {
    let it = Many::durable(|builder| builder.max_sessions(3));
    it.sign_in(1..=3).await;
    it.get(1).await;
    it.sign_in([4]).await;
    assert!(!it.has(2).await);
    for user in [1, 3, 4] {
        assert!(it.has(user).await, "{user}");
    }
}

#[tokio::test]
async fn who_is_refused_finds_the_only_one_that_may_go_when_he_tries_again() {
    const USERS: u32 = 20_000;
    let it = Many::in_memory(|builder| builder.max_sessions(USERS as usize));
    for user in 0..USERS {
        it.sessions.sign_in(user, pair(user)).await.unwrap();
    }
    it.get(4711).await.sign_out().await.unwrap();
    // Each attempt looks at some thousands, and the next goes on from there: the others wait for nobody who looks longer.
    let mut refused = 0;
    while is_full(&it.sessions.sign_in(USERS, pair(USERS)).await) {
        refused += 1;
        assert!(refused <= 10);
    }
    assert!(it.sessions.get(&4711).await.unwrap().is_none());
    assert_eq!(it.get(USERS).await.tokens(), pair(USERS));
}

#[tokio::test]
async fn a_full_house_of_sessions_in_memory_alone_refuses_the_sign_in_and_forgets_nobody() {
    let it = Many::in_memory(|builder| builder.max_sessions(100));
    it.sign_in(1..=100).await;
    for user in 101..=200 {
        let refused = it.sessions.sign_in(user, pair(user)).await;
        let message = refused.as_ref().unwrap_err().to_string();
        assert_eq!(message, "there is no room for another session: all are in use, or could not be brought back");
        assert!(is_full(&refused));
    }
    for user in 1..=100 {
        assert_eq!(it.get(user).await.tokens(), pair(user));
    }
    // Whoever is there may sign in again, and whoever goes makes room.
    it.sessions.sign_in(1, pair(300)).await.unwrap();
    it.sessions.sign_out(&2).await.unwrap();
    it.sessions.sign_in(101, pair(101)).await.unwrap();
    assert_eq!(it.sessions.len(), 100);
}

#[tokio::test]
async fn whoever_is_held_is_never_forgotten_and_found_again() {
    let it = Many::durable(|builder| builder.max_sessions(100));
    let mut held = Vec::new();
    for user in 1..=99 {
        held.push(it.sessions.sign_in(user, pair(user)).await.unwrap());
    }
    it.sign_in(100..=1_000).await;
    for (user, held) in (1..).zip(&held) {
        assert_eq!(it.loads(user).await, 0);
        assert_same(held, &it.get(user).await).await;
    }
    // Among them the only one that may go is found, wherever it is.
    assert_eq!(it.sessions.len(), 100);
    held.push(it.get(5_000).now_or_never().unwrap_or(it.sessions.sign_in(5_000, pair(1)).await.unwrap()));
    assert!(is_full(&it.sessions.sign_in(5_001, pair(1)).await));
    held.pop();
    it.sign_in([5_001]).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_is_watched_is_held() {
    let it = Many::durable(|builder| builder.max_sessions(1).idle_timeout(8 * MINUTE));
    let mut watcher = it.sessions.sign_in(1, pair(1)).await.unwrap().subscribe();
    sleep(60 * MINUTE).await;
    assert!(is_full(&it.sessions.sign_in(2, pair(2)).await));
    it.sessions.sign_out(&1).await.unwrap();
    it.sessions.sign_in(1, pair(3)).await.unwrap().sign_out().await.unwrap();
    watcher.changed().await.expect("it is the same session");
    assert_eq!(*watcher.borrow_and_update(), SessionState::SignedOut);
    drop(watcher);
    it.sign_in([2]).await;
}

#[tokio::test(start_paused = true)]
async fn one_with_a_flight_up_is_never_forgotten() {
    let mut it = Many::durable(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    let refreshing = it.refresh(1).await;
    let refresh = it.auth.next().await;
    // Even when nobody waits for it.
    refreshing.abort();
    settle().await;
    assert!(is_full(&it.sessions.sign_in(2, pair(2)).await));
    refresh.answer(Ok(pair(11)));
    it.sessions.wait_idle().await;
    settle().await;
    it.sign_in([2]).await;
    assert!(!it.has(1).await);
    assert_eq!(it.get(1).await.tokens(), pair(11));
}

#[tokio::test(start_paused = true)]
async fn one_with_unsaved_tokens_is_never_forgotten() {
    let mut it = Many::durable(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    let store = it.stores.of(1);
    store.fault(Op::Commit, Fault::Fail);
    let refreshing = it.refresh(1).await;
    it.auth.next().await.answer(Ok(pair(11)));
    refreshing.await.unwrap().unwrap();
    for _ in 0..10 {
        sleep(MINUTE).await;
        assert!(is_full(&it.sessions.sign_in(2, pair(2)).await));
    }
    store.heal();
    sleep(2 * MINUTE).await;
    it.sign_in([2]).await;
    assert_eq!(it.get(1).await.tokens(), pair(11));
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_that_was_not_saved_is_found_and_never_forgotten() {
    let it = Many::durable(|builder| builder.max_sessions(1));
    it.stores.of(1).fault(Op::Replace, Fault::Fail);
    let error = it.sessions.sign_in(1, pair(1)).await.unwrap_err();
    assert_eq!(error.to_string(), "the session's store failed");
    assert_eq!(it.get(1).await.tokens(), pair(1));
    assert!(is_full(&it.sessions.sign_in(2, pair(2)).await));
    it.stores.of(1).heal();
    it.sessions.wait_idle().await;
    settle().await;
    assert_eq!(it.stores.of(1).tokens().await, Some(pair(1)));
    it.sign_in([2]).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_cools_down_is_not_forgotten_or_it_would_call_again() {
    let mut it = Many::durable(|builder| builder.max_sessions(1));
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
async fn an_api_that_refuses_fresh_tokens_is_not_forgotten_with_a_session() {
    let mut it = Many::durable(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    let begun = Instant::now();
    let mut refreshes = 0;
    while begun.elapsed() < 60 * MINUTE {
        // Each request finds the session forgotten, if it may be.
        let _ = it.sessions.sign_in(2, pair(2)).await;
        let Ok(Some(session)) = it.sessions.get(&1).await else { panic!("its place was taken for good") };
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
async fn a_session_that_has_ended_makes_room() {
    let mut it = Many::in_memory(|builder| builder.max_sessions(1));
    it.sign_in([1]).await;
    let refreshing = it.refresh(1).await;
    it.auth.next().await.answer(Err(RefreshError::rejected("expired")));
    refreshing.await.unwrap().unwrap_err();
    settle().await;
    it.sign_in([2]).await;
    assert!(it.sessions.get(&1).await.unwrap().is_none());
}

// Idle.

#[tokio::test(start_paused = true)]
async fn an_idle_session_is_forgotten_where_its_store_brings_it_back() {
    let it = Many::durable(|builder| builder.idle_timeout(8 * MINUTE));
    it.sign_in(1..=3).await;
    let _held = it.get(1).await;
    for _ in 0..16 {
        sleep(MINUTE).await;
        // One that is asked for isn't idle.
        it.get(2).await;
    }
    assert_eq!(it.sessions.len(), 2);
    assert_eq!(it.loads(1).await + it.loads(2).await, 0);
    assert_eq!(it.loads(3).await, 1);
    assert!(it.revoked.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_in_memory_alone_is_signed_out_and_its_tokens_are_revoked() {
    let it = Many::in_memory(|builder| builder.idle_timeout(8 * MINUTE));
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
async fn a_revoke_service_that_hangs_keeps_nobody_from_going() {
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
    assert_eq!(sessions.len(), 1, "all are gone whose time it is");
    sleep(5 * MINUTE).await;
    assert!(sessions.is_empty());
    // The authorization server is spared all the same, and told of everybody.
    sessions.wait_idle().await;
    assert_eq!([hanging, most].map(|it| it.load(Ordering::SeqCst)), [0, 16]);
    assert!(begun.elapsed() > NEARLY * 1_000 / 16);
}

/// A key that is an object: it tells whether somebody holds it.
#[derive(Clone)]
struct Held(Arc<()>);

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Held {}

impl Hash for Held {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

#[tokio::test(start_paused = true)]
async fn they_go_with_their_last_handle_even_while_a_revocation_hangs() {
    let revoke = service_fn(|_: RevokeRequest| std::future::pending::<Result<(), BoxError>>());
    let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
    let sessions =
        SessionRegistry::builder(Session::builder(refresh).revoke(revoke)).idle_timeout(8 * MINUTE).build().unwrap();
    let [idle, used] = [(); 2].map(|()| Held(Arc::new(())));
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
async fn without_a_limit_on_idle_time_nobody_is_ever_signed_out() {
    let it = Many::in_memory(|builder| builder);
    it.sign_in([1]).await;
    sleep(24 * 60 * MINUTE).await;
    assert_eq!(it.get(1).await.tokens(), pair(1));
}

#[tokio::test(start_paused = true)]
async fn what_is_over_is_swept() {
    let it = Many::in_memory(|builder| builder);
    let session = it.sessions.sign_in(1, pair(1)).await.unwrap();
    session.sign_out().await.unwrap();
    sleep(5 * MINUTE).await;
    assert_eq!(it.sessions.len(), 1, "somebody holds it");
    drop(session);
    sleep(2 * MINUTE).await;
    assert!(it.sessions.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_has_no_task_and_all_have_one_that_ends_with_them() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let it = Many::in_memory(|builder| builder.idle_timeout(MINUTE));
    it.sign_in(1..=1_000).await;
    assert_eq!(tasks(), before + 1);
    drop(it);
    settle().await;
    assert_eq!(tasks(), before);
}

#[test]
fn they_are_not_built_outside_a_runtime() {
    let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
    let error = SessionRegistry::<u32>::builder(Session::builder(refresh)).build().unwrap_err();
    assert_eq!(error.to_string(), "the session has no running tokio runtime");
}

// A few refreshes at a time.

#[tokio::test(start_paused = true)]
async fn ten_thousand_expire_together_and_no_more_are_refreshed_at_a_time_than_may_be() {
    const USERS: u32 = 10_000;
    const LIMIT: usize = 100;
    let [flying, most, calls] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
    let counters = [&flying, &most, &calls].map(Arc::clone);
    let refresh = service_fn(move |request: RefreshRequest| {
        let [flying, most, calls] = counters.clone();
        async move {
            calls.fetch_add(1, Ordering::SeqCst);
            most.fetch_max(flying.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            sleep(Duration::from_millis(50)).await;
            flying.fetch_sub(1, Ordering::SeqCst);
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
    assert_eq!([flying, most, calls].map(|it| it.load(Ordering::SeqCst)), [0, LIMIT, USERS as usize]);
    // As soon as the limit allows, but for what they are spread by.
    let rounds = u32::try_from(USERS as usize / LIMIT).unwrap();
    let elapsed = begun.elapsed();
    assert!((rounds * Duration::from_millis(50)..rounds * Duration::from_millis(65)).contains(&elapsed), "{elapsed:?}");
    for user in 0..USERS {
        assert_eq!(sessions.get(&user).await.unwrap().unwrap().tokens(), pair(user + USERS));
    }
}

/// Users refresh, one after the other.
async fn begin_refreshes(it: &Many, users: impl IntoIterator<Item = u32>) -> Vec<JoinHandle<Result<(), NotRefreshed>>> {
    let mut refreshing = Vec::new();
    for user in users {
        refreshing.push(it.refresh(user).await);
        settle().await;
    }
    refreshing
}

#[tokio::test(start_paused = true)]
async fn turns_come_in_the_order_of_arrival() {
    let mut it = Many::in_memory(|builder| builder.max_concurrent_refreshes(1));
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
async fn those_who_waited_together_do_not_call_together() {
    let mut it = Many::in_memory(|builder| builder.max_concurrent_refreshes(50));
    it.sign_in(1..=100).await;
    let refreshing = begin_refreshes(&it, 1..=100).await;
    let begun = Instant::now();
    // Who finds his turn free is not held up.
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
async fn waiting_for_a_turn_is_no_attempt_and_takes_nothing_of_the_refresh_time() {
    let mut it = Many::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in([1, 2]).await;
    begin_refreshes(&it, [1, 2]).await;
    let first = it.auth.next().await;
    sleep(Duration::from_secs(29)).await;
    first.answer(Ok(pair(11)));
    // It takes nearly all of its own time now, and two attempts before that fail.
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
async fn nobody_waits_for_a_turn_beyond_his_deadline_and_his_session_keeps_its_place() {
    let mut it = Many::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in([1, 2]).await;
    begin_refreshes(&it, [1]).await;
    // It is never answered.
    drop(it.auth.next().await);
    sleep(TIMEOUT / 2).await;
    let begun = Instant::now();
    let response = it.send(it.get(2).await);
    it.api.next().await.reply(401).await;
    let second = it.auth.next().await;
    assert_eq!(second.presented(), "r2");
    assert!((TIMEOUT / 2..TIMEOUT / 2 + SECOND).contains(&begun.elapsed()));
    // Neither is this one in time.
    let response = response.await.unwrap();
    assert_eq!(begun.elapsed(), TIMEOUT + PATIENCE);
    assert_eq!(failure(&response).kind(), RefreshErrorKind::InDoubt);
    second.answer(Ok(pair(12)));
    it.sessions.wait_idle().await;
    assert_eq!(it.get(2).await.tokens(), pair(12));
}

#[tokio::test(start_paused = true)]
async fn who_is_answered_before_his_turn_comes_is_told_that_nothing_was_sent() {
    let mut it = Many::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in(1..=4).await;
    begin_refreshes(&it, 1..=3).await;
    // Each takes all of its time.
    let first = it.auth.next().await;
    let begun = Instant::now();
    let response = it.send(it.get(4).await);
    it.api.next().await.reply(401).await;
    let response = response.await.unwrap();
    assert_eq!(begun.elapsed(), TIMEOUT + PATIENCE);
    assert!(matches!(failure(&response).kind(), RefreshErrorKind::Unavailable));
    drop(first);
    for _ in 2..=3 {
        drop(it.auth.next().await);
    }
    // Its turn comes all the same, for the requests to come.
    let last = it.auth.next().await;
    assert_eq!(last.presented(), "r4");
    last.answer(Ok(pair(14)));
    settle().await;
    assert_eq!(it.get(4).await.tokens(), pair(14));
}

#[tokio::test(start_paused = true)]
async fn who_comes_after_others_were_sent_away_waits_his_own_time_for_the_same_refresh() {
    let mut it = Many::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in(1..=4).await;
    begin_refreshes(&it, 1..=3).await;
    let begun = Instant::now();
    let early = it.send(it.get(4).await);
    it.api.next().await.reply(401).await;
    // Each takes all of its time: the fourth turn comes after 90 s.
    failure(&early.await.unwrap());
    assert_eq!(begun.elapsed(), TIMEOUT + PATIENCE);
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
async fn whoever_comes_is_sent_away_at_the_end_of_his_own_time_or_a_second_before() {
    let it = Many::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in(1..=5).await;
    begin_refreshes(&it, 1..=4).await;
    let begun = Instant::now();
    let mut waits = Vec::new();
    // His turn would come after 120 s.
    for came in [0, 500, 999, 1_001, 20_000, 34_999, 35_001, 50_000].map(Duration::from_millis) {
        sleep(came.saturating_sub(begun.elapsed())).await;
        let refresh = it.refresh(5).await;
        waits.push(tokio::spawn(async move {
            let begun = Instant::now();
            (refresh.await.unwrap(), begun.elapsed())
        }));
    }
    for (refreshed, waited) in join_all(waits).await.into_iter().map(Result::unwrap) {
        assert!(matches!(refreshed, Err(NotRefreshed::Failed(_))), "{refreshed:?}");
        assert!((TIMEOUT + 4 * SECOND..=TIMEOUT + PATIENCE).contains(&waited), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_waited_for_its_turn_before_it_was_sent_is_not_kept_waiting_again() {
    let mut it = Many::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in(1..=4).await;
    begin_refreshes(&it, 1..=3).await;
    let refused = it.send(it.get(4).await);
    it.api.next().await.reply(401).await;
    settle().await;
    let begun = Instant::now();
    let held_back = it.send(it.get(4).await);
    it.api.reply(1, "a4", 401).await;
    assert_eq!(begun.elapsed(), TIMEOUT + PATIENCE);
    for response in [refused, held_back] {
        let response = response.await.unwrap();
        assert!(matches!(failure(&response).kind(), RefreshErrorKind::Unavailable));
    }
    assert_eq!(begun.elapsed(), TIMEOUT + PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn who_signs_out_while_he_waits_for_his_turn_is_not_refreshed() {
    let mut it = Many::in_memory(|builder| builder.max_concurrent_refreshes(1));
    it.sign_in(1..=3).await;
    let refreshing = begin_refreshes(&it, 1..=3).await;
    let first = it.auth.next().await;
    it.sessions.sign_out(&2).await.unwrap();
    first.answer(Ok(pair(11)));
    // The next turn is the next one's.
    let third = it.auth.next().await;
    assert_eq!(third.presented(), "r3");
    third.answer(Ok(pair(13)));
    let refreshed: Vec<_> = join_all(refreshing).await.into_iter().map(Result::unwrap).collect();
    assert!(matches!(refreshed[..], [Ok(()), Err(NotRefreshed::SessionChanged), Ok(())]), "{refreshed:?}");
    assert!(it.auth.is_idle().await);
}

// At the end.

#[tokio::test(start_paused = true)]
async fn they_have_landed_once_no_flight_is_up_and_nothing_is_unsaved() {
    let mut it = Many::durable(|builder| builder);
    it.sign_in([1]).await;
    it.sessions.wait_idle().await;
    it.stores.of(1).fault(Op::Commit, Fault::Fail);
    // Nobody waits for it.
    begin_refreshes(&it, [1]).await[0].abort();
    let landed = it.land();
    settle().await;
    assert!(!landed.is_finished(), "a flight is up");
    it.auth.next().await.answer(Ok(pair(11)));
    sleep(MINUTE).await;
    assert!(!landed.is_finished(), "its tokens are not saved");
    it.stores.of(1).heal();
    landed.await.unwrap();
    assert_eq!(it.stores.of(1).tokens().await, Some(pair(11)));
}

#[tokio::test(start_paused = true)]
async fn they_have_not_landed_while_tokens_may_arrive_that_are_to_be_revoked() {
    let mut it = Many::in_memory(|builder| builder);
    it.sign_in([1]).await;
    begin_refreshes(&it, [1]).await;
    let refresh = it.auth.next().await;
    it.sessions.sign_out(&1).await.unwrap();
    let landed = it.land();
    settle().await;
    assert!(!landed.is_finished());
    refresh.answer(Ok(pair(11)));
    landed.await.unwrap();
    assert_eq!(*it.revoked.lock().unwrap(), [pair(1), pair(11)]);
}

// Whose token, to whom.

/// Whose token it is: "a{user}-{n}" or "r{user}-{n}".
fn user_of(token: &str) -> &str {
    token[1..].split_once('-').unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_users_never_get_each_others_tokens() {
    const USERS: u32 = 64;
    const REQUESTS: u32 = 300;
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
        // A token is good for one request.
        let good = token.is_some_and(|token| expired.lock().unwrap().insert(token));
        async move { Ok::<_, Infallible>(response(if good { 200 } else { 401 })) }
    });
    let client = AuthRefreshLayer::per_request(origin()).layer(api);
    // Fewer than there are users, so that they come and go.
    let database = Arc::<Database>::default();
    let stores = Arc::clone(&database);
    let sessions = SessionRegistry::builder(Session::builder(refresh))
        .max_sessions(USERS as usize / 2)
        .max_concurrent_refreshes(8)
        .store_factory(move |user| stores.of(*user))
        .build()
        .unwrap();
    let users = (0..USERS).map(|user| {
        let (sessions, client, issue) = (sessions.clone(), client.clone(), issue.clone());
        tokio::spawn(async move {
            let mut good = 0;
            for _ in 0..REQUESTS {
                if fastrand::u8(..) < 8 {
                    sessions.sign_out(&user).await.unwrap();
                }
                let session = match sessions.get(&user).await {
                    Ok(Some(session)) => session,
                    Ok(None) => match sessions.sign_in(user, issue(&user.to_string())).await {
                        Ok(session) => session,
                        Err(error) => {
                            assert!(matches!(error, SessionRegistryError::Full), "{error}");
                            continue;
                        }
                    },
                    Err(error) => {
                        assert!(matches!(error, SessionRegistryError::Full), "{error}");
                        tokio::task::yield_now().await;
                        continue;
                    }
                };
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
    assert!(good > USERS * REQUESTS / 4, "{good}");
    assert!(sessions.len() <= USERS as usize / 2);
    assert!(issued.load(Ordering::SeqCst) > 1_000);
}

#[tokio::test]
async fn landed_waits_for_a_sign_in_whose_caller_has_gone() {
    let it = Many::durable(|builder| builder);
    let mut sign_in = Box::pin(it.sessions.sign_in(1, pair(1)));
    assert!((&mut sign_in).now_or_never().is_none());
    drop(sign_in);
    assert!(it.sessions.wait_idle().now_or_never().is_none());
}

/// Panics when it is dropped, if it is live.
struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.0, "the service panics, as the test wants it to");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_dies_after_its_waiters_were_sent_away_frees_its_session() {
    let service = service_fn(|request: RefreshRequest| {
        let bomb = Bomb(*request.tokens() == pair(2));
        async move {
            let _bomb = bomb;
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
    // The second waits for its turn, flies, and dies at its time-out.
    sleep(300 * SECOND).await;
    sessions.wait_idle().await;
    let begun = Instant::now();
    assert!(two.refresh().await.is_err());
    assert!(begun.elapsed() >= SECOND, "another refresh was tried");
}
