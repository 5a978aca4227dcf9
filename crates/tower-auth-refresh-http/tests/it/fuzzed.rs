//! The checks of the fuzz targets, each for one input: no panic, and no token that no header may hold.

use std::convert::Infallible;
use std::future::ready;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, SET_COOKIE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, ServiceExt};
use tower_auth_refresh::challenge::ResponseHead;
use tower_auth_refresh::inspect::InspectBodyLayer;
use tower_auth_refresh::{
    AccessToken, AuthRefreshLayer, ChallengePolicy, Origin, RefreshError, RefreshErrorKind, RefreshReport,
    RefreshRequest, RefreshToken, ReplayBody, Session, Tokens,
};
use tower_auth_refresh_http::{
    AuthClient, AuthorizationServer, ClientAuth, JsonLogin, JsonLogout, JsonRefresh, OAuthRefresh, TokenFields,
};

const URL: &str = "https://app.example.com/auth/refresh";

/// Two bytes that make a status, one that selects a `Content-Encoding`, and a body, read by every refresh call.
pub(crate) fn answer(data: &[u8]) {
    let [status, more, encoding, body @ ..] = data else { return };
    let Ok(status) = StatusCode::from_u16(100 + u16::from(*status) * 4 + u16::from(*more)) else { return };
    let mut headers = HeaderMap::new();
    let coding = [(0, "gzip"), (16, "deflate"), (32, "gzip, deflate"), (48, "br")];
    if let Some((_, coding)) = coding.into_iter().find(|(byte, _)| byte == encoding) {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
    }
    let client = || answering(status, headers.clone(), body);
    let nested = TokenFields::camel_case().access_token("data.0.accessToken").expires_at("/data/0/a~1b");
    let auth = ClientAuth::public("app");
    check(status, &now(JsonRefresh::new(client(), URL).unwrap().refresh(&old())));
    check(status, &now(JsonRefresh::new(client(), URL).unwrap().fields(nested).refresh(&old())));
    let held = [("id_token".to_owned(), "e30.eyJzdWIiOiJhZGEifQ.c2ln".into())];
    let held = old().with_extra(held.into_iter().collect());
    check(status, &now(OAuthRefresh::new(client(), URL, auth).unwrap().refresh(&held)));
    let _ = now(JsonLogin::new(client(), URL).unwrap().request_tokens("credentials"));
    let _ = now(JsonLogout::new(client(), URL).unwrap().revoke(&old()));
    check(status, &now(JsonRefresh::new(client(), URL).unwrap().cookie("rt").refresh(&old())));
}

/// A `Retry-After` of any bytes, with a 429 and a 503.
pub(crate) fn retry_after(data: &[u8]) {
    let headers = headers(&RETRY_AFTER, data);
    for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE] {
        let client = answering(status, headers.clone(), b"");
        let error = now(JsonRefresh::new(client, URL).unwrap().refresh(&old())).unwrap_err();
        match error.kind() {
            RefreshErrorKind::Unavailable => assert!(status == 429 || error.retry_after().is_some()),
            kind => assert_eq!((status.as_u16(), kind), (503, RefreshErrorKind::InDoubt)),
        }
    }
}

/// A reset time of a rate limit, of any bytes, under each of its names.
pub(crate) fn rate_limit(data: &[u8]) {
    for name in ["x-rate-limit-reset", "x-ratelimit-reset", "ratelimit-reset"] {
        let headers = headers(&HeaderName::from_static(name), data);
        let client = answering(StatusCode::TOO_MANY_REQUESTS, headers, b"");
        let error = now(JsonRefresh::new(client, URL).unwrap().refresh(&old())).unwrap_err();
        assert_eq!(error.kind(), RefreshErrorKind::Unavailable);
    }
}

