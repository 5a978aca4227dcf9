//! The 401: read to its end before a replay, within bounds, and intact when it is returned.

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
    /// The body of a response, watched: what is read of it, and when.
    pub struct Watched {
        steps: VecDeque<Step>,
        // Repeated for ever, when the steps are done.
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

/// A 401 with such a body.
pub fn refusal(steps: impl IntoIterator<Item = Step>, forever: Option<Bytes>) -> (Response<Watched>, Arc<Watcher>) {
    let watcher = Arc::new(Watcher::default());
    let steps = steps.into_iter().collect();
    let body = Watched { steps, forever, pause: None, watcher: Arc::clone(&watcher), _pinned: PhantomPinned };
    (response(401).map(|_| body), watcher)
}

/// Has a request refused with such a body, and a refresh succeed. Returns how long the replay took to come after it.
async fn time_to_replay(steps: impl IntoIterator<Item = Step>, forever: Option<Bytes>) -> (Duration, Arc<Watcher>) {
    let mut it = Contract::new().await;
    let request = it.get();
    let (refused, watcher) = refusal(steps, forever);
    it.answer("a1", Ok(refused)).await;
    let refresh = it.auth.next().await;
    assert_eq!(watcher.frames.load(Ordering::SeqCst), 0, "nothing is read while it may yet be returned");
    refresh.answer(Ok(pair(2)));
    let refreshed = Instant::now();
    let replay = it.api.next().await;
    let elapsed = refreshed.elapsed();
    assert!(watcher.dropped.load(Ordering::SeqCst), "it holds its connection no longer than the replay needs one");
    let (mut ok, _) = refusal([], None);
    *ok.status_mut() = StatusCode::OK;
    replay.answer(Ok(ok));
    assert_eq!(request.await.unwrap().unwrap().status(), 200);
    (elapsed, watcher)
}

const SOON: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(50);

#[tokio::test(start_paused = true)]
async fn the_401_is_read_to_its_end_before_the_replay_so_that_its_connection_can_serve_it() {
    for steps in [vec![], vec![Step::Data("a"), Step::After(SOON), Step::Data("b"), Step::Data(""), Step::Trailers]] {
        let expected = steps.iter().filter(|step| !matches!(step, Step::After(_))).count();
        let (elapsed, watcher) = time_to_replay(steps, None).await;
        assert!(watcher.ended.load(Ordering::SeqCst));
        assert_eq!(watcher.frames.load(Ordering::SeqCst), expected);
        assert!(elapsed < 2 * SOON);
    }
}

#[tokio::test(start_paused = true)]
async fn a_401_that_stalls_holds_the_replay_up_for_50_ms_at_most() {
    let (elapsed, watcher) = time_to_replay([Step::Data("a"), Step::Stall], None).await;
    assert_eq!(watcher.frames.load(Ordering::SeqCst), 1);
    assert!((LONGEST..LONGEST + SOON).contains(&elapsed), "{elapsed:?}");
    // However often something comes.
    let drops = (0..1000).flat_map(|_| [Step::Data("."), Step::After(SOON)]);
    let (elapsed, _) = time_to_replay(drops, None).await;
    assert!((LONGEST..LONGEST + SOON).contains(&elapsed), "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn of_a_401_without_end_64_kib_are_read_at_most() {
    for size in [1024, 1, 1000, 100_000] {
        let (elapsed, watcher) = time_to_replay([], Some(Bytes::from(vec![b'.'; size]))).await;
        let read = watcher.bytes.load(Ordering::SeqCst);
        assert!(read + size > 64 * 1024 && read <= 64 * 1024 + size, "{read} bytes of frames of {size}");
        assert!(elapsed < SOON);
    }
    // Frames with nothing in them count too.
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
async fn a_401_whose_body_fails_is_no_obstacle_to_the_replay() {
    let (elapsed, _) = time_to_replay([Step::Data("a"), Step::Fail], None).await;
    assert!(elapsed < SOON);
}

/// The 401 reached the caller as the server sent it.
async fn assert_intact(response: Response<Watched>, watcher: &Watcher) {
    assert_eq!(response.status(), 401);
    assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer error=\"invalid_token\"");
    assert_eq!(watcher.frames.load(Ordering::SeqCst), 0);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()[ACCEPT], "x");
    assert_eq!(body.to_bytes(), "a long explanation");
}

#[tokio::test(start_paused = true)]
async fn the_401_is_intact_when_it_is_returned_for_whatever_reason() {
    let explained = || {
        let steps = [Step::Data("a long "), Step::After(SOON), Step::Data("explanation"), Step::Trailers];
        refusal(steps, None)
    };
    let mut it = Contract::new().await;

    // It can't be replayed.
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

    // Somebody signs in meanwhile.
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
async fn a_request_whose_401_is_being_read_is_not_repeated_as_the_user_who_signs_in_meanwhile() {
    let mut it = Contract::new().await;
    let request = it.get();
    it.answer("a1", Ok(refusal([Step::Stall], None).0)).await;
    it.auth.next().await.answer(Ok(pair(2)));
    settle().await;
    it.session.sign_in(pair(3)).await.unwrap();
    // The 401 can't be returned any more, so that another has to be had for it.
    let call = it.api.next().await;
    assert!(call.request.headers().is_empty());
    call.answer(Ok(refusal([], None).0));
    let response = request.await.unwrap().unwrap();
    assert!(matches!(report(&response), RefreshReport::NotRefreshed(NotRefreshed::SessionChanged)));
}

/// A 401 that asks for a stronger authentication.
fn step_up() -> Response<Full<Bytes>> {
    let challenge = "Bearer error=\"insufficient_user_authentication\", acr_values=\"gold\"";
    let mut response = response(401);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

#[tokio::test(start_paused = true)]
async fn a_demand_for_a_stronger_authentication_is_reported_as_such_in_the_answer_to_a_replay_too() {
    let mut it = Contract::new().await;
    let request = it.get();
    it.answer("a1", Ok(step_up())).await;
    assert!(matches!(report(&request.await.unwrap().unwrap()), RefreshReport::StepUp));
    let request = it.get();
    it.answer("a1", Ok(response(401))).await;
    it.auth.next().await.answer(Ok(pair(2)));
    it.answer("a2", Ok(step_up())).await;
    assert!(matches!(report(&request.await.unwrap().unwrap()), RefreshReport::StepUp));
}

#[tokio::test(start_paused = true)]
async fn a_demand_for_a_stronger_authentication_is_no_refusal_of_the_fresh_token() {
    let mut it = Contract::new().await;
    // Tokens that outlive their probation, and meet such a demand first of all: the API never refuses a fresh one.
    for n in 1..20 {
        let request = it.get();
        it.answer(&format!("a{n}"), Ok(response(401))).await;
        it.auth.next().await.answer(Ok(pair(n + 1)));
        it.answer(&format!("a{}", n + 1), Ok(step_up())).await;
        assert!(matches!(report(&request.await.unwrap().unwrap()), RefreshReport::StepUp));
        tokio::time::sleep(Duration::from_secs(300)).await;
    }
}
