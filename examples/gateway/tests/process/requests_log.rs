//! The lines of requests in the log, and their ids.

use std::convert::Infallible;
use std::process::Stdio;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::any;
use futures_util::{StreamExt, stream};
use http::{Method, Response};
use serde_json::{Value, json};
use tower_auth_refresh_testkit::{Fault, Route, TestServer};

use super::certificates::{Certificates, terminate_tls};
use super::program::{Log, Program, command};
use super::test_gateway::{Browser, serve};

/// Starts a program whose stderr is read in a thread: a full pipe would block the program.
fn start(upstream: &str, auth: &str, more: &[&str]) -> (Program, Log) {
    let mut command = command(&["--upstream", upstream, "--auth", auth, "--listen=127.0.0.1:0"]);
    let mut program = Program::start_command(command.args(more).stderr(Stdio::piped()));
    let log = program.take_log();
    (program, log)
}

async fn stop(mut program: Program, log: Log) -> String {
    program.terminate();
    assert!(program.exit(Duration::from_secs(10)).await.success());
    log.join()
}

/// Returns the events of a JSON log with this message.
fn events<'a>(log: &'a str, message: &'a str) -> impl Iterator<Item = Value> + 'a {
    let events = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}")));
    events.map(|event| event["fields"].clone()).filter(move |fields| fields["message"] == message)
}

fn is_hex(value: &Value, length: usize) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    value.as_str().is_some_and(|text| text.len() == length && text.bytes().all(is_digit))
}

#[tokio::test]
async fn each_request_has_one_line_with_all_fields() {
    let kit = TestServer::start().await.unwrap();
    let (program, log) = start(&kit.origin(), &kit.origin(), &["--log=json"]);
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    kit.expire_access_tokens();
    let upload = browser.request(Method::POST, "/api/upload?secret=query").body(Body::from("12345")).unwrap();
    let response = browser.fetch(upload).await;
    assert_eq!(response.status, 200);
    assert_eq!(browser.get("/api/me").await.status, 200);
    assert_eq!(browser.get("/nowhere").await.status, 404);
    let log = stop(program, log).await;

    let lines: Vec<_> = events(&log, "request completed").collect();
    let [login, upload, me, nowhere] = &lines[..] else { panic!("{log}") };
    for line in &lines {
        assert_eq!((&line["client.address"], &line["network.protocol.version"]), (&"127.0.0.1".into(), &"1.1".into()));
        assert!(is_hex(&line["request.id"], 32) && is_hex(&line["trace_id"], 32) && is_hex(&line["span_id"], 16));
        assert!(line["duration"].as_f64().is_some_and(|seconds| seconds < 60.), "{line}");
        assert!(line["http.response.body.size"].is_u64() && line["http.request.body.size"].is_u64(), "{line}");
    }
    assert_eq!(login["http.response.status_code"], 204);
    assert_eq!((&login["route"], &login["user.id"]), (&"login".into(), &"ada".into()));
    assert!(is_hex(&login["session.hash"], 16));
    assert_eq!(upload["request.id"], response.headers["x-request-id"].to_str().unwrap());
    assert_eq!(upload["http.request.method"], "POST");
    assert_eq!((&upload["url.path"], &upload["route"]), (&"/api/upload".into(), &"api".into()));
    assert_eq!((&upload["session.hash"], &upload["user.id"]), (&login["session.hash"], &"ada".into()));
    assert_eq!((&upload["http.request.body.size"], &upload["refresh.outcome"]), (&5.into(), &"replayed".into()));
    assert_eq!(upload["http.response.body.size"], response.body.len());
    assert_eq!(upload["upstream.address"], kit.address().to_string());
    assert!(upload["upstream.duration"].as_f64() <= upload["duration"].as_f64());
    assert!(me.get("refresh.outcome").is_none() && me.get("error.type").is_none());
    assert_eq!((&nowhere["http.response.status_code"], &nowhere["error.type"]), (&404.into(), &"not-found".into()));
}

#[tokio::test]
async fn text_lines_have_the_same_fields_and_no_line_is_forged() {
    let kit = TestServer::start().await.unwrap();
    let (program, log) = start(&kit.origin(), &kit.origin(), &[]);
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("eve\" user.id=\"ada", "correct horse").await.status, 204);
    assert_eq!(browser.get("/api/me").await.status, 200);
    let forged = "/healthz/%0a2026-01-01T00:00:00Z%20INFO/\"x=\"y";
    assert_eq!(browser.get(forged).await.status, 404);
    let log = stop(program, log).await;
    let me = log.lines().find(|line| line.contains("url.path=\"/api/me\"")).unwrap();
    let (time, rest) = me.split_at(27);
    assert!(time.starts_with("20") && time.ends_with('Z'), "{me}");
    assert!(
        rest.starts_with("  INFO gateway::request: request completed client.address=127.0.0.1 request.id="),
        "{me}"
    );
    assert!(me.contains(" user.id=\"eve\\u0022 user.id=\\u0022ada\" "), "{me}");
    assert!(me.contains(" http.response.status_code=200 http.request.body.size=0 http.response.body.size="), "{me}");
    assert_eq!(log.matches("request completed").count(), 3, "{log}");
    assert!(log.contains(" url.path=\"/healthz/%0a2026-01-01T00:00:00Z%20INFO/\\u0022x=\\u0022y\" "), "{log}");
}

