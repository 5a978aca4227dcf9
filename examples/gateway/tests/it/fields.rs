//! Header values of any bytes (RFC 9110 §5.5): pages, other servers of the host and scripts may set them.

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use axum::routing::any;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, COOKIE, HOST, LOCATION, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use crate::test_gateway::{Browser, TestGateway};

const OTHER_COOKIES: [&[u8]; 5] = ["name=Zoé".as_bytes(), b"name=\xe9", b"\xff=\xfe", b"\xe9", b"a=\"b"];

/// Returns a browser's cookies with another one before or behind its session.
fn beside(session: &Browser, other: &[u8]) -> [HeaderValue; 2] {
    let session = session.cookie.as_ref().unwrap().as_bytes();
    [[other, b"; ", session].concat(), [session, b"; ", other].concat()]
        .map(|cookies| HeaderValue::from_bytes(&cookies).unwrap())
}

async fn send(browser: &Browser, method: Method, path: &str, cookies: &HeaderValue) -> StatusCode {
    let mut request = browser.request(method, path).body(Body::empty()).unwrap();
    request.headers_mut().insert(COOKIE, cookies.clone());
    browser.fetch(request).await.status
}

#[tokio::test]
async fn a_session_is_found_beside_any_other_cookie() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    for cookies in OTHER_COOKIES.iter().flat_map(|other| beside(&browser, other)) {
        assert_eq!(send(&browser, Method::GET, "/api/me", &cookies).await, StatusCode::OK, "{cookies:?}");
    }
    // In a line of its own, as HTTP/2 sends it.
    for other in OTHER_COOKIES {
        let request = browser.request(Method::GET, "/api/me").header(COOKIE, HeaderValue::from_bytes(other).unwrap());
        assert_eq!(browser.fetch(request.body(Body::empty()).unwrap()).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_logout_ends_a_session_beside_any_other_cookie() {
    let gateway = TestGateway::start().await;
    for other in OTHER_COOKIES {
        let browser = gateway.browser("ada").await;
        let [cookies, _] = beside(&browser, other);
        assert_eq!(send(&browser, Method::POST, "/logout", &cookies).await, StatusCode::NO_CONTENT);
        assert_eq!(browser.get("/api/me").await.status, StatusCode::UNAUTHORIZED, "{cookies:?}");
    }
    assert_eq!(gateway.kit.counters().logouts, OTHER_COOKIES.len() as u64);
}

#[tokio::test]
async fn a_login_replaces_a_session_beside_any_other_cookie() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    let [cookies, _] = beside(&browser, OTHER_COOKIES[0]);
    let request = browser.request(Method::POST, "/login").header(CONTENT_TYPE, "application/json");
    let mut request = request.body(r#"{"username":"ada","password":"correct horse"}"#.into()).unwrap();
    request.headers_mut().insert(COOKIE, cookies);
    assert_eq!(browser.fetch(request).await.status, StatusCode::NO_CONTENT);
    assert_eq!(browser.get("/api/me").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(gateway.metric("gateway_sessions").await, 1);
}

#[tokio::test]
async fn the_parameters_of_a_media_type_may_hold_any_bytes() {
    let gateway = TestGateway::start().await;
    let browser = gateway.anonymous();
    for (kinds, status) in [
        (&[&b"application/json; x=\xe9"[..]][..], 204),
        (&[b"\t Application/JSON\t;\xff"], 204),
        (&["application/json\u{a0}".as_bytes()], 415),
        (&[b"application/json", b"text/plain"], 415),
        (&[b"text/plain", b"application/json"], 415),
    ] {
        let mut request = browser.request(Method::POST, "/login");
        for kind in kinds {
            request = request.header(CONTENT_TYPE, HeaderValue::from_bytes(kind).unwrap());
        }
        let body = r#"{"username":"ada","password":"correct horse"}"#;
        assert_eq!(browser.fetch(request.body(body.into()).unwrap()).await.status, status, "{kinds:?}");
    }
}

/// A browser that followed it to the upstream would have no token there.
#[tokio::test]
async fn a_redirect_with_any_bytes_leads_to_the_gateway() {
    async fn redirect(headers: HeaderMap) -> impl IntoResponse {
        let location = [b"http://", headers[HOST].as_bytes(), "/api/café?x=".as_bytes(), b"\xe9"].concat();
        (StatusCode::FOUND, [(LOCATION, HeaderValue::from_bytes(&location).unwrap())])
    }
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(redirect)), |_| {}).await;
    let response = gateway.browser("ada").await.get("/api/x").await;
    assert_eq!(response.headers[LOCATION].as_bytes(), ["/api/café?x=".as_bytes(), b"\xe9"].concat());
}

/// `private` with other white space is a directive that no cache knows.
#[tokio::test]
async fn a_cache_directive_with_any_bytes_decides_nothing() {
    async fn response() -> impl IntoResponse {
        [(CACHE_CONTROL, HeaderValue::from_bytes("max-age=60, private\u{a0}".as_bytes()).unwrap())]
    }
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(response)), |_| {}).await;
    let response = gateway.browser("ada").await.get("/api/x").await;
    assert_eq!(response.headers.get_all(CACHE_CONTROL).iter().next_back().unwrap(), "private");
}

#[tokio::test]
async fn an_origin_with_any_bytes_is_another_origin() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    for origin in [&b"http://\xe9"[..], b"\xff", "http://127.0.0.1\u{a0}".as_bytes()] {
        let request =
            browser.request(Method::POST, "/api/act").header(ORIGIN, HeaderValue::from_bytes(origin).unwrap());
        browser.fetch(request.body(Body::empty()).unwrap()).await.assert_problem(403, "cross-origin");
    }
}
