//! TLS by the gateway itself: handshakes that never end, are cut off or malformed, and users beside them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use gateway::{PublicOrigin, Settings};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;
use tower_auth_refresh::Origin;
use tower_auth_refresh_testkit::TestServer;

use crate::certificates::{Certificates, VERSIONS, connect};
use crate::http2::{DATA, END_HEADERS, HEADERS, SETTINGS, frame, headers};
use crate::test_gateway::{Browser, TestGateway};

/// More than any of these tests takes, on a loaded machine too.
const LONG: Duration = Duration::from_secs(20);

/// The record types of TLS.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

struct Attack {
    certificates: Certificates,
    gateway: TestGateway,
}

impl Attack {
    /// Starts a gateway with TLS, or returns `None` without openssl.
    async fn start(name: &str, change: impl FnOnce(&mut Settings)) -> Option<Self> {
        let kit = TestServer::start().await.unwrap();
        let upstream = kit.origin();
        Self::in_front_of(name, kit, &upstream, change).await
    }

    async fn in_front_of(
        name: &str,
        kit: TestServer,
        upstream: &str,
        change: impl FnOnce(&mut Settings),
    ) -> Option<Self> {
        let certificates = Certificates::make(name)?;
        let gateway = TestGateway::in_front_of(kit, upstream, |settings| {
            settings.tls = Some(certificates.identity("server"));
            settings.public = PublicOrigin::Named(Origin::parse("https://app.example.com").unwrap());
            settings.client_timeout = Duration::from_millis(500);
            settings.idle_connection_timeout = Duration::from_millis(500);
            change(settings);
        });
        Some(Self { gateway: gateway.await, certificates })
    }

    fn address(&self) -> SocketAddr {
        self.gateway.address
    }

    async fn user(&self) -> Browser {
        let mut browser = Browser::over_tls(self.address(), self.certificates.client_config(VERSIONS));
        assert_eq!(browser.login("ada", "correct horse").await.status, 204);
        browser
    }

    fn client(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        let mut config = self.certificates.client_config(VERSIONS);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// Returns the first message of a client that names this host.
    fn hello(&self, host: &'static str) -> Vec<u8> {
        let client = self.client(&["h2", "http/1.1"]);
        let mut client = ClientConnection::new(client, ServerName::try_from(host).unwrap()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    }
}

/// Sends bytes and the end of the connection, and returns all that the gateway sends until it closes.
async fn send(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.expect("the connection is open");
    answer
}

/// Puts each byte of a record into a record of its own.
fn in_records_of_a_byte(record: &[u8]) -> Vec<u8> {
    record[5..].iter().flat_map(|byte| [record[0], record[1], record[2], 0, 1, *byte]).collect()
}

#[tokio::test]
async fn malformed_handshakes_end_and_reach_nothing() {
    let Some(attack) = Attack::start("hostile-malformed", |_| {}).await else { return };
    let user = attack.user().await;
    let hello = attack.hello("app.example.com");
    let name = hello.windows(15).position(|bytes| bytes == b"app.example.com").unwrap();
    let mut attacks = Vec::new();
    for at in 0..hello.len() {
        attacks.push(hello[..at].to_vec());
        let mut flipped = hello.clone();
        flipped[at] ^= 1 << (at % 8);
        attacks.push(flipped);
        let mut repeated = hello.clone();
        repeated.insert(at, 0xff);
        attacks.push(repeated);
    }
    // A name of the host that is none.
    for byte in 0..=255 {
        let mut garbage = hello.clone();
        garbage[name + 3] = byte;
        attacks.push(garbage.clone());
        garbage[name..name + 15].fill(byte);
        attacks.push(garbage);
    }
    // Each type of record, before a handshake and after the first message.
    for kind in 0..=255 {
        for length in [0, 1, 5, 0x4000, 0xffff] {
            let (high, low) = (u8::try_from(length >> 8).unwrap(), u8::try_from(length & 255).unwrap());
            let record = [&[kind, 3, 3, high, low][..], &vec![kind; length]].concat();
            if length < 0x4000 {
                attacks.push([&hello[..], &record].concat());
            }
            attacks.push(record);
        }
    }
    for text in
        ["GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PROXY UNKNOWN\r\n", "\n"]
    {
        attacks.push(text.into());
        attacks.push([&hello[..], text.as_bytes()].concat());
    }
    attacks.extend((0..100).map(|_| (0..fastrand::usize(..600)).map(|_| fastrand::u8(..)).collect()));
    let before = attack.gateway.kit.counters().api;
    let part = if std::env::var_os("HOSTILE_REQUESTS").is_some() { 1 } else { 3 };
    let attacks: Vec<_> = attacks.iter().step_by(part).collect();
    let mut greeted = 0;
    for attacks in attacks.chunks(400) {
        let answers = join_all(attacks.iter().map(|bytes| send(attack.address(), bytes))).await;
        for (bytes, answer) in attacks.iter().zip(answers) {
            // Nothing, an alert, or the gateway's half of a handshake.
            let is_tls = answer.first().is_none_or(|kind| [ALERT, HANDSHAKE].contains(kind));
            assert!(is_tls, "{} {}", bytes.escape_ascii(), answer.escape_ascii());
            greeted += usize::from(answer.first() == Some(&HANDSHAKE));
        }
    }
    println!("TLS: {} malformed handshakes, {greeted} of which the gateway answered", attacks.len());
    assert_eq!(attack.gateway.kit.counters().api, before);
    assert_eq!(user.get("/api/me").await.status, 200);
}

/// A handshake in records of a byte, and a request in such records, are slow and valid.
#[tokio::test]
async fn records_of_a_byte_are_read() {
    let Some(attack) = Attack::start("hostile-records", |_| {}).await else { return };
    let hello = attack.hello("app.example.com");
    let answer = send(attack.address(), &in_records_of_a_byte(&hello)).await;
    assert_eq!(answer.first(), Some(&HANDSHAKE), "{}", answer.escape_ascii());
    let cookie = attack.user().await.cookie.unwrap();
    let mut stream = connect(&attack.client(&["http/1.1"]), attack.address()).await;
    let request = format!("GET /api/me HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n");
    for byte in request.bytes() {
        stream.write_all(&[byte]).await.unwrap();
        stream.flush().await.unwrap();
    }
    let mut answer = String::new();
    timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    println!("TLS: {} records of a byte, all of which were read", hello.len() + request.len());
}

/// Without `close_notify`, or with it: an upload that ends early never looks complete to the upstream.
#[tokio::test]
async fn no_upload_that_tls_cuts_off_looks_complete() {
    let (upstream, mut uploads) = upstream().await;
    let kit = TestServer::start().await.unwrap();
    let change = |settings: &mut Settings| settings.client_timeout = LONG;
    let Some(attack) = Attack::in_front_of("hostile-cut", kit, &upstream, change).await else { return };
    let cookie = attack.user().await.cookie.unwrap();
    let http_1 = |framing: &str, body: &str| {
        let head = format!("POST /api/x HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\nsec-fetch-site: same-origin\r\n");
        ("http/1.1", format!("{head}{framing}\r\n\r\n{body}").into_bytes())
    };
    let length = ["", "0", "012345678"].map(|body| http_1("content-length: 10", body));
    let chunks = ["", "5\r\n", "5\r\n0123", "5\r\n01234\r\n", "5\r\n01234\r\n0\r\n"]
        .map(|body| http_1("transfer-encoding: chunked", body));
    let block = headers(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "a"),
        (":path", "/api/x"),
        ("cookie", &cookie),
        ("sec-fetch-site", "same-origin"),
    ]);
    let frames = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(SETTINGS, 0, 0, &[]),
        &frame(HEADERS, END_HEADERS, 1, &block),
        &frame(DATA, 0, 1, b"01234"),
    ];
    let http_2 = ("h2", frames.concat());
    let mut sent = 0;
    for (protocol, bytes) in length.iter().chain(&chunks).chain([&http_2]) {
        for says_goodbye in [false, true] {
            let mut stream = connect(&attack.client(&[protocol]), attack.address()).await;
            stream.write_all(bytes).await.unwrap();
            stream.flush().await.unwrap();
            let head = timeout(LONG, uploads.recv()).await.unwrap().unwrap();
            if says_goodbye {
                let _ = stream.shutdown().await;
            }
            drop(stream);
            let body = timeout(LONG, uploads.recv()).await.unwrap().unwrap();
            let is_whole =
                if head.contains("content-length: 10") { body.len() >= 10 } else { body.ends_with("0\r\n\r\n") };
            assert!(!is_whole, "{} {head}{body}", bytes.escape_ascii());
            sent += 1;
        }
    }
    println!("TLS: {sent} uploads cut off, none of which looked complete");
}

