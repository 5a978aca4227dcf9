//! What must not cross the gateway: other sites' requests, clients' claims, one connection's headers on another.

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use axum::routing::any;
use http::header::{CACHE_CONTROL, CONNECTION, HOST, LOCATION, ORIGIN, SET_COOKIE};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use tower_auth_refresh::Origin;

use crate::support::World;

#[tokio::test]
async fn an_unsafe_request_must_show_that_it_is_of_this_origin() {
    let world = World::start().await;
    let browser = world.browser("ada").await;
    let own = format!("http://{}", world.address);
    let send = async |method: Method, path: &str, said: &[(&'static str, &str)]| {
        let mut request = Request::builder().method(method).uri(format!("{own}{path}"));
        request = request.header("cookie", browser.cookie.clone().unwrap());
        for (name, value) in said {
            request = request.header(*name, *value);
        }
        browser.ask(request.body(Body::empty()).unwrap()).await
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
    for said in refused {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::from_bytes(b"FROB").unwrap()] {
            send(method, "/api/act", said).await.is_problem(403, "cross-origin");
        }
        for path in ["/login", "/logout", "/anything"] {
            send(Method::POST, path, said).await.is_problem(403, "cross-origin");
        }
    }
    assert_eq!(world.kit.counters().api, 0);
    let passed: &[&[(&str, &str)]] =
        &[&[("sec-fetch-site", "same-origin")], &[("origin", &own)], &[("x-requested-with", "curl")]];
    for said in passed {
        assert_eq!(send(Method::POST, "/api/act", said).await.status, 200, "{said:?}");
    }
    // Safe methods change nothing, whoever makes them.
    assert_eq!(send(Method::GET, "/api/look", &[("sec-fetch-site", "cross-site")]).await.status, 200);
}

#[tokio::test]
async fn what_a_client_says_of_itself_never_reaches_the_upstream() {
    let world = World::start().await;
    let browser = world.browser("ada").await;
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
    let answer = browser.ask(request.body(Body::empty()).unwrap()).await.json();
    // The one token that arrived was the gateway's.
    assert_eq!(answer["user"], "ada");
    let seen = answer["headers"].as_object().unwrap();
    let names: Vec<_> = seen.keys().map(String::as_str).collect();
    let expected = [
        "accept-language",
        "host",
        "sec-fetch-site",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
    ];
    assert_eq!(names, expected);
    // RFC 9110 §7.6.3
    assert_eq!(seen["via"], serde_json::json!(["1.0 fred", "1.1 gateway"]));
    assert_eq!(seen["x-forwarded-for"][0], "127.0.0.1");
    assert_eq!(seen["x-forwarded-host"][0], world.address.to_string());
    assert_eq!(seen["x-forwarded-proto"][0], "http");
    assert_eq!(seen[HOST.as_str()][0], world.kit.origin().strip_prefix("http://").unwrap());
    assert_eq!(world.kit.counters().unauthorized(), 0);
}

#[tokio::test]
async fn the_host_that_the_upstream_hears_of_is_not_the_clients_choice() {
    let world = World::start_with(|settings| {
        let origin = Origin::parse("https://app.example.com").unwrap();
        settings.public = gateway::PublicOrigin::Named(origin);
    });
    let world = world.await;
    let browser = world.browser("ada").await;
    let request = browser.request(Method::GET, "/api/headers").header(HOST, "evil.example");
    let answer = browser.ask(request.body(Body::empty()).unwrap()).await.json();
    assert_eq!(answer["headers"]["x-forwarded-host"], serde_json::json!(["app.example.com"]));
    assert_eq!(answer["headers"]["x-forwarded-proto"], serde_json::json!(["https"]));
}

/// The upstream may consent to what brings a token along. With a cookie it would not be asked again.
#[tokio::test]
async fn an_upstreams_consent_to_other_sites_stays_there() {
    async fn answer() -> impl IntoResponse {
        [
            ("access-control-allow-origin", "https://evil.example"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-headers", "x-requested-with"),
            ("vary", "origin"),
        ]
    }
    let world = World::with_upstream(Router::new().fallback(any(answer)), |_| {}).await;
    let browser = world.browser("ada").await;
    for method in [Method::GET, Method::OPTIONS] {
        let request = browser.request(method, "/api/x").header(ORIGIN, "https://evil.example");
        let answer = browser.ask(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, 200);
        let names: Vec<_> = answer.headers.keys().filter(|name| name.as_str().starts_with("access-control-")).collect();
        assert!(names.is_empty(), "{names:?}");
        assert_eq!(answer.headers["vary"], "origin");
    }
}

/// To a cache before the gateway there is no `Authorization`, which would have told it so (RFC 9111 §3.5).
#[tokio::test]
async fn an_answer_to_one_user_is_no_other_users() {
    async fn answer(uri: Uri) -> HeaderMap {
        let said = uri.query().unwrap_or_default().replace('_', " ").replace('\'', "\"");
        let said = said.split('&').filter(|said| !said.is_empty());
        said.map(|said| (CACHE_CONTROL, said.parse().unwrap())).collect()
    }
    let world = World::with_upstream(Router::new().fallback(any(answer)), |_| {}).await;
    let browser = world.browser("ada").await;
    for (said, heard) in [
        ("", &["private"][..]),
        ("max-age=60", &["max-age=60", "private"]),
        ("private", &["private"]),
        ("no-store", &["no-store"]),
        ("no-cache,_Private='x'", &["no-cache, Private=\"x\"", "private"]),
        ("max-age=60&public", &["max-age=60", "public"]),
        ("S-MaxAge=60", &["S-MaxAge=60"]),
        ("max-age=0,_must-revalidate", &["max-age=0, must-revalidate"]),
    ] {
        let answer = browser.get(&format!("/api/x?{said}")).await;
        let told: Vec<_> = answer.headers.get_all(CACHE_CONTROL).iter().collect();
        assert_eq!(told, heard, "{said}");
    }
}

#[tokio::test]
async fn what_an_upstream_says_of_its_connection_stays_there_and_its_cookies_pass() {
    async fn answer(headers: HeaderMap) -> impl IntoResponse {
        assert!(!headers.contains_key(ORIGIN));
        let mut said = HeaderMap::new();
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
            said.append(name, value.parse().unwrap());
        }
        (said, "fine")
    }
    let world = World::with_upstream(Router::new().fallback(any(answer)), |_| {}).await;
    let browser = world.browser("ada").await;
    let answer = browser.get("/api/cookies").await;
    let cookies: Vec<_> = answer.headers.get_all(SET_COOKIE).iter().collect();
    assert_eq!(cookies, ["theme=dark; Path=/", "lang=fr"]);
    for gone in ["connection", "x-for-this-hop", "keep-alive", "proxy-authenticate", "alt-svc"] {
        assert!(!answer.headers.contains_key(gone), "{gone}");
    }
    assert_eq!(answer.headers["x-kept"], "1");
    assert_eq!(&answer.body[..], b"fine");
}

/// A browser can't go to the upstream itself: it has no token, and may not even see it.
#[tokio::test]
async fn a_redirection_within_the_api_leads_back_to_the_gateway() {
    async fn answer(uri: Uri, headers: HeaderMap) -> impl IntoResponse {
        let upstream = format!("http://{}", headers[HOST].to_str().unwrap());
        let target = uri.query().unwrap().replace("UPSTREAM", &upstream);
        (StatusCode::FOUND, [(LOCATION, target)])
    }
    let world = World::with_upstream(Router::new().fallback(any(answer)), |_| {}).await;
    let browser = world.browser("ada").await;
    for (said, heard) in [
        ("UPSTREAM/api/notes/?page=2", "/api/notes/?page=2"),
        ("UPSTREAM/api", "/api"),
        // Elsewhere is elsewhere.
        ("https://example.com/api/notes", "https://example.com/api/notes"),
        ("UPSTREAM.example.com/api/notes", "UPSTREAM.example.com/api/notes"),
        ("UPSTREAM/login", "UPSTREAM/login"),
        ("UPSTREAM/apis", "UPSTREAM/apis"),
        ("/api/notes/", "/api/notes/"),
        ("notes/", "notes/"),
    ] {
        let answer = browser.get(&format!("/api/x?{said}")).await;
        let told = answer.headers[LOCATION].to_str().unwrap();
        let upstream = world.upstream.as_str();
        assert_eq!(told, heard.replace("UPSTREAM", upstream), "{said}");
    }
}

#[tokio::test]
async fn a_path_that_leads_out_of_the_api_is_refused() {
    let world = World::start().await;
    let browser = world.browser("ada").await;
    for path in ["/api/../auth/refresh", "/api/%2e%2e/auth/refresh", "/api/x/..%2f..%2fauth", "/api/./x"] {
        browser.get(path).await.is_problem(400, "malformed-request");
    }
    assert_eq!(browser.get("/api/a%20b/c?d=%2e%2e/").await.json()["query"], "d=%2e%2e/");
    browser.get("/apis").await.is_problem(404, "not-found");
    assert_eq!(world.kit.counters().requests, 2, "the login and one call");
}
