//! The code flow, from the authorization URL to the page that the browser shows last.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower_auth_refresh::{Session, SessionState};
use tower_auth_refresh_http::{
    AuthClient, AuthorizationServer, BrowserSignIn, ClientAuth, OAuthRefresh, PendingBrowserSignIn, SignInError,
    SignInErrorKind, SignedIn, TokenFields,
};
use tower_auth_refresh_testkit::TestServer;

use super::{ISSUER, discovered, kind, metadata, tokens};
use crate::support::{Scripted, answer, pairs, refresh};

async fn sign_in(scripted: &Scripted) -> BrowserSignIn {
    BrowserSignIn::new(scripted.client(), &discovered(metadata()).await, ClientAuth::public("app")).unwrap()
}

/// The parameters of the authorization request.
pub(super) fn query(pending: &PendingBrowserSignIn) -> HashMap<String, String> {
    let (_, query) = pending.url().split_once('?').unwrap();
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// The browser: sends bytes to the redirect URI's port, and reads the answer to its end.
async fn send(authority: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(authority).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut page = Vec::new();
    // A server that has seen enough resets the connection.
    let _ = stream.read_to_end(&mut page).await;
    String::from_utf8(page).unwrap()
}

pub(super) async fn open(url: &str) -> String {
    let (authority, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    send(authority, format!("GET /{path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n").as_bytes()).await
}

/// A sign-in under way, and its redirect URI, authority and state.
struct Waiting {
    redirect_uri: String,
    authority: String,
    state: String,
    finishing: JoinHandle<Result<SignedIn, SignInError>>,
}

impl Waiting {
    async fn on(sign_in: &BrowserSignIn) -> Self {
        let pending = sign_in.begin().await.unwrap();
        let redirect_uri = pending.redirect_uri().to_owned();
        let authority = redirect_uri.trim_start_matches("http://").split('/').next().unwrap().to_owned();
        let state = query(&pending)["state"].clone();
        Self { redirect_uri, authority, state, finishing: tokio::spawn(pending.finish()) }
    }

    /// Redirects the browser with these parameters and the right state.
    async fn redirect(&self, params: &str) -> String {
        open(&format!("{}?{params}&state={}", self.redirect_uri, self.state)).await
    }

    async fn end(self) -> Result<SignedIn, SignInError> {
        self.finishing.await.unwrap()
    }
}

#[tokio::test]
async fn a_user_signs_in_and_the_session_refreshes() {
    let kit = TestServer::start().await.unwrap();
    let http = AuthClient::new(Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>());
    let server = AuthorizationServer::discover(&http, &kit.origin()).await.unwrap();
    let app = ClientAuth::public("app");
    let pending = BrowserSignIn::new(http.clone(), &server, app.clone()).unwrap().begin().await.unwrap();
    let (url, redirect_uri) = (pending.url().to_owned(), pending.redirect_uri().to_owned());
    let finishing = tokio::spawn(pending.finish());

    let redirect = open(&url).await;
    let location = redirect.lines().find_map(|line| line.strip_prefix("location: ")).unwrap();
    let page = open(location).await;
    assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("<h1>You are signed in</h1>"), "{page}");
    for header in ["cache-control: no-store", "referrer-policy: no-referrer", "content-security-policy: default-src"] {
        assert!(page.contains(header), "{header}: {page}");
    }
    assert!(!page.contains("src=") && !page.contains("href="), "{page}");
    let signed_in = finishing.await.unwrap().unwrap();
    assert_eq!(signed_in.subject(), None);

    // The port is closed.
    let authority = redirect_uri.trim_start_matches("http://").split('/').next().unwrap();
    assert_eq!(TcpStream::connect(authority).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);

    let grant = OAuthRefresh::new(http, server.token_endpoint(), app).unwrap();
    let session = Session::builder(grant).build().await.unwrap();
    session.sign_in(signed_in.tokens).await.unwrap();
    session.refresh().await.unwrap();
    assert_eq!((session.state(), kit.counters().granted), (SessionState::Active, 1));
}

#[tokio::test]
async fn the_authorization_request_has_all_parameters_and_the_code_is_exchanged_with_the_verifier() {
    let scripted = Scripted::with([tokens()]);
    let sign_in = sign_in(&scripted).await.scope("notes offline_access").resource("https://a.example");
    let sign_in = sign_in.resource("https://b.example").param("audience", "https://api.example");
    let pending = sign_in.begin().await.unwrap();
    let sent = query(&pending);
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "app"),
        ("redirect_uri", pending.redirect_uri()),
        ("scope", "notes offline_access"),
        ("code_challenge_method", "S256"),
        ("audience", "https://api.example"),
    ] {
        assert_eq!(sent[name], value, "{name}");
    }
    assert!(pending.url().contains("resource=https%3A%2F%2Fa.example&resource=https%3A%2F%2Fb.example"));
    assert!(!sent.contains_key("nonce"), "only with openid");
    // 128 bits and 256 bits.
    assert!(sent["state"].len() >= 22 && sent["code_challenge"].len() == 43);

    let uri = format!("{}?code=c%2F1&state={}", pending.redirect_uri(), sent["state"]);
    let redirect_uri = pending.redirect_uri().to_owned();
    let finishing = tokio::spawn(pending.finish());
    open(&uri).await;
    assert_eq!(refresh(&finishing.await.unwrap().unwrap().tokens), Some("r1"));
    let form = scripted.only().form();
    let verifier = form.iter().find(|(name, _)| name == "code_verifier").unwrap().1.clone();
    let expected = [
        ("grant_type", "authorization_code"),
        ("code", "c/1"),
        ("redirect_uri", &redirect_uri),
        ("code_verifier", &verifier),
        ("resource", "https://a.example"),
        ("resource", "https://b.example"),
        ("client_id", "app"),
    ];
    assert_eq!(form, pairs(&expected));
}

