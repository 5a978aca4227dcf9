//! [`ApiClient`] as the client of `object_store`, request by request; `examples/stacks` has a whole store.

use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{Method, Request};
use http_body_util::BodyExt;
use object_store::client::{HttpClient, HttpConnector, HttpErrorKind, HttpRequestBody};
use object_store::{ClientOptions, PutPayload};
use tokio::net::TcpListener;
use tower_auth_refresh_reqwest::{ApiClient, ReqwestService};

use crate::support::{Numbered, Server, builder, client_of, origin, status};

fn connect(api: &ApiClient) -> HttpClient {
    api.connect(&ClientOptions::default()).unwrap()
}

fn put(server: &Server, body: impl Into<HttpRequestBody>) -> Request<HttpRequestBody> {
    Request::put(server.url("/object")).body(body.into()).unwrap()
}

#[tokio::test]
async fn an_object_in_one_piece_and_one_in_several_are_replayed() {
    let server = Server::expiring(|_| {
        let mut answer = status(201);
        *answer.body_mut() = "stored".into();
        answer
    })
    .await;
    let whole = HttpRequestBody::from("the body".to_owned());
    let pieces = HttpRequestBody::from(PutPayload::from_iter([&b"the "[..], b"body"].map(bytes::Bytes::from_static)));
    for body in [whole, pieces] {
        let user = Numbered::new().await;
        let response = connect(&client_of(&server, &user.session)).execute(put(&server, body)).await.unwrap();
        assert_eq!((response.status().as_u16(), user.refreshes()), (201, 1));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "stored");
        let [refused, replayed] = server.take_seen().try_into().unwrap();
        assert_eq!((&refused.method, refused.header("content-length")), (&Method::PUT, Some("8")));
        assert_eq!(refused.body, "the body");
        assert_eq!(refused.without_token(), replayed.without_token());
    }
}

#[tokio::test]
async fn an_empty_token_of_the_store_gives_way_to_that_of_the_session_and_another_one_does_not() {
    let server = Server::start(|_| status(200)).await;
    let user = Numbered::new().await;
    let client = connect(&client_of(&server, &user.session));
    for (own, sent) in [("Bearer ", "Bearer a1"), ("Bearer", "Bearer a1"), ("Bearer mine", "Bearer mine")] {
        let mut request = put(&server, HttpRequestBody::empty());
        request.headers_mut().insert(AUTHORIZATION, own.parse().unwrap());
        client.execute(request).await.unwrap();
        assert_eq!(server.take_seen()[0].token(), Some(sent), "{own}");
    }
}

#[tokio::test]
async fn a_failure_is_classified_and_its_url_left_out() {
    // A server that accepts connections, but answers none.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}/?signature=secret", silent.local_addr().unwrap());
    // A port on which nothing listens.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed_url = format!("http://{}/?signature=secret", closed.local_addr().unwrap());
    drop(closed);
    // A server that closes each connection.
    let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closing_url = format!("http://{}/?signature=secret", closing.local_addr().unwrap());
    let accepting = tokio::spawn(async move { while closing.accept().await.is_ok() {} });

    let user = Numbered::new().await;
    let brief = builder().timeout(Duration::from_millis(100));
    for (builder, url, kind) in [
        (builder(), closed_url.as_str(), HttpErrorKind::Connect),
        (brief, silent_url.as_str(), HttpErrorKind::Timeout),
        (builder(), closing_url.as_str(), HttpErrorKind::Interrupted),
        (builder(), "ftp://127.0.0.1/?signature=secret", HttpErrorKind::Unknown),
    ] {
        let service = ReqwestService::new(builder).unwrap();
        let client = connect(&ApiClient::new(user.session.clone(), origin("http://127.0.0.1"), service));
        let request = Request::get(url).body(HttpRequestBody::empty()).unwrap();
        let error = client.execute(request).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(!format!("{error:?} {error}").contains("secret"), "{error:?}");
    }
    accepting.abort();
}
