//! The rate of refresh calls: the cool-down after a failure, and the guard against an API that refuses every fresh
//! token.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use tokio::time::{Instant, sleep};
use tower::ServiceExt;
use tower_auth_refresh::{
    NotRefreshed, RefreshError, RefreshErrorKind, RefreshReport, ReplayLimit, Session, SessionBuilder, SessionState,
    Tokens,
};

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// A client stack whose API and authorization server answer at once, by a rule.
struct Stack {
    session: Session,
    client: Client,
    /// The time of each refresh call, and whether it returned tokens.
    refreshes: Arc<Mutex<Vec<(Instant, bool)>>>,
}

impl Stack {
    /// `api` gets the token of each request, `auth` the number of each refresh call, from 1.
    async fn new(
        configure: impl FnOnce(SessionBuilder) -> SessionBuilder,
        mut api: impl FnMut(&str) -> Response<Full<Bytes>> + Send + 'static,
        mut auth: impl FnMut(u32) -> Result<Tokens, RefreshError> + Send + 'static,
    ) -> Self {
        let it = Fixture::with(configure).await;
        it.api.serve(move |request| {
            let token = request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap());
            Ok(api(token.unwrap_or_default().trim_start_matches("Bearer ")))
        });
        let refreshes = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&refreshes);
        it.auth.serve(move |_| {
            let mut log = log.lock().unwrap();
            let answer = auth(u32::try_from(log.len() + 1).unwrap());
            log.push((Instant::now(), answer.is_ok()));
            answer
        });
        Self { session: it.session, client: it.client, refreshes }
    }

    /// An API that refuses every token, and an authorization server that always issues new ones.
    async fn refusing() -> Self {
        Self::new(|builder| builder.tokens(pair(1)), |_| response(401), fresh).await
    }

    async fn get(&self) -> Response<Full<Bytes>> {
        self.send(Request::get(ORIGIN).body(Full::default()).unwrap()).await
    }

    /// Sends a request that can't be replayed.
    async fn upload(&self) -> Response<Full<Bytes>> {
        self.send(Request::put(ORIGIN).extension(ReplayLimit(0)).body(Full::from("data")).unwrap()).await
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Response<Full<Bytes>> {
        self.client.clone().oneshot(request).await.unwrap()
    }

    fn refreshes(&self) -> usize {
        self.refreshes.lock().unwrap().len()
    }

    /// The largest number of successful refreshes in any hour so far.
    fn busiest_hour(&self) -> usize {
        self.busiest_hour_of(|succeeded| succeeded)
    }

    fn busiest_hour_of(&self, counts: impl Fn(bool) -> bool) -> usize {
        let log = self.refreshes.lock().unwrap();
        let refreshes: Vec<Instant> =
            log.iter().filter(|(_, succeeded)| counts(*succeeded)).map(|(at, _)| *at).collect();
        let in_the_hour_from =
            |first: Instant| refreshes.iter().filter(|at| (first..first + HOUR).contains(at)).count();
        refreshes.iter().copied().map(in_the_hour_from).max().unwrap_or_default()
    }

    /// Sends a request every quarter of a second, so that no pause is exceeded by much.
    async fn hammer(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.get().await;
            sleep(SECOND / 4).await;
        }
    }

    /// Sends requests until one causes a refresh, and returns the time until then.
    async fn pause(&self) -> Duration {
        let (begun, before) = (Instant::now(), self.refreshes());
        loop {
            self.get().await;
            if self.refreshes() > before {
                return begun.elapsed();
            }
            sleep(SECOND / 20).await;
        }
    }

    async fn assert_at_most_75_refreshes_in_any_hour(&self) {
        self.hammer(2 * HOUR).await;
        let (busiest, all) = (self.busiest_hour(), self.refreshes());
        assert!(busiest <= 75, "{busiest} refreshes in an hour");
        let calls = self.busiest_hour_of(|_| true);
        assert!(calls <= 100, "{calls} calls in an hour, failed ones included");
        // The guard slows refreshes down, it doesn't stop them.
        assert!(all > 80, "{all} refreshes in two hours");
    }
}

/// The answer to the `n`th refresh call: the next tokens after those that the session started with.
#[expect(clippy::unnecessary_wraps, reason = "the return type of a refresh service")]
fn fresh(n: u32) -> Result<Tokens, RefreshError> {
    Ok(pair(n + 1))
}

