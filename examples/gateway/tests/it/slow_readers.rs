//! Clients that read slowly: one that makes progress is served, however slow it is.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep};

use crate::streaming::{endless_responses, reached};
use crate::test_gateway::TestGateway;

const CLIENT_TIMEOUT: Duration = Duration::from_secs(4);

/// Connects with a receive buffer that doesn't grow: what the client has not read fills the gateway's side.
async fn connect(gateway: &TestGateway) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(128 * 1024).unwrap();
    socket.connect(gateway.address).await.unwrap()
}

/// Reads so fast for some time that the buffer of the gateway's socket grows.
async fn read_fast(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut part = vec![0; 64 * 1024];
    for _ in 0..256 {
        stream.read_exact(&mut part).await.unwrap();
    }
}

/// A third of the socket's buffer takes this client longer than the time-out, in which the socket isn't writable.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_that_reads_steadily_is_served() {
    let (gateway, open) = endless_responses(CLIENT_TIMEOUT).await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let mut stream = connect(&gateway).await;
    let request = format!("GET /api/x HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    read_fast(&mut stream).await;
    let started = Instant::now();
    let mut part = vec![0; 8 * 1024];
    while started.elapsed() < CLIENT_TIMEOUT * 3 {
        stream.read_exact(&mut part).await.unwrap_or_else(|error| panic!("{error} after {:?}", started.elapsed()));
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(open.load(Ordering::Relaxed), 1, "the response has been cut off");
    // It stops.
    reached(&open, 0).await;
}

/// The connection as a whole is slow: an answer to a PING would come late.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_http_2_connection_that_is_read_steadily_is_served() {
    let (gateway, open) = endless_responses(CLIENT_TIMEOUT).await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let (slow, gate) = tokio::io::duplex(8 * 1024);
    let (mut from_gateway, mut to_gateway) = connect(&gateway).await.into_split();
    let (mut from_client, mut to_client) = tokio::io::split(gate);
    tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_gateway).await });
    let reading = tokio::spawn(async move {
        let mut part = vec![0; 8 * 1024];
        let started = Instant::now();
        while started.elapsed() < CLIENT_TIMEOUT * 3 {
            from_gateway
                .read_exact(&mut part)
                .await
                .map_err(|error| format!("{error} after {:?}", started.elapsed()))?;
            to_client.write_all(&part).await.map_err(|error| error.to_string())?;
            sleep(Duration::from_millis(50)).await;
        }
        Ok::<_, String>(())
    });
    // The windows are larger than what the client reads in this test.
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(16 << 20)
        .initial_connection_window_size(16 << 20)
        .handshake(TokioIo::new(slow))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("http://{}/api/x", gateway.address)).header("cookie", cookie);
    let body = sender.send_request(request.body(Body::empty()).unwrap()).await.unwrap().into_body();
    let draining = tokio::spawn(async move {
        let mut body = body;
        while let Some(Ok(_)) = body.frame().await {}
    });
    reading.await.unwrap().unwrap();
    assert_eq!(open.load(Ordering::Relaxed), 1, "the response has been cut off");
    draining.abort();
}
