//! Challenge policies of an app's own: by the token that the request carried, and by the body of the response.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::task::JoinHandle;
use tower::{ServiceBuilder, ServiceExt};
use tower_auth_refresh::challenge::ResponseHead;
use tower_auth_refresh::inspect::{InspectBody, InspectBodyLayer, InspectedBody};
use tower_auth_refresh::{
    AuthRefresh, AuthRefreshLayer, ChallengePolicy, RefreshError, RefreshReport, Session, Tokens,
};
use tower_layer::Layer;

use crate::support::*;

const MINUTE: Duration = Duration::from_secs(60);

/// Tokens that expire this long before or after now.
fn expiring(n: u32, late: bool) -> Tokens {
    let now = SystemTime::now();
    pair(n).with_expires_at(if late { now - MINUTE } else { now + 60 * MINUTE })
}

/// Answers that are identical for an expired token and for a forbidden resource.
fn forbidden_if_expired(head: &ResponseHead<'_>) -> bool {
    let replaced = head.generation().is_some() && !head.is_in_force();
    let expired = head.expires_at().is_some_and(|at| at <= SystemTime::now());
    head.status() == StatusCode::FORBIDDEN && (replaced || expired)
}

async fn fixture(tokens: Tokens) -> Fixture {
    let mut it = Fixture::with(|builder| builder.tokens(tokens)).await;
    let (service, api) = script();
    let layer = AuthRefreshLayer::new(it.session.clone(), origin());
    (it.client, it.api) = (layer.challenge(ChallengePolicy::when(forbidden_if_expired)).layer(service), api);
    it
}

#[tokio::test(start_paused = true)]
async fn a_403_to_an_expired_token_is_a_challenge_and_to_a_valid_one_is_not() {
    let mut it = fixture(expiring(1, true)).await;
    let response = it.get();
    it.api.reply(1, "a1", 403).await;
    it.auth.next().await.answer(Ok(expiring(2, false)));
    it.api.reply(1, "a2", 403).await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), 403);
    assert!(matches!(report(&response), RefreshReport::Replayed));
    let response = it.get();
    it.api.reply(1, "a2", 403).await;
    assert!(response.await.unwrap().extensions().get::<RefreshReport>().is_none());
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_403_to_a_token_that_has_been_replaced_is_replayed_without_a_refresh() {
    let mut it = fixture(expiring(1, true)).await;
    let (first, late) = (it.get(), it.get());
    let calls = it.api.take(2).await;
    let [first_call, late_call] = calls.try_into().ok().unwrap();
    first_call.reply(403).await;
    it.auth.next().await.answer(Ok(expiring(2, false)));
    it.accepts(first, 2).await;
    late_call.reply(403).await;
    it.accepts(late, 2).await;
    assert!(it.auth.is_idle().await);
}

// GraphQL.

const UNAUTHENTICATED: &str = r#"{"data":null,"errors":[{"message":"no","extensions":{"code":"UNAUTHENTICATED"}}]}"#;
const ME: &str = r#"{"data":{"me":"alice"}}"#;

fn graphql(body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

type GraphQl = AuthRefresh<InspectBody<Api>, Session>;

fn client(session: &Session) -> (GraphQl, ApiCalls) {
    let (service, api) = script();
    let is_unauthenticated = |_: &ResponseHead<'_>, body: &serde_json::Value| {
        let errors = body["errors"].as_array();
        errors.is_some_and(|errors| errors.iter().any(|error| error["extensions"]["code"] == "UNAUTHENTICATED"))
    };
    let client = ServiceBuilder::new()
        .layer(AuthRefreshLayer::new(session.clone(), origin()).challenge(ChallengePolicy::inspected()))
        .layer(InspectBodyLayer::json(is_unauthenticated))
        .service(service);
    (client, api)
}

fn query(client: &GraphQl) -> JoinHandle<Result<Response<InspectedBody<Full<Bytes>>>, Infallible>> {
    let request = Request::post(ORIGIN).body(Full::from(r#"{"query":"{ me }"}"#)).unwrap();
    tokio::spawn(client.clone().oneshot(request))
}

async fn body(response: Response<InspectedBody<Full<Bytes>>>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test(start_paused = true)]
async fn a_graphql_error_that_says_unauthenticated_causes_a_refresh_and_a_replay() {
    let mut it = Fixture::new().await;
    let (client, mut api) = client(&it.session);
    let response = query(&client);
    let call = api.next().await;
    assert_eq!(call.token(), Some("a1"));
    call.respond(graphql(UNAUTHENTICATED)).await;
    it.auth.next().await.answer(Ok(pair(2)));
    let call = api.next().await;
    assert_eq!(call.token(), Some("a2"));
    call.respond(graphql(ME)).await;
    let response = response.await.unwrap().unwrap();
    assert!(matches!(report(&response), RefreshReport::Replayed));
    assert_eq!(body(response).await, ME);
    // Another error, and an ordinary 401.
    let response = query(&client);
    api.next().await.respond(graphql(r#"{"errors":[{"extensions":{"code":"FORBIDDEN"}}]}"#)).await;
    assert!(response.await.unwrap().unwrap().extensions().get::<RefreshReport>().is_none());
    let response = query(&client);
    api.next().await.reply(401).await;
    it.auth.next().await.answer(Ok(pair(3)));
    api.next().await.respond(graphql(ME)).await;
    assert_eq!(body(response.await.unwrap().unwrap()).await, ME);
}

#[tokio::test(start_paused = true)]
async fn a_graphql_error_reaches_the_caller_intact_if_there_is_no_newer_token() {
    let mut it = Fixture::new().await;
    let (client, mut api) = client(&it.session);
    let response = query(&client);
    api.next().await.respond(graphql(UNAUTHENTICATED)).await;
    it.auth.next().await.answer(Err(RefreshError::misconfigured("no")));
    let response = response.await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    not_refreshed(&response);
    assert_eq!(body(response).await, UNAUTHENTICATED);
}
