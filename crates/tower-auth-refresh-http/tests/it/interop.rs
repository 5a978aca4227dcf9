//! Against a certified OpenID provider (npm's `oidc-provider`), with refresh token rotation and reuse detection.
//!
//! `npm ci` in `tests/interop` sets it up. Without that, and without node, these tests are skipped, unless `CI` is
//! `true`.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Child;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_auth_refresh::refresh::RevokeRequest;
use tower_auth_refresh::{
    AuthRefreshLayer, NotRefreshed, Origin, RefreshError, RefreshErrorKind, RefreshReport, RefreshRequest,
    RefreshToken, ReplayBody, Rotation, Session, SessionState, Tokens,
};
use tower_auth_refresh_http::{
    AuthClient, AuthServerError, AuthorizationServer, ClientAuth, ClientCredentials, OAuthRefresh, OAuthRevoke,
};

use crate::support::{access, failing, refresh};

/// The number of times that the access token, which lives for two seconds, is renewed under load.
const ROTATIONS: usize = 20;
const CALLERS: usize = 50;

/// The provider's process, shared by all tests. It ends when its standard input is closed, with this process.
struct Provider {
    issuer: String,
    address: SocketAddr,
    _process: Child,
}

/// A user's sign-in, with its own client.
struct Grant {
    token: RefreshToken,
    client_id: String,
    client_secret: String,
}

impl Provider {
    fn get() -> Option<&'static Self> {
        static PROVIDER: OnceLock<Option<Provider>> = OnceLock::new();
        PROVIDER.get_or_init(Self::start).as_ref()
    }

    fn start() -> Option<Self> {
        match Self::try_start() {
            Ok(provider) => Some(provider),
            Err(reason) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{reason}"),
            Err(reason) => {
                eprintln!("skipped: {reason}");
                None
            }
        }
    }

    fn try_start() -> Result<Self, String> {
        let (process, port) = crate::node::start("server.mjs")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Self { issuer: format!("http://{address}"), address, _process: process })
    }

    async fn ask(&self, request: Request<Full<Bytes>>) -> (StatusCode, Value) {
        let answer = Client::builder(TokioExecutor::new()).build_http().request(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn sign_in(&self, wishes: Value) -> Grant {
        let request = Request::post(format!("{}/test/grant", self.issuer)).body(wishes.to_string().into()).unwrap();
        let (_, grant) = self.ask(request).await;
        let text = |name: &str| grant[name].as_str().unwrap_or_else(|| panic!("no {name} in {grant}")).to_owned();
        Grant {
            token: RefreshToken::new(text("refresh_token")).unwrap(),
            client_id: text("client_id"),
            client_secret: text("client_secret"),
        }
    }

    /// The refreshes of this client: granted, refused, and refused because the token was used before.
    async fn seen(&self, grant: &Grant) -> (u64, u64, u64) {
        let url = format!("{}/test/events?client_id={}", self.issuer, grant.client_id);
        let (_, seen) = self.ask(Request::get(url).body(Full::default()).unwrap()).await;
        let count = |name: &str| seen[name].as_u64().unwrap();
        (count("granted"), count("refused"), count("reused"))
    }

    /// Returns `true` if introspection (RFC 7662) reports a token as active.
    async fn knows(&self, grant: &Grant, token: &str) -> bool {
        let form = form_urlencoded::Serializer::new(String::new()).append_pair("token", token).finish();
        let credentials = [&grant.client_id, &grant.client_secret]
            .map(|text| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>())
            .join(":");
        let request = Request::post(self.url("/token/introspection"))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(AUTHORIZATION, format!("Basic {}", STANDARD.encode(credentials)))
            .body(form.into())
            .unwrap();
        let (status, answer) = self.ask(request).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["active"].as_bool().unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.issuer)
    }
}

impl Grant {
    fn auth(&self) -> ClientAuth {
        ClientAuth::basic(&self.client_id, &self.client_secret)
    }

    fn tokens(&self) -> Tokens {
        Tokens::from_refresh_token(self.token.clone())
    }

    fn refresh(&self, token_endpoint: &str) -> OAuthRefresh {
        OAuthRefresh::new(AuthClient::rustls(), token_endpoint, self.auth()).unwrap()
    }

    async fn session(&self, provider: &Provider) -> Session {
        Session::builder(self.refresh(&provider.url("/token"))).tokens(self.tokens()).build().await.unwrap()
    }
}

/// The provider of a test; ends the test if there is none.
macro_rules! provider {
    () => {
        match Provider::get() {
            Some(provider) => provider,
            None => return,
        }
    };
}

