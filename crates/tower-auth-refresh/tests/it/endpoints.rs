//! Endpoints that refuse every token, beside endpoints that accept them: the refusals never stop a refresh that the others
//! need, and cause at most 75 refreshes in any hour beyond those of expired tokens.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, join_all};
use http::header::AUTHORIZATION;
use http::{Method, Request, Response};
use http_body_util::Full;
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceExt;
use tower_auth_refresh::{NotRefreshed, RefreshReport, ReplayLimit, Tokens};

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(60 * 60);
const LIFETIMES: [u64; 4] = [3, 5, 60, 300];
const API_LATENCY: Duration = Duration::from_millis(20);
const AUTH_LATENCY: Duration = Duration::from_millis(60);

/// The knowledge of the session about the lifetime of its tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expiry {
    Unknown,
    Known,
    /// Known, and the session refreshes early.
    Early,
}

/// A client stack whose API refuses every token at a path with `fresh` in it, and elsewhere every expired token.
#[derive(Clone)]
struct Stack {
    client: Client,
    end: Instant,
    lifetime: Duration,
    /// The time of each refresh call, and whether the token that it replaced had expired.
    refreshes: Arc<Mutex<Vec<(Instant, bool)>>>,
    /// The requests to healthy endpoints, and those of them that were refused.
    healthy: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    request_refused: Arc<AtomicUsize>,
}

