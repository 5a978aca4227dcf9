//! Responses of a malicious server take no memory, however long they are, and their connection is dropped.
//!
//! Covers the token endpoint's response to the refresh call of `tower-auth-refresh-http`, and an API's 401.

use std::env;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tower::{BoxError, Service, ServiceExt};
use tower_auth_refresh::{
    AccessToken, AuthRefreshLayer, NotRefreshed, Origin, RefreshError, RefreshErrorKind, RefreshReport, RefreshToken,
    ReplayBody, Session, SessionState, Tokens,
};
use tower_auth_refresh_http::{AuthClient, JsonRefresh};
use tower_http::decompression::Decompression;
use tower_layer::Layer;

use crate::{MARGIN, MEBIBYTE, peak_memory, report, run_in_own_process};

const GIBIBYTE: usize = 1 << 30;

/// The most that a server can send to a client that doesn't read: the buffers of a socket.
const BUFFERED: usize = 64 * MEBIBYTE;

/// The shape of a response: the bytes after the status line, and the bytes that are then repeated.
#[derive(Clone)]
struct Shape {
    name: &'static str,
    head: Vec<u8>,
    repeated: Vec<u8>,
}

fn shapes(length: usize) -> Vec<Shape> {
    const JSON: &str = r#"{"access_token":"a9","refresh_token":"r9","long":""#;
    let shape = |name, head: String, repeated: Vec<u8>| Shape { name, head: head.into_bytes(), repeated };
    let text = vec![b'y'; 0x10000];
    let chunk = [b"10000\r\n".as_slice(), &text, b"\r\n"].concat();
    let [bomb, repeated] = bomb();
    vec![
        shape("the declared length", format!("content-length: {length}\r\n\r\n{JSON}"), text.clone()),
        shape("a false length", format!("content-length: {}\r\n\r\n{JSON}", 1_u64 << 62), text.clone()),
        shape("chunked", "transfer-encoding: chunked\r\n\r\n".to_owned(), chunk),
        shape("until the connection ends", format!("\r\n{JSON}"), text.clone()),
        Shape { name: "gzip bomb", head: [b"content-encoding: gzip\r\n\r\n".as_slice(), &bomb].concat(), repeated },
        shape("one header", "x-long: ".to_owned(), text),
        shape("headers", String::new(), b"x-many: headers\r\n".repeat(4_000)),
    ]
}

/// Returns the head of a gzip stream of spaces, and bytes to repeat: 13 bytes stand for 2,064 spaces.
fn bomb() -> [Vec<u8>; 2] {
    // A block with fixed codes (RFC 1951 §3.2.6): a space, then "the last byte 258 times more", again and again.
    let (block, space, more) = ("110", "01010000", "11000101 00000");
    let bits = format!("{block}{space}{}", more.repeat(16)).replace(' ', "");
    let bits = bits.as_bytes().chunks_exact(8);
    let bytes = bits.map(|bits| bits.iter().rev().fold(0, |byte, bit| byte << 1 | (bit - b'0'))).collect::<Vec<u8>>();
    // The bytes repeat from the second on.
    let head = [b"\x1f\x8b\x08\0\0\0\0\0\x02\xff".as_slice(), &bytes[..2]].concat();
    [head, bytes[2..15].repeat(5_000)]
}

/// A server of a long response. It reports how much of each was sent before the connection was closed.
struct Server {
    url: String,
    sent: mpsc::UnboundedReceiver<usize>,
}

impl Server {
    async fn start(shape: Shape, length: usize) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (report, sent) = mpsc::unbounded_channel();
        let shape = Arc::new(shape);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shape), length, report.clone()));
            }
        });
        Self { url, sent }
    }

    /// Asserts that the client dropped the connection: no more was sent than the socket buffers hold.
    async fn assert_dropped(&mut self, shape: &str) {
        let sent = timeout(Duration::from_secs(60), self.sent.recv())
            .await
            .expect("the server notices the dropped connection")
            .unwrap();
        assert!(sent < BUFFERED, "{shape}: {} MiB were sent", sent / MEBIBYTE);
    }
}

/// Sends a short response to `a2` and to the refresh call, and the long one to every other request.
async fn serve(mut stream: TcpStream, shape: Arc<Shape>, length: usize, report: mpsc::UnboundedSender<usize>) {
    while let Some(request) = read(&mut stream).await {
        let short = if request.contains("Bearer a2") {
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
        } else if request.starts_with("POST /auth/refresh") {
            "HTTP/1.1 200 OK\r\ncontent-length: 43\r\n\r\n{\"access_token\":\"a2\",\"refresh_token\":\"r2\"} "
        } else {
            ""
        };
        if !short.is_empty() {
            stream.write_all(short.as_bytes()).await.unwrap();
            continue;
        }
        let status: &[u8] = if request.starts_with("POST") {
            b"HTTP/1.1 200 OK\r\n"
        } else {
            b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer error=\"invalid_token\"\r\n"
        };
        let mut sent = 0;
        let mut written = stream.write_all(&[status, &shape.head].concat()).await;
        while written.is_ok() && sent < length {
            written = stream.write_all(&shape.repeated).await;
            sent += shape.repeated.len();
        }
        let _ = report.send(sent);
        return;
    }
}

/// Reads the next request with its body, and returns its head.
async fn read(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    loop {
        if let Some(end) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&request[..end]).into_owned();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if request.len() >= end + 4 + length.map_or(0, |length| length.parse().unwrap()) {
                return Some(head);
            }
        }
        if stream.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
    }
}

fn tokens() -> Tokens {
    Tokens::new(AccessToken::new("a1").unwrap(), RefreshToken::new("r1").unwrap())
}

