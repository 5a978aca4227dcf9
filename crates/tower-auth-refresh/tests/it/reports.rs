//! Reports: every 401 that reaches the caller has the reason.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::ServiceExt;
use tower_auth_refresh::{
    AuthRefreshLayer, ChallengePolicy, NotRefreshed, RefreshError, RefreshReport, SkipAuth, Tokens,
};
use tower_layer::Layer;

use crate::support::*;

/// A refusal with this status and challenge.
fn refusal(status: u16, challenge: &str) -> Response<Full<Bytes>> {
    let mut response = response(status);
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge.parse().unwrap());
    response
}

/// Sends a request that is refused in this way. Returns the token that it carried, and the response.
async fn refused(it: &mut Fixture, status: u16, challenge: &str) -> (Option<String>, Response<Full<Bytes>>) {
    let response = it.get();
    let call = it.api.next().await;
    let token = call.token().map(Into::into);
    call.respond(refusal(status, challenge)).await;
    (token, response.await.unwrap())
}

/// Challenges that a server sends if a request has no token, and others.
const CHALLENGES: [&str; 5] = [
    r#"Bearer realm="api", error="missing_authorization""#,
    "Bearer",
    "Basic realm=api",
    r#"Bearer error="insufficient_user_authentication", acr_values="gold""#,
    "",
];

