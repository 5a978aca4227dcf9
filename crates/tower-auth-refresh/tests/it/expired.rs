//! Tokens whose known expiry has passed: which requests wait for a refresh first.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::task::JoinHandle;
use tower::{Service, ServiceExt};
use tower_auth_refresh::refresh::Trigger;
use tower_auth_refresh::{RefreshError, RefreshReport, ReplayLimit, Tokens};

use crate::support::*;

const MINUTE: Duration = Duration::from_secs(60);

fn expired(n: u32) -> Tokens {
    pair(n).with_expires_at(SystemTime::now() - MINUTE)
}

fn valid(n: u32) -> Tokens {
    pair(n).with_expires_in(60 * MINUTE)
}

/// Sends an upload of this length, of which at most 10 bytes are kept for a replay.
fn upload(it: &Fixture, len: usize) -> JoinHandle<Response<Full<Bytes>>> {
    let body = Full::from(vec![7; len]);
    it.send(Request::post(ORIGIN).extension(ReplayLimit(10)).body(body).unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_upload_over_the_replay_limit_waits_for_a_refresh_if_its_token_has_expired() {
    let mut it = Fixture::with(|builder| builder.tokens(expired(1))).await;
    let response = upload(&it, 11);
    let refresh = it.auth.next().await;
    assert_eq!(refresh.request.trigger(), Trigger::Early);
    assert!(it.api.is_idle().await);
    refresh.answer(Ok(valid(2)));
    it.accepts(response, 2).await;
    // With a valid token it is sent at once, from cached credentials too.
    for _ in 0..3 {
        let response = upload(&it, 11);
        it.accepts(response, 2).await;
    }
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_can_be_replayed_is_sent_with_an_expired_token() {
    let mut it = Fixture::with(|builder| builder.tokens(expired(1))).await;
    for request in [upload(&it, 10), it.get()] {
        it.accepts(request, 1).await;
    }
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn an_upload_over_the_replay_limit_is_sent_at_once_if_the_expiry_is_unknown() {
    let mut it = Fixture::new().await;
    let response = upload(&it, 11);
    it.accepts(response, 1).await;
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn an_upload_over_the_replay_limit_is_sent_with_the_expired_token_if_the_refresh_fails() {
    let mut it = Fixture::with(|builder| builder.tokens(expired(1))).await;
    let response = upload(&it, 11);
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no")));
    it.accepts(response, 1).await;
    // And at once in the cool-down. A refusal has the usual report.
    let response = upload(&it, 11);
    it.api.reply(1, "a1", 401).await;
    assert!(matches!(report(&response.await.unwrap()), RefreshReport::NotReplayable(_)));
}

#[tokio::test(start_paused = true)]
async fn an_upload_over_the_replay_limit_waits_if_its_token_was_refused() {
    let mut it = Fixture::new().await;
    let first = it.get_refused().await;
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no")));
    first.await.unwrap();
    tokio::time::sleep(2 * MINUTE).await;
    let response = upload(&it, 11);
    assert!(it.api.is_idle().await);
    it.auth.next().await.answer(Ok(valid(2)));
    it.accepts(response, 2).await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_over_the_replay_limit_waits_though_its_handle_keeps_the_refused_token() {
    let mut it = Fixture::new().await;
    let first = it.get_refused().await;
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no")));
    first.await.unwrap();
    tokio::time::sleep(2 * MINUTE).await;
    for _ in 0..2 {
        let request = Request::get(ORIGIN).body(Full::default()).unwrap();
        let response = tokio::spawn(it.client.ready().await.unwrap().call(request));
        it.api.reply(1, "a1", 200).await;
        assert_eq!(response.await.unwrap().unwrap().status(), 200);
    }
    let request = Request::post(ORIGIN).extension(ReplayLimit(10)).body(Full::from(vec![7; 11])).unwrap();
    let response = tokio::spawn(it.client.ready().await.unwrap().call(request));
    assert!(it.api.is_idle().await);
    it.auth.next().await.answer(Ok(valid(2)));
    it.api.reply(1, "a2", 200).await;
    assert_eq!(response.await.unwrap().unwrap().status(), 200);
}

/// The paused clock stands still, as the monotonic clock does while the machine is suspended.
#[tokio::test(start_paused = true)]
async fn after_the_machine_has_slept_past_the_expiry_no_request_carries_the_expired_token() {
    let life = Duration::from_secs(1);
    let tokens = pair(1).with_expires_at(SystemTime::now() + life);
    let mut it = Fixture::with(|builder| builder.tokens(tokens).refresh_early(Duration::ZERO)).await;
    let response = it.get();
    it.accepts(response, 1).await;
    assert!(it.auth.is_idle().await);

    std::thread::sleep(life + Duration::from_millis(10));
    let response = it.get();
    let refresh = it.auth.next().await;
    assert_eq!(refresh.request.trigger(), Trigger::Early);
    assert!(it.api.is_idle().await);
    refresh.answer(Ok(valid(2)));
    it.accepts(response, 2).await;
}