#[tokio::test]
async fn an_upstream_is_sent_the_ids_that_the_line_has() {
    let upstream = serve(Router::new().fallback(any(async |request: Request| {
        let headers = request.headers();
        let get = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        axum::Json(json!({ "id": get("x-request-id"), "parent": get("traceparent"), "state": get("tracestate") }))
    })))
    .await;
    let kit = TestServer::start().await.unwrap();
    let (program, log) = start(&upstream, &kit.origin(), &["--log=json"]);
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    let caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut seen = Vec::new();
    for parent in [caller, "00-malformed"] {
        let request = browser.request(Method::GET, "/api/x").header("traceparent", parent);
        let request = request.header("tracestate", "vendor=1").header("x-request-id", "chosen-by-the-client");
        let response = browser.fetch(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.headers["x-request-id"], response.json()["id"].as_str().unwrap());
        seen.push(response.json());
    }
    let log = stop(program, log).await;
    let lines: Vec<_> = events(&log, "request completed").filter(|line| line["url.path"] == "/api/x").collect();
    for (line, seen) in lines.iter().zip(&seen) {
        assert_eq!(line["request.id"], seen["id"]);
        let text = |name: &str| line[name].as_str().unwrap();
        let sent = seen["parent"].as_str().unwrap();
        assert!(sent.starts_with(&format!("00-{}-{}-", text("trace_id"), text("span_id"))), "{sent} {line}");
        assert_ne!(seen["id"], "chosen-by-the-client", "the client is no trusted proxy");
    }
    assert_eq!(lines[0]["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(lines[0]["parent_span_id"], "b7ad6b7169203331");
    assert_eq!((&seen[0]["state"], &seen[1]["state"]), (&"vendor=1".into(), &Value::Null));
    assert!(lines[1].get("parent_span_id").is_none());
}

#[tokio::test]
async fn a_trusted_proxy_names_the_client_and_the_request() {
    let kit = TestServer::start().await.unwrap();
    let (program, log) = start(&kit.origin(), &kit.origin(), &["--log=json", "--trusted-proxy=127.0.0.1"]);
    let browser = Browser::at(program.address);
    let request = browser.request(Method::GET, "/healthz").header("x-forwarded-for", "203.0.113.1, 192.0.2.7");
    let response = browser.fetch(request.header("x-request-id", "of-the-proxy").body(Body::empty()).unwrap()).await;
    assert_eq!(response.headers["x-request-id"], "of-the-proxy");
    let log = stop(program, log).await;
    let line = events(&log, "request completed").next().unwrap();
    assert_eq!((&line["client.address"], &line["request.id"]), (&"192.0.2.7".into(), &"of-the-proxy".into()));
}

#[tokio::test]
async fn failed_logins_are_told_apart_and_name_no_user() {
    let kit = TestServer::start().await.unwrap();
    let (program, log) =
        start(&kit.origin(), &kit.origin(), &["--log=json", "--max-sessions=1", "--admin-listen=127.0.0.1:0"]);
    let mut browser = Browser::at(program.address);
    let typed = "typed-into-the-wrong-field";
    assert_eq!(browser.login(typed, "wrong").await.status, 401);
    let malformed = browser.request(Method::POST, "/login").header("content-type", "application/json");
    assert_eq!(browser.fetch(malformed.body(Body::from(typed)).unwrap()).await.status, 400);
    let foreign =
        http::Request::post(format!("http://{}/login", program.address)).header("sec-fetch-site", "cross-site");
    assert_eq!(browser.fetch(foreign.body(Body::from(typed)).unwrap()).await.status, 403);
    kit.inject(Route::Login, Fault::status(500));
    assert_eq!(browser.login(typed, "correct horse").await.status, 503);
    kit.clear_faults();
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    assert_eq!(Browser::at(program.address).login("bob", "correct horse").await.status, 503);
    let page = Browser::at(program.admin.unwrap()).get("/metrics").await.body;
    let page = str::from_utf8(&page).unwrap().to_owned();
    let log = stop(program, log).await;
    let failed: Vec<_> = events(&log, "login failed").collect();
    let reasons: Vec<_> = failed.iter().map(|fields| fields["reason"].as_str().unwrap()).collect();
    let expected = ["wrong_credentials", "malformed", "cross_origin", "auth_server_unavailable", "too_many_sessions"];
    assert_eq!(reasons, expected);
    for reason in expected.iter().chain(&["succeeded"]) {
        let sample = format!("gateway_logins_total{{outcome=\"{reason}\"}} 1");
        assert!(page.lines().any(|line| line == sample), "{sample} is not in:\n{page}");
    }
    let completed: Vec<_> = events(&log, "request completed").collect();
    for fields in &failed {
        assert_eq!(fields["client.address"], "127.0.0.1");
        assert!(completed.iter().any(|line| line["request.id"] == fields["request.id"]), "{fields}");
    }
    assert!(!log.contains(typed), "{log}");
}

/// As in the logs of nginx, such a request has the status 499.
#[tokio::test]
async fn a_request_whose_client_disconnects_has_a_line_too() {
    let kit = TestServer::start().await.unwrap();
    let (program, log) = start(&kit.origin(), &kit.origin(), &["--log=json"]);
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    kit.inject(Route::Api, Fault::hang());
    let call = browser.spawn_get("/api/me");
    super::wait_for_counters(&kit, |counters| counters.api > 0).await;
    super::disconnect(call).await;
    let log = stop(program, log).await;
    let line = events(&log, "request completed").find(|line| line["url.path"] == "/api/me").unwrap();
    assert_eq!((&line["http.response.status_code"], &line["error.type"]), (&499.into(), &"client-disconnected".into()));
}

/// The end of the response comes in a frame of its own, and HTTP/1 doesn't wait for it.
#[tokio::test]
async fn a_response_of_http_2_is_complete_by_its_length() {
    let Some(certificates) = Certificates::make("log-http-2") else { return };
    let mut config = certificates.server_config("server", false);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let api = async |request: Request| {
        let length = if request.uri().path() == "/api/empty" { 0 } else { 2 };
        let data = stream::iter((length > 0).then_some(Ok::<_, Infallible>("ok")));
        // Without an end.
        let response = Response::builder().header("content-length", length);
        response.body(Body::from_stream(data.chain(stream::pending()))).unwrap()
    };
    let port = terminate_tls(config, &serve(Router::new().fallback(any(api))).await).await;
    let kit = TestServer::start().await.unwrap();
    let ca = certificates.path("ca.pem").into_os_string().into_string().unwrap();
    let upstream = format!("https://127.0.0.1:{port}");
    let (program, log) = start(&upstream, &kit.origin(), &["--log=json", "--upstream-ca", &ca]);
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    assert_eq!(browser.get("/api/x").await.body, "ok");
    assert_eq!(browser.get("/api/empty").await.body, "");
    let log = stop(program, log).await;
    let lines: Vec<_> = events(&log, "request completed").filter(|line| line["route"] == "api").collect();
    assert_eq!(lines.len(), 2);
    for line in lines {
        assert!(line.get("error.type").is_none(), "{line}");
    }
}

#[tokio::test]
async fn a_log_that_is_not_read_stops_no_request_and_says_how_many_lines_were_dropped() {
    const REQUESTS: usize = 1500;
    let origin = "http://127.0.0.1:9";
    let mut command = command(&["--upstream", origin, "--auth", origin, "--listen=127.0.0.1:0"]);
    let command = command.args(["--log=json", "--admin-listen=127.0.0.1:0"]);
    let mut program = Program::start_command(command.stderr(Stdio::piped()));
    let browser = Browser::at(program.address);
    let path = format!("/{}", "x".repeat(1000));
    for _ in 0..REQUESTS {
        assert_eq!(browser.get(&path).await.status, 404);
    }
    let metrics = Browser::at(program.admin.unwrap()).get("/metrics").await.body;
    let metrics = String::from_utf8(metrics.into()).unwrap();
    let dropped = metrics.lines().find_map(|line| line.strip_prefix("gateway_log_lines_dropped_total ")).unwrap();
    let dropped: usize = dropped.parse().unwrap();
    assert!(dropped > 0);
    let log = program.take_log();
    let log = stop(program, log).await;
    let is_own = |line: &Value| line["url.path"] == path.as_str();
    assert_eq!(events(&log, "request completed").filter(is_own).count(), REQUESTS - dropped);
    let said = events(&log, "lines of the log were dropped: it was not read fast enough");
    // That of the metrics may be dropped too.
    let said: u64 = said.map(|line| line["lines"].as_u64().unwrap()).sum();
    assert!((dropped as u64..=dropped as u64 + 1).contains(&said), "{said}");
}