#[tokio::test(start_paused = true)]
async fn a_request_without_a_token_reports_why_there_is_none_whatever_its_challenge_says() {
    let mut signed_out = Fixture::with(|builder| builder).await;
    for challenge in CHALLENGES {
        let (token, response) = refused(&mut signed_out, 401, challenge).await;
        assert_eq!(token, None);
        assert!(matches!(not_refreshed(&response), NotRefreshed::SignedOut), "{challenge}");
    }

    let mut ended = Fixture::new().await;
    let response = ended.get_refused().await;
    ended.auth.next().await.answer(Err(RefreshError::rejected("no")));
    response.await.unwrap();
    for challenge in CHALLENGES {
        let (token, response) = refused(&mut ended, 401, challenge).await;
        assert_eq!(token, None);
        assert!(matches!(not_refreshed(&response), NotRefreshed::Ended(_)), "{challenge}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_in_vain_for_its_first_token_reports_the_failed_refresh() {
    let mut it = Fixture::with(|builder| builder.tokens(Tokens::from_refresh_token(refresh("r1")))).await;
    let response = it.get();
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no")));
    let call = it.api.next().await;
    assert_eq!(call.token(), None);
    call.respond(refusal(401, CHALLENGES[0])).await;
    assert!(matches!(not_refreshed(&response.await.unwrap()), NotRefreshed::Failed(_)));
}

#[tokio::test(start_paused = true)]
async fn a_request_sent_in_a_cool_down_that_is_over_when_it_is_refused_has_a_report() {
    let mut it = Fixture::with(|builder| builder.tokens(Tokens::from_refresh_token(refresh("r1")))).await;
    let first = it.get();
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no")));
    it.api.next().await.reply(401).await;
    first.await.unwrap();
    let response = it.get();
    let call = it.api.next().await;
    assert_eq!(call.token(), None);
    // By now the next request would start a refresh.
    tokio::time::sleep(Duration::from_secs(120)).await;
    call.respond(refusal(401, CHALLENGES[0])).await;
    assert!(matches!(not_refreshed(&response.await.unwrap()), NotRefreshed::CoolingDown(_)));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_token_that_is_refused_after_a_sign_in_reports_the_sign_in() {
    let mut it = Fixture::with(|builder| builder).await;
    let response = it.get();
    let call = it.api.next().await;
    it.session.sign_in(pair(1)).await.unwrap();
    call.respond(refusal(401, CHALLENGES[0])).await;
    assert!(matches!(not_refreshed(&response.await.unwrap()), NotRefreshed::SessionChanged));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_token_that_is_accepted_has_no_report() {
    let mut it = Fixture::with(|builder| builder).await;
    for status in [200, 403, 404, 500] {
        let response = it.get();
        it.api.next().await.reply(status).await;
        assert!(response.await.unwrap().extensions().get::<RefreshReport>().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_token_is_reported_if_the_policy_watches_its_status() {
    let it = Fixture::with(|builder| builder).await;
    let (service, mut api) = script();
    let layer = AuthRefreshLayer::new(it.session.clone(), origin())
        .challenge(ChallengePolicy::when(|head| head.status() == StatusCode::FORBIDDEN && head.generation().is_none()));
    let client = layer.layer(service);
    let request = Request::get(ORIGIN).body(Full::<Bytes>::default()).unwrap();
    let response = tokio::spawn(client.oneshot(request));
    api.next().await.reply(403).await;
    assert!(matches!(not_refreshed(&response.await.unwrap().unwrap()), NotRefreshed::SignedOut));
}

#[tokio::test(start_paused = true)]
async fn a_401_for_another_reason_reports_its_scheme_and_error() {
    let mut it = Fixture::new().await;
    for (challenge, scheme, error) in [
        ("Basic realm=api", Some("Basic"), None),
        (r#"OAuth2 realm="api", error="invalid_token""#, Some("OAuth2"), Some("invalid_token")),
        (r#"Bearer error="invalid_request", error_description="a1 is odd""#, Some("Bearer"), Some("invalid_request")),
    ] {
        let (token, response) = refused(&mut it, 401, challenge).await;
        assert_eq!(token.as_deref(), Some("a1"));
        let RefreshReport::OtherChallenge(summary) = report(&response) else { panic!("{:?}", report(&response)) };
        assert_eq!((summary.scheme(), summary.error()), (scheme, error));
        assert!(!format!("{summary:?} {}", report(&response)).contains("a1"));
    }
    assert!(it.auth.is_idle().await);
    // By a strict policy, a 401 without a challenge too.
    let (service, mut api) = script();
    let strict = AuthRefreshLayer::new(it.session.clone(), origin()).challenge(ChallengePolicy::strict_bearer());
    let response = tokio::spawn(strict.layer(service).oneshot(Request::get(ORIGIN).body(Full::default()).unwrap()));
    let mut plain = Response::new(Full::default());
    *plain.status_mut() = StatusCode::UNAUTHORIZED;
    api.next().await.respond(plain).await;
    let response = response.await.unwrap().unwrap();
    let RefreshReport::OtherChallenge(summary) = report(&response) else { panic!("{:?}", report(&response)) };
    assert_eq!((summary.scheme(), summary.error()), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_is_refused_for_another_reason_reports_that_reason() {
    let mut it = Fixture::new().await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Ok(pair(2)));
    it.api.next().await.respond(refusal(401, "Negotiate")).await;
    assert!(matches!(report(&response.await.unwrap()), RefreshReport::OtherChallenge(_)));
}

#[tokio::test(start_paused = true)]
async fn a_step_up_or_missing_scope_reports_what_the_server_requires() {
    let mut it = Fixture::new().await;
    let step_up = r#"Bearer error="insufficient_user_authentication", acr_values="gold silver", max_age="300""#;
    let (_, response) = refused(&mut it, 401, step_up).await;
    let RefreshReport::StepUp(required) = report(&response) else { panic!("{:?}", report(&response)) };
    assert_eq!((required.acr_values(), required.max_age()), (Some("gold silver"), Some("300")));
    let scope =
        r#"Bearer error="insufficient_scope", scope="read write", resource_metadata="https://api.example.com/m""#;
    for status in [401, 403] {
        let (_, response) = refused(&mut it, status, scope).await;
        assert_eq!(response.status(), status);
        let RefreshReport::StepUp(required) = report(&response) else { panic!("{:?}", report(&response)) };
        assert_eq!(required.error(), Some("insufficient_scope"));
        assert_eq!(required.scope(), Some("read write"));
        assert_eq!(required.resource_metadata(), Some("https://api.example.com/m"));
        assert_eq!(text(response).await, format!("status {status}"));
    }
    let (_, forbidden) = refused(&mut it, 403, "Bearer error=forbidden").await;
    assert!(forbidden.extensions().get::<RefreshReport>().is_none());
    assert!(it.auth.is_idle().await);

    let response = it.get_refused().await;
    it.auth.next().await.answer(Ok(pair(2)));
    it.api.next().await.respond(refusal(403, scope)).await;
    assert!(matches!(report(&response.await.unwrap()), RefreshReport::StepUp(_)));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_the_layers_business_has_no_report() {
    let mut it = Fixture::with(|builder| builder).await;
    for request in [
        Request::get("https://other.example.com/"),
        Request::get(ORIGIN).extension(SkipAuth),
        Request::get(ORIGIN).header(AUTHORIZATION, "Bearer mine"),
    ] {
        let response = it.send(request.body(Full::default()).unwrap());
        it.api.next().await.reply(401).await;
        assert!(response.await.unwrap().extensions().get::<RefreshReport>().is_none());
    }
}
