//! Responses that are sent before the whole upload has arrived (RFC 9112 §9.6, RFC 9113 §8.1).

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tower_auth_refresh_testkit::TestServer;

use crate::nginx::Nginx;
use crate::test_gateway::TestGateway;

/// More than the buffers of two sockets hold.
const UPLOAD: usize = 12 << 20;

/// A request that the gateway refuses by its head.
struct Refused {
    head: String,
    status: u16,
}

/// Every kind of answer that is sent early, for uploads of `length` bytes.
fn refused(gateway: &TestGateway, cookie: &str, length: usize) -> Vec<Refused> {
    let refused = |status, path: &str, more: &str| {
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {length}\r\n{more}\r\n", gateway.address);
        Refused { head, status }
    };
    let same_origin = "sec-fetch-site: same-origin\r\n";
    vec![
        refused(401, "/api/upload", same_origin),
        refused(403, "/api/upload", "sec-fetch-site: cross-site\r\n"),
        refused(404, "/nowhere", same_origin),
        refused(405, "/session", same_origin),
        refused(415, "/login", &format!("{same_origin}content-type: image/png\r\n")),
        refused(413, "/login", &format!("{same_origin}content-type: application/json\r\n")),
        refused(400, "/api/../upload", same_origin),
        refused(400, "/api/upload", "host: two\r\n"),
        refused(501, "/api/upload", &format!("{same_origin}upgrade: websocket\r\nconnection: upgrade\r\n")),
        refused(413, "/api/upload", &format!("{same_origin}cookie: {cookie}\r\n")),
    ]
}

/// Sends a whole request and only then reads, as simple clients do.
async fn send_then_read(address: SocketAddr, head: &str, body: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await?;
    Ok(String::from_utf8_lossy(&response).into_owned())
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_sends_its_whole_upload_first() {
    let gateway = TestGateway::start_with(|settings| settings.body_limit = UPLOAD as u64 - 1).await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let body = vec![b'x'; UPLOAD];
    for Refused { head, status } in refused(&gateway, &cookie, UPLOAD) {
        for _ in 0..3 {
            let response = send_then_read(gateway.address, &head, &body).await;
            let response = response.unwrap_or_else(|error| panic!("{error}: {head}"));
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{head}{response}");
            assert!(response.contains("connection: close\r\n"), "{head}{response}");
        }
    }
}

/// nginx sends requests with HTTP/1.0 and reads the answer once it has sent the whole upload.
#[tokio::test]
async fn an_early_answer_passes_through_nginx() {
    let gateway = TestGateway::start_with(|settings| settings.body_limit = UPLOAD as u64 - 1).await;
    let Some(nginx) = Nginx::in_front_of(gateway.address) else { return };
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let body = vec![b'x'; UPLOAD];
    // What nginx refuses or rewrites itself isn't sent to the gateway.
    let reaches = |refused: &Refused| !refused.head.contains("host: two") && !refused.head.contains("upgrade");
    for Refused { head, status } in refused(&gateway, &cookie, UPLOAD).into_iter().filter(reaches) {
        let head = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
        for _ in 0..3 {
            let response = send_then_read(nginx.address, &head, &body).await.unwrap();
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{head}{response}{}", nginx.log());
        }
    }
}

/// An upload that has arrived with its head costs the client no connection.
#[tokio::test]
async fn a_connection_is_kept_after_an_early_answer_to_a_small_upload() {
    let gateway = TestGateway::start().await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    for _ in 0..3 {
        let request = format!(
            "POST /api/x HTTP/1.1\r\nhost: {}\r\nsec-fetch-site: same-origin\r\ncontent-length: 5\r\n\r\nsmall",
            gateway.address
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let response = read_response(&mut stream).await;
        assert!(response.starts_with("HTTP/1.1 401 "), "{response}");
        assert!(!response.contains("connection: close"), "{response}");
    }
}

/// A client that waits for `100 Continue` is not asked for an upload that nothing reads.
#[tokio::test]
async fn an_early_answer_comes_instead_of_100_continue() {
    let gateway = TestGateway::start().await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let request = format!(
        "POST /api/x HTTP/1.1\r\nhost: {}\r\nsec-fetch-site: same-origin\r\nexpect: 100-continue\r\n\
         content-length: 100\r\n\r\n",
        gateway.address
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let response = read_response(&mut stream).await;
    assert!(response.starts_with("HTTP/1.1 401 "), "{response}");
    assert!(response.contains("connection: close\r\n"), "{response}");
}

/// hyper answers these itself, before there is a request.
#[tokio::test]
async fn the_answer_to_a_malformed_head_reaches_a_client_that_sends_on() {
    let gateway = TestGateway::start().await;
    let body = vec![b'x'; UPLOAD];
    for (head, status) in [("G@T / HTTP/9.9\r\n\r\n", 400), ("GET /\x01 HTTP/1.1\r\nhost: a\r\n\r\n", 400)] {
        for _ in 0..3 {
            let response = send_then_read(gateway.address, head, &body).await;
            let response = response.unwrap_or_else(|error| panic!("{error}: {head}"));
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{head}{response}");
        }
    }
    // A head without an end.
    let response = send_then_read(gateway.address, "GET / HTTP/1.1\r\nhost: a\r\nx-long: ", &body).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 431 "), "{response}");
}

/// The API refuses an upload by its head too.
#[tokio::test]
async fn an_early_answer_of_the_upstream_reaches_a_client_that_sends_its_whole_upload_first() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let answer = b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno";
            stream.write_all(answer).await.unwrap();
            stream.shutdown().await.unwrap();
            // Reads on, as a server should.
            tokio::spawn(async move { tokio::io::copy(&mut stream, &mut tokio::io::sink()).await });
        }
    });
    let gateway = TestGateway::in_front_of(TestServer::start().await.unwrap(), &upstream, |_| {}).await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let head = format!(
        "POST /api/x HTTP/1.1\r\nhost: {}\r\nsec-fetch-site: same-origin\r\ncookie: {cookie}\r\n\
         content-length: {UPLOAD}\r\n\r\n",
        gateway.address
    );
    for _ in 0..3 {
        let response = send_then_read(gateway.address, &head, &vec![b'x'; UPLOAD]).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 403 ") && response.ends_with("\r\n\r\nno"), "{response}");
        assert!(response.contains("connection: close\r\n"), "{response}");
    }
}

