//! Requests that two servers could take for different ones: framing, targets and header syntax, byte by byte.
//!
//! The upstream records what it receives with a strict parser. Nothing that was sent as a body, or behind a refused
//! request, may arrive there as a request.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tower_auth_refresh_testkit::TestServer;

use crate::test_gateway::TestGateway;

/// A request as the upstream has received it.
#[derive(Clone, Debug)]
struct Received {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// An upstream that parses strictly and records.
#[derive(Clone, Default)]
struct Recorder {
    received: Arc<Mutex<Vec<Received>>>,
    /// What the strict parser has refused.
    invalid: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let recorder = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (recorder, mut stream) = (recorder.clone(), BufReader::new(stream));
                tokio::spawn(async move {
                    let serve = async { while recorder.exchange(&mut stream).await.is_some() {} };
                    // The parser panics at what a strict server refuses.
                    if std::panic::AssertUnwindSafe(serve).catch_unwind().await.is_err() {
                        recorder.invalid.lock().unwrap().push("a request that a strict server refuses".to_owned());
                    }
                });
            }
        });
        origin
    }

    /// Reads a request and answers it. Returns `None` at the end of the connection.
    async fn exchange(&self, stream: &mut BufReader<TcpStream>) -> Option<()> {
        let head = until(stream, b"\r\n\r\n").await?;
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.trim_end().split("\r\n");
        let line = lines.next().unwrap().to_owned();
        let headers: Vec<_> = lines
            .map(|line| {
                let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line:?} in {head:?}"));
                assert!(!name.contains([' ', '\t']) && !value.contains(['\r', '\n', '\0']), "{line:?}");
                (name.to_ascii_lowercase(), value.to_owned())
            })
            .collect();
        let all =
            |name: &str| headers.iter().filter(|header| header.0 == name).map(|header| &*header.1).collect::<Vec<_>>();
        let body = match (&all("content-length")[..], &all("transfer-encoding")[..]) {
            ([], []) => Vec::new(),
            ([length], []) => exactly(stream, length.parse().unwrap()).await?,
            ([], ["chunked"]) => chunks(stream).await?,
            framing => panic!("{framing:?} in {head:?}"),
        };
        self.received.lock().unwrap().push(Received { line, headers, body });
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.ok()
    }
}

/// Reads a body of chunks.
async fn chunks(stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = until(stream, b"\r\n").await?;
        let length = usize::from_str_radix(str::from_utf8(&line).unwrap().trim_end(), 16).unwrap();
        let data = exactly(stream, length + 2).await?;
        assert!(data.ends_with(b"\r\n"));
        if length == 0 {
            return Some(body);
        }
        body.extend(&data[..length]);
    }
}

async fn exactly(stream: &mut BufReader<TcpStream>, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(bytes)
}

async fn until(stream: &mut BufReader<TcpStream>, end: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        bytes.push(stream.read_u8().await.ok()?);
    }
    Some(bytes)
}

pub(crate) struct Attack {
    pub(crate) gateway: TestGateway,
    recorder: Recorder,
    pub(crate) cookie: String,
}

impl Attack {
    pub(crate) async fn start() -> Self {
        let recorder = Recorder::default();
        let kit = TestServer::start().await.unwrap();
        let upstream = recorder.serve().await;
        let gateway = TestGateway::in_front_of(kit, &upstream, |settings| {
            settings.client_timeout = Duration::from_millis(500);
            settings.idle_connection_timeout = Duration::from_millis(500);
        });
        let gateway = gateway.await;
        let cookie = gateway.browser("ada").await.cookie.unwrap();
        Self { gateway, recorder, cookie }
    }

    async fn send(&self, bytes: &[u8]) {
        Self::send_to(self.gateway.address, bytes).await;
    }

    /// Sends bytes, and returns all that comes back.
    pub(crate) async fn send_to(address: SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut response = Vec::new();
        let exchange = async {
            let _ = stream.write_all(bytes).await;
            let _ = stream.read_to_end(&mut response).await;
        };
        timeout(Duration::from_secs(20), exchange).await.unwrap_or_else(|_| panic!("{}", bytes.escape_ascii()));
        String::from_utf8_lossy(&response).into_owned()
    }

