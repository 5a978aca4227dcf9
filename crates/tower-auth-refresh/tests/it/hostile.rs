//! An authorization server that means harm, or whose clock does: what refreshing early makes of it. An API that refuses
//! everything is in `pace`, one whose 401 is endless or slow in `refusal`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use tokio::time::sleep;
use tower_auth_refresh::Tokens;

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a session that refreshes early does so in an hour of a request each second, all of them accepted.
async fn refreshes_in_an_hour(of: impl Fn(Tokens) -> Tokens + Send + 'static) -> u32 {
    let first = of(pair(1));
    let it = Fixture::with(|builder| builder.tokens(first).refresh_early(60 * SECOND)).await;
    it.api.serve(|_| Ok(response(200)));
    let refreshes = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&refreshes);
    it.auth.serve(move |_| Ok(of(pair(2 + count.fetch_add(1, Ordering::Relaxed)))));
    for _ in 0..3_600 {
        let request = http::Request::get(ORIGIN).body(http_body_util::Full::default()).unwrap();
        assert_eq!(tower::ServiceExt::oneshot(it.client.clone(), request).await.unwrap().status(), 200);
        sleep(SECOND).await;
    }
    refreshes.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn tokens_that_have_expired_when_they_are_issued_are_not_refreshed_by_every_request() {
    for ago in [Duration::ZERO, SECOND, DAY] {
        let refreshes = refreshes_in_an_hour(move |tokens| tokens.expires_at(SystemTime::now() - ago)).await;
        assert!(refreshes <= 75, "{refreshes} refreshes in an hour, {ago:?} ago");
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_that_seem_to_live_a_day_longer_are_not_refreshed_at_all() {
    for ahead in [DAY, 365 * 1_000 * DAY] {
        let refreshes = refreshes_in_an_hour(move |tokens| tokens.expires_at(SystemTime::now() + ahead)).await;
        assert_eq!(refreshes, 0);
    }
}