/// The requests that the innermost client of a stack has sent.
#[derive(Default)]
struct Leaf {
    sent: AtomicUsize,
    unauthorized: AtomicUsize,
    /// The tokens that were refused.
    refused: Mutex<HashSet<String>>,
}

/// Calls the provider's own protected resource, its userinfo endpoint.
fn stack(
    provider: &Provider,
    session: &Session,
    leaf: &Arc<Leaf>,
) -> impl Service<
    Request<Full<Bytes>>,
    Response = http::Response<hyper::body::Incoming>,
    Error: std::fmt::Debug,
    Future: Send,
> + Clone
+ Send
+ 'static {
    let client = Client::builder(TokioExecutor::new()).build_http::<ReplayBody<Full<Bytes>>>();
    let leaf = leaf.clone();
    let client = service_fn(move |request: Request<ReplayBody<Full<Bytes>>>| {
        leaf.sent.fetch_add(1, Ordering::Relaxed);
        let token = request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
        let (answer, leaf) = (client.request(request), leaf.clone());
        async move {
            let answer = answer.await?;
            if answer.status() == StatusCode::UNAUTHORIZED {
                leaf.unauthorized.fetch_add(1, Ordering::Relaxed);
                leaf.refused.lock().unwrap().extend(token);
            }
            Ok::<_, hyper_util::client::legacy::Error>(answer)
        }
    });
    AuthRefreshLayer::new(session.clone(), Origin::parse(&provider.issuer).unwrap()).layer(client)
}

