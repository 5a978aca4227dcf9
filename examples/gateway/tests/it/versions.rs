//! HTTP/1.0 on either side: its messages may end with their connection, so a cut-off one looks whole.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use http::{Method, Version};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tower_auth_refresh_testkit::TestServer;

use crate::nginx::Nginx;
use crate::test_gateway::{TestGateway, upstream_with_raw_response};

/// The end of an upstream's connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Closed,
    Reset,
    Stalled,
}

/// Starts an upstream that responds with these bytes to each request, and then ends the connection.
async fn upstream(response: &'static str, end: End) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                stream.write_all(response.as_bytes()).await.unwrap();
                match end {
                    End::Closed => {}
                    End::Reset => {
                        // The response has to be read before: a reset discards what has not been.
                        sleep(Duration::from_millis(100)).await;
                        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                    }
                    End::Stalled => std::future::pending().await,
                }
            });
        }
    });
    origin
}

async fn in_front_of(upstream: &str) -> TestGateway {
    let kit = TestServer::start().await.unwrap();
    TestGateway::in_front_of(kit, upstream, |settings| settings.upstream_timeout = Duration::from_millis(500)).await
}

#[tokio::test]
async fn the_version_of_the_upstream_is_not_passed_on() {
    for response in [
        "HTTP/1.0 200 OK\r\n\r\nwhole",
        "HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nwhole",
        "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nwhole",
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nwhole",
    ] {
        let gateway = in_front_of(&upstream_with_raw_response(response).await).await;
        let browser = gateway.browser("ada").await;
        let got = browser.send(browser.request(Method::GET, "/api/x").body(Body::empty()).unwrap()).await;
        assert_eq!(got.version(), Version::HTTP_11, "{response}");
        assert!(!got.headers().contains_key("connection"), "the client's connection is kept");
        assert_eq!(got.into_body().collect().await.unwrap().to_bytes(), "whole", "{response}");
    }
}

#[tokio::test]
async fn a_cut_off_response_of_http_1_0_ends_in_an_error() {
    for response in ["HTTP/1.0 200 OK\r\n\r\npart", "HTTP/1.0 200 OK\r\ncontent-length: 100\r\n\r\npart"] {
        for end in [End::Reset, End::Stalled, End::Closed] {
            if end == End::Closed && !response.contains("content-length") {
                // This is the end of the response.
                continue;
            }
            let gateway = in_front_of(&upstream(response, end).await).await;
            let browser = gateway.browser("ada").await;
            let got = browser.send(browser.request(Method::GET, "/api/x").body(Body::empty()).unwrap()).await;
            assert!(got.into_body().collect().await.is_err(), "{response} {end:?}");
        }
    }
}

/// Each response that a client without chunked framing could take for a whole one.
const CUT_OFF: [(&str, End); 3] = [
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n", End::Closed),
    ("HTTP/1.0 200 OK\r\n\r\npart", End::Reset),
    ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\npart", End::Stalled),
];

#[tokio::test]
async fn a_cut_off_response_to_http_1_0_resets_the_connection() {
    for (response, end) in CUT_OFF {
        let gateway = in_front_of(&upstream(response, end).await).await;
        let cookie = gateway.browser("ada").await.cookie.unwrap();
        let got = get_with_http_1_0(gateway.address, &cookie).await;
        assert!(got.is_err(), "{response}: {got:?}");
    }
    let gateway = in_front_of(&upstream("HTTP/1.0 200 OK\r\n\r\nwhole", End::Closed).await).await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    assert!(get_with_http_1_0(gateway.address, &cookie).await.unwrap().ends_with("whole"));
}

#[tokio::test]
async fn a_cut_off_response_passes_through_nginx_as_an_error() {
    for (response, end) in CUT_OFF {
        let gateway = in_front_of(&upstream(response, end).await).await;
        let Some(nginx) = Nginx::in_front_of(gateway.address) else { return };
        let mut browser = gateway.browser("ada").await;
        browser.connect_to(nginx.address);
        let got = browser.send(browser.request(Method::GET, "/api/x").body(Body::empty()).unwrap()).await;
        // nginx knows of the end before it has sent a head, or after.
        let cut_off = got.status() == 502 || got.into_body().collect().await.is_err();
        assert!(cut_off, "{response} {end:?}\n{}", nginx.log());
    }
}

async fn get_with_http_1_0(address: SocketAddr, cookie: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET /api/x HTTP/1.0\r\ncookie: {cookie}\r\n\r\n").as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    Ok(response)
}