/// `WWW-Authenticate` of any bytes, a line each: in an API's 401 and 403, and in the refresh call's 401.
pub(crate) fn challenge(data: &[u8]) {
    let headers = headers(&WWW_AUTHENTICATE, data);
    let lenient = ChallengePolicy::bearer().matches(&ResponseHead::new(StatusCode::UNAUTHORIZED, &headers));
    let strict = ChallengePolicy::strict_bearer().matches(&ResponseHead::new(StatusCode::UNAUTHORIZED, &headers));
    assert!(lenient || !strict, "only strict recognised the challenge");
    assert!(!ChallengePolicy::bearer().matches(&ResponseHead::new(StatusCode::OK, &headers)));
    let _ = ChallengePolicy::grpc().matches(&ResponseHead::new(StatusCode::OK, &headers));
    let client = answering(StatusCode::UNAUTHORIZED, headers.clone(), b"{}");
    check(StatusCode::UNAUTHORIZED, &now(JsonRefresh::new(client, URL).unwrap().refresh(&old())));
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        let report = reported(status, &headers);
        assert!(report.is_some() || status == StatusCode::FORBIDDEN, "a 401 without a report");
        // What a report shows is bounded.
        assert!(report.is_none_or(|report| format!("{report} {report:?}").len() < 1024));
    }
}

/// The report on an API's answer, in a session whose refresh call fails.
fn reported(status: StatusCode, headers: &HeaderMap) -> Option<RefreshReport> {
    static SESSION: LazyLock<Session> = LazyLock::new(|| {
        let refresh = tower::service_fn(|_: RefreshRequest| ready(Err::<Tokens, _>(RefreshError::misconfigured("no"))));
        RUNTIME.block_on(Session::builder(refresh).tokens(old()).build()).unwrap()
    });
    let headers = headers.clone();
    let api = tower::service_fn(move |_: Request<ReplayBody<Full<Bytes>>>| {
        let mut response = Response::new(Full::<Bytes>::default());
        *response.status_mut() = status;
        *response.headers_mut() = headers.clone();
        ready(Ok::<_, Infallible>(response))
    });
    let client = AuthRefreshLayer::new(SESSION.clone(), Origin::parse("https://app.example.com").unwrap()).layer(api);
    let request = Request::get(URL).body(Full::default()).unwrap();
    RUNTIME.block_on(client.oneshot(request)).unwrap().extensions().get().cloned()
}

/// The metadata of an authorization server, of any bytes.
pub(crate) fn metadata(data: &[u8]) {
    let client = answering(StatusCode::OK, HeaderMap::new(), data);
    let Ok(server) = now(AuthorizationServer::discover(&client, "https://auth.example.com/a")) else { return };
    assert_eq!(server.issuer(), "https://auth.example.com/a");
    for endpoint in [Some(server.token_endpoint()), server.revocation_endpoint()].into_iter().flatten() {
        assert!(JsonRefresh::new(client.clone(), endpoint).is_ok(), "no token may be sent there");
    }
}

