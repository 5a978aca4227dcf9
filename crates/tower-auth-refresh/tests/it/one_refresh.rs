//! Single flight: one refresh for any number of refused requests, whichever token they carried.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::task::JoinHandle;
use tower_auth_refresh::{NotRefreshed, RefreshError, RefreshReport, Tokens};

use crate::secrets::Watch;
use crate::support::*;

/// A request that was sent with `a1`, and the call that is still to be answered.
async fn unanswered() -> (Fixture, JoinHandle<Response<Full<Bytes>>>, ApiCall) {
    let mut it = Fixture::new().await;
    let response = it.get();
    let call = it.api.next().await;
    (it, response, call)
}

#[tokio::test(start_paused = true)]
async fn a_hundred_concurrent_401s_cause_one_refresh_and_a_hundred_replays() {
    let mut it = Fixture::new().await;
    let responses: Vec<_> = (0..100).map(|_| it.get()).collect();
    it.api.reply(100, "a1", 401).await;
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), "r1");
    assert!(it.api.is_idle().await);
    refresh.answer(Ok(pair(2)));
    it.api.reply(100, "a2", 200).await;
    for response in responses {
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(matches!(report(&response), RefreshReport::Replayed));
    }
    assert!(it.auth.is_idle().await);
    assert!(it.api.is_idle().await);
    assert_eq!(it.session.tokens(), pair(2));
}

