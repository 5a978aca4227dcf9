//! The layer combined with those of tower and tower-http, inside and around them: every stack answers, none deadlocks.

use std::fmt::Debug;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, LOCATION};
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tower::buffer::Buffer;
use tower::limit::{ConcurrencyLimit, RateLimit, rate::Rate};
use tower::load_shed::LoadShed;
use tower::retry::{Policy, Retry};
use tower::steer::Steer;
use tower::timeout::Timeout;
use tower::timeout::error::Elapsed;
use tower::util::{BoxCloneService, BoxCloneSyncService, MapRequest};
use tower::{BoxError, Service, ServiceExt};
use tower_auth_refresh::{
    AccessToken, AuthRefresh, AuthRefreshLayer, NotRefreshed, RefreshError, RefreshReport, RefreshRequest, Session,
    SkipAuth, Tokens,
};
use tower_http::compression::{Compression, predicate::SizeAbove};
use tower_http::decompression::{Decompression, RequestDecompression};
use tower_http::follow_redirect::FollowRedirect;
use tower_http::trace::Trace;
use tower_layer::Layer;

use crate::strict::Strict;
use crate::support::*;

/// A boxed body, for every body that these stacks send.
type AnyBody = UnsyncBoxBody<Bytes, BoxError>;
type Call<B = Full<Bytes>> = Request<B>;
type Answer = Response<Full<Bytes>>;

fn any<B>(request: Call<B>) -> Call<AnyBody>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    request.map(|body| body.map_err(Into::into).boxed_unsync())
}

/// An API and an authorization server behind one client.
#[derive(Clone, Default)]
struct Server(Arc<State>);

/// The client of a [`Server`]. Panics if it is called without being ready.
type Leaf = Strict<Server>;

#[derive(Default)]
struct State {
    /// The number of the valid access token.
    valid: AtomicU32,
    refreshes: AtomicU32,
    /// The number of calls that are still answered 503.
    failures: AtomicU32,
    /// Set if the client is ready at the first poll.
    prompt: bool,
}

impl Server {
    /// A server whose client is ready at the first poll, as load shedding requires.
    fn prompt() -> Self {
        Self(Arc::new(State { prompt: true, ..State::default() }))
    }

    /// A server that answers this many calls with 503 first.
    fn failing_first(calls: u32) -> Self {
        Self(Arc::new(State { failures: calls.into(), ..State::default() }))
    }

    fn leaf(&self) -> Leaf {
        let leaf = Strict::new(self.clone());
        if self.0.prompt { leaf.prompt() } else { leaf }
    }

    /// Expires the access token in force.
    fn expire(&self) {
        self.0.valid.fetch_add(1, Ordering::SeqCst);
    }

    fn refreshes(&self) -> u32 {
        self.0.refreshes.load(Ordering::SeqCst)
    }

    fn answer(&self, request: &Call<AnyBody>) -> Answer {
        let count_down = |left: u32| left.checked_sub(1);
        if self.0.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count_down).is_ok() {
            return response(503);
        }
        let valid = self.0.valid.load(Ordering::SeqCst);
        match request.uri().path() {
            "/auth/refresh" => {
                self.0.refreshes.fetch_add(1, Ordering::SeqCst);
                Response::new(Full::from(format!("a{valid}")))
            }
            "/moved" => Response::builder().status(307).header(LOCATION, "/").body(Full::default()).unwrap(),
            _ => {
                let token = format!("Bearer a{valid}");
                let accepted = request.headers().get(AUTHORIZATION).is_some_and(|value| *value == token);
                zipped(request, response(if accepted { 200 } else { 401 }))
            }
        }
    }
}