#[tokio::test]
async fn two_sign_ins_share_neither_port_nor_state_nor_challenge() {
    let sign_in = sign_in(&Scripted::default()).await;
    let (one, two) = (sign_in.begin().await.unwrap(), sign_in.begin().await.unwrap());
    assert_ne!(one.redirect_uri(), two.redirect_uri());
    for name in ["state", "code_challenge"] {
        assert_ne!(query(&one)[name], query(&two)[name], "{name}");
    }
    assert!(!format!("{one:?}").contains(&query(&one)["state"]));
}

#[tokio::test]
async fn requests_that_are_not_the_servers_answer_change_nothing() {
    let waiting = Waiting::on(&sign_in(&Scripted::with([tokens()])).await).await;
    let (uri, state) = (&waiting.redirect_uri, &waiting.state);
    let get = |path: String| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    for (request, status) in [
        (get("/callback?code=evil&state=guessed".to_owned()), "400"),
        (get("/callback?code=evil".to_owned()), "400"),
        (get("/callback".to_owned()), "400"),
        (get(format!("/callback?state={state}")), "400"),
        (get(format!("/callback?state={state}&code=a&error=b")), "400"),
        (get(format!("/callback?state={state}&code=a&code=b")), "400"),
        (get(format!("/callback?state={state}&state={state}&code=a")), "400"),
        (get("/favicon.ico".to_owned()), "404"),
        (get("/".to_owned()), "404"),
        (get(format!("/other?code=evil&state={state}")), "404"),
        (format!("POST /callback?code=evil&state={state} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"), "405"),
        ("\u{0}\u{1}garbage\r\n\r\n".to_owned(), "400"),
        (get(format!("/callback?code={}", "a".repeat(128 * 1024))), ""),
    ] {
        let page = send(&waiting.authority, request.as_bytes()).await;
        assert!(status.is_empty() || page.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {page}");
        assert!(!page.contains("evil") && !page.contains("200 OK"), "{page}");
        assert_eq!(page.contains("allow: GET"), status == "405", "{page}");
    }
    assert!(!waiting.finishing.is_finished());
    assert!(waiting.redirect("code=c1").await.contains("You are signed in"));
    assert!(uri.ends_with("/callback"));
    waiting.end().await.unwrap();
}

#[tokio::test]
async fn the_cookies_of_other_programs_on_loopback_do_not_keep_the_browser_out() {
    let waiting = Waiting::on(&sign_in(&Scripted::with([tokens()])).await).await;
    let cookies = format!("cookie: other={}\r\n", "a".repeat(4_000)).repeat(12);
    let path = format!("/callback?code=c1&state={}", waiting.state);
    let page = send(&waiting.authority, format!("GET {path} HTTP/1.1\r\nhost: a\r\n{cookies}\r\n").as_bytes()).await;
    assert!(page.contains("You are signed in"), "{page}");
    waiting.end().await.unwrap();
}

#[tokio::test]
async fn idle_connections_do_not_keep_the_browser_out() {
    let waiting = Waiting::on(&sign_in(&Scripted::with([tokens()])).await).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(&waiting.authority).await.unwrap();
        stream.write_all(b"GET /callback?").await.unwrap();
        idle.push(stream);
    }
    assert!(waiting.redirect("code=c1").await.contains("You are signed in"));
    waiting.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_whole_request_is_closed() {
    let waiting = Waiting::on(&sign_in(&Scripted::default()).await.timeout(Duration::from_secs(60))).await;
    let started = tokio::time::Instant::now();
    send(&waiting.authority, b"GET /callback?code=").await;
    assert!(started.elapsed() <= Duration::from_secs(30));
    assert!(!waiting.finishing.is_finished());
}

#[tokio::test]
async fn a_redirect_of_another_server_ends_the_sign_in_and_its_code_goes_nowhere() {
    let mut announcing = metadata();
    announcing["authorization_response_iss_parameter_supported"] = json!(true);
    let other = "code=c1&iss=https%3A%2F%2Fevil.example";
    let twice = format!("code=c1&iss={ISSUER}&iss={ISSUER}");
    for (metadata, params) in [
        (metadata(), other),
        (metadata(), "error=access_denied&iss=https%3A%2F%2Fevil.example"),
        (metadata(), "code=c1&iss=https%3A%2F%2Fauth.example.com%2F"),
        (metadata(), "code=c1&iss="),
        (metadata(), &twice),
        (announcing.clone(), other),
        (announcing.clone(), "code=c1"),
    ] {
        let scripted = Scripted::with([tokens()]);
        let server = discovered(metadata).await;
        let sign_in = BrowserSignIn::new(scripted.client(), &server, ClientAuth::public("app")).unwrap();
        let waiting = Waiting::on(&sign_in).await;
        let page = waiting.redirect(params).await;
        assert!(page.contains("<h1>The sign-in failed</h1>") && !page.contains("evil"), "{page}");
        assert_eq!(kind(waiting.end().await), SignInErrorKind::WrongIssuer, "{params}");
        assert_eq!(scripted.requests().len(), 0);
    }
    let waiting = Waiting::on(&sign_in(&Scripted::with([tokens()])).await).await;
    waiting.redirect("code=c1&iss=https%3A%2F%2Fauth.example.com").await;
    waiting.end().await.unwrap();
}

#[tokio::test]
async fn an_error_of_the_authorization_endpoint_is_named() {
    for (error, expected, code) in [
        ("access_denied", SignInErrorKind::Denied, Some("access_denied")),
        ("invalid_scope", SignInErrorKind::Refused, Some("invalid_scope")),
        ("login_required", SignInErrorKind::Refused, Some("login_required")),
        ("%3Cscript%3E", SignInErrorKind::Refused, None),
    ] {
        let scripted = Scripted::default();
        let waiting = Waiting::on(&sign_in(&scripted).await).await;
        let page = waiting.redirect(&format!("error={error}&error_description=%3Cscript%3Eevil")).await;
        assert!(page.contains("<h1>The sign-in failed</h1>") && !page.contains("evil"), "{page}");
        let failure = waiting.end().await.unwrap_err();
        assert_eq!((failure.kind(), failure.code()), (expected, code));
        assert!(!format!("{failure} {failure:?}").contains("script"));
    }
}

#[tokio::test]
async fn a_code_that_was_used_before_is_rejected_by_the_server() {
    let scripted = Scripted::with([answer(400, r#"{"error":"invalid_grant"}"#)]);
    let waiting = Waiting::on(&sign_in(&scripted).await).await;
    assert!(waiting.redirect("code=replayed").await.contains("<h1>The sign-in failed</h1>"));
    let failure = waiting.end().await.unwrap_err();
    assert_eq!((failure.kind(), failure.code()), (SignInErrorKind::Server, Some("invalid_grant")));
    let cause = failure.server_error().unwrap();
    assert!(cause.is_rejected());
    assert_eq!(cause.endpoint(), Some("https://auth.example.com/token"));
}

#[tokio::test]
async fn the_port_is_closed_while_the_code_is_exchanged_and_the_page_waits_for_the_outcome() {
    let (asked, asking) = oneshot::channel::<()>();
    let (answering, gate) = oneshot::channel::<()>();
    let once = Arc::new(Mutex::new(Some((asked, gate))));
    let held = tower::service_fn(move |_: http::Request<Full<bytes::Bytes>>| {
        let (asked, gate) = once.lock().unwrap().take().unwrap();
        async move {
            asked.send(()).unwrap();
            let _ = gate.await;
            let body = json!({"access_token": "a1", "refresh_token": "r1"}).to_string();
            Ok::<_, tower::BoxError>(http::Response::new(Full::new(bytes::Bytes::from(body))))
        }
    });
    let sign_in = BrowserSignIn::new(AuthClient::new(held), &discovered(metadata()).await, ClientAuth::public("app"));
    let waiting = Waiting::on(&sign_in.unwrap()).await;
    let uri = format!("{}?code=c1&state={}", waiting.redirect_uri, waiting.state);
    let first = tokio::spawn(async move { open(&uri).await });
    asking.await.unwrap();
    assert_eq!(TcpStream::connect(&waiting.authority).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(!first.is_finished());
    answering.send(()).unwrap();
    assert!(first.await.unwrap().contains("You are signed in"));
    waiting.end().await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_a_typed_error() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://127.0.0.1:{}/cb", other.local_addr().unwrap().port());
    let sign_in = sign_in(&Scripted::with([tokens()])).await.redirect_uri(&uri).unwrap();
    assert_eq!(sign_in.begin().await.unwrap_err().kind(), SignInErrorKind::PortTaken);
    drop(other);
    let waiting = Waiting::on(&sign_in).await;
    assert_eq!(waiting.redirect_uri, uri);
    assert_eq!(sign_in.begin().await.unwrap_err().kind(), SignInErrorKind::PortTaken);
    waiting.redirect("code=c1").await;
    waiting.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_closed_browser_times_out() {
    let pending = sign_in(&Scripted::default()).await.timeout(Duration::from_secs(90)).begin().await.unwrap();
    let started = tokio::time::Instant::now();
    assert_eq!(kind(pending.finish().await), SignInErrorKind::TimedOut);
    assert_eq!(started.elapsed().as_secs(), 90);
}

#[tokio::test(start_paused = true)]
async fn the_browser_is_waited_for_at_most_a_day() {
    let sign_in = sign_in(&Scripted::default()).await.timeout(Duration::MAX);
    let started = tokio::time::Instant::now();
    assert_eq!(kind(sign_in.begin().await.unwrap().finish().await), SignInErrorKind::TimedOut);
    assert_eq!(started.elapsed().as_secs(), 24 * 60 * 60);
}

#[tokio::test]
async fn a_redirect_uri_is_on_a_loopback_address_or_on_localhost() {
    let sign_in = sign_in(&Scripted::default()).await;
    let localhost = sign_in.clone().redirect_uri("http://localhost/back").unwrap();
    let pending = localhost.begin().await.unwrap();
    assert!(pending.redirect_uri().starts_with("http://localhost:") && pending.redirect_uri().ends_with("/back"));
    assert!(format!("{pending:?}").starts_with(r#"PendingBrowserSignIn { redirect_uri: "http://localhost:"#));
    // A machine may have no such address.
    assert!(sign_in.redirect_uri("http://[::1]:8400/back").is_ok());
}

#[tokio::test]
async fn the_tokens_are_found_where_the_fields_say() {
    let scripted = Scripted::with([answer(200, r#"{"data":{"access":"a9"}}"#)]);
    let fields = TokenFields::default().access_token("data.access");
    let waiting = Waiting::on(&sign_in(&scripted).await.fields(fields)).await;
    waiting.redirect("code=c1").await;
    let signed_in = waiting.end().await.unwrap();
    assert_eq!(signed_in.tokens.access_token().unwrap().expose_secret(), "a9");
    assert!(format!("{signed_in:?}").starts_with("SignedIn { tokens: Tokens {"), "{signed_in:?}");
}

#[tokio::test]
async fn dropping_the_future_closes_the_port() {
    let waiting = Waiting::on(&sign_in(&Scripted::default()).await).await;
    let mut browser = TcpStream::connect(&waiting.authority).await.unwrap();
    waiting.finishing.abort();
    assert!(waiting.finishing.await.unwrap_err().is_cancelled());
    assert!(TcpStream::connect(&waiting.authority).await.is_err());
    let mut byte = [0];
    assert!(matches!(browser.read(&mut byte).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_sign_in_that_cannot_be_made_fails_before_anything_is_sent() {
    let scripted = Scripted::default();
    let new = async |metadata: serde_json::Value, auth| {
        BrowserSignIn::new(scripted.client(), &discovered(metadata).await, auth).map(|_| ())
    };
    let mut without = metadata();
    without.as_object_mut().unwrap().remove("authorization_endpoint");
    let mut plain = metadata();
    plain["authorization_endpoint"] = json!("http://auth.example.com/authorize");
    for result in [
        new(without, ClientAuth::public("app")).await,
        new(plain, ClientAuth::public("app")).await,
        new(metadata(), ClientAuth::none()).await,
        sign_in(&scripted).await.redirect_uri("https://app.example/cb").map(|_| ()),
        sign_in(&scripted).await.redirect_uri("http://127.0.0.1:99999/cb").map(|_| ()),
        sign_in(&scripted).await.redirect_uri("http://a@127.0.0.1/cb").map(|_| ()),
        sign_in(&scripted).await.param("state", "mine").begin().await.map(|_| ()),
        sign_in(&scripted).await.param("code_challenge_method", "plain").begin().await.map(|_| ()),
    ] {
        assert_eq!(result.unwrap_err().kind(), SignInErrorKind::Misconfigured);
    }
    assert_eq!(scripted.requests().len(), 0);
}
