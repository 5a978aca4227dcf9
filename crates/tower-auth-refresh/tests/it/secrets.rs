//! No part of a token is printed, in traces, `Debug` output, errors or panics.

use std::cell::RefCell;
use std::error::Error;
use std::fmt::{Debug, Write as _};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Once, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderName, Request, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_auth_refresh::challenge::ResponseHead;
use tower_auth_refresh::inspect::InspectBodyLayer;
use tower_auth_refresh::refresh::{RevokeRequest, RevokeService};
use tower_auth_refresh::store::{ClaimOutcome, ClearOutcome, CommitOutcome, Entry, Epoch, Presented};
use tower_auth_refresh::{
    AccessToken, AuthRefreshLayer, ChallengePolicy, MemoryStore, NotRefreshed, Origin, Origins, RefreshError,
    RefreshReport, RefreshRequest, RefreshService, RefreshToken, ReplayLimit, Rotation, Session, SessionRegistry,
    SkipAuth, TokenStore, Tokens,
};
use tower_auth_refresh_http::{
    AuthClient, ClientAuth, ClientCredentials, JsonLogin, JsonLogout, JsonRefresh, OAuthRefresh, OAuthRevoke,
};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, FaultyStore, StoreFault};
use tower_http::trace::{DefaultMakeSpan, DefaultOnRequest, DefaultOnResponse, TraceLayer};
use tower_layer::Layer;
use tracing::{Dispatch, Level};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::support::*;

/// Canaries, which are random secrets, and everything that was printed while they were in use.
#[derive(Clone, Default)]
pub struct Watch {
    canaries: Arc<Mutex<Vec<String>>>,
    printed: Arc<Mutex<String>>,
}

impl Watch {
    /// Captures every trace and every panic message of this thread.
    pub fn start() -> (Self, impl Drop) {
        keep_two_subscribers();
        let watch = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .with_span_events(FmtSpan::FULL)
            .with_writer(watch.clone())
            .with_ansi(false)
            .finish();
        watch.capture_panics();
        let guard = tracing::subscriber::set_default(subscriber);
        (watch, guard)
    }

    fn capture_panics(&self) {
        thread_local!(static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) });
        static HOOK: Once = Once::new();
        WATCH.set(Some(self.clone()));
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                if let Ok(Some(watch)) = WATCH.try_with(|watch| watch.borrow().clone()) {
                    watch.text(&panic.to_string());
                }
                before(panic);
            }));
        });
    }

    fn canary(&self) -> String {
        let canary: String = std::iter::repeat_with(fastrand::alphanumeric).take(32).collect();
        self.canaries.lock().unwrap().push(canary.clone());
        canary
    }

    fn access(&self) -> AccessToken {
        access(&self.canary())
    }

    fn refresh(&self) -> RefreshToken {
        refresh(&self.canary())
    }

    fn tokens(&self) -> Tokens {
        let members = serde_json::json!({
            "scope": "read write",
            "id_token": self.canary(),
            "nested": { "device_secret": [self.canary()] },
        });
        let serde_json::Value::Object(members) = members else { unreachable!() };
        Tokens::new(self.access(), self.refresh()).with_expires_in(Duration::from_secs(86_400)).with_extra(members)
    }

    fn text(&self, text: &str) {
        let mut printed = self.printed.lock().unwrap();
        printed.push_str(text);
        printed.push('\n');
    }

    fn debug(&self, it: impl Debug) {
        let text = format!("{it:?}");
        assert!(!text.is_empty(), "a value that shows nothing of itself");
        self.text(&format!("{text} {it:#?}"));
    }

    fn error(&self, error: &(dyn Error + 'static)) {
        let mut text = String::new();
        let mut next = Some(error);
        while let Some(error) = next {
            let _ = write!(text, "{error} {error:#} {error:?} {error:#?} ");
            next = error.source();
        }
        self.text(&text);
    }

    /// Records the `Debug` output of a response, and the report and errors in it.
    fn response<B: Debug>(&self, response: &http::Response<B>) {
        self.debug(response);
        if let Some(report) = response.extensions().get::<RefreshReport>() {
            self.text(&report.to_string());
            self.debug(report);
            if let RefreshReport::NotRefreshed(why) = report {
                self.error(why);
            }
        }
    }

    fn has(&self, text: &str) -> bool {
        self.count(text) > 0
    }

    /// Returns how often a text was printed.
    pub fn count(&self, text: &str) -> usize {
        self.printed.lock().unwrap().matches(text).count()
    }

    /// Asserts that nothing leaked and clears the output, which keeps the next check fast.
    fn check_and_clear(&self) {
        self.assert_nothing_leaked();
        self.canaries.lock().unwrap().clear();
        self.printed.lock().unwrap().clear();
    }

    /// Asserts that no eight consecutive bytes of a canary were printed in any common encoding.
    fn assert_nothing_leaked(&self) {
        let printed = self.printed.lock().unwrap().clone();
        let plain = printed.to_ascii_lowercase();
        for canary in self.canaries.lock().unwrap().iter() {
            for window in canary.as_bytes().windows(8) {
                let text = std::str::from_utf8(window).unwrap();
                let hex: String = window.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
                let list = format!("{window:?}");
                for leak in [text.to_ascii_lowercase(), hex, list[1..list.len() - 1].to_owned()] {
                    assert!(!plain.contains(&leak), "{canary} was printed as {leak}:\n{printed}");
                }
            }
            for skipped in 0..3 {
                let leak = base64(&canary.as_bytes()[skipped..]);
                assert!(!printed.contains(&leak[..20]), "{canary} was printed in base64:\n{printed}");
            }
        }
    }
}