/// Compresses the response if the request accepts gzip.
fn zipped(request: &Call<AnyBody>, mut response: Answer) -> Answer {
    const STATUS: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\x2b\x2e\x49\x2c\x29\x2d\x56\x30";
    const IS_200: &[u8] = b"\x32\x30\x00\x00\xdb\x0e\x02\xcc\x0a\x00\x00\x00";
    const IS_401: &[u8] = b"\x31\x30\x04\x00\xff\x42\x88\xbf\x0a\x00\x00\x00";
    if request.headers().get(ACCEPT_ENCODING).is_some_and(|value| value == "gzip") {
        let rest = if response.status() == 200 { IS_200 } else { IS_401 };
        response.headers_mut().insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        *response.body_mut() = Full::from([STATUS, rest].concat());
    }
    response
}

impl Service<Call<AnyBody>> for Server {
    type Response = Answer;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Call<AnyBody>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            request.body_mut().collect().await?;
            sleep(Duration::from_millis(5)).await;
            Ok(server.answer(&request))
        })
    }
}

/// Sends the refresh call through a client.
async fn refresh_through<C, ResB>(client: C) -> Result<Tokens, BoxError>
where
    C: Service<Call, Response = Response<ResB>, Error: Into<BoxError>>,
    ResB: Body<Error: Debug>,
{
    let call = Request::post(format!("{ORIGIN}/auth/refresh")).extension(SkipAuth).body(Full::default())?;
    let response = client.oneshot(call).await.map_err(Into::into)?;
    if response.status() != 200 {
        return Err(RefreshError::unavailable("try again").into());
    }
    let answer = response.into_body().collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
    Ok(Tokens::from_access_token(AccessToken::new(String::from_utf8(answer.into())?)?))
}

fn get(path: &str) -> Call {
    Request::get(format!("{ORIGIN}{path}")).body(Full::default()).unwrap()
}

/// A session whose refresh calls are sent through this client.
async fn session_over<C, ResB>(client: C) -> Session
where
    C: Service<Call, Response = Response<ResB>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    ResB: Body<Error: Debug, Data: Send> + Send + 'static,
{
    // The service of a session has to be `Sync`, which some clients are not.
    let client = Arc::new(Mutex::new(client));
    let service = tower::service_fn(move |_: RefreshRequest| refresh_through(client.lock().unwrap().clone()));
    Session::builder(service).tokens(Tokens::from_refresh_token(refresh("r1"))).build().await.unwrap()
}

/// The number of concurrent requests that a stack supports.
const MANY: usize = 20;
const ONE: usize = 1;

/// Asserts that all requests for `path` are answered 200, and that every expiry causes one refresh. The session starts
/// without an access token.
async fn assert_recovers<C, ResB>(server: &Server, client: C, at_once: usize, path: &str)
where
    C: Service<Call, Response = Response<ResB>, Error: Debug + Send, Future: Send> + Clone + Send + 'static,
    ResB: Body<Error: Debug, Data: Send> + Send + 'static,
{
    // Through clones of the client.
    for round in 1..4 {
        server.expire();
        let mut requests = JoinSet::new();
        for _ in 0..at_once {
            requests.spawn(client.clone().oneshot(get(path)));
        }
        let begun = Instant::now();
        while let Some(answer) = requests.join_next().await {
            assert_ok(answer.unwrap().unwrap()).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "round {round} took {:?}", begun.elapsed());
        assert_eq!(server.refreshes(), round);
    }
    // Through one handle.
    let mut handle = client;
    for round in 4..7 {
        server.expire();
        let requests = async {
            for _ in 0..3 {
                assert_ok(handle.ready().await.unwrap().call(get(path)).await.unwrap()).await;
            }
        };
        timeout(Duration::from_secs(10), requests).await.unwrap();
        assert_eq!(server.refreshes(), round);
    }
}

async fn assert_ok<ResB: Body<Error: Debug>>(response: Response<ResB>) {
    assert_eq!(response.status(), StatusCode::OK, "{:?}", response.extensions().get::<RefreshReport>());
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "status 200");
}

