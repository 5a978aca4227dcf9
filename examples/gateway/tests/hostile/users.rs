//! Users whose tokens expire all the time: no response, cookie or token of one reaches another.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::COOKIE;
use http::{Method, Request};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::http1::{read_response, split_head};
use crate::test_gateway::{Browser, TestGateway};

const USERS: usize = 20;

type HttpClient = Client<HttpConnector, Body>;

/// A user of several callers, which share one session.
#[derive(Clone)]
struct User {
    name: String,
    /// The session cookie in use.
    cookie: Arc<Mutex<String>>,
    /// Cookies of sessions whose end has been asked for: a 401 for another one is a user signed out.
    left: Arc<Mutex<HashSet<String>>>,
}

/// The number of each kind of request.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicUsize,
    whole: AtomicUsize,
    http_2: AtomicUsize,
    pipelined: AtomicUsize,
    uploads: AtomicUsize,
    aborted: AtomicUsize,
    aborted_uploads: AtomicUsize,
    logins: AtomicUsize,
    logouts: AtomicUsize,
    /// The connection of HTTP/2 had just ended.
    sent_again: AtomicUsize,
    /// The session had ended: a caller of the same user has signed it out.
    left: AtomicUsize,
    /// The token has expired again before the replay, and the API's own 401 passes.
    refused: AtomicUsize,
    /// A refresh failed, or the API refused the new token too.
    failed: AtomicUsize,
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {}", chain(cause)))
}