/// Over HTTP/2 an early answer ends its stream, and the connection continues (RFC 9113 §8.1).
#[tokio::test]
async fn early_answers_over_http_2_leave_the_connection_usable() {
    let gateway = TestGateway::start().await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Body>();
    let url = |path: &str| format!("http://{}{path}", gateway.address);
    for _ in 0..20 {
        let request = Request::post(url("/api/upload")).header("sec-fetch-site", "same-origin");
        let response = client.request(request.body(vec![b'x'; UPLOAD].into()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        response.into_body().collect().await.unwrap();
    }
    let response = client.request(Request::get(url("/healthz")).body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

/// The gateway reads on within bounds: a client can't hold the connection, nor send without end.
#[tokio::test]
async fn a_client_that_ignores_an_early_answer_is_cut_off() {
    let gateway = TestGateway::start_with(|settings| {
        settings.body_limit = 1 << 20;
        settings.client_timeout = Duration::from_millis(500);
    });
    let gateway = gateway.await;
    let head = format!(
        "POST /api/x HTTP/1.1\r\nhost: {}\r\nsec-fetch-site: same-origin\r\ncontent-length: 1000000000\r\n\r\n",
        gateway.address
    );
    // One sends as fast as it can, one stalls.
    for pause in [Duration::ZERO, Duration::from_secs(60)] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let started = Instant::now();
        let (mut reading, mut writing) = stream.split();
        let mut response = Vec::new();
        let read_all = async {
            let _ = reading.read_to_end(&mut response).await;
        };
        let send_on = async {
            let block = vec![b'x'; 64 << 10];
            while writing.write_all(&block).await.is_ok() {
                let pause = pause.min(Duration::from_secs(20));
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                    break;
                }
            }
        };
        if pause.is_zero() {
            timeout(Duration::from_secs(20), async { tokio::join!(read_all, send_on) }).await.unwrap();
        } else {
            timeout(Duration::from_secs(20), read_all).await.unwrap();
        }
        assert!(started.elapsed() < Duration::from_secs(20));
        assert!(response.starts_with(b"HTTP/1.1 401 "), "{}", String::from_utf8_lossy(&response));
    }
}

/// Reads a response with a `content-length`.
async fn read_response(stream: &mut TcpStream) -> String {
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        response.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(response).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    head + str::from_utf8(&body).unwrap()
}

/// Servers without the patience of nginx close at once, which resets the connection while the upload is being sent.
#[tokio::test]
async fn an_answer_of_an_upstream_that_then_resets_the_connection_is_passed_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let answer = b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno";
            stream.write_all(answer).await.unwrap();
        }
    });
    let gateway = TestGateway::in_front_of(TestServer::start().await.unwrap(), &upstream, |_| {}).await;
    let browser = gateway.browser("ada").await;
    for _ in 0..10 {
        let response = browser.post("/api/x", vec![b'x'; UPLOAD]).await;
        assert_eq!((response.status.as_u16(), &response.body[..]), (403, &b"no"[..]));
    }
}

/// The kit answers an upload with an expired token by its head, and then drops the connection.
#[tokio::test]
async fn an_early_401_to_an_upload_causes_a_refresh_and_a_replay() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    for length in [10_000, 30_000, 60_000] {
        for _ in 0..20 {
            gateway.kit.expire_access_tokens();
            let response = browser.post("/api/upload", vec![b'x'; length]).await;
            assert_eq!(response.status, 200, "{response:?}");
            assert_eq!(response.json()["body_length"], length);
        }
    }
}