/// Cookies that were kept with a session's tokens, as a store returned them: any JSON.
pub(crate) fn kept_cookies(data: &[u8]) {
    let Ok(kept) = serde_json::from_slice::<Value>(data) else { return };
    let members = ["refresh_cookie", "kept_cookies"].map(|name| (name.to_owned(), kept.clone()));
    let client = answering(StatusCode::OK, HeaderMap::new(), br#"{"access_token":"a2"}"#);
    let refresh = JsonRefresh::new(client, URL).unwrap().cookie("rt");
    let refresh = refresh.header_from_cookie(HeaderName::from_static("x-csrf-token"), "csrf");
    check(StatusCode::OK, &now(refresh.refresh(&old().with_extra(members.into_iter().collect()))));
}

/// A URL of any characters: one that a token may be sent to is `https`, or on loopback.
pub(crate) fn url(data: &[u8]) {
    let Ok(url) = std::str::from_utf8(data) else { return };
    let is_safe = |origin: &Origin| origin.to_string().starts_with("https://") || origin.is_loopback();
    assert!(Origin::parse(url).as_ref().map_or(true, is_safe));
    let client = answering(StatusCode::OK, HeaderMap::new(), b"");
    if JsonRefresh::new(client, url).is_ok() {
        let uri: Uri = url.parse().unwrap();
        let origin = format!("{}://{}", uri.scheme_str().unwrap(), uri.authority().unwrap());
        assert!(Origin::parse(&origin).as_ref().map_or(true, is_safe), "{url}");
    }
}

/// A body in frames of the size of its first byte, with a look into it: the caller gets the same bytes.
pub(crate) fn inspected(data: &[u8]) {
    let [size, body @ ..] = data else { return };
    let frames: Vec<_> = body.chunks(usize::from(*size) + 1).map(Bytes::copy_from_slice).collect();
    let api = tower::service_fn(move |_: Request<()>| {
        let frames = frames.clone().into_iter().map(|data| Ok::<_, Infallible>(Frame::data(data)));
        let body = StreamBody::new(futures_util::stream::iter(frames));
        ready(Response::builder().header(CONTENT_TYPE, "application/json").body(body))
    });
    let layer = InspectBodyLayer::json(|_, body| body["expired"] == true).limit(512);
    let response = RUNTIME.block_on(layer.layer(api).oneshot(Request::new(()))).unwrap();
    assert_eq!(RUNTIME.block_on(response.into_body().collect()).unwrap().to_bytes(), body);
}

/// `Set-Cookie` of any bytes, a line each. The cookie that is taken is presented again.
pub(crate) fn cookie(data: &[u8]) {
    let client = answering(StatusCode::OK, headers(&SET_COOKIE, data), br#"{"access_token":"a2"}"#);
    let refresh = JsonRefresh::new(client, URL).unwrap().cookie("rt");
    let result = now(refresh.refresh(&old()));
    check(StatusCode::OK, &result);
    let Ok(tokens) = result else { return };
    if let Some(token) = tokens.refresh_token() {
        let token = token.expose_secret().as_bytes();
        assert!(data.windows(token.len()).any(|window| window == token), "the value was changed");
        assert!(!token.contains(&b';'));
        // A cookie that was accepted from this endpoint may be sent to it.
        let again = now(refresh.refresh(&tokens));
        let misconfigured = |error: &RefreshError| error.kind() == RefreshErrorKind::Misconfigured;
        assert!(!again.as_ref().is_err_and(misconfigured), "{again:?}");
    }
}

fn check(status: StatusCode, result: &Result<Tokens, RefreshError>) {
    match result {
        Ok(tokens) => {
            assert!(status.is_success());
            let access = tokens.access_token().expect("a success has one").expose_secret();
            assert!(!access.is_empty() && access.bytes().all(|byte| byte.is_ascii_graphic()));
            if let Some(token) = tokens.refresh_token() {
                let token = token.expose_secret();
                assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '));
            }
        }
        Err(error) if error.kind() == RefreshErrorKind::Rejected => {
            assert!(status.is_success() || status.is_client_error(), "{status} ended the session");
        }
        Err(_) => {}
    }
}

/// One header per line that is a valid header value.
fn headers(name: &HeaderName, data: &[u8]) -> HeaderMap {
    let values = data.split(|byte| *byte == b'\n').take(16);
    values.filter_map(|value| Some((name.clone(), HeaderValue::from_bytes(value).ok()?))).collect()
}

fn answering(status: StatusCode, headers: HeaderMap, body: &[u8]) -> AuthClient {
    let body = Bytes::copy_from_slice(body);
    AuthClient::new(tower::service_fn(move |_: Request<Full<Bytes>>| {
        let mut response = Response::new(Full::new(body.clone()));
        *response.status_mut() = status;
        *response.headers_mut() = headers.clone();
        ready(Ok::<_, Infallible>(response))
    }))
}

fn old() -> Tokens {
    Tokens::new(AccessToken::new("old-access").unwrap(), RefreshToken::new("old-refresh").unwrap())
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().enable_time().build().unwrap());

/// Returns the output of a call whose client answers at once.
fn now<F: Future>(call: F) -> F::Output {
    let _guard = RUNTIME.enter();
    match std::pin::pin!(call).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the client answers at once"),
    }
}