fn add(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl User {
    fn cookie(&self) -> String {
        self.cookie.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_left(&self, cookie: &str) -> bool {
        self.left.lock().unwrap().contains(cookie)
    }

    fn is_leaving(&self, cookie: &str) {
        self.left.lock().unwrap().insert(cookie.to_owned());
    }
}

struct Caller {
    user: User,
    other: User,
    gateway: Arc<TestGateway>,
    counts: Arc<Counts>,
    /// Clients of HTTP/1.1 and HTTP/2 whose connections all users share, and clients of this caller.
    clients: Vec<(HttpClient, bool)>,
    requests: usize,
}

impl Caller {
    /// Sends requests until all callers together have sent their number.
    async fn run(self, caller: usize) {
        loop {
            let number = self.counts.sent.fetch_add(1, Ordering::Relaxed);
            if number >= self.requests {
                return;
            }
            let canary = format!("canary.{}.{caller}.{number}", self.user.name);
            match fastrand::u32(..1000) {
                0..2 => self.gateway.kit.expire_access_tokens(),
                2..20 => self.gateway.kit.expire_access_tokens_of(&self.user.name),
                20..40 => self.sign_in_again().await,
                40..90 => self.abort(&canary).await,
                90..140 => self.abort_upload(&canary).await,
                140..200 => self.pipeline(&canary).await,
                _ => {}
            }
            self.call(&canary).await;
        }
    }

    fn client(&self) -> &HttpClient {
        let (client, is_http_2) = fastrand::choice(&self.clients).unwrap();
        if *is_http_2 {
            add(&self.counts.http_2);
        }
        client
    }

    fn request(&self, method: Method, path: &str, canary: &str, cookie: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("http://{}{path}?{canary}", self.gateway.address))
            .header("sec-fetch-site", "same-origin")
            .header(COOKIE, cookie)
            .header("x-canary", canary)
    }

    /// Makes a call and checks that its answer is this user's and this call's.
    async fn call(&self, canary: &str) {
        let cookie = self.user.cookie();
        let (method, path, body) = match fastrand::u32(..10) {
            0..5 => (Method::GET, "/api/headers", String::new()),
            5..8 => (Method::POST, "/api/headers", canary.to_owned()),
            8 => (Method::POST, "/api/echo", canary.repeat(fastrand::usize(1..2000))),
            _ => (Method::PUT, "/api/upload", canary.repeat(fastrand::usize(1..2000))),
        };
        if !body.is_empty() {
            add(&self.counts.uploads);
        }
        let request = || self.request(method.clone(), path, canary, &cookie).body(Body::from(body.clone())).unwrap();
        let answer = async {
            let mut answer = self.client().request(request()).await;
            // A connection that ends without an error says which requests it has not taken (RFC 9113 §6.8).
            if answer.as_ref().is_err_and(|error| chain(error).contains("NO_ERROR")) {
                add(&self.counts.sent_again);
                answer = self.client().request(request()).await;
            }
            let (head, body) = answer.unwrap().into_parts();
            (head, body.collect().await.unwrap().to_bytes())
        };
        let (head, answer) = timeout(Duration::from_secs(120), answer).await.expect("an answer");
        if head.status != 200 {
            return self.check_refusal(head.status.as_u16(), &answer, &self.user, &cookie);
        }
        add(&self.counts.whole);
        match path {
            "/api/echo" => assert!(answer == body.as_bytes(), "{canary}: another body has come back"),
            _ => self.check(&answer, canary, body.len()),
        }
    }

    fn check(&self, answer: &[u8], canary: &str, length: usize) {
        let seen: serde_json::Value = serde_json::from_slice(answer).unwrap();
        assert_eq!(seen["user"], *self.user.name, "{seen}");
        assert_eq!(seen["query"], *canary, "{seen}");
        assert_eq!(seen["body_length"], length, "{seen}");
        if seen["path"] == "/api/headers" {
            assert_eq!(seen["headers"]["x-canary"], serde_json::json!([canary]), "{seen}");
        }
    }

    /// Checks an answer that isn't the API's 200.
    fn check_refusal(&self, status: u16, answer: &[u8], user: &User, cookie: &str) {
        let answer = String::from_utf8_lossy(answer);
        assert!(!answer.contains("canary"), "{answer}");
        match status {
            401 if user.has_left(cookie) => add(&self.counts.left),
            // The API's own.
            401 if !answer.contains("/problems/") => add(&self.counts.refused),
            // The token was refused too often: other callers expire it all the time.
            502 | 503 if !answer.contains("upstream-failed") => add(&self.counts.failed),
            _ => panic!("{} was signed out, or worse: {status} {answer}", user.name),
        }
    }

    /// Replaces the user's session by a new login: beside the old session, or after its logout.
    async fn sign_in_again(&self) {
        let old = self.user.cookie();
        let mut browser = Browser::at(self.gateway.address);
        browser.cookie = Some(old.clone());
        self.user.is_leaving(&old);
        if fastrand::bool() {
            add(&self.counts.logouts);
            assert_eq!(browser.post("/logout", "").await.status, 204);
            browser.cookie = None;
        }
        if fastrand::u8(..4) == 0 {
            // A login whose browser goes away.
            let _ =
                timeout(Duration::from_millis(fastrand::u64(..3)), browser.clone().login(&self.user.name, "x")).await;
        }
        add(&self.counts.logins);
        let response = browser.login(&self.user.name, "correct horse").await;
        assert_eq!(response.status, 204, "{response:?}");
        let cookie = browser.cookie.unwrap();
        // Another caller may have signed in at the same time.
        let superseded = std::mem::replace(&mut *self.user.cookie.lock().unwrap(), cookie);
        self.user.is_leaving(&superseded);
    }

    /// Disconnects before, while or after the answer arrives.
    async fn abort(&self, canary: &str) {
        add(&self.counts.aborted);
        let request = self.request(Method::GET, "/api/headers", canary, &self.user.cookie());
        let call = self.client().request(request.body(Body::empty()).unwrap());
        let _ = timeout(Duration::from_micros(fastrand::u64(..6000)), call).await;
    }

    /// Ends an upload before its end.
    async fn abort_upload(&self, canary: &str) {
        add(&self.counts.aborted_uploads);
        let piece = Bytes::from(canary.repeat(100));
        let pieces = stream::iter((0..fastrand::usize(..10)).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
        let error = stream::once(async {
            sleep(Duration::from_micros(fastrand::u64(..3000))).await;
            Err(std::io::Error::other("the client has gone"))
        });
        let request = self.request(Method::POST, "/api/echo", canary, &self.user.cookie());
        let body = Body::from_stream(pieces.chain(error));
        let answer = self.client().request(request.body(body).unwrap()).await;
        if let Ok(answer) = answer {
            // The echo may have begun.
            let body = answer.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&body).contains(&format!("canary.{}.", self.other.name)), "{body:?}");
        }
    }

    /// Sends requests of two users on one connection, without waiting for the answers.
    async fn pipeline(&self, canary: &str) {
        let mut stream = BufReader::new(TcpStream::connect(self.gateway.address).await.unwrap());
        let callers: Vec<_> = (0..6).map(|number| if number % 2 == 0 { &self.user } else { &self.other }).collect();
        let cookies: Vec<_> = callers.iter().map(|user| user.cookie()).collect();
        let mut requests = Vec::new();
        for (number, cookie) in cookies.iter().enumerate() {
            let body = if number % 3 == 0 { "" } else { canary };
            let host = self.gateway.address;
            let length = body.len();
            requests.push(format!(
                "POST /api/headers?{number}.{canary} HTTP/1.1\r\nhost: {host}\r\nsec-fetch-site: same-origin\r\n\
                 cookie: {cookie}\r\ncontent-length: {length}\r\n\r\n{body}"
            ));
        }
        stream.write_all(requests.concat().as_bytes()).await.unwrap();
        for (number, (user, cookie)) in callers.iter().zip(&cookies).enumerate() {
            add(&self.counts.pipelined);
            let answer =
                timeout(Duration::from_secs(120), read_response(&mut stream)).await.expect("an answer").unwrap();
            let (status, body) = split_head(&answer);
            if status == 200 {
                let seen: serde_json::Value = serde_json::from_slice(body).unwrap();
                assert_eq!(seen["user"], *user.name, "{seen}");
                assert_eq!(seen["query"], format!("{number}.{canary}"), "{seen}");
            } else {
                let caller =
                    if user.name == self.user.name { self.user.has_left(cookie) } else { self.other.has_left(cookie) };
                assert!(caller || matches!(status, 401 | 502 | 503), "{status}");
                assert!(!String::from_utf8_lossy(body).contains("canary"));
            }
        }
    }
}

