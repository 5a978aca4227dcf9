//! Cancellation: dropped callers, and runtimes that shut down.

use std::convert::Infallible;
use std::future::Future;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread, ThreadId};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join};
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tokio::runtime::{self, Runtime};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tower::{BoxError, Service, ServiceExt, service_fn};
use tower_auth_refresh::refresh::RevokeRequest;
use tower_auth_refresh::session::SessionErrorKind;
use tower_auth_refresh::store::{MemoryStore, TokenStore};
use tower_auth_refresh::{
    AuthRefresh, AuthRefreshLayer, NotRefreshed, RefreshError, RefreshErrorKind, RefreshRequest, ReplayBody, Session,
    SessionRegistry, SessionState, Tokens,
};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, FaultyStore, StoreFault};
use tower_layer::Layer;

use crate::support::*;

const MINUTE: Duration = Duration::from_secs(60);

/// The moment at which a future is dropped, unless it has completed before.
#[derive(Clone, Copy, Debug)]
enum Dropped {
    /// After this many polls.
    AtPoll(usize),
    /// After the other tasks have had this many turns.
    AtTurn(usize),
}

impl Dropped {
    /// Runs `future` until it is dropped. Returns its output if it has completed before.
    async fn run<F>(self, future: F) -> Option<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        match self {
            Self::AtPoll(polls) => {
                let mut future = Box::pin(future);
                let mut polled = 0;
                let ended = std::future::poll_fn(move |cx| {
                    polled += 1;
                    match future.as_mut().poll(cx) {
                        Poll::Ready(output) => Poll::Ready(Some(output)),
                        Poll::Pending if polled == polls => Poll::Ready(None),
                        Poll::Pending => Poll::Pending,
                    }
                });
                tokio::spawn(ended).await.unwrap()
            }
            Self::AtTurn(turns) => {
                let task = tokio::spawn(future);
                for _ in 0..turns {
                    yield_now().await;
                }
                task.abort();
                task.await.ok()
            }
        }
    }

    /// Runs `scenario` for each moment in order, until its future completes before it is dropped; `scenario` returns
    /// whether it did. Returns the number of polls and of turns at which the future was dropped.
    async fn at_each_moment(mut scenario: impl AsyncFnMut(Self) -> bool) -> (usize, usize) {
        let (mut polls, mut turns) = (1, 0);
        while !scenario(Self::AtPoll(polls)).await {
            polls += 1;
        }
        while !scenario(Self::AtTurn(turns)).await {
            turns += 1;
        }
        (polls - 1, turns)
    }
}

/// An API that refuses `a1`. Each of its futures is pending at the first poll.
#[derive(Default)]
struct SlowApi {
    ready: bool,
    sent: Arc<Mutex<Vec<Option<String>>>>,
}

impl Clone for SlowApi {
    fn clone(&self) -> Self {
        Self { ready: false, sent: Arc::clone(&self.sent) }
    }
}

impl Service<Request<ReplayBody<Full<Bytes>>>> for SlowApi {
    type Response = Response<SlowBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if mem::replace(&mut self.ready, true) {
            return Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, request: Request<ReplayBody<Full<Bytes>>>) -> Self::Future {
        assert!(mem::take(&mut self.ready), "called before it was ready");
        let token = request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
        self.sent.lock().unwrap().push(token.clone());
        Box::pin(async move {
            yield_now().await;
            let _ = request.into_body().collect().await;
            yield_now().await;
            let mut response = Response::new(SlowBody(3));
            if token.as_deref() == Some("Bearer a1") {
                *response.status_mut() = StatusCode::UNAUTHORIZED;
                response.headers_mut().insert(WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"".parse().unwrap());
            }
            Ok(response)
        })
    }
}

/// A body that ends after this many polls.
struct SlowBody(u32);

