//! [`AuthRefreshMiddleware`] in stacks of reqwest-middleware, outside and inside of reqwest-retry.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream;
use http::Extensions;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next};
use reqwest_retry::RetryTransientMiddleware;
use reqwest_retry::policies::ExponentialBackoff;
use tower_auth_refresh_reqwest::tower_auth_refresh::{NotRefreshed, ReplayLimit, SkipAuth};
use tower_auth_refresh_reqwest::{AuthRefreshLayer, AuthRefreshMiddleware, RefreshReport, Session, reqwest};
use tower_auth_refresh_testkit::TestServer;

use crate::support::{
    Numbered, Seen, Server, builder, chain, expired, is_replayed, origin, redirect, report, service, signed_in, status,
};

fn refreshing(server: &Server, session: &Session) -> AuthRefreshMiddleware {
    AuthRefreshMiddleware::new(session.clone(), origin(&server.origin()))
}

/// Retries twice.
fn retrying() -> impl Middleware {
    let soon = Duration::from_millis(1);
    let policy = ExponentialBackoff::builder().retry_bounds(soon, soon).build_with_max_retries(2);
    RetryTransientMiddleware::new_with_policy(policy)
}

fn stack(middlewares: impl IntoIterator<Item = Arc<dyn Middleware>>) -> ClientWithMiddleware {
    let builder = ClientBuilder::new(service().client().clone());
    middlewares.into_iter().fold(builder, ClientBuilder::with_arc).build()
}

fn tokens(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|seen| seen.token().unwrap().strip_prefix("Bearer ").unwrap()).collect()
}

/// A server that answers 503 to the first `failures` requests, then 401 to the token `a1`.
async fn failing_first(failures: u32) -> Server {
    let count = AtomicU32::new(0);
    Server::start(move |seen| {
        if count.fetch_add(1, Ordering::SeqCst) < failures {
            status(503)
        } else if seen.is_expired() {
            expired()
        } else {
            status(200)
        }
    })
    .await
}

#[tokio::test]
async fn outside_of_retry_each_attempt_is_retried_and_a_request_is_replayed_once() {
    let server = failing_first(1).await;
    let user = Numbered::new().await;
    let client = stack([Arc::new(refreshing(&server, &user.session)) as Arc<dyn Middleware>, Arc::new(retrying())]);
    let response = client.post(server.url("/")).body("the body").send().await.unwrap();
    assert!(is_replayed(&response));
    let seen = server.take_seen();
    assert_eq!(tokens(&seen), ["a1", "a1", "a2"]);
    assert!(seen.iter().all(|seen| seen.body == "the body" && seen.header("content-length") == Some("8")));

    // The replay is retried too.
    let server = Server::start(|seen| if seen.is_expired() { expired() } else { status(503) }).await;
    let user = Numbered::new().await;
    let client = stack([Arc::new(refreshing(&server, &user.session)) as Arc<dyn Middleware>, Arc::new(retrying())]);
    assert_eq!(client.get(server.url("/")).send().await.unwrap().status(), 503);
    assert_eq!(tokens(&server.take_seen()), ["a1", "a2", "a2", "a2"]);
}

#[tokio::test]
async fn inside_of_retry_each_try_is_a_request_of_its_own_with_the_token_in_force() {
    let server = failing_first(1).await;
    let user = Numbered::new().await;
    let client = stack([Arc::new(retrying()) as Arc<dyn Middleware>, Arc::new(refreshing(&server, &user.session))]);
    let response = client.post(server.url("/")).body("the body").send().await.unwrap();
    assert!(is_replayed(&response));
    let seen = server.take_seen();
    assert_eq!(tokens(&seen), ["a1", "a1", "a2"]);
    assert!(seen.iter().all(|seen| seen.body == "the body"));

    // A retry behind a replay goes on with the newer token.
    let server = Server::start(|seen| if seen.is_expired() { expired() } else { status(503) }).await;
    let user = Numbered::new().await;
    let client = stack([Arc::new(retrying()) as Arc<dyn Middleware>, Arc::new(refreshing(&server, &user.session))]);
    assert_eq!(client.get(server.url("/")).send().await.unwrap().status(), 503);
    assert_eq!(tokens(&server.take_seen()), ["a1", "a2", "a2", "a2"]);
}

#[tokio::test]
async fn in_both_orders_fifty_requests_that_are_refused_together_cause_one_refresh() {
    for outside in [false, true] {
        let server = TestServer::start().await.unwrap();
        let http = service();
        let session = signed_in(&server, "ada", &http).await;
        let refreshing = AuthRefreshMiddleware::new(session, origin(&server.origin()));
        let builder = ClientBuilder::new(http.client().clone());
        let client =
            if outside { builder.with(refreshing).with(retrying()) } else { builder.with(retrying()).with(refreshing) };
        let client = client.build();
        server.expire_access_tokens();
        server.hold_unauthorized_until(50);
        let calls = (0..50).map(|_| client.put(server.url("/api/notes")).body(vec![7; 1000]).send());
        for response in join_all(calls).await {
            assert!(is_replayed(&response.unwrap()));
        }
        let counters = server.counters();
        assert_eq!((counters.refreshes, counters.api, server.violations().len()), (1, 100, 0));
    }
}

