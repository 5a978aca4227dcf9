//! An authorization server or an API that means harm, or whose clock does: what becomes of the requests, and how often
//! tokens are refreshed, early or not. An API that refuses everything is in `pace`, one whose 401 is endless or slow in
//! `refusal` and `tests/memory`.

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

/// What an authorization server says of the expiry of tokens that live for five minutes.
type Says = fn(Tokens) -> Tokens;

const SANE: Says = |tokens| tokens.with_expires_in(FIVE_MINUTES);
const A_DAY_BEHIND: Says = |tokens| tokens.with_expires_at(SystemTime::now() + FIVE_MINUTES - DAY);
const A_DAY_AHEAD: Says = |tokens| tokens.with_expires_at(SystemTime::now() + FIVE_MINUTES + DAY);
const A_MILLENNIUM_AHEAD: Says = |tokens| tokens.with_expires_at(SystemTime::now() + 365 * 1_000 * DAY);
const EXPIRED_AT_ISSUE: Says = |tokens| tokens.with_expires_at(SystemTime::now());

/// How often replicas refresh in an hour in which each sends a request every second.
struct Hour {
    replicas: usize,
    early: bool,
    says: Says,
    /// How long the API takes a token, unless a newer one is issued.
    lives: Duration,
}

impl Hour {
    async fn refreshes(self) -> u32 {
        let issued = Arc::new(Mutex::new((1_u32, Instant::now())));
        let (newest, says) = (Arc::clone(&issued), self.says);
        let auth = service_fn(move |request: RefreshRequest| {
            let (number, since) = &mut *newest.lock().unwrap();
            assert_eq!(request.refresh_token().unwrap().expose_secret(), format!("r{number}"));
            (*number, *since) = (*number + 1, Instant::now());
            ready(Ok::<_, RefreshError>(says(pair(*number))))
        });
        let (newest, lives) = (Arc::clone(&issued), self.lives);
        let api = service_fn(move |request: Request<ReplayBody<Full<Bytes>>>| {
            let (number, since) = *newest.lock().unwrap();
            let good = request.headers()[AUTHORIZATION] == format!("Bearer a{number}") && since.elapsed() < lives;
            ready(Ok::<_, Infallible>(response(if good { 200 } else { 401 })))
        });
        let store: Arc<dyn TokenStore> = Arc::new(MemoryStore::new());
        let mut clients = Vec::new();
        for _ in 0..self.replicas {
            let builder = Session::builder(auth.clone()).tokens(says(pair(1))).shared_store(Arc::clone(&store));
            let builder = if self.early { builder.refresh_early(60 * SECOND) } else { builder };
            clients.push(AuthRefreshLayer::new(builder.build().await.unwrap(), origin()).layer(api.clone()));
        }
        let expected = if lives.is_zero() { 401 } else { 200 };
        for _ in 0..3_600 {
            for client in &clients {
                let begun = Instant::now();
                let request = Request::get(ORIGIN).body(Full::default()).unwrap();
                assert_eq!(client.clone().oneshot(request).await.unwrap().status(), expected);
                assert!(begun.elapsed() < SECOND, "a request was held up");
            }
            sleep(SECOND).await;
        }
        issued.lock().unwrap().0 - 1
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_a_day_off_neither_multiplies_refreshes_nor_holds_requests_up() {
    for replicas in [1, 2] {
        for (says, most, most_early) in [
            (SANE, 12, 16),
            // By the API's word, as without refreshing early, once the first tokens are replaced.
            (A_DAY_BEHIND, 12, 13),
            (EXPIRED_AT_ISSUE, 12, 13),
            (A_DAY_AHEAD, 12, 12),
            (A_MILLENNIUM_AHEAD, 12, 12),
        ] {
            for (early, most) in [(false, most), (true, most_early)] {
                let refreshes = Hour { replicas, early, says, lives: FIVE_MINUTES }.refreshes().await;
                let case = format!("{refreshes} refreshes; {replicas} replicas, early: {early}, {:?}", says(pair(1)));
                assert!((11..=most).contains(&refreshes), "{case}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_that_takes_every_token_for_expired_causes_75_refreshes_an_hour_at_most() {
    for says in [SANE, A_DAY_BEHIND, A_DAY_AHEAD, EXPIRED_AT_ISSUE] {
        for early in [false, true] {
            let refreshes = Hour { replicas: 1, early, says, lives: Duration::ZERO }.refreshes().await;
            assert!((1..=75).contains(&refreshes), "{refreshes} refreshes, early: {early}, {:?}", says(pair(1)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_that_no_api_ever_refuses_are_refreshed_early_only_where_their_expiry_makes_sense() {
    for (says, expected) in [(SANE, 13..=16), (A_DAY_BEHIND, 1..=1), (EXPIRED_AT_ISSUE, 1..=1), (A_DAY_AHEAD, 0..=0)] {
        let refreshes = Hour { replicas: 1, early: true, says, lives: DAY }.refreshes().await;
        assert!(expected.contains(&refreshes), "{refreshes} refreshes, {:?}", says(pair(1)));
    }
}
