//! A server that rotates refresh tokens and revokes a family on reuse, behind a proxy that distorts its answers: no
//! family is ever revoked.

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use proptest::collection::{hash_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};
use tower::{BoxError, ServiceExt, service_fn};
use tower_auth_refresh::{AccessToken, NotRefreshed, RefreshToken, Session, SessionState, Tokens};
use tower_auth_refresh_http::{AuthClient, ClientAuth, JsonRefresh, OAuthRefresh};
use tower_auth_refresh_testkit::TestKit;

use crate::support::{Scripted, answer, old_tokens};

const URL: &str = "https://auth.example.com/auth/refresh";

/// An answer of the server, on its way through the proxy.
struct Passing {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
    breaks_off: bool,
}

/// A change to a success of the server, which leaves its refresh token readable.
#[derive(Clone)]
struct Distortion {
    name: String,
    change: Arc<dyn Fn(&mut Passing) + Send + Sync>,
}

impl Distortion {
    fn new(name: impl Into<String>, change: impl Fn(&mut Passing) + Send + Sync + 'static) -> Self {
        Self { name: name.into(), change: Arc::new(change) }
    }
}

impl fmt::Debug for Distortion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn json(name: impl Into<String>, change: impl Fn(&mut Map<String, Value>) + Send + Sync + 'static) -> Distortion {
    Distortion::new(name, move |passing| {
        // An earlier change may have made it no JSON.
        if let Ok(Value::Object(mut answer)) = serde_json::from_slice(&passing.body) {
            change(&mut answer);
            passing.body = Value::Object(answer).to_string().into();
        }
    })
}

fn set(member: &'static str, value: Value) -> Distortion {
    json(format!("{member}: {value}"), move |answer| drop(answer.insert(member.to_owned(), value.clone())))
}

