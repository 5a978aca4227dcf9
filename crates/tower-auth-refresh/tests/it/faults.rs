//! Failed refreshes, and their effect on the session.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::Full;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tower::buffer::Buffer;
use tower::{BoxError, Service, ServiceExt};
use tower_auth_refresh::store::{ClaimOutcome, MemoryStore, TokenStore};
use tower_auth_refresh::{
    NotRefreshed, RefreshError, RefreshErrorKind, RefreshReport, RefreshRequest, Rotation, Session, SessionState,
    Tokens,
};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, StoreFault};

use crate::support::*;

/// The default refresh time-out.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The tolerance for late timers.
const TICK: Duration = Duration::from_millis(5);

const SECOND: Duration = Duration::from_secs(1);

/// Waits for the longest cool-down that the session chooses by itself.
async fn cool_down() {
    sleep(Duration::from_secs(61)).await;
}

fn assert_took(since: Instant, expected: Duration) {
    let took = since.elapsed();
    assert!((expected..expected + TICK).contains(&took), "{took:?} instead of {expected:?}");
}

fn failure(why: &NotRefreshed) -> RefreshErrorKind {
    match why {
        NotRefreshed::Failed(error) => error.kind(),
        other => panic!("{other:?}"),
    }
}

fn unavailable() -> RefreshError {
    RefreshError::unavailable("connection refused")
}

fn in_doubt() -> RefreshError {
    RefreshError::in_doubt("connection reset")
}

fn unavailable_for(delay: Duration) -> RefreshError {
    RefreshError::unavailable("too many requests").with_retry_after(delay)
}

impl Fixture {
    /// Fails the first attempt of a refresh with an error that ends the flight, and waits for the cool-down.
    async fn fail_once(&mut self, error: RefreshError) {
        let response = self.get_refused().await;
        self.auth.next().await.answer(Err(error));
        assert_eq!(response.await.unwrap().status(), 401);
        assert!(self.auth.is_idle().await);
        cool_down().await;
    }

    /// Asserts that the request was refused because its refresh ended in doubt, and that there was no other attempt.
    async fn assert_in_doubt(&mut self, response: JoinHandle<Response<Full<Bytes>>>) {
        assert_eq!(failure(not_refreshed(&response.await.unwrap())), RefreshErrorKind::InDoubt);
        assert!(self.auth.is_idle().await);
    }

    /// Asserts that the last refresh failed, and that the session still has the tokens of its sign-in and sends them.
    async fn assert_kept(&mut self, kind: RefreshErrorKind) {
        assert_eq!(failing(&self.session).kind(), kind);
        assert_eq!(self.session.tokens(), pair(1));
        self.sends(1).await;
    }