#[tokio::test]
async fn the_settings_of_a_request_are_taken_from_its_extensions() {
    let server = Server::expiring(|_| status(200)).await;
    let (user, other) = (Numbered::new().await, Numbered::new().await);
    let per_request = AuthRefreshLayer::per_request(origin(&server.origin()));
    let client = stack([Arc::new(AuthRefreshMiddleware::from_layer(per_request)) as Arc<dyn Middleware>]);
    let response = client.get(server.url("/")).send().await.unwrap();
    assert_eq!((response.status().as_u16(), report(&response).is_none()), (200, true));
    assert_eq!(server.take_seen()[0].token(), None);
    let response = client.get(server.url("/")).with_extension(user.session.clone()).send().await.unwrap();
    assert!(is_replayed(&response));

    let client = stack([Arc::new(refreshing(&server, &user.session)) as Arc<dyn Middleware>]);
    let response = client.get(server.url("/")).with_extension(other.session.clone()).send().await.unwrap();
    assert!(is_replayed(&response));
    assert_eq!((user.refreshes(), other.refreshes()), (1, 1));
    server.take_seen();
    client.get(server.url("/")).with_extension(SkipAuth).send().await.unwrap();
    assert_eq!(server.take_seen()[0].token(), None);

    let fresh = Numbered::new().await;
    let client = stack([Arc::new(refreshing(&server, &fresh.session)) as Arc<dyn Middleware>]);
    let streamed = || reqwest::Body::wrap_stream(stream::iter([Ok::<_, std::io::Error>("four")]));
    let request = client.post(server.url("/")).with_extension(ReplayLimit(3)).body(streamed());
    assert!(matches!(report(&request.send().await.unwrap()), Some(RefreshReport::NotReplayable(_))));
}

#[tokio::test]
async fn without_a_session_a_401_says_so() {
    let server = Server::start(|_| expired()).await;
    let per_request = AuthRefreshLayer::per_request(origin(&server.origin()));
    let middleware = AuthRefreshMiddleware::from_layer(per_request);
    assert_eq!(format!("{middleware:?}"), "AuthRefreshMiddleware { .. }");
    let client = stack([Arc::new(middleware) as Arc<dyn Middleware>]);
    let response = client.get(server.url("/")).send().await.unwrap();
    assert!(matches!(report(&response), Some(RefreshReport::NotRefreshed(NotRefreshed::NoSession))));
}

/// Counts in the extensions of a request how often it passes, and records the count before and after.
#[derive(Clone, Default)]
struct Count(Arc<Mutex<Vec<[u32; 2]>>>);

#[async_trait::async_trait]
impl Middleware for Count {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<reqwest::Response> {
        let before = *extensions.get_or_insert_default::<u32>();
        extensions.insert(before + 1);
        let response = next.run(request, extensions).await?;
        self.0.lock().unwrap().push([before, *extensions.get::<u32>().unwrap()]);
        Ok(response)
    }
}

#[tokio::test]
async fn extensions_reach_the_middlewares_inside_and_their_changes_those_outside() {
    let server = Server::expiring(|_| status(200)).await;
    let user = Numbered::new().await;
    let (outside, inside) = (Count::default(), Count::default());
    let ours = refreshing(&server, &user.session);
    let client = stack([Arc::new(outside.clone()) as Arc<dyn Middleware>, Arc::new(ours), Arc::new(inside.clone())]);
    assert!(is_replayed(&client.get(server.url("/")).send().await.unwrap()));
    assert_eq!(*inside.0.lock().unwrap(), [[1, 2], [1, 2]], "each attempt begins with those of the request");
    assert_eq!(*outside.0.lock().unwrap(), [[0, 2]]);
}

#[tokio::test]
async fn redirects_are_followed_and_each_hop_is_checked() {
    let foreign = Server::start(|_| status(200)).await;
    let to = foreign.url("/to");
    let server = Server::expiring(move |seen| match seen.path.as_str() {
        "/loop" => redirect(302, "/loop"),
        _ => redirect(307, &to),
    })
    .await;
    let user = Numbered::new().await;
    let layer = AuthRefreshLayer::per_request(origin(&server.origin())).header("x-api-token".parse().unwrap());
    let ours = || Arc::new(AuthRefreshMiddleware::from_layer(layer.clone())) as Arc<dyn Middleware>;
    let stacks = [vec![ours()], vec![ours(), Arc::new(retrying())], vec![Arc::new(retrying()), ours()]];
    for middlewares in stacks {
        let alone = middlewares.len() == 1;
        let client = stack(middlewares);
        let start = |path| client.post(server.url(path)).with_extension(user.session.clone()).body("the body");
        let response = start("/from").send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.url().as_str()), (200, foreign.url("/to").as_str()));
        let [seen] = foreign.take_seen().try_into().unwrap();
        assert_eq!((seen.header("x-api-token"), &seen.body[..]), (None, &b"the body"[..]));

        server.take_seen();
        let error = start("/loop").send().await.unwrap_err();
        // reqwest-retry wraps the error.
        assert_eq!(error.is_redirect(), alone);
        assert_eq!(chain(&error).last().unwrap(), "too many redirects");
        assert_eq!(server.take_seen().len(), 11);
    }
}

#[tokio::test]
async fn over_a_client_of_the_callers_that_follows_no_redirect_the_one_too_many_is_returned() {
    let server = Server::expiring(|_| redirect(302, "/loop")).await;
    let user = Numbered::new().await;
    let none = builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let client = ClientBuilder::new(none).with(refreshing(&server, &user.session)).build();
    let response = client.get(server.url("/loop")).send().await.unwrap();
    assert_eq!(response.status(), 302);
    // The first was refused and replayed.
    assert_eq!(server.take_seen().len(), 12);
}
