//! Bytes that are printed: no client and no server behind the gateway forges a line of the log or a sample of the
//! metrics.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use axum::body::Body;
use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tower_auth_refresh_testkit::{Fault, Route, TestServer};

use crate::http2::{self, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, frame, headers, read_frame};
use crate::program::{Program, command};
use crate::smuggling::Attack;
use crate::test_gateway::Browser;

/// A line as the log would have it, without the byte that ends the line before.
const FORGED: &str = "2026-01-01T00:00:00.000000Z  INFO gateway::request: request completed user.id=\"forged\"";

/// A part of a target that would be a line of its own.
const SHORT: &str = "2026-01-01T00:00:00.000000Z{\"forged\":1}";

/// Returns the bytes that end a line, a string or a word in some format, or command a terminal.
fn bytes() -> Vec<u8> {
    if std::env::var_os("HOSTILE_REQUESTS").is_some() {
        return (0..=255).collect();
    }
    (0..=0x2f).chain([b'=', b'[', b'\\', b'{', b'}', 0x7f, 0x80, 0x85, 0x9b, 0xa0, 0xad, 0xff]).collect()
}

/// Returns requests with a byte at each place that could be printed.
fn requests(byte: u8) -> Vec<Vec<u8>> {
    let forged = FORGED.as_bytes();
    let with = |before: &str, middle: &[u8], after: &str| {
        [before.as_bytes(), &[byte], middle, after.as_bytes(), b"\r\nconnection: close\r\n\r\n"].concat()
    };
    let field = |name: &str| with(&format!("GET /healthz HTTP/1.1\r\nhost: a\r\n{name}: a"), forged, "");
    let mut requests = vec![
        with("G", b"T", " /healthz HTTP/1.1\r\nhost: a"),
        with("GET /a", SHORT.as_bytes(), " HTTP/1.1\r\nhost: a"),
        with("GET /api/a", SHORT.as_bytes(), " HTTP/1.1\r\nhost: a"),
        with("GET /healthz HTTP/1.", forged, "\r\nhost: a"),
        with("GET /healthz HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 192.0.2.", b"7", ""),
        with(
            "GET /healthz HTTP/1.1\r\nhost: a\r\ntraceparent: 00-0af7651916cd43dd8448eb211c8031",
            b"9c",
            "-b7ad6b7169203331-01",
        ),
        with("POST /login HTTP/1.1\r\nhost: a\r\norigin: http://", forged, "\r\ncontent-length: 0"),
    ];
    requests.extend(["host", "x-request-id", "x-forwarded-for", "tracestate", "user-agent", "cookie"].map(field));
    requests
}

/// Sends a byte at each place of requests over HTTP/2. Returns their number.
async fn send_over_http_2(program: &Program) -> usize {
    let places = [":path", ":method", "x-request-id"];
    let requests = bytes().into_iter().flat_map(|byte| places.map(|place| (byte, place)));
    let requests = requests.map(async |(byte, place)| {
        let value = format!("/a{}{SHORT}", char::from(byte));
        let valid = [(":scheme", "http"), (":authority", "a"), (":path", "/healthz"), (":method", "GET")];
        let mut fields: Vec<_> = valid.into_iter().filter(|field| field.0 != place).collect();
        fields.push((place, &value));
        let mut stream = http2::connect(program.address).await;
        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &headers(&fields))).await.unwrap();
        let end = async {
            // A malformed request ends its stream or its connection.
            while let Ok(frame) = read_frame(&mut stream).await {
                if frame.stream == 1 && (frame.kind == RST_STREAM || frame.flags & END_STREAM > 0) {
                    break;
                }
            }
        };
        timeout(Duration::from_secs(20), end).await.expect("an end");
    });
    join_all(requests).await.len()
}

/// Signs users of hostile names in, twice: the first session is signed out, which is logged.
async fn sign_in(program: &Program) -> usize {
    let names = bytes().into_iter().map(char::from).chain(['\u{2028}', '\u{202e}', '\u{feff}', '\u{1f600}']);
    let names: Vec<_> = names.map(|character| format!("a{character}{FORGED}")).collect();
    // Fewer at once than the logins that may be in flight.
    for names in names.chunks(20) {
        let logins = names.iter().map(async |name| {
            let mut browser = Browser::at(program.address);
            for _ in 0..2 {
                browser.cookie = None;
                assert_eq!(browser.login(name, "correct horse").await.status, 204);
                assert_eq!(browser.get("/api/me").await.status, 200);
            }
        });
        join_all(logins).await;
    }
    names.len() * 4
}

/// Lets the authorization server and the API fail with hostile texts. Returns the number of requests.
async fn fail(program: &Program, kit: &TestServer) -> usize {
    let mut sent = 0;
    let mut browser = Browser::at(program.address);
    for end in ["\n", "\r", "\u{1b}[2J\n", "\"}\n", "\u{85}", "\u{2028}"] {
        let text = format!("a{end}{FORGED}");
        for status in [400, 401, 403, 422, 429, 500, 503] {
            let problem = json!({
                "error": text, "error_description": text, "error_uri": text, "message": text, "code": text,
                "title": text, "detail": text, "type": text,
            });
            let fault = || {
                let fault = Fault::status(status).body(problem.to_string()).header("content-type", "application/json");
                fault.header("www-authenticate", "Bearer error=\"a\u{9b}forged\"")
            };
            kit.inject(Route::Login, fault());
            assert!(browser.login("ada", "correct horse").await.status.as_u16() >= 400);
            kit.clear_faults();
            browser.cookie = None;
            assert_eq!(browser.login("ada", "correct horse").await.status, 204);
            kit.expire_access_tokens();
            kit.inject(Route::Refresh, fault());
            assert!(browser.get("/api/me").await.status.as_u16() >= 400);
            kit.clear_faults();
            kit.inject(Route::Logout, fault());
            assert_eq!(browser.post("/logout", "").await.status, 204);
            kit.clear_faults();
            sent += 4;
        }
    }
    sent
}

