//! Isolation: no token reaches another user's request or a foreign origin.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{AUTHORIZATION, HOST, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tower::{BoxError, Service, ServiceExt, service_fn};
use tower_auth_refresh::layer::{PerRequest, SessionSource};
use tower_auth_refresh::replay::NotReplayable;
use tower_auth_refresh::{
    AccessToken, AuthRefreshLayer, NotRefreshed, Origin, Origins, RefreshReport, RefreshRequest, RefreshToken,
    ReplayBody, Session, SkipAuth, Tokens,
};
use tower_http::follow_redirect::policy::{FilterCredentials, Limited, PolicyExt};
use tower_http::follow_redirect::{FollowRedirect, FollowRedirectLayer};
use tower_layer::Layer;

use crate::support::*;

const API_TOKEN: HeaderName = HeaderName::from_static("x-api-token");

/// Sends a request through any client, in a new task.
fn send<C>(client: &C, request: Request<Full<Bytes>>) -> JoinHandle<Response<Full<Bytes>>>
where
    C: Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>> + Clone + Send + 'static,
    C::Error: Debug + Send,
    C::Future: Send,
{
    let client = client.clone();
    tokio::spawn(async move { client.oneshot(request).await.unwrap() })
}

fn get(uri: &str) -> Request<Full<Bytes>> {
    Request::get(uri).body(Full::default()).unwrap()
}

fn get_as(session: &Session, uri: &str) -> Request<Full<Bytes>> {
    Request::get(uri).extension(session.clone()).body(Full::default()).unwrap()
}

fn redirect(location: &str) -> Response<Full<Bytes>> {
    Response::builder().status(307).header(LOCATION, location).body(Full::default()).unwrap()
}

/// The layer inside a client that follows redirects.
fn following<S: Clone>(layer: &AuthRefreshLayer<S>, api: Api) -> FollowRedirect<tower_auth_refresh::AuthRefresh<Api, S>>
where
    AuthRefreshLayer<S>: Layer<Api, Service = tower_auth_refresh::AuthRefresh<Api, S>>,
{
    FollowRedirectLayer::new().layer(layer.layer(api))
}

/// A session that was signed in with [`pair`]`(1)`, and its authorization server.
async fn session() -> (Session, AuthCalls) {
    let (service, auth) = script();
    (Session::builder(service).tokens(pair(1)).build().await.unwrap(), auth)
}

// Isolation of users.

