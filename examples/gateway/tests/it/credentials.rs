//! Data that must not cross the gateway: requests of other sites, identity headers, hop-by-hop headers.

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use axum::routing::any;
use http::header::{CACHE_CONTROL, CONNECTION, HOST, LOCATION, ORIGIN, SET_COOKIE};
use http::{HeaderMap, Method, Request, StatusCode, Uri};

use crate::test_gateway::TestGateway;

#[tokio::test]
async fn an_unsafe_request_from_another_origin_is_rejected() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    let own = format!("http://{}", gateway.address);
    let send = async |method: Method, path: &str, headers: &[(&'static str, &str)]| {
        let mut request = Request::builder().method(method).uri(format!("{own}{path}"));
        request = request.header("cookie", browser.cookie.clone().unwrap());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        browser.fetch(request.body(Body::empty()).unwrap()).await
    };
    let refused: &[&[(&str, &str)]] = &[
        &[],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
        &[("origin", "https://evil.example"), ("x-requested-with", "x")],
        &[("sec-fetch-site", "same-origin"), ("origin", "https://evil.example")],
    ];
    for headers in refused {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::from_bytes(b"FROB").unwrap()] {
            send(method, "/api/act", headers).await.assert_problem(403, "cross-origin");
        }
        for path in ["/login", "/logout", "/anything"] {
            send(Method::POST, path, headers).await.assert_problem(403, "cross-origin");
        }
    }
    assert_eq!(gateway.kit.counters().api, 0);
    let passed: &[&[(&str, &str)]] =
        &[&[("sec-fetch-site", "same-origin")], &[("origin", &own)], &[("x-requested-with", "curl")]];
    for headers in passed {
        assert_eq!(send(Method::POST, "/api/act", headers).await.status, 200, "{headers:?}");
    }
    // Safe methods change nothing.
    assert_eq!(send(Method::GET, "/api/look", &[("sec-fetch-site", "cross-site")]).await.status, 200);
}

#[tokio::test]
async fn identity_headers_of_a_client_never_reach_the_upstream() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    let request = browser
        .request(Method::GET, "/api/headers")
        .header("authorization", "Bearer stolen")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-forwarded-user", "root")
        .header("X_Forwarded_User", "root")
        .header("forwarded", "for=6.6.6.6")
        .header("x-real-ip", "6.6.6.6")
        .header("x-auth-request-email", "root@example.com")
        .header(CONNECTION, "x-for-this-hop, keep-alive")
        .header("x-for-this-hop", "1")
        .header("te", "trailers")
        .header("via", "1.0 fred")
        .header("proxy-authorization", "Basic eDp5")
        .header("accept-language", "fr");
    let response = browser.fetch(request.body(Body::empty()).unwrap()).await.json();
    // Only the gateway's token arrived.
    assert_eq!(response["user"], "ada");
    let seen = response["headers"].as_object().unwrap();
    let names: Vec<_> = seen.keys().map(String::as_str).collect();
    let expected = [
        "accept-language",
        "host",
        "sec-fetch-site",
        "traceparent",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-request-id",
    ];
    assert_eq!(names, expected);
    // RFC 9110 §7.6.3
    assert_eq!(seen["via"], serde_json::json!(["1.0 fred", "1.1 gateway"]));
    assert_eq!(seen["x-forwarded-for"][0], "127.0.0.1");
    assert_eq!(seen["x-forwarded-host"][0], gateway.address.to_string());
    assert_eq!(seen["x-forwarded-proto"][0], "http");
    assert_eq!(seen[HOST.as_str()][0], gateway.kit.origin().strip_prefix("http://").unwrap());
    assert_eq!(gateway.kit.counters().unauthorized(), 0);
}

#[tokio::test]
async fn a_client_cannot_choose_x_forwarded_host() {
    let gateway = TestGateway::start_behind_tls().await;
    let browser = gateway.browser("ada").await;
    let request = browser.request(Method::GET, "/api/headers").header(HOST, "evil.example");
    let response = browser.fetch(request.body(Body::empty()).unwrap()).await.json();
    assert_eq!(response["headers"]["x-forwarded-host"], serde_json::json!(["app.example.com"]));
    assert_eq!(response["headers"]["x-forwarded-proto"], serde_json::json!(["https"]));
}

/// The upstream's CORS policy is for requests with a token. It must not allow requests with the gateway's cookie.
#[tokio::test]
async fn cors_headers_of_the_upstream_are_removed() {
    async fn response() -> impl IntoResponse {
        [
            ("access-control-allow-origin", "https://evil.example"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-headers", "x-requested-with"),
            ("vary", "origin"),
        ]
    }
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(response)), |_| {}).await;
    let browser = gateway.browser("ada").await;
    for method in [Method::GET, Method::OPTIONS] {
        let request = browser.request(method, "/api/x").header(ORIGIN, "https://evil.example");
        let response = browser.fetch(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status, 200);
        let names: Vec<_> =
            response.headers.keys().filter(|name| name.as_str().starts_with("access-control-")).collect();
        assert!(names.is_empty(), "{names:?}");
        assert_eq!(response.headers["vary"], "origin");
    }
}

