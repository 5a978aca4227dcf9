//! Frames of HTTP/2 that break the protocol: the gateway closes the stream or the connection, and serves others.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::http2::{END_HEADERS, END_STREAM, HEADERS, connect, frame, headers, read_frame};
use crate::test_gateway::TestGateway;

#[tokio::test]
async fn malformed_frames_end_their_stream_or_connection() {
    let gateway = TestGateway::start_with(|settings| {
        settings.client_timeout = Duration::from_millis(300);
        settings.idle_connection_timeout = Duration::from_millis(300);
    });
    let gateway = gateway.await;
    let browser = gateway.browser("ada").await;
    let cookie = browser.cookie.clone().unwrap();
    let fields = |more: &[(&str, &str)]| {
        let base = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/api/me")];
        headers(&[&base, more, &[("cookie", &*cookie)]].concat())
    };
    let mut attacks: Vec<Vec<u8>> = Vec::new();
    // Every type, with flags, streams and lengths that don't fit.
    for kind in 0..=16 {
        for flags in [0, 1, 4, 5, 8, 0x20, 0xff] {
            for stream in [0, 1, 2, 0x7fff_ffff, 0x8000_0001] {
                for length in [0, 1, 4, 5, 8, 9] {
                    attacks.push(frame(kind, flags, stream, &vec![0xff; length]));
                }
            }
        }
    }
    // Requests that HTTP/1.1 can't express.
    for more in [
        &[("connection", "close")][..],
        &[("transfer-encoding", "chunked")],
        &[("te", "gzip")],
        &[("X-Upper", "1")],
        &[("x y", "1")],
        &[("x", "a\r\nauthorization: Bearer smuggled")],
        &[("x", "a\0b")],
        &[(":path", "/api/two")],
        &[(":unknown", "1")],
        &[(":authority", "b")],
        &[("content-length", "5")],
        &[("content-length", "-5")],
        &[("host", "evil.example")],
        &[("", "1")],
    ] {
        attacks.push(frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(more)));
        attacks.push([frame(HEADERS, END_HEADERS, 1, &fields(more)), frame(0, END_STREAM, 1, b"body")].concat());
    }
    for block in [&b"\xff\xff\xff\xff\xff"[..], b"\x80", b"\x3f\xff\xff\xff\xff\x7f", b"\0\x7f\xff\xff\xff\x7f", b""] {
        attacks.push(frame(HEADERS, END_HEADERS | END_STREAM, 1, block));
    }
    let before = gateway.kit.counters().api;
    for attacks in attacks.chunks(400) {
        let ends = attacks.iter().map(async |attack| {
            let mut stream = connect(gateway.address).await;
            let _ = stream.write_all(attack).await;
            let end = async { while read_frame(&mut stream).await.is_ok() {} };
            timeout(Duration::from_secs(20), end).await.unwrap_or_else(|_| panic!("{}", attack.escape_ascii()));
        });
        futures_util::future::join_all(ends).await;
    }
    let passed = gateway.kit.counters().api - before;
    println!("HTTP/2: {} malformed connections, {passed} requests at the upstream", attacks.len());
    assert_eq!(browser.get("/api/me").await.status, 200);
    assert_eq!(gateway.kit.counters().unauthorized(), 0);
}