fn client<B>() -> Client<HttpConnector, B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    Client::builder(TokioExecutor::new()).build_http()
}

/// The clients for the refresh call.
fn clients() -> [AuthClient; 2] {
    [AuthClient::new(client()), AuthClient::new(Decompression::new(client()))]
}

/// Sends a refresh call that gets a long response: the outcome is in doubt, the session keeps its tokens, and the
/// connection is dropped.
async fn refresh(client: AuthClient, shape: Shape, length: usize) {
    let name = shape.name;
    let mut server = Server::start(shape, length).await;
    let call = JsonRefresh::new(client, &format!("{}/long", server.url)).unwrap();
    let session = Session::builder(call).tokens(tokens()).build().await.unwrap();
    match session.refresh().await {
        Err(NotRefreshed::Failed(error)) => assert_eq!(error.kind(), RefreshErrorKind::InDoubt, "{name}: {error:?}"),
        other => panic!("{name}: {other:?}"),
    }
    let SessionState::Failing(failure) = session.state() else { panic!("{name}: {:?}", session.state()) };
    assert_eq!((failure.kind(), failure.count()), (RefreshErrorKind::InDoubt, 1), "{name}");
    assert_eq!(session.tokens(), tokens());
    if length > BUFFERED {
        server.assert_dropped(name).await;
    }
}

/// Sends a request that gets a long 401: it is still replayed, and the connection is dropped.
async fn refused<B>(
    client: impl Service<
        Request<ReplayBody<Full<Bytes>>>,
        Response = http::Response<B>,
        Error: Into<BoxError>,
        Future: Send,
    > + Clone
    + Send
    + 'static,
    shape: Shape,
    length: usize,
) where
    B: http_body::Body<Error: std::fmt::Debug>,
{
    let (name, in_headers) = (shape.name, shape.name.contains("header"));
    let mut server = Server::start(shape, length).await;
    let call = JsonRefresh::new(AuthClient::new(self::client()), &format!("{}/auth/refresh", server.url)).unwrap();
    let session = Session::builder(call).tokens(tokens()).build().await.unwrap();
    let client = AuthRefreshLayer::new(session, Origin::parse(&server.url).unwrap()).layer(client);
    let request = Request::get(&server.url).body(Full::default()).unwrap();
    let response = timeout(Duration::from_secs(10), client.oneshot(request)).await.unwrap();
    if in_headers {
        assert!(response.is_err(), "{name}");
    } else {
        let response = response.map_err(Into::into).unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{name}");
        assert!(matches!(response.extensions().get(), Some(RefreshReport::Replayed)));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    }
    if length > BUFFERED {
        server.assert_dropped(name).await;
    }
}

/// Returns the growth of a process's peak from responses of a mebibyte to responses of a gibibyte. `None` if the system
/// doesn't report memory.
///
/// Runs the calling test, named `test`, again in a process of its own.
fn growth(test: &str, mut answers: impl AsyncFnMut(usize)) -> Option<usize> {
    if env::var_os("ANSWERED").is_none() {
        return run_in_own_process(&format!("answers::{test}"), [("ANSWERED", "yes")]);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        answers(MEBIBYTE).await;
        let before = peak_memory();
        answers(GIBIBYTE).await;
        report(peak_memory().zip(before).map(|(now, before)| now - before));
    });
    None
}

#[test]
fn an_endless_response_to_the_refresh_call() {
    let grown = growth("an_endless_response_to_the_refresh_call", async |length| {
        for client in clients() {
            for shape in shapes(length) {
                refresh(client.clone(), shape, length).await;
            }
        }
    });
    println!("{grown:?} bytes");
    assert!(grown.is_none_or(|grown| grown <= MARGIN), "{grown:?} bytes");
}

#[test]
fn an_endless_401() {
    let grown = growth("an_endless_401", async |length| {
        for shape in shapes(length) {
            refused(client(), shape.clone(), length).await;
            refused(Decompression::new(client()), shape, length).await;
        }
    });
    println!("{grown:?} bytes");
    assert!(grown.is_none_or(|grown| grown <= MARGIN), "{grown:?} bytes");
}

/// Validates the other tests: a response that is buffered shows in the peak. The gzip bomb grows to 200 times its size.
#[test]
fn a_response_that_is_buffered_shows_in_the_peak() {
    let grown = growth("a_response_that_is_buffered_shows_in_the_peak", async |length| {
        for client in clients() {
            for shape in shapes(length).into_iter().take(5) {
                refresh(client.clone().answer_limit(64 * MEBIBYTE), shape, length / 64).await;
            }
        }
    });
    println!("{grown:?} bytes");
    assert!(grown.is_none_or(|grown| grown > 16 * MEBIBYTE - MARGIN), "{grown:?} bytes");
}

/// Validates [`bomb`]: it decompresses to the stated number of spaces.
#[tokio::test]
async fn the_gzip_bomb_decompresses_to_spaces() {
    let [mut compressed, repeated] = bomb();
    compressed.extend_from_slice(&repeated[..13]);
    let service = tower::service_fn(move |_: Request<Full<Bytes>>| {
        let response = http::Response::builder().header("content-encoding", "gzip");
        std::future::ready(Ok::<_, RefreshError>(response.body(Full::new(Bytes::from(compressed.clone()))).unwrap()))
    });
    let response = Decompression::new(service).oneshot(Request::new(Full::default())).await.unwrap();
    let (mut body, mut spaces) = (response.into_body(), 0);
    while let Some(Ok(frame)) = body.frame().await {
        let data = frame.into_data().unwrap();
        assert!(data.iter().all(|byte| *byte == b' '));
        spaces += data.len();
    }
    assert!((2_000..2_500).contains(&spaces), "{spaces} spaces");
}
