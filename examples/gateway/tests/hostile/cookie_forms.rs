//! Cookies of every form beside the session cookie, and session cookies that are none.

use std::fmt::Write;

use axum::body::Body;
use futures_util::future::join_all;
use http::header::{CONTENT_TYPE, COOKIE};
use http::{HeaderValue, Method};

use crate::test_gateway::{Browser, TestGateway};

/// Names that a browser, a proxy or a script takes for the session cookie's.
const NAMES: [&str; 20] = [
    "",
    "session",
    "Session",
    "__Host-session",
    "__host-session",
    "__HOST-SESSION",
    "__Secure-session",
    "__Host-",
    "__Host_session",
    "__Host.session",
    "\"__Host-session\"",
    "$__Host-session",
    "__Host-session[]",
    "__Host%2dsession",
    "__Host-session\u{a0}",
    "\t __Host-session \t",
    "__Host-session session",
    "=__Host-session",
    "__Host-session2",
    "x__Host-session",
];

/// The user whose session the gateway has to find: of the first well-formed number under the exact name.
fn owner(header: &[u8], sessions: &[(&str, String)]) -> Option<&'static str> {
    let trim = |part: &[u8]| {
        let text: String = part.iter().map(|byte| char::from(*byte)).collect();
        text.trim_matches([' ', '\t']).to_owned()
    };
    for pair in header.split(|byte| *byte == b';') {
        let pair = trim(pair);
        let Some((name, value)) = pair.split_once('=') else { continue };
        let (name, value) = (trim(name.as_bytes()), trim(value.as_bytes()));
        let is_number = value.len() == 22
            && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && value.ends_with(['A', 'Q', 'g', 'w']);
        if name == "__Host-session" && is_number {
            let found = sessions.iter().find(|session| session.1 == value)?;
            return Some(if found.0 == "ada" { "ada" } else { "eve" });
        }
    }
    None
}

#[tokio::test]
async fn only_the_exact_session_cookie_is_a_session() {
    let gateway = TestGateway::start_behind_tls().await;
    let mut sessions = Vec::new();
    for user in ["ada", "eve"] {
        let cookie = gateway.browser(user).await.cookie.unwrap();
        sessions.push((user, cookie.strip_prefix("__Host-session=").unwrap().to_owned()));
    }
    let [(_, ada), (_, eve)] = &sessions[..] else { unreachable!() };
    let values = [
        ada.clone(),
        format!("\"{ada}\""),
        format!("{ada}="),
        format!("{ada}=={eve}"),
        format!("{ada},{eve}"),
        ada[1..].to_owned(),
        format!(" {ada}\t"),
        "A".repeat(22),
        "A".repeat(4_000),
        String::new(),
    ];
    let mut cookies: Vec<Vec<u8>> = Vec::new();
    for name in NAMES {
        for value in &values {
            let pair = format!("{name}={value}");
            for separator in [";", "; ", ",", " ;\t", ";;"] {
                cookies.push(format!("{pair}{separator}__Host-session={eve}").into());
                cookies.push(format!("__Host-session={eve}{separator}{pair}").into());
            }
            cookies.push(pair.into());
        }
    }
    for byte in (0..=255).filter(|byte| ![0, b'\n', b'\r'].contains(byte)) {
        let with = |before: &str, after: &str| [before.as_bytes(), &[byte], after.as_bytes()].concat();
        let pair = format!("__Host-session={ada}");
        cookies.push(with("", &pair));
        cookies.push(with(&pair, ""));
        cookies.push(with("__Host-session", &format!("={ada}")));
        cookies.push(with(&format!("x={ada}"), &pair));
    }
    let browser = Browser::at(gateway.address);
    let mut found = 0;
    // hyper's client sends no control characters.
    let cookies: Vec<_> = cookies.iter().filter_map(|cookie| HeaderValue::from_bytes(cookie).ok()).collect();
    for cookies in cookies.chunks(100) {
        let calls = cookies.iter().map(async |cookie| {
            let request = browser.request(Method::GET, "/api/headers").header(COOKIE, cookie);
            let answer = browser.fetch(request.body(Body::empty()).unwrap()).await;
            let user = (answer.status == 200).then(|| answer.json()["user"].as_str().unwrap().to_owned());
            assert_eq!(user.as_deref(), owner(cookie.as_bytes(), &sessions), "{}", cookie.as_bytes().escape_ascii());
            usize::from(user.is_some())
        });
        found += join_all(calls).await.into_iter().sum::<usize>();
    }
    println!("cookies: {} forms, {found} of which had a session", cookies.len());
    assert!(found > 100);
}

