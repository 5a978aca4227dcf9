//! Connections to the upstream that it closes while they are idle: at the moment at which a request is sent.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower_auth_refresh_testkit::TestServer;

use crate::certificates::Certificates;
use crate::test_gateway::TestGateway;

/// Starts an upstream that answers one request of each connection, and closes the connection at the second: the close
/// and the request have crossed. Returns the number of requests that it has seen.
async fn closes_at_the_second_request() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_one_of_two(stream, counter.clone()));
        }
    });
    (origin, seen)
}

async fn answer_one_of_two(mut stream: impl AsyncRead + AsyncWrite + Unpin, seen: Arc<AtomicUsize>) -> io::Result<()> {
    for number in 0..2 {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        seen.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
            stream.flush().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_get_on_a_connection_that_is_being_closed_is_sent_again() {
    let (upstream, _) = closes_at_the_second_request().await;
    let gateway = TestGateway::in_front_of(TestServer::start().await.unwrap(), &upstream, |_| {}).await;
    let browser = gateway.browser("ada").await;
    for _ in 0..10 {
        let response = browser.get("/api/x").await;
        assert_eq!((response.status.as_u16(), &response.body[..]), (200, &b"ok"[..]));
    }
}

/// Many servers close connections of TLS without `close_notify`.
#[tokio::test]
async fn a_get_on_a_connection_of_tls_that_is_being_closed_is_sent_again() {
    let Some(certificates) = Certificates::make("kept") else { return };
    let acceptor = TlsAcceptor::from(Arc::new(certificates.server_config("server", false)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { answer_one_of_two(acceptor.accept(stream).await?, Arc::default()).await });
        }
    });
    let trusted = certificates.trusted();
    let kit = TestServer::start().await.unwrap();
    let gateway = TestGateway::in_front_of(kit, &upstream, |settings| settings.upstream_tls = trusted).await;
    let browser = gateway.browser("ada").await;
    for _ in 0..10 {
        let response = browser.get("/api/x").await;
        assert_eq!((response.status.as_u16(), &response.body[..]), (200, &b"ok"[..]));
    }
}

/// The upstream may have processed it.
#[tokio::test]
async fn a_post_on_a_connection_that_is_being_closed_is_not_sent_again() {
    let (upstream, seen) = closes_at_the_second_request().await;
    let gateway = TestGateway::in_front_of(TestServer::start().await.unwrap(), &upstream, |_| {}).await;
    let browser = gateway.browser("ada").await;
    assert_eq!(browser.post("/api/x", "").await.status, 200);
    browser.post("/api/x", "").await.assert_problem(502, "upstream-failed");
    assert_eq!(seen.load(Ordering::Relaxed), 2);
}
