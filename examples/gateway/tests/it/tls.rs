//! `--tls-cert`: the gateway's own TLS.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gateway::{AuthServer, Gateway, PublicOrigin, Reload, Settings};
use http::{Method, Version};
use http_body_util::BodyExt;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower_auth_refresh::Origin;
use tower_auth_refresh_testkit::TestServer;

use crate::certificates::{Certificates, VERSIONS, connect};
use crate::test_gateway::{Browser, upstream_with_raw_response};

/// More than any of these tests takes, on a loaded machine too.
const LONG: Duration = Duration::from_secs(20);

/// A gateway that serves TLS, with the certificate `server.pem`.
struct TlsGateway {
    certificates: Certificates,
    kit: TestServer,
    address: SocketAddr,
    reload: Reload,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl TlsGateway {
    /// Starts a gateway, or returns `None` without openssl.
    async fn start(name: &str, change: impl FnOnce(&mut Settings)) -> Option<Self> {
        let certificates = Certificates::make(name)?;
        let kit = TestServer::start().await.unwrap();
        let mut settings = Settings::new(&kit.origin(), AuthServer::Json(kit.origin())).unwrap();
        settings.tls = Some(certificates.identity("server"));
        settings.public = PublicOrigin::Named(Origin::parse("https://app.example.com").unwrap());
        change(&mut settings);
        let listening = Gateway::new(settings).listen().await.unwrap();
        let (address, reload) = (listening.address().unwrap(), listening.reload());
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(listening.serve(async { drop(stopped.await) }));
        Some(Self { certificates, kit, address, reload, stop, served })
    }

    fn browser(&self) -> Browser {
        Browser::over_tls(self.address, self.certificates.client_config(VERSIONS))
    }

    fn client(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        let mut config = self.certificates.client_config(VERSIONS);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// Sends a request over HTTP/1 and reads to the end of the connection.
    async fn send_raw(&self, request: &str) -> std::io::Result<String> {
        let mut stream = connect(&self.client(&[]), self.address).await;
        stream.write_all(request.as_bytes()).await?;
        let mut response = String::new();
        timeout(LONG, stream.read_to_string(&mut response)).await.unwrap().map(|_| response)
    }

    /// Checks if new handshakes present this certificate.
    async fn presents(&self, file: &str) -> bool {
        let stream = connect(&self.client(&[]), self.address).await;
        stream.get_ref().1.peer_certificates().unwrap()[0] == self.certificates.certificate(file)
    }

    /// Replaces the certificate and the key by another pair.
    fn replace(&self, certificate: &str, key: &str) {
        for (from, to) in [(certificate, "server.pem"), (key, "server.key")] {
            // Renamed, as renewals do.
            let copy = self.certificates.path("copy");
            fs::copy(self.certificates.path(from), &copy).unwrap();
            fs::rename(copy, self.certificates.path(to)).unwrap();
        }
    }
}

/// Waits until the gateway has closed a connection, and returns what it has sent.
async fn read_to_close(stream: &mut TcpStream) -> Vec<u8> {
    let mut sent = Vec::new();
    let _ = timeout(LONG, stream.read_to_end(&mut sent)).await.expect("the connection is open");
    sent
}

#[tokio::test]
async fn a_user_signs_in_and_calls_the_api_over_http_2() {
    let Some(gateway) = TlsGateway::start("tls-user", |_| {}).await else { return };
    let mut browser = gateway.browser();
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    assert!(browser.cookie.as_ref().unwrap().starts_with("__Host-session="));
    gateway.kit.expire_access_tokens();
    let response = browser.send(browser.request(Method::GET, "/api/me").body("".into()).unwrap()).await;
    assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
    response.into_body().collect().await.unwrap();
    assert_eq!(gateway.kit.violations(), []);
}

#[tokio::test]
async fn the_protocol_is_the_negotiated_one() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let Some(gateway) = TlsGateway::start("tls-alpn", |_| {}).await else { return };
    for version in VERSIONS {
        for (offered, chosen) in [
            (&["h2", "http/1.1"][..], Some("h2")),
            (&["http/1.1", "h2"], Some("h2")),
            (&["http/1.1"], Some("http/1.1")),
            (&[], None),
        ] {
            let mut config = gateway.certificates.client_config(&[version]);
            config.alpn_protocols = offered.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
            let mut stream = connect(&Arc::new(config), gateway.address).await;
            assert_eq!(stream.get_ref().1.alpn_protocol(), chosen.map(str::as_bytes), "{offered:?}");
            // A client that then speaks the other protocol is refused.
            let request: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: app.example.com\r\nconnection: close\r\n\r\n";
            for (is_http2, sent) in [(false, request), (true, PREFACE)] {
                stream.write_all(sent).await.unwrap();
                let mut answer = vec![0; 12];
                let read = timeout(LONG, stream.read_exact(&mut answer)).await.unwrap();
                let is_served = if is_http2 {
                    // The settings of HTTP/2.
                    read.is_ok() && answer[3] == 4
                } else {
                    answer.starts_with(b"HTTP/1.1 200")
                };
                assert_eq!(is_served, is_http2 == (chosen == Some("h2")), "{offered:?} {answer:?}");
                stream = connect(&gateway.client(offered), gateway.address).await;
            }
        }
    }
    let refused = gateway.client(&["http/0.9"]);
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let name = gateway.address.ip().into();
    assert!(tokio_rustls::TlsConnector::from(refused).connect(name, stream).await.is_err());
}

#[tokio::test]
async fn sessions_are_resumed_until_the_certificate_is_reloaded() {
    let Some(gateway) = TlsGateway::start("tls-resumption", |_| {}).await else { return };
    for version in VERSIONS {
        let config = Arc::new(gateway.certificates.client_config(&[version]));
        let handshake = async || {
            let mut stream = connect(&config, gateway.address).await;
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
            // The tickets of TLS 1.3 come with the response.
            stream.read_to_end(&mut Vec::new()).await.unwrap();
            stream.get_ref().1.handshake_kind()
        };
        assert_eq!(handshake().await, Some(HandshakeKind::Full));
        assert_eq!(handshake().await, Some(HandshakeKind::Resumed));
        gateway.reload.run();
        assert_eq!(handshake().await, Some(HandshakeKind::Full));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_replaced_under_load_and_a_broken_one_is_not_used() {
    let Some(gateway) = TlsGateway::start("tls-reload", |_| {}).await else { return };
    let gateway = Arc::new(gateway);
    gateway.certificates.issue("next", "IP:127.0.0.1", false);
    gateway.certificates.issue("last", "IP:127.0.0.1", false);
    assert!(gateway.presents("server.pem").await);
    let first = gateway.certificates.certificate("server.pem");
    let mut kept = gateway.browser();
    assert_eq!(kept.login("ada", "correct horse").await.status, 204);

    let stopped = Arc::new(AtomicBool::new(false));
    let load = [true, false].map(|keeps_connection| {
        let (gateway, stopped, browser) = (gateway.clone(), stopped.clone(), kept.clone());
        tokio::spawn(async move {
            let mut requests = 0;
            while !stopped.load(Ordering::Relaxed) {
                let mut fresh = gateway.browser();
                fresh.cookie.clone_from(&browser.cookie);
                let browser = if keeps_connection { &browser } else { &fresh };
                assert_eq!(browser.get("/api/me").await.status, 200);
                requests += 1;
            }
            requests
        })
    });
    gateway.replace("next.pem", "next.key");
    gateway.reload.run();
    assert!(gateway.presents("next.pem").await);
    assert!(!gateway.presents("ca.pem").await && gateway.certificates.certificate("server.pem") != first);

    // A key of another certificate, as in the middle of a renewal.
    gateway.replace("last.pem", "next.key");
    gateway.reload.run();
    assert!(gateway.presents("next.pem").await);
    fs::write(gateway.certificates.path("server.pem"), "-----BEGIN CERTIFICATE-----\nbm8=\n").unwrap();
    gateway.reload.run();
    assert!(gateway.presents("next.pem").await);
    fs::remove_file(gateway.certificates.path("server.pem")).unwrap();
    gateway.reload.run();
    assert!(gateway.presents("next.pem").await);
    gateway.replace("last.pem", "last.key");
    gateway.reload.run();
    assert!(gateway.presents("last.pem").await);

    stopped.store(true, Ordering::Relaxed);
    for load in load {
        assert!(load.await.unwrap() > 0);
    }
    assert_eq!(gateway.kit.violations(), []);
}

#[tokio::test]
async fn a_handshake_that_stalls_is_closed() {
    let time = Duration::from_millis(300);
    let Some(gateway) = TlsGateway::start("tls-stall", |settings| settings.client_timeout = time).await else {
        return;
    };
    // Nothing, a part of a record's header, and a record that never ends.
    for sent in [&b""[..], b"\x16\x03", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        read_to_close(&mut stream).await;
    }
    // A whole handshake, and nothing after it.
    let mut stream = connect(&gateway.client(&["h2"]), gateway.address).await;
    let _ = timeout(LONG, stream.read_to_end(&mut Vec::new())).await.expect("the connection is open");
}

#[tokio::test]
async fn a_handshake_that_stalls_makes_room_for_other_connections() {
    let Some(gateway) = TlsGateway::start("tls-room", |settings| settings.max_connections = Some(2)).await else {
        return;
    };
    let mut stalled = Vec::new();
    for sent in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        stalled.push(stream);
    }
    assert_eq!(timeout(LONG, gateway.browser().get("/healthz")).await.unwrap().status, 200);
    read_to_close(&mut stalled[0]).await;
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_bounded() {
    let Some(gateway) = TlsGateway::start("tls-size", |_| {}).await else { return };
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    // A ClientHello of 16 MiB, in records of 16 KiB.
    let mut sent = 0;
    let mut record = [&b"\x16\x03\x01\x40\x00"[..], b"\x01\xff\xff\xff", &[0; 0x4000 - 4]].concat();
    while stream.write_all(&record).await.is_ok() {
        sent += record.len();
        assert!(sent < 1024 * 1024 * 16, "the gateway reads on");
        record[5..9].fill(0);
    }
}

#[tokio::test]
async fn plain_http_on_the_port_of_tls_is_closed() {
    let Some(gateway) = TlsGateway::start("tls-plain", |_| {}).await else { return };
    for request in ["GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "x"] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        if request.len() < 5 {
            // Too short to tell: the client hangs up.
            stream.shutdown().await.unwrap();
        }
        let answer = read_to_close(&mut stream).await;
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
    assert_eq!(gateway.browser().get("/healthz").await.status, 200);
}

/// A response over HTTP/1.0 ends with its connection: only `close_notify` tells a whole one.
#[tokio::test]
async fn a_cut_off_response_lacks_the_end_of_tls() {
    for (response, is_whole) in [
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart", false),
    ] {
        let upstream = upstream_with_raw_response(response).await;
        let change = |settings: &mut Settings| {
            let auth = settings.auth.clone();
            settings.upstream = Settings::new(&upstream, auth).unwrap().upstream;
        };
        let Some(gateway) = TlsGateway::start("tls-cut-off", change).await else { return };
        let mut browser = gateway.browser();
        assert_eq!(browser.login("ada", "correct horse").await.status, 204);
        let cookie = browser.cookie.unwrap();
        for version in ["1.0", "1.1"] {
            let request = format!(
                "GET /api/x HTTP/{version}\r\nhost: app.example.com\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n"
            );
            let answer = gateway.send_raw(&request).await;
            assert_eq!(answer.is_ok(), is_whole, "{version} {response:?} {answer:?}");
        }
    }
}

#[tokio::test]
async fn an_early_answer_to_an_upload_arrives() {
    let Some(gateway) = TlsGateway::start("tls-upload", |_| {}).await else { return };
    let head = "POST /api/x HTTP/1.1\r\nhost: app.example.com\r\nsec-fetch-site: same-origin\r\n\
                content-length: 5000000\r\n\r\n";
    for _ in 0..5 {
        let answer = gateway.send_raw(&[head, &"x".repeat(5_000_000)].concat()).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("sign-in-first"), "{answer}");
    }
}

/// Browsers open connections in advance.
#[tokio::test]
async fn connections_without_a_request_do_not_hold_up_a_shutdown() {
    let Some(gateway) = TlsGateway::start("tls-shutdown", |_| {}).await else { return };
    let mut unused = Vec::new();
    for protocols in [&["h2"][..], &["http/1.1"]] {
        unused.push(connect(&gateway.client(protocols), gateway.address).await);
    }
    let mut used = connect(&gateway.client(&[]), gateway.address).await;
    used.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut stalled = TcpStream::connect(gateway.address).await.unwrap();
    stalled.write_all(b"\x16\x03").await.unwrap();
    let mut answer = vec![0; 15];
    used.read_exact(&mut answer).await.unwrap();
    gateway.stop.send(()).unwrap();
    // The connections would stay for 30 s.
    timeout(LONG, gateway.served).await.unwrap().unwrap();
    // A connection that has been used is closed with a word.
    used.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(b"ok\n"), "{answer:?}");
}

/// Sends a request as early data, if the client's ticket permits it, and again after the handshake if it was refused.
/// Returns the client's end and the response.
fn send_early(config: &Arc<ClientConfig>, address: SocketAddr, request: &str) -> (ClientConnection, bool, String) {
    let mut tls = ClientConnection::new(config.clone(), address.ip().into()).unwrap();
    let is_offered = tls.early_data().is_some_and(|mut early| {
        early.write_all(request.as_bytes()).unwrap();
        true
    });
    let mut tcp = std::net::TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(LONG)).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp).unwrap();
    }
    let mut response = String::new();
    let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
    if !stream.conn.is_early_data_accepted() {
        stream.write_all(request.as_bytes()).unwrap();
    }
    stream.read_to_string(&mut response).unwrap();
    (tls, is_offered, response)
}

