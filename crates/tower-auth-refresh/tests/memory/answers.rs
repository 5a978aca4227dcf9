//! What a server that means harm answers takes no memory, however long it goes on, and its connection is dropped: that
//! of the token endpoint in the refresh call of `tower-auth-refresh-http`, and an API's 401.

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

use crate::{MARGIN, MEBIBYTE, alone, peak, tell};

const GIBIBYTE: usize = 1 << 30;

/// What goes out before a server notices that nobody reads: the buffers of a socket.
const BUFFERED: usize = 64 * MEBIBYTE;

/// What an answer consists of after its status line, and how it goes on.
#[derive(Clone)]
struct Guise {
    name: &'static str,
    head: Vec<u8>,
    again: Vec<u8>,
}

fn guises(length: usize) -> Vec<Guise> {
    const JSON: &str = r#"{"access_token":"a9","refresh_token":"r9","long":""#;
    let guise = |name, head: String, again: Vec<u8>| Guise { name, head: head.into_bytes(), again };
    let text = vec![b'y'; 0x10000];
    let chunk = [b"10000\r\n".as_slice(), &text, b"\r\n"].concat();
    let [bomb, again] = bomb();
    vec![
        guise("of that length", format!("content-length: {length}\r\n\r\n{JSON}"), text.clone()),
        guise("of a length that is a lie", format!("content-length: {}\r\n\r\n{JSON}", 1_u64 << 62), text.clone()),
        guise("in chunks", "transfer-encoding: chunked\r\n\r\n".to_owned(), chunk),
        guise("until the connection ends", format!("\r\n{JSON}"), text.clone()),
        Guise { name: "zipped", head: [b"content-encoding: gzip\r\n\r\n".as_slice(), &bomb].concat(), again },
        guise("one header", "x-long: ".to_owned(), text),
        guise("headers", String::new(), b"x-many: headers\r\n".repeat(4_000)),
    ]
}

/// How a gzip stream of spaces begins, and how it goes on: 13 bytes for 2,064 spaces.
fn bomb() -> [Vec<u8>; 2] {
    // A block with fixed codes (RFC 1951 §3.2.6): a space, then "the last byte 258 times more", again and again.
    let (block, space, more) = ("110", "01010000", "11000101 00000");
    let bits = format!("{block}{space}{}", more.repeat(16)).replace(' ', "");
    let bits = bits.as_bytes().chunks_exact(8);
    let bytes = bits.map(|bits| bits.iter().rev().fold(0, |byte, bit| byte << 1 | (bit - b'0'))).collect::<Vec<u8>>();
    // They repeat from the second on.
    let head = [b"\x1f\x8b\x08\0\0\0\0\0\x02\xff".as_slice(), &bytes[..2]].concat();
    [head, bytes[2..15].repeat(5_000)]
}

/// A server of so long an answer, and how much of each was sent before its connection was gone.
struct Server {
    url: String,
    sent: mpsc::UnboundedReceiver<usize>,
}

impl Server {
    async fn start(guise: Guise, length: usize) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (tell, sent) = mpsc::unbounded_channel();
        let guise = Arc::new(guise);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&guise), length, tell.clone()));
            }
        });
        Self { url, sent }
    }

    /// Somebody was sent no more of it than what nobody reads.
    async fn assert_dropped(&mut self, guise: &str) {
        let sent = timeout(Duration::from_secs(60), self.sent.recv()).await.expect("it notices at once").unwrap();
        assert!(sent < BUFFERED, "{guise}: {} MiB were sent", sent / MEBIBYTE);
    }
}

/// Answers `a2` and the refresh call briefly, and everything else at length.
async fn serve(mut stream: TcpStream, guise: Arc<Guise>, length: usize, tell: mpsc::UnboundedSender<usize>) {
    while let Some(request) = read(&mut stream).await {
        let brief = if request.contains("Bearer a2") {
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
        } else if request.starts_with("POST /auth/refresh") {
            "HTTP/1.1 200 OK\r\ncontent-length: 43\r\n\r\n{\"access_token\":\"a2\",\"refresh_token\":\"r2\"} "
        } else {
            ""
        };
        if !brief.is_empty() {
            stream.write_all(brief.as_bytes()).await.unwrap();
            continue;
        }
        let status: &[u8] = if request.starts_with("POST") {
            b"HTTP/1.1 200 OK\r\n"
        } else {
            b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer error=\"invalid_token\"\r\n"
        };
        let mut sent = 0;
        let mut written = stream.write_all(&[status, &guise.head].concat()).await;
        while written.is_ok() && sent < length {
            written = stream.write_all(&guise.again).await;
            sent += guise.again.len();
        }
        let _ = tell.send(sent);
        return;
    }
}

