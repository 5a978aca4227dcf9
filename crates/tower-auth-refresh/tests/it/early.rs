//! Early refresh: tokens are replaced in the background before they expire, while requests still use them.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tower_auth_refresh::refresh::Trigger;
use tower_auth_refresh::{RefreshError, SessionState, Tokens};

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);

/// Tokens that expire in 100 s.
fn expiring(n: u32) -> Tokens {
    pair(n).with_expires_in(100 * SECOND)
}

/// A session that refreshes in the last 40 s of a token's life; with jitter, in the last 30 to 40 s.
async fn early() -> Fixture {
    Fixture::with(|builder| builder.tokens(expiring(1)).refresh_early(40 * SECOND)).await
}

/// Asserts that a request is sent with this token at once, and accepts it.
async fn assert_sent_at_once(it: &mut Fixture, token: &str) {
    let begun = Instant::now();
    let response = it.get();
    it.api.reply(1, token, 200).await;
    assert_eq!(response.await.unwrap().status(), 200);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn inside_the_window_one_refresh_runs_in_the_background_and_no_request_waits_for_it() {
    let mut it = early().await;
    sleep(59 * SECOND).await;
    assert_sent_at_once(&mut it, "a1").await;
    assert!(it.auth.is_idle().await);

    sleep(12 * SECOND).await;
    for _ in 0..50 {
        assert_sent_at_once(&mut it, "a1").await;
    }
    let refresh = it.auth.next().await;
    assert_eq!(refresh.request.trigger(), Trigger::Early);
    assert!(it.auth.is_idle().await);
    refresh.answer(Ok(expiring(2)));
    settle().await;
    assert_sent_at_once(&mut it, "a2").await;
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_finds_the_token_expired_waits_for_the_refresh() {
    let mut it = early().await;
    sleep(101 * SECOND).await;
    let response = it.get();
    let refresh = it.auth.next().await;
    assert_eq!(refresh.request.trigger(), Trigger::Early);
    assert!(it.api.is_idle().await);
    refresh.answer(Ok(expiring(2)));
    it.accepts(response, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_expires_while_it_is_being_replaced_is_no_longer_sent() {
    let mut it = early().await;
    sleep(75 * SECOND).await;
    assert_sent_at_once(&mut it, "a1").await;
    let refresh = it.auth.next().await;
    sleep(24 * SECOND).await;
    assert_sent_at_once(&mut it, "a1").await;
    sleep(2 * SECOND).await;
    let response = it.get();
    assert!(it.api.is_idle().await);
    refresh.answer(Ok(expiring(2)));
    it.accepts(response, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_refused_while_it_is_being_replaced_is_no_longer_sent() {
    let mut it = early().await;
    sleep(75 * SECOND).await;
    assert_sent_at_once(&mut it, "a1").await;
    let refresh = it.auth.next().await;
    let refused = it.get_refused().await;
    settle().await;
    let held_back = it.get();
    assert!(it.api.is_idle().await);
    refresh.answer(Ok(expiring(2)));
    it.api.reply(2, "a2", 200).await;
    for response in [refused, held_back] {
        assert_eq!(response.await.unwrap().status(), 200);
    }
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn while_early_refreshes_fail_requests_are_sent_as_long_as_the_token_is_valid() {
    let mut it = early().await;
    sleep(75 * SECOND).await;
    assert_sent_at_once(&mut it, "a1").await;
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no such client")));
    settle().await;
    // The cool-down applies to early refreshes too.
    for _ in 0..50 {
        assert_sent_at_once(&mut it, "a1").await;
    }
    assert!(it.auth.is_idle().await);
    sleep(2 * SECOND).await;
    assert_sent_at_once(&mut it, "a1").await;
    it.auth.next().await.answer(Ok(expiring(2)));
    settle().await;
    assert_sent_at_once(&mut it, "a2").await;
    assert_eq!(it.session.state(), SessionState::Active);
}

#[tokio::test(start_paused = true)]
async fn a_window_longer_than_the_tokens_life_does_not_refresh_at_every_request() {
    let lifetime = 30 * SECOND;
    let tokens = pair(1).with_expires_in(lifetime);
    let mut it = Fixture::with(|builder| builder.tokens(tokens).refresh_early(60 * SECOND)).await;
    for n in 1..4 {
        let token = format!("a{n}");
        for _ in 0..14 {
            assert_sent_at_once(&mut it, &token).await;
            sleep(SECOND).await;
        }
        assert!(it.auth.is_idle().await);
        sleep(6 * SECOND).await;
        assert_sent_at_once(&mut it, &token).await;
        it.auth.next().await.answer(Ok(pair(n + 1).with_expires_in(lifetime)));
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_early_refresh_is_made_while_an_api_refuses_fresh_tokens() {
    let mut it = early().await;
    for n in 1..3 {
        let token = format!("a{n}");
        let response = it.get();
        it.api.reply(1, &token, 401).await;
        it.auth.next().await.answer(Ok(expiring(n + 1)));
        it.api.reply(1, &format!("a{}", n + 1), 401).await;
        assert_eq!(response.await.unwrap().status(), 401);
    }
    sleep(75 * SECOND).await;
    assert_sent_at_once(&mut it, "a3").await;
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn early_refreshes_resume_once_a_fresh_token_was_accepted() {
    let mut it = early().await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Ok(expiring(2)));
    it.api.reply(1, "a2", 401).await;
    assert_eq!(response.await.unwrap().status(), 401);
    // One strike; the next fresh token is accepted.
    let response = it.get();
    it.api.reply(1, "a2", 401).await;
    it.auth.next().await.answer(Ok(expiring(3)));
    it.accepts(response, 3).await;

    sleep(75 * SECOND).await;
    assert_sent_at_once(&mut it, "a3").await;
    assert_eq!(it.auth.next().await.request.trigger(), Trigger::Early);
}

/// Tokens that expire in 100 s, and that the server advises to refresh after `seconds`.
fn advised(n: u32, seconds: u64) -> Tokens {
    let tokens = expiring(n);
    let issued = tokens.expires_at().unwrap() - 100 * SECOND;
    tokens.with_refresh_at(issued + Duration::from_secs(seconds))
}

#[tokio::test(start_paused = true)]
async fn a_refresh_in_of_the_server_begins_the_window_of_an_early_refresh() {
    // The window, the advice, and two times: before the first no request refreshes, from the second on one does.
    for (window, advice, not_before, from) in [
        (1, 60, 59, 71),
        // The session's own window begins earlier.
        (40, 95, 59, 71),
        // Not in the first half of the token's life.
        (1, 2, 49, 63),
    ] {
        let tokens = advised(1, advice);
        let mut it = Fixture::with(|builder| builder.tokens(tokens).refresh_early(window * SECOND)).await;
        sleep(not_before * SECOND).await;
        assert_sent_at_once(&mut it, "a1").await;
        assert!(it.auth.is_idle().await, "{window}, {advice}");
        sleep((from - not_before) * SECOND).await;
        assert_sent_at_once(&mut it, "a1").await;
        let refresh = it.auth.next().await;
        assert_eq!(refresh.request.trigger(), Trigger::Early);
        // The next tokens come without advice, and that of the first ones is no longer in force.
        refresh.answer(Ok(expiring(2)));
        settle().await;
        assert_eq!(it.session.tokens().refresh_at(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_in_of_the_server_refreshes_nothing_unless_the_session_refreshes_early() {
    let tokens = advised(1, 60);
    let mut it = Fixture::with(|builder| builder.tokens(tokens)).await;
    sleep(99 * SECOND).await;
    assert_sent_at_once(&mut it, "a1").await;
    assert!(it.auth.is_idle().await);
}