/// Starts an upstream that reads, and returns its origin and what it reads: the head and the rest of each connection.
async fn upstream() -> (String, UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let (sender, uploads) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let _ = sender.send(String::from_utf8(head).unwrap());
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                let _ = sender.send(String::from_utf8(rest).unwrap());
            });
        }
    });
    (origin, uploads)
}

/// Handshakes of one address fill the places of that address alone.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_user_is_served_beside_a_flood_of_handshakes() {
    /// The calls of the user.
    const CALLS: usize = 10;
    let Some(attack) = Attack::start("hostile-flood", |settings| {
        settings.max_connections = Some(60);
        settings.max_connections_per_address = Some(30);
        settings.client_timeout = LONG;
        settings.idle_connection_timeout = LONG;
    })
    .await
    else {
        return;
    };
    let attack = Arc::new(attack);
    let flood = std::env::var("HOSTILE_REQUESTS").map_or(1_000, |_| 10_000);
    let hello = attack.hello("app.example.com");
    let cookie = attack.user().await.cookie.unwrap();
    let (begun, served) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let lanes = (0..50_usize).map(|lane| {
        let (attack, begun, served, hello) = (attack.clone(), begun.clone(), served.clone(), hello.clone());
        tokio::spawn(async move {
            let mut stalled = Vec::new();
            while begun.fetch_add(1, Ordering::Relaxed) < flood || served.load(Ordering::Relaxed) < CALLS {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
                let mut stream = socket.connect(attack.address()).await.unwrap();
                let part = match lane % 4 {
                    0 => &hello[..0],
                    1 => &hello[..hello.len() / 2],
                    2 => &hello[..hello.len() - 1],
                    _ => &hello[..],
                };
                let _ = stream.write_all(part).await;
                stalled.push(stream);
                if stalled.len() > 4 {
                    stalled.remove(0);
                }
                tokio::task::yield_now().await;
            }
            stalled
        })
    });
    let lanes: Vec<_> = lanes.collect();
    // New connections, each with a handshake of its own.
    while begun.load(Ordering::Relaxed) < flood || served.load(Ordering::Relaxed) < CALLS {
        let mut browser = Browser::over_tls(attack.address(), attack.certificates.client_config(VERSIONS));
        browser.cookie = Some(cookie.clone());
        assert_eq!(timeout(LONG, browser.get("/api/me")).await.expect("the user is not served").status, 200);
        served.fetch_add(1, Ordering::Relaxed);
    }
    let (begun, served) = (begun.load(Ordering::Relaxed), served.load(Ordering::Relaxed));
    println!("TLS: {begun} handshakes begun and never finished, {served} calls of a user beside them");
    drop(join_all(lanes).await);
}