#[tokio::test(start_paused = true)]
async fn two_users_refresh_at_once_and_neither_waits_for_the_other() {
    let ((alice, mut alices_auth), (bob, mut bobs_auth)) = (session().await, session().await);
    alice.sign_in(Tokens::new(access("alice1"), refresh("alice-r1"))).await.unwrap();
    bob.sign_in(Tokens::new(access("bob1"), refresh("bob-r1"))).await.unwrap();
    let (service, mut api) = script();
    let client = AuthRefreshLayer::per_request(origin()).layer(service);

    let to_alice = send(&client, get_as(&alice, ORIGIN));
    api.reply(1, "alice1", 401).await;
    let to_bob = send(&client, get_as(&bob, ORIGIN));
    api.reply(1, "bob1", 401).await;

    let (hanging, quick) = (alices_auth.next().await, bobs_auth.next().await);
    assert_eq!((hanging.presented(), quick.presented()), ("alice-r1", "bob-r1"));
    quick.answer(Ok(Tokens::new(access("bob2"), refresh("bob-r2"))));
    api.reply(1, "bob2", 200).await;
    assert_eq!(to_bob.await.unwrap().status(), 200);

    assert!(api.is_idle().await && !to_alice.is_finished());
    hanging.answer(Ok(Tokens::new(access("alice2"), refresh("alice-r2"))));
    api.reply(1, "alice2", 200).await;
    assert_eq!(to_alice.await.unwrap().status(), 200);
    assert_eq!(bob.tokens().access_token(), Some(&access("bob2")));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_refresh_of_one_user_does_not_delay_the_requests_of_another() {
    let ((alice, mut alices_auth), (bob, _bobs_auth)) = (session().await, session().await);
    bob.sign_in(Tokens::new(access("bob1"), refresh("bob-r1"))).await.unwrap();
    let (service, mut api) = script();
    let client = AuthRefreshLayer::per_request(origin()).layer(service);
    let stuck = send(&client, get_as(&alice, ORIGIN));
    api.reply(1, "a1", 401).await;
    let _hanging = alices_auth.next().await;
    // Held back before it is sent, through the same client as the next requests.
    let held_back = send(&client, get_as(&alice, ORIGIN));
    assert!(api.is_idle().await);
    for _ in 0..10 {
        let passing = send(&client, get_as(&bob, ORIGIN));
        api.reply(1, "bob1", 200).await;
        assert_eq!(passing.await.unwrap().status(), 200);
    }
    assert!(!stuck.is_finished() && !held_back.is_finished());
}

/// An authorization server and an API that check the owner of each token. Every token names its user.
#[derive(Clone, Default)]
struct Servers(Arc<Mutex<ServerState>>);

#[derive(Default)]
struct ServerState {
    /// The number of each user's valid access token and refresh token.
    valid: HashMap<usize, u32>,
    calls: u32,
    refreshes: u32,
    /// The number of accepted calls with each access token.
    used: HashMap<(usize, u32), u32>,
}

impl Servers {
    fn tokens(user: usize, number: u32) -> Tokens {
        let of = |kind: &str| format!("canary-{kind}-of-user-{user}-number-{number}");
        Tokens::new(access(&of("access")), refresh(&of("refresh")))
    }

    async fn session(&self, user: usize) -> Session {
        self.0.lock().unwrap().valid.insert(user, 1);
        let servers = self.clone();
        let service = tower::service_fn(move |request: RefreshRequest| {
            let servers = servers.clone();
            async move {
                random_pause().await;
                let presented = request.refresh_token().cloned().unwrap();
                let answer = {
                    let mut state = servers.0.lock().unwrap();
                    let number = state.valid.get_mut(&user).unwrap();
                    assert_eq!(Some(&presented), Self::tokens(user, *number).refresh_token(), "of user {user}");
                    *number += 1;
                    let number = *number;
                    state.refreshes += 1;
                    Self::tokens(user, number)
                };
                random_pause().await;
                Ok::<_, tower_auth_refresh::RefreshError>(answer)
            }
        });
        Session::builder(service).tokens(Self::tokens(user, 1)).build().await.unwrap()
    }

    /// Answers for user `n` at `/n`: 200 for that user's valid token, 401 for an old one. Panics if the token is another
    /// user's.
    async fn answer(self, request: Request<ReplayBody<Full<Bytes>>>, lasting: u32) -> Response<Full<Bytes>> {
        random_pause().await;
        let owner: usize = request.uri().path()[1..].parse().unwrap();
        let token = request.headers()[AUTHORIZATION].to_str().unwrap().strip_prefix("Bearer ").unwrap().to_owned();
        let valid = {
            let mut state = self.0.lock().unwrap();
            state.calls += 1;
            let number = state.valid[&owner];
            let valid = Some(&access(&token)) == Self::tokens(owner, number).access_token();
            assert!(valid || token.contains(&format!("-of-user-{owner}-number-")), "{token} on a request of {owner}");
            let count = state.used.entry((owner, number)).or_default();
            *count += u32::from(valid);
            valid && *count <= lasting
        };
        random_pause().await;
        response(if valid { 200 } else { 401 })
    }

    /// Sends `rounds` requests for each of `users`, all through one client. An access token expires after `lasting`
    /// uses. Returns the number of refreshes.
    async fn run(self, users: usize, rounds: usize, lasting: u32) -> u32 {
        let servers = self.clone();
        let api = tower::service_fn(move |request| {
            let servers = servers.clone();
            async move { Ok::<_, Infallible>(servers.answer(request, lasting).await) }
        });
        let client = AuthRefreshLayer::per_request(origin()).layer(api);
        let mut sessions = Vec::new();
        for user in 0..users {
            sessions.push(self.session(user).await);
        }
        let mut requests = JoinSet::new();
        for round in 0..rounds * users {
            let user = round % users;
            let (client, request) = (client.clone(), get_as(&sessions[user], &format!("{ORIGIN}/{user}")));
            requests.spawn(async move {
                random_pause().await;
                client.oneshot(request).await.unwrap()
            });
        }
        while let Some(response) = requests.join_next().await {
            // Other requests may use up the new token before the replay, whose 401 is then returned.
            let response = response.unwrap();
            assert!(response.status() == 200 || matches!(report(&response), RefreshReport::ReplayRefused));
        }
        self.0.lock().unwrap().refreshes
    }
}

/// Waits for a random time, so that rounds differ.
async fn random_pause() {
    if fastrand::bool() {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..20))).await;
    }
    for _ in 0..fastrand::u8(0..4) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_of_two_users_never_cross_in_many_random_rounds() {
    for seed in 0..100 {
        fastrand::seed(seed);
        let refreshes = Servers::default().run(2, 40, 5).await;
        assert!(refreshes >= 2, "seed {seed}: each user has to refresh");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_many_users_never_cross_on_several_threads() {
    assert!(Servers::default().run(20, 50, 12).await >= 20);
}

#[tokio::test(start_paused = true)]
async fn the_session_of_a_request_is_not_passed_to_the_inner_service() {
    let (session, mut auth) = session().await;
    let (service, mut api) = script();
    let client = AuthRefreshLayer::per_request(origin()).layer(service);
    let response = send(&client, get_as(&session, ORIGIN));
    for (number, status) in [(1, 401), (2, 200)] {
        let call = api.next().await;
        assert_eq!(call.token(), Some(&*format!("a{number}")));
        assert!(call.request.extensions().get::<Session>().is_none());
        call.reply(status).await;
        if status == 401 {
            auth.next().await.answer(Ok(pair(2)));
        }
    }
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_set_for_a_layer_is_that_of_all_requests_until_it_is_unset() {
    let ((alice, _), (bob, mut bobs_auth)) = (session().await, session().await);
    bob.sign_in(Tokens::new(access("bob1"), refresh("bob-r1"))).await.unwrap();
    let (service, mut api) = script();
    let layer = AuthRefreshLayer::new(alice.clone(), origin()).session(Some(bob));

    let client = layer.clone().layer(service.clone());
    let response = send(&client, get(ORIGIN));
    api.reply(1, "bob1", 401).await;
    bobs_auth.next().await.answer(Ok(Tokens::new(access("bob2"), refresh("bob-r2"))));
    api.reply(1, "bob2", 200).await;
    assert_eq!(response.await.unwrap().status(), 200);

    let client = layer.session(None).layer(service);
    let to_alice = send(&client, get_as(&alice, ORIGIN));
    api.reply(1, "a1", 200).await;
    assert_eq!(to_alice.await.unwrap().status(), 200);
    let without = send(&client, get(ORIGIN));
    let call = api.next().await;
    assert_eq!(call.token(), None);
    call.reply(401).await;
    let why = without.await.unwrap();
    assert!(matches!(report(&why), RefreshReport::NotRefreshed(NotRefreshed::NoSession)));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_session_of_its_own_is_sent_as_it_is_and_its_401_says_so() {
    let (_session, mut auth) = session().await;
    let (service, mut api) = script();
    let client = AuthRefreshLayer::per_request(origin()).layer(service);
    let response = send(&client, get(ORIGIN));
    let call = api.next().await;
    assert!(call.request.headers().is_empty());
    call.reply(401).await;
    assert!(matches!(not_refreshed(&response.await.unwrap()), NotRefreshed::NoSession));
    assert!(api.is_idle().await && auth.is_idle().await);
}

// Foreign origins.

#[tokio::test(start_paused = true)]
async fn a_redirect_to_a_foreign_origin_carries_no_token_and_its_401_triggers_nothing() {
    let (session, mut auth) = session().await;
    let bearer = AuthRefreshLayer::new(session, origin());
    for layer in [bearer.clone(), bearer.header(API_TOKEN).without_scheme()] {
        let (service, mut api) = script();
        let client = following(&layer, service);
        let response = send(&client, get(ORIGIN));
        let hop = api.next().await;
        assert_eq!(hop.request.headers().len(), 1);
        hop.answer(Ok(redirect("https://evil.example/collect")));
        let hop = api.next().await;
        assert_eq!(hop.request.uri(), "https://evil.example/collect");
        assert!(hop.request.headers().is_empty());
        hop.reply(401).await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), 401);
        assert!(response.extensions().get::<RefreshReport>().is_none());
        assert!(api.is_idle().await && auth.is_idle().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_is_redirected_to_a_foreign_origin_carries_no_token_there() {
    let (session, mut auth) = session().await;
    let (service, mut api) = script();
    let client = following(&AuthRefreshLayer::new(session, origin()), service);
    let response = send(&client, get(ORIGIN));
    api.reply(1, "a1", 401).await;
    auth.next().await.answer(Ok(pair(2)));
    let replay = api.next().await;
    assert_eq!(replay.token(), Some("a2"));
    replay.answer(Ok(redirect("https://evil.example/")));
    let hop = api.next().await;
    assert!(hop.request.headers().is_empty());
    hop.reply(401).await;
    assert_eq!(response.await.unwrap().status(), 401);
    assert!(api.is_idle().await && auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn every_hop_within_the_origin_carries_the_token_and_may_be_refreshed() {
    let (session, mut auth) = session().await;
    let (service, mut api) = script();
    let client = following(&AuthRefreshLayer::new(session, origin()), service);
    let response = send(&client, get(ORIGIN));
    for (n, next) in [(1, "/two"), (2, "//API.example.com:443/three")] {
        api.reply(1, &format!("a{n}"), 401).await;
        auth.next().await.answer(Ok(pair(n + 1)));
        let replay = api.next().await;
        assert_eq!(replay.token(), Some(&*format!("a{}", n + 1)));
        replay.answer(Ok(redirect(next)));
    }
    api.reply(1, "a3", 200).await;
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_redirect_to_a_foreign_origin_and_back_carries_the_token_to_the_own_origin_only() {
    let (session, _auth) = session().await;
    let (service, mut api) = script();
    let client = following(&AuthRefreshLayer::new(session, origin()), service);
    let response = send(&client, get(ORIGIN));
    for (token, next) in [(Some("a1"), "https://other.example/"), (None, "https://api.example.com/back")] {
        let hop = api.next().await;
        assert_eq!(hop.token(), token);
        hop.answer(Ok(redirect(next)));
    }
    api.reply(1, "a1", 200).await;
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn the_session_of_a_request_is_dropped_on_a_cross_origin_redirect_even_to_another_own_origin() {
    let (session, mut auth) = session().await;
    let (service, mut api) = script();
    let ours = [origin(), Origin::parse("https://files.example.com").unwrap()];
    let client = following(&AuthRefreshLayer::per_request(ours), service);
    let response = send(&client, get_as(&session, ORIGIN));
    let hop = api.next().await;
    assert_eq!(hop.token(), Some("a1"));
    hop.answer(Ok(redirect("/same-origin")));
    let hop = api.next().await;
    assert_eq!(hop.token(), Some("a1"));
    hop.answer(Ok(redirect("https://files.example.com/")));
    let hop = api.next().await;
    assert_eq!(hop.token(), None);
    hop.answer(Ok(redirect("https://api.example.com/back")));
    let hop = api.next().await;
    assert_eq!(hop.token(), None);
    hop.reply(401).await;
    assert_eq!(response.await.unwrap().status(), 401);
    assert!(api.is_idle().await && auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn extensions_that_a_redirect_policy_keeps_are_used_and_the_origin_is_still_checked_on_every_hop() {
    let (session, mut auth) = session().await;
    let ours = [origin(), Origin::parse("https://files.example.com").unwrap()];
    let lenient = FilterCredentials::new().allow_extension::<Session>().allow_extension::<SkipAuth>();
    let following = FollowRedirectLayer::with_policy(Limited::default().and::<_, Full<Bytes>, Infallible>(lenient));
    let mut opted_out = get_as(&session, ORIGIN);
    opted_out.extensions_mut().insert(SkipAuth);
    for (request, token) in [(get_as(&session, ORIGIN), Some("a1")), (opted_out, None)] {
        let (service, mut api) = script();
        let client = following.clone().layer(AuthRefreshLayer::per_request(ours.clone()).layer(service));
        let response = send(&client, request);
        for (token, next) in [(token, "https://evil.example/"), (None, "https://files.example.com/")] {
            let hop = api.next().await;
            assert_eq!(hop.token(), token);
            hop.answer(Ok(redirect(next)));
        }
        let hop = api.next().await;
        assert_eq!(hop.token(), token);
        hop.reply(200).await;
        assert_eq!(response.await.unwrap().status(), 200);
    }
    assert!(auth.is_idle().await);
}

/// Returns true if the request carries the token after this layer.
async fn carries_token<S>(layer: &AuthRefreshLayer<S>, request: Request<Full<Bytes>>) -> bool
where
    S: SessionSource,
{
    let (service, mut api) = script();
    let client = layer.layer(service);
    let response = tokio::spawn(client.oneshot(request));
    let call = api.next().await;
    let token = call.token().map(ToOwned::to_owned);
    call.reply(if token.is_some() { 200 } else { 401 }).await;
    let response = response.await.unwrap().unwrap();
    assert!(response.extensions().get::<RefreshReport>().is_none());
    token.is_some()
}

/// URIs of origins that resemble `https://api.example.com`.
const RESEMBLING: [&str; 14] = [
    "http://api.example.com/",
    "http://api.example.com:443/",
    "https://api.example.com:8443/",
    "https://api.example.com:80/",
    "https://example.com/",
    "https://evil-api.example.com/",
    "https://api.example.com.evil.example/",
    "https://evil.example/api.example.com",
    "https://api.example.com@evil.example/",
    "https://api.example.com:443@evil.example/",
    "https://user@api.example.com/",
    "https://user:password@api.example.com/",
    "https://api.example.com./",
    "wss://api.example.com/",
];

#[tokio::test(start_paused = true)]
async fn an_origin_that_only_resembles_the_own_one_gets_no_token() {
    let (session, mut auth) = session().await;
    let layer = AuthRefreshLayer::new(session, origin());
    for ours in [
        "https://api.example.com",
        "https://api.example.com:443/path?query",
        "HTTPS://API.EXAMPLE.COM/",
        "https://api.example.com//evil.example/",
        "https://api.example.com/?to=https://evil.example",
    ] {
        assert!(carries_token(&layer, get(ours)).await, "{ours}");
    }
    for foreign in RESEMBLING {
        assert!(!carries_token(&layer, get(foreign)).await, "{foreign}");
    }
    assert!(auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_redirect_to_an_origin_that_only_resembles_the_own_one_carries_no_token() {
    let (session, mut auth) = session().await;
    let layer = AuthRefreshLayer::new(session, origin());
    for foreign in RESEMBLING {
        let (service, mut api) = script();
        let response = send(&following(&layer, service), get(ORIGIN));
        api.next().await.answer(Ok(redirect(foreign)));
        let hop = api.next().await;
        assert!(hop.request.headers().is_empty(), "{foreign} as {}", hop.request.uri());
        hop.reply(401).await;
        assert_eq!(response.await.unwrap().status(), 401);
    }
    assert!(auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_host_header_does_not_define_the_origin() {
    let (session, _auth) = session().await;
    let layer = AuthRefreshLayer::new(session, origin());
    let mut request = get("https://evil.example/");
    request.headers_mut().insert(HOST, HeaderValue::from_static("api.example.com"));
    assert!(!carries_token(&layer, request).await);
    let mut request = get("/");
    request.headers_mut().insert(HOST, HeaderValue::from_static("api.example.com"));
    assert!(!carries_token(&layer, request).await);
}

#[tokio::test(start_paused = true)]
async fn a_layer_without_origins_attaches_no_token() {
    let (session, _auth) = session().await;
    let layer = AuthRefreshLayer::new(session, Origins::default());
    for uri in [ORIGIN, "/"] {
        assert!(!carries_token(&layer, get(uri)).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_uri_without_authority_gets_no_token_unless_the_origin_is_assumed() {
    let (session, mut auth) = session().await;
    let named = AuthRefreshLayer::new(session.clone(), origin());
    let assumed = AuthRefreshLayer::new(session.clone(), Origins::assume(origin()));
    for uri in ["/", "/package.Service/Method", "*"] {
        assert!(!carries_token(&named, get(uri)).await, "{uri}");
        assert!(carries_token(&assumed, get(uri)).await, "{uri}");
    }
    assert!(carries_token(&assumed, get(ORIGIN)).await);
    for foreign in ["https://evil.example/", "http://api.example.com/", "https://api.example.com:8443/"] {
        assert!(!carries_token(&assumed, get(foreign)).await, "{foreign}");
    }
    let connect = Request::connect("api.example.com:443").body(Full::default()).unwrap();
    assert!(!carries_token(&assumed, connect).await);
    assert!(auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_authority_is_refreshed_and_replayed_if_the_origin_is_assumed() {
    let (session, mut auth) = session().await;
    let (service, mut api) = script();
    let client = AuthRefreshLayer::new(session, Origins::assume(origin())).layer(service);
    let response = send(&client, get("/package.Service/Method"));
    api.reply(1, "a1", 401).await;
    auth.next().await.answer(Ok(pair(2)));
    let replay = api.next().await;
    assert_eq!(replay.request.uri(), &Uri::from_static("/package.Service/Method"));
    assert_eq!(replay.token(), Some("a2"));
    replay.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_plain_http_origin_is_refused_unless_it_is_loopback_or_explicitly_allowed() {
    for refused in ["http://api.example.com", "http://10.0.0.1:8080", "http://localhost.example.com", "http://[::2]"] {
        let error = Origin::parse(refused).unwrap_err();
        assert!(error.to_string().contains("parse_allowing_http"), "{refused}: {error}");
        assert!(refused.parse::<Origin>().is_err());
    }
    let (session, _auth) = session().await;
    for (origin, uri) in [
        (Origin::parse("http://localhost:8080"), "http://localhost:8080/"),
        (Origin::parse("http://127.0.0.1"), "http://127.0.0.1/"),
        (Origin::parse("http://[::1]:1"), "http://[0:0::1]:1/"),
        (Origin::parse_allowing_http("http://api.internal"), "http://api.internal/"),
    ] {
        let layer = AuthRefreshLayer::new(session.clone(), origin.unwrap());
        assert!(carries_token(&layer, get(uri)).await, "{uri}");
        let on_https = uri.replacen("http", "https", 1);
        assert!(!carries_token(&layer, get(&on_https)).await, "{on_https}");
    }
}

// Requests with their own credentials, and `SkipAuth`.

/// Asserts that the layer passes this request and its 401 through unchanged, and does not refresh.
async fn assert_passes_through<S>(layer: &AuthRefreshLayer<S>, auth: &mut AuthCalls, request: Request<Full<Bytes>>)
where
    S: SessionSource,
{
    let has_session = request.extensions().get::<Session>().is_some();
    let (passed, report) = pass_through(layer, auth, request).await;
    assert_eq!(passed, has_session, "the session is left to the inner service");
    assert!(report.is_none());
}

/// Asserts that the layer sends this request as it is, passes its 401, and does not refresh. Returns whether the request
/// arrives with a session, and the report of the 401.
async fn pass_through<S>(
    layer: &AuthRefreshLayer<S>,
    auth: &mut AuthCalls,
    request: Request<Full<Bytes>>,
) -> (bool, Option<RefreshReport>)
where
    S: SessionSource,
{
    let headers = request.headers().clone();
    let (service, mut api) = script();
    let mut client = layer.layer(service);
    // From the third request on, the service uses a cached token.
    for _ in 0..3 {
        let response = client.ready().await.unwrap().call(get(ORIGIN));
        let response = tokio::spawn(response);
        api.next().await.reply(200).await;
        assert_eq!(response.await.unwrap().unwrap().status(), 200);
    }
    let response = tokio::spawn(client.ready().await.unwrap().call(request));
    let call = api.next().await;
    assert_eq!(call.request.headers(), &headers);
    let has_session = call.request.extensions().get::<Session>().is_some();
    call.reply(401).await;
    let response = response.await.unwrap().unwrap();
    assert_eq!(response.status(), 401);
    let report = response.extensions().get().cloned();
    assert_eq!(text(response).await, "status 401");
    assert!(api.is_idle().await && auth.is_idle().await);
    (has_session, report)
}

#[tokio::test(start_paused = true)]
async fn a_callers_own_token_is_kept_and_its_401_triggers_nothing() {
    let (session, mut auth) = session().await;
    let layer = AuthRefreshLayer::new(session.clone(), origin());
    for value in ["Bearer mine", "Basic dXNlcjpwYXNz", ""] {
        let mut request = get(ORIGIN);
        request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static(value));
        assert_passes_through(&layer, &mut auth, request).await;
    }
    let layer = layer.header(API_TOKEN).without_scheme();
    let mut request = get(ORIGIN);
    request.headers_mut().insert(API_TOKEN, HeaderValue::from_static("mine"));
    assert_passes_through(&layer, &mut auth, request).await;
    let layer = AuthRefreshLayer::<PerRequest>::per_request(origin());
    let mut request = get_as(&session, ORIGIN);
    request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Bearer mine"));
    assert_passes_through(&layer, &mut auth, request).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_with_as_many_headers_as_fit_is_sent_as_it_is_and_its_401_triggers_nothing() {
    let (session, mut auth) = session().await;
    let mut full = HeaderMap::new();
    for number in 0_u32.. {
        let name = HeaderName::try_from(format!("x-{number}")).unwrap();
        if full.try_append(name, HeaderValue::from_static("1")).is_err() {
            break;
        }
    }
    assert!(full.clone().try_append(AUTHORIZATION, HeaderValue::from_static("")).is_err());
    let mut request = get(ORIGIN);
    *request.headers_mut() = full.clone();
    let (_, report) = pass_through(&AuthRefreshLayer::new(session.clone(), origin()), &mut auth, request).await;
    assert!(matches!(report, Some(RefreshReport::NotReplayable(NotReplayable::Head))));
    let mut request = get_as(&session, ORIGIN);
    *request.headers_mut() = full;
    let (has_session, report) = pass_through(&AuthRefreshLayer::per_request(origin()), &mut auth, request).await;
    assert!(matches!(report, Some(RefreshReport::NotReplayable(NotReplayable::Head))));
    assert!(!has_session, "the session of a request that belongs to the layer is not passed on");
}

#[tokio::test(start_paused = true)]
async fn the_body_of_a_request_with_the_callers_own_token_arrives_frame_by_frame() {
    let (session, _auth) = session().await;
    let inner = service_fn(async |request: Request<ReplayBody<_>>| {
        let (mut frames, mut body) = (Vec::new(), request.into_body());
        while let Some(frame) = body.frame().await {
            let frame: Frame<Bytes> = frame?;
            frames.push(format!("{:?}", frame.into_data().map_err(Frame::into_trailers)));
        }
        Ok::<_, BoxError>(Response::new(frames.join(" ")))
    });
    let mut client = AuthRefreshLayer::new(session, origin()).layer(inner);
    // From the third request on, the service uses a cached token.
    for own in [false, false, false, true, true] {
        let trailers = HeaderMap::from_iter([(API_TOKEN, HeaderValue::from_static("t"))]);
        let frames = [Frame::data(Bytes::from("one")), Frame::data(Bytes::from("two")), Frame::trailers(trailers)];
        let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
        let mut request = Request::post(ORIGIN).body(body).unwrap();
        if own {
            request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Bearer mine"));
        }
        let response = client.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(response.into_body(), r#"Ok(b"one") Ok(b"two") Err(Ok({"x-api-token": "t"}))"#);
    }
}

#[tokio::test(start_paused = true)]
async fn a_callers_own_authorization_header_is_kept_beside_a_token_in_another_header() {
    let (session, mut auth) = session().await;
    let (service, mut api) = script();
    let client = AuthRefreshLayer::new(session, origin()).header(API_TOKEN).without_scheme().layer(service);
    let mut request = get(ORIGIN);
    request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Basic dXNlcjpwYXNz"));
    let response = send(&client, request);
    for (token, status) in [("a1", 401), ("a2", 200)] {
        let call = api.next().await;
        assert_eq!(call.request.headers()[AUTHORIZATION], "Basic dXNlcjpwYXNz");
        assert_eq!(call.request.headers()[API_TOKEN], token);
        call.reply(status).await;
        if status == 401 {
            auth.next().await.answer(Ok(pair(2)));
        }
    }
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_opts_out_passes_untouched_and_its_401_triggers_nothing() {
    let (session, mut auth) = session().await;
    let mut request = get(ORIGIN);
    request.extensions_mut().insert(SkipAuth);
    assert_passes_through(&AuthRefreshLayer::new(session.clone(), origin()), &mut auth, request).await;
    let mut request = get_as(&session, ORIGIN);
    request.extensions_mut().insert(SkipAuth);
    assert_passes_through(&AuthRefreshLayer::per_request(origin()), &mut auth, request).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_opts_out_does_not_wait_for_a_refresh() {
    let mut it = Fixture::new().await;
    let _waiting = it.get_refused().await;
    let _hanging = it.auth.next().await;
    let mut request = get(ORIGIN);
    request.extensions_mut().insert(SkipAuth);
    let response = it.send(request);
    let begun = Instant::now();
    let call = it.api.next().await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(call.token(), None);
    call.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_request_with_a_token_of_its_own_does_not_wait_for_a_refresh() {
    let mut it = Fixture::new().await;
    let _waiting = it.get_refused().await;
    let _hanging = it.auth.next().await;
    let mut request = get(ORIGIN);
    request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Bearer mine"));
    let response = it.send(request);
    let begun = Instant::now();
    let call = it.api.next().await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(call.request.headers()[AUTHORIZATION], "Bearer mine");
    call.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);
}

// The header that carries the token.

#[tokio::test(start_paused = true)]
async fn header_and_scheme_are_the_same_in_the_replay_and_the_value_is_marked_sensitive() {
    type Set = fn(AuthRefreshLayer) -> AuthRefreshLayer;

    let bearer = |session| AuthRefreshLayer::new(session, origin());
    let variants: [(Set, HeaderName, &str); 5] = [
        (|layer| layer, AUTHORIZATION, "Bearer "),
        (|layer| layer.scheme("DPoP"), AUTHORIZATION, "DPoP "),
        (|layer| layer.without_scheme(), AUTHORIZATION, ""),
        (|layer| layer.header(API_TOKEN), API_TOKEN, "Bearer "),
        (|layer| layer.without_scheme().scheme("Token").header(API_TOKEN), API_TOKEN, "Token "),
    ];
    for (set, header, prefix) in variants {
        let (session, mut auth) = session().await;
        let (service, mut api) = script();
        let client = set(bearer(session)).layer(service);
        let response = send(&client, get(ORIGIN));
        for (token, status) in [("a1", 401), ("a2", 200)] {
            let call = api.next().await;
            let value = &call.request.headers()[&header];
            assert_eq!(value, &format!("{prefix}{token}"));
            assert!(value.is_sensitive());
            assert_eq!(call.request.headers().len(), 1);
            call.reply(status).await;
            if status == 401 {
                auth.next().await.answer(Ok(pair(2)));
            }
        }
        assert_eq!(response.await.unwrap().status(), 200);
    }
}

#[test]
fn an_invalid_scheme_is_refused_and_not_repeated_in_the_panic_message() {
    for bad in ["", "Bearer ", "Bear er", "Bearer\r\nX-Evil: 1", "Bearer:", "Bearér", "\0", "Bearer hunter2"] {
        let layer = AuthRefreshLayer::per_request(origin());
        let panic = catch_unwind(AssertUnwindSafe(|| layer.scheme(bad))).unwrap_err();
        let message = panic.downcast_ref::<&str>().map(ToString::to_string);
        let message = message.or_else(|| panic.downcast_ref().cloned()).unwrap();
        assert!(message.contains("not an authentication scheme") && !message.contains("hunter2"), "{message}");
    }
}

#[test]
fn a_token_that_is_no_valid_header_value_is_refused_at_construction_with_a_clear_error() {
    for bad in ["a\rb", "a\nb", "a\r\nX-Evil: 1", "a\0b", "a\tb", "a\u{7f}b", "tök", "\u{2028}", ""] {
        for error in [AccessToken::new(bad).unwrap_err(), RefreshToken::new(bad).unwrap_err()] {
            let message = error.to_string();
            let why = if bad.is_empty() { "is empty" } else { "not printable ASCII" };
            assert!(message.contains(why) && message.contains(" token "), "{bad:?}: {message}");
            assert!(!message.contains("Evil") && !format!("{error:?}").contains("Evil"));
        }
    }
    assert!(AccessToken::new("two words").is_err());
    assert!(RefreshToken::new("two words").is_ok());
    assert!(AccessToken::new("!\"#$~".repeat(1000)).is_ok());
}