/// Registers two subscribers for good, which receive nothing. While `tracing` knows of no more than one, the first thread
/// that comes to an event decides for all threads whether the event is of interest, and most threads here have none.
fn keep_two_subscribers() {
    static KEPT: OnceLock<[Dispatch; 2]> = OnceLock::new();
    KEPT.get_or_init(|| {
        let subscriber = || tracing_subscriber::fmt().with_max_level(Level::TRACE).with_writer(io::sink).finish();
        [subscriber(), subscriber()].map(Dispatch::new)
    });
}

impl<'a> MakeWriter<'a> for Watch {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl io::Write for Watch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.printed.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = bytes.chunks_exact(3).map(|group| u32::from_be_bytes([0, group[0], group[1], group[2]]));
    let digit = |group: u32, shift: u32| char::from(DIGITS[(group >> shift) as usize % 64]);
    groups.flat_map(|group| [18, 12, 6, 0].map(|shift| digit(group, shift))).collect()
}

#[test]
fn a_leak_is_detected_in_every_encoding() {
    for print in [
        |canary: &str| canary.to_owned(),
        |canary: &str| canary.to_uppercase(),
        |canary: &str| format!("…{}…", &canary[9..20]),
        |canary: &str| format!("{:?}", canary.as_bytes()),
        |canary: &str| format!("{:?}", Bytes::copy_from_slice(canary.as_bytes())),
        |canary: &str| canary.bytes().fold(String::new(), |hex, byte| hex + &format!("{byte:02X}")),
        |canary: &str| base64(canary.as_bytes()),
        |canary: &str| base64(format!("id:{canary}").as_bytes()),
        |canary: &str| base64(format!("user:{canary}").as_bytes()),
        |canary: &str| format!("{:?}", canary.to_owned()),
    ] {
        let watch = Watch::default();
        watch.text(&print(&watch.canary()));
        assert!(catch_unwind(AssertUnwindSafe(|| watch.assert_nothing_leaked())).is_err());
    }
}

/// Prints the types that look at an API's response.
async fn inspect(watch: &Watch) {
    let inspecting = InspectBodyLayer::json(|_, _| true);
    watch.debug(&inspecting);
    let answer = watch.canary();
    let inner = tower::service_fn(move |_: Request<()>| {
        let response = http::Response::builder().header("content-type", "application/json").body(answer.clone());
        std::future::ready(response)
    });
    watch.debug(inspecting.layer(()));
    let response = inspecting.layer(inner).call(Request::new(()));
    watch.debug(&response);
    watch.debug(response.await.unwrap().into_body());
    let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, watch.canary().parse().unwrap())]);
    watch.debug(ResponseHead::new(StatusCode::UNAUTHORIZED, &headers));
}