/// Early data can be replayed by any attacker on the network (RFC 8446 §8).
#[tokio::test(flavor = "multi_thread")]
async fn early_data_is_not_accepted() {
    let Some(gateway) = TlsGateway::start("tls-early", |_| {}).await else { return };
    let mut browser = gateway.browser();
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    let request = format!(
        "POST /api/echo HTTP/1.1\r\nhost: app.example.com\r\nsec-fetch-site: same-origin\r\ncookie: {}\r\n\
         content-length: 4\r\nconnection: close\r\n\r\nonce",
        browser.cookie.clone().unwrap()
    );
    let mut config = gateway.certificates.client_config(&[&rustls::version::TLS13]);
    config.enable_early_data = true;
    let config = Arc::new(config);
    let send = async |address: SocketAddr| {
        let (config, request) = (config.clone(), request.clone());
        tokio::task::spawn_blocking(move || send_early(&config, address, &request)).await.unwrap()
    };
    let before = gateway.kit.counters().api;
    // The tickets of the gateway don't permit it.
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let (tls, is_offered, response) = send(gateway.address).await;
        assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("once"), "{response}");
        assert_eq!((tls.handshake_kind(), is_offered, tls.is_early_data_accepted()), (Some(kind), false, false));
    }
    // Another server of the same name has made a ticket that does.
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other_address = other.local_addr().unwrap();
    gateway.certificates.issue("other", "IP:127.0.0.1", false);
    let mut other_config = gateway.certificates.server_config("other", false);
    other_config.max_early_data_size = 16 * 1024;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(other_config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = other.accept().await {
            let mut stream = acceptor.accept(stream).await.unwrap();
            stream.read_u8().await.unwrap();
            stream.write_all(b"answer").await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    assert_eq!(send(other_address).await.2, "answer");
    let (tls, is_offered, response) = send(gateway.address).await;
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("once"), "{response}");
    assert_eq!(
        (tls.handshake_kind(), is_offered, tls.is_early_data_accepted()),
        (Some(HandshakeKind::Full), true, false)
    );
    assert_eq!(gateway.kit.counters().api - before, 3, "each request reaches the upstream once");
}

#[tokio::test]
async fn renegotiation_is_refused() {
    let short = Duration::from_millis(500);
    let Some(gateway) =
        TlsGateway::start("tls-renegotiation", |settings| settings.idle_connection_timeout = short).await
    else {
        return;
    };
    let mut client = Command::new("openssl")
        .args(["s_client", "-tls1_2", "-connect", &gateway.address.to_string()])
        .args(["-CAfile".as_ref(), gateway.certificates.path("ca.pem").as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = client.stdin.take().unwrap();
    let mut output = BufReader::new(client.stdout.take().unwrap()).lines();
    input.write_all(b"GET /healthz HTTP/1.1\r\nhost: app.example.com\r\n\r\n").await.unwrap();
    while timeout(LONG, output.next_line()).await.unwrap().unwrap().unwrap() != "ok" {}
    // A command of s_client.
    input.write_all(b"R\n").await.unwrap();
    let output = timeout(LONG, client.wait_with_output()).await.unwrap().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("RENEGOTIATING"), "{errors}");
    assert!(errors.contains("no renegotiation"), "{errors}");
}