#[tokio::test(start_paused = true)]
async fn a_late_401_to_an_older_token_is_replayed_without_a_refresh() {
    let (mut it, late, late_call) = unanswered().await;
    refresh_to(&mut it, 2).await;

    assert_eq!(late_call.token(), Some("a1"));
    late_call.reply(401).await;
    it.accepts(late, 2).await;
    assert!(it.auth.is_idle().await);
    assert_eq!(it.session.generation().get(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_401_that_is_late_by_many_generations_is_replayed_with_the_newest_token() {
    let (mut it, late, late_call) = unanswered().await;
    for n in 2..=10 {
        refresh_to(&mut it, n).await;
    }
    late_call.reply(401).await;
    it.accepts(late, 10).await;
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn two_hundred_401s_staggered_over_each_of_ten_refreshes_in_a_row_cause_no_further_refresh() {
    let mut it = Fixture::new().await;
    for n in 1..=10 {
        let (old, new) = (format!("a{n}"), format!("a{}", n + 1));
        let responses: Vec<_> = (0..200).map(|_| it.get()).collect();
        let mut calls = it.api.take(200).await;
        // Answered 401 before, during and after the refresh.
        let (after, during) = (calls.split_off(130), calls.split_off(60));
        for call in calls {
            assert_eq!(call.token(), Some(&*old));
            call.reply(401).await;
        }
        let refresh = it.auth.next().await;
        assert_eq!(refresh.presented(), format!("r{n}"));
        assert_eq!(refresh.request.generation().get(), u64::from(n));
        for call in during {
            call.reply(401).await;
        }
        settle().await;
        refresh.answer(Ok(pair(n + 1)));
        it.api.reply(130, &new, 200).await;
        for call in after {
            assert_eq!(call.token(), Some(&*old));
            call.reply(401).await;
        }
        it.api.reply(70, &new, 200).await;
        for response in responses {
            assert_eq!(response.await.unwrap().status(), 200);
        }
        assert!(it.auth.is_idle().await, "revocation {n}");
        assert_eq!(it.session.generation().get(), u64::from(n) + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_401_joins_the_refresh_that_replaces_a_token_refused_since() {
    let (mut it, late, late_call) = unanswered().await;
    refresh_to(&mut it, 2).await;
    let other = it.get();
    it.api.reply(1, "a2", 401).await;
    let refresh = it.auth.next().await;

    late_call.reply(401).await;
    // Not replayed yet: the token in force is known to be refused.
    assert!(it.api.is_idle().await);
    assert!(it.auth.is_idle().await);
    refresh.answer(Ok(pair(3)));
    it.api.reply(2, "a3", 200).await;
    assert_eq!(late.await.unwrap().status(), 200);
    assert_eq!(other.await.unwrap().status(), 200);
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_late_401_is_replayed_at_once_while_a_good_token_is_being_replaced() {
    let (mut it, late, late_call) = unanswered().await;
    refresh_to(&mut it, 2).await;
    let manual = refresh_now(&it);
    let refresh = it.auth.next().await;

    late_call.reply(401).await;
    it.accepts(late, 2).await;
    assert!(it.auth.is_idle().await);
    refresh.answer(Ok(pair(3)));
    manual.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_401_to_a_token_that_is_being_replaced_joins() {
    let mut it = Fixture::new().await;
    let manual = refresh_now(&it);
    let refresh = it.auth.next().await;
    let response = it.get();
    it.api.reply(1, "a1", 401).await;
    assert!(it.auth.is_idle().await);
    refresh.answer(Ok(pair(2)));
    it.accepts(response, 2).await;
    manual.await.unwrap().unwrap();
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_refused_replay_is_returned_as_it_is() {
    let mut it = Fixture::new().await;
    let response = it.get();
    it.api.reply(1, "a1", 401).await;
    it.auth.next().await.answer(Ok(pair(2)));
    it.api.reply(1, "a2", 401).await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), 401);
    assert!(matches!(report(&response), RefreshReport::ReplayRefused));
    assert_eq!(text(response).await, "status 401");
    assert!(it.auth.is_idle().await);
    assert!(it.api.is_idle().await);
    assert_eq!(it.session.tokens(), pair(2));
}

#[tokio::test(start_paused = true)]
async fn a_replay_with_another_error_status_is_returned_as_it_is() {
    let mut it = Fixture::new().await;
    for (n, status) in [(1, 403), (2, 404), (3, 429), (4, 500), (5, 503)] {
        let response = it.get();
        it.api.reply(1, &format!("a{n}"), 401).await;
        it.auth.next().await.answer(Ok(pair(n + 1)));
        it.api.reply(1, &format!("a{}", n + 1), status).await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), status);
        assert!(matches!(report(&response), RefreshReport::Replayed));
        assert!(it.api.is_idle().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_is_not_replayed_with_the_token_that_was_refused() {
    let mut it = Fixture::new().await;
    let responses = [it.get(), it.get()];
    it.api.reply(2, "a1", 401).await;
    it.auth.next().await.answer(Ok(pair(1)));
    for response in responses {
        let response = response.await.unwrap();
        assert_eq!(response.status(), 401);
        assert!(matches!(report(&response), RefreshReport::NotRefreshed(NotRefreshed::SameToken)));
        assert_eq!(text(response).await, "status 401");
    }
    assert!(it.api.is_idle().await);
    assert!(it.auth.is_idle().await);
    assert_eq!(it.session.generation().get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_late_401_causes_one_refresh_if_that_returns_a_token_refused_in_the_meantime() {
    let (mut it, late, late_call) = unanswered().await;
    refresh_to(&mut it, 2).await;
    let other = it.get();
    it.api.reply(1, "a2", 401).await;
    it.auth.next().await.answer(Ok(pair(2)));
    other.await.unwrap();

    late_call.reply(401).await;
    it.auth.next().await.answer(Ok(pair(2)));
    assert!(it.auth.is_idle().await);
    assert!(it.api.is_idle().await);
    let late = late.await.unwrap();
    assert!(matches!(report(&late), RefreshReport::NotRefreshed(NotRefreshed::SameToken)));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_token_that_comes_with_the_refused_access_token_is_kept() {
    let mut it = Fixture::new().await;
    let response = it.get();
    it.api.reply(1, "a1", 401).await;
    it.auth.next().await.answer(Ok(Tokens::new(access("a1"), refresh("r2"))));
    assert_eq!(response.await.unwrap().status(), 401);

    let response = it.get();
    it.api.reply(1, "a1", 401).await;
    let call = it.auth.next().await;
    assert_eq!(call.presented(), "r2");
    call.answer(Ok(pair(3)));
    it.accepts(response, 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_is_one_attempt_with_one_outcome_for_twenty_waiters() {
    let mut it = Fixture::new().await;
    let responses: Vec<_> = (0..20).map(|_| it.get()).collect();
    it.api.reply(20, "a1", 401).await;
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no such client")));
    let mut errors = Vec::new();
    for response in responses {
        let response = response.await.unwrap();
        assert_eq!(response.status(), 401);
        errors.push(failure(&response));
        assert_eq!(text(response).await, "status 401");
    }
    assert!(errors.iter().all(|error| Arc::ptr_eq(error, &errors[0])));
    assert!(it.auth.is_idle().await);
    assert!(it.api.is_idle().await);
    assert_eq!(it.session.tokens(), pair(1));
}

#[tokio::test(start_paused = true)]
async fn the_span_of_a_refresh_counts_its_waiters() {
    let (watch, _capture) = Watch::start();
    let mut it = Fixture::new().await;
    let responses: Vec<_> = (0..20).map(|_| it.get()).collect();
    it.api.reply(20, "a1", 401).await;
    let call = it.auth.next().await;
    settle().await;
    call.answer(Ok(pair(2)));
    it.api.reply(20, "a2", 200).await;
    for response in responses {
        assert_eq!(response.await.unwrap().status(), 200);
    }
    assert!(watch.count("waiters=20") > 0);
}

#[tokio::test(start_paused = true)]
async fn the_generation_grows_by_one_with_each_new_token_and_by_nothing_else() {
    let mut it = Fixture::new().await;
    assert_eq!(it.session.generation().get(), 1);
    refresh_to(&mut it, 2).await;
    assert_eq!(it.session.generation().get(), 2);

    let failing = refresh_now(&it);
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no such client")));
    failing.await.unwrap().unwrap_err();
    assert_eq!(it.session.generation().get(), 2);

    let same = refresh_now(&it);
    it.auth.next().await.answer(Ok(pair(2)));
    assert!(matches!(same.await.unwrap(), Err(NotRefreshed::SameToken)));
    assert_eq!(it.session.generation().get(), 2);

    it.session.sign_in(pair(1)).await.unwrap();
    assert_eq!(it.session.generation().get(), 3);
    it.session.sign_out().await.unwrap();
    assert_eq!(it.session.generation().get(), 3);
    it.session.sign_in(pair(1)).await.unwrap();
    assert_eq!(it.session.generation().get(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_manual_refresh_joins_the_refresh_that_is_under_way() {
    let mut it = Fixture::new().await;
    let response = it.get();
    it.api.reply(1, "a1", 401).await;
    let refresh = it.auth.next().await;
    let manual = [refresh_now(&it), refresh_now(&it)];
    assert!(it.auth.is_idle().await);
    refresh.answer(Ok(pair(2)));
    for refreshed in manual {
        refreshed.await.unwrap().unwrap();
    }
    it.accepts(response, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_manual_refresh_completes_with_the_first_new_token_even_if_an_api_refuses_it_at_once() {
    let mut it = Fixture::new().await;
    let session = it.session.clone();
    let mut manual = tokio_test::task::spawn(session.refresh());
    assert!(manual.poll().is_pending());
    it.auth.next().await.answer(Ok(pair(2)));
    settle().await;
    // The new token is refused, and the session cools down, before the manual refresh is polled.
    let response = it.get();
    it.api.reply(1, "a2", 401).await;
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no such client")));
    response.await.unwrap();

    settle().await;
    assert!(manual.is_woken());
    assert!(matches!(manual.poll(), std::task::Poll::Ready(Ok(tokens)) if tokens == pair(2)));
    assert!(it.auth.is_idle().await);
}

/// Refreshes the session to [`pair`]`(n)` with a request that the API first refuses.
async fn refresh_to(it: &mut Fixture, n: u32) {
    let response = it.get();
    it.api.reply(1, &format!("a{}", n - 1), 401).await;
    it.auth.next().await.answer(Ok(pair(n)));
    it.api.reply(1, &format!("a{n}"), 200).await;
    assert_eq!(response.await.unwrap().status(), 200);
}

fn refresh_now(it: &Fixture) -> JoinHandle<Result<Tokens, NotRefreshed>> {
    let session = it.session.clone();
    tokio::spawn(async move { session.refresh().await })
}