#[tokio::test(start_paused = true)]
async fn no_secret_is_in_the_debug_output_of_any_public_type() {
    let (watch, _capture) = Watch::start();
    let tokens = watch.tokens();
    watch.debug(tokens.access_token().unwrap());
    watch.debug(tokens.refresh_token().unwrap());
    watch.debug(&tokens);
    assert!(watch.has("id_token"), "member names may be printed");

    // The requests to a refresh service and a revoke service.
    let seen = watch.clone();
    let refresh = tower::service_fn(move |request: RefreshRequest| {
        seen.debug(&request);
        seen.debug((request.tokens(), request.refresh_token(), request.trigger(), request.generation()));
        let tokens = seen.tokens();
        async move { Ok::<_, RefreshError>(tokens) }
    });
    let seen = watch.clone();
    let revoke = tower::service_fn(move |request: RevokeRequest| {
        seen.debug(&request);
        async { Ok::<_, RefreshError>(()) }
    });
    let builder = Session::builder(refresh).tokens(tokens.clone()).revoke(revoke).rotation(Rotation::Reusable);
    watch.debug(&builder);
    let session = builder.build().await.unwrap();
    watch.debug(&session);
    watch.debug((session.state(), session.generation(), session.tokens(), session.subscribe()));
    watch.debug(session.credential().await.unwrap());

    // The middleware, and the requests that it forwards.
    let bodies = watch.canary();
    let seen = watch.clone();
    let inner = tower::service_fn(move |request: Request<tower_auth_refresh::ReplayBody<String>>| {
        let seen = seen.clone();
        async move {
            seen.debug(&request);
            seen.debug(request.headers());
            assert!(seen.has("Sensitive"));
            assert!(request.into_body().collect().await.is_ok());
            let response = response(if seen.has("second") { 200 } else { 401 });
            seen.text("second");
            Ok::<_, RefreshError>(response)
        }
    });
    let layer = AuthRefreshLayer::new(session.clone(), origin());
    watch.debug(&layer);
    watch.debug(layer.clone().layer(()));
    let mut service = layer.clone().layer(inner);
    let request = Request::post(ORIGIN).extension(session.clone()).body(bodies).unwrap();
    let future = service.ready().await.unwrap().call(request);
    watch.debug(&future);
    let response = future.await.unwrap();
    watch.response(&response);
    assert!(matches!(report(&response), RefreshReport::Replayed));
    // The service after several requests.
    for _ in 0..3 {
        let request = Request::post(ORIGIN).body(String::new()).unwrap();
        assert_eq!(service.ready().await.unwrap().call(request).await.unwrap().status(), 200);
        watch.debug(&service);
    }
    assert!(watch.has("last: LastCredentials { .. }"));
    watch.debug(AuthRefreshLayer::per_request(Origins::from(origin())));
    watch.debug(
        layer.header(HeaderName::from_static("x-api-token")).challenge(ChallengePolicy::when(|_| true)).require_token(),
    );
    inspect(&watch).await;
    watch.debug((SkipAuth, ReplayLimit(7), ChallengePolicy::grpc(), origin(), StatusCode::OK));
    session.sign_out().await.unwrap();
    watch.debug(&session);
    let (service, _auth): (_, AuthCalls) = script();
    let registry = SessionRegistry::<u32>::builder(Session::builder(service).tokens(watch.tokens()));
    watch.debug(&registry);
    watch.debug(registry.build().unwrap());

    // The store.
    let store = MemoryStore::new();
    let entry = |tokens| Entry::new(Epoch::random(), 1, tokens);
    watch.debug(entry(tokens.clone()));
    watch.debug(store.replace(&entry(tokens)).await.unwrap());
    watch.debug(&store);
    let record = store.load().await.unwrap().unwrap();
    watch.debug(&record);
    let claiming = store.claim(record.version(), Duration::from_secs(1)).await.unwrap();
    watch.debug(&claiming);
    let ClaimOutcome::Claimed(claim) = claiming else { panic!() };
    watch.debug(&claim);
    watch.debug(store.claim(record.version(), Duration::from_secs(1)).await.unwrap());
    watch.debug(Presented::InDoubt);
    assert!(matches!(store.commit(&claim, &entry(watch.tokens())).await.unwrap(), CommitOutcome::Stored(_)));
    let conflict = store.commit(&claim, &entry(watch.tokens())).await.unwrap();
    assert!(matches!(conflict, CommitOutcome::Conflict(Some(_))));
    watch.debug(conflict);
    let changed = store.claim(record.version(), Duration::from_secs(1)).await.unwrap();
    assert!(matches!(changed, ClaimOutcome::Changed(Some(_))));
    watch.debug(changed);
    let conflict = store.clear(record.version()).await.unwrap();
    assert!(matches!(conflict, ClearOutcome::Conflict(_)));
    watch.debug(conflict);

    watch.assert_nothing_leaked();
}