impl Body for SlowBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.checked_sub(1) {
            None => Poll::Ready(None),
            Some(left) => {
                self.0 = left;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

/// A session whose services and store yield to the scheduler, and a client over a [`SlowApi`].
struct Slow {
    session: Session,
    client: AuthRefresh<SlowApi, Session>,
    store: FaultyStore,
    refreshes: Arc<AtomicU32>,
    revoked: Arc<Mutex<Vec<Tokens>>>,
}

impl Slow {
    async fn new() -> Self {
        let refreshes = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&refreshes);
        let refresh = tower::service_fn(move |request: RefreshRequest| {
            let refresh = count.fetch_add(1, Ordering::Relaxed) + 1;
            assert_eq!(request.refresh_token().unwrap().expose_secret(), format!("r{refresh}"));
            async move {
                yield_now().await;
                yield_now().await;
                Ok::<_, RefreshError>(pair(refresh + 1))
            }
        });
        let revoked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&revoked);
        let revoke = tower::service_fn(move |request: RevokeRequest| {
            let log = Arc::clone(&log);
            async move {
                yield_now().await;
                log.lock().unwrap().push(request.tokens().clone());
                yield_now().await;
                Ok::<_, BoxError>(())
            }
        });
        let store = faulty_store();
        let builder = Session::builder(refresh).tokens(pair(1)).store(store.clone()).revoke(revoke);
        let session = builder.build().await.unwrap();
        let client = AuthRefreshLayer::new(session.clone(), origin()).layer(SlowApi::default());
        Self { session, client, store, refreshes, revoked }
    }

    fn get(&self) -> impl Future<Output = StatusCode> + Send + 'static {
        let client = self.client.clone();
        async move {
            let request = Request::get(ORIGIN).body(Full::from("a body")).unwrap();
            client.oneshot(request).await.unwrap().status()
        }
    }

    fn refreshes(&self) -> u32 {
        self.refreshes.load(Ordering::Relaxed)
    }

    /// Asserts that at most one refresh was made, that its tokens are in force and stored, and that requests succeed.
    async fn assert_consistent(&self) {
        sleep(MINUTE).await;
        let refreshes = self.refreshes();
        assert!(refreshes <= 1);
        assert_eq!(self.session.state(), SessionState::Active);
        assert_eq!(self.session.tokens(), pair(1 + refreshes));
        assert_eq!(self.store.tokens().await, Some(pair(1 + refreshes)));
        assert_eq!(timeout(MINUTE, self.get()).await, Ok(StatusCode::OK));
        assert_eq!(self.refreshes(), 1);
    }
}

// Dropped callers.

#[tokio::test(start_paused = true)]
async fn a_request_dropped_at_any_moment_neither_cancels_nor_repeats_the_refresh() {
    let mut began = 0;
    let (polls, turns) = Dropped::at_each_moment(async |dropped| {
        let it = Slow::new().await;
        let ended = dropped.run(it.get()).await;
        began += it.refreshes();
        it.assert_consistent().await;
        ended.is_some()
    })
    .await;
    // Polling readiness, sending, waiting, draining, polling readiness again, replaying.
    assert!(polls >= 8, "dropped at {polls} polls");
    assert!(turns >= 8, "dropped at {turns} turns");
    assert!(began > 10);
}