fn body(name: &str, change: impl Fn(Vec<u8>) -> Vec<u8> + Send + Sync + 'static) -> Distortion {
    Distortion::new(name, move |passing| passing.body = change(std::mem::take(&mut passing.body)))
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

/// Cuts the body off right after the refresh token.
fn cut(body: &[u8]) -> Vec<u8> {
    let mut answer: Map<String, Value> = serde_json::from_slice(body).unwrap();
    let token = answer.remove("refresh_token").unwrap();
    format!(r#"{{"refresh_token":{token},"access_token":"cut o"#).into()
}

/// Every malformation that the parser knows.
fn all_distortions() -> Vec<Distortion> {
    let gzipped = |name, missing: usize| {
        Distortion::new(name, move |passing| {
            passing.body = gzip(&passing.body);
            passing.body.truncate(passing.body.len() - missing);
            passing.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        })
    };
    Vec::from([
        json("no access token", |answer| drop(answer.remove("access_token"))),
        set("access_token", Value::Null),
        set("access_token", "".into()),
        set("access_token", 7.into()),
        set("access_token", json!(["a"])),
        set("access_token", "a\r\nb".into()),
        set("access_token", "tök".into()),
        set("access_token", "Bearer a2".into()),
        set("access_token", " a2\n".into()),
        set("token_type", "DPoP".into()),
        set("token_type", "mac".into()),
        set("token_type", "bot".into()),
        set("expires_in", "soon".into()),
        set("error", json!({"code": "ok"})),
        set("error", json!({"code": 0})),
        set("error", "something".into()),
        set("error", "invalid_grant".into()),
        set("error", "invalid_client".into()),
        set("error", "server_error".into()),
        set("error", "slow_down".into()),
        json("tokens elsewhere", |answer| {
            let inner = std::mem::take(answer);
            answer.insert("body".to_owned(), inner.into());
        }),
        json("camel case", |answer| {
            for (from, to) in [("access_token", "accessToken"), ("refresh_token", "refreshToken")] {
                let value = answer.remove(from).unwrap();
                answer.insert(to.to_owned(), value);
            }
        }),
        json("refresh token behind its scheme", |answer| {
            let token = format!("Bearer {}\n", answer["refresh_token"].as_str().unwrap());
            answer["refresh_token"] = token.into();
        }),
        body("byte order mark", |body| [b"\xEF\xBB\xBF", &*body].concat()),
        body("not UTF-8", |body| [b"{\"user\":\"J\xf6rg\",", &body[1..]].concat()),
        body("trailing text", |body| [&*body, b"<!-- cached -->"].concat()),
        body("leading text", |body| [b")]}',\n", &*body].concat()),
        body("a number out of range", |body| [b"{\"n\":1e400,", &body[1..]].concat()),
        body("cut off", |body| cut(&body)),
        body("too long", |body| {
            [&body[..body.len() - 1], b",\"x\":\"", "x".repeat(70_000).as_bytes(), b"\"}"].concat()
        }),
        body("too deep", |body| [&body[..body.len() - 1], b",\"x\":", "[".repeat(9_000).as_bytes()].concat()),
        gzipped("gzip", 0),
        gzipped("gzip, cut off", 6),
        Distortion::new("connection reset in the body", |passing| {
            passing.body = cut(&passing.body);
            passing.breaks_off = true;
        }),
        Distortion::new("a false length", |passing| {
            passing.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("99999999"));
        }),
        Distortion::new("203", |passing| passing.status = StatusCode::NON_AUTHORITATIVE_INFORMATION),
    ])
}

/// A client of the server whose successes are distorted, except for every fifth.
fn distorting(kit: &TestKit, distortions: &[Distortion]) -> AuthClient {
    let (kit, distortions, calls) = (kit.clone(), distortions.to_vec(), Arc::new(AtomicUsize::new(0)));
    AuthClient::new(service_fn(move |request: Request<Full<Bytes>>| {
        let (kit, distortions) = (kit.clone(), distortions.clone());
        let call = calls.fetch_add(1, Ordering::Relaxed) + 1;
        async move {
            let (head, form) = request.into_parts();
            let sent = form.collect().await?.to_bytes();
            // The kit takes JSON, and no cookies.
            let cookie = head.headers.get("cookie").and_then(|cookie| cookie.to_str().ok()?.strip_prefix("rt="));
            let form = form_urlencoded::parse(&sent).find(|(name, _)| name == "refresh_token");
            let token = cookie.map(str::to_owned).or_else(|| Some(form?.1.into_owned()));
            let sent = token.map_or(sent.clone(), |token| json!({ "refresh_token": token }).to_string().into());
            let request = Request::post("/auth/refresh").body(Full::new(sent)).unwrap();
            let answer = kit.oneshot(request).await.unwrap();
            let (head, answer) = answer.into_parts();
            let answer = answer.collect().await.map_err(|_| "cut")?.to_bytes().to_vec();
            let mut passing = Passing { status: head.status, headers: head.headers, body: answer, breaks_off: false };
            if passing.status.is_success() {
                if cookie.is_some() {
                    let answer: Value = serde_json::from_slice(&passing.body).unwrap();
                    let cookie = format!("rt={}; Path=/auth", answer["refresh_token"].as_str().unwrap());
                    passing.headers.insert("set-cookie", cookie.parse().unwrap());
                }
                if !call.is_multiple_of(5) {
                    for distortion in &distortions {
                        (distortion.change)(&mut passing);
                    }
                }
            }
            let mut frames: Vec<Result<Frame<Bytes>, BoxError>> = Vec::from([Ok(Frame::data(passing.body.into()))]);
            frames.extend(passing.breaks_off.then(|| Err("reset".into())));
            let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
            (*response.status_mut(), *response.headers_mut()) = (passing.status, passing.headers);
            Ok::<_, BoxError>(response)
        }
    }))
}

fn signed_in(kit: &TestKit) -> Tokens {
    let pair = kit.sign_in("ada");
    Tokens::new(AccessToken::new(pair.access_token).unwrap(), RefreshToken::new(pair.refresh_token).unwrap())
}

/// Calls ten times without a session, and keeps the refresh token of each answer. None ends the grant or is superseded.
async fn keeps_its_refresh_token(distortions: &[Distortion]) {
    for call in ["json", "oauth", "cookie"] {
        let kit = TestKit::new();
        let client = distorting(&kit, distortions);
        let json = JsonRefresh::new(client.clone(), URL).unwrap();
        let oauth = OAuthRefresh::new(client.clone(), URL, ClientAuth::public("app")).unwrap();
        let cookie = JsonRefresh::new(client, URL).unwrap().cookie("rt");
        let mut tokens = signed_in(&kit);
        for _ in 0..10 {
            let result = match call {
                "json" => json.refresh(&tokens).await,
                "oauth" => oauth.refresh(&tokens).await,
                _ => cookie.refresh(&tokens).await,
            };
            let issued = match &result {
                Ok(tokens) => tokens.refresh_token(),
                Err(error) => error.refresh_token(),
            };
            let issued = issued.unwrap_or_else(|| panic!("{call}, {distortions:?}: {result:?}"));
            tokens = Tokens::from_refresh_token(issued.clone());
        }
        assert_eq!(kit.violations(), [], "{call}, {distortions:?}");
    }
}

/// Refreshes ten times, through distorted and sound answers. The user stays signed in, and no token is presented twice.
async fn stays_signed_in(distortions: &[Distortion]) {
    for call in ["json", "oauth", "cookie"] {
        let kit = TestKit::new();
        let client = distorting(&kit, distortions);
        let builder = match call {
            "json" => Session::builder(JsonRefresh::new(client, URL).unwrap()),
            "oauth" => Session::builder(OAuthRefresh::new(client, URL, ClientAuth::public("app")).unwrap()),
            _ => Session::builder(JsonRefresh::new(client, URL).unwrap().cookie("rt")),
        };
        let session = builder.tokens(signed_in(&kit)).build().await.unwrap();
        let mut refreshed = false;
        for _ in 0..10 {
            let result = session.refresh().await;
            assert!(session.state().is_signed_in(), "{call}, {distortions:?}");
            let (is_failing, failed) =
                (matches!(session.state(), SessionState::Failing(_)), matches!(result, Err(NotRefreshed::Failed(_))));
            assert_eq!(is_failing, failed, "{call}, {distortions:?}");
            refreshed |= result.is_ok();
            tokio::time::sleep(Duration::from_secs(120)).await;
        }
        assert_eq!(kit.violations(), [], "{call}, {distortions:?}");
        assert!(refreshed, "{call}, {distortions:?}");
    }
}

#[tokio::test]
async fn no_malformation_of_a_success_costs_its_refresh_token() {
    for distortion in all_distortions() {
        keeps_its_refresh_token(&[distortion]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_malformation_of_a_success_revokes_a_family() {
    for distortion in all_distortions() {
        stays_signed_in(&[distortion]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_429_without_retry_after_causes_one_call_in_a_flight() {
    for (limited, calls) in [
        (answer(429, ""), 1),
        (answer(429, "").header("x-rate-limit-reset", "0"), 1),
        (answer(429, "").header("retry-after", "0"), 3),
    ] {
        let scripted = Scripted::with([limited]);
        let refresh = JsonRefresh::new(scripted.client(), URL).unwrap();
        let session = Session::builder(refresh).tokens(old_tokens()).build().await.unwrap();
        session.refresh().await.unwrap_err();
        assert_eq!(scripted.requests().len(), calls);
    }
}

/// A random value in place of any member but the refresh token.
fn any_member() -> impl Strategy<Value = Distortion> {
    let value = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        vec(any::<u8>(), 0..4).prop_map(Value::from),
        hash_map("[a-z_]{1,9}", any::<i32>(), 0..3).prop_map(|members| json!(members)),
    ];
    let name = select(vec!["access_token", "token_type", "expires_in", "error", "expires_at", "data"]);
    prop_oneof![
        3 => (name.clone(), value).prop_map(|(name, value)| set(name, value)),
        1 => name.prop_map(|name| json(format!("no {name}"), move |answer| drop(answer.remove(name)))),
    ]
}

/// Random bytes around the body, none of which opens or closes a part of it.
fn any_noise() -> impl Strategy<Value = Distortion> {
    let noise = || vec(any::<u8>().prop_filter("no structure", |byte| !b"\"\\{}[]".contains(byte)), 0..9);
    (noise(), noise()).prop_map(|(before, after)| {
        body(&format!("{before:?} and {after:?} around"), move |body| [&*before, &*body, &*after].concat())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_random_malformation_of_a_success_costs_its_refresh_token(
        mut distortions in vec(any_member(), 0..4),
        noise in option::of(any_noise()),
    ) {
        distortions.extend(noise);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(keeps_its_refresh_token(&distortions));
    }

    #[test]
    fn no_random_malformation_of_a_success_revokes_a_family(
        mut distortions in vec(any_member(), 0..4),
        noise in option::of(any_noise()),
    ) {
        distortions.extend(noise);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(stays_signed_in(&distortions));
    }
}
