//! Requests whose order or pace is hostile: logins and logouts in a pipeline, and answers that are read a byte at a time
//! or never.

use std::fmt::Write;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http1::{read_response, split_head};
use crate::http2::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, headers, read_frame,
};
use crate::test_gateway::TestGateway;

const LONG: Duration = Duration::from_secs(20);

/// A session that the test has made, and whether it is signed in still.
struct Known {
    user: String,
    cookie: String,
    is_signed_in: bool,
}

/// The requests of a pipeline are answered in their order: a logout is in force for the next of them.
#[tokio::test]
async fn logins_and_logouts_in_a_pipeline_are_in_force_at_once() {
    let pipelines = std::env::var("HOSTILE_REQUESTS").map_or(40, |_| 1_000);
    let gateway = TestGateway::start().await;
    let (mut sent, mut refused) = (0, 0);
    for pipeline in 0..pipelines {
        let mut sessions = Vec::new();
        for user in ["ada", "eve", "ada"] {
            let cookie = gateway.browser(user).await.cookie.unwrap();
            sessions.push(Known { user: user.to_owned(), cookie, is_signed_in: true });
        }
        let (mut requests, mut expected) = (String::new(), Vec::new());
        for number in 0..16 {
            let session = fastrand::choice(&mut sessions).unwrap();
            let (path, kind, body, status) = match fastrand::u32(..10) {
                0 => ("/logout".to_owned(), "text/plain", String::new(), 204),
                1 => {
                    // In the body, a request that some server might read.
                    let password = "x\\r\\n\\r\\nPOST /logout HTTP/1.1\\r\\n\\r\\n";
                    let body = format!(r#"{{"username":"{}","password":"{password}"}}"#, session.user);
                    ("/login".to_owned(), "application/json", body, 204)
                }
                _ => {
                    let path = format!("/api/headers?{pipeline}.{number}");
                    (
                        path,
                        "text/plain",
                        "x".repeat(fastrand::usize(..50)),
                        if session.is_signed_in { 200 } else { 401 },
                    )
                }
            };
            // A login replaces the session whose cookie it has.
            session.is_signed_in &= status != 204;
            let (host, cookie, length) = (gateway.address, &session.cookie, body.len());
            write!(
                requests,
                "POST {path} HTTP/1.1\r\nhost: {host}\r\nsec-fetch-site: same-origin\r\ncookie: {cookie}\r\n\
                 content-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}"
            )
            .unwrap();
            expected.push((status, session.user.clone(), format!("{pipeline}.{number}")));
        }
        let mut stream = BufReader::new(TcpStream::connect(gateway.address).await.unwrap());
        stream.write_all(requests.as_bytes()).await.unwrap();
        for (status, user, query) in expected {
            let answer = timeout(LONG, read_response(&mut stream)).await.expect("an answer").unwrap();
            let (seen, body) = split_head(&answer);
            assert_eq!(seen, status, "{user} {query}: {}", answer.escape_ascii());
            if status == 200 {
                let seen: serde_json::Value = serde_json::from_slice(body).unwrap();
                assert_eq!((&seen["user"], &seen["query"]), (&user.into(), &query.into()));
            }
            sent += 1;
            refused += u32::from(status == 401);
        }
    }
    println!(
        "pipelines: {sent} requests with logins and logouts among them, {refused} of a session that had just ended"
    );
    assert!(refused > 0);
    assert_eq!(gateway.kit.violations(), []);
}

/// Opens streams with a window of so many bytes, one for each path.
async fn open(gateway: &TestGateway, paths: &[&str], cookie: &str, window: u32) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[&[0, 4], &window.to_be_bytes()[..]].concat()));
    for (number, path) in paths.iter().enumerate() {
        let block = headers(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", path),
            ("cookie", cookie),
        ]);
        let id = u32::try_from(number * 2 + 1).unwrap();
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, id, &block));
    }
    stream.write_all(&bytes).await.unwrap();
    stream
}

/// Every kind of answer, of the upstream and of the gateway.
const PATHS: [&str; 6] = ["/api/me", "/api/headers?slow", "/session", "/healthz", "/nowhere", "/api/../x"];

#[tokio::test]
async fn answers_are_whole_in_windows_of_a_byte() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    let cookie = browser.cookie.clone().unwrap();
    let mut frames = 0;
    for path in PATHS {
        let mut stream = open(&gateway, &[path], &cookie, 1).await;
        let mut body = Vec::new();
        loop {
            let read = timeout(LONG, read_frame(&mut stream)).await.expect("a frame").unwrap();
            assert!(![GOAWAY, RST_STREAM].contains(&read.kind), "{path}: {read:?}");
            if read.kind == DATA {
                assert!(read.payload.len() <= 1, "{path}: {read:?}");
                body.extend(&read.payload);
                frames += 1;
            }
            if read.kind < 2 && read.flags & END_STREAM > 0 {
                break;
            }
            if read.kind == DATA {
                stream.write_all(&frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())).await.unwrap();
            }
        }
        let is_whole = body == b"ok\n" || serde_json::from_slice::<serde_json::Value>(&body).is_ok();
        assert!(is_whole, "{path}: {}", body.escape_ascii());
    }
    println!("HTTP/2: {} answers in {frames} frames of a byte, all of them whole", PATHS.len());
}

#[tokio::test]
async fn answers_that_are_never_read_hold_no_connection() {
    let gateway = TestGateway::start_with(|settings| {
        settings.client_timeout = Duration::from_millis(300);
        settings.idle_connection_timeout = Duration::from_millis(300);
    });
    let gateway = gateway.await;
    let browser = gateway.browser("ada").await;
    let cookie = browser.cookie.clone().unwrap();
    let mut ends = Vec::new();
    for _ in 0..50 {
        let mut stream = open(&gateway, &PATHS, &cookie, 0).await;
        ends.push(async move {
            let mut bytes = 0;
            let end = async {
                while let Ok(frame) = read_frame(&mut stream).await {
                    bytes += if frame.kind == DATA { frame.payload.len() } else { 0 };
                }
            };
            timeout(LONG, end).await.expect("the connection is held");
            assert_eq!(bytes, 0);
        });
    }
    let held = ends.len();
    futures_util::future::join_all(ends).await;
    println!("HTTP/2: {} answers that were never read, on {held} connections, all of which ended", held * PATHS.len());
    assert_eq!(browser.get("/api/me").await.status, 200);
    assert_eq!(gateway.kit.violations(), []);
}
