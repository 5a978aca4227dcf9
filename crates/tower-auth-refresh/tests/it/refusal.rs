//! The body of a 401: drained before a replay, within limits, and intact if the 401 is returned.

use std::collections::VecDeque;
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};
use tower_auth_refresh::{NotRefreshed, RefreshError, RefreshReport, ReplayLimit};

use crate::strict::{Broken, Contract};
use crate::support::*;

pin_project! {
    /// A response body that records how much of it is read, and when it is dropped.
    pub struct Watched {
        steps: VecDeque<Step>,
        // Repeated without end after the steps.
        forever: Option<Bytes>,
        pause: Option<Pin<Box<Sleep>>>,
        watcher: Arc<Watcher>,
        #[pin]
        _pinned: PhantomPinned,
    }

    impl PinnedDrop for Watched {
        fn drop(this: Pin<&mut Self>) {
            this.project().watcher.dropped.store(true, Ordering::SeqCst);
        }
    }
}

#[derive(Default)]
pub struct Watcher {
    frames: AtomicUsize,
    bytes: AtomicUsize,
    ended: AtomicBool,
    dropped: AtomicBool,
}

pub enum Step {
    Data(&'static str),
    Trailers,
    After(Duration),
    Stall,
    Fail,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.project();
        if let Some(pause) = this.pause {
            ready!(pause.as_mut().poll(cx));
            *this.pause = None;
        }
        let frame = match this.steps.pop_front() {
            Some(Step::Data(text)) => Frame::data(Bytes::from_static(text.as_bytes())),
            Some(Step::Trailers) => Frame::trailers(HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("x"))])),
            Some(Step::Fail) => return Poll::Ready(Some(Err(Broken::Called))),
            Some(Step::After(pause)) => {
                *this.pause = Some(Box::pin(sleep(pause)));
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Step::Stall) => {
                this.steps.push_front(Step::Stall);
                return Poll::Pending;
            }
            None => {
                let Some(data) = this.forever else {
                    this.watcher.ended.store(true, Ordering::SeqCst);
                    return Poll::Ready(None);
                };
                Frame::data(data.clone())
            }
        };
        this.watcher.frames.fetch_add(1, Ordering::SeqCst);
        this.watcher.bytes.fetch_add(frame.data_ref().map_or(0, Bytes::len), Ordering::SeqCst);
        Poll::Ready(Some(Ok(frame)))
    }
}

/// A 401 with a body of these steps.
pub fn refusal(steps: impl IntoIterator<Item = Step>, forever: Option<Bytes>) -> (Response<Watched>, Arc<Watcher>) {
    let watcher = Arc::new(Watcher::default());
    let steps = steps.into_iter().collect();
    let body = Watched { steps, forever, pause: None, watcher: Arc::clone(&watcher), _pinned: PhantomPinned };
    (response(401).map(|_| body), watcher)
}

/// Answers a request with such a 401, and its refresh with tokens. Returns the time from the refresh to the replay.
async fn time_to_replay(steps: impl IntoIterator<Item = Step>, forever: Option<Bytes>) -> (Duration, Arc<Watcher>) {
    let mut it = Contract::new().await;
    let request = it.get();
    let (refused, watcher) = refusal(steps, forever);
    it.answer("a1", Ok(refused)).await;
    let refresh = it.auth.next().await;
    assert_eq!(watcher.frames.load(Ordering::SeqCst), 0, "nothing is read while the 401 may still be returned");
    refresh.answer(Ok(pair(2)));
    let refreshed = Instant::now();
    let replay = it.api.next().await;
    let elapsed = refreshed.elapsed();
    assert!(watcher.dropped.load(Ordering::SeqCst), "the 401 releases its connection before the replay is sent");
    let (mut ok, _) = refusal([], None);
    *ok.status_mut() = StatusCode::OK;
    replay.answer(Ok(ok));
    assert_eq!(request.await.unwrap().unwrap().status(), 200);
    (elapsed, watcher)
}

