//! Streams of HTTP/2 that their client doesn't read, beside one that it reads.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use bytes::Bytes;
use futures_util::stream;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::http2::{
    DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE, connect, frame, headers, read_frame,
};
use crate::test_gateway::{Browser, TestGateway};

const LONG: Duration = Duration::from_secs(20);

/// A time-out that streams which aren't read reach soon.
const SHORT: Duration = Duration::from_secs(2);

/// The requests that a session may have in flight: as many as a connection may have streams.
const REQUESTS: u32 = 200;

/// An error code (RFC 9113 §7).
const CANCEL: u32 = 8;

/// The data of one frame.
static PART: [u8; 64 * 1024] = [0; 64 * 1024];

/// A connection whose streams have no window but that of the first.
struct Client {
    reading: ReadHalf<TcpStream>,
    writing: WriteHalf<TcpStream>,
    /// The bytes that have arrived on the first stream.
    read: usize,
    answered: BTreeSet<u32>,
    reset: BTreeSet<u32>,
}

impl Client {
    /// Opens streams that have this window each, and the first one more.
    async fn open(gateway: &TestGateway, cookie: &str, path: &str, streams: u32, window: u32) -> Self {
        let mut stream = connect(gateway.address).await;
        let mut bytes = frame(SETTINGS, 0, 0, &[&[0, 4], &window.to_be_bytes()[..]].concat());
        for number in 0..streams {
            let path = if number == 0 { "/api/endless" } else { path };
            bytes.extend(request(number * 2 + 1, path, cookie));
        }
        stream.write_all(&bytes).await.unwrap();
        let (reading, writing) = split(stream);
        let mut client = Self { reading, writing, read: 0, answered: BTreeSet::new(), reset: BTreeSet::new() };
        client.widen(60_000).await;
        client
    }

    async fn widen(&mut self, window: u32) {
        let window = window.to_be_bytes();
        let frames = [frame(WINDOW_UPDATE, 0, 0, &window), frame(WINDOW_UPDATE, 0, 1, &window)].concat();
        self.writing.write_all(&frames).await.unwrap();
    }

    /// Reads the first stream steadily until the condition holds.
    async fn read_until(&mut self, condition: impl Fn(&Self) -> bool) {
        let reading = async {
            while !condition(self) {
                let frame = read_frame(&mut self.reading).await.unwrap();
                match (frame.kind, frame.stream) {
                    (DATA, 1) => {
                        self.read += frame.payload.len();
                        self.widen(frame.payload.len().try_into().unwrap()).await;
                    }
                    (HEADERS, stream) => assert!(self.answered.insert(stream)),
                    (RST_STREAM, stream) => {
                        assert_eq!(frame.payload, CANCEL.to_be_bytes());
                        assert!(self.reset.insert(stream));
                    }
                    _ => {}
                }
            }
        };
        timeout(LONG, reading).await.unwrap_or_else(|_| panic!("{} streams have been reset", self.reset.len()));
    }
}

fn request(stream: u32, path: &str, cookie: &str) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", path), ("cookie", cookie)];
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &headers(&fields))
}

/// Starts a gateway and opens as many streams as a session may have requests in flight.
async fn open(client_timeout: Duration, path: &str, window: u32) -> (TestGateway, Browser, Client) {
    let endless = async || Body::from_stream(stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(&PART))));
    let short = async || Bytes::from_static(&PART[..10_000]);
    let api = Router::new().route("/api/endless", any(endless)).route("/api/short", any(short));
    let gateway = TestGateway::with_upstream(api, |settings| {
        settings.client_timeout = client_timeout;
        settings.requests_in_flight_per_session = REQUESTS;
    });
    let gateway = gateway.await;
    let browser = gateway.browser("ada").await;
    let client = Client::open(&gateway, browser.cookie.as_deref().unwrap(), path, REQUESTS, window).await;
    (gateway, browser, client)
}

/// Returns all streams but the first.
fn stalled(streams: u32) -> BTreeSet<u32> {
    (1..streams).map(|number| number * 2 + 1).collect()
}

/// Waits until so many requests are in flight, without that for the metrics.
async fn in_flight(gateway: &TestGateway, count: u64) {
    let deadline = Instant::now() + LONG;
    loop {
        let now = gateway.metric("gateway_requests_in_flight").await - 1;
        if now == count {
            return;
        }
        assert!(Instant::now() < deadline, "{now} requests are in flight");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn streams_that_are_not_read_are_in_flight() {
    let (gateway, browser, mut client) = open(LONG * 2, "/api/endless", 0).await;
    client.read_until(|client| client.read > 0).await;
    in_flight(&gateway, REQUESTS.into()).await;
    browser.get("/api/short").await.assert_problem(429, "too-many-requests");
    assert_eq!(client.reset, BTreeSet::new());
}

/// A window of a byte is enough for the library to take a whole frame, which then waits in the memory of the gateway.
#[tokio::test]
async fn short_responses_are_in_flight_until_nearly_all_of_them_is_read() {
    let (gateway, browser, mut client) = open(LONG * 2, "/api/short", 1).await;
    client.read_until(|client| client.answered.len() == REQUESTS as usize).await;
    in_flight(&gateway, REQUESTS.into()).await;
    browser.get("/api/short").await.assert_problem(429, "too-many-requests");
    assert_eq!(client.reset, BTreeSet::new());
}

/// They would hold the memory, the connections to the upstream and the limits of their session for as long as the client
/// reads the one.
#[tokio::test]
async fn streams_that_are_not_read_are_reset_beside_one_that_is() {
    let (gateway, browser, mut client) = open(SHORT, "/api/endless", 0).await;
    client.read_until(|client| client.reset == stalled(REQUESTS)).await;
    in_flight(&gateway, 1).await;
    assert_eq!(browser.get("/api/short").await.status, 200);
    // The connection has room for further streams.
    let (read, next) = (client.read, REQUESTS * 2 + 1);
    client.writing.write_all(&request(next, "/api/short", browser.cookie.as_deref().unwrap())).await.unwrap();
    client.read_until(|client| client.read > read + PART.len() && client.answered.contains(&next)).await;
}

#[tokio::test]
async fn short_responses_that_are_not_read_are_reset_beside_a_stream_that_is() {
    let (gateway, browser, mut client) = open(SHORT, "/api/short", 1).await;
    client.read_until(|client| client.reset == stalled(REQUESTS)).await;
    in_flight(&gateway, 1).await;
    assert_eq!(browser.get("/api/short").await.status, 200);
}