#[tokio::test(start_paused = true)]
async fn debug_output_shows_the_parts_that_are_no_secret() {
    let it = Fixture::new().await;
    assert_eq!(format!("{:?}", it.session), "Session { state: Active, generation: 1, .. }");
    let (refresh, _auth): (_, AuthCalls) = script();
    assert_eq!(format!("{:?}", Session::builder(refresh)), "SessionBuilder { .. }");
    let request = Request::get(ORIGIN).body(Full::default()).unwrap();
    let future = it.client.clone().ready().await.unwrap().call(request);
    assert_eq!(format!("{future:?}"), "ResponseFuture { .. }");
}

/// A client with trace layers inside and around the middleware, headers included.
struct Traced {
    watch: Watch,
    session: Session,
    api: ApiCalls,
    auth: AuthCalls,
    store: FaultyStore,
    client: tower::util::BoxCloneService<Request<Full<Bytes>>, http::Response<String>, tower::BoxError>,
}

async fn read<B>(response: http::Response<B>) -> Result<http::Response<String>, tower::BoxError>
where
    B: Body<Error: Debug>,
{
    let (head, body) = response.into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().into())?;
    Ok(http::Response::from_parts(head, text))
}

impl Traced {
    async fn new(watch: &Watch) -> Self {
        let (service, auth) = script();
        let store = faulty_store();
        let failing = tower::service_fn(|_: RevokeRequest| async { Err::<(), _>(RefreshError::unavailable("later")) });
        let builder = Session::builder(service).tokens(watch.tokens()).store(store.clone()).revoke(failing);
        let session = builder.refresh_early(Duration::from_secs(60)).build().await.unwrap();
        let (service, api) = script();
        let trace = TraceLayer::new_for_http()
            .make_span_with(DefaultMakeSpan::new().include_headers(true).level(Level::TRACE))
            .on_request(DefaultOnRequest::new().level(Level::TRACE))
            .on_response(DefaultOnResponse::new().include_headers(true).level(Level::TRACE));
        let inner = ServiceBuilder::new().layer(trace.clone()).service(service);
        let client = ServiceBuilder::new()
            .layer(trace)
            .layer(AuthRefreshLayer::new(session.clone(), origin()))
            .service(inner)
            .map_err(|never| match never {})
            .and_then(read)
            .boxed_clone();
        Self { watch: watch.clone(), session, api, auth, store, client }
    }

    /// Sends a request that the API refuses. Answers every refresh call by `refresh`, and a replay with 200.
    async fn refused(&mut self, refresh: impl Fn() -> Result<Tokens, RefreshError>) {
        let mut request = tokio::spawn(self.client.clone().oneshot(post("a body")));
        self.api.next().await.respond(response(401)).await;
        let response = loop {
            tokio::select! {
                response = &mut request => break response.unwrap().unwrap(),
                call = self.auth.next() => {
                    self.watch.debug(&call.request);
                    call.answer(refresh());
                }
                replay = self.api.next() => replay.respond(response(200)).await,
            }
        };
        self.watch.response(&response);
    }
}

