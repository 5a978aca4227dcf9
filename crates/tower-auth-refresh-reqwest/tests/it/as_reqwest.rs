//! The features of reqwest that are as with the bare client: streams, encodings, cookies, time-outs, upgrades, errors.

use std::convert::Infallible;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{StreamExt, stream};
use http::Response;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tower_auth_refresh_reqwest::{ApiClient, ReqwestService, Session, reqwest};
use tower_auth_refresh_testkit::{BODY_CHECKSUM, BODY_LENGTH, Checksum, Fault, Route, TestServer};

use crate::support::{
    Numbered, Server, builder, chain, client_of, expired, is_replayed, kit_client, origin, report, status,
};

fn client(server: &str, session: &Session, builder: reqwest::ClientBuilder) -> ApiClient {
    ApiClient::new(session.clone(), origin(server), ReqwestService::new(builder).unwrap())
}

#[tokio::test]
async fn an_upload_is_streamed_and_replayed_and_a_download_is_streamed() {
    for builder in [builder(), builder().http2_prior_knowledge()] {
        let server = TestServer::start().await.unwrap();
        let (api, _) = kit_client(&server, builder).await;
        server.expire_access_tokens();
        let chunks = vec![Bytes::from(vec![1; 10_000]), Bytes::from(vec![2; 10_000])];
        let whole = chunks.concat();
        let response = api
            .post(server.url("/api/echo"))
            .header(BODY_LENGTH, whole.len())
            .header(BODY_CHECKSUM, Checksum::of(&whole).to_string())
            .body(reqwest::Body::wrap_stream(stream::iter(chunks).map(Ok::<_, std::io::Error>)))
            .send()
            .await
            .unwrap();
        assert!(is_replayed(&response));
        let mut echo = response.bytes_stream();
        let mut read = Vec::new();
        while let Some(chunk) = echo.next().await {
            read.extend_from_slice(&chunk.unwrap());
        }
        assert!(read == whole);

        let mut response = api.get(server.url("/api/bytes/300000")).send().await.unwrap();
        let (mut length, mut chunks) = (0, 0);
        while let Some(chunk) = response.chunk().await.unwrap() {
            length += chunk.len();
            chunks += 1;
        }
        assert!(length == 300_000 && chunks > 1, "{length} bytes in {chunks} chunks");
        assert_eq!(server.counters().body_mismatches, 0);
    }
}

fn gzip(text: &str) -> Full<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap().into()
}

#[tokio::test]
async fn gzip_is_decoded_in_the_response_to_a_replay_and_in_a_401_that_is_returned() {
    let server = Server::start(|seen| {
        assert_eq!(seen.header("accept-encoding"), Some("gzip"));
        let mut answer = if seen.path == "/forbidden" || seen.is_expired() { expired() } else { status(200) };
        answer.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
        *answer.body_mut() = gzip("a text");
        answer
    })
    .await;
    let user = Numbered::new().await;
    let api = client_of(&server, &user.session);
    for (path, code) in [("/", 200), ("/forbidden", 401)] {
        let response = api.get(server.url(path)).send().await.unwrap();
        assert!(report(&response).is_some() || code == 200);
        assert_eq!((response.status().as_u16(), response.content_length()), (code, None));
        assert_eq!(response.text().await.unwrap(), "a text");
    }
}

#[tokio::test]
async fn cookies_are_stored_and_the_replay_has_those_of_the_401() {
    let server = Server::start(|seen| {
        let mut answer = if seen.is_expired() { expired() } else { status(200) };
        let cookie = if seen.is_expired() { "from=401" } else { "then=200" };
        answer.headers_mut().insert("set-cookie", cookie.parse().unwrap());
        answer
    })
    .await;
    let user = Numbered::new().await;
    let api = client(&server.origin(), &user.session, builder().cookie_store(true));
    let response = api.get(server.url("/")).send().await.unwrap();
    assert_eq!(response.cookies().next().unwrap().name(), "then");
    api.get(server.url("/")).send().await.unwrap();
    let cookies: Vec<_> =
        server.take_seen().iter().map(|seen| seen.header("cookie").unwrap_or_default().split("; ").count()).collect();
    assert_eq!(cookies, [1, 1, 2], "none is one empty name");
}

#[tokio::test]
async fn a_time_out_is_that_of_reqwest() {
    let server = TestServer::start().await.unwrap();
    let bare = builder().build().unwrap();
    let (api, _) = kit_client(&server, builder()).await;
    server.inject(Route::Api, Fault::hang());
    let (url, timeout) = (server.url("/api/notes"), Duration::from_millis(50));
    let ours = api.get(&url).timeout(timeout).send().await.unwrap_err();
    let bare = bare.get(&url).timeout(timeout).send().await.unwrap_err();
    assert!(ours.is_timeout() && ours.url() == bare.url());
    assert_eq!(chain(&ours), chain(&bare));

    let (api, _) = kit_client(&server, builder().timeout(timeout)).await;
    assert!(api.get(&url).send().await.unwrap_err().is_timeout());
    let (api, _) = kit_client(&server, builder().read_timeout(timeout)).await;
    assert!(api.get(&url).send().await.unwrap_err().is_timeout());

    // The body of the response counts as well. Its head arrives in time on a loaded machine, too.
    let timeout = Duration::from_secs(2);
    let (api, _) = kit_client(&server, builder()).await;
    server.clear_faults();
    server.inject(Route::Api, Fault::stall());
    let bare = builder().build().unwrap().get(&url).bearer_auth("none").timeout(timeout);
    let (ours, bare) = tokio::join!(api.get(&url).timeout(timeout).send(), bare.send());
    let (ours, bare) = tokio::join!(ours.unwrap().bytes(), bare.unwrap().bytes());
    let (ours, bare) = (ours.unwrap_err(), bare.unwrap_err());
    assert!(ours.is_timeout() && bare.is_timeout());
    assert_eq!(chain(&ours), chain(&bare));
}

