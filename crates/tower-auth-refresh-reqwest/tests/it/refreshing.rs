//! Expired tokens, failing refreshes, sessions that end, and the settings of a single request.

use std::net::TcpListener;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use http::Method;
use tokio::sync::watch;
use tower_auth_refresh_reqwest::tower_auth_refresh::NotRefreshed;
use tower_auth_refresh_reqwest::tower_auth_refresh::replay::NotReplayable;
use tower_auth_refresh_reqwest::{
    ApiClient, AuthRefreshLayer, JsonRefresh, RefreshReport, RequestBuilder, SendWith, Session, reqwest,
};
use tower_auth_refresh_testkit::{Fault, Route, TestServer};

use crate::support::{
    Numbered, Server, builder, client_of, is_replayed, kit_client, origin, report, service, signed_in, status,
};

#[tokio::test]
async fn an_expired_token_is_refreshed_and_the_caller_sees_one_ordinary_response() {
    let server = TestServer::start().await.unwrap();
    let (api, _) = kit_client(&server, builder()).await;
    let response = api.get(server.url("/api/notes")).query(&[("page", 2)]).send().await.unwrap();
    assert_eq!((response.status().as_u16(), report(&response).is_none()), (200, true));

    server.expire_access_tokens();
    let response = api.post(server.url("/api/notes")).json(&["a note"]).send().await.unwrap();
    assert!(is_replayed(&response));
    let body: serde_json::Value = response.error_for_status().unwrap().json().await.unwrap();
    assert_eq!((&body["user"], &body["generation"], &body["body_length"]), (&"ada".into(), &2.into(), &10.into()));
    assert_eq!((server.counters().refreshes, server.violations().len()), (1, 0));
}

#[tokio::test]
async fn of_fifty_requests_that_are_refused_together_one_refreshes_over_http1_and_http2() {
    for builder in [builder(), builder().http2_prior_knowledge()] {
        let server = TestServer::start().await.unwrap();
        let (api, _) = kit_client(&server, builder).await;
        server.expire_access_tokens();
        server.hold_unauthorized_until(50);
        let calls = (0..50).map(|n| api.put(server.url(&format!("/api/notes/{n}"))).body(vec![7; 1000]).send());
        for response in join_all(calls).await {
            let response = response.unwrap();
            assert!(is_replayed(&response));
            assert_eq!(response.status(), 200);
        }
        let counters = server.counters();
        assert_eq!((counters.refreshes, counters.unauthorized(), counters.api), (1, 50, 100));
        assert_eq!((server.violations().len(), counters.body_mismatches), (0, 0));
    }
}

