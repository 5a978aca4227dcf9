//! Hostile servers and wrong clocks: their effect on requests, and the number of refreshes, early or not. An API that
//! refuses every token is in `pace`; an endless or slow 401 is in `refusal` and `tests/memory`.

use std::convert::Infallible;
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Request;
use http::header::AUTHORIZATION;
use http_body_util::Full;
use tokio::time::{Instant, sleep};
use tower::{ServiceExt, service_fn};
use tower_auth_refresh::{
    AuthRefreshLayer, MemoryStore, RefreshError, RefreshRequest, ReplayBody, Session, TokenStore, Tokens,
};
use tower_layer::Layer;

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
const FIVE_MINUTES: Duration = Duration::from_secs(5 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Sets the expiry that the authorization server reports for tokens that are valid for five minutes.
type ReportExpiry = fn(Tokens) -> Tokens;

const SANE: ReportExpiry = |tokens| tokens.with_expires_in(FIVE_MINUTES);
const A_DAY_BEHIND: ReportExpiry = |tokens| tokens.with_expires_at(SystemTime::now() + FIVE_MINUTES - DAY);
const A_DAY_AHEAD: ReportExpiry = |tokens| tokens.with_expires_at(SystemTime::now() + FIVE_MINUTES + DAY);
const A_MILLENNIUM_AHEAD: ReportExpiry = |tokens| tokens.with_expires_at(SystemTime::now() + 365 * 1_000 * DAY);
const EXPIRED_AT_ISSUE: ReportExpiry = |tokens| tokens.with_expires_at(SystemTime::now());

/// An hour in which each replica sends a request every second.
struct Hour {
    replicas: usize,
    early: bool,
    report_expiry: ReportExpiry,
    /// The time for which the API accepts a token, unless a newer one is issued.
    lifetime: Duration,
}

impl Hour {
    /// Returns the number of refreshes in that hour.
    async fn refreshes(self) -> u32 {
        let issued = Arc::new(Mutex::new((1_u32, Instant::now())));
        let (newest, report_expiry) = (Arc::clone(&issued), self.report_expiry);
        let auth = service_fn(move |request: RefreshRequest| {
            let (number, since) = &mut *newest.lock().unwrap();
            assert_eq!(request.refresh_token().unwrap().expose_secret(), format!("r{number}"));
            (*number, *since) = (*number + 1, Instant::now());
            ready(Ok::<_, RefreshError>(report_expiry(pair(*number))))
        });
        let (newest, lifetime) = (Arc::clone(&issued), self.lifetime);
        let api = service_fn(move |request: Request<ReplayBody<Full<Bytes>>>| {
            let (number, since) = *newest.lock().unwrap();
            let good = request.headers()[AUTHORIZATION] == format!("Bearer a{number}") && since.elapsed() < lifetime;
            ready(Ok::<_, Infallible>(response(if good { 200 } else { 401 })))
        });
        let store: Arc<dyn TokenStore> = Arc::new(MemoryStore::new());
        let mut clients = Vec::new();
        for _ in 0..self.replicas {
            let builder = Session::builder(auth.clone()).tokens(report_expiry(pair(1))).store(Arc::clone(&store));
            let builder = if self.early { builder.refresh_early(60 * SECOND) } else { builder };
            clients.push(AuthRefreshLayer::new(builder.build().await.unwrap(), origin()).layer(api.clone()));
        }
        let expected = if lifetime.is_zero() { 401 } else { 200 };
        for _ in 0..3_600 {
            for client in &clients {
                let begun = Instant::now();
                let request = Request::get(ORIGIN).body(Full::default()).unwrap();
                assert_eq!(client.clone().oneshot(request).await.unwrap().status(), expected);
                assert!(begun.elapsed() < SECOND, "a request was delayed");
            }
            sleep(SECOND).await;
        }
        issued.lock().unwrap().0 - 1
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_a_day_off_neither_multiplies_refreshes_nor_delays_requests() {
    for replicas in [1, 2] {
        for (report_expiry, most, most_early) in [
            (SANE, 12, 16),
            // Once the first tokens are replaced, only a 401 causes a refresh, as without early refresh.
            (A_DAY_BEHIND, 12, 13),
            (EXPIRED_AT_ISSUE, 12, 13),
            (A_DAY_AHEAD, 12, 12),
            (A_MILLENNIUM_AHEAD, 12, 12),
        ] {
            for (early, most) in [(false, most), (true, most_early)] {
                let refreshes = Hour { replicas, early, report_expiry, lifetime: FIVE_MINUTES }.refreshes().await;
                let case =
                    format!("{refreshes} refreshes; {replicas} replicas, early: {early}, {:?}", report_expiry(pair(1)));
                assert!((11..=most).contains(&refreshes), "{case}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_that_treats_every_token_as_expired_causes_at_most_75_refreshes_an_hour() {
    for report_expiry in [SANE, A_DAY_BEHIND, A_DAY_AHEAD, EXPIRED_AT_ISSUE] {
        for early in [false, true] {
            let refreshes = Hour { replicas: 1, early, report_expiry, lifetime: Duration::ZERO }.refreshes().await;
            assert!(
                (1..=75).contains(&refreshes),
                "{refreshes} refreshes, early: {early}, {:?}",
                report_expiry(pair(1))
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_that_no_api_refuses_are_refreshed_early_only_if_their_expiry_is_plausible() {
    for (report_expiry, expected) in
        [(SANE, 13..=16), (A_DAY_BEHIND, 1..=1), (EXPIRED_AT_ISSUE, 1..=1), (A_DAY_AHEAD, 0..=0)]
    {
        let refreshes = Hour { replicas: 1, early: true, report_expiry, lifetime: DAY }.refreshes().await;
        assert!(expected.contains(&refreshes), "{refreshes} refreshes, {:?}", report_expiry(pair(1)));
    }
}