/// A cache in front of the gateway sees no `Authorization`, which would make the response private (RFC 9111 §3.5).
#[tokio::test]
async fn a_response_is_private_unless_the_upstream_decides() {
    async fn response(uri: Uri) -> HeaderMap {
        let sent = uri.query().unwrap_or_default().replace('_', " ").replace('\'', "\"");
        let sent = sent.split('&').filter(|sent| !sent.is_empty());
        sent.map(|sent| (CACHE_CONTROL, sent.parse().unwrap())).collect()
    }
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(response)), |_| {}).await;
    let browser = gateway.browser("ada").await;
    for (sent, expected) in [
        ("", &["private"][..]),
        ("max-age=60", &["max-age=60", "private"]),
        ("private", &["private"]),
        ("no-store", &["no-store"]),
        ("no-cache,_Private='x'", &["no-cache, Private=\"x\"", "private"]),
        ("max-age=60&public", &["max-age=60", "public"]),
        ("S-MaxAge=60", &["S-MaxAge=60"]),
        ("max-age=0,_must-revalidate", &["max-age=0, must-revalidate"]),
    ] {
        let response = browser.get(&format!("/api/x?{sent}")).await;
        let received: Vec<_> = response.headers.get_all(CACHE_CONTROL).iter().collect();
        assert_eq!(received, expected, "{sent}");
    }
}

#[tokio::test]
async fn hop_by_hop_headers_of_the_upstream_are_removed_and_its_cookies_pass() {
    async fn response(request_headers: HeaderMap) -> impl IntoResponse {
        assert!(!request_headers.contains_key(ORIGIN));
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("set-cookie", "theme=dark; Path=/"),
            ("set-cookie", "session=fixation; Path=/"),
            ("set-cookie", "lang=fr"),
            ("connection", "x-for-this-hop"),
            ("x-for-this-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authenticate", "Basic"),
            ("alt-svc", "h3=\":443\""),
            ("x-kept", "1"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        (headers, "fine")
    }
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(response)), |_| {}).await;
    let browser = gateway.browser("ada").await;
    let response = browser.get("/api/cookies").await;
    let cookies: Vec<_> = response.headers.get_all(SET_COOKIE).iter().collect();
    assert_eq!(cookies, ["theme=dark; Path=/", "lang=fr"]);
    for gone in ["connection", "x-for-this-hop", "keep-alive", "proxy-authenticate", "alt-svc"] {
        assert!(!response.headers.contains_key(gone), "{gone}");
    }
    assert_eq!(response.headers["x-kept"], "1");
    assert_eq!(&response.body[..], b"fine");
}

/// A browser has no token for the upstream, and may be unable to reach it.
#[tokio::test]
async fn a_redirect_within_the_api_leads_to_the_gateway() {
    async fn response(uri: Uri, headers: HeaderMap) -> impl IntoResponse {
        let upstream = format!("http://{}", headers[HOST].to_str().unwrap());
        let target = uri.query().unwrap().replace("UPSTREAM", &upstream);
        (StatusCode::FOUND, [(LOCATION, target)])
    }
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(response)), |_| {}).await;
    let browser = gateway.browser("ada").await;
    for (sent, expected) in [
        ("UPSTREAM/api/notes/?page=2", "/api/notes/?page=2"),
        ("UPSTREAM/api", "/api"),
        // Other URLs are not rewritten.
        ("https://example.com/api/notes", "https://example.com/api/notes"),
        ("UPSTREAM.example.com/api/notes", "UPSTREAM.example.com/api/notes"),
        ("UPSTREAM/login", "UPSTREAM/login"),
        ("UPSTREAM/apis", "UPSTREAM/apis"),
        ("/api/notes/", "/api/notes/"),
        ("notes/", "notes/"),
    ] {
        let response = browser.get(&format!("/api/x?{sent}")).await;
        let received = response.headers[LOCATION].to_str().unwrap();
        let upstream = gateway.upstream.as_str();
        assert_eq!(received, expected.replace("UPSTREAM", upstream), "{sent}");
    }
}

#[tokio::test]
async fn a_path_that_leads_out_of_the_api_is_rejected() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    for path in ["/api/../auth/refresh", "/api/%2e%2e/auth/refresh", "/api/x/..%2f..%2fauth", "/api/./x"] {
        browser.get(path).await.assert_problem(400, "malformed-request");
    }
    assert_eq!(browser.get("/api/a%20b/c?d=%2e%2e/").await.json()["query"], "d=%2e%2e/");
    browser.get("/apis").await.assert_problem(404, "not-found");
    assert_eq!(gateway.kit.counters().requests, 2, "the login and one call");
}