fn post(body: &'static str) -> Request<Full<Bytes>> {
    Request::post(ORIGIN).body(Full::from(body)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn no_secret_is_in_traces_or_errors_for_any_outcome_of_a_refresh() {
    let (watch, _capture) = Watch::start();
    let mut it = Traced::new(&watch).await;
    it.refused(|| Ok(watch.tokens())).await;
    assert!(watch.has("outcome=\"refreshed\"") && watch.has("replaying"));
    assert!(watch.has("\"authorization\": Sensitive"));

    // Failures of all kinds, and the cool-down after them.
    for error in [
        || RefreshError::misconfigured("the server does not know this client"),
        || RefreshError::unavailable("not now").with_retry_after(Duration::from_secs(7)),
        || RefreshError::in_doubt(io::Error::other("reset")),
    ] {
        it.refused(|| Err(error())).await;
        it.refused(|| panic!("a refresh call in the cool-down")).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    for kind in ["misconfigured", "unavailable", "in_doubt"] {
        assert!(watch.has(&format!("kind=\"{kind}\"")), "{kind}");
    }
    assert!(watch.has("refresh attempt failed") && watch.has("report=\"cooling_down\""));

    // A store that fails.
    it.store.inject(StoreCall::Commit, StoreFault::fail());
    it.refused(|| Ok(watch.tokens())).await;
    assert!(watch.has("tokens not saved"));
    it.store.clear_faults();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(watch.has("tokens saved"));
    it.store.inject(StoreCall::Release, StoreFault::fail());
    it.refused(|| Err(RefreshError::misconfigured("no"))).await;
    assert!(watch.has("claim not released"));
    it.store.clear_faults();
    it.store.inject(StoreCall::Replace, StoreFault::fail());
    let error = it.session.sign_in(watch.tokens()).await.unwrap_err();
    watch.error(&error);
    it.store.clear_faults();
    tokio::time::sleep(Duration::from_secs(60)).await;

    // The same token again, and a token that arrives after a sign-out and can't be revoked.
    let same = it.session.tokens();
    let request = tokio::spawn(it.client.clone().oneshot(post("")));
    it.api.next().await.reply(401).await;
    it.auth.next().await.answer(Ok(same));
    watch.response(&request.await.unwrap().unwrap());
    assert!(watch.has("same_token"));
    let refreshing = tokio::spawn({
        let session = it.session.clone();
        async move { session.refresh().await }
    });
    let late = it.auth.next().await;
    watch.error(&it.session.sign_out().await.unwrap_err());
    late.answer(Ok(watch.tokens()));
    watch.error(&refreshing.await.unwrap().unwrap_err());
    settle().await;
    assert!(watch.has("tokens not revoked"));
    watch.error(&it.session.refresh().await.unwrap_err());

    // The end of the session.
    it.session.sign_in(watch.tokens()).await.unwrap();
    it.refused(|| Err(RefreshError::rejected("invalid_grant"))).await;
    assert!(watch.has("session ended"));
    it.refused(|| panic!("a refresh call after the end")).await;
    assert!(watch.has("report=\"session_ended\""));
    watch.debug(&it.session);

    watch.assert_nothing_leaked();
}

/// Builds the answer of an authorization server around a secret.
type BuildAnswer = fn(&str) -> io::Result<(u16, String)>;

/// A client for refresh calls inside a trace layer, headers included. Every call and every answer contains a secret.
fn traced_auth(watch: &Watch, build_answer: BuildAnswer) -> AuthClient {
    let canaries = watch.clone();
    let server = tower::service_fn(move |_: Request<Full<Bytes>>| {
        let answer = build_answer(&canaries.canary()).map(|(status, text)| {
            let set_cookie = format!("rt={}; Path=/", canaries.canary());
            let response = http::Response::builder().status(status).header("set-cookie", set_cookie);
            let challenge = format!("Bearer error=\"{}\"", canaries.canary());
            response.header("www-authenticate", challenge).body(Full::<Bytes>::from(text)).unwrap()
        });
        std::future::ready(answer)
    });
    let trace = TraceLayer::new_for_http()
        .make_span_with(DefaultMakeSpan::new().include_headers(true).level(Level::TRACE))
        .on_request(DefaultOnRequest::new().level(Level::TRACE))
        .on_response(DefaultOnResponse::new().level(Level::TRACE));
    let key = watch.canary().parse().unwrap();
    let client = AuthClient::new(trace.layer(server)).header(HeaderName::from_static("x-api-key"), key);
    watch.debug(&client);
    client
}

/// Creates a session, which refreshes twice and signs out.
async fn exercise<R>(watch: &Watch, refresh: R, revoke: impl RevokeService + Debug)
where
    R: RefreshService + Debug,
{
    watch.debug((&refresh, &revoke));
    let session = Session::builder(refresh).tokens(watch.tokens()).revoke(revoke).build().await.unwrap();
    for _ in 0..2 {
        if let Err(error) = session.refresh().await {
            watch.error(&error);
        }
    }
    watch.debug(&session);
    if let Err(error) = session.sign_out().await {
        watch.error(&error);
    }
}

#[tokio::test(start_paused = true)]
async fn no_secret_is_in_traces_or_errors_of_the_http_crates_services() {
    const URL: &str = "https://auth.example.com/auth/refresh";
    let (watch, _capture) = Watch::start();
    let answers: [BuildAnswer; 10] = [
        |secret| {
            Ok((200, format!(r#"{{"access_token":"{secret}","refresh_token":"r{secret}","id_token":"{secret}"}}"#)))
        },
        |secret| Ok((200, format!(r#"{{"access_token":"{secret}\r\n","refresh_token":"{secret}"}}"#))),
        |secret| Ok((200, format!(r#"{{"access_token":"a","refresh_token":["{secret}"]}}"#))),
        |secret| Ok((200, format!(r#"{{"access_token":"{secret}","token_type":"{secret}"}}"#))),
        |secret| Ok((200, format!(r#"{{"access_token":"{secret}"#))),
        |secret| Ok((302, secret.to_owned())),
        |secret| Ok((400, format!(r#"{{"error":"{secret}","error_description":"{secret}"}}"#))),
        |secret| Ok((401, format!(r#"{{"error":"invalid_grant","error_description":"{secret}"}}"#))),
        |secret| Ok((503, secret.to_owned())),
        |_| Err(io::Error::other("reset")),
    ];
    for build_answer in answers {
        let client = || traced_auth(&watch, build_answer);
        for auth in [ClientAuth::basic("app", watch.canary()), ClientAuth::post("app", watch.canary())] {
            watch.debug(&auth);
            let revoke = OAuthRevoke::new(client(), URL, auth.clone()).unwrap();
            exercise(&watch, OAuthRefresh::new(client(), URL, auth.clone()).unwrap(), revoke).await;
            let grant = ClientCredentials::new(client(), URL, auth).unwrap();
            watch.debug(&grant);
            if let Err(error) = grant.request_tokens().await {
                watch.error(&error);
            }
        }
        assert!(watch.has("\"authorization\": Sensitive") && watch.has("\"x-api-key\": Sensitive"));
        watch.check_and_clear();
        let logout = || JsonLogout::new(client(), URL).unwrap().with_access_token();
        exercise(&watch, JsonRefresh::new(client(), URL).unwrap(), logout()).await;
        watch.check_and_clear();
        exercise(&watch, JsonRefresh::new(client(), URL).unwrap().cookie("rt"), logout()).await;
        assert!(watch.has("\"cookie\": Sensitive"));
        watch.check_and_clear();

        let login = JsonLogin::new(client(), URL).unwrap();
        watch.debug(&login);
        let (refresh, _) = script::<_, Tokens, RefreshError>();
        let session = Session::builder(refresh).build().await.unwrap();
        if let Err(error) = login.sign_in(&session, &serde_json::json!({ "password": watch.canary() })).await {
            watch.error(&error);
        }
        watch.check_and_clear();
    }
}

#[tokio::test(start_paused = true)]
async fn no_secret_is_in_traces_of_requests_that_are_held_back_refused_again_or_too_long_to_replay() {
    let (watch, _capture) = Watch::start();
    let mut it = Traced::new(&watch).await;
    it.session.sign_in(Tokens::from_refresh_token(watch.refresh())).await.unwrap();
    let request = tokio::spawn(it.client.clone().oneshot(post("")));
    it.auth.next().await.answer(Ok(Tokens::from_access_token(watch.access())));
    it.api.next().await.reply(401).await;
    it.auth.next().await.answer(Ok(watch.tokens()));
    it.api.next().await.reply(401).await;
    watch.response(&request.await.unwrap().unwrap());
    assert!(watch.has("trigger=\"acquire\"") && watch.has("replay_refused"));

    let long = Request::post(ORIGIN).extension(ReplayLimit(1)).body(Full::from("two")).unwrap();
    let request = tokio::spawn(it.client.clone().oneshot(long));
    it.api.next().await.reply(401).await;
    watch.response(&request.await.unwrap().unwrap());
    assert!(watch.has("not_replayable"));
    it.auth.next().await.answer(Ok(watch.tokens()));

    // Refused until the session loops.
    for _ in 0..10 {
        let request = tokio::spawn(it.client.clone().oneshot(post("")));
        it.api.next().await.reply(401).await;
        settle().await;
        if !it.auth.is_idle().await {
            it.auth.next().await.answer(Ok(watch.tokens()));
            it.api.next().await.reply(401).await;
        }
        watch.response(&request.await.unwrap().unwrap());
    }
    assert!(watch.has("looping"));
    watch.assert_nothing_leaked();
}

#[tokio::test(start_paused = true)]
async fn no_secret_is_in_an_error_about_invalid_input() {
    let (watch, _capture) = Watch::start();
    for end in ["\r\n", "\0", "é", "\u{7f}"] {
        let bad = format!("{}{end}", watch.canary());
        watch.error(&AccessToken::new(bad.clone()).unwrap_err());
        watch.error(&RefreshToken::new(bad).unwrap_err());
    }
    let password = watch.canary();
    for bad in [
        format!("https://user:{password}@api.example.com"),
        format!("https://api.example.com/{password}"),
        format!("{password}://api.example.com"),
        format!("https://api.example.com:{password}"),
        format!("http://{password}"),
        password.clone(),
    ] {
        watch.error(&Origin::parse(&bad).unwrap_err());
    }
    watch.error(&NotRefreshed::SessionChanged);
    watch.assert_nothing_leaked();
}

#[tokio::test(start_paused = true)]
async fn no_secret_is_in_a_panic() {
    let (watch, _capture) = Watch::start();
    // The whole header value, passed as the scheme.
    let mistaken = format!("Bearer {}", watch.canary());
    assert!(catch_unwind(AssertUnwindSafe(|| AuthRefreshLayer::per_request(origin()).scheme(&mistaken))).is_err());

    // A refresh service, a store and a client that panic.
    let panicking = tower::service_fn(|request: RefreshRequest| async move {
        assert!(request.refresh_token().is_none(), "the refresh service panics");
        Ok::<_, RefreshError>(Tokens::default())
    });
    let store = faulty_store();
    let builder = Session::builder(panicking).tokens(watch.tokens()).store(store.clone());
    let session = builder.build().await.unwrap();
    watch.error(&session.refresh().await.unwrap_err());
    assert!(watch.has("the refresh service panics") && watch.has("the refresh service panicked"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    store.inject(StoreCall::Claim, StoreFault::panic_on_call());
    watch.error(&session.refresh().await.unwrap_err());
    store.clear_faults();
    store.inject(StoreCall::Replace, StoreFault::panic());
    watch.error(&session.sign_in(watch.tokens()).await.unwrap_err());
    assert!(watch.has("the store panics"));
    store.clear_faults();

    let unready = tower::service_fn(|_: Request<tower_auth_refresh::ReplayBody<String>>| async {
        panic!("the client panics");
        #[expect(unreachable_code, reason = "states the type of the response")]
        Ok::<http::Response<String>, RefreshError>(http::Response::default())
    });
    let client = AuthRefreshLayer::new(session.clone(), origin()).layer(unready);
    let request = Request::get(ORIGIN).body(String::new()).unwrap();
    let mut polled = tokio_test::task::spawn(client.oneshot(request));
    for _ in 0..2 {
        assert!(catch_unwind(AssertUnwindSafe(|| polled.poll().is_ready())).is_err());
    }
    assert!(watch.has("the client panics"));
    watch.debug(&session);
    watch.assert_nothing_leaked();
}
