//! A server whose clock is a day off: however it sends the expiry of its tokens, they are refreshed no more often than
//! they expire, and no request is delayed.

use std::convert::Infallible;
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, DATE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};
use tower_auth_refresh::{AccessToken, AuthRefreshLayer, Origin, RefreshService, RefreshToken, Session, Tokens};
use tower_auth_refresh_http::{AuthClient, ClientAuth, JsonRefresh, OAuthRefresh};

use crate::support::old_tokens;

const API: &str = "https://api.example.com";
const SECOND: Duration = Duration::from_secs(1);
const LIFETIME: Duration = Duration::from_secs(5 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// An API and an authorization server with their own clock, which advances at the usual pace.
#[derive(Clone)]
struct Server {
    /// The wall clock at the start, and that moment in the test's paused time.
    clock: SystemTime,
    since: Instant,
    expiry: Expiry,
    /// The newest token, and when it was issued.
    newest: Arc<Mutex<(u32, Instant)>>,
}

/// The expiry of a token that is issued at this moment: members beside the token, and claims in it.
type Expiry = fn(SystemTime) -> (Value, Option<Value>);

fn unix(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn rfc_3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let (day, time) = (at.date(), at.time());
    format!("{day}T{:02}:{:02}:{:02}Z", time.hour(), time.minute(), time.second())
}

/// All ways to send an expiry.
const EACH: [(&str, Expiry); 6] = [
    ("in a number of seconds", |_| (json!({"expires_in": 300}), None)),
    ("in seconds since 1970", |now| (json!({"expires_at": unix(now + LIFETIME)}), None)),
    ("in milliseconds since 1970", |now| (json!({"expires_at": unix(now + LIFETIME) * 1_000}), None)),
    ("as a date", |now| (json!({"expires_at": rfc_3339(now + LIFETIME)}), None)),
    ("in the token", |now| (json!({}), Some(json!({"iat": unix(now), "exp": unix(now + LIFETIME)})))),
    ("in the token, and in seconds", |now| {
        (json!({"expires_in": "300"}), Some(json!({"iat": unix(now), "exp": unix(now + LIFETIME)})))
    }),
];

fn token(number: u32, claims: Option<&Value>) -> String {
    let payload = claims.map_or("opaque".to_owned(), |claims| URL_SAFE_NO_PAD.encode(claims.to_string()));
    format!("header.{payload}.{number}")
}

impl Server {
    fn new(clock: SystemTime, expiry: Expiry) -> Self {
        Self { clock, since: Instant::now(), expiry, newest: Arc::new(Mutex::new((1, Instant::now()))) }
    }

    fn now(&self) -> SystemTime {
        self.clock + self.since.elapsed()
    }

    /// The refresh call.
    fn issue(&self) -> Response<Full<Bytes>> {
        let mut newest = self.newest.lock().unwrap();
        *newest = (newest.0 + 1, Instant::now());
        let (mut answer, claims) = (self.expiry)(self.now());
        answer["access_token"] = token(newest.0, claims.as_ref()).into();
        answer["refresh_token"] = format!("r{}", newest.0).into();
        self.dated(Response::new(Full::from(answer.to_string())))
    }

    fn accepts<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let (number, issued) = *self.newest.lock().unwrap();
        let token = request.headers()[AUTHORIZATION].to_str().unwrap();
        let mut response = self.dated(Response::new(Full::default()));
        if !token.ends_with(&format!(".{number}")) || issued.elapsed() >= LIFETIME {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            response.headers_mut().insert(WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"".parse().unwrap());
        }
        response
    }

    fn dated(&self, mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
        response.headers_mut().insert(DATE, httpdate::fmt_http_date(self.now()).parse().unwrap());
        response
    }

    fn auth(&self) -> AuthClient {
        let server = self.clone();
        AuthClient::new(service_fn(move |_: Request<Full<Bytes>>| ready(Ok::<_, Infallible>(server.issue()))))
    }

    /// The number of refreshes in an hour of one request per second.
    async fn refreshes(self, refresh: impl RefreshService, early: bool) -> u32 {
        let first = AccessToken::new(token(1, None)).unwrap();
        let session = Session::builder(refresh).tokens(Tokens::new(first, RefreshToken::new("r1").unwrap()));
        let session = if early { session.refresh_early(60 * SECOND) } else { session };
        let (session, server) = (session.build().await.unwrap(), self.clone());
        let api = service_fn(move |request| ready(Ok::<_, Infallible>(server.accepts(&request))));
        let client = AuthRefreshLayer::new(session, Origin::parse(API).unwrap()).layer(api);
        for _ in 0..3_600 {
            let begun = Instant::now();
            let response = client.clone().oneshot(Request::get(API).body(Full::<Bytes>::default()).unwrap()).await;
            assert_eq!(response.unwrap().status(), 200);
            assert!(begun.elapsed() < SECOND, "a request was held up");
            sleep(SECOND).await;
        }
        self.newest.lock().unwrap().0 - 1
    }
}

fn clocks() -> [(&'static str, SystemTime); 3] {
    let now = SystemTime::now();
    [("right", now), ("a day behind", now - DAY), ("a day ahead", now + DAY)]
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_a_day_off_causes_no_more_refreshes_than_expiries() {
    for (how, expiry) in EACH {
        for (clock, at) in clocks() {
            for early in [false, true] {
                let server = Server::new(at, expiry);
                let json = JsonRefresh::new(server.auth(), "https://auth.example.com/auth/refresh").unwrap();
                let by_json = server.refreshes(json, early).await;
                let server = Server::new(at, expiry);
                let auth = ClientAuth::public("app");
                let oauth = OAuthRefresh::new(server.auth(), "https://auth.example.com/token", auth).unwrap();
                let by_oauth = server.refreshes(oauth, early).await;
                for refreshes in [by_json, by_oauth] {
                    // Early: a few more.
                    let said = format!("{refreshes} refreshes, told {how}, a clock that is {clock}, early: {early}");
                    assert!((11..=if early { 16 } else { 12 }).contains(&refreshes), "{said}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_by_another_clock_is_obeyed() {
    for (clock, at) in clocks() {
        let begun = Instant::now();
        let (server, calls) = (Server::new(at, EACH[0].1), Arc::new(Mutex::new(Vec::new())));
        let log = Arc::clone(&calls);
        let client = AuthClient::new(service_fn(move |_: Request<Full<Bytes>>| {
            log.lock().unwrap().push(begun.elapsed());
            let first = log.lock().unwrap().len() == 1;
            let mut response = if first { server.dated(Response::new(Full::default())) } else { server.issue() };
            if first {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                let later = httpdate::fmt_http_date(server.now() + 7 * SECOND);
                response.headers_mut().insert(RETRY_AFTER, later.parse().unwrap());
            }
            ready(Ok::<_, Infallible>(response))
        }));
        let refresh = JsonRefresh::new(client, "https://auth.example.com/auth/refresh").unwrap();
        let session = Session::builder(refresh).tokens(old_tokens()).build().await.unwrap();
        session.refresh().await.unwrap();
        let calls = calls.lock().unwrap();
        assert_eq!(calls.len(), 2, "{clock}");
        assert_eq!(calls[1].as_secs(), 7, "{clock}: {calls:?}");
    }
}
