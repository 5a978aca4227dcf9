//! Edge cases of replays: a head without room for the token; a body at the limit, paused or failed; a future kept after
//! it has completed.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::hash::{Hash, Hasher};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tower::{BoxError, Service, ServiceExt, service_fn};
use tower_auth_refresh::replay::NotReplayable;
use tower_auth_refresh::{
    AuthRefreshLayer, RefreshError, RefreshReport, RefreshRequest, ReplayBody, ReplayLimit, Session,
};
use tower_layer::Layer;

use crate::support::*;

/// The first slot that `http`'s header map probes for a name (15 bits of FNV-1a).
fn slot(name: &HeaderName) -> usize {
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        fn finish(&self) -> u64 {
            self.0 & 0x7fff
        }
    }
    let mut fnv = Fnv(0xcbf2_9ce4_8422_2325);
    name.hash(&mut fnv);
    usize::try_from(fnv.finish()).unwrap()
}

/// Headers with room for one more, while a map built from the same headers in the same order has none.
///
/// A map with crowded slots tries to grow at the next insertion, and fails that insertion if it can't; the insertion
/// after it succeeds. This map has already failed one.
fn headers_with_room_only_once() -> HeaderMap {
    const CROWD: usize = 400;
    let names = (0_u32..).map(|number| HeaderName::try_from(format!("x-{number}")).unwrap());
    let (mut crowd, mut rest) = (vec![None; CROWD], Vec::new());
    let mut last = None;
    for name in names {
        match slot(&name).checked_sub(1_000) {
            Some(0) if crowd[0].is_some() => last = Some(name),
            Some(place @ ..CROWD) => crowd[place] = Some(name),
            _ if rest.len() < 13_000 => rest.push(name),
            _ => {}
        }
        if last.is_some() && crowd.iter().all(Option::is_some) {
            break;
        }
    }
    let mut headers = HeaderMap::new();
    for name in rest.into_iter().chain(crowd.into_iter().flatten()).chain(last) {
        headers.append(name, HeaderValue::from_static("1"));
    }
    assert!(headers.try_append("x-refused", HeaderValue::from_static("1")).is_err());
    assert!(headers.clone().try_append(AUTHORIZATION, HeaderValue::from_static("1")).is_ok());
    headers
}

#[tokio::test(start_paused = true)]
async fn a_head_without_room_for_the_token_on_the_replay_is_not_replayed_and_its_401_is_intact() {
    let mut it = Fixture::new().await;
    let mut request = Request::post(ORIGIN).body(Full::from("body")).unwrap();
    *request.headers_mut() = headers_with_room_only_once();
    let response = it.send(request);
    it.api.reply(1, "a1", 401).await;
    it.auth.next().await.answer(Ok(pair(2)));
    let response = response.await.unwrap();
    assert_eq!(response.status(), 401);
    assert!(matches!(report(&response), RefreshReport::NotReplayable(NotReplayable::Head)), "{:?}", report(&response));
    assert_eq!(text(response).await, "status 401");
    assert!(it.api.is_idle().await);
    // The tokens were refreshed for the other requests.
    let response = it.get();
    it.accepts(response, 2).await;
}

/// A buffer whose instances are counted.
struct Buffer(#[expect(dead_code, reason = "kept for its reference count")] Arc<()>);

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        b"data"
    }
}

/// Sends two frames of an unfinished body and completes the request with this answer. Returns the number of frames
/// still in memory while the completed future is kept.
async fn held_after(answer: impl Fn() -> Result<Response<String>, BoxError> + Clone) -> usize {
    let refresh = service_fn(async |_: RefreshRequest| Ok::<_, RefreshError>(pair(2)));
    let session = Session::builder(refresh).tokens(pair(1)).build().await.unwrap();
    let sending = Arc::new(Mutex::new(None));
    let inner = service_fn(|request: Request<ReplayBody<_>>| {
        let (answer, sending) = (answer.clone(), Arc::clone(&sending));
        async move {
            let mut body: ReplayBody<_> = request.into_body();
            for _ in 0..2 {
                body.frame().await.unwrap().unwrap();
            }
            *sending.lock().unwrap() = Some(body);
            answer()
        }
    });
    let counted = Arc::new(());
    let frames = [(); 2].map(|()| Bytes::from_owner(Buffer(Arc::clone(&counted))));
    let frames = frames.into_iter().map(|data| Ok::<_, Infallible>(Frame::data(data)));
    let body = StreamBody::new(stream::iter(frames).chain(stream::pending()));
    let mut client = AuthRefreshLayer::new(session, origin()).layer(inner);
    let mut sent = pin!(client.ready().await.unwrap().call(Request::post(ORIGIN).body(body).unwrap()));
    let answered = poll_fn(|cx| sent.as_mut().poll(cx)).await;
    let held = Arc::strong_count(&counted) - 1;
    drop(answered);
    held
}

