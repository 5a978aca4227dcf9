//! What the fuzz targets check, each for one input: no panic, and no token that can't stand in a header.

use std::convert::Infallible;
use std::future::ready;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, RETRY_AFTER, SET_COOKIE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::runtime::{Builder, Runtime};
use tower_auth_refresh::{AccessToken, ChallengePolicy, RefreshError, RefreshErrorKind, RefreshToken, Tokens};
use tower_auth_refresh_http::{AuthClient, ClientAuth, CookieRefresh, JsonRefresh, OAuthRefresh, TokenFields};

const URL: &str = "https://app.example.com/auth/refresh";

/// Two bytes that make a status, one that says whether there is a `Content-Encoding`, a body: read by all flavours.
pub(crate) fn answer(data: &[u8]) {
    let [status, more, encoding, body @ ..] = data else { return };
    let Ok(status) = StatusCode::from_u16(100 + u16::from(*status) * 4 + u16::from(*more)) else { return };
    let mut headers = HeaderMap::new();
    if encoding.is_multiple_of(16) {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    let client = || answering(status, headers.clone(), body);
    let nested = TokenFields::camel_case().access_token("data.0.accessToken").expires_at("/data/0/a~1b");
    let auth = ClientAuth::public("app");
    check(status, &now(JsonRefresh::new(client(), URL).unwrap().refresh(&old())));
    check(status, &now(JsonRefresh::new(client(), URL).unwrap().fields(nested).refresh(&old())));
    check(status, &now(OAuthRefresh::new(client(), URL, auth).unwrap().refresh(&old())));
    check(status, &now(CookieRefresh::new(client(), URL, "rt").unwrap().refresh(&old())));
}

/// A `Retry-After` of any bytes, with a 429 and a 503.
pub(crate) fn retry_after(data: &[u8]) {
    let headers = headers(&RETRY_AFTER, data);
    for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE] {
        let client = answering(status, headers.clone(), b"");
        let error = now(JsonRefresh::new(client, URL).unwrap().refresh(&old())).unwrap_err();
        match (error.kind(), error.retry_after()) {
            (RefreshErrorKind::Unavailable, Some(delay)) => assert!(delay <= Duration::from_secs(60 * 60)),
            (RefreshErrorKind::Unavailable, None) => assert_eq!(status, 429),
            (kind, _) => assert_eq!((status.as_u16(), kind), (503, RefreshErrorKind::InDoubt)),
        }
    }
}

/// `WWW-Authenticate` of any bytes, a line each: in an API's 401 and in the refresh call's.
pub(crate) fn challenge(data: &[u8]) {
    let headers = headers(&WWW_AUTHENTICATE, data);
    let lenient = ChallengePolicy::bearer().matches(StatusCode::UNAUTHORIZED, &headers);
    let strict = ChallengePolicy::strict_bearer().matches(StatusCode::UNAUTHORIZED, &headers);
    assert!(lenient || !strict, "strict took what lenient didn't");
    assert!(!ChallengePolicy::bearer().matches(StatusCode::OK, &headers));
    let _ = ChallengePolicy::grpc().matches(StatusCode::OK, &headers);
    let client = answering(StatusCode::UNAUTHORIZED, headers, b"{}");
    check(StatusCode::UNAUTHORIZED, &now(JsonRefresh::new(client, URL).unwrap().refresh(&old())));
}

/// `Set-Cookie` of any bytes, a line each. What came of it is presented again.
pub(crate) fn cookie(data: &[u8]) {
    let client = answering(StatusCode::OK, headers(&SET_COOKIE, data), br#"{"access_token":"a2"}"#);
    let refresh = CookieRefresh::new(client, URL, "rt").unwrap();
    let result = now(refresh.refresh(&old()));
    check(StatusCode::OK, &result);
    let Ok(tokens) = result else { return };
    if let Some(token) = tokens.refresh_token() {
        let token = token.expose_secret().as_bytes();
        assert!(data.windows(token.len()).any(|window| window == token), "the value was changed");
        assert!(!token.contains(&b';'));
        // A cookie that was taken for this endpoint may be sent to it.
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
            assert!(status.is_success() || status == 400 || status == 401, "{status} ended the session");
        }
        Err(_) => {}
    }
}

/// One header a line, those that can be headers.
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

/// The output of a call whose client answers at once.
fn now<F: Future>(call: F) -> F::Output {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().enable_time().build().unwrap());
    let _guard = RUNTIME.enter();
    match std::pin::pin!(call).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the client answers at once"),
    }
}