impl Stack {
    async fn new(lifetime: u64, expiry: Expiry) -> Self {
        let lifetime = Duration::from_secs(lifetime);
        let tokens = move |n| if expiry == Expiry::Unknown { pair(n) } else { pair(n).with_expires_in(lifetime) };
        let it = Fixture::with(|builder| {
            let builder = builder.tokens(tokens(1));
            if expiry == Expiry::Early { builder.refresh_early(lifetime / 4) } else { builder }
        })
        .await;
        let issued = Arc::new(Mutex::new(HashMap::from([("a1".to_owned(), Instant::now())])));
        let known = Arc::clone(&issued);
        it.api.serve_after(API_LATENCY, move |request| {
            let token = request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap());
            let issued = known.lock().unwrap().get(token.unwrap_or_default().trim_start_matches("Bearer ")).copied();
            let is_valid = issued.is_some_and(|issued| issued.elapsed() < lifetime);
            Ok(response(if is_valid && !request.uri().path().contains("fresh") { 200 } else { 401 }))
        });
        let refreshes = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&refreshes);
        it.auth.serve_after(AUTH_LATENCY, move |request| {
            let mut log = log.lock().unwrap();
            let n = u32::try_from(log.len() + 2).unwrap();
            let replaced = request.tokens().access_token().map(|token| token.expose_secret().to_owned());
            let mut issued = issued.lock().unwrap();
            let age = replaced.and_then(|token| issued.get(&token)).map(Instant::elapsed);
            // An early refresh replaces a token that is about to expire.
            let due = if expiry == Expiry::Early { lifetime / 2 } else { lifetime };
            log.push((Instant::now(), age.is_some_and(|age| age >= due)));
            issued.insert(format!("a{n}"), Instant::now());
            Ok::<Tokens, _>(tokens(n))
        });
        Self {
            client: it.client,
            end: Instant::now() + HOUR,
            lifetime,
            refreshes,
            healthy: Arc::default(),
            refused: Arc::default(),
            request_refused: Arc::default(),
        }
    }

    async fn send(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let request = Request::builder().method(method).uri(format!("{ORIGIN}{path}"));
        let request = if *method == Method::PUT { request.extension(ReplayLimit(0)) } else { request };
        self.client.clone().oneshot(request.body(Full::from("data")).unwrap()).await.unwrap()
    }

    /// Sends requests to a path that refuses every token.
    async fn refused(self, every: Duration, path: impl Fn(u32) -> String) {
        self.each(every, async |n| {
            let response = self.send(&Method::GET, &path(n)).await;
            assert_eq!(response.status(), 401);
            if let RefreshReport::NotRefreshed(NotRefreshed::RequestRefused) = report(&response) {
                self.request_refused.fetch_add(1, Ordering::Relaxed);
            }
        })
        .await;
    }

    /// Sends as many requests at a time to a path that accepts every token that has not expired.
    async fn accepted(self, every: Duration, concurrent: usize) {
        self.each(every, async |_| {
            let requests = (0..concurrent).map(|_| self.send(&Method::GET, "/ok"));
            for response in join_all(requests).await {
                self.healthy.fetch_add(1, Ordering::Relaxed);
                if response.status() != 200 {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
        .await;
    }

    /// Sends uploads that can't be replayed. One to a healthy path that was challenged is sent again by its caller.
    async fn uploads(self, every: Duration, path: &'static str) {
        self.each(every, async |_| {
            let response = self.send(&Method::PUT, path).await;
            if response.status() == 401 && path == "/ok" {
                assert!(matches!(report(&response), RefreshReport::NotReplayable(_)), "{:?}", report(&response));
                sleep(2 * AUTH_LATENCY).await;
                self.healthy.fetch_add(1, Ordering::Relaxed);
                if self.send(&Method::PUT, path).await.status() != 200 {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
        .await;
    }

    /// Sends requests whose callers do not wait for a refresh.
    async fn dropped(self, every: Duration, path: &'static str) {
        self.each(every, async |_| {
            let patience = API_LATENCY + AUTH_LATENCY / 2;
            let Ok(response) = timeout(patience, self.send(&Method::GET, path)).await else { return };
            if path == "/ok" {
                self.healthy.fetch_add(1, Ordering::Relaxed);
                if response.status() != 200 {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
        .await;
    }

    async fn each(&self, every: Duration, send: impl AsyncFn(u32)) {
        for n in 0.. {
            if Instant::now() >= self.end {
                break;
            }
            send(n).await;
            sleep(every).await;
        }
    }

    /// The largest number in any hour of refreshes that replaced a token before its expiry.
    fn busiest_hour(&self) -> usize {
        let log = self.refreshes.lock().unwrap();
        let wasted: Vec<Instant> = log.iter().filter(|(_, expired)| !expired).map(|(at, _)| *at).collect();
        let in_the_hour_from = |first: Instant| wasted.iter().filter(|at| (first..first + HOUR).contains(at)).count();
        wasted.iter().copied().map(in_the_hour_from).max().unwrap_or_default()
    }

    fn assert_healthy(&self, what: &str) {
        let (healthy, refused) = (self.healthy.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed));
        let (busiest, all) = (self.busiest_hour(), self.refreshes.lock().unwrap().len());
        let reported = self.request_refused.load(Ordering::Relaxed);
        let lifetime = self.lifetime.as_secs();
        println!(
            "{what}, tokens of {lifetime} s: {refused} of {healthy} healthy requests refused; {all} refreshes, at most \
             {busiest} in an hour before the expiry; {reported} reports of a refused request"
        );
        assert_eq!(refused, 0, "{what}, tokens of {lifetime} s: healthy requests were refused");
        assert!(busiest <= 75, "{what}, tokens of {lifetime} s: {busiest} refreshes in an hour before the expiry");
    }
}

/// Runs all to their end.
async fn all(tasks: impl IntoIterator<Item = LocalBoxFuture<'static, ()>>) {
    join_all(tasks).await;
}

async fn one_endpoint(lifetime: u64) {
    for expiry in [Expiry::Unknown, Expiry::Known, Expiry::Early] {
        for every in [SECOND / 4, SECOND] {
            let it = Stack::new(lifetime, expiry).await;
            let (fresh, ok) = (it.clone(), it.clone());
            all([
                fresh.refused(every, |_| "/fresh".to_owned()).boxed_local(),
                ok.accepted(SECOND * 3 / 10, 1).boxed_local(),
            ])
            .await;
            it.assert_healthy(&format!("/fresh every {every:?}, expiry {expiry:?}"));
            assert!(it.request_refused.load(Ordering::Relaxed) > 1_000);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_healthy_request_is_refused_beside_an_endpoint_that_refuses_tokens_of_3_s() {
    one_endpoint(3).await;
}

#[tokio::test(start_paused = true)]
async fn no_healthy_request_is_refused_beside_an_endpoint_that_refuses_tokens_of_5_s() {
    one_endpoint(5).await;
}

#[tokio::test(start_paused = true)]
async fn no_healthy_request_is_refused_beside_an_endpoint_that_refuses_tokens_of_60_s() {
    one_endpoint(60).await;
}

#[tokio::test(start_paused = true)]
async fn no_healthy_request_is_refused_beside_an_endpoint_that_refuses_tokens_of_300_s() {
    one_endpoint(300).await;
}

#[tokio::test(start_paused = true)]
async fn infrequent_healthy_requests_are_never_refused() {
    for lifetime in LIFETIMES {
        for every in [2, 10, 70] {
            let it = Stack::new(lifetime, Expiry::Unknown).await;
            let (fresh, ok) = (it.clone(), it.clone());
            all([
                fresh.refused(SECOND / 4, |_| "/fresh".to_owned()).boxed_local(),
                ok.accepted(every * SECOND, 1).boxed_local(),
            ])
            .await;
            it.assert_healthy(&format!("/ok every {every} s"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn twenty_concurrent_healthy_requests_at_the_expiry_are_never_refused() {
    for lifetime in LIFETIMES {
        let it = Stack::new(lifetime, Expiry::Unknown).await;
        let (fresh, ok) = (it.clone(), it.clone());
        all([fresh.refused(SECOND / 4, |_| "/fresh".to_owned()).boxed_local(), ok.accepted(SECOND, 20).boxed_local()])
            .await;
        it.assert_healthy("20 at a time");
    }
}

#[tokio::test(start_paused = true)]
async fn several_endpoints_that_refuse_every_token_cause_no_more_refreshes_than_one() {
    for lifetime in LIFETIMES {
        for endpoints in [2, 10] {
            let it = Stack::new(lifetime, Expiry::Unknown).await;
            let mut tasks = vec![it.clone().accepted(SECOND / 2, 1).boxed_local()];
            for n in 0..endpoints {
                let name = char::from(b'a' + n);
                let every = SECOND / 4 + Duration::from_millis(30) * u32::from(n);
                tasks.push(it.clone().refused(every, move |_| format!("/{name}/fresh")).boxed_local());
            }
            all(tasks).await;
            it.assert_healthy(&format!("{endpoints} endpoints"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn numbered_resources_are_one_endpoint() {
    for lifetime in LIFETIMES {
        let it = Stack::new(lifetime, Expiry::Unknown).await;
        let (fresh, ok) = (it.clone(), it.clone());
        all([
            fresh.refused(SECOND / 4, |n| format!("/users/{n}/fresh?page={n}")).boxed_local(),
            ok.accepted(SECOND / 2, 1).boxed_local(),
        ])
        .await;
        it.assert_healthy("/users/{n}/fresh");
    }
}

#[tokio::test(start_paused = true)]
async fn uploads_that_cannot_be_replayed_are_counted_and_healthy_ones_go_on() {
    for lifetime in LIFETIMES {
        let it = Stack::new(lifetime, Expiry::Unknown).await;
        all([
            it.clone().uploads(SECOND / 4, "/fresh").boxed_local(),
            it.clone().uploads(SECOND, "/ok").boxed_local(),
            it.clone().accepted(SECOND / 2, 1).boxed_local(),
        ])
        .await;
        it.assert_healthy("uploads");
    }
}

#[tokio::test(start_paused = true)]
async fn callers_that_are_dropped_are_counted_and_healthy_ones_go_on() {
    for lifetime in LIFETIMES {
        let it = Stack::new(lifetime, Expiry::Unknown).await;
        all([
            it.clone().dropped(SECOND / 4, "/fresh").boxed_local(),
            it.clone().dropped(SECOND / 2, "/ok").boxed_local(),
            it.clone().accepted(SECOND * 7 / 10, 1).boxed_local(),
        ])
        .await;
        it.assert_healthy("dropped callers");
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_whose_endpoints_all_refuse_every_token_causes_at_most_75_refreshes_in_any_hour() {
    for endpoints in [1, 2, 7, 30] {
        let it = Stack::new(300, Expiry::Unknown).await;
        let name = move |n: u32| {
            char::from(b'a' + u8::try_from(n % endpoints % 26).unwrap())
                .to_string()
                .repeat(1 + (n % endpoints / 26) as usize)
        };
        it.clone().refused(SECOND / 4, move |n| format!("/{}/fresh", name(n))).await;
        let all = it.refreshes.lock().unwrap().len();
        println!("{endpoints} endpoints that refuse everything: {all} refreshes in an hour");
        assert!((60..=75).contains(&all), "{endpoints} endpoints: {all} refreshes in an hour");
    }
}