#[tokio::test]
async fn a_total_time_out_is_that_of_each_attempt_and_a_refresh_does_not_count() {
    let server = TestServer::start().await.unwrap();
    let (_, session) = kit_client(&server, builder()).await;
    let timeout = Duration::from_secs(2);
    let api = client(&server.origin(), &session, builder().timeout(timeout));
    server.expire_access_tokens();
    let refreshed = server.hold_refreshes();
    let call = tokio::spawn(api.get(server.url("/api/notes")).timeout(timeout).send());
    refreshed.arrived(1).await;
    tokio::time::sleep(timeout).await;
    refreshed.open();
    let response = call.await.unwrap().unwrap();
    assert!(is_replayed(&response));
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn errors_and_responses_print_the_url_as_with_reqwest() {
    let server = Server::expiring(|seen| status(seen.path[1..].parse().unwrap())).await;
    let user = Numbered::new().await;
    let api = client_of(&server, &user.session);
    let bare = builder().build().unwrap();
    for path in ["/404?page=2", "/500#part"] {
        let ours = api.get(server.url(path)).send().await.unwrap();
        let bare = bare.get(server.url(path)).send().await.unwrap();
        assert_eq!((ours.url(), ours.status(), ours.version()), (bare.url(), bare.status(), bare.version()));
        assert_eq!(ours.remote_addr(), Some(server.address()));
        assert_eq!(ours.content_length(), bare.content_length());
        assert_eq!(ours.error_for_status().unwrap_err().to_string(), bare.error_for_status().unwrap_err().to_string());
    }
    // Nothing listens on port 1, and the others are no URLs of HTTP.
    for url in ["http://127.0.0.1:1/path", "ftp://example.com/", "data:text", "http://a|b/"] {
        let ours = api.get(url).send().await.unwrap_err();
        let bare = bare.get(url).send().await.unwrap_err();
        assert_eq!((chain(&ours), ours.is_connect()), (chain(&bare), bare.is_connect()));
    }
}

#[tokio::test]
async fn a_stream_that_fails_is_an_error_of_the_request() {
    let server = Server::expiring(|_| status(200)).await;
    let user = Numbered::new().await;
    let failing = || {
        let chunks = stream::iter([Ok("a"), Err(std::io::Error::other("the disk is gone"))]);
        reqwest::Body::wrap_stream(chunks)
    };
    let api = client_of(&server, &user.session);
    let ours = api.post(server.url("/")).body(failing()).send().await.unwrap_err();
    let bare = builder().build().unwrap().post(server.url("/")).body(failing()).send().await.unwrap_err();
    assert_eq!((ours.is_request(), ours.to_string()), (bare.is_request(), bare.to_string()));
    assert_eq!(chain(&ours).last(), chain(&bare).last());
}

#[tokio::test]
async fn the_retries_of_reqwest_work_for_bodies_of_one_piece() {
    let server = Server::expiring(|seen| status(if seen.token() == Some("Bearer a2") { 503 } else { 200 })).await;
    let user = Numbered::new().await;
    let retry = || {
        let retry = reqwest::retry::for_host("127.0.0.1").max_retries_per_request(1).no_budget();
        retry.classify_fn(|answer| {
            if answer.status().is_some_and(|status| status == 503) { answer.retryable() } else { answer.success() }
        })
    };
    let api = client(&server.origin(), &user.session, builder().retry(retry()));
    let response = api.post(server.url("/")).body("the body").send().await.unwrap();
    assert_eq!(response.status(), 503);
    let seen = server.take_seen();
    assert_eq!(
        seen.iter().map(|seen| seen.token().unwrap()).collect::<Vec<_>>(),
        ["Bearer a1", "Bearer a2", "Bearer a2"]
    );
    assert!(seen.iter().all(|seen| seen.body == "the body" && seen.header("content-length") == Some("8")));
}

/// A server that upgrades the connection of a request with a token other than `a1`, and echoes what it reads.
async fn upgrading() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(async |mut request| {
                if request.headers()["authorization"] == "Bearer a1" {
                    return Ok::<_, Infallible>(expired());
                }
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                });
                let switching =
                    Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
                Ok(switching.body(Full::default()).unwrap())
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection.with_upgrades());
        }
    });
    address
}

#[tokio::test]
async fn a_connection_is_upgraded_after_a_refresh() {
    let origin = format!("http://{}", upgrading().await);
    let user = Numbered::new().await;
    let api = client(&origin, &user.session, builder());
    let request = api.get(format!("{origin}/socket")).header("connection", "upgrade").header("upgrade", "echo");
    let response = request.send().await.unwrap();
    assert!(is_replayed(&response));
    assert_eq!(response.status(), 101);
    let mut socket = response.upgrade().await.unwrap();
    socket.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    socket.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"hello");
}

#[cfg(feature = "multipart")]
#[tokio::test]
async fn a_multipart_form_is_replayed() {
    use reqwest::multipart::{Form, Part};

    let server = Server::expiring(|_| status(200)).await;
    let user = Numbered::new().await;
    let form = Form::new().text("name", "ada").part("file", Part::bytes(vec![7; 1000]).file_name("seven.bin"));
    let response = client_of(&server, &user.session).post(server.url("/")).multipart(form).send().await.unwrap();
    assert!(is_replayed(&response));
    let [refused, replayed] = server.take_seen().try_into().unwrap();
    assert!(refused.body.len() > 1000 && refused.header("content-length") == Some(&refused.body.len().to_string()));
    assert_eq!(refused.without_token(), replayed.without_token());
}
