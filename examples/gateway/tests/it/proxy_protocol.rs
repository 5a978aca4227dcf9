//! The PROXY protocol: the client of a connection, as a balancer names it.

use std::time::Duration;

use gateway::{Settings, TrustedProxies};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::test_gateway::{Browser, TestGateway};

const LONG: Duration = Duration::from_secs(20);

const VERSION_1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 443\r\n";

// From 2001:db8::7, with one further field.
const VERSION_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x29\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07\
    \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x9c\x40\x01\xbb\x04\0\x02hi";

// LOCAL, as of a health check.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

async fn behind_a_balancer(trusted: &str, change: impl FnOnce(&mut Settings)) -> TestGateway {
    let change = |settings: &mut Settings| {
        settings.trusted_proxies = TrustedProxies::read(&[trusted.to_owned()]).unwrap();
        settings.proxy_protocol = true;
        change(settings);
    };
    TestGateway::start_with(change).await
}

/// Sends bytes, and returns all bytes until the gateway closes the connection.
async fn send(gateway: &TestGateway, pieces: &[&[u8]]) -> String {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    for piece in pieces {
        // The gateway may have closed the connection already.
        let _ = stream.write_all(piece).await;
        sleep(Duration::from_millis(1)).await;
    }
    let mut response = Vec::new();
    let _ = timeout(LONG, stream.read_to_end(&mut response)).await.unwrap();
    String::from_utf8(response).unwrap()
}

