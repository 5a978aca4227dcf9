//! Frames of HTTP/2 that break the protocol: the gateway closes the stream or the connection, and serves others.

use std::time::Duration;

use gateway::raise_descriptor_limit;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::http2::{END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, connect, frame, headers, read_frame};
use crate::test_gateway::TestGateway;

const CONTINUATION: u8 = 9;

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
    // Many wait for the time-outs of the gateway.
    raise_descriptor_limit();
    for attacks in attacks.chunks(1_300) {
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

/// Blocks of fields that never end, or are small on the wire and large in memory (RFC 7541, CVE-2016-6581,
/// CVE-2024-27316).
#[tokio::test]
async fn fields_without_end_and_header_bombs_reach_no_upstream() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    let cookie = browser.cookie.clone().unwrap();
    let base = headers(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/api/me"),
        ("cookie", &cookie),
    ]);
    // An entry of the dynamic table of nearly 4 KiB, and one byte for each further mention.
    let entry = [&b"\x40\x01x\x7f\xa1\x1e"[..], &[b'y'; 4000]].concat();
    let bomb = [&base[..], &entry, &[0xbe; 12_000]].concat();
    let crumbs = [&base[..], &headers(&[("cookie", "a=b")]).repeat(1_500)].concat();
    let open = frame(HEADERS, 0, 1, &base);
    let long = headers(&[("x", &"y".repeat(100))]).repeat(100);
    let floods: [(&str, Vec<u8>, Vec<u8>); 6] = [
        ("CONTINUATION", open.clone(), frame(CONTINUATION, 0, 1, &long)),
        ("short CONTINUATION", open.clone(), frame(CONTINUATION, 0, 1, &headers(&[("x", "")]))),
        ("empty CONTINUATION", open, frame(CONTINUATION, 0, 1, &[])),
        ("a bomb", vec![], frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)),
        ("crumbs of cookies", vec![], frame(HEADERS, END_HEADERS | END_STREAM, 1, &crumbs)),
        (
            "trailers without end",
            [frame(HEADERS, END_HEADERS, 1, &base), frame(HEADERS, END_STREAM, 1, &long)].concat(),
            frame(CONTINUATION, 0, 1, &long),
        ),
    ];
    let before = gateway.kit.counters().api;
    for (name, first, flood) in &floods {
        let is_endless = flood[3] == CONTINUATION;
        for _ in 0..3 {
            let (mut reading, mut writing) = connect(gateway.address).await.into_split();
            let sending = async move {
                writing.write_all(first).await?;
                for number in 0..if is_endless { 100_000 } else { 20 } {
                    let mut frame = flood.clone();
                    if !is_endless {
                        frame[5..9].copy_from_slice(&u32::to_be_bytes(number * 2 + 1));
                    }
                    writing.write_all(&frame).await?;
                }
                // A finite flood is answered, or its connection is closed.
                if is_endless { Ok(()) } else { std::future::pending::<std::io::Result<()>>().await }
            };
            let reading = async move {
                let mut ended = 0;
                while let Ok(frame) = read_frame(&mut reading).await {
                    ended +=
                        u32::from(frame.kind == RST_STREAM || (frame.kind == HEADERS && frame.flags & END_STREAM > 0));
                    if frame.kind == GOAWAY || (!is_endless && ended == 20) {
                        return;
                    }
                }
            };
            let is_ended = async {
                tokio::select! { sent = sending => sent.is_err(), () = reading => true }
            };
            let is_ended = timeout(Duration::from_secs(20), is_ended).await;
            assert!(is_ended.unwrap_or_else(|_| panic!("{name}: no end")), "{name}: all of it was taken");
        }
    }
    println!("HTTP/2: {} floods of fields, none of which reached the upstream", floods.len() * 3);
    assert_eq!(gateway.kit.counters().api, before);
    assert_eq!(browser.get("/api/me").await.status, 200);
}