/// Tests the layer around a stack, through which the refresh calls are sent too.
async fn assert_recovers_around<C, ResB>(server: &Server, inner: C, at_once: usize, path: &str)
where
    C: Service<Call<AnyBody>, Response = Response<ResB>, Error: Into<BoxError> + Debug + Send, Future: Send>,
    C: Clone + Send + 'static,
    ResB: Body<Error: Debug, Data: Send> + Send + 'static,
{
    let session = session_over(inner.clone().map_request(any::<Full<Bytes>>)).await;
    let client = AuthRefreshLayer::new(session, origin()).layer(inner.map_request(any));
    assert_recovers(server, client, at_once, path).await;
}

/// Tests the layer within a stack. Refresh calls are sent to the leaf.
async fn assert_recovers_within<C, ResB>(
    server: &Server,
    build: impl FnOnce(AuthRefresh<BoxedLeaf, Session>) -> C,
    at_once: usize,
    path: &str,
) where
    C: Service<Call, Response = Response<ResB>, Error: Debug + Send, Future: Send> + Clone + Send + 'static,
    ResB: Body<Error: Debug, Data: Send> + Send + 'static,
{
    let session = session_over(server.leaf().map_request(any::<Full<Bytes>>)).await;
    let leaf = BoxCloneSyncService::new(server.leaf().map_request(any));
    assert_recovers(server, build(AuthRefreshLayer::new(session, origin()).layer(leaf)), at_once, path).await;
}

/// Tests the layer within a stack. Refresh calls are sent through the whole stack.
async fn assert_recovers_within_itself<C>(
    server: &Server,
    build: impl FnOnce(AuthRefresh<BoxedLeaf, Session>) -> C,
    at_once: usize,
    path: &str,
) where
    C: Service<Call, Response = Answer, Error: Into<BoxError> + Debug + Send, Future: Send>,
    C: Clone + Send + Sync + 'static,
{
    let whole = Arc::new(OnceLock::<BoxCloneSyncService<Call, Answer, BoxError>>::new());
    let itself = Arc::clone(&whole);
    let session = session_over(tower::service_fn(move |call| itself.get().unwrap().clone().oneshot(call))).await;
    let leaf = BoxCloneSyncService::new(server.leaf().map_request(any));
    let client = build(AuthRefreshLayer::new(session, origin()).layer(leaf));
    assert!(whole.set(BoxCloneSyncService::new(client.clone().map_err(Into::into))).is_ok());
    assert_recovers(server, client, at_once, path).await;
}

type BoxedLeaf = BoxCloneSyncService<Request<tower_auth_refresh::ReplayBody<Full<Bytes>>>, Answer, BoxError>;

// Limits and queues.

#[tokio::test(start_paused = true)]
async fn a_concurrency_limit_of_one_within_the_layer_that_refresh_calls_share() {
    let server = Server::default();
    assert_recovers_around(&server, ConcurrencyLimit::new(server.leaf(), 1), MANY, "/").await;
}