const SOON: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(50);

#[tokio::test(start_paused = true)]
async fn the_401_is_read_to_its_end_before_the_replay_which_can_then_reuse_its_connection() {
    for steps in [vec![], vec![Step::Data("a"), Step::After(SOON), Step::Data("b"), Step::Data(""), Step::Trailers]] {
        let expected = steps.iter().filter(|step| !matches!(step, Step::After(_))).count();
        let (elapsed, watcher) = time_to_replay(steps, None).await;
        assert!(watcher.ended.load(Ordering::SeqCst));
        assert_eq!(watcher.frames.load(Ordering::SeqCst), expected);
        assert!(elapsed < 2 * SOON);
    }
}

#[tokio::test(start_paused = true)]
async fn a_401_that_stalls_delays_the_replay_by_50_ms_at_most() {
    let (elapsed, watcher) = time_to_replay([Step::Data("a"), Step::Stall], None).await;
    assert_eq!(watcher.frames.load(Ordering::SeqCst), 1);
    assert!((LONGEST..LONGEST + SOON).contains(&elapsed), "{elapsed:?}");
    // The limit also holds if data keeps arriving.
    let frames = (0..1000).flat_map(|_| [Step::Data("."), Step::After(SOON)]);
    let (elapsed, _) = time_to_replay(frames, None).await;
    assert!((LONGEST..LONGEST + SOON).contains(&elapsed), "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn at_most_64_kib_of_an_endless_401_are_read() {
    for size in [1024, 1, 1000, 100_000] {
        let (elapsed, watcher) = time_to_replay([], Some(Bytes::from(vec![b'.'; size]))).await;
        let read = watcher.bytes.load(Ordering::SeqCst);
        assert!(read + size > 64 * 1024 && read <= 64 * 1024 + size, "{read} bytes of frames of {size}");
        assert!(elapsed < SOON);
    }
    // Empty frames count too.
    let (_, watcher) = time_to_replay([], Some(Bytes::new())).await;
    assert!(watcher.frames.load(Ordering::SeqCst) <= 64 * 1024 + 1);
}

#[tokio::test(start_paused = true)]
async fn a_401_of_exactly_64_kib_is_read_to_its_end() {
    static DATA: [u8; 64 * 1024] = [b'.'; 64 * 1024];
    let text = std::str::from_utf8(&DATA).unwrap();
    let (_, watcher) = time_to_replay([Step::Data(text)], None).await;
    assert!(watcher.ended.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn a_401_whose_body_fails_does_not_prevent_the_replay() {
    let (elapsed, _) = time_to_replay([Step::Data("a"), Step::Fail], None).await;
    assert!(elapsed < SOON);
}

/// Asserts that the 401 reached the caller as the server sent it.
async fn assert_intact(response: Response<Watched>, watcher: &Watcher) {
    assert_eq!(response.status(), 401);
    assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer error=\"invalid_token\"");
    assert_eq!(watcher.frames.load(Ordering::SeqCst), 0);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()[ACCEPT], "x");
    assert_eq!(body.to_bytes(), "a long explanation");
}

#[tokio::test(start_paused = true)]
async fn the_401_is_intact_when_it_is_returned_for_any_reason() {
    let explained = || {
        let steps = [Step::Data("a long "), Step::After(SOON), Step::Data("explanation"), Step::Trailers];
        refusal(steps, None)
    };
    let mut it = Contract::new().await;

    // The request can't be replayed.
    let request = Request::post(ORIGIN).extension(ReplayLimit(3)).body(Full::from("long")).unwrap();
    let request = it.send(request);
    let (refused, watcher) = explained();
    it.answer("a1", Ok(refused)).await;
    let response = request.await.unwrap().unwrap();
    assert!(matches!(report(&response), RefreshReport::NotReplayable(_)));
    assert_intact(response, &watcher).await;
    it.auth.next().await.answer(Ok(pair(2)));
    settle().await;

    // The replay is refused too.
    let request = it.get();
    it.answer("a2", Ok(refusal([], None).0)).await;
    it.auth.next().await.answer(Ok(pair(3)));
    let (refused, watcher) = explained();
    it.answer("a3", Ok(refused)).await;
    let response = request.await.unwrap().unwrap();
    assert!(matches!(report(&response), RefreshReport::ReplayRefused));
    assert_intact(response, &watcher).await;

    // Another user signs in meanwhile.
    let request = it.get();
    let (refused, watcher) = explained();
    it.answer("a3", Ok(refused)).await;
    let late = it.auth.next().await;
    it.session.sign_in(pair(4)).await.unwrap();
    late.answer(Ok(pair(9)));
    let response = request.await.unwrap().unwrap();
    assert!(matches!(report(&response), RefreshReport::NotRefreshed(NotRefreshed::SessionChanged)));
    assert_intact(response, &watcher).await;

    // The refresh fails, and the session cools down.
    let request = it.get();
    let (refused, watcher) = explained();
    it.answer("a4", Ok(refused)).await;
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no")));
    assert_intact(request.await.unwrap().unwrap(), &watcher).await;
    let request = it.get();
    let (refused, watcher) = explained();
    it.answer("a4", Ok(refused)).await;
    assert_intact(request.await.unwrap().unwrap(), &watcher).await;

    // The session ends.
    it.session.sign_in(pair(5)).await.unwrap();
    let request = it.get();
    let (refused, watcher) = explained();
    it.answer("a5", Ok(refused)).await;
    it.auth.next().await.answer(Err(RefreshError::rejected("no")));
    assert_intact(request.await.unwrap().unwrap(), &watcher).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_401_is_being_read_is_not_replayed_as_the_user_who_signs_in_meanwhile() {
    let mut it = Contract::new().await;
    let request = it.get();
    it.answer("a1", Ok(refusal([Step::Stall], None).0)).await;
    it.auth.next().await.answer(Ok(pair(2)));
    settle().await;
    it.session.sign_in(pair(3)).await.unwrap();
    // The 401 is partly read and can't be returned, so the request is sent again without a token.
    let call = it.api.next().await;
    assert!(call.request.headers().is_empty());
    call.answer(Ok(refusal([], None).0));
    let response = request.await.unwrap().unwrap();
    assert!(matches!(report(&response), RefreshReport::NotRefreshed(NotRefreshed::SessionChanged)));
}

/// A 401 that demands a step-up authentication.
fn step_up() -> Response<Full<Bytes>> {
    let challenge = "Bearer error=\"insufficient_user_authentication\", acr_values=\"gold\"";
    let mut response = response(401);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

#[tokio::test(start_paused = true)]
async fn a_step_up_demand_is_reported_as_such_in_the_answer_to_a_replay_too() {
    let mut it = Contract::new().await;
    let request = it.get();
    it.answer("a1", Ok(step_up())).await;
    assert!(matches!(report(&request.await.unwrap().unwrap()), RefreshReport::StepUp(_)));
    let request = it.get();
    it.answer("a1", Ok(response(401))).await;
    it.auth.next().await.answer(Ok(pair(2)));
    it.answer("a2", Ok(step_up())).await;
    assert!(matches!(report(&request.await.unwrap().unwrap()), RefreshReport::StepUp(_)));
}

#[tokio::test(start_paused = true)]
async fn a_step_up_demand_is_no_refusal_of_the_fresh_token() {
    let mut it = Contract::new().await;
    // Each token outlives its probation and first meets such a demand: the API never refuses a fresh token.
    for n in 1..20 {
        let request = it.get();
        it.answer(&format!("a{n}"), Ok(response(401))).await;
        it.auth.next().await.answer(Ok(pair(n + 1)));
        it.answer(&format!("a{}", n + 1), Ok(step_up())).await;
        assert!(matches!(report(&request.await.unwrap().unwrap()), RefreshReport::StepUp(_)));
        tokio::time::sleep(Duration::from_secs(300)).await;
    }
}