#[tokio::test]
async fn a_flood_of_unknown_sessions_leaves_nothing() {
    let gateway = TestGateway::start().await;
    let user = gateway.browser("ada").await;
    let flood = std::env::var("HOSTILE_REQUESTS").map_or(1_000, |_| 20_000);
    let mut sent = 0;
    while sent < flood {
        let calls = (0..100).map(async |number| {
            let mut cookie = String::new();
            for _ in 0..=number % 3 {
                let value: String = (0..21).map(|_| fastrand::alphanumeric()).collect();
                write!(cookie, "session={value}A; ").unwrap();
            }
            let path = ["/api/me", "/session", "/logout"][number % 3];
            let method = if path == "/logout" { Method::POST } else { Method::GET };
            let request = user.request(method, path);
            let (mut head, ()) = request.body(()).unwrap().into_parts();
            head.headers.insert(COOKIE, cookie.parse().unwrap());
            let answer = user.fetch(http::Request::from_parts(head, Body::empty())).await;
            match path {
                "/api/me" => answer.assert_problem(401, "sign-in-first"),
                "/session" => assert_eq!(answer.json()["state"], "signed_out"),
                _ => assert_eq!(answer.status, 204),
            }
        });
        sent += join_all(calls).await.len();
    }
    println!("cookies: {sent} requests of unknown sessions, none of which reached the upstream");
    assert_eq!(gateway.metric("gateway_sessions").await, 1);
    assert_eq!((gateway.kit.counters().api, gateway.kit.counters().logouts), (0, 0));
    assert_eq!(user.get("/api/me").await.status, 200);
}

/// A form of another site needs no permission for its media type, and old browsers send neither `Origin` nor
/// `Sec-Fetch-Site`.
#[tokio::test]
async fn no_form_signs_a_user_in_or_out() {
    let gateway = TestGateway::start().await;
    let user = gateway.browser("ada").await;
    let kinds = [
        "",
        "text/plain",
        "text/plain; charset=application/json",
        "text/plain;application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
        "application/json",
        "Application/JSON ; charset=utf-8",
        "application/jsonx",
        "application/json, text/plain",
        "x application/json",
    ];
    let bodies = [
        r#"{"username":"eve","password":"x"}"#,
        // A form of the type text/plain.
        r#"{"username":"eve","password":"x","a":"="}"#,
        "username=eve&password=x",
    ];
    let headers: [&[(&str, &str)]; 5] = [
        &[],
        &[("origin", "null")],
        &[("origin", "null"), ("x-requested-with", "x")],
        &[("sec-fetch-site", "cross-site")],
        &[("x-requested-with", "x")],
    ];
    let (mut sent, mut signed_in) = (0, 0_u64);
    for kind in kinds {
        for body in bodies {
            for fields in headers {
                for path in ["/login", "/logout"] {
                    let mut request = http::Request::post(format!("http://{}{path}", gateway.address));
                    for (name, value) in fields {
                        request = request.header(*name, *value);
                    }
                    if !kind.is_empty() {
                        request = request.header(CONTENT_TYPE, kind);
                    }
                    // Without the cookie, which the browser keeps from other sites: a logout that passes ends nothing.
                    let answer = user.fetch(request.body(body.into()).unwrap()).await;
                    let is_ours = *fields == [("x-requested-with", "x")];
                    let is_json = kind.split(';').next().unwrap().trim().eq_ignore_ascii_case("application/json");
                    let expected = match path {
                        _ if !is_ours => 403,
                        "/logout" => 204,
                        _ if !is_json => 415,
                        _ if body.starts_with('{') => 204,
                        _ => 400,
                    };
                    assert_eq!(answer.status, expected, "{path} {kind:?} {fields:?} {body}");
                    sent += 1;
                    signed_in += u64::from(path == "/login" && expected == 204);
                }
            }
        }
    }
    println!("forms: {sent} requests, {signed_in} of which signed a user in");
    assert_eq!(gateway.kit.counters().logins, signed_in + 1);
    assert_eq!(user.get("/api/me").await.status, 200);
}