#[tokio::test(start_paused = true)]
async fn a_concurrency_limit_of_one_around_the_layer() {
    let server = Server::default();
    assert_recovers_within(&server, |client| ConcurrencyLimit::new(client, 1), MANY, "/").await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_call_that_waits_for_a_limit_around_the_layer_ends_by_its_time_out() {
    let server = Server::default();
    let whole = Arc::new(OnceLock::<BoxCloneSyncService<Call, Answer, BoxError>>::new());
    let itself = Arc::clone(&whole);
    let session = session_over(tower::service_fn(move |call| itself.get().unwrap().clone().oneshot(call))).await;
    session.sign_in(pair(9)).await.unwrap();
    let leaf = BoxedLeaf::new(server.leaf().map_request(any));
    let client = ConcurrencyLimit::new(AuthRefreshLayer::new(session.clone(), origin()).layer(leaf), 1);
    assert!(whole.set(BoxCloneSyncService::new(client.clone())).is_ok());
    let begun = Instant::now();
    let response = client.oneshot(get("/")).await.unwrap();
    assert_eq!(response.status(), 401);
    assert!(matches!(report(&response), RefreshReport::NotRefreshed(NotRefreshed::Failed(_))));
    assert!(begun.elapsed() <= Duration::from_secs(36), "{:?}", begun.elapsed());
    assert_eq!(session.tokens(), pair(9));
}

#[tokio::test(start_paused = true)]
async fn a_buffer_within_the_layer_and_around_it() {
    let server = Server::default();
    assert_recovers_around(&server, Buffer::new(server.leaf(), 1), MANY, "/").await;
    let server = Server::default();
    assert_recovers_around(&server, Buffer::new(ConcurrencyLimit::new(server.leaf(), 1), 1), MANY, "/").await;
    let server = Server::default();
    assert_recovers_within(&server, |client| Buffer::new(client, 1), MANY, "/").await;
    let server = Server::default();
    assert_recovers_within_itself(&server, |client| Buffer::new(client, 1), MANY, "/").await;
}

#[tokio::test(start_paused = true)]
async fn load_shedding_within_the_layer_and_around_it() {
    let server = Server::prompt();
    assert_recovers_around(&server, LoadShed::new(server.leaf()), MANY, "/").await;
    // A single request is never shed: its permit is returned before the refresh call and the replay need one.
    let server = Server::prompt();
    assert_recovers_around(&server, LoadShed::new(ConcurrencyLimit::new(server.leaf(), 1)), ONE, "/").await;
    let server = Server::prompt();
    assert_recovers_within(&server, LoadShed::new, MANY, "/").await;
    let server = Server::prompt();
    assert_recovers_within(&server, |client| LoadShed::new(ConcurrencyLimit::new(client, 1)), ONE, "/").await;
    let server = Server::prompt();
    assert_recovers_within_itself(&server, LoadShed::new, MANY, "/").await;
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_within_the_layer_and_around_it() {
    let rate = Rate::new(50, Duration::from_secs(1));
    let server = Server::default();
    assert_recovers_around(&server, Buffer::new(RateLimit::new(server.leaf(), rate), 1), MANY, "/").await;
    let server = Server::default();
    assert_recovers_within(&server, |client| Buffer::new(RateLimit::new(client, rate), 1), MANY, "/").await;
    let server = Server::default();
    assert_recovers_within_itself(&server, |client| Buffer::new(RateLimit::new(client, rate), 1), MANY, "/").await;
}

#[tokio::test(start_paused = true)]
async fn steering_within_the_layer_to_clients_with_limits_of_their_own() {
    let server = Server::default();
    let clients = [(); 2].map(|()| ConcurrencyLimit::new(server.leaf(), 1));
    let by_path = |call: &Call<AnyBody>, _: &[_]| usize::from(call.uri().path() == "/auth/refresh");
    // `Steer` reserves both clients for a call to one of them. A request that kept the other reservation would block
    // its own refresh.
    let steer = Steer::new(clients, by_path);
    let session = session_over(steer.clone().map_request(any::<Full<Bytes>>)).await;
    session.sign_in(pair(9)).await.unwrap();
    let client = AuthRefreshLayer::new(session, origin()).layer(steer.map_request(any));
    for round in 1..4 {
        server.expire();
        let answer = timeout(Duration::from_secs(1), client.clone().oneshot(get("/"))).await;
        assert_ok(answer.unwrap().unwrap()).await;
        assert_eq!(server.refreshes(), round);
    }
}

#[tokio::test(start_paused = true)]
async fn steering_within_a_buffer_and_around_the_layer() {
    let server = Server::default();
    let clients = [(); 2].map(|()| ConcurrencyLimit::new(server.leaf(), 1));
    let by_path = |call: &Call<AnyBody>, _: &[_]| usize::from(call.uri().path() == "/auth/refresh");
    assert_recovers_around(&server, Buffer::new(Steer::new(clients, by_path), 1), MANY, "/").await;
    let server = Server::default();
    let by_path = |call: &Call, _: &[_]| usize::from(call.uri().path() == "/other");
    assert_recovers_within(&server, |client| Steer::new([client.clone(), client], by_path), MANY, "/").await;
}

// Time-outs and retries.

#[tokio::test(start_paused = true)]
async fn a_time_out_within_the_layer_and_around_it() {
    let second = Duration::from_secs(1);
    let server = Server::default();
    assert_recovers_around(&server, Timeout::new(server.leaf(), second), MANY, "/").await;
    let server = Server::default();
    assert_recovers_within(&server, |client| Timeout::new(client, second), MANY, "/").await;
    let server = Server::default();
    assert_recovers_within_itself(&server, |client| Timeout::new(client, second), MANY, "/").await;
}

/// A session whose refresh takes ten seconds.
async fn slow_session(server: &Server) -> Session {
    let leaf = server.leaf().map_request(any::<Full<Bytes>>);
    session_over(tower::service_fn(move |call| {
        let leaf = leaf.clone();
        async move {
            sleep(Duration::from_secs(10)).await;
            leaf.oneshot(call).await
        }
    }))
    .await
}

#[tokio::test(start_paused = true)]
async fn a_time_out_within_the_layer_bounds_each_attempt_and_not_the_refresh() {
    let server = Server::default();
    let session = slow_session(&server).await;
    session.sign_in(pair(9)).await.unwrap();
    let inner = Timeout::new(server.leaf(), Duration::from_secs(1)).map_request(any);
    let client = AuthRefreshLayer::new(session, origin()).layer(inner);
    assert_ok(client.oneshot(get("/")).await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn a_time_out_around_the_layer_cuts_the_wait_short_and_not_the_refresh() {
    let server = Server::default();
    let session = slow_session(&server).await;
    session.sign_in(pair(9)).await.unwrap();
    let client = AuthRefreshLayer::new(session, origin()).layer(server.leaf().map_request(any));
    let client = Timeout::new(client, Duration::from_secs(1));
    let send = || client.clone().oneshot(get("/"));
    assert!(send().await.unwrap_err().is::<Elapsed>());
    sleep(Duration::from_secs(10)).await;
    assert_ok(send().await.unwrap()).await;
    assert_eq!(server.refreshes(), 1);
}

/// Retries requests with an empty body that are answered 503.
#[derive(Clone)]
struct RetryOn503(u32);

impl<B, Res, E> Policy<Request<B>, Response<Res>, E> for RetryOn503
where
    B: Body + Default,
{
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Request<B>, result: &mut Result<Response<Res>, E>) -> Option<Ready<()>> {
        let failed = result.as_ref().is_ok_and(|response| response.status() == 503);
        self.0 = self.0.checked_sub(u32::from(failed))?;
        failed.then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Request<B>) -> Option<Request<B>> {
        request.body().is_end_stream().then(|| {
            let mut again = Request::new(B::default());
            *again.method_mut() = request.method().clone();
            *again.uri_mut() = request.uri().clone();
            *again.headers_mut() = request.headers().clone();
            *again.extensions_mut() = request.extensions().clone();
            again
        })
    }
}

#[tokio::test(start_paused = true)]
async fn retries_within_the_layer_and_around_it() {
    let server = Server::failing_first(2);
    assert_recovers_around(&server, Retry::new(RetryOn503(2), server.leaf()), MANY, "/").await;
    let server = Server::failing_first(2);
    assert_recovers_within(&server, |client| Retry::new(RetryOn503(2), client), MANY, "/").await;
    let server = Server::failing_first(2);
    assert_recovers_within_itself(&server, |client| Retry::new(RetryOn503(2), client), MANY, "/").await;
}

// Middleware of tower-http.

#[tokio::test(start_paused = true)]
async fn redirects_are_followed_within_the_layer_and_around_it() {
    let server = Server::default();
    assert_recovers_around(&server, FollowRedirect::new(server.leaf()), MANY, "/moved").await;
    let server = Server::default();
    assert_recovers_within(&server, FollowRedirect::new, MANY, "/moved").await;
    let server = Server::default();
    assert_recovers_within_itself(&server, FollowRedirect::new, MANY, "/moved").await;
}

#[tokio::test(start_paused = true)]
async fn responses_are_decompressed_within_the_layer_and_around_it() {
    let server = Server::default();
    assert_recovers_around(&server, Decompression::new(server.leaf()), MANY, "/").await;
    let server = Server::default();
    assert_recovers_within(&server, Decompression::new, MANY, "/").await;
}

#[tokio::test(start_paused = true)]
async fn a_401_that_was_decompressed_within_the_layer_is_intact_when_it_is_returned() {
    let server = Server::default();
    let session = session_over(server.leaf().map_request(any::<Full<Bytes>>)).await;
    session.sign_in(Tokens::from_access_token(access("a9"))).await.unwrap();
    let client = AuthRefreshLayer::new(session, origin()).layer(Decompression::new(server.leaf()).map_request(any));
    let response = client.oneshot(get("/")).await.unwrap();
    assert!(matches!(report(&response), RefreshReport::NotRefreshed(NotRefreshed::NoRefreshToken)));
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "status 401");
}

type Change = fn(Call<AnyBody>) -> Call<AnyBody>;

/// Compresses every response whose request accepts gzip. The server does not see that header.
fn compressing<S>(inner: S) -> Compression<MapRequest<S, Change>, SizeAbove> {
    fn plain(mut call: Call<AnyBody>) -> Call<AnyBody> {
        call.headers_mut().remove(ACCEPT_ENCODING);
        call
    }
    Compression::new(MapRequest::new(inner, plain as Change)).compress_when(SizeAbove::new(0))
}

#[tokio::test(start_paused = true)]
async fn responses_are_compressed_within_the_layer_and_around_it() {
    let zipped = |mut call: Call| {
        call.headers_mut().insert(ACCEPT_ENCODING, "gzip".parse().unwrap());
        call
    };
    let assert_zipped = async |answer: Response<AnyBody>| {
        assert_eq!((answer.status(), &answer.headers()[CONTENT_ENCODING]), (StatusCode::OK, &"gzip".parse().unwrap()));
        assert!(matches!(report(&answer), RefreshReport::Replayed));
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes()[..2], [0x1f, 0x8b]);
    };

    let server = Server::default();
    let session = session_over(server.leaf().map_request(any::<Full<Bytes>>)).await;
    session.sign_in(pair(9)).await.unwrap();
    let client = AuthRefreshLayer::new(session, origin()).layer(boxed(compressing(server.leaf())).map_request(any));
    assert_zipped(client.map_request(zipped).oneshot(get("/")).await.unwrap()).await;

    let server = Server::default();
    let session = session_over(server.leaf().map_request(any::<Full<Bytes>>)).await;
    session.sign_in(pair(9)).await.unwrap();
    let client = AuthRefreshLayer::new(session, origin()).layer(server.leaf().map_request(any));
    let client = boxed(compressing(client)).map_request(any).map_request(zipped);
    assert_zipped(client.oneshot(get("/")).await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn traces_within_the_layer_and_around_it() {
    let server = Server::default();
    assert_recovers_around(&server, Trace::new_for_http(server.leaf()), MANY, "/").await;
    let server = Server::default();
    assert_recovers_within(&server, Trace::new_for_http, MANY, "/").await;
}

// All pairs.

type AnyClient = BoxCloneService<Call<AnyBody>, Response<AnyBody>, BoxError>;

fn boxed<C, ResB>(client: C) -> AnyClient
where
    C: Service<Call<AnyBody>, Response = Response<ResB>, Error: Into<BoxError>, Future: Send + 'static>,
    C: Clone + Send + 'static,
    ResB: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let unsync = |response: Response<ResB>| response.map(|body| body.map_err(Into::into).boxed_unsync());
    BoxCloneService::new(client.map_response(unsync).map_err(Into::into))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Middleware {
    Buffer,
    Compression,
    ConcurrencyLimit,
    Decompression,
    FollowRedirect,
    LoadShed,
    RateLimit,
    RequestDecompression,
    Retry,
    Steer,
    Timeout,
    Trace,
}

impl Middleware {
    const ALL: [Self; 12] = [
        Self::Buffer,
        Self::Compression,
        Self::ConcurrencyLimit,
        Self::Decompression,
        Self::FollowRedirect,
        Self::LoadShed,
        Self::RateLimit,
        Self::RequestDecompression,
        Self::Retry,
        Self::Steer,
        Self::Timeout,
        Self::Trace,
    ];

    fn around(self, inner: AnyClient) -> AnyClient {
        match self {
            Self::Buffer => boxed(Buffer::new(inner, 1)),
            Self::Compression => boxed(Decompression::new(compressing(inner))),
            Self::ConcurrencyLimit => boxed(ConcurrencyLimit::new(inner, 1)),
            Self::Decompression => boxed(Decompression::new(inner)),
            Self::FollowRedirect => boxed(FollowRedirect::new(inner)),
            Self::LoadShed => boxed(LoadShed::new(inner)),
            Self::RateLimit => boxed(Buffer::new(RateLimit::new(inner, Rate::new(50, Duration::from_secs(1))), 1)),
            Self::RequestDecompression => boxed(RequestDecompression::new(inner.map_request(any))),
            Self::Retry => boxed(Retry::new(RetryOn503(2), inner)),
            Self::Steer => {
                let other = boxed(tower::service_fn(|_| async { Err::<Answer, BoxError>("the wrong service".into()) }));
                boxed(Buffer::new(Steer::new([other, inner], |_: &Call<AnyBody>, _: &[_]| 1), 1))
            }
            Self::Timeout => boxed(Timeout::new(inner, Duration::from_secs(5))),
            Self::Trace => boxed(Trace::new_for_http(inner)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_middleware_within_the_layer_works_with_every_one_around_it() {
    for within in Middleware::ALL {
        for around in Middleware::ALL {
            let stack = [within, around];
            let server = Server::prompt();
            // Refresh calls share the inner middleware.
            let inner = within.around(boxed(server.leaf()));
            let session = session_over(inner.clone().map_request(any::<Full<Bytes>>)).await;
            let client = AuthRefreshLayer::new(session, origin()).layer(inner.map_request(any));
            let client = around.around(boxed(client)).map_request(any::<Full<Bytes>>);
            let at_once = if stack.contains(&Middleware::LoadShed) { ONE } else { MANY };
            let path = if stack.contains(&Middleware::FollowRedirect) { "/moved" } else { "/" };
            println!("{around:?} around the layer around {within:?}");
            assert_recovers(&server, client, at_once, path).await;
        }
    }
}

// Whole stacks.

#[tokio::test(start_paused = true)]
async fn a_whole_stack_within_the_layer() {
    let server = Server::default();
    let limited = Buffer::new(ConcurrencyLimit::new(server.leaf(), 1), 1);
    let retrying = Retry::new(RetryOn503(3), Timeout::new(limited, Duration::from_secs(1)));
    let stack = Trace::new_for_http(Decompression::new(FollowRedirect::new(retrying)));
    assert_recovers_around(&server, stack, MANY, "/moved").await;
}

#[tokio::test(start_paused = true)]
async fn a_whole_stack_around_the_layer() {
    let server = Server::default();
    let build = |client| {
        let retrying = Retry::new(RetryOn503(3), Timeout::new(FollowRedirect::new(client), Duration::from_secs(1)));
        Trace::new_for_http(Decompression::new(Buffer::new(ConcurrencyLimit::new(retrying, 1), 1)))
    };
    assert_recovers_within(&server, build, MANY, "/moved").await;
}