#[tokio::test]
async fn the_recorded_frames_are_freed_by_the_answer_even_if_its_future_is_kept() {
    assert_eq!(held_after(|| Ok(Response::new(String::new()))).await, 0);
    assert_eq!(held_after(|| Err("the connection is gone".into())).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_at_the_limit_is_replayed_and_one_byte_over_it_only_other_requests_use_the_refresh() {
    let mut it = Fixture::new().await;
    let post = |limit| Request::post(ORIGIN).extension(ReplayLimit(limit)).body(Full::from("four")).unwrap();

    let response = it.send(post(4));
    it.api.reply(1, "a1", 401).await;
    it.auth.next().await.answer(Ok(pair(2)));
    it.api.reply(1, "a2", 200).await;
    assert!(matches!(report(&response.await.unwrap()), RefreshReport::Replayed));

    let response = it.send(post(3));
    it.api.reply(1, "a2", 401).await;
    let response = response.await.unwrap();
    assert!(matches!(report(&response), RefreshReport::NotReplayable(NotReplayable::TooLarge)));
    assert_eq!(text(response).await, "status 401");
    let other = it.get();
    it.auth.next().await.answer(Ok(pair(3)));
    it.accepts(other, 3).await;
}

type Streamed = StreamBody<Pin<Box<dyn Stream<Item = io::Result<Frame<Bytes>>> + Send>>>;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send>>;

/// A request that is challenged after the first frame of its body was sent.
struct Challenged {
    attempt: ReplayBody<Streamed>,
    response: Answer,
    auth: AuthCalls,
}

impl Challenged {
    async fn new(frames: impl IntoIterator<Item = io::Result<&'static str>, IntoIter: Send + 'static>) -> Self {
        let (refresh, auth) = script();
        let session = Session::builder(refresh).tokens(pair(1)).build().await.unwrap();
        let (inner, mut api) = script();
        let client = AuthRefreshLayer::new(session, origin()).layer(inner);
        let frames = frames.into_iter().map(|data| data.map(|data| Frame::data(Bytes::from(data))));
        let frames: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(stream::iter(frames));
        let request = Request::post(ORIGIN).body(StreamBody::new(frames)).unwrap();
        let mut sent = Box::pin(client.oneshot(request));
        assert!(sent.as_mut().now_or_never().is_none());
        let mut call = api.next().await;
        assert_eq!(call.request.frame().await.unwrap().unwrap().into_data().unwrap(), "first, ");
        let Call { request, answer } = call;
        let _ = answer.send(Ok(response(401)));
        Self { attempt: request.into_body(), response: sent, auth }
    }
}

const WHOLE: [io::Result<&str>; 3] = [Ok("first, "), Ok("second, "), Ok("third")];

#[tokio::test(start_paused = true)]
async fn a_challenged_attempt_pauses_and_resumes_when_the_refresh_fails() {
    let mut it = Challenged::new(WHOLE).await;
    assert!(it.response.as_mut().now_or_never().is_none());
    let mut rest = Box::pin(it.attempt.collect());
    assert!(rest.as_mut().now_or_never().is_none(), "nothing more is sent while a refresh is under way");
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no")));
    let response = it.response.await.unwrap();
    failure(&response);
    assert_eq!(text(response).await, "status 401");
    assert_eq!(rest.await.unwrap().to_bytes(), "second, third");
}

#[tokio::test(start_paused = true)]
async fn a_challenged_attempt_resumes_when_its_caller_is_dropped() {
    let mut it = Challenged::new(WHOLE).await;
    assert!(it.response.as_mut().now_or_never().is_none());
    let mut rest = Box::pin(it.attempt.collect());
    assert!(rest.as_mut().now_or_never().is_none());
    drop(it.response);
    assert_eq!(rest.await.unwrap().to_bytes(), "second, third");
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_body_failed_is_not_replayed_and_its_401_is_returned_at_once() {
    let mut it = Challenged::new([Ok("first, "), Err(io::Error::other("the disk is gone")), Ok("third")]).await;
    let error = it.attempt.frame().await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the disk is gone");
    let response = it.response.await.unwrap();
    assert!(matches!(report(&response), RefreshReport::NotReplayable(NotReplayable::SourceFailed)));
    assert_eq!(text(response).await, "status 401");
    it.auth.next().await.answer(Ok(pair(2)));
}