#[tokio::test]
async fn while_the_network_fails_the_401_is_returned_and_the_tokens_are_kept() {
    let server = TestServer::start().await.unwrap();
    let closed = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let http = service();
    let refresh = JsonRefresh::new(http.auth_client(), &format!("http://{closed}/auth/refresh")).unwrap();
    let tokens = server.sign_in("ada").try_into().unwrap();
    let session = Session::builder(refresh).tokens(tokens).build().await.unwrap();
    let api = ApiClient::new(session.clone(), origin(&server.origin()), http);
    let before = session.tokens();

    server.expire_access_tokens();
    let response = api.get(server.url("/api/notes")).send().await.unwrap();
    let Some(RefreshReport::NotRefreshed(why)) = report(&response) else { panic!("{response:?}") };
    assert!(!why.requires_sign_in());
    assert!(matches!(why, NotRefreshed::Failed(_)), "{why:?}");
    assert_eq!(response.status(), 401);
    assert!(response.headers()["www-authenticate"].to_str().unwrap().contains("invalid_token"));
    assert_eq!(response.text().await.unwrap(), r#"{"error":"invalid_token"}"#);
    assert!(session.tokens() == before && session.state().is_signed_in());
    assert_eq!(server.counters().api, 1);
}

#[tokio::test]
async fn a_session_that_has_ended_is_reported_and_a_new_sign_in_works_at_once() {
    let server = TestServer::start().await.unwrap();
    let (api, session) = kit_client(&server, builder()).await;
    server.revoke("ada");
    for _ in 0..2 {
        let response = api.get(server.url("/api/notes")).send().await.unwrap();
        let Some(RefreshReport::NotRefreshed(why)) = report(&response) else { panic!("{response:?}") };
        assert!(why.requires_sign_in());
        assert_eq!(response.status(), 401);
    }
    assert!(session.state().is_ended());
    assert_eq!(server.counters().refreshes, 1);

    session.sign_in(server.sign_in("ada").try_into().unwrap()).await.unwrap();
    assert_eq!(api.get(server.url("/api/notes")).send().await.unwrap().status(), 200);
}

/// A body of two chunks of a thousand bytes, and the number of chunks that have been sent.
fn streamed() -> (reqwest::Body, watch::Receiver<usize>) {
    let (sender, sent) = watch::channel(0);
    let chunks = stream::iter([Ok::<_, std::io::Error>(vec![1; 1000]), Ok(vec![2; 1000])]);
    let counted = chunks.inspect(move |_| sender.send_modify(|sent| *sent += 1));
    (reqwest::Body::wrap_stream(counted), sent)
}

#[tokio::test]
async fn a_stream_over_the_limit_is_not_replayed_and_the_session_refreshes_nonetheless() {
    let server = TestServer::start().await.unwrap();
    // Otherwise the server closes the connection, and the client may see that instead of the 401.
    server.configure(|settings| settings.unread_body = tower_auth_refresh_testkit::UnreadBody::Read);
    let (api, session) = kit_client(&server, builder()).await;
    for (limit, is_replayed_within) in [(1999, false), (2000, true)] {
        server.expire_access_tokens();
        let generation = session.generation();
        // The whole body is sent before the 401.
        let refused = server.hold_unauthorized();
        let limited = api.clone().with_replay_limit(limit);
        let (body, mut sent) = streamed();
        let call = tokio::spawn(limited.post(server.url("/api/upload")).body(body).send());
        refused.arrived(1).await;
        sent.wait_for(|sent| *sent == 2).await.unwrap();
        refused.open();
        let response = call.await.unwrap().unwrap();
        if is_replayed_within {
            assert_eq!(response.status(), 200);
        } else {
            let why = report(&response);
            assert!(matches!(why, Some(RefreshReport::NotReplayable(NotReplayable::TooLarge))), "{why:?}");
            assert_eq!(api.get(server.url("/api/notes")).send().await.unwrap().status(), 200);
        }
        assert!(session.generation() > generation);
    }
    assert_eq!(server.violations(), []);
}

#[tokio::test]
async fn each_request_carries_the_token_of_its_own_session() {
    let server = TestServer::start().await.unwrap();
    let http = service();
    let (ada, bob) = (signed_in(&server, "ada", &http).await, signed_in(&server, "bob", &http).await);
    let layer = AuthRefreshLayer::per_request(origin(&server.origin()));
    let api = ApiClient::from_layer(layer, http.clone());
    let user = async |api: ApiClient| {
        let response = api.get(server.url("/api/me")).send().await.unwrap();
        response.json::<serde_json::Value>().await.unwrap()["user"].clone()
    };
    for _ in 0..2 {
        assert_eq!(user(api.clone().with_session(ada.clone())).await, "ada");
        assert_eq!(user(api.clone().with_session(bob.clone())).await, "bob");
        server.expire_access_tokens();
    }
    assert_eq!(server.counters().refreshes, 2);

    let response = api.get(server.url("/api/me")).send().await.unwrap();
    assert!(matches!(report(&response), Some(RefreshReport::NotRefreshed(NotRefreshed::NoSession))));
    assert_eq!(response.status(), 401);

    // A client with a session of its own.
    let api = ApiClient::new(ada, origin(&server.origin()), http);
    assert_eq!(user(api.clone()).await, "ada");
    assert_eq!(user(api.clone().with_session(bob)).await, "bob");
    assert_eq!(user(api).await, "ada");
}

#[tokio::test]
async fn a_request_that_skips_auth_and_one_with_credentials_of_its_own_pass_untouched() {
    let server = Server::start(|_| status(401)).await;
    let user = Numbered::new().await;
    let api = client_of(&server, &user.session);
    let skipping = api.clone().with_skip_auth();
    let token = async |request: RequestBuilder| {
        let response = request.send().await.unwrap();
        assert_eq!((response.status().as_u16(), report(&response).is_none()), (401, true));
        server.take_seen().pop().unwrap().token().map(str::to_owned)
    };
    assert_eq!(token(skipping.get(server.url("/public"))).await, None);
    assert_eq!(token(api.get(server.url("/")).bearer_auth("mine")).await.as_deref(), Some("Bearer mine"));
    let basic = token(api.get(server.url("/")).basic_auth("ada", Some("right"))).await;
    assert_eq!(basic.as_deref(), Some("Basic YWRhOnJpZ2h0"));
    let in_the_url = server.url("/").replace("http://", "http://ada:right@");
    assert_eq!(token(api.get(in_the_url)).await, basic);
    assert_eq!(user.refreshes(), 0);
}

#[tokio::test]
async fn requests_of_reqwests_own_builder_and_built_requests_are_refreshed_as_well() {
    let server = Server::expiring(|_| status(200)).await;
    let bare = reqwest::Client::new();
    for round in 0..4 {
        let user = Numbered::new().await;
        let api = client_of(&server, &user.session);
        let response = match round {
            0 => bare.get(server.url("/")).send_with(&api).await,
            1 => api.execute(bare.get(server.url("/")).build().unwrap()).await,
            2 => api.execute(api.get(server.url("/")).build().unwrap()).await,
            _ => api.get(server.url("/")).try_clone().unwrap().send().await,
        };
        assert!(is_replayed(&response.unwrap()));
        assert_eq!(user.refreshes(), 1);
    }
}

#[tokio::test]
async fn the_builder_sets_what_reqwests_builder_sets() {
    let server = Server::expiring(|_| status(200)).await;
    let bare = builder().build().unwrap();
    let form = [("a", "1"), ("b", "2")];
    let headers = || [("x-more".parse().unwrap(), "2".parse().unwrap())].into_iter().collect();
    for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD] {
        let user = Numbered::new().await;
        let (api, url) = (client_of(&server, &user.session), server.url("/path?first=0"));
        let start = match method {
            Method::GET => api.get(&url),
            Method::POST => api.post(&url),
            Method::PUT => api.put(&url),
            Method::PATCH => api.patch(&url),
            Method::DELETE => api.delete(&url),
            _ => api.head(&url),
        };
        let ours = start.header("x-own", "1").headers(headers()).query(&form).form(&form);
        assert!(format!("{ours:?}").contains("first=0"), "{ours:?}");
        ours.send().await.unwrap();
        let sent = bare.request(method, &url).header("x-own", "1").headers(headers()).query(&form).form(&form);
        sent.send().await.unwrap();
        let [refused, replayed, bare] = server.take_seen().try_into().unwrap();
        assert_eq!(refused.without_token(), bare);
        assert_eq!(replayed.without_token(), bare);
    }
    let user = Numbered::new().await;
    let api = client_of(&server, &user.session);
    assert!(api.get("no URL").send().await.unwrap_err().is_builder());
    assert!(api.get(server.url("/")).header("a b", "").build().unwrap_err().is_builder());
    assert!(api.post(server.url("/")).body(streamed().0).try_clone().is_none());
    let debug = format!("{api:?}");
    assert!(debug.starts_with("ApiClient { http: ReqwestService") && !debug.contains("a1"), "{debug}");
}

#[tokio::test]
async fn a_server_that_fails_is_no_challenge() {
    let server = TestServer::start().await.unwrap();
    let (api, _) = kit_client(&server, builder()).await;
    server.inject(Route::Api, Fault::status(503).times(1));
    let response = api.get(server.url("/api/notes")).send().await.unwrap();
    assert_eq!((response.status().as_u16(), report(&response).is_none()), (503, true));
    server.inject(Route::Api, Fault::drop_connection().times(1));
    let error = api.get(server.url("/api/notes")).send().await.unwrap_err();
    assert!(error.is_request() && error.url().unwrap().path() == "/api/notes", "{error:?}");
    assert_eq!(server.counters().refreshes, 0);
}