/// Reads the fields of a line of the text format. Panics if there is something else than fields.
fn fields(mut rest: &str) -> Vec<&str> {
    let mut names = Vec::new();
    while let Some((name, value)) = rest.strip_prefix(' ').and_then(|field| field.split_once('=')) {
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || b"._".contains(&byte)), "{name:?}");
        names.push(name);
        rest = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap().1,
            None => &value[value.find(' ').unwrap_or(value.len())..],
        };
    }
    assert_eq!(rest, "");
    let distinct: BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "{names:?}");
    names
}

/// Returns the number of requests in the log, each line of which has to be one of the gateway's own.
fn completed(log: &str, is_json: bool) -> usize {
    let mut requests = 0;
    for line in log.trim_end_matches('\n').split('\n') {
        assert!(
            !line.chars().any(|character| character.is_control() || "\u{2028}\u{202e}".contains(character)),
            "{line:?}"
        );
        if is_json {
            let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let keys: Vec<_> = event.as_object().unwrap().keys().map(String::as_str).collect();
            assert!(
                keys.iter().all(|key| ["timestamp", "level", "fields", "target", "span", "spans"].contains(key)),
                "{line}"
            );
            requests += usize::from(event["fields"]["message"] == "request completed");
        } else {
            let (time, rest) = line.split_at(27);
            let shape: String =
                time.chars().map(|character| if character.is_ascii_digit() { '0' } else { character }).collect();
            assert_eq!(shape, "0000-00-00T00:00:00.000000Z", "{line}");
            assert!(!time.starts_with("2026-01-01"), "{line}");
            assert!(["  INFO ", "  WARN ", " ERROR "].iter().any(|level| rest.starts_with(level)), "{line}");
            if let Some(rest) = rest.strip_prefix("  INFO gateway::request: request completed") {
                assert_eq!(fields(rest)[0], "client.address", "{line}");
                requests += 1;
            }
        }
    }
    requests
}

/// Checks each line of the metrics, and returns the number of responses that they have counted.
fn responses(page: &str) -> usize {
    assert!(page.lines().count() < 1000 && !page.contains("forged"), "{page}");
    let mut responses = 0;
    for line in page.lines().filter(|line| !line.starts_with("# ")) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        if let Some(labels) = series.strip_prefix("gateway_requests_total{route=\"") {
            let (route, code) = labels.split_once("\",code=\"").unwrap();
            assert!(
                ["api", "login", "logout", "session", "healthz", "readyz", "metrics", "other"].contains(&route),
                "{line}"
            );
            assert!(code.trim_end_matches("\"}").parse::<u16>().is_ok(), "{line}");
            responses += value.parse::<usize>().unwrap();
        }
    }
    responses
}

async fn attack_the_log_of(format: &str) {
    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    let mut command = command(&["--upstream", &origin, "--auth", &origin, "--listen=127.0.0.1:0"]);
    command.args(["--admin-listen=127.0.0.1:0", "--trusted-proxy=127.0.0.1", "--sessions-per-user=1", "--log", format]);
    let mut program = Program::start_command(command.stderr(Stdio::piped()));
    let log = program.take_log();

    let mut sent = 0;
    for bytes in bytes().chunks(16) {
        let requests: Vec<_> = bytes.iter().flat_map(|byte| requests(*byte)).collect();
        join_all(requests.iter().map(|request| Attack::send_to(program.address, request))).await;
        sent += requests.len();
    }
    sent += send_over_http_2(&program).await + sign_in(&program).await + fail(&program, &kit).await;
    let browser = Browser::at(program.address);
    let random = (0..200).map(async |number| {
        let method = Method::from_bytes(format!("FORGED{number}").as_bytes()).unwrap();
        let path = format!("/forged{}/{number}?forged", fastrand::u64(..));
        let request = browser.request(method, &path).header("host", format!("forged{number}.example"));
        browser.fetch(request.body(Body::empty()).unwrap()).await;
    });
    sent += join_all(random).await.len();

    let page = Browser::at(program.admin.unwrap()).get("/metrics").await.body;
    let counted = responses(str::from_utf8(&page).unwrap());
    program.terminate();
    assert!(program.exit(Duration::from_secs(20)).await.success());
    let log = log.join();
    let completed = completed(&log, format == "json");
    println!("log as {format}: {sent} requests, {completed} read, {} lines", log.lines().count());
    // The request for the metrics is counted after it has been answered.
    assert_eq!(completed, counted + 1);
    assert!(completed > sent / 4, "{completed} of {sent}");
}

#[tokio::test]
async fn no_line_of_the_text_log_is_forged() {
    attack_the_log_of("text").await;
}

#[tokio::test]
async fn no_line_of_the_json_log_is_forged() {
    attack_the_log_of("json").await;
}