#[tokio::test(start_paused = true)]
async fn other_waiters_are_answered_when_the_request_that_started_the_refresh_is_dropped_at_any_moment() {
    Dropped::at_each_moment(async |dropped| {
        let it = Slow::new().await;
        // Spawned after the dropped request, which is therefore refused first.
        let others: Vec<_> = (0..5).map(|_| it.get()).collect();
        let others = async move {
            yield_now().await;
            others.into_iter().map(tokio::spawn).collect::<Vec<_>>()
        };
        let (ended, others) = tokio::join!(dropped.run(it.get()), others);
        for other in others {
            assert_eq!(timeout(MINUTE, other).await.unwrap().unwrap(), StatusCode::OK, "{dropped:?}");
        }
        assert_eq!(it.refreshes(), 1, "{dropped:?}");
        it.assert_consistent().await;
        ended.is_some()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_dropped_while_it_waits_to_be_sent_leaves_no_trace() {
    // The token is known to be refused and a refresh is under way, so the request waits for it.
    Dropped::at_each_moment(async |dropped| {
        let it = Slow::new().await;
        let first = tokio::spawn(it.get());
        it.session.subscribe().wait_for(|state| *state == SessionState::Refreshing).await.unwrap();
        let ended = dropped.run(it.get()).await;
        assert_eq!(timeout(MINUTE, first).await.unwrap().unwrap(), StatusCode::OK);
        it.assert_consistent().await;
        ended.is_some()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn session_refresh_dropped_at_any_moment_still_refreshes() {
    let (polls, turns) = Dropped::at_each_moment(async |dropped| {
        let it = Slow::new().await;
        let session = it.session.clone();
        let ended = dropped.run(async move { session.refresh().await.unwrap() }).await;
        if !matches!(dropped, Dropped::AtTurn(0)) {
            sleep(MINUTE).await;
            assert_eq!(it.session.tokens(), pair(2), "{dropped:?}");
        }
        it.assert_consistent().await;
        ended.is_some()
    })
    .await;
    assert!(polls >= 1 && turns >= 5, "dropped at {polls} polls, {turns} turns");
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_dropped_at_any_moment_is_carried_out() {
    let (polls, turns) = Dropped::at_each_moment(async |dropped| {
        let it = Slow::new().await;
        let session = it.session.clone();
        let ended = dropped.run(async move { session.sign_in(pair(5)).await.unwrap() }).await;
        sleep(MINUTE).await;
        assert_eq!(it.store.tokens().await, Some(it.session.tokens()), "{dropped:?}");
        if !matches!(dropped, Dropped::AtTurn(0)) {
            assert_eq!(it.session.tokens(), pair(5), "{dropped:?}");
        }
        ended.is_some()
    })
    .await;
    assert!(polls >= 1 && turns >= 3, "dropped at {polls} polls, {turns} turns");
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_dropped_at_any_moment_is_carried_out() {
    let (polls, turns) = Dropped::at_each_moment(async |dropped| {
        let it = Slow::new().await;
        let session = it.session.clone();
        let ended = dropped.run(async move { session.sign_out().await.unwrap() }).await;
        sleep(MINUTE).await;
        if !matches!(dropped, Dropped::AtTurn(0)) {
            assert_eq!(it.session.state(), SessionState::SignedOut, "{dropped:?}");
            assert_eq!(it.store.tokens().await, None, "{dropped:?}");
            assert_eq!(*it.revoked.lock().unwrap(), [pair(1)], "{dropped:?}");
        }
        ended.is_some()
    })
    .await;
    assert!(polls >= 1 && turns >= 5, "dropped at {polls} polls, {turns} turns");
}

#[tokio::test(start_paused = true)]
async fn a_build_dropped_at_any_moment_can_be_repeated() {
    for stored in [None, Some(pair(7))] {
        let (polls, turns) = Dropped::at_each_moment(async |dropped| {
            let store = faulty_store();
            if let Some(tokens) = &stored {
                store.sign_in_as_peer(tokens).await;
            }
            let build = || {
                let (refresh, _) = script::<_, Tokens, RefreshError>();
                let builder = Session::builder(refresh).tokens(pair(1)).store(store.clone());
                async move { builder.build().await.unwrap() }
            };
            let ended = dropped.run(build()).await;
            let session = build().await;
            let expected = stored.clone().unwrap_or(pair(1));
            assert_eq!(session.tokens(), expected);
            assert_eq!(store.tokens().await, Some(expected));
            ended.is_some()
        })
        .await;
        assert!(polls >= 2 && turns >= 2, "dropped at {polls} polls, {turns} turns");
    }
}

/// A registry whose services and store yield to the scheduler. The store holds [`pair`]`(1)`, a sign-in of user 1 in
/// another process.
struct SlowRegistry {
    sessions: SessionRegistry<u32>,
    store: FaultyStore,
    revoked: Arc<Mutex<Vec<Tokens>>>,
}

impl SlowRegistry {
    async fn new() -> Self {
        let (store, revoked) = (faulty_store(), Arc::<Mutex<Vec<Tokens>>>::default());
        store.sign_in_as_peer(&pair(1)).await;
        let refresh = tower::service_fn(|_: RefreshRequest| async {
            yield_now().await;
            yield_now().await;
            Ok::<_, RefreshError>(pair(2))
        });
        let log = Arc::clone(&revoked);
        let revoke = tower::service_fn(move |request: RevokeRequest| {
            log.lock().unwrap().push(request.tokens().clone());
            yield_now().map(Ok::<_, BoxError>)
        });
        let stored = store.clone();
        let builder = SessionRegistry::builder(Session::builder(refresh).revoke(revoke));
        Self { sessions: builder.store_factory(move |_| Arc::new(stored.clone())).build().unwrap(), store, revoked }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lookup_dropped_at_any_moment_is_made_once_and_shared_with_the_next() {
    let (polls, turns) = Dropped::at_each_moment(async |dropped| {
        let it = SlowRegistry::new().await;
        let sessions = it.sessions.clone();
        let ended = dropped.run(async move { sessions.get(&1).await.unwrap() }).await;
        let session = timeout(MINUTE, it.sessions.get(&1)).await.unwrap().unwrap().unwrap();
        assert_eq!(session.tokens(), pair(1));
        assert_eq!(it.store.calls(), [StoreCall::Load], "{dropped:?}");
        ended.is_some()
    })
    .await;
    assert!(polls >= 1 && turns >= 3, "dropped at {polls} polls, {turns} turns");
}

#[tokio::test(start_paused = true)]
async fn a_registry_sign_in_dropped_at_any_moment_is_carried_out() {
    for is_held in [false, true] {
        let (polls, turns) = Dropped::at_each_moment(async |dropped| {
            let it = SlowRegistry::new().await;
            let held = if is_held { it.sessions.get(&1).await.unwrap() } else { None };
            let sessions = it.sessions.clone();
            let ended = dropped.run(async move { sessions.sign_in(1, pair(5)).await.unwrap() }).await;
            timeout(MINUTE, it.sessions.wait_idle()).await.unwrap();
            let session = it.sessions.get(&1).await.unwrap().unwrap();
            assert_eq!(it.store.tokens().await, Some(session.tokens()), "{dropped:?}");
            if !matches!(dropped, Dropped::AtTurn(0)) {
                assert_eq!(session.tokens(), pair(5), "{dropped:?}");
            }
            assert!(held.is_none_or(|held| held.tokens() == session.tokens()));
            ended.is_some()
        })
        .await;
        assert!(polls >= 1 && turns >= 3, "dropped at {polls} polls, {turns} turns");
    }
}

#[tokio::test(start_paused = true)]
async fn a_registry_sign_out_dropped_at_any_moment_is_carried_out() {
    for is_held in [false, true] {
        let (polls, turns) = Dropped::at_each_moment(async |dropped| {
            let it = SlowRegistry::new().await;
            let held = if is_held { it.sessions.get(&1).await.unwrap() } else { None };
            let sessions = it.sessions.clone();
            let ended = dropped.run(async move { sessions.sign_out(&1).await.unwrap() }).await;
            sleep(MINUTE).await;
            if !matches!(dropped, Dropped::AtTurn(0)) {
                assert_eq!(it.store.tokens().await, None, "{dropped:?}");
                assert_eq!(*it.revoked.lock().unwrap(), [pair(1)], "{dropped:?}");
                assert!(held.is_none_or(|held| held.state() == SessionState::SignedOut));
            }
            ended.is_some()
        })
        .await;
        assert!(polls >= 1 && turns >= 5, "dropped at {polls} polls, {turns} turns");
    }
}

#[tokio::test(start_paused = true)]
async fn wait_idle_dropped_at_any_moment_can_be_repeated() {
    let (polls, turns) = Dropped::at_each_moment(async |dropped| {
        let it = SlowRegistry::new().await;
        let session = it.sessions.get(&1).await.unwrap().unwrap();
        let refresh = tokio::spawn(async move { session.refresh().await });
        yield_now().await;
        let sessions = it.sessions.clone();
        let ended = dropped.run(async move { sessions.wait_idle().await }).await;
        timeout(MINUTE, it.sessions.wait_idle()).await.unwrap();
        assert_eq!(it.store.tokens().await, Some(pair(2)), "{dropped:?}");
        refresh.await.unwrap().unwrap();
        ended.is_some()
    })
    .await;
    assert!(polls >= 1 && turns >= 3, "dropped at {polls} polls, {turns} turns");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_waiter_ends_at_once_and_does_not_affect_the_others() {
    let mut it = Fixture::new().await;
    let begun = Instant::now();
    let mut responses = Vec::new();
    for _ in 0..3 {
        responses.push(it.get());
    }
    for call in it.api.take(3).await {
        call.reply(401).await;
    }
    let refresh = it.auth.next().await;
    let dropped = responses.remove(1);
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert!(it.auth.is_idle().await && it.api.is_idle().await);
    refresh.answer(Ok(pair(2)));
    for call in it.api.take(2).await {
        assert_eq!(call.token(), Some("a2"));
        call.reply(200).await;
    }
    for response in responses {
        assert_eq!(response.await.unwrap().status(), 200);
    }
    assert!(it.api.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn new_tokens_are_stored_although_all_waiters_are_dropped() {
    let store = Arc::new(MemoryStore::new());
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
    let responses: Vec<_> = (0..20).map(|_| it.get()).collect();
    for call in it.api.take(20).await {
        call.reply(401).await;
    }
    let refresh = it.auth.next().await;
    for response in &responses {
        response.abort();
    }
    for response in responses {
        assert!(response.await.unwrap_err().is_cancelled());
    }
    refresh.answer(Ok(pair(2)));
    settle().await;
    assert_eq!(it.session.tokens(), pair(2));
    assert_eq!(*store.load().await.unwrap().unwrap().tokens(), pair(2));
    assert!(it.api.is_idle().await && it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn new_tokens_are_stored_although_all_handles_are_dropped() {
    let store = Arc::new(MemoryStore::new());
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    response.abort();
    assert!(response.await.unwrap_err().is_cancelled());
    drop(it);
    refresh.answer(Ok(pair(2)));
    settle().await;
    assert_eq!(*store.load().await.unwrap().unwrap().tokens(), pair(2));
}

// Waiters that are kept but not polled.

/// A waker that blocks until the test releases it.
struct BlockingWaker {
    entered: mpsc::Sender<()>,
    release: Mutex<mpsc::Receiver<()>>,
}

impl Wake for BlockingWaker {
    fn wake(self: Arc<Self>) {
        let _ = self.entered.send(());
        // Released, or the test has ended.
        let _ = self.release.lock().unwrap().recv();
    }
}

#[test]
fn a_waiter_that_is_no_longer_polled_blocks_no_other_waiter() {
    let runtime = multi_thread();
    let (refresh, mut auth) = script::<_, Tokens, RefreshError>();
    let session = runtime.block_on(Session::builder(refresh).tokens(pair(1)).build()).unwrap();

    // The waker of a watcher blocks the thread that starts the refresh.
    let (entered, is_entered) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let waker = Waker::from(Arc::new(BlockingWaker { entered, release: Mutex::new(released) }));
    let mut watcher = session.subscribe();
    let mut change = Box::pin(watcher.changed());
    assert!(change.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let first = thread::spawn({
        let session = session.clone();
        move || {
            let mut refresh = Box::pin(async move { session.refresh().await });
            assert!(refresh.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            refresh
        }
    });
    is_entered.recv().unwrap();
    // Meanwhile another waiter is polled once and never again, as in a `select!` that runs its other branch.
    let (polled, is_polled) = mpsc::channel();
    let releasing = thread::spawn(move || {
        let _ = is_polled.recv_timeout(Duration::from_secs(1));
        drop(release);
    });
    let mut unpolled = Box::pin(session.refresh());
    assert!(unpolled.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let _ = polled.send(());
    releasing.join().unwrap();
    let _first = first.join().unwrap();

    runtime.block_on(async {
        let call = within_15_seconds(auth.next()).await;
        // The third waiter joins the refresh before it is answered.
        let (third, ()) = within_15_seconds(join(session.refresh(), async { call.answer(Ok(pair(2))) })).await;
        third.unwrap();
    });
    assert_eq!(session.tokens(), pair(2));
    drop(unpolled);
}

// Wakers and subscribers, which are foreign code.

/// A waker that polls its future at once, on the thread that wakes it; from within its poll, after that.
struct PollOnWake {
    future: Mutex<BoxFuture<'static, ()>>,
    /// The thread that polls it.
    polled_on: Mutex<Option<ThreadId>>,
    is_woken: AtomicBool,
    done: mpsc::Sender<()>,
}

impl PollOnWake {
    fn poll(self: Arc<Self>) {
        let waker = Waker::from(Arc::clone(&self));
        self.is_woken.store(true, Ordering::SeqCst);
        if *self.polled_on.lock().unwrap() == Some(thread::current().id()) {
            return;
        }
        let mut future = self.future.lock().unwrap();
        *self.polled_on.lock().unwrap() = Some(thread::current().id());
        while self.is_woken.swap(false, Ordering::SeqCst) {
            if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                let _ = self.done.send(());
                break;
            }
        }
        *self.polled_on.lock().unwrap() = None;
    }

    /// Polls the future for the first time. The returned receiver gets a message when the future completes.
    fn begin(future: impl Future<Output: Send> + Send + 'static) -> mpsc::Receiver<()> {
        let (done, is_done) = mpsc::channel();
        let future = Mutex::new(future.map(drop).boxed());
        Arc::new(Self { future, polled_on: Mutex::default(), is_woken: AtomicBool::default(), done }).poll();
        is_done
    }
}

impl Wake for PollOnWake {
    fn wake(self: Arc<Self>) {
        self.poll();
    }
}

#[test]
fn a_waker_that_polls_at_once_causes_no_deadlock() {
    let runtime = multi_thread();
    let (refresh, mut auth) = script::<_, Tokens, RefreshError>();
    let session = runtime.block_on(Session::builder(refresh).tokens(pair(1)).build()).unwrap();
    let waiters = [(); 2].map(|()| {
        let session = session.clone();
        PollOnWake::begin(async move { session.refresh().await.unwrap() })
    });
    runtime.block_on(async { within_15_seconds(auth.next()).await.answer(Ok(pair(2))) });
    let answered = waiters.map(|answered| answered.recv_timeout(MINUTE / 12));
    // Not dropped: the drop would wait for a thread that may be blocked.
    runtime.shutdown_background();
    assert_eq!(answered, [Ok(()), Ok(())]);
}

#[test]
fn a_waker_that_polls_at_once_gets_a_session_that_was_loaded() {
    let runtime = multi_thread();
    let store = faulty_store();
    runtime.block_on(store.sign_in_as_peer(&pair(1)));
    store.inject(StoreCall::Load, StoreFault::hang_until_cleared().after_effect());
    let stored = store.clone();
    let found = runtime.block_on(async {
        let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
        let builder = SessionRegistry::builder(Session::builder(refresh));
        let sessions = builder.store_factory(move |_: &u8| Arc::new(stored.clone())).build().unwrap();
        PollOnWake::begin(async move { sessions.get(&1).await.unwrap().expect("stored") })
    });
    store.clear_faults();
    let done = found.recv_timeout(MINUTE / 12);
    runtime.shutdown_background();
    done.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_watcher_whose_waker_panics_does_not_affect_the_refresh() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a foreign waker panics");
        }
    }
    let (refresh, mut auth) = script::<_, Tokens, RefreshError>();
    let session = Session::builder(refresh).tokens(pair(1)).build().await.unwrap();
    let mut watcher = session.subscribe();
    let mut changed = Box::pin(watcher.changed());
    let waker = Waker::from(Arc::new(Panics));
    assert!(changed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let refresh = async { session.refresh().await };
    let (refreshed, ()) = join(refresh, async { auth.next().await.answer(Ok(pair(2))) }).await;
    refreshed.unwrap();
    assert_eq!((session.tokens(), session.state()), (pair(2), SessionState::Active));
}

/// Panics when the first span is created.
struct PanicsOnce(AtomicU32);

impl tracing::Subscriber for PanicsOnce {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_span()
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        assert!(self.0.fetch_add(1, Ordering::SeqCst) > 0, "a foreign subscriber panics");
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_when_a_refresh_starts_leaves_the_session_usable() {
    let (refresh, mut auth) = script::<_, Tokens, RefreshError>();
    let session = Session::builder(refresh).tokens(pair(1)).build().await.unwrap();
    let _listening = tracing::subscriber::set_default(PanicsOnce(AtomicU32::new(0)));
    assert!(AssertUnwindSafe(session.refresh()).catch_unwind().await.is_err());
    let (refreshed, ()) = join(session.refresh(), async { auth.next().await.answer(Ok(pair(2))) }).await;
    refreshed.unwrap();
    assert_eq!((session.tokens(), session.state()), (pair(2), SessionState::Active));
}

// Runtimes.

fn multi_thread() -> Runtime {
    runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn current_thread() -> Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Fails the test instead of hanging it if the future does not complete in real time.
async fn within_15_seconds<F: Future>(future: F) -> F::Output {
    timeout(MINUTE / 4, future).await.expect("the future completes within 15 seconds")
}

/// Runs a future on this thread, outside of any runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// A client whose session refreshes on this runtime.
fn fixture_on(runtime: &Runtime) -> Fixture {
    runtime.block_on(Fixture::new())
}

#[test]
fn waiters_on_another_runtime_are_answered() {
    for other in [current_thread(), multi_thread()] {
        let home = multi_thread();
        let mut it = fixture_on(&home);
        other.block_on(async {
            let responses: Vec<_> = (0..10).map(|_| it.get()).collect();
            for call in within_15_seconds(it.api.take(10)).await {
                call.reply(401).await;
            }
            within_15_seconds(it.auth.next()).await.answer(Ok(pair(2)));
            for call in within_15_seconds(it.api.take(10)).await {
                assert_eq!(call.token(), Some("a2"));
                call.reply(200).await;
            }
            for response in responses {
                assert_eq!(within_15_seconds(response).await.unwrap().status(), 200);
            }
        });
    }
}

#[test]
fn everything_works_outside_of_any_runtime_once_the_session_is_built() {
    let home = multi_thread();
    let mut it = fixture_on(&home);
    let (session, client) = (it.session.clone(), it.client.clone());
    let server = home.spawn(async move {
        it.api.next().await.reply(401).await;
        it.auth.next().await.answer(Ok(pair(2)));
        it.api.next().await.reply(200).await;
        it.auth.next().await.answer(Ok(pair(3)));
        it.auth.next().await.answer(Err(RefreshError::misconfigured("invalid_client")));
    });
    let request = Request::get(ORIGIN).body(Full::default()).unwrap();
    assert_eq!(block_on(client.oneshot(request)).unwrap().status(), 200);
    block_on(session.refresh()).unwrap();
    assert_eq!(session.tokens(), pair(3));
    assert!(matches!(block_on(session.refresh()), Err(NotRefreshed::Failed(_))));
    block_on(session.sign_in(pair(5))).unwrap();
    assert_eq!(session.tokens(), pair(5));
    block_on(session.sign_out()).unwrap();
    assert_eq!(session.state(), SessionState::SignedOut);
    home.block_on(within_15_seconds(server)).unwrap();
}

#[test]
fn building_outside_of_a_runtime_is_an_error() {
    let (refresh, _) = script::<_, Tokens, RefreshError>();
    assert!(block_on(Session::builder(refresh).tokens(pair(1)).build()).is_err());
}

#[test]
fn when_the_runtime_shuts_down_during_a_flight_the_waiters_on_other_runtimes_are_answered() {
    for home in [multi_thread(), current_thread()] {
        let mut it = fixture_on(&home);
        let other = multi_thread();
        let (refresh, response, refreshed) = {
            let _other = other.enter();
            let response = it.get();
            let session = it.session.clone();
            let refreshed = async move { session.refresh().await };
            // The home runtime is driven until the call is under way.
            let refresh = home.block_on(within_15_seconds(async {
                it.api.next().await.reply(401).await;
                it.auth.next().await
            }));
            (refresh, response, tokio::spawn(refreshed))
        };
        drop(home);
        other.block_on(async {
            let response = within_15_seconds(response).await.unwrap();
            assert_eq!(response.status(), 401);
            assert!(matches!(not_refreshed(&response), NotRefreshed::Failed(_)));
            assert!(within_15_seconds(refreshed).await.unwrap().is_err());
            // Later calls fail too: the runtime is gone.
            refresh.answer(Ok(pair(2)));
            assert!(within_15_seconds(it.session.refresh()).await.is_err());
            for changed in [it.session.sign_in(pair(5)).boxed(), it.session.sign_out().boxed()] {
                let error = within_15_seconds(changed).await.unwrap_err();
                assert_eq!((error.kind(), error.took_effect()), (SessionErrorKind::Runtime, false));
            }
            let failure = failing(&it.session);
            assert_eq!(failure.kind(), RefreshErrorKind::InDoubt);
            assert!(failure.count() >= 2, "{failure:?}");
            let response = within_15_seconds(it.get_refused()).await;
            let response = within_15_seconds(response).await.unwrap();
            assert_eq!(response.status(), 401);
            assert!(matches!(not_refreshed(&response), NotRefreshed::Failed(_) | NotRefreshed::CoolingDown(_)));
        });
        // Dropping the client outside of the runtime does not panic.
        drop(it);
    }
}

#[test]
fn when_the_runtime_shuts_down_waiters_outside_of_any_runtime_are_answered() {
    let home = multi_thread();
    let mut it = fixture_on(&home);
    let session = it.session.clone();
    let waiter = thread::spawn(move || block_on(session.refresh()));
    let _call = home.block_on(within_15_seconds(it.auth.next()));
    drop(home);
    assert!(matches!(waiter.join().unwrap(), Err(NotRefreshed::Failed(_))));
}

#[test]
fn when_the_runtime_shuts_down_around_a_refresh_that_blocks_its_thread_the_waiters_are_answered() {
    let home = multi_thread();
    let [(begun, has_begun), (_end, ended)] = [(); 2].map(|()| mpsc::channel::<()>());
    let ended = Arc::new(Mutex::new(ended));
    let refresh = service_fn(move |_: RefreshRequest| {
        let (begun, ended) = (begun.clone(), Arc::clone(&ended));
        async move {
            begun.send(()).unwrap();
            let _ = ended.lock().unwrap().recv();
            Err::<Tokens, _>(RefreshError::unavailable("too late"))
        }
    });
    let session = home.block_on(Session::builder(refresh).tokens(pair(1)).build()).unwrap();
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || answer.send(block_on(session.refresh())));
    has_begun.recv().unwrap();
    home.shutdown_background();
    let answer = answered.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(matches!(answer, Err(NotRefreshed::Failed(_))));
}

#[test]
fn a_late_401_is_replayed_even_when_the_sessions_runtime_is_gone() {
    let home = multi_thread();
    let mut it = fixture_on(&home);
    let other = current_thread();
    let (api, mut calls) = script::<Request<ReplayBody<Full<Bytes>>>, Response<SlowBody>, Infallible>();
    let client = AuthRefreshLayer::new(it.session.clone(), origin()).layer(api);
    let (response, call) = other.block_on(async {
        let response = tokio::spawn(client.oneshot(Request::get(ORIGIN).body(Full::default()).unwrap()));
        (response, within_15_seconds(calls.next()).await)
    });
    home.block_on(async {
        let refreshed = tokio::spawn({
            let session = it.session.clone();
            async move { session.refresh().await }
        });
        within_15_seconds(it.auth.next()).await.answer(Ok(pair(2)));
        refreshed.await.unwrap().unwrap();
    });
    drop(home);
    other.block_on(async {
        // The body of the 401 never ends, and the timers of the session's runtime no longer fire.
        let challenge = Response::builder().status(401).header(WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"");
        call.answer(Ok(challenge.body(SlowBody(u32::MAX)).unwrap()));
        let call = within_15_seconds(calls.next()).await;
        assert_eq!(call.request.headers()[AUTHORIZATION], "Bearer a2");
        call.answer(Ok(Response::new(SlowBody(0))));
        assert_eq!(within_15_seconds(response).await.unwrap().unwrap().status(), 200);
    });
}

#[test]
fn a_refresh_continues_when_its_runtime_is_driven_again() {
    let home = current_thread();
    let mut it = fixture_on(&home);
    let other = multi_thread();
    let response = {
        let _other = other.enter();
        it.get()
    };
    other.block_on(async { within_15_seconds(it.api.next()).await.reply(401).await });
    home.block_on(async {
        within_15_seconds(it.auth.next()).await.answer(Ok(pair(2)));
        let call = within_15_seconds(it.api.next()).await;
        assert_eq!(call.token(), Some("a2"));
        call.reply(200).await;
    });
    assert_eq!(other.block_on(within_15_seconds(response)).unwrap().status(), 200);
}

#[test]
fn dropping_the_last_handle_and_the_runtime_during_a_flight_does_not_panic() {
    for home in [multi_thread(), current_thread()] {
        let mut it = fixture_on(&home);
        let response = home.block_on(it.get_refused());
        let _call = home.block_on(it.auth.next());
        drop((it, response));
        drop(home);
    }
}
