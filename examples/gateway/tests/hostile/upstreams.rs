//! Upstreams that answer with anything: the client gets a valid response or an error, and no cookie of the gateway's.

use std::time::Duration;

use axum::body::Body;
use http::Method;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;
use tower_auth_refresh_testkit::TestServer;

use crate::test_gateway::{TestGateway, upstream_with_raw_response};

const RESPONSES: [&str; 30] = [
    "",
    "\r\n\r\n",
    "HTTP/1.1",
    "HTTP/1.1 200",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nx",
    "HTTP/1.1 200 OK\r\nset-cookie: session=x\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nset-cookie:  =session=x\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nset-cookie: ;session=x\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nset-cookie: SESSION=x\r\nset-cookie: session\t=x\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nx\r\n\r\n",
    "HTTP/1.1 200 OK\r\nx : y\r\n\r\n",
    "HTTP/1.1 200 OK\r\n x: y\r\n\r\n",
    "HTTP/1.1 200 OK\r\nx: y\0\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nset-cookie: session=x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello",
    "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
    "HTTP/1.1 999 ?\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 099 ?\r\n\r\n",
    "HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "ICY 200 OK\r\n\r\n",
    "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled",
];

#[tokio::test]
async fn no_answer_of_an_upstream_harms_a_client() {
    let mut answered = 0;
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    for response in RESPONSES {
        let upstream = upstream_with_raw_response(response).await;
        let kit = TestServer::start().await.unwrap();
        let gateway = TestGateway::in_front_of(kit, &upstream, |settings| {
            settings.upstream_timeout = Duration::from_millis(300);
        });
        let browser = gateway.await.browser("ada").await;
        for method in [Method::GET, Method::HEAD, Method::POST] {
            let call = async {
                let request = browser.request(method, "/api/x").body(Body::empty()).unwrap();
                // If the body is invalid from its first byte on, the connection may end without a head.
                let (head, body) = client.request(request).await.ok()?.into_parts();
                Some((head, body.collect().await))
            };
            let call = timeout(Duration::from_secs(20), call).await;
            let Some((head, body)) = call.unwrap_or_else(|_| panic!("{response:?}")) else { continue };
            answered += usize::from(body.is_ok());
            let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&body).contains("smuggled"), "{response:?}");
            for cookie in head.headers.get_all("set-cookie") {
                let name = cookie
                    .as_bytes()
                    .split(|byte| matches!(byte, b'=' | b';'))
                    .find(|part| !part.trim_ascii().is_empty());
                assert_ne!(name.map(<[u8]>::trim_ascii), Some(&b"session"[..]), "{response:?}");
            }
            assert_ne!(head.status, 101, "{response:?}");
        }
    }
    assert!(answered > RESPONSES.len());
    println!("upstreams: {} answers, {answered} of them whole", RESPONSES.len() * 3);
}