/// Twenty users with four callers each, whose tokens live for a second and are expired besides. The callers share
/// connections of both protocols, pipeline, disconnect, and sign out and in. `HOSTILE_REQUESTS` is the number of calls
/// that are checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_user_sees_anything_of_another() {
    let requests: usize = std::env::var("HOSTILE_REQUESTS").map_or(3_000, |requests| requests.parse().unwrap());
    let gateway = Arc::new(TestGateway::start().await);
    gateway.kit.configure(|settings| {
        settings.access_lifetime = Duration::from_secs(1);
        settings.log_capacity = 0;
    });
    let counts = Arc::new(Counts::default());
    let mut users = Vec::new();
    for user in 0..USERS {
        let name = format!("user-{user}");
        let cookie = gateway.browser(&name).await.cookie.unwrap();
        users.push(User { name, cookie: Arc::new(Mutex::new(cookie)), left: Arc::default() });
    }
    let client = |is_http_2: bool| {
        let client = Client::builder(TokioExecutor::new()).http2_only(is_http_2).build_http::<Body>();
        (client, is_http_2)
    };
    let shared = [client(false), client(true)];
    let started = Instant::now();
    let mut callers = Vec::new();
    for (number, user) in users.iter().enumerate() {
        for caller in 0..4 {
            let caller_of = Caller {
                user: user.clone(),
                other: users[(number + 1 + caller) % USERS].clone(),
                gateway: gateway.clone(),
                counts: counts.clone(),
                clients: shared.iter().cloned().chain([client(false), client(true)]).collect(),
                requests,
            };
            callers.push(tokio::spawn(caller_of.run(caller)));
        }
    }
    for caller in callers {
        caller.await.unwrap();
    }
    println!(
        "users: {requests} calls in {:?}: {counts:?}, {} refreshes",
        started.elapsed(),
        gateway.kit.counters().granted
    );
    let not_answered = counts.refused.load(Ordering::Relaxed) + counts.failed.load(Ordering::Relaxed);
    assert!(not_answered * 20 < requests, "{counts:?}");
    assert!(counts.sent_again.load(Ordering::Relaxed) * 1000 < requests, "{counts:?}");
    // No user has been signed out, and no refresh token was presented twice.
    for user in users {
        let mut browser = gateway.anonymous();
        browser.cookie = Some(user.cookie());
        let seen = browser.get("/api/me").await;
        assert!(seen.status == 200 || user.has_left(&user.cookie()), "{seen:?}");
    }
    assert_eq!(gateway.kit.violations(), []);
    assert_eq!(gateway.kit.counters().allowed_reuses, 0);
}
