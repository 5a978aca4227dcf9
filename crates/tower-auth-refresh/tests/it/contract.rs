//! The contract with the inner service and with the caller: readiness, error types, and an identical replay.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::mem::{size_of, size_of_val};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, COOKIE};
use http::{HeaderName, HeaderValue, Method, Request, Response, Version};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower::{Service, ServiceExt};
use tower_auth_refresh::layer::ResponseFuture;
use tower_auth_refresh::{
    AuthRefresh, AuthRefreshLayer, NotRefreshed, RefreshError, RefreshReport, ReplayBody, Session, SkipAuth, Tokens,
};
use tower_layer::Layer;

use crate::refusal::{Step, refusal};
use crate::strict::{Broken, Contract, Req};
use crate::support::*;

// Readiness.

#[tokio::test(start_paused = true)]
async fn the_inner_service_is_made_ready_for_the_attempt_and_again_for_the_replay() {
    let mut it = Contract::new().await;
    for n in 1..4 {
        let request = it.get();
        it.answer(&format!("a{n}"), Ok(response(401))).await;
        it.auth.next().await.answer(Ok(pair(n + 1)));
        it.answer(&format!("a{}", n + 1), Ok(response(200))).await;
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn one_handle_serves_request_after_request() {
    let mut it = Contract::new().await;
    for n in 1..4 {
        let request = it.client.ready().await.unwrap().call(Request::get(ORIGIN).body(Full::default()).unwrap());
        let request = tokio::spawn(request);
        it.answer(&format!("a{n}"), Ok(response(401))).await;
        it.auth.next().await.answer(Ok(pair(n + 1)));
        it.answer(&format!("a{}", n + 1), Ok(response(200))).await;
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn one_handle_attaches_the_token_in_force_at_each_of_its_requests() {
    let mut it = Contract::<Full<Bytes>>::new().await;
    let mut handle = it.client.clone();
    let mut now: Option<u32> = Some(1);
    for next in [None, Some(2), Some(3), None, None, Some(2), Some(1)] {
        for _ in 0..4 {
            let request = handle.ready().await.unwrap().call(Request::get(ORIGIN).body(Full::default()).unwrap());
            let call = it.api.next().await;
            let expected = now.map(|n| format!("Bearer a{n}"));
            assert_eq!(call.request.headers().get(AUTHORIZATION).map(|it| it.to_str().unwrap()), expected.as_deref());
            call.answer(Ok(response(200)));
            assert_eq!(request.await.unwrap().status(), 200);
        }
        match next {
            None => it.session.sign_out().await.unwrap(),
            Some(n) => it.session.sign_in(pair(n)).await.unwrap(),
        }
        now = next;
    }
}

#[tokio::test(start_paused = true)]
async fn one_handle_holds_its_requests_back_while_its_token_is_being_replaced() {
    let mut it = Contract::<Full<Bytes>>::new().await;
    let mut handle = it.client.clone();
    for _ in 0..4 {
        let request = handle.ready().await.unwrap().call(Request::get(ORIGIN).body(Full::default()).unwrap());
        it.answer("a1", Ok(response(200))).await;
        assert_eq!(request.await.unwrap().status(), 200);
    }
    let refused = it.get();
    it.answer("a1", Ok(response(401))).await;
    let call = it.auth.next().await;
    let held_back = handle.ready().await.unwrap().call(Request::get(ORIGIN).body(Full::default()).unwrap());
    assert!(it.api.is_idle().await);
    call.answer(Ok(pair(2)));
    it.answer("a2", Ok(response(200))).await;
    assert_eq!(refused.await.unwrap().unwrap().status(), 200);
    let held_back = tokio::spawn(held_back);
    it.answer("a2", Ok(response(200))).await;
    assert_eq!(held_back.await.unwrap().unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn the_inner_service_is_made_ready_for_a_request_that_was_held_back() {
    let mut it = Contract::signed_in_with(Tokens::from_refresh_token(refresh("r1"))).await;
    let requests = [it.get(), it.get()];
    it.auth.next().await.answer(Ok(pair(2)));
    // One of them is refused and replayed.
    it.answer("a2", Ok(response(401))).await;
    it.answer("a2", Ok(response(200))).await;
    it.auth.next().await.answer(Ok(pair(3)));
    it.answer("a3", Ok(response(200))).await;
    for request in requests {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn the_inner_service_is_made_ready_for_a_request_that_is_sent_without_a_token() {
    let mut it = Contract::new().await;
    let opted_out = || Request::get(ORIGIN).extension(SkipAuth).body(Full::default()).unwrap();
    let request = it.send(opted_out());
    it.api.next().await.answer(Ok(response(401)));
    assert_eq!(request.await.unwrap().unwrap().status(), 401);
    it.session.sign_out().await.unwrap();
    let request = it.get();
    it.api.next().await.answer(Ok(response(200)));
    assert_eq!(request.await.unwrap().unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_no_refresh_can_help_is_sent_without_a_token_at_once() {
    let mut it = Contract::<Full<Bytes>>::signed_in_with(Tokens::from_refresh_token(refresh("r1"))).await;
    let held_back = it.get();
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no such client")));
    it.api.next().await.answer(Ok(response(200)));
    assert_eq!(held_back.await.unwrap().unwrap().status(), 200);
    // The session cools down: `call` sends the request before its future is polled.
    let mut handle = it.client.clone();
    let request = handle.ready().await.unwrap().call(Request::get(ORIGIN).body(Full::default()).unwrap());
    it.api.next().await.answer(Ok(response(200)));
    assert_eq!(request.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_held_back_is_sent_without_a_token_after_a_sign_out() {
    let mut it = Contract::signed_in_with(Tokens::from_refresh_token(refresh("r1"))).await;
    let request = it.get();
    let refresh = it.auth.next().await;
    it.session.sign_out().await.unwrap();
    refresh.answer(Ok(pair(2)));
    let call = it.api.next().await;
    assert!(call.request.headers().is_empty());
    call.answer(Ok(response(401)));
    let response = request.await.unwrap().unwrap();
    assert!(matches!(report(&response), RefreshReport::NotRefreshed(NotRefreshed::SessionChanged)));
}

#[tokio::test(start_paused = true)]
async fn no_request_waits_for_the_refresh_of_an_earlier_epoch() {
    let mut it = Contract::<Full<Bytes>>::new().await;
    for next in [None, Some(pair(1))] {
        let refused = it.get();
        it.answer("a1", Ok(response(401))).await;
        let hanging = it.auth.next().await;
        let held_back = it.get();
        settle().await;
        let over = Instant::now();
        match next.clone() {
            None => it.session.sign_out().await.unwrap(),
            Some(tokens) => it.session.sign_in(tokens).await.unwrap(),
        }
        let call = it.api.next().await;
        assert!(call.request.headers().is_empty());
        call.answer(Ok(response(401)));
        for request in [refused, held_back] {
            let response = request.await.unwrap().unwrap();
            assert!(matches!(report(&response), RefreshReport::NotRefreshed(NotRefreshed::SessionChanged)));
        }
        assert_eq!(over.elapsed(), Duration::ZERO);
        hanging.answer(Ok(pair(2)));
        settle().await;
        assert_eq!(it.session.tokens(), next.unwrap_or_default());
        it.session.sign_in(pair(1)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_reserves_no_inner_service_while_it_waits_for_a_refresh() {
    let mut it = Contract::<Full<Bytes>>::new().await;
    let refused = it.get();
    it.answer("a1", Ok(response(401))).await;
    let refresh = it.auth.next().await;
    let held_back = it.get();
    // Nor does the handle that sends it, while the handle is kept.
    let mut handle = it.client.clone();
    let request = handle.ready().await.unwrap().call(Request::get(ORIGIN).body(Full::default()).unwrap());
    assert_eq!(it.within.reserved(), 0);
    let sent_by_handle = tokio::spawn(request);
    assert!(it.api.is_idle().await);
    assert_eq!(it.within.reserved(), 0);
    refresh.answer(Ok(pair(2)));
    for _ in 0..3 {
        it.answer("a2", Ok(response(200))).await;
    }
    for request in [refused, held_back] {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(sent_by_handle.await.unwrap().unwrap().status(), 200);
    assert_eq!(it.within.reserved(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_reserves_no_inner_service_while_it_is_under_way() {
    let mut it = Contract::<Full<Bytes>>::new().await;
    let _request = it.get();
    let _call = it.api.next().await;
    assert_eq!(it.within.reserved(), 0);
}

#[tokio::test(start_paused = true)]
async fn while_an_expired_token_is_being_replaced_no_request_is_sent_with_it() {
    let (service, mut auth): (_, AuthCalls) = script();
    let tokens = pair(1).with_expires_in(Duration::from_secs(10));
    let builder = Session::builder(service).tokens(tokens).refresh_early(Duration::from_secs(1));
    let session = builder.build().await.unwrap();
    let (service, mut api) = script();
    let client = AuthRefreshLayer::new(session, origin()).layer(service);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let get = || tokio::spawn(client.clone().oneshot(Request::get(ORIGIN).body(Full::<Bytes>::default()).unwrap()));
    let first = get();
    let refresh = auth.next().await;
    let second = get();
    assert!(api.is_idle().await);
    refresh.answer(Ok(pair(2)));
    for call in api.take(2).await {
        assert_eq!(call.token(), Some("a2"));
        call.reply(200).await;
    }
    for request in [first, second] {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
}

// Errors.

#[tokio::test(start_paused = true)]
async fn errors_of_the_inner_service_keep_their_type() {
    let mut it = Contract::<Full<Bytes>>::new().await;
    it.within.break_one();
    assert_eq!(it.get().await.unwrap().unwrap_err(), Broken::Unready);

    let request = it.get();
    it.answer("a1", Err(Broken::Called)).await;
    assert_eq!(request.await.unwrap().unwrap_err(), Broken::Called);

    // Before the replay, and in the replay.
    let request = it.get();
    it.answer("a1", Ok(response(401))).await;
    let call = it.auth.next().await;
    it.within.break_one();
    call.answer(Ok(pair(2)));
    assert_eq!(request.await.unwrap().unwrap_err(), Broken::Unready);
    let request = it.get();
    it.answer("a2", Ok(response(401))).await;
    it.auth.next().await.answer(Ok(pair(3)));
    it.answer("a3", Err(Broken::Called)).await;
    assert_eq!(request.await.unwrap().unwrap_err(), Broken::Called);

    // After the request was held back.
    it.session.sign_in(Tokens::from_refresh_token(refresh("r4"))).await.unwrap();
    for broken in [Broken::Unready, Broken::Called] {
        let request = it.get();
        let call = it.auth.next().await;
        if broken == Broken::Unready {
            it.within.break_one();
        }
        call.answer(Ok(pair(5)));
        if broken == Broken::Called {
            it.answer("a5", Err(Broken::Called)).await;
        }
        assert_eq!(request.await.unwrap().unwrap_err(), broken);
        it.session.sign_in(Tokens::from_refresh_token(refresh("r6"))).await.unwrap();
    }

    // For a foreign origin.
    let request = it.send(Request::get("https://other.example").body(Full::default()).unwrap());
    it.api.next().await.answer(Err(Broken::Called));
    assert_eq!(request.await.unwrap().unwrap_err(), Broken::Called);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_inner_service_causes_no_refresh() {
    let mut it = Contract::<Full<Bytes>>::new().await;
    let request = it.get();
    it.answer("a1", Err(Broken::Called)).await;
    assert!(request.await.unwrap().is_err());
    assert!(it.auth.is_idle().await);
    assert_eq!(it.session.tokens(), pair(1));
}

// The request.

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark(u32);

type Head = (Method, String, Version, Option<Mark>, Vec<(HeaderName, Vec<u8>, bool)>);

/// All parts of a head except the token, in their order.
fn head<B>(request: &Request<B>) -> Head {
    let fields = request.headers().iter().filter(|(name, _)| *name != AUTHORIZATION);
    let fields = fields.map(|(name, value)| (name.clone(), value.as_bytes().to_vec(), value.is_sensitive()));
    (
        request.method().clone(),
        request.uri().to_string(),
        request.version(),
        request.extensions().get::<Mark>().cloned(),
        fields.collect::<Vec<_>>(),
    )
}

/// Sends a request that the API first refuses. Asserts that both attempts have its original head and body.
async fn assert_replayed_unchanged(it: &mut Contract<Full<Bytes>>, generation: u32, request: Request<Full<Bytes>>) {
    let (expected, body) = (head(&request), request.body().clone().collect().await.unwrap().to_bytes());
    let response_to_it = it.send(request);
    for (number, status) in [(generation, 401), (generation + 1, 200)] {
        let mut call = it.api.next().await;
        assert_eq!(head(&call.request), expected);
        let mut tokens = call.request.headers().get_all(AUTHORIZATION).iter();
        assert_eq!(tokens.next().unwrap(), &format!("Bearer a{number}"));
        assert!(tokens.next().is_none());
        assert_eq!(call.request.body_mut().collect().await.unwrap().to_bytes(), body);
        call.answer(Ok(response(status)));
        if status == 401 {
            it.auth.next().await.answer(Ok(pair(number + 1)));
        }
    }
    assert_eq!(response_to_it.await.unwrap().unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn the_replay_has_the_same_method_uri_version_extensions_and_headers() {
    let mut it = Contract::new().await;
    let mut request = Request::builder()
        .method(Method::from_bytes(b"QUERY").unwrap())
        .uri("https://API.example.com:443/a%20b//c?q=1&q=2")
        .version(Version::HTTP_2)
        .extension(Mark(7))
        .header(ACCEPT, "text/html")
        .header("x-first", "1")
        .header(ACCEPT, "application/json")
        .header("x-empty", "")
        .header("x-opaque", HeaderValue::from_bytes(b"\xff\xfe tab\t").unwrap())
        .header(ACCEPT, "text/html")
        .body(Full::from("the body"))
        .unwrap();
    let mut secret = HeaderValue::from_static("session=1");
    secret.set_sensitive(true);
    request.headers_mut().insert(COOKIE, secret);
    assert_replayed_unchanged(&mut it, 1, request).await;
}

#[tokio::test(start_paused = true)]
async fn any_headers_are_the_same_in_the_replay_repeated_ones_and_their_order_too() {
    fastrand::seed(1);
    let mut it = Contract::new().await;
    for round in 1..300 {
        let mut request = Request::put(format!("{ORIGIN}/{round}")).body(Full::from(round.to_string())).unwrap();
        let headers = request.headers_mut();
        for _ in 0..fastrand::u32(0..40) {
            let name: HeaderName = format!("x-{}", fastrand::u32(0..12)).parse().unwrap();
            if fastrand::u8(0..6) == 0 {
                headers.remove(name);
                continue;
            }
            let bytes: Vec<u8> =
                std::iter::repeat_with(|| fastrand::u8(32..127)).take(fastrand::usize(0..40)).collect();
            let mut value = HeaderValue::from_bytes(&bytes).unwrap();
            value.set_sensitive(fastrand::bool());
            headers.append(name, value);
        }
        assert_replayed_unchanged(&mut it, round, request).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_held_back_is_sent_unchanged() {
    let mut it = Contract::<Full<Bytes>>::signed_in_with(Tokens::from_refresh_token(refresh("r1"))).await;
    let request = Request::put(ORIGIN).version(Version::HTTP_10).header(ACCEPT, "a").header(ACCEPT, "b");
    let request = request.extension(Mark(1)).body(Full::from("body")).unwrap();
    let expected = head(&request);
    let _response = it.send(request);
    it.auth.next().await.answer(Ok(pair(2)));
    assert_eq!(head(&it.api.next().await.request), expected);
}

// Requirements on the types.

/// A request body that is neither `Clone` nor `Sync`, with its own type of data.
struct Plain {
    left: Cell<Option<&'static str>>,
}

impl Body for Plain {
    type Data = VecDeque<u8>;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<VecDeque<u8>>, Broken>>> {
        let data = self.left.take().map(|text| text.bytes().collect::<VecDeque<_>>());
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }
}

/// Sends a request through any inner service, asserts that it was replayed, and returns the response.
async fn send_and_replay<Svc, B, ResB>(inner: Svc, body: B) -> Response<ResB>
where
    Svc: Service<Request<ReplayBody<B>>, Response = Response<ResB>, Error: fmt::Debug> + Clone,
    B: Body + Send + Unpin + 'static,
    ResB: Body,
{
    let refresh = tower::service_fn(|_| async { Ok::<_, RefreshError>(pair(2)) });
    let session = Session::builder(refresh).tokens(pair(1)).build().await.unwrap();
    let client = AuthRefreshLayer::new(session, origin()).layer(inner);
    let response = client.oneshot(Request::post(ORIGIN).body(body).unwrap()).await.unwrap();
    assert!(matches!(report(&response), RefreshReport::Replayed));
    response
}

/// Returns 401 for the first token, and 200 otherwise.
fn status<B>(request: &Request<B>) -> u16 {
    if request.headers()[AUTHORIZATION] == "Bearer a1" { 401 } else { 200 }
}

#[tokio::test(start_paused = true)]
async fn request_bodies_need_not_be_clone_or_sync_and_response_bodies_need_not_be_unpin() {
    let inner = tower::service_fn(|mut request: Request<ReplayBody<Plain>>| async move {
        assert_eq!(request.body_mut().collect().await.unwrap().to_bytes(), "data");
        let (mut response, _) = refusal([Step::Data("x")], None);
        *response.status_mut() = status(&request).try_into().unwrap();
        Ok::<_, Broken>(response)
    });
    let sent = tokio::spawn(send_and_replay(inner, Plain { left: Cell::new(Some("data")) }));
    assert_eq!(sent.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_service_need_not_be_send() {
    let not_send = Rc::new(());
    let inner = tower::service_fn(move |request: Request<ReplayBody<String>>| {
        let not_send = Rc::clone(&not_send);
        async move {
            tokio::task::yield_now().await;
            drop(not_send);
            Ok::<_, Broken>(response(status(&request)))
        }
    });
    assert_eq!(send_and_replay(inner, String::from("data")).await.status(), 200);
}

/// Asserts `Send` and `Sync` at compile time.
#[expect(dead_code, reason = "only compiled")]
fn the_future_is_send_when_its_parts_are<Svc, B, ResB>(client: &mut AuthRefresh<Svc, Session>, request: Request<B>)
where
    Svc: Service<Request<ReplayBody<B>>, Response = Response<ResB>, Future: Send> + Clone + Send,
    B: Body + Send + Unpin + 'static,
    ResB: Body + Send,
{
    fn is_send(_: impl Send) {}
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send(client.call(request));
    is_send_and_sync::<Session>();
    is_send_and_sync::<AuthRefreshLayer>();
    is_send_and_sync::<ReplayBody<Full<Bytes>>>();
}

/// The size of a client's future without the inner service and its future.
fn overhead<Svc, B, ResB>(client: &AuthRefresh<Svc, Session>, request: Request<B>) -> usize
where
    Svc: Service<Request<ReplayBody<B>>, Response = Response<ResB>> + Clone,
    B: Body + Send + Unpin + 'static,
    ResB: Body,
{
    let future: ResponseFuture<Svc, Session, B, ResB> = client.clone().call(request);
    size_of_val(&future) - size_of::<Svc>() - size_of::<Svc::Future>()
}

#[tokio::test(start_paused = true)]
async fn the_future_adds_at_most_512_bytes_to_the_inner_service_and_its_future() {
    let (service, _auth): (_, AuthCalls) = script();
    let session = Session::builder(service).tokens(pair(1)).build().await.unwrap();
    let layer = AuthRefreshLayer::new(session, origin());
    let (scripted, _api) = script::<Req, Response<Full<Bytes>>, Broken>();
    let boxed = overhead(&layer.layer(scripted), Request::new(Full::default()));
    let small = layer.layer(tower::service_fn(|_: Request<ReplayBody<String>>| async {
        Ok::<_, Broken>(Response::new(String::new()))
    }));
    let small = overhead(&small, Request::new(String::new()));
    // Their own size does not matter.
    let large = layer.layer(tower::service_fn(|request: Request<ReplayBody<Plain>>| async move {
        let kept = [0_u8; 4096];
        tokio::task::yield_now().await;
        drop((kept, request));
        Ok::<_, Broken>(refusal([], None).0)
    }));
    let large = overhead(&large, Request::new(Plain { left: Cell::new(None) }));
    assert!([boxed, small, large].into_iter().all(|bytes| bytes <= 512), "{boxed}, {small} and {large} bytes");
}