    /// Checks what the upstream has received since the last time: requests of this user, and none of those that were
    /// smuggled.
    pub(crate) fn check(&self, sent: &[u8]) -> usize {
        let received = std::mem::take(&mut *self.recorder.received.lock().unwrap());
        assert_eq!(*self.recorder.invalid.lock().unwrap(), Vec::<String>::new(), "{}", sent.escape_ascii());
        for request in &received {
            let of_user = request.headers.iter().filter(|(name, _)| name == "authorization").count() == 1;
            assert!(of_user, "{}: {request:?}", sent.escape_ascii());
            let target = request.line.split(' ').nth(1).unwrap();
            let smuggled = target.contains("smuggled") || !(target == "/api" || target.starts_with("/api/"));
            assert!(!smuggled, "{}: {request:?}", sent.escape_ascii());
            assert!(!request.line.contains('\t') && request.line.ends_with(" HTTP/1.1"), "{request:?}");
            let named = |name: &str| request.headers.iter().any(|header| header.0 == name);
            assert!(!["cookie", "te", "connection", "upgrade", "keep-alive"].into_iter().any(named), "{request:?}");
        }
        received.len()
    }
}

/// Returns requests with every pair of framings, in the spellings that some server accepts.
pub(crate) fn framings(cookie: &str) -> Vec<Vec<u8>> {
    let lengths = [
        "",
        "content-length: 0",
        "content-length: 6",
        "content-length: +6",
        "content-length: 6, 6",
        "content-length: 6\r\ncontent-length: 0",
        "content-length : 6",
        "content-length:\t6",
        "content-length: 0x6",
        "content-length: 6 6",
        "content-length: ",
        "content-length: -1",
        "content-length: 99999999999999999999999",
        "content-length:\x0b6",
        "content_length: 6",
        "content-length\0: 6",
    ];
    let codings = [
        "",
        "transfer-encoding: chunked",
        "transfer-encoding: CHUNKED",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: identity",
        "transfer-encoding:\tchunked",
        "transfer-encoding : chunked",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding:\x0bchunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: x",
        "transfer-encoding: x\r\ntransfer-encoding: chunked",
        "x: y\r\n transfer-encoding: chunked",
        "transfer-encoding: gzip, chunked",
        "transfer_encoding: chunked",
        "transfer-encoding:chunked ",
        "transfer-encoding: chunked;q=1",
        "Transfer-Encoding: ,chunked",
    ];
    let smuggled = "GET /api/smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let bodies = [
        format!("0\r\n\r\n{smuggled}"),
        format!("1\r\nx\r\n0\r\n\r\n{smuggled}"),
        format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len()),
        format!("0;ext=\"\r\n\"\r\n\r\n{smuggled}"),
        format!("0\n\n{smuggled}"),
        format!("00000000000000000000000000000000000000000\r\n\r\n{smuggled}"),
    ];
    let mut requests = Vec::new();
    for length in lengths {
        for coding in codings {
            let fields = [length, coding].into_iter().filter(|field| !field.is_empty());
            let fields = fields.flat_map(|field| [field, "\r\n"]).collect::<String>();
            for (body, version) in bodies.iter().zip(["1.1", "1.0"].into_iter().cycle()) {
                let head =
                    format!("POST /api/x HTTP/{version}\r\nhost: a\r\ncookie: {cookie}\r\nx-requested-with: x\r\n");
                // The smuggled request has no session: as a request of its own, it is refused by the gateway.
                requests.push(format!("{head}{fields}\r\n{body}").into_bytes());
            }
        }
    }
    requests
}

#[tokio::test]
async fn no_framing_smuggles_a_request() {
    let attack = Attack::start().await;
    let requests = framings(&attack.cookie);
    let mut passed = 0;
    for requests in requests.chunks(108) {
        join_all(requests.iter().map(|request| attack.send(request))).await;
        passed += attack.check(&requests[0]);
    }
    println!("framing: {} requests, {passed} at the upstream", requests.len());
    assert!(requests.len() > 1500 && passed > 0);
}

