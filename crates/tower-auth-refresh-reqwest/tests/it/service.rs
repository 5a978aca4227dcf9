//! [`ReqwestService`] as the innermost service of a `tower` stack.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use tower::timeout::TimeoutLayer;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_auth_refresh_reqwest::tower_auth_refresh::{NotRefreshed, SkipAuth};
use tower_auth_refresh_reqwest::{AuthRefreshLayer, RefreshReport, ResponseBody, reqwest};

use crate::support::{Answer, Numbered, Server, origin, redirect, service, status};

/// Sends the body through the layer, with a token that has expired.
async fn send<B>(server: &Server, body: B)
where
    B: Body<Data = Bytes, Error: Into<tower::BoxError>> + Send + Sync + Unpin + 'static,
{
    let user = Numbered::new().await;
    let layer = AuthRefreshLayer::new(user.session.clone(), origin(&server.origin()));
    let request = Request::post(server.url("/")).body(body).unwrap();
    let response = layer.layer(service()).oneshot(request).await.unwrap();
    assert!(matches!(response.extensions().get(), Some(RefreshReport::Replayed)));
}

#[tokio::test]
async fn every_kind_of_body_is_sent_and_replayed_through_the_layer() {
    let server = Server::expiring(|_| status(200)).await;
    let seen = |expected: &str, length: Option<&str>| {
        let [refused, replayed] = server.take_seen().try_into().unwrap();
        assert_eq!((refused.body.as_ref(), refused.header("content-length")), (expected.as_bytes(), length));
        assert_eq!(refused.without_token(), replayed.without_token());
    };
    send(&server, String::from("a text")).await;
    seen("a text", Some("6"));
    send(&server, Full::from("bytes")).await;
    seen("bytes", Some("5"));
    send(&server, Empty::<Bytes>::new()).await;
    seen("", None);
    send(&server, reqwest::Body::from("one piece")).await;
    seen("one piece", Some("9"));
    send(&server, reqwest::Body::wrap(Full::<Bytes>::from("a stream"))).await;
    seen("a stream", Some("8"));
}

#[tokio::test]
async fn every_kind_of_body_is_sent_without_the_layer() {
    let server = Server::start(|_| status(200)).await;
    let request = || Request::post(server.url("/"));
    service().oneshot(request().body(String::from("a")).unwrap()).await.unwrap();
    service().oneshot(request().body(Bytes::from("b")).unwrap()).await.unwrap();
    service().oneshot(request().body(Full::from("c")).unwrap()).await.unwrap();
    service().oneshot(request().body(reqwest::Body::from("d")).unwrap()).await.unwrap();
    service().oneshot(request().body(Empty::new()).unwrap()).await.unwrap();
    let seen = server.take_seen();
    assert_eq!(seen.iter().map(|seen| &seen.body[..]).collect::<Vec<_>>(), [b"a", b"b", b"c", b"d", &b""[..]]);
}

fn with_body(code: u16, body: &'static str) -> Answer {
    let mut answer = status(code);
    *answer.body_mut() = body.into();
    answer
}

#[tokio::test]
async fn a_response_is_read_as_a_body_or_made_one_of_reqwest_with_its_url() {
    let server = Server::start(|_| with_body(200, "the body")).await;
    let get =
        || async { service().oneshot(Request::get(server.url("/path")).body(String::new()).unwrap()).await.unwrap() };

    let response = get().await;
    assert_eq!((response.status().as_u16(), response.headers()["content-length"].as_bytes()), (200, &b"8"[..]));
    assert_eq!((response.body().size_hint().exact(), response.body().is_end_stream()), (Some(8), false));
    assert!(format!("{:?}", response.body()).starts_with("ResponseBody"));
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "the body");
    assert_eq!(body.size_hint().exact(), Some(0));
    assert!(body.frame().await.is_none());

    let response = ResponseBody::into_reqwest(get().await);
    assert_eq!((response.url().path(), response.remote_addr()), ("/path", Some(server.address())));
    assert_eq!(response.text().await.unwrap(), "the body");

    // A response whose head has been changed, and one whose body has been read.
    let (mut head, body) = get().await.into_parts();
    head.status = http::StatusCode::IM_A_TEAPOT;
    let response = ResponseBody::into_reqwest(Response::from_parts(head, body));
    assert_eq!((response.url().path(), response.status().as_u16()), ("/path", 418));
    assert_eq!(response.text().await.unwrap(), "the body");
    let (head, mut body) = get().await.into_parts();
    body.frame().await.unwrap().unwrap();
    let response = ResponseBody::into_reqwest(Response::from_parts(head, body));
    assert_eq!(response.url().path(), "/path");
    assert_eq!(response.text().await.unwrap(), "");

    // A response without a body has ended before it is read.
    let server = Server::start(|_| with_body(200, "")).await;
    let request = Request::get(server.url("/")).body(String::new()).unwrap();
    assert!(service().oneshot(request).await.unwrap().body().is_end_stream());
}

#[tokio::test]
async fn the_output_of_a_response_future_for_debugging_has_its_name_alone() {
    let future = service().call(Request::get("http://127.0.0.1/secret").body(String::new()).unwrap());
    assert_eq!(format!("{future:?}"), "ResponseFuture { .. }");
}

#[tokio::test]
async fn redirects_are_returned() {
    let server = Server::start(|_| redirect(302, "/to")).await;
    let response = service().oneshot(Request::get(server.url("/")).body(String::new()).unwrap()).await.unwrap();
    assert_eq!((response.status().as_u16(), server.take_seen().len()), (302, 1));
}

#[tokio::test]
async fn a_layer_that_requires_a_token_refuses_with_the_report() {
    let server = Server::start(|_| status(200)).await;
    let client = ServiceBuilder::new()
        .layer(AuthRefreshLayer::per_request(origin(&server.origin())).require_token())
        .layer(TimeoutLayer::new(Duration::from_secs(10)))
        .service(service());
    let request = || Request::get(server.url("/")).body(String::new()).unwrap();
    let error = client.clone().oneshot(request()).await.unwrap_err();
    let report = error.downcast_ref::<RefreshReport>();
    assert!(matches!(report, Some(RefreshReport::NotRefreshed(NotRefreshed::NoSession))), "{error:?}");
    let mut skipping = request();
    skipping.extensions_mut().insert(SkipAuth);
    assert_eq!(client.oneshot(skipping).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_uri_that_is_none_of_reqwests_is_an_error() {
    for uri in ["/path", "ftp://example.com"] {
        let request = Request::get(uri).body(String::new()).unwrap();
        let error = service().oneshot(request).await.unwrap_err();
        assert!(error.is_builder(), "{error:?}");
    }
}