fn login(user: &str) -> Vec<u8> {
    let body = format!(r#"{{"username":"{user}","password":"correct horse"}}"#);
    let head = "POST /login HTTP/1.1\r\nhost: a\r\nx-requested-with: x\r\nconnection: close\r\n";
    format!("{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Signs a user in through a balancer and returns a request that shows what the upstream sees.
async fn request(gateway: &TestGateway, header: &[u8]) -> Vec<u8> {
    let response = send(gateway, &[header, &login("ada")]).await;
    let cookie = response.lines().find_map(|line| line.strip_prefix("set-cookie: ")?.split(';').next()).unwrap();
    format!("GET /api/headers HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn the_upstream_sees_the_client_that_a_balancer_names() {
    let gateway = behind_a_balancer("127.0.0.1", |_| {}).await;
    let request = request(&gateway, VERSION_1).await;
    for (header, seen) in [
        (VERSION_1, "192.0.2.7"),
        (VERSION_2, "2001:db8::7"),
        (LOCAL, "127.0.0.1"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (b"PROXY TCP6 ::ffff:192.0.2.8 ::1 1 2\r\n", "192.0.2.8"),
    ] {
        let seen = format!(r#""x-forwarded-for":["{seen}"]"#);
        let response = send(&gateway, &[header, &request]).await;
        assert!(response.contains(&seen), "{seen}: {response}");
        // In one segment, and byte by byte.
        let whole = [header, &request].concat();
        assert!(send(&gateway, &[&whole]).await.contains(&seen));
        let pieces: Vec<_> = header.chunks(1).chain([&request[..]]).collect();
        assert!(send(&gateway, &pieces).await.contains(&seen));
    }
}

/// The balancer passes on connections of a proxy that appends its client to `X-Forwarded-For`.
#[tokio::test]
async fn a_proxy_behind_a_balancer_names_its_client() {
    let gateway = behind_a_balancer("127.0.0.1", |settings| {
        let networks = ["127.0.0.1", "192.0.2.7"].map(str::to_owned);
        settings.trusted_proxies = TrustedProxies::read(&networks).unwrap();
    });
    let gateway = gateway.await;
    let request = String::from_utf8(request(&gateway, VERSION_1).await).unwrap();
    let request = request.replace("\r\n\r\n", "\r\nx-forwarded-for: 203.0.113.9\r\n\r\n");
    let response = send(&gateway, &[VERSION_1, request.as_bytes()]).await;
    assert!(response.contains(r#""x-forwarded-for":["203.0.113.9, 192.0.2.7"]"#), "{response}");
    // Another client is no proxy.
    let response = send(&gateway, &[VERSION_2, request.as_bytes()]).await;
    assert!(response.contains(r#""x-forwarded-for":["2001:db8::7"]"#), "{response}");
}

#[tokio::test]
async fn a_connection_without_a_valid_header_is_closed() {
    let gateway = behind_a_balancer("127.0.0.1", |_| {}).await;
    for header in [
        &b""[..],
        b"PROXY TCP4 192.0.2.7 192.0.2.1 40000\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 443\n",
        b"PROXY TCP9 192.0.2.7 192.0.2.1 40000 443\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x0c123456789012",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b12345678901",
        &[b"PROXY UNKNOWN ", &[b'x'; 200][..], b"\r\n"].concat(),
    ] {
        let response =
            send(&gateway, &[header, b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"]).await;
        assert_eq!(response, "", "{header:?}");
    }
}

#[tokio::test]
async fn a_peer_that_is_not_trusted_is_refused() {
    let gateway = behind_a_balancer("10.0.0.0/8", |_| {}).await;
    let request = b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    for header in [&b""[..], VERSION_1, VERSION_2, LOCAL] {
        assert_eq!(send(&gateway, &[header, request]).await, "");
    }
}

#[tokio::test]
async fn a_header_that_does_not_arrive_is_not_waited_for() {
    let gateway = behind_a_balancer("127.0.0.1", |settings| settings.client_timeout = Duration::from_millis(300)).await;
    for part in [&b""[..], b"PROXY TCP4 192", &VERSION_2[..20], &VERSION_2[..VERSION_2.len() - 1]] {
        let begun = Instant::now();
        assert_eq!(send(&gateway, &[part]).await, "");
        assert!(begun.elapsed() >= Duration::from_millis(300));
    }
}

#[tokio::test]
async fn the_connections_of_a_client_behind_a_balancer_are_limited() {
    let gateway = behind_a_balancer("127.0.0.1", |settings| settings.max_connections_per_address = Some(2)).await;
    let head = "POST /login HTTP/1.1\r\nhost: a\r\nx-requested-with: x\r\n";
    let head = format!("{head}content-type: application/json\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n");
    let busy = async |header: &[u8]| {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(&[header, head.as_bytes()].concat()).await.unwrap();
        let mut asked = [0; 25];
        let read = timeout(LONG, stream.read_exact(&mut asked)).await.unwrap();
        read.ok().filter(|_| asked.starts_with(b"HTTP/1.1 100")).map(|_| stream)
    };
    let _first = [busy(VERSION_1).await.unwrap(), busy(VERSION_1).await.unwrap()];
    assert!(busy(VERSION_1).await.is_none());
    let _others = [busy(VERSION_2).await.unwrap(), busy(VERSION_2).await.unwrap()];
    assert!(busy(VERSION_2).await.is_none());
    // The balancer itself has no limit.
    let _checks = [busy(LOCAL).await.unwrap(), busy(LOCAL).await.unwrap(), busy(LOCAL).await.unwrap()];
}

// HAProxy is at 127.0.0.1, the client at 127.0.0.2.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_upstream_sees_the_client_of_haproxy() {
    use crate::client_address::send_from;
    use crate::haproxy::HaProxy;

    let gateway = behind_a_balancer("127.0.0.1", |_| {}).await;
    for option in ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options unique-id,crc32c"] {
        let sections = |address| {
            format!(
                "listen gateway
                    bind {address}
                    server gateway {} {option} check inter 200ms",
                gateway.address
            )
        };
        let Some(proxy) = HaProxy::start(sections) else { return };
        let mut browser = Browser::at(proxy.address);
        assert_eq!(browser.login("ada", "correct horse").await.status, 204, "{}", proxy.log());
        let request = format!(
            "GET /api/headers HTTP/1.1\r\nhost: a\r\ncookie: {}\r\nx-forwarded-for: 192.0.2.7\r\n\
             connection: close\r\n\r\n",
            browser.cookie.unwrap()
        );
        let response = send_from([127, 0, 0, 2], proxy.address, &request).await;
        assert!(response.contains(r#""x-forwarded-for":["127.0.0.2"]"#), "{option}: {response}\n{}", proxy.log());
    }
}