/// The next request, its body too.
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

/// The clients that a refresh call may go through.
fn clients() -> [AuthClient; 2] {
    [AuthClient::new(client()), AuthClient::new(Decompression::new(client()))]
}

/// A refresh call is answered at length: it is in doubt, the session stays as it was, and the connection is dropped.
async fn refresh(client: AuthClient, guise: Guise, length: usize) {
    let name = guise.name;
    let mut server = Server::start(guise, length).await;
    let call = JsonRefresh::new(client, &format!("{}/long", server.url)).unwrap();
    let session = Session::builder(call).tokens(tokens()).build().await.unwrap();
    match session.refresh().await {
        Err(NotRefreshed::Failed(error)) => assert_eq!(error.kind(), RefreshErrorKind::InDoubt, "{name}: {error:?}"),
        other => panic!("{name}: {other:?}"),
    }
    assert_eq!((session.state(), session.tokens()), (SessionState::Active, tokens()));
    if length > BUFFERED {
        server.assert_dropped(name).await;
    }
}

/// A request is refused at length: it is replayed all the same, and the connection is dropped.
async fn refused<B>(
    client: impl Service<
        Request<ReplayBody<Full<Bytes>>>,
        Response = http::Response<B>,
        Error: Into<BoxError>,
        Future: Send,
    > + Clone
    + Send
    + 'static,
    guise: Guise,
    length: usize,
) where
    B: http_body::Body<Error: std::fmt::Debug>,
{
    let (name, headless) = (guise.name, guise.name.contains("header"));
    let mut server = Server::start(guise, length).await;
    let call = JsonRefresh::new(AuthClient::new(self::client()), &format!("{}/auth/refresh", server.url)).unwrap();
    let session = Session::builder(call).tokens(tokens()).build().await.unwrap();
    let client = AuthRefreshLayer::new(session, Origin::parse(&server.url).unwrap()).layer(client);
    let request = Request::get(&server.url).body(Full::default()).unwrap();
    let response = timeout(Duration::from_secs(10), client.oneshot(request)).await.unwrap();
    if headless {
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

/// How much the peak of a process grows when answers of a mebibyte become answers of a gibibyte, where the system tells.
///
/// Called by the test of that name, which is run again, in a process of its own.
fn growth(test: &str, mut answers: impl AsyncFnMut(usize)) -> Option<usize> {
    if env::var_os("ANSWERED").is_none() {
        return alone(&format!("answers::{test}"), [("ANSWERED", "yes")]);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        answers(MEBIBYTE).await;
        let before = peak();
        answers(GIBIBYTE).await;
        tell(peak().zip(before).map(|(now, before)| now - before));
    });
    None
}

#[test]
fn an_endless_answer_to_the_refresh_call() {
    let grown = growth("an_endless_answer_to_the_refresh_call", async |length| {
        for client in clients() {
            for guise in guises(length) {
                refresh(client.clone(), guise, length).await;
            }
        }
    });
    println!("{grown:?} bytes");
    assert!(grown.is_none_or(|grown| grown <= MARGIN), "{grown:?} bytes");
}

#[test]
fn an_endless_401() {
    let grown = growth("an_endless_401", async |length| {
        for guise in guises(length) {
            refused(client(), guise.clone(), length).await;
            refused(Decompression::new(client()), guise, length).await;
        }
    });
    println!("{grown:?} bytes");
    assert!(grown.is_none_or(|grown| grown <= MARGIN), "{grown:?} bytes");
}

/// What the others are worth: were an answer read, it would show. What is zipped takes two hundred times its length.
#[test]
fn an_answer_that_is_read_shows() {
    let grown = growth("an_answer_that_is_read_shows", async |length| {
        for client in clients() {
            for guise in guises(length).into_iter().take(5) {
                refresh(client.clone().answer_limit(64 * MEBIBYTE), guise, length / 64).await;
            }
        }
    });
    println!("{grown:?} bytes");
    assert!(grown.is_none_or(|grown| grown > 16 * MEBIBYTE - MARGIN), "{grown:?} bytes");
}

/// It is what it seems: as many spaces as it says.
#[tokio::test]
async fn the_bomb_is_one() {
    let [mut zipped, again] = bomb();
    zipped.extend_from_slice(&again[..13]);
    let service = tower::service_fn(move |_: Request<Full<Bytes>>| {
        let response = http::Response::builder().header("content-encoding", "gzip");
        std::future::ready(Ok::<_, RefreshError>(response.body(Full::new(Bytes::from(zipped.clone()))).unwrap()))
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
