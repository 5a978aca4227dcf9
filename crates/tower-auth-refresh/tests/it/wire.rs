//! Scenarios over real sockets, with hyper's client and server and the testkit's oracle.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;
use tower::{BoxError, ServiceExt};
use tower_auth_refresh::{
    AuthRefresh, AuthRefreshLayer, Origin, RefreshError, RefreshRequest, ReplayBody, Session, Tokens,
};
use tower_auth_refresh_testkit::{Fault, Route, TestServer};
use tower_layer::Layer;

use crate::support::{access, refresh};

type HttpClient = Client<HttpConnector, ReplayBody<Full<Bytes>>>;

/// The JSON refresh call of the testkit's server.
async fn call_refresh(
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    request: RefreshRequest,
) -> Result<Tokens, RefreshError> {
    let body = serde_json::json!({ "refresh_token": request.refresh_token().unwrap().expose_secret() });
    let post = Request::post(url).header("content-type", "application/json").body(Full::from(body.to_string()));
    let response = client.request(post.unwrap()).await.map_err(RefreshError::in_doubt)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(RefreshError::in_doubt)?.to_bytes();
    if status == StatusCode::UNAUTHORIZED {
        return Err(RefreshError::rejected("the refresh was answered 401"));
    }
    let answer: serde_json::Value = serde_json::from_slice(&body).map_err(RefreshError::in_doubt)?;
    let token = |name: &str| answer[name].as_str().unwrap().to_owned();
    Ok(Tokens::new(access(&token("access_token")), refresh(&token("refresh_token"))))
}

async fn stack(server: &TestServer, user: &str) -> (Session, AuthRefresh<HttpClient, Session>) {
    let http = Client::builder(TokioExecutor::new()).build_http();
    let url = server.url("/auth/refresh");
    let service = tower::service_fn(move |request| call_refresh(http.clone(), url.clone(), request));
    let signed_in = server.sign_in(user);
    let tokens = Tokens::new(access(&signed_in.access_token), refresh(&signed_in.refresh_token));
    let session = Session::builder(service).tokens(tokens).build().await.unwrap();
    let layer = AuthRefreshLayer::new(session.clone(), Origin::parse(&server.origin()).unwrap());
    (session, layer.layer(Client::builder(TokioExecutor::new()).build_http()))
}

async fn get(client: AuthRefresh<HttpClient, Session>, url: String) -> Result<StatusCode, BoxError> {
    let response = client.oneshot(Request::get(url).body(Full::default())?).await?;
    let status = response.status();
    response.into_body().collect().await?;
    Ok(status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_revocations_in_a_row_under_two_hundred_staggered_401s_cost_one_refresh_each() {
    let server = TestServer::start().await.unwrap();
    let (_session, client) = stack(&server, "ada").await;
    for round in 1..=10 {
        server.expire_access_tokens();
        server.inject(Route::Refresh, Fault::delay(Duration::from_millis(20)).times(1));
        let mut calls = JoinSet::new();
        for number in 0..200 {
            let (client, url) = (client.clone(), server.url(&format!("/api/notes/{number}")));
            calls.spawn(async move {
                // Spread over the refresh: requests use the old token, join the flight, or use the new token.
                tokio::time::sleep(Duration::from_micros(number * 300)).await;
                get(client, url).await.unwrap()
            });
        }
        let statuses = calls.join_all().await;
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 200, "round {round}");
        assert_eq!(server.counters().refreshes, round, "one refresh for each revocation");
    }
    assert_eq!(server.violations(), []);
    assert_eq!(server.counters().max_concurrent_refreshes, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_401s_that_arrive_together_cost_one_refresh() {
    let server = TestServer::start().await.unwrap();
    let (_session, client) = stack(&server, "ada").await;
    server.expire_access_tokens();
    server.hold_unauthorized_until(200);
    let mut calls = JoinSet::new();
    for number in 0..200 {
        let (client, url) = (client.clone(), server.url(&format!("/api/notes/{number}")));
        calls.spawn(async move { get(client, url).await.unwrap() });
    }
    assert!(calls.join_all().await.iter().all(|status| *status == 200));
    let counters = server.counters();
    assert_eq!((counters.unauthorized(), counters.refreshes, counters.violations), (200, 1, 0));
}