    /// Asserts that the next refresh presents `r1`, in doubt or not, and that its tokens are used.
    async fn assert_recovers(&mut self, in_doubt: bool) {
        // Ends the first cool-down; a claim left behind would take longer to expire.
        sleep(2 * SECOND).await;
        let response = self.get_refused().await;
        let refresh = self.auth.next().await;
        assert_eq!(refresh.presented(), "r1");
        assert_eq!(refresh.request.is_in_doubt(), in_doubt);
        refresh.answer(Ok(pair(2)));
        self.accepts(response, 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_not_be_repeated_or_that_issued_a_refresh_token_is_made_once() {
    let mut it = Fixture::new().await;
    it.fail_once(RefreshError::unavailable("later").without_retry()).await;
    it.assert_kept(RefreshErrorKind::Unavailable).await;
    it.fail_once(RefreshError::unavailable("later").with_refresh_token(refresh("r2"))).await;
    assert_eq!(it.session.tokens(), Tokens::new(access("a1"), refresh("r2")));
}

#[tokio::test(start_paused = true)]
async fn a_failing_state_equals_itself_until_another_refresh_fails() {
    let mut it = Fixture::new().await;
    assert!(!it.session.state().is_ended());
    it.fail_once(RefreshError::misconfigured("no such client")).await;
    let first = it.session.state();
    assert!(!first.is_ended());
    assert_eq!(first, it.session.state());
    it.fail_once(RefreshError::misconfigured("no such client")).await;
    assert_ne!(first, it.session.state());
}

// Time-outs.

#[tokio::test(start_paused = true)]
async fn a_refresh_that_never_answers_is_abandoned_at_its_time_out_and_a_new_one_can_start() {
    let mut it = Fixture::new().await;
    let begun = Instant::now();
    let responses: Vec<_> = (0..20).map(|_| it.get()).collect();
    for call in it.api.take(20).await {
        call.reply(401).await;
    }
    let unanswered = it.auth.next().await;
    for response in responses {
        let response = response.await.unwrap();
        assert_eq!(response.status(), 401);
        assert_eq!(failure(not_refreshed(&response)), RefreshErrorKind::InDoubt);
        assert_took(begun, TIMEOUT);
    }
    // A late answer is discarded.
    unanswered.answer(Ok(pair(9)));
    assert!(it.auth.is_idle().await);
    it.assert_kept(RefreshErrorKind::InDoubt).await;
    it.assert_recovers(true).await;
}

#[tokio::test(start_paused = true)]
async fn the_time_out_is_set_by_the_builder() {
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).refresh_timeout(3 * SECOND)).await;
    let begun = Instant::now();
    let response = it.get_refused().await;
    let _unanswered = it.auth.next().await;
    assert_eq!(failure(not_refreshed(&response.await.unwrap())), RefreshErrorKind::InDoubt);
    assert_took(begun, 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn the_time_out_is_an_hour_at_most() {
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).refresh_timeout(Duration::MAX)).await;
    let begun = Instant::now();
    let response = it.get_refused().await;
    let _unanswered = it.auth.next().await;
    assert_eq!(failure(not_refreshed(&response.await.unwrap())), RefreshErrorKind::InDoubt);
    assert_took(begun, Duration::from_secs(3_600));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_for_a_second_refresh_is_answered_by_its_own_deadline() {
    let mut it = Fixture::new().await;
    let begun = Instant::now();
    let request = it.client.clone().oneshot(Request::get(ORIGIN).body(Full::default()).unwrap());
    let mut waiting = Box::pin(request);
    assert!((&mut waiting).now_or_never().is_none());
    it.api.next().await.reply(401).await;
    assert!((&mut waiting).now_or_never().is_none());
    let first = it.auth.next().await;
    sleep(20 * SECOND).await;
    first.answer(Ok(pair(2)));
    settle().await;
    // The new token is refused before the waiting request is polled, and the next refresh never answers.
    let refused = it.get();
    it.api.reply(1, "a2", 401).await;
    let _unanswered = it.auth.next().await;
    assert_eq!(failure(not_refreshed(&waiting.await.unwrap())), RefreshErrorKind::InDoubt);
    assert_took(begun, TIMEOUT + 5 * SECOND);
    assert_eq!(failure(not_refreshed(&refused.await.unwrap())), RefreshErrorKind::InDoubt);
    assert_took(begun, 20 * SECOND + TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_in_force_after_five_seconds_when_the_store_hangs_and_written_when_it_recovers() {
    let store = faulty_store();
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
    store.inject(StoreCall::Commit, StoreFault::hang_until_cleared());
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    let begun = Instant::now();
    refresh.answer(Ok(pair(2)));
    let call = it.api.next().await;
    assert_took(begun, 5 * SECOND);
    assert_eq!(call.token(), Some("a2"));
    call.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);
    assert_eq!(store.tokens().await, Some(pair(1)));

    store.clear_faults();
    cool_down().await;
    assert_eq!(store.tokens().await, Some(pair(2)));
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn an_answer_at_the_last_moment_and_a_store_that_hangs_still_yield_new_tokens() {
    let store = faulty_store();
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
    store.inject(StoreCall::Commit, StoreFault::hang_until_cleared());
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    let begun = Instant::now();
    sleep(Duration::from_millis(29_900)).await;
    refresh.answer(Ok(pair(2)));
    let call = it.api.next().await;
    assert!(begun.elapsed() < TIMEOUT + 5 * SECOND);
    assert_eq!(call.token(), Some("a2"));
    call.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);
}

/// The log of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn begin(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || log.clone()).with_ansi(false);
        tracing::subscriber::set_default(subscriber.finish())
    }

    fn count(&self, message: &str) -> usize {
        String::from_utf8_lossy(&self.0.lock().unwrap()).matches(message).count()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn events_report_that_tokens_are_not_saved_and_that_they_are_saved_later() {
    let log = Log::default();
    let _guard = log.begin();
    let store = faulty_store();
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
    store.inject(StoreCall::Commit, StoreFault::fail());
    let response = it.get_refused().await;
    it.auth.next().await.answer(Ok(pair(2)));
    it.api.next().await.reply(200).await;
    response.await.unwrap();
    cool_down().await;
    assert_eq!((log.count("WARN"), log.count("tokens not saved"), log.count("tokens saved")), (1, 1, 0));
    store.clear_faults();
    cool_down().await;
    assert_eq!((log.count("tokens not saved"), log.count("tokens saved")), (1, 1));
    // Tokens that the app hands in are saved without an event.
    let current = it.session.credential().await.unwrap();
    it.session.renew(&current, pair(3)).await.unwrap();
    assert_eq!(store.tokens().await, Some(pair(3)));
    assert_eq!(log.count("tokens saved"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_event_reports_that_unsaved_tokens_are_written_over_an_older_record() {
    let log = Log::default();
    let _guard = log.begin();
    let store = faulty_store();
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
    let older = store.record().await;
    it.refreshes_from(1, false).await;
    store.inject(StoreCall::Commit, StoreFault::fail());
    let response = it.get_refused().await;
    it.auth.next().await.answer(Ok(pair(3)));
    it.accepts(response, 3).await;
    store.rewind(older).await;
    assert_eq!((log.count("tokens not saved"), log.count("tokens saved")), (1, 0));
    store.clear_faults();
    cool_down().await;
    assert_eq!(store.tokens().await, Some(pair(3)));
    assert_eq!((log.count("tokens not saved"), log.count("tokens saved")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_session_is_one_event() {
    let log = Log::default();
    let _guard = log.begin();
    let mut it = Fixture::new().await;
    let responses: Vec<_> = (0..20).map(|_| it.get()).collect();
    for call in it.api.take(20).await {
        call.reply(401).await;
    }
    it.auth.next().await.answer(Err(RefreshError::rejected("invalid_grant")));
    for response in responses {
        response.await.unwrap();
    }
    assert!(it.session.refresh().await.is_err());
    cool_down().await;
    assert_eq!(log.count("session ended"), 1);
}

// A refresh service that panics, hangs or fails before it is called.

/// The stage at which a refresh service panics, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    PollReady,
    Call,
    Future,
}

#[derive(Clone)]
struct PanicsOnce {
    stage: Stage,
    armed: Arc<AtomicBool>,
    then: Script<RefreshRequest, Tokens, RefreshError>,
}

impl PanicsOnce {
    fn panic_at(&self, stage: Stage) {
        let panics = self.stage == stage && self.armed.swap(false, Ordering::Relaxed);
        assert!(!panics, "the refresh service panics, as injected");
    }
}

impl Service<RefreshRequest> for PanicsOnce {
    type Response = Tokens;
    type Error = RefreshError;
    type Future = BoxFuture<'static, Result<Tokens, RefreshError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RefreshError>> {
        self.panic_at(Stage::PollReady);
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RefreshRequest) -> Self::Future {
        self.panic_at(Stage::Call);
        let this = self.clone();
        Box::pin(async move {
            this.panic_at(Stage::Future);
            this.then.oneshot(request).await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_refresh_service_answers_all_waiters_and_the_next_refresh_works() {
    for stage in [Stage::PollReady, Stage::Call, Stage::Future] {
        let (then, auth) = script();
        let service = PanicsOnce { stage, armed: Arc::new(AtomicBool::new(true)), then };
        let mut it = Fixture::over(service, auth, |builder| builder.tokens(pair(1))).await;
        let begun = Instant::now();
        let responses: Vec<_> = (0..20).map(|_| it.get()).collect();
        for call in it.api.take(20).await {
            call.reply(401).await;
        }
        for response in responses {
            let response = response.await.unwrap();
            assert_eq!(response.status(), 401);
            assert_eq!(failure(not_refreshed(&response)), RefreshErrorKind::InDoubt, "{stage:?}");
        }
        assert_took(begun, Duration::ZERO);
        it.assert_kept(RefreshErrorKind::InDoubt).await;
        it.assert_recovers(true).await;
    }
}

/// A refresh service whose readiness is decided by the test.
#[derive(Clone)]
pub struct WithReadiness<F> {
    pub ready: F,
    pub then: Script<RefreshRequest, Tokens, RefreshError>,
}

impl<F: FnMut() -> Poll<Result<(), BoxError>>> Service<RefreshRequest> for WithReadiness<F> {
    type Response = Tokens;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Tokens, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        (self.ready)()
    }

    fn call(&mut self, request: RefreshRequest) -> Self::Future {
        let answer = self.then.call(request);
        Box::pin(async move { answer.await.map_err(Into::into) })
    }
}

/// A session whose refresh service gets its readiness from `ready`, called with the number of the poll. Returns the
/// number of polls too.
async fn with_readiness(
    ready: impl Fn(u32) -> Poll<Result<(), BoxError>> + Clone + Send + Sync + 'static,
) -> (Fixture, Arc<Mutex<u32>>) {
    let attempts = Arc::new(Mutex::new(0));
    let count = Arc::clone(&attempts);
    let ready = move || {
        let mut count = count.lock().unwrap();
        *count += 1;
        ready(*count)
    };
    let (then, auth) = script();
    (Fixture::over(WithReadiness { ready, then }, auth, |builder| builder.tokens(pair(1))).await, attempts)
}

#[tokio::test(start_paused = true)]
async fn a_refresh_service_that_never_becomes_ready_leaves_nothing_in_doubt() {
    let stuck = Arc::new(AtomicBool::new(true));
    let is_stuck = Arc::clone(&stuck);
    let ready = move |_| if is_stuck.load(Ordering::Relaxed) { Poll::Pending } else { Poll::Ready(Ok(())) };
    let (mut it, _) = with_readiness(ready).await;
    let begun = Instant::now();
    let response = it.get_refused().await.await.unwrap();
    assert_took(begun, TIMEOUT);
    assert!(matches!(failure(not_refreshed(&response)), RefreshErrorKind::Unavailable));
    stuck.store(false, Ordering::Relaxed);
    it.assert_kept(RefreshErrorKind::Unavailable).await;
    it.assert_recovers(false).await;
}

/// As after a process was stopped for longer than its lease: another one may have presented the token meanwhile.
#[tokio::test(start_paused = true)]
async fn a_refresh_service_that_becomes_ready_when_the_time_is_over_is_not_called() {
    let ready_at = Instant::now() + TIMEOUT;
    let (mut it, _) =
        with_readiness(move |_| if Instant::now() < ready_at { Poll::Pending } else { Poll::Ready(Ok(())) }).await;
    let response = it.get_refused().await.await.unwrap();
    assert!(it.auth.is_idle().await);
    assert!(matches!(failure(not_refreshed(&response)), RefreshErrorKind::Unavailable));
    it.assert_kept(RefreshErrorKind::Unavailable).await;
    it.assert_recovers(false).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_service_that_fails_to_become_ready_is_tried_three_times_and_leaves_nothing_in_doubt() {
    let (mut it, attempts) = with_readiness(|attempt| match attempt {
        ..=3 => Poll::Ready(Err("no connection".into())),
        _ => Poll::Ready(Ok(())),
    })
    .await;
    let response = it.get_refused().await.await.unwrap();
    assert!(matches!(failure(not_refreshed(&response)), RefreshErrorKind::Unavailable));
    assert_eq!(*attempts.lock().unwrap(), 3);
    it.assert_kept(RefreshErrorKind::Unavailable).await;
    it.assert_recovers(false).await;
}

#[tokio::test(start_paused = true)]
async fn a_readiness_error_that_is_a_refresh_error_keeps_its_kind() {
    let (mut it, attempts) =
        with_readiness(|_| Poll::Ready(Err(RefreshError::misconfigured("no client certificate").into()))).await;
    let response = it.get_refused().await.await.unwrap();
    assert_eq!(failure(not_refreshed(&response)), RefreshErrorKind::Misconfigured);
    assert_eq!(*attempts.lock().unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn any_other_error_of_the_refresh_service_is_in_doubt() {
    let (service, mut calls) = script::<RefreshRequest, Tokens, BoxError>();
    let (_, auth) = script();
    let mut it = Fixture::over(service, auth, |builder| builder.tokens(pair(1))).await;
    let response = it.get_refused().await;
    calls.next().await.answer(Err("something else".into()));
    assert_eq!(failure(not_refreshed(&response.await.unwrap())), RefreshErrorKind::InDoubt);
    assert!(calls.is_idle().await);
    it.assert_kept(RefreshErrorKind::InDoubt).await;
}

// The effect of each kind of failure.

#[tokio::test(start_paused = true)]
async fn an_unavailable_server_is_called_three_times_with_the_same_token_and_nothing_is_in_doubt() {
    let mut it = Fixture::new().await;
    let begun = Instant::now();
    let response = it.get_refused().await;
    for _ in 0..3 {
        let refresh = it.auth.next().await;
        assert_eq!(refresh.presented(), "r1");
        assert!(!refresh.request.is_in_doubt());
        refresh.answer(Err(unavailable()));
    }
    let response = response.await.unwrap();
    let NotRefreshed::Failed(error) = not_refreshed(&response) else { panic!("{response:?}") };
    assert_eq!((error.kind(), error.retry_after()), (RefreshErrorKind::Unavailable, None));
    assert!(begun.elapsed() < SECOND);
    assert!(it.auth.is_idle().await);
    it.assert_kept(RefreshErrorKind::Unavailable).await;
    it.assert_recovers(false).await;
}

#[tokio::test(start_paused = true)]
async fn a_second_attempt_that_succeeds_leads_to_the_replay() {
    let mut it = Fixture::new().await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Err(unavailable()));
    it.auth.next().await.answer(Ok(pair(2)));
    it.api.next().await.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_misconfigured_call_is_not_repeated_and_keeps_the_tokens() {
    let mut it = Fixture::new().await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Err(RefreshError::misconfigured("invalid_client")));
    assert_eq!(failure(not_refreshed(&response.await.unwrap())), RefreshErrorKind::Misconfigured);
    assert!(it.auth.is_idle().await);

    let response = it.get_refused().await.await.unwrap();
    let NotRefreshed::CoolingDown(error) = not_refreshed(&response) else { panic!("{response:?}") };
    assert_eq!(error.kind(), RefreshErrorKind::Misconfigured);
    assert!(it.auth.is_idle().await);
    it.assert_kept(RefreshErrorKind::Misconfigured).await;
    it.assert_recovers(false).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_is_not_called_again_before_its_retry_after() {
    let mut it = Fixture::new().await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    let begun = Instant::now();
    refresh.answer(Err(unavailable_for(7 * SECOND)));
    let refresh = it.auth.next().await;
    assert_took(begun, 7 * SECOND);
    refresh.answer(Ok(pair(2)));
    it.api.next().await.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_past_the_time_out_is_neither_made_nor_waited_for() {
    let mut it = Fixture::new().await;
    let begun = Instant::now();
    let response = it.get_refused().await;
    it.auth.next().await.answer(Err(unavailable_for(20 * SECOND)));
    it.auth.next().await.answer(Err(unavailable_for(20 * SECOND)));
    let response = response.await.unwrap();
    assert_took(begun, 20 * SECOND);
    let NotRefreshed::Failed(error) = not_refreshed(&response) else { panic!("{response:?}") };
    assert_eq!((error.kind(), error.retry_after()), (RefreshErrorKind::Unavailable, Some(20 * SECOND)));
    // The cool-down is as long as the server requested.
    sleep(19 * SECOND).await;
    let response = it.get_refused().await.await.unwrap();
    assert!(matches!(not_refreshed(&response), NotRefreshed::CoolingDown(_)));
    sleep(2 * SECOND).await;
    let _response = it.get_refused().await;
    it.auth.next().await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_of_a_day_or_more_is_limited_to_five_minutes() {
    for delay in [24 * 60 * 60 * SECOND, Duration::MAX] {
        let mut it = Fixture::new().await;
        let begun = Instant::now();
        let response = it.get_refused().await;
        it.auth.next().await.answer(Err(unavailable_for(delay)));
        response.await.unwrap();
        assert_took(begun, Duration::ZERO);
        sleep(299 * SECOND).await;
        let response = it.get_refused().await.await.unwrap();
        assert!(matches!(not_refreshed(&response), NotRefreshed::CoolingDown(_)));
        assert!(it.auth.is_idle().await);
        sleep(2 * SECOND).await;
        let response = it.get_refused().await;
        it.auth.next().await.answer(Ok(pair(2)));
        it.api.next().await.reply(200).await;
        assert_eq!(response.await.unwrap().status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_with_a_retry_after_of_zero_is_still_called_three_times_at_most() {
    let mut it = Fixture::new().await;
    let response = it.get_refused().await;
    for refresh in 0..3 {
        assert!(refresh < 3);
        it.auth.next().await.answer(Err(unavailable_for(Duration::ZERO)));
    }
    assert_eq!(response.await.unwrap().status(), 401);
    assert!(it.auth.is_idle().await);
}

// In doubt.

#[tokio::test(start_paused = true)]
async fn a_refresh_whose_answer_was_lost_is_not_repeated_within_the_flight() {
    let mut it = Fixture::new().await;
    let begun = Instant::now();
    let response = it.get_refused().await;
    it.auth.next().await.answer(Err(in_doubt()));
    assert_eq!(failure(not_refreshed(&response.await.unwrap())), RefreshErrorKind::InDoubt);
    assert_took(begun, Duration::ZERO);
    assert!(it.auth.is_idle().await);

    let response = it.get_refused().await.await.unwrap();
    assert!(matches!(not_refreshed(&response), NotRefreshed::CoolingDown(_)));
    assert!(it.auth.is_idle().await);
    it.assert_kept(RefreshErrorKind::InDoubt).await;
    it.assert_recovers(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_in_doubt_is_presented_once_a_flight_and_marked_as_long_as_answers_are_lost() {
    let mut it = Fixture::new().await;
    it.fail_once(in_doubt()).await;
    for _ in 0..3 {
        let response = it.get_refused().await;
        let refresh = it.auth.next().await;
        assert_eq!(refresh.presented(), "r1");
        assert!(refresh.request.is_in_doubt());
        refresh.answer(Err(in_doubt()));
        it.assert_in_doubt(response).await;
        cool_down().await;
    }
    it.assert_recovers(true).await;

    // Tokens are a definite answer: their refresh token is not in doubt.
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), "r2");
    assert!(!refresh.request.is_in_doubt());
    refresh.answer(Ok(pair(3)));
    it.api.next().await.reply(200).await;
    response.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_rejection_of_a_token_in_doubt_ends_the_session() {
    let mut it = Fixture::new().await;
    it.fail_once(in_doubt()).await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Err(RefreshError::rejected("invalid_grant")));
    assert!(matches!(not_refreshed(&response.await.unwrap()), NotRefreshed::Ended(_)));
    assert!(it.session.state().is_ended());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_definite_leaves_the_token_in_doubt() {
    let mut it = Fixture::new().await;
    it.fail_once(in_doubt()).await;
    // An unavailable server gives no information about the call whose answer was lost.
    let response = it.get_refused().await;
    for _ in 0..3 {
        let refresh = it.auth.next().await;
        assert!(refresh.request.is_in_doubt());
        refresh.answer(Err(unavailable()));
    }
    response.await.unwrap();
    cool_down().await;
    // Neither does a proxy's error page.
    it.fail_once(RefreshError::misconfigured("a firewall's page")).await;
    it.assert_recovers(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_later_attempt_that_sent_nothing_does_not_clear_the_doubt() {
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).rotation(Rotation::Reusable)).await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Err(in_doubt()));
    it.auth.next().await.answer(Err(unavailable()));
    it.auth.next().await.answer(Err(RefreshError::misconfigured("invalid_client")));
    response.await.unwrap();
    it.assert_recovers(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_rotate_is_called_again_within_the_flight() {
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).rotation(Rotation::Reusable)).await;
    let response = it.get_refused().await;
    for marked in [false, true, true] {
        let refresh = it.auth.next().await;
        assert_eq!(refresh.presented(), "r1");
        assert_eq!(refresh.request.is_in_doubt(), marked);
        refresh.answer(Err(in_doubt()));
    }
    it.assert_in_doubt(response).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_with_a_grace_period_is_called_again_within_it() {
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).rotation(Rotation::Grace(5 * SECOND))).await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    sleep(4 * SECOND).await;
    refresh.answer(Err(in_doubt()));
    let refresh = it.auth.next().await;
    assert!(refresh.request.is_in_doubt());
    refresh.answer(Ok(pair(2)));
    it.api.next().await.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_server_with_a_grace_period_is_not_called_again_after_it() {
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).rotation(Rotation::Grace(5 * SECOND))).await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    sleep(5 * SECOND).await;
    refresh.answer(Err(in_doubt()));
    it.assert_in_doubt(response).await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_beyond_the_grace_period_ends_the_flight() {
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).rotation(Rotation::Grace(5 * SECOND))).await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Err(in_doubt()));
    it.auth.next().await.answer(Err(unavailable_for(6 * SECOND)));
    assert_eq!(response.await.unwrap().status(), 401);
    assert!(it.auth.is_idle().await);
    cool_down().await;
    it.assert_recovers(true).await;
}

// Answers with tokens.

#[tokio::test(start_paused = true)]
async fn an_answer_without_any_token_is_in_doubt() {
    let mut it = Fixture::new().await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Ok(Tokens::default()));
    it.assert_in_doubt(response).await;
    it.assert_kept(RefreshErrorKind::InDoubt).await;
    it.assert_recovers(true).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_an_access_token_is_in_doubt_and_replaces_nothing() {
    let mut it = Fixture::new().await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Ok(Tokens::from_refresh_token(refresh("r2"))));
    it.assert_in_doubt(response).await;
    it.assert_kept(RefreshErrorKind::InDoubt).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_token_that_the_answer_omits_is_kept_and_stored() {
    let store = Arc::new(MemoryStore::new());
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Ok(Tokens::from_access_token(access("a2"))));
    it.api.next().await.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);
    let expected = Tokens::new(access("a2"), refresh("r1"));
    assert_eq!(it.session.tokens(), expected);
    assert_eq!(*store.load().await.unwrap().unwrap().tokens(), expected);

    let _response = it.get_refused().await;
    assert_eq!(it.auth.next().await.presented(), "r1");
}

// The end of a session.

#[tokio::test(start_paused = true)]
async fn a_rejected_refresh_token_ends_the_session_with_one_event_and_one_outcome_for_all() {
    let store = Arc::new(MemoryStore::new());
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
    let mut changes = it.session.subscribe();
    let events = tokio::spawn(async move {
        let mut events = Vec::new();
        while changes.changed().await.is_ok() {
            events.push(changes.borrow_and_update().clone());
        }
        events
    });
    let responses: Vec<_> = (0..20).map(|_| it.get()).collect();
    for call in it.api.take(20).await {
        call.reply(401).await;
    }
    it.auth.next().await.answer(Err(RefreshError::rejected("invalid_grant")));
    let mut outcomes = Vec::new();
    for response in responses {
        let response = response.await.unwrap();
        assert_eq!(response.status(), 401);
        let NotRefreshed::Ended(error) = not_refreshed(&response) else { panic!("{response:?}") };
        outcomes.push(Arc::clone(error));
    }
    assert!(outcomes.iter().all(|outcome| Arc::ptr_eq(outcome, &outcomes[0])));
    assert!(it.session.state().is_ended());
    assert_eq!(it.session.tokens(), Tokens::default());
    settle().await;
    assert!(store.load().await.unwrap().is_none());

    // Later requests are sent without a token, and their 401 reports the reason.
    let response = it.get();
    let call = it.api.next().await;
    assert_eq!(call.token(), None);
    call.reply(401).await;
    assert!(matches!(not_refreshed(&response.await.unwrap()), NotRefreshed::Ended(_)));
    assert!(matches!(it.session.refresh().await, Err(NotRefreshed::Ended(_))));
    cool_down().await;
    assert!(it.auth.is_idle().await);

    drop(it);
    assert_eq!(events.await.unwrap(), [SessionState::Refreshing, SessionState::Ended(Arc::clone(&outcomes[0]))]);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_inside_another_error_ends_the_session_too() {
    #[derive(Debug)]
    struct Layered(RefreshError);
    impl std::fmt::Display for Layered {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a wrapping error")
        }
    }
    impl std::error::Error for Layered {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
    let (service, mut calls) = script::<RefreshRequest, Tokens, Layered>();
    let session = Session::builder(service).tokens(pair(1)).build().await.unwrap();
    let outcome = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    calls.next().await.answer(Err(Layered(RefreshError::rejected("invalid_grant"))));
    assert!(matches!(outcome.await.unwrap(), Err(NotRefreshed::Ended(_))));
    assert!(session.state().is_ended());
}

#[tokio::test(start_paused = true)]
async fn signing_in_after_the_end_starts_a_new_epoch() {
    let mut it = Fixture::new().await;
    it.fail_once(RefreshError::rejected("invalid_grant")).await;
    it.session.sign_in(pair(5)).await.unwrap();
    let response = it.get();
    let call = it.api.next().await;
    assert_eq!(call.token(), Some("a5"));
    call.reply(401).await;
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), "r5");
    refresh.answer(Ok(pair(6)));
    it.api.next().await.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_overruled_by_newer_tokens_in_the_store() {
    let store = faulty_store();
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    // A peer whose clock is ahead considered the claim expired, and refreshed first.
    sleep(Duration::from_secs(1)).await;
    store.overwrite_as_peer(&pair(2)).await;
    refresh.answer(Err(RefreshError::rejected("invalid_grant")));
    let call = it.api.next().await;
    assert_eq!(call.token(), Some("a2"));
    call.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);
    assert_eq!(it.session.state(), SessionState::Active);
    assert_eq!(it.session.tokens(), pair(2));
    assert_eq!(store.tokens().await, Some(pair(2)));
}

#[tokio::test(start_paused = true)]
async fn a_rejection_ends_nothing_while_the_store_cannot_be_read() {
    for fault in [StoreFault::fail(), StoreFault::hang_until_cleared()] {
        let store = faulty_store();
        let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
        let response = it.get_refused().await;
        store.inject(StoreCall::Load, fault);
        it.auth.next().await.answer(Err(RefreshError::rejected("invalid_grant")));
        let response = response.await.unwrap();
        assert!(matches!(failure(not_refreshed(&response)), RefreshErrorKind::Unavailable));
        it.assert_kept(RefreshErrorKind::Unavailable).await;

        store.clear_faults();
        cool_down().await;
        let response = it.get_refused().await;
        it.auth.next().await.answer(Err(RefreshError::rejected("invalid_grant")));
        assert!(matches!(not_refreshed(&response.await.unwrap()), NotRefreshed::Ended(_)));
        settle().await;
        assert_eq!(store.tokens().await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejection_ends_nothing_if_a_peer_has_taken_the_claim_over() {
    let store = faulty_store();
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
    let response = it.get_refused().await;
    // The process is suspended until long after its lease. When it resumes with the answer, a peer holds the claim.
    store.inject(StoreCall::Renew, StoreFault::hang_until_cleared());
    it.auth.next().await.answer(Err(RefreshError::rejected("invalid_grant")));
    tokio::time::advance(Duration::from_secs(3600)).await;
    let peer_claim = store.claim_as_peer(Duration::from_secs(40)).await;
    store.clear_faults();
    // The deadline of the waiters has long passed.
    assert!(matches!(failure(not_refreshed(&response.await.unwrap())), RefreshErrorKind::InDoubt));
    settle().await;
    it.assert_kept(RefreshErrorKind::Unavailable).await;

    // The tokens that the peer obtains are adopted.
    store.commit_as_peer(&peer_claim, &pair(2)).await;
    cool_down().await;
    let response = it.get_refused().await;
    let call = it.api.next().await;
    assert_eq!(call.token(), Some("a2"));
    call.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_ends_nothing_while_the_claim_cannot_be_renewed() {
    for fault in [StoreFault::fail(), StoreFault::hang_until_cleared()] {
        let store = faulty_store();
        let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
        let response = it.get_refused().await;
        store.inject(StoreCall::Renew, fault);
        it.auth.next().await.answer(Err(RefreshError::rejected("invalid_grant")));
        assert!(matches!(failure(not_refreshed(&response.await.unwrap())), RefreshErrorKind::Unavailable));
        it.assert_kept(RefreshErrorKind::Unavailable).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_unverified_rejection_leaves_no_doubt_and_the_next_one_ends_the_session() {
    for call in [StoreCall::Renew, StoreCall::Load] {
        let store = faulty_store();
        let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
        let response = it.get_refused().await;
        store.inject(call, StoreFault::fail());
        it.auth.next().await.answer(Err(RefreshError::rejected("invalid_grant")));
        assert!(matches!(failure(not_refreshed(&response.await.unwrap())), RefreshErrorKind::Unavailable));
        it.assert_kept(RefreshErrorKind::Unavailable).await;
        store.clear_faults();
        cool_down().await;
        // The rejection was a definite answer.
        let response = it.get_refused().await;
        let refresh = it.auth.next().await;
        assert!(!refresh.request.is_in_doubt());
        refresh.answer(Err(RefreshError::rejected("invalid_grant")));
        assert!(matches!(not_refreshed(&response.await.unwrap()), NotRefreshed::Ended(_)));
        assert!(it.session.state().is_ended());
    }
}

#[tokio::test(start_paused = true)]
async fn an_unverified_rejection_does_not_clear_an_earlier_doubt() {
    let store = faulty_store();
    let mut it =
        Fixture::with(|builder| builder.tokens(pair(1)).rotation(Rotation::Reusable).store(store.clone())).await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Err(in_doubt()));
    store.inject(StoreCall::Load, StoreFault::fail());
    it.auth.next().await.answer(Err(RefreshError::rejected("invalid_grant")));
    response.await.unwrap();
    it.assert_recovers(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_dies_after_a_rejection_blocks_its_peers_for_15_seconds_at_most() {
    let store = faulty_store();
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
    let response = it.get_refused().await;
    // The process gets as far as deleting the record.
    store.inject(StoreCall::Clear, StoreFault::hang_until_cleared());
    it.auth.next().await.answer(Err(RefreshError::rejected("invalid_grant")));
    response.await.unwrap();
    settle().await;
    let record = store.record().await.unwrap();
    let claiming = store.inner().claim(record.version(), Duration::from_secs(40)).await.unwrap();
    let ClaimOutcome::Busy { retry_in } = claiming else { panic!("{claiming:?}") };
    assert!(retry_in <= Duration::from_secs(15));
}

#[tokio::test(start_paused = true)]
async fn a_rejection_after_a_peers_sign_out_is_a_sign_out() {
    let store = faulty_store();
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(store.clone())).await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    store.sign_out_as_peer().await;
    refresh.answer(Err(RefreshError::rejected("invalid_grant")));
    assert_eq!(response.await.unwrap().status(), 401);
    assert_eq!(it.session.state(), SessionState::SignedOut);
}

// Refresh calls that are sent through the layer that they serve.

/// A client whose refresh calls are sent as `POST /auth/refresh` through the service that `transport` builds from it.
async fn refreshing_through_itself<T>(transport: impl FnOnce(Client) -> T) -> Fixture
where
    T: Service<Request<Full<bytes::Bytes>>, Response = http::Response<Full<bytes::Bytes>>>
        + Clone
        + Send
        + Sync
        + 'static,
    T::Error: Into<BoxError> + std::fmt::Debug,
    T::Future: Send,
{
    let own = Arc::new(OnceLock::<T>::new());
    let service = tower::service_fn({
        let own = Arc::clone(&own);
        move |_: RefreshRequest| {
            let own = own.get().expect("set before the first refresh").clone();
            async move {
                let request = Request::post(format!("{ORIGIN}/auth/refresh")).body(Full::default()).unwrap();
                let response = own.oneshot(request).await.map_err(RefreshError::in_doubt)?;
                assert!(response.extensions().get::<RefreshReport>().is_none());
                match response.status().as_u16() {
                    200 => Ok(pair(2)),
                    _ => Err(RefreshError::misconfigured("refused")),
                }
            }
        }
    });
    let (_, auth) = script();
    let it = Fixture::over(service, auth, |builder| builder.tokens(pair(1))).await;
    assert!(own.set(transport(it.client.clone())).is_ok());
    it
}

#[tokio::test(start_paused = true)]
async fn a_refresh_call_through_its_own_layer_passes_through_unchanged() {
    let mut it = refreshing_through_itself(|client| client).await;
    let begun = Instant::now();
    let response = it.get_refused().await;
    let refresh = it.api.next().await;
    assert_eq!(refresh.request.uri().path(), "/auth/refresh");
    assert_eq!(refresh.token(), None);
    refresh.reply(200).await;
    let call = it.api.next().await;
    assert_eq!(call.token(), Some("a2"));
    call.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);
    assert_took(begun, Duration::ZERO);
}

/// One service, and not a clone for each request, so that it reuses the credentials of the last one.
#[tokio::test(start_paused = true)]
async fn a_refresh_call_gets_no_credentials_that_its_service_keeps_from_other_requests() {
    let mut it = refreshing_through_itself(|client| {
        let one = Arc::new(tokio::sync::Mutex::new(client));
        let send = move |request| {
            let one = Arc::clone(&one);
            async move { one.lock().await.ready().await?.call(request).await }
        };
        tower::service_fn(move |request| {
            let send = send.clone();
            async move {
                for _ in 0..3 {
                    // In tasks of their own, as requests of others are.
                    let other = Request::get(ORIGIN).body(Full::default()).unwrap();
                    tokio::spawn(send(other)).await.unwrap()?;
                }
                send(request).await
            }
        })
    })
    .await;
    let session = it.session.clone();
    let refreshed = tokio::spawn(async move { session.refresh().await });
    for _ in 0..3 {
        it.api.reply(1, "a1", 200).await;
    }
    let refresh = it.api.next().await;
    assert_eq!((refresh.request.uri().path(), refresh.token()), ("/auth/refresh", None));
    refresh.reply(200).await;
    assert_eq!(refreshed.await.unwrap().unwrap(), pair(2));
}

#[tokio::test(start_paused = true)]
async fn a_401_to_a_refresh_call_through_its_own_layer_triggers_nothing() {
    let mut it = refreshing_through_itself(|client| client).await;
    let response = it.get_refused().await;
    it.api.next().await.reply(401).await;
    assert_eq!(failure(not_refreshed(&response.await.unwrap())), RefreshErrorKind::Misconfigured);
    assert!(it.api.is_idle().await);
    let failure = failing(&it.session);
    assert_eq!((failure.kind(), failure.count()), (RefreshErrorKind::Misconfigured, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_call_through_another_sessions_layer_carries_that_sessions_token() {
    let mut other = Fixture::with(|builder| builder.tokens(pair(7))).await;
    let client = other.client.clone();
    let mut it = refreshing_through_itself(move |_| client).await;
    let response = it.get_refused().await;
    other.api.reply(1, "a7", 200).await;
    it.accepts(response, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_call_through_its_own_layer_behind_a_buffer_ends_by_its_time_out() {
    let mut it = refreshing_through_itself(|client| Buffer::new(client, 8)).await;
    let begun = Instant::now();
    let response = it.get_refused().await;
    let response = response.await.unwrap();
    assert_took(begun, TIMEOUT);
    assert_eq!(response.status(), 401);
    assert_eq!(failure(not_refreshed(&response)), RefreshErrorKind::InDoubt);
    assert!(it.api.is_idle().await);
    it.assert_kept(RefreshErrorKind::InDoubt).await;
}