/// Returns requests for targets that some server resolves to another path, by each method.
pub(crate) fn targets(cookie: &str) -> Vec<Vec<u8>> {
    let mut targets: Vec<Vec<u8>> = [
        "/api/x",
        "/api",
        "/",
        "*",
        "",
        "api/x",
        "//api/x",
        "/api//x",
        "/api/x#y",
        "/api/x?y#z",
        "/api/..",
        "/api/../smuggled",
        "/api/%2e%2e/smuggled",
        "/api/%2E./smuggled",
        "/api/..%2fsmuggled",
        "/api/..\\smuggled",
        "/api/..;/smuggled",
        "/api/%252e%252e/smuggled",
        "/api/.%00./smuggled",
        "/api/..%0a/smuggled",
        "/api%2f..%2fsmuggled",
        "/API/x",
        "/api/x HTTP/1.1",
        "http://evil.example/api/x",
        "http://evil.example/smuggled",
        "https://evil.example:99999/api/x",
        "http:///api/x",
        "//evil.example/api/x",
        "ftp://a/api/x",
        "a:80",
        "/api@evil/x",
        "http://a@b/api/x",
        "/api/\u{e9}",
        "/api/%",
        "/api/%zz",
        "/api/x y",
        "/smuggled/../api/x",
        "/api/./smuggled/..",
    ]
    .map(|target| target.as_bytes().to_vec())
    .to_vec();
    targets.extend((0..=255).map(|byte| [b"/api/a", &[byte][..], b"b"].concat()));
    targets.extend((0..=255).map(|byte| format!("/api/a%{byte:02x}/..%{byte:02x}/b").into_bytes()));
    targets.push([&b"/api/"[..], &vec![b'a'; 70_000]].concat());
    let rest = format!(" HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\nx-requested-with: x\r\nconnection: close\r\n\r\n");
    let methods = ["GET", "POST", "OPTIONS", "CONNECT", "TRACE", "get", "G@T", "PRI"];
    let requests = methods
        .iter()
        .flat_map(|method| targets.iter().map(|target| [method.as_bytes(), b" ", target, rest.as_bytes()].concat()));
    requests.collect()
}

#[tokio::test]
async fn no_target_leads_elsewhere() {
    let attack = Attack::start().await;
    let requests = targets(&attack.cookie);
    let mut passed = 0;
    for requests in requests.chunks(128) {
        join_all(requests.iter().map(|request| attack.send(request))).await;
        passed += attack.check(&requests[0]);
    }
    println!("targets: {} requests, {passed} at the upstream", requests.len());
    assert!(passed > 100);
}

/// Each byte at each place of a header.
#[tokio::test]
async fn no_byte_in_a_header_begins_another() {
    let attack = Attack::start().await;
    let (mut sent, mut passed) = (0, 0);
    for first in (0..=255_u8).step_by(16) {
        let requests: Vec<_> = (first..=first + 15).flat_map(|byte| with_byte(&attack.cookie, byte)).collect();
        join_all(requests.iter().map(|request| attack.send(request))).await;
        sent += requests.len();
        for request in &*attack.recorder.received.lock().unwrap() {
            let smuggled = |(name, value): &(String, String)| name == "authorization" && value.contains("smuggled");
            assert!(!request.headers.iter().any(smuggled) && request.body.is_empty(), "{request:?}");
        }
        passed += attack.check(&[first]);
    }
    println!("header syntax: {sent} requests, {passed} at the upstream");
    assert!(passed > 300);
}

/// Returns requests with a byte at each place of a header.
pub(crate) fn with_byte(cookie: &str, byte: u8) -> [Vec<u8>; 6] {
    let places: [(&[u8], &[u8]); 6] = [
        (b"", b"x-a: b\r\n"),
        (b"x-", b"a: b\r\n"),
        (b"x-a", b": b\r\n"),
        (b"x-a:", b"authorization: Bearer smuggled\r\n"),
        (b"x-a: b", b"authorization: Bearer smuggled\r\n"),
        (b"x-a: b\r", b"authorization: Bearer smuggled\r\n"),
    ];
    places.map(|(before, after)| {
        let head = format!("GET /api/x HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\nconnection: close\r\n");
        [head.as_bytes(), before, &[byte], after, b"\r\n"].concat()
    })
}

/// A proxy in front may take the other of both (RFC 9112 §6.1): what follows may be a part of the body to it.
#[tokio::test]
async fn a_request_with_a_length_and_a_coding_is_the_last_of_its_connection() {
    let attack = Attack::start().await;
    let (length, coding) = ("content-length: 30\r\n", "transfer-encoding: chunked\r\n");
    for fields in [[length, coding], [coding, length], [coding, ""]] {
        for path in ["/api/x", "/healthz", "/nowhere"] {
            let request = format!(
                "POST {path} HTTP/1.1\r\nhost: a\r\ncookie: {}\r\nx-requested-with: x\r\n{}\r\n0\r\n\r\n\
                 GET /api/smuggled HTTP/1.1\r\nhost: a\r\ncookie: {}\r\n\r\n",
                attack.cookie,
                fields.concat(),
                attack.cookie
            );
            let answers = Attack::send_to(attack.gateway.address, request.as_bytes()).await;
            assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{fields:?} {path}: {answers}");
            attack.check(request.as_bytes());
        }
    }
}