fn me(provider: &Provider) -> Request<Full<Bytes>> {
    Request::get(provider.url("/me")).body(Full::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_callers_see_no_failure_through_twenty_expiries() {
    let provider = provider!();
    let grant = provider.sign_in(json!({})).await;
    let session = grant.session(provider).await;
    let leaf = Arc::new(Leaf::default());
    let stack = stack(provider, &session, &leaf);

    let start = Instant::now();
    let callers = (0..CALLERS).map(|_| {
        let (stack, session) = (stack.clone(), session.clone());
        tokio::spawn(async move {
            let mut answered = 0_usize;
            // The first generation has no access token yet.
            while session.generation().get() < ROTATIONS as u64 + 2 {
                let answer = stack.clone().oneshot(me(provider)).await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.extensions().get::<RefreshReport>());
                answer.into_body().collect().await.unwrap();
                answered += 1;
                // A steady load, not the most that the machine can do.
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            answered
        })
    });
    let mut answered = 0;
    for caller in callers.collect::<Vec<_>>() {
        answered += caller.await.unwrap();
    }

    let (granted, refused, twice) = provider.seen(&grant).await;
    let expiries = leaf.refused.lock().unwrap().len();
    println!(
        "{CALLERS} callers, {answered} requests answered 200 in {:.1} s; {} sent, {} answered 401; {expiries} expiries, \
         {granted} refreshes granted (the first one acquires), {refused} refused, {twice} of them for a token used before",
        start.elapsed().as_secs_f64(),
        leaf.sent.load(Ordering::Relaxed),
        leaf.unauthorized.load(Ordering::Relaxed),
    );
    assert!(expiries >= ROTATIONS);
    assert_eq!((granted, refused, twice), (expiries as u64 + 1, 0, 0));
    assert_eq!(answered + leaf.unauthorized.load(Ordering::Relaxed), leaf.sent.load(Ordering::Relaxed));
    assert_eq!(session.state(), SessionState::Active);
}

#[tokio::test]
async fn a_revoked_grant_ends_the_session() {
    let provider = provider!();
    let grant = provider.sign_in(json!({})).await;
    let session = grant.session(provider).await;
    let stack = stack(provider, &session, &Arc::default());
    assert_eq!(stack.clone().oneshot(me(provider)).await.unwrap().status(), StatusCode::OK);

    let in_force = session.tokens();
    let body = json!({"refresh_token": refresh(&in_force)}).to_string();
    provider.ask(Request::post(provider.url("/test/revoke")).body(body.into()).unwrap()).await;

    let answer = stack.oneshot(me(provider)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let report = answer.extensions().get::<RefreshReport>();
    assert!(matches!(report, Some(RefreshReport::NotRefreshed(NotRefreshed::Ended(_)))), "{report:?}");
    assert!(session.state().is_ended());
}

#[tokio::test]
async fn a_wrong_client_secret_keeps_the_tokens_and_says_misconfigured() {
    let provider = provider!();
    let grant = provider.sign_in(json!({})).await;
    let wrong = ClientAuth::basic(&grant.client_id, "wrong");
    let refresher = OAuthRefresh::new(AuthClient::rustls(), &provider.url("/token"), wrong).unwrap();
    let session = Session::builder(refresher).tokens(grant.tokens()).build().await.unwrap();
    let NotRefreshed::Failed(error) = session.refresh().await.unwrap_err() else { panic!() };
    assert_eq!(error.kind(), RefreshErrorKind::Misconfigured);
    let message = "the server answered with an error (status 401, invalid_client)";
    assert_eq!(crate::support::cause(&error).to_string(), format!("{}: {message}", provider.url("/token")));
    assert_eq!((failing(&session), session.tokens()), (RefreshErrorKind::Misconfigured, grant.tokens()));

    // The token is as good as before.
    grant.session(provider).await.refresh().await.unwrap();
    assert_eq!(provider.seen(&grant).await, (1, 1, 0));
}

#[tokio::test]
async fn sign_out_revokes_and_introspection_sees_it() {
    let provider = provider!();
    let grant = provider.sign_in(json!({})).await;
    let server = AuthorizationServer::discover(&AuthClient::rustls(), &provider.issuer).await.unwrap();
    let revoke = OAuthRevoke::new(AuthClient::rustls(), server.revocation_endpoint().unwrap(), grant.auth()).unwrap();
    let session = Session::builder(grant.refresh(server.token_endpoint()))
        .tokens(grant.tokens())
        .revoke(revoke)
        .build()
        .await
        .unwrap();
    session.refresh().await.unwrap();
    let tokens = session.tokens();

    assert!(provider.knows(&grant, refresh(&tokens).unwrap()).await);
    session.sign_out().await.unwrap();
    assert_eq!(session.state(), SessionState::SignedOut);
    assert!(!provider.knows(&grant, refresh(&tokens).unwrap()).await);
    assert!(!provider.knows(&grant, access(&tokens)).await);
}

#[tokio::test]
async fn tokens_that_arrive_after_sign_out_are_revoked() {
    let provider = provider!();
    let grant = provider.sign_in(json!({})).await;
    // The answer is held back; revocations are reported.
    let (answered, mut answers) = mpsc::unbounded_channel();
    let (revoked, mut revocations) = mpsc::unbounded_channel();
    let release = Arc::new(Notify::new());
    let held = release.clone();
    let refresher = grant.refresh(&provider.url("/token"));
    let refresher = service_fn(move |request: RefreshRequest| {
        let (call, answered, held) = (refresher.refresh(request.tokens()), answered.clone(), held.clone());
        async move {
            let tokens = call.await?;
            answered.send(tokens.clone()).unwrap();
            held.notified().await;
            Ok::<_, RefreshError>(tokens)
        }
    });
    let revoke = OAuthRevoke::new(AuthClient::rustls(), &provider.url("/token/revocation"), grant.auth()).unwrap();
    let revoke = service_fn(move |request: RevokeRequest| {
        let (call, revoked) = (revoke.revoke(request.tokens()), revoked.clone());
        async move {
            call.await?;
            revoked.send(request.tokens().clone()).unwrap();
            Ok::<_, AuthServerError>(())
        }
    });
    let session = Session::builder(refresher).tokens(grant.tokens()).revoke(revoke).build().await.unwrap();

    let refreshing = tokio::spawn({
        let session = session.clone();
        async move { session.refresh().await }
    });
    let late = answers.recv().await.unwrap();
    assert!(provider.knows(&grant, refresh(&late).unwrap()).await);
    session.sign_out().await.unwrap();
    release.notify_one();
    while revocations.recv().await.unwrap() != late {}
    assert!(!provider.knows(&grant, refresh(&late).unwrap()).await);
    assert!(refreshing.await.unwrap().is_err());
    assert_eq!((session.state(), session.tokens()), (SessionState::SignedOut, Tokens::default()));
}

#[tokio::test]
async fn every_client_authentication_is_understood() {
    let provider = provider!();
    for method in ["client_secret_basic", "client_secret_post", "none"] {
        let grant = provider.sign_in(json!({ "auth": method })).await;
        let auth = match method {
            "client_secret_basic" => grant.auth(),
            "client_secret_post" => ClientAuth::post(&grant.client_id, &grant.client_secret),
            _ => ClientAuth::public(&grant.client_id),
        };
        let refresher = OAuthRefresh::new(AuthClient::rustls(), &provider.url("/token"), auth).unwrap();
        let tokens = refresher.scope("openid").refresh(&grant.tokens()).await.unwrap();
        assert_eq!(tokens.extra("scope").unwrap(), "openid", "{method}");
        assert_ne!(refresh(&tokens), Some(grant.token.expose_secret()));
    }
}

#[tokio::test]
async fn client_credentials_buy_an_access_token() {
    let provider = provider!();
    let grant = provider.sign_in(json!({})).await;
    let refresher = ClientCredentials::new(AuthClient::rustls(), &provider.url("/token"), grant.auth()).unwrap();
    let session = Session::client_credentials(refresher).build().await.unwrap();
    session.refresh().await.unwrap();
    assert!(session.tokens().access_token().is_some() && session.tokens().expires_at().is_some());
}

/// Stands between, and can kill a connection once the answer to its request is there: the provider has rotated, and
/// the client never hears of it.
struct FaultProxy {
    address: SocketAddr,
    to_kill: Arc<AtomicUsize>,
}

impl FaultProxy {
    async fn before(provider: &Provider) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let to_kill = Arc::new(AtomicUsize::new(0));
        let (kill, upstream) = (to_kill.clone(), provider.address);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Self::forward(client, upstream, kill.clone()));
            }
        });
        Self { address, to_kill }
    }

    async fn forward(client: TcpStream, upstream: SocketAddr, to_kill: Arc<AtomicUsize>) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = TcpStream::connect(upstream).await.unwrap().into_split();
        let requests = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
        let mut answer = [0; 16 * 1024];
        while let Ok(read @ 1..) = from_server.read(&mut answer).await {
            let one_less = |left: usize| left.checked_sub(1);
            if to_kill.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
                || to_client.write_all(&answer[..read]).await.is_err()
            {
                break;
            }
        }
        requests.abort();
    }

    fn kill_next(&self) {
        self.to_kill.store(1, Ordering::Relaxed);
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

async fn session_in_doubt(proxy: &FaultProxy, grant: &Grant, path: &str, rotation: Rotation) -> Session {
    let session = Session::builder(grant.refresh(&proxy.url(path)))
        .tokens(grant.tokens())
        .rotation(rotation)
        .build()
        .await
        .unwrap();
    proxy.kill_next();
    session
}

#[tokio::test]
async fn an_answer_lost_under_strict_rotation_is_not_requested_again_within_the_flight() {
    let provider = provider!();
    let proxy = FaultProxy::before(provider).await;
    let grant = provider.sign_in(json!({})).await;
    let session = session_in_doubt(&proxy, &grant, "/token", Rotation::Strict).await;

    let NotRefreshed::Failed(error) = session.refresh().await.unwrap_err() else { panic!() };
    assert_eq!(error.kind(), RefreshErrorKind::InDoubt);
    assert_eq!(provider.seen(&grant).await, (1, 0, 0));
    // The user stays signed in: no definite answer has come yet.
    assert_eq!((failing(&session), session.tokens()), (RefreshErrorKind::InDoubt, grant.tokens()));

    // The next refresh presents it again, and the provider's word decides.
    let NotRefreshed::Ended(_) = session.refresh().await.unwrap_err() else { panic!() };
    assert_eq!(provider.seen(&grant).await, (1, 1, 1));
    assert!(session.state().is_ended());
}

#[tokio::test]
async fn an_answer_lost_within_the_grace_period_is_requested_again_unnoticed() {
    let provider = provider!();
    let proxy = FaultProxy::before(provider).await;
    let grant = provider.sign_in(json!({})).await;
    let rotation = Rotation::Grace(Duration::from_secs(10));
    let session = session_in_doubt(&proxy, &grant, "/grace/token", rotation).await;

    session.refresh().await.unwrap();
    assert_eq!(provider.seen(&grant).await, (1, 0, 0));
    // The session holds the successor, which is accepted.
    session.refresh().await.unwrap();
    assert_eq!(provider.seen(&grant).await, (2, 0, 0));
}

#[tokio::test]
async fn a_grace_period_that_the_server_does_not_have_counts_as_theft_and_ends_the_session() {
    let provider = provider!();
    let proxy = FaultProxy::before(provider).await;
    let grant = provider.sign_in(json!({})).await;
    let rotation = Rotation::Grace(Duration::from_secs(10));
    let session = session_in_doubt(&proxy, &grant, "/token", rotation).await;

    let NotRefreshed::Ended(_) = session.refresh().await.unwrap_err() else { panic!() };
    assert_eq!(provider.seen(&grant).await, (1, 1, 1));
}

#[tokio::test]
async fn an_answer_lost_by_a_server_that_does_not_rotate_is_requested_again() {
    let provider = provider!();
    let proxy = FaultProxy::before(provider).await;
    let grant = provider.sign_in(json!({"rotate": false})).await;
    let session = session_in_doubt(&proxy, &grant, "/token", Rotation::Reusable).await;

    session.refresh().await.unwrap();
    assert_eq!(provider.seen(&grant).await, (2, 0, 0));
    assert_eq!(refresh(&session.tokens()), Some(grant.token.expose_secret()));
}