fn misconfigured() -> RefreshError {
    RefreshError::misconfigured("no such client")
}

fn is_about_the_request(response: &Response<Full<Bytes>>) -> bool {
    matches!(report(response), RefreshReport::NotRefreshed(NotRefreshed::RequestRefused))
}

fn is_looping(response: &Response<Full<Bytes>>) -> bool {
    matches!(report(response), RefreshReport::NotRefreshed(NotRefreshed::Looping))
}

// The cool-down.

#[tokio::test(start_paused = true)]
async fn a_401_in_the_cool_down_gets_the_cached_failure_without_a_call_or_a_wait() {
    let it = Stack::new(|builder| builder.tokens(pair(1)), |_| response(401), |_| Err(misconfigured())).await;
    let failed = failure(&it.get().await);
    let begun = Instant::now();
    for _ in 0..50 {
        let response = it.get().await;
        assert_eq!(response.status(), 401);
        match not_refreshed(&response) {
            NotRefreshed::CoolingDown(error) => assert!(Arc::ptr_eq(error, &failed)),
            other => panic!("{other:?}"),
        }
        assert_eq!(text(response).await, "status 401");
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(it.refreshes(), 1);
    let failure = failing(&it.session);
    assert_eq!((failure.kind(), failure.count()), (RefreshErrorKind::Misconfigured, 1));
    assert!(Arc::ptr_eq(failure.error(), &failed));
    assert_eq!(it.session.tokens(), pair(1));
}

#[tokio::test(start_paused = true)]
async fn the_cool_down_doubles_from_a_second_to_a_minute_with_jitter() {
    let it = Stack::new(|builder| builder.tokens(pair(1)), |_| response(401), |_| Err(misconfigured())).await;
    it.get().await;
    let mut exact = 0;
    for doublings in 0..9 {
        let longest = (SECOND * (1 << doublings)).min(60 * SECOND);
        let pause = it.pause().await;
        assert!((longest / 2..=longest + SECOND / 20).contains(&pause), "{pause:?} of {longest:?}");
        exact += u32::from(pause >= longest);
    }
    assert!(exact < 9, "no jitter");
}

#[tokio::test(start_paused = true)]
async fn after_a_thousand_failures_the_cool_down_is_a_minute_at_most() {
    let it = Stack::new(|builder| builder.tokens(pair(1)), |_| response(401), |_| Err(misconfigured())).await;
    for _ in 0..1_000 {
        it.get().await;
        sleep(61 * SECOND).await;
    }
    assert_eq!(it.refreshes(), 1_000);
    it.get().await;
    let pause = it.pause().await;
    assert!((30 * SECOND..=61 * SECOND).contains(&pause), "{pause:?}");
}

#[tokio::test(start_paused = true)]
async fn the_cool_down_ends_at_the_time_that_the_server_requested() {
    let busy = |_| Err(RefreshError::unavailable("too many requests").with_retry_after(2 * 60 * SECOND));
    let it = Stack::new(|builder| builder.tokens(pair(1)), |_| response(401), busy).await;
    it.get().await;
    sleep(Duration::from_millis(119_999)).await;
    it.get().await;
    assert_eq!(it.refreshes(), 1);
    sleep(Duration::from_millis(1)).await;
    it.get().await;
    assert_eq!(it.refreshes(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_successful_refresh_resets_the_cool_down() {
    let auth = |n| if n == 6 { Ok(pair(2)) } else { Err(misconfigured()) };
    let api = |token: &str| response(if token == "a2" { 200 } else { 401 });
    let it = Stack::new(|builder| builder.tokens(pair(1)), api, auth).await;
    for _ in 0..5 {
        it.get().await;
        sleep(61 * SECOND).await;
    }
    assert_eq!(it.get().await.status(), 200);
    for _ in 0..2 {
        assert!(it.session.refresh().await.is_err());
    }
    assert_eq!(it.refreshes(), 8);
}

#[tokio::test(start_paused = true)]
async fn new_tokens_end_the_cool_down_at_once() {
    let auth = |n| if n == 1 { Err(misconfigured()) } else { Ok(pair(8)) };
    let api = |token: &str| response(if token == "a8" { 200 } else { 401 });
    let it = Stack::new(|builder| builder.tokens(pair(1)), api, auth).await;
    assert_eq!(failure(&it.get().await).kind(), RefreshErrorKind::Misconfigured);
    assert!(matches!(not_refreshed(&it.get().await), NotRefreshed::CoolingDown(_)));
    it.session.sign_in(pair(2)).await.unwrap();
    assert_eq!(it.get().await.status(), 200);
    assert_eq!(it.refreshes(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_manual_refresh_ignores_the_cool_down_and_ends_it() {
    let auth = |n| if n < 3 { Err(misconfigured()) } else { Ok(pair(n)) };
    let api = |token: &str| response(if token == "a4" { 200 } else { 401 });
    let it = Stack::new(|builder| builder.tokens(pair(1)), api, auth).await;
    it.get().await;
    assert!(matches!(it.session.refresh().await, Err(NotRefreshed::Failed(_))));
    assert!(matches!(not_refreshed(&it.get().await), NotRefreshed::CoolingDown(_)));
    it.session.refresh().await.unwrap();
    assert_eq!(it.refreshes(), 3);
    assert_eq!(it.get().await.status(), 200);
    assert_eq!(it.refreshes(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_final_until_the_next_sign_in() {
    let api = |token: &str| response(if token == "a5" { 200 } else { 401 });
    let it = Stack::new(|builder| builder.tokens(pair(1)), api, |_| Err(RefreshError::rejected("revoked"))).await;
    for _ in 0..20 {
        assert!(matches!(not_refreshed(&it.get().await), NotRefreshed::Ended(_)));
        assert!(matches!(it.session.refresh().await, Err(NotRefreshed::Ended(_))));
        sleep(HOUR).await;
    }
    assert_eq!(it.refreshes(), 1);
    it.session.sign_in(pair(5)).await.unwrap();
    assert_eq!(it.get().await.status(), 200);
}

// The loop guard.

#[tokio::test(start_paused = true)]
async fn an_api_that_refuses_every_fresh_token_is_looping_from_the_sixth_strike_on() {
    let it = Stack::refusing().await;
    for refreshes in 1..=6 {
        assert!(matches!(report(&it.get().await), RefreshReport::ReplayRefused));
        assert_eq!(it.refreshes(), refreshes);
    }
    for _ in 0..20 {
        let response = it.get().await;
        assert!(is_looping(&response));
        assert_eq!(response.status(), 401);
        assert_eq!(text(response).await, "status 401");
    }
    assert_eq!(it.refreshes(), 6);
    assert_eq!(it.session.state(), SessionState::Active);
}

#[tokio::test(start_paused = true)]
async fn the_pauses_of_a_loop_double_from_a_second_to_a_minute_with_upward_jitter_only() {
    let it = Stack::refusing().await;
    for _ in 0..6 {
        it.get().await;
    }
    let mut exact = 0;
    for doublings in 0..9 {
        let shortest = (SECOND * (1 << doublings)).min(60 * SECOND);
        let pause = it.pause().await;
        assert!((shortest..=shortest * 5 / 4 + SECOND / 20).contains(&pause), "{pause:?} of {shortest:?}");
        exact += u32::from(pause <= shortest + SECOND / 20);
    }
    assert!(exact < 9, "no jitter");
}

#[tokio::test(start_paused = true)]
async fn an_api_that_refuses_every_token_causes_at_most_75_refreshes_in_any_hour() {
    Stack::refusing().await.assert_at_most_75_refreshes_in_any_hour().await;
}

#[tokio::test(start_paused = true)]
async fn at_most_75_refreshes_in_any_hour_when_every_second_one_fails() {
    let auth = |n| if n % 2 == 0 { Err(misconfigured()) } else { Ok(pair(n + 1)) };
    let it = Stack::new(|builder| builder.tokens(pair(1)), |_| response(401), auth).await;
    it.assert_at_most_75_refreshes_in_any_hour().await;
}

#[tokio::test(start_paused = true)]
async fn at_most_75_refreshes_in_any_hour_when_two_of_three_fail() {
    let auth = |n| if n % 3 == 0 { Ok(pair(n + 1)) } else { Err(misconfigured()) };
    let it = Stack::new(|builder| builder.tokens(pair(1)), |_| response(401), auth).await;
    it.assert_at_most_75_refreshes_in_any_hour().await;
}

#[tokio::test(start_paused = true)]
async fn at_most_75_refreshes_in_any_hour_that_return_the_same_token_each_time() {
    let it = Stack::new(|builder| builder.tokens(pair(1)), |_| response(401), |_| Ok(pair(1))).await;
    for _ in 0..6 {
        assert!(matches!(not_refreshed(&it.get().await), NotRefreshed::SameToken));
    }
    assert!(is_looping(&it.get().await));
    it.assert_at_most_75_refreshes_in_any_hour().await;
}

#[tokio::test(start_paused = true)]
async fn at_most_75_refreshes_in_any_hour_of_tokens_that_are_refreshed_early() {
    let lifetime = 20 * SECOND;
    let early = move |builder: SessionBuilder| builder.tokens(pair(1).with_expires_in(lifetime)).refresh_early(HOUR);
    let it = Stack::new(early, |_| response(401), move |n| Ok(pair(n + 1).with_expires_in(lifetime))).await;
    it.assert_at_most_75_refreshes_in_any_hour().await;
}

#[tokio::test(start_paused = true)]
async fn at_most_75_refreshes_in_any_hour_of_a_session_that_started_with_a_refresh_token() {
    let tokens = Tokens::from_refresh_token(refresh("r1"));
    let it = Stack::new(|builder| builder.tokens(tokens), |_| response(401), fresh).await;
    it.assert_at_most_75_refreshes_in_any_hour().await;
}

#[tokio::test(start_paused = true)]
async fn at_most_75_refreshes_in_any_hour_of_an_api_that_refuses_a_token_for_another_reason_at_first() {
    let mut last = String::new();
    let api = move |token: &str| {
        let mut refusal = response(401);
        if token != last {
            token.clone_into(&mut last);
            refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"api\""));
        }
        refusal
    };
    let it = Stack::new(|builder| builder.tokens(pair(1)), api, fresh).await;
    it.assert_at_most_75_refreshes_in_any_hour().await;
}

#[tokio::test(start_paused = true)]
async fn at_most_75_refreshes_in_any_hour_of_requests_that_cannot_be_replayed() {
    let it = Stack::refusing().await;
    let end = Instant::now() + 2 * HOUR;
    while Instant::now() < end {
        assert!(matches!(report(&it.upload().await), RefreshReport::NotReplayable(_)));
        sleep(SECOND / 4).await;
    }
    let busiest = it.busiest_hour();
    assert!(busiest <= 75, "{busiest} refreshes in an hour");
}

#[tokio::test(start_paused = true)]
async fn at_most_75_refreshes_in_any_hour_of_concurrent_requests() {
    let it = Stack::refusing().await;
    let end = Instant::now() + HOUR;
    while Instant::now() < end {
        let many = (0..10).map(|_| it.get());
        futures_util::future::join_all(many).await;
        sleep(SECOND).await;
    }
    let busiest = it.busiest_hour();
    assert!(busiest <= 75, "{busiest} refreshes in an hour");
}

#[tokio::test(start_paused = true)]
async fn at_most_75_refreshes_in_any_hour_of_infrequent_requests() {
    for interval in [7, 30, 55, 59, 61, 90] {
        let it = Stack::refusing().await;
        let end = Instant::now() + 3 * HOUR;
        while Instant::now() < end {
            it.get().await;
            sleep(interval * SECOND).await;
        }
        let busiest = it.busiest_hour();
        assert!(busiest <= 75, "{busiest} refreshes in an hour, with a request every {interval} s");
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_refuses_only_some_requests_is_held_from_the_sixth_strike_on() {
    // Some of its operations require another scope.
    let it = Stack::new(
        |builder| builder.tokens(pair(1)),
        {
            let mut calls = 0;
            move |_| {
                calls += 1;
                response(if calls % 3 == 1 { 200 } else { 401 })
            }
        },
        fresh,
    )
    .await;
    let mut held = 0;
    for _ in 0..100 {
        assert_eq!(it.get().await.status(), 200);
        held += u32::from(is_about_the_request(&it.get().await));
        // Without a replay, the pattern of calls shifts.
        if held > 0 {
            break;
        }
    }
    assert_eq!(held, 1);
    assert_eq!(it.refreshes(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_refused_within_a_minute_and_was_never_accepted_is_a_strike() {
    for (interval, slowed_down) in [(59, true), (60, false), (61, false)] {
        let it = Stack::refusing().await;
        for _ in 0..40 {
            assert_eq!(it.upload().await.status(), 401);
            sleep(interval * SECOND).await;
        }
        assert_eq!(it.refreshes() < 40, slowed_down, "{interval} s: {} refreshes", it.refreshes());
    }
}

#[tokio::test(start_paused = true)]
async fn a_strike_is_not_cleared_by_a_replay_with_its_token_that_is_accepted_later() {
    let mut it = Fixture::new().await;
    let mut newest = 1;
    for strikes in (1..30).step_by(2) {
        let (refused, accepted) = (it.get(), it.get());
        it.api.reply(2, &format!("a{newest}"), 401).await;
        settle().await;
        if refused.is_finished() {
            assert!(is_looping(&refused.await.unwrap()));
            // The token of the sign-in is no strike, and the refusal that reports the loop adds none.
            assert_eq!(strikes, 7);
            return;
        }
        newest += 1;
        it.auth.next().await.answer(Ok(pair(newest)));
        let [first, second] = <[_; 2]>::try_from(it.api.take(2).await).ok().unwrap();
        first.reply(401).await;
        settle().await;
        let striking = it.get_refused().await;
        newest += 1;
        it.auth.next().await.answer(Ok(pair(newest)));
        it.api.reply(1, &format!("a{newest}"), 401).await;
        assert!(matches!(report(&striking.await.unwrap()), RefreshReport::ReplayRefused));
        // A slow API that accepts the token that is a strike.
        second.reply(200).await;
        for response in [refused, accepted] {
            response.await.unwrap();
        }
    }
    panic!("the session never looped");
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_not_cleared_by_accepted_requests_that_were_no_replays() {
    // Of two APIs, the one for uploads accepts no token.
    let uploads = Arc::new(Mutex::new(false));
    let uploading = Arc::clone(&uploads);
    let api = move |_: &str| response(if *uploading.lock().unwrap() { 401 } else { 200 });
    let it = Stack::new(|builder| builder.tokens(pair(1)), api, fresh).await;
    for _ in 0..10 {
        assert_eq!(it.get().await.status(), 200);
        *uploads.lock().unwrap() = true;
        assert_eq!(it.upload().await.status(), 401);
        settle().await;
        *uploads.lock().unwrap() = false;
    }
    assert_eq!(it.refreshes(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_not_cleared_by_an_upload_that_fails_or_is_refused_for_another_reason() {
    let mut other_reason = response(401);
    let value = HeaderValue::from_static("Bearer error=\"insufficient_scope\"");
    other_reason.headers_mut().insert(WWW_AUTHENTICATE, value);
    for other in [other_reason, response(500)] {
        let mut calls = 0;
        let api = move |_: &str| {
            calls += 1;
            if calls % 2 == 1 { other.clone() } else { response(401) }
        };
        let it = Stack::new(|builder| builder.tokens(pair(1)), api, fresh).await;
        for _ in 0..10 {
            it.upload().await;
            it.upload().await;
            settle().await;
        }
        assert_eq!(it.refreshes(), 6);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_refused_in_a_replay_is_not_cleared_by_an_accepted_upload() {
    // Of two APIs, the one for uploads accepts every token.
    let uploads = Arc::new(Mutex::new(false));
    let uploading = Arc::clone(&uploads);
    let api = move |_: &str| response(if *uploading.lock().unwrap() { 200 } else { 401 });
    let it = Stack::new(|builder| builder.tokens(pair(1)), api, fresh).await;
    for _ in 0..6 {
        assert!(!is_about_the_request(&it.get().await));
        *uploads.lock().unwrap() = true;
        assert_eq!(it.upload().await.status(), 200);
        *uploads.lock().unwrap() = false;
    }
    assert!(is_about_the_request(&it.get().await));
    assert_eq!(it.refreshes(), 6);
}

#[tokio::test(start_paused = true)]
async fn an_accepted_replay_clears_the_strikes() {
    let valid = |token: &str| ["a6", "a12"].contains(&token);
    let mut spent = Vec::new();
    // The sixth and the twelfth token are accepted once, in a replay.
    let api = move |token: &str| {
        let accepted = valid(token) && !spent.contains(&token.to_owned());
        spent.push(token.to_owned());
        response(if accepted { 200 } else { 401 })
    };
    let it = Stack::new(|builder| builder.tokens(pair(1)), api, fresh).await;
    for n in 1..=15 {
        let response = it.get().await;
        assert!(!is_looping(&response), "request {n}");
        assert_eq!(response.status() == 200, n == 5 || n == 11);
    }
    assert_eq!(it.refreshes(), 15);
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_does_not_clear_the_strikes() {
    let auth = |n| if n == 4 { Err(misconfigured()) } else { Ok(pair(n + 1)) };
    let it = Stack::new(|builder| builder.tokens(pair(1)), |_| response(401), auth).await;
    for _ in 0..3 {
        assert!(matches!(report(&it.get().await), RefreshReport::ReplayRefused));
    }
    assert!(matches!(not_refreshed(&it.get().await), NotRefreshed::Failed(_)));
    it.pause().await;
    let mut before_looping = 0;
    while !is_looping(&it.get().await) {
        before_looping += 1;
    }
    assert_eq!((before_looping, it.refreshes()), (2, 7));
}

#[tokio::test(start_paused = true)]
async fn a_looping_session_uses_new_tokens_at_once() {
    let it = Stack::new(
        |builder| builder.tokens(pair(1)),
        |token| response(if ["a50", "b"].contains(&token) { 200 } else { 401 }),
        |n| Ok(if n == 7 { Tokens::new(access("b"), refresh("b")) } else { pair(n + 1) }),
    )
    .await;
    let loops = async || {
        while !is_looping(&it.get().await) {}
        it.refreshes()
    };
    assert_eq!(loops().await, 6);
    it.session.refresh().await.unwrap();
    assert_eq!(it.get().await.status(), 200);
    it.session.sign_in(pair(1)).await.unwrap();
    loops().await;
    it.session.sign_in(pair(50)).await.unwrap();
    assert_eq!(it.get().await.status(), 200);
}

/// A stack whose tokens are valid for two seconds.
async fn short_lived() -> Stack {
    let issued = Arc::new(Mutex::new((pair(1), Instant::now())));
    let newest = Arc::clone(&issued);
    let api = move |token: &str| {
        let (tokens, at) = &*newest.lock().unwrap();
        let good = tokens.access_token().unwrap().expose_secret() == token && at.elapsed() < 2 * SECOND;
        response(if good { 200 } else { 401 })
    };
    let auth = move |n| {
        *issued.lock().unwrap() = (pair(n + 1), Instant::now());
        Ok(pair(n + 1))
    };
    Stack::new(|builder| builder.tokens(pair(1)), api, auth).await
}

#[tokio::test(start_paused = true)]
async fn tokens_that_are_valid_for_two_seconds_never_loop() {
    let it = short_lived().await;
    for n in 0..6_000 {
        assert_eq!(it.get().await.status(), 200, "request {n}");
        sleep(SECOND / 10).await;
    }
    assert!((280..=300).contains(&it.refreshes()), "{} refreshes in ten minutes", it.refreshes());
}

#[tokio::test(start_paused = true)]
async fn tokens_that_are_valid_for_two_seconds_never_loop_under_concurrent_requests() {
    let it = short_lived().await;
    for _ in 0..600 {
        let many = (0..10).map(|_| it.get());
        assert!(futures_util::future::join_all(many).await.iter().all(|response| response.status() == 200));
        sleep(SECOND / 2).await;
    }
    assert!((130..=150).contains(&it.refreshes()), "{} refreshes in five minutes", it.refreshes());
}

#[tokio::test(start_paused = true)]
async fn tokens_that_are_valid_for_two_seconds_never_loop_if_no_request_can_be_replayed() {
    let it = short_lived().await;
    for _ in 0..6_000 {
        let response = it.upload().await;
        let accepted = response.status() == 200 || matches!(report(&response), RefreshReport::NotReplayable(_));
        assert!(accepted, "{:?}", report(&response));
        sleep(SECOND / 10).await;
    }
    assert!((270..=300).contains(&it.refreshes()), "{} refreshes in ten minutes", it.refreshes());
}
