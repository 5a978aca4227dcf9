//! Sessions without a refresh token, which request access tokens with the client's own credentials.

use tower_auth_refresh::refresh::Trigger;
use tower_auth_refresh::{NotRefreshed, RefreshError, SessionState, Tokens};

use crate::support::*;

/// Access token `a{n}`, and no refresh token.
fn access_only(n: u32) -> Tokens {
    Tokens::from_access_token(access(&format!("a{n}")))
}

#[tokio::test(start_paused = true)]
async fn the_first_request_waits_for_a_token_and_a_refused_one_is_replaced_without_a_refresh_token() {
    let mut it = Fixture::client_credentials().await;
    assert_eq!(it.session.state(), SessionState::Active);
    let response = it.get();
    let call = it.auth.next().await;
    assert_eq!((call.request.refresh_token(), call.request.trigger()), (None, Trigger::Acquire));
    assert!(it.api.is_idle().await);
    call.answer(Ok(access_only(1)));
    it.api.reply(1, "a1", 401).await;
    let call = it.auth.next().await;
    assert_eq!((call.request.refresh_token(), call.request.trigger()), (None, Trigger::Challenge));
    call.answer(Ok(access_only(2)));
    it.accepts(response, 2).await;
}

#[tokio::test(start_paused = true)]
async fn if_no_token_can_be_obtained_requests_are_sent_without_one_and_report_the_reason() {
    let mut it = Fixture::client_credentials().await;
    let response = it.get();
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no such client")));
    let call = it.api.next().await;
    assert_eq!(call.token(), None);
    call.reply(401).await;
    assert!(matches!(not_refreshed(&response.await.unwrap()), NotRefreshed::Failed(_)));
}
