//! The program itself: its settings, its signals, its log and its metrics.

#![expect(clippy::unwrap_used, reason = "what fails in a test, fails the test")]

#[path = "support/program.rs"]
mod program;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "made for gateways in this process")]
mod world;

use std::convert::Infallible;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use futures_util::{StreamExt, stream};
use http::Method;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tower_auth_refresh_testkit::{Fault, Route, TestServer, UnreadBody};

use self::program::{Program, command};
use self::world::Browser;

/// A program before the kit, and a user who is signed in.
async fn signed_in(kit: &TestServer, more: &[&str]) -> (Program, Browser) {
    let origin = kit.origin();
    let program = Program::start(&[&["--upstream", &origin, "--auth", &origin], more].concat());
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    (program, browser)
}

#[tokio::test]
async fn sigterm_in_mid_refresh_the_request_is_answered_first() {
    let kit = TestServer::start().await.unwrap();
    let (mut program, browser) = signed_in(&kit, &[]).await;
    kit.expire_access_tokens();
    let gate = kit.hold_refreshes();
    let call = tokio::spawn(async move { browser.get("/api/me").await });
    gate.arrived(1).await;
    program.terminate();
    // It accepts no more …
    let deadline = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(program.address).is_ok() {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(5)).await;
    }
    // … and waits for what is under way.
    sleep(Duration::from_millis(200)).await;
    assert!(program.is_running());
    gate.open();
    let answer = call.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.json()["generation"].as_u64()), (200, Some(2)));
    assert!(program.exit(Duration::from_secs(5)).await.success());
    assert_eq!(kit.violations(), []);
}

#[tokio::test]
async fn sigterm_in_mid_refresh_the_refresh_is_finished_though_its_client_has_gone() {
    let kit = TestServer::start().await.unwrap();
    let (mut program, browser) = signed_in(&kit, &[]).await;
    kit.expire_access_tokens();
    let gate = kit.hold_refreshes();
    let call = tokio::spawn(async move { browser.get("/api/me").await });
    gate.arrived(1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    sleep(Duration::from_millis(50)).await;
    program.terminate();
    sleep(Duration::from_millis(300)).await;
    assert!(program.is_running(), "it waits for the rotated token");
    gate.open();
    assert!(program.exit(Duration::from_secs(5)).await.success());
    assert_eq!(kit.counters().unanswered, 0);
}

#[tokio::test]
async fn sigterm_is_obeyed_at_once_when_nothing_is_under_way() {
    let kit = TestServer::start().await.unwrap();
    // Its connection is kept alive, and a second one never said anything.
    let (mut program, browser) = signed_in(&kit, &[]).await;
    let silent = TcpStream::connect(program.address).unwrap();
    program.terminate();
    assert!(program.exit(Duration::from_secs(2)).await.success());
    drop((browser, silent));
}

#[tokio::test]
async fn sigterm_does_not_wait_for_ever() {
    let kit = TestServer::start().await.unwrap();
    let (mut program, browser) = signed_in(&kit, &["--shutdown-timeout", "300ms"]).await;
    kit.inject(Route::Api, Fault::hang());
    let call = tokio::spawn(async move { browser.get("/api/me").await });
    while kit.counters().api == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    program.terminate();
    assert!(program.exit(Duration::from_secs(3)).await.success());
    call.abort();

    // Nor for a refresh that nobody waits for any more.
    let (mut program, browser) = signed_in(&kit, &["--shutdown-timeout", "300ms"]).await;
    kit.clear_faults();
    kit.expire_access_tokens();
    let gate = kit.hold_refreshes();
    let call = tokio::spawn(async move { browser.get("/api/me").await });
    gate.arrived(1).await;
    call.abort();
    program.terminate();
    assert!(program.exit(Duration::from_secs(3)).await.success());
}

/// Nor for longer than he who sends a second signal wants to wait.
#[tokio::test]
async fn a_second_signal_ends_the_program_at_once() {
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let kit = TestServer::start().await.unwrap();
        let (mut program, browser) = signed_in(&kit, &[]).await;
        kit.inject(Route::Api, Fault::hang());
        let call = tokio::spawn(async move { browser.get("/api/me").await });
        while kit.counters().api == 0 {
            sleep(Duration::from_millis(5)).await;
        }
        program.signal("-TERM");
        let deadline = Instant::now() + Duration::from_secs(5);
        while TcpStream::connect(program.address).is_ok() {
            assert!(Instant::now() < deadline);
            sleep(Duration::from_millis(5)).await;
        }
        assert!(program.is_running());
        program.signal(signal);
        assert_eq!(program.exit(Duration::from_secs(3)).await.code(), Some(code));
        call.abort();
    }
}

/// Whoever started it may have closed what it says where it listens to.
#[tokio::test]
async fn nobody_need_hear_where_it_listens() {
    let kit = TestServer::start().await.unwrap();
    let (ours, its) = UnixStream::pair().unwrap();
    drop(ours);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let arguments = ["--upstream", &kit.origin(), "--auth", &kit.origin(), "--listen", &free.to_string()];
    let mut command = command(&arguments);
    let mut child = command.stdout(Stdio::from(OwnedFd::from(its))).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let listens = loop {
        if TcpStream::connect(free).is_ok() && child.try_wait().unwrap().is_none() {
            break Browser::at(free).get("/healthz").await.body == "ok\n";
        }
        if Instant::now() > deadline || child.try_wait().unwrap().is_some() {
            break false;
        }
        sleep(Duration::from_millis(5)).await;
    };
    let _ = child.kill();
    child.wait().unwrap();
    assert!(listens);
}

/// Nor for an answer that never ends: it is cut off, and its client can tell.
#[tokio::test]
async fn sigterm_cuts_an_endless_answer_off_in_the_end() {
    let kit = TestServer::start().await.unwrap();
    let endless = async || {
        Body::from_stream(stream::repeat(()).then(async |()| {
            sleep(Duration::from_millis(20)).await;
            Ok::<_, Infallible>("data: x\n\n")
        }))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(any(endless))).await });
    let timeout = ["--upstream", &upstream, "--auth", &kit.origin(), "--shutdown-timeout=500ms"];
    let mut program = Program::start(&timeout);
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    let request = browser.request(Method::GET, "/api/events").body(Body::empty()).unwrap();
    let mut events = browser.send(request).await.into_body();
    events.frame().await.unwrap().unwrap();
    program.terminate();
    let begun = Instant::now();
    while events.frame().await.expect("it has no end").is_ok() {}
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    assert!(program.exit(Duration::from_secs(3)).await.success());
}

#[tokio::test]
async fn sigterm_in_mid_login_the_login_that_nobody_waits_for_is_undone_first() {
    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    let mut program = Program::start(&["--upstream", &origin, "--auth", &origin]);
    kit.inject(Route::Login, Fault::delay(Duration::from_millis(500)).after_processing());
    let mut browser = Browser::at(program.address);
    let login = tokio::spawn(async move { browser.login("ada", "correct horse").await });
    while kit.counters().logins == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    login.abort();
    assert!(login.await.unwrap_err().is_cancelled());
    program.terminate();
    assert!(program.exit(Duration::from_secs(5)).await.success());
    assert_eq!(kit.counters().logouts, 1);
}

/// The user has his answer by then, and nobody but the gateway knows that the tokens are still to be revoked.
#[tokio::test]
async fn sigterm_waits_for_a_sign_out_that_its_user_no_longer_waits_for() {
    let kit = TestServer::start().await.unwrap();
    let (mut program, browser) = signed_in(&kit, &[]).await;
    kit.inject(Route::Logout, Fault::delay(Duration::from_secs(2)));
    let begun = Instant::now();
    assert_eq!(browser.post("/logout", "").await.status, 204);
    program.terminate();
    assert!(program.exit(Duration::from_secs(5)).await.success());
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!((kit.counters().logouts, kit.counters().unanswered), (1, 0));
}

#[test]
fn a_wrong_setting_is_told_in_one_line() {
    let refused = |arguments: &[&str], variables: &[(&str, &str)], name: &str| {
        let output = program::refuse(command(arguments).envs(variables.iter().copied()));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with("gateway: ") && said.contains(name), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        assert!(output.stdout.is_empty());
        said
    };
    let api = "--upstream=https://api.example.com";
    let auth = "--auth=https://auth.example.com";
    refused(&[], &[], "--upstream");
    refused(&[api], &[], "--auth");
    refused(&[api, auth, "--listen=everywhere"], &[], "--listen");
    refused(&[api, auth, "--listen=0.0.0.0:0"], &[], "--public-origin");
    refused(&[api, auth, "--idle=soon"], &[], "--idle");
    refused(&[api, auth, "--max-sessions=0"], &[], "--max-sessions");
    refused(&[api, auth, "--refreshes-in-flight=0"], &[], "--refreshes-in-flight");
    refused(&[api, auth, "--body-limit=-1"], &[], "--body-limit");
    for setting in ["--max-sessions", "--body-limit", "--refreshes-in-flight"] {
        refused(&[api, auth, setting, "-1"], &[], &format!("'{setting} <"));
    }
    for setting in ["--idle", "--refresh-early", "--refresh-timeout", "--upstream-timeout", "--client-timeout"] {
        refused(&[api, auth, setting, "-5s"], &[], &format!("'{setting} <"));
    }
    refused(&[api, auth, "--shutdown-timeout", "-5s"], &[], "'--shutdown-timeout <");
    refused(&[api, auth, "--log=xml"], &[], "--log");
    refused(&[api, auth, "--frobnicate"], &[], "--frobnicate");
    refused(&["--upstream=http://api.example.com", auth], &[], "--upstream");
    refused(&[api, "--auth=http://auth.example.com"], &[], "--auth");
    refused(&[api, "--auth=https://auth.example.com?tenant=1"], &[], "--auth");
    refused(&[api, "--token-endpoint=https://auth.example.com/token"], &[], "--client-id");
    refused(&[api, "--token-endpoint=https://auth.example.com/token", "--client-id="], &[], "--client-id");
    refused(&[api, "--token-endpoint=ftp://x", "--client-id=gateway"], &[], "--token-endpoint");
    refused(&["--demo", api], &[], "--demo");
    refused(&[api, auth, "--public-origin=http://app.example.com"], &[], "--public-origin");
    refused(&[api, auth, "--public-origin=app.example.com"], &[], "--public-origin");
    refused(&[api, auth], &[("RUST_LOG", "gateway=loud")], "RUST_LOG");
    refused(&[api, auth], &[("GATEWAY_UPSTREAM_TIMEOUT", "tomorrow")], "--upstream-timeout");
    refused(&[], &[("GATEWAY_DEMO", "maybe")], "--demo");
    refused(&[], &[("GATEWAY_DEMO", "0")], "--upstream");
    refused(&["--upstream=http://api.example.com", auth], &[("GATEWAY_ALLOW_PLAIN_HTTP", "false")], "--upstream");
    let (plain, endpoint) = ("http://auth.example.com", "--token-endpoint=https://auth.example.com/token");
    for (arguments, name) in [
        (&["--upstream=http://api.example.com", auth][..], "--upstream"),
        (&[api, &format!("--auth={plain}")], "--auth"),
        (&[api, &format!("--token-endpoint={plain}"), "--client-id=x"], "--token-endpoint"),
        (&[api, endpoint, "--client-id=x", &format!("--revocation-endpoint={plain}")], "--revocation-endpoint"),
        (&[api, auth, "--public-origin=http://app.example.com"], "--public-origin"),
    ] {
        let said = refused(arguments, &[], &format!("gateway: {name}: "));
        assert!(said.contains("use https, or --allow-plain-http") && !said.contains("::"), "{said}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    refused(&[api, auth, "--listen", &taken.local_addr().unwrap().to_string()], &[], "--listen");
}

#[tokio::test]
async fn settings_come_from_the_environment_too() {
    let kit = TestServer::start().await.unwrap();
    let mut command = command(&[]);
    command.env("GATEWAY_UPSTREAM", kit.origin()).env("GATEWAY_AUTH", kit.origin());
    command.env("GATEWAY_LISTEN", "127.0.0.1:0").env("GATEWAY_MAX_SESSIONS", "1");
    let program = Program::start_command(&mut command);
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    assert_eq!(browser.get("/api/me").await.status, 200);
    Browser::at(program.address).login("eve", "x").await.is_problem(503, "too-many-sessions");

    for yes in ["1", "yes", "true"] {
        let program = Program::start_command(self::command(&["--listen=127.0.0.1:0"]).env("GATEWAY_DEMO", yes));
        assert_eq!(Browser::at(program.address).get("/").await.status, 200, "{yes}");
    }
    for no in ["0", "no", "false"] {
        let program = Program::start_command(command.env("GATEWAY_DEMO", no));
        assert_eq!(Browser::at(program.address).get("/").await.status, 404, "{no}");
    }
}

#[test]
fn help_is_help() {
    let output = command(&["--help"]).output().unwrap();
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(!help.contains('`'), "{help}");
    for flag in [
        "--demo",
        "--listen",
        "--upstream",
        "--auth",
        "--token-endpoint",
        "--client-id",
        "--client-secret",
        "--max-sessions",
        "--idle",
        "--refreshes-in-flight",
        "--refresh-early",
        "--refresh-timeout",
        "--body-limit",
        "--upstream-timeout",
        "--client-timeout",
        "--shutdown-timeout",
        "--public-origin",
        "--revocation-endpoint",
        "--allow-plain-http",
        "--log",
    ] {
        let variable = format!("GATEWAY_{}", flag.trim_start_matches('-').replace('-', "_").to_uppercase());
        assert!(help.contains(flag) && help.contains(&variable), "{flag}");
    }
}

#[tokio::test]
async fn the_metrics_tell_of_one_refresh_for_many_calls() {
    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    let mut command = command(&["--upstream", &origin, "--auth", &origin, "--listen=127.0.0.1:0"]);
    // What is counted does not depend on what is written.
    let program = Program::start_command(command.env("RUST_LOG", "off"));
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    assert_eq!(browser.get("/healthz").await.body, "ok\n");
    kit.expire_access_tokens();
    kit.hold_unauthorized_until(20);
    let gate = kit.hold_refreshes();
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let browser = browser.clone();
            tokio::spawn(async move { browser.get("/api/me").await.status.as_u16() })
        })
        .collect();
    gate.arrived(1).await;
    // Time for another of them to hear that its token is refused.
    sleep(Duration::from_millis(200)).await;
    gate.open();
    for call in calls {
        assert_eq!(call.await.unwrap(), 200);
    }
    kit.expire_access_tokens();
    // A server that closes the connection on a body it hasn't read can lose its own 401.
    kit.configure(|settings| settings.unread_body = UnreadBody::Read);
    assert_eq!(browser.post("/api/upload", vec![0; 100_000]).await.status, 503);
    // For the next request, which need not wait for it.
    while browser.get("/session").await.json()["generation"] != 3 {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(browser.get("/api/me").await.status, 200);
    let (mut eve, mut bob) = (Browser::at(program.address), Browser::at(program.address));
    assert_eq!(eve.login("eve", "correct horse").await.status, 204);
    kit.inject(Route::Refresh, Fault::status(503).times(1));
    kit.expire_access_tokens_of("eve");
    eve.get("/api/me").await.is_problem(503, "refresh-failed");
    assert_eq!(bob.login("bob", "correct horse").await.status, 204);
    kit.revoke("bob");
    bob.get("/api/me").await.is_problem(401, "session-ended");
    // A refresh is counted after those who waited for it have been told, and holds the session that it ended until then:
    // that is forgotten when it is next asked for.
    let deadline = Instant::now() + Duration::from_secs(10);
    let page = loop {
        assert_ne!(bob.get("/session").await.json()["state"], "active");
        let page = Browser::at(program.address).get("/metrics").await;
        assert_eq!(page.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        let page = String::from_utf8(page.body.to_vec()).unwrap();
        let is_settled =
            ["gateway_refreshes_in_flight 0\n", "gateway_sessions 2\n"].iter().all(|line| page.contains(line));
        if is_settled || Instant::now() > deadline {
            break page;
        }
        sleep(Duration::from_millis(5)).await;
    };
    for line in [
        "gateway_requests_total{route=\"api\",code=\"200\"} 21",
        "gateway_requests_total{route=\"api\",code=\"503\"} 2",
        "gateway_requests_total{route=\"api\",code=\"401\"} 1",
        "gateway_requests_total{route=\"login\",code=\"204\"} 3",
        "gateway_refreshes_total{outcome=\"refreshed\"} 2",
        "gateway_refreshes_total{outcome=\"refresh_failed\"} 1",
        "gateway_refreshes_total{outcome=\"session_ended\"} 1",
        "gateway_refreshes_total{outcome=\"died\"} 0",
        "gateway_refreshes_in_flight 0",
        "gateway_replays_total{result=\"accepted\"} 20",
        "gateway_not_replayed_total{reason=\"too_large\"} 1",
        "gateway_not_replayed_total{reason=\"refresh_failed\"} 1",
        "gateway_not_replayed_total{reason=\"session_ended\"} 1",
        "gateway_sessions 2",
        "gateway_refresh_duration_seconds_count 4",
    ] {
        assert!(page.lines().any(|said| said == line), "{line} is not in:\n{page}");
    }
    // Those who came too late to wait found newer tokens.
    let waiters = page.lines().find_map(|line| line.strip_prefix("gateway_coalesced_waiters_total ")).unwrap();
    assert!((1..20).contains(&waiters.parse::<u32>().unwrap()), "{waiters}");
}

/// They don't come from the network, but are calls like any other.
#[tokio::test]
async fn the_metrics_tell_of_the_pages_own_calls() {
    let program = Program::start(&["--demo"]);
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    let request = browser.request(Method::POST, "/demo/calls").header("content-type", "application/json");
    let answer = browser.ask(request.body(r#"{ "number": 1, "size": 20 }"#.into()).unwrap()).await;
    assert_eq!(answer.json(), serde_json::json!(vec![200; 20]));
    let page = String::from_utf8(browser.get("/metrics").await.body.to_vec()).unwrap();
    let line = "gateway_requests_total{route=\"api\",code=\"200\"} 20";
    assert!(page.lines().any(|said| said == line), "{page}");
}

#[tokio::test]
async fn the_log_is_json_and_holds_no_secret() {
    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    let mut command = command(&["--upstream", &origin, "--auth", &origin, "--listen=127.0.0.1:0", "--log=json"]);
    let mut program = Program::start_command(command.env("RUST_LOG", "trace").stderr(Stdio::piped()));
    let mut browser = Browser::at(program.address);
    // The log is read while the program runs, or it would wait for a reader.
    let log = program.take_log();
    assert_eq!(browser.login("ada", "correct-horse-battery").await.status, 204);
    kit.expire_access_tokens();
    assert_eq!(browser.get("/api/me?secret=in-the-query").await.status, 200);
    let cookie = browser.cookie.clone().unwrap();
    // Over HTTP/2 other code reads them.
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Body>();
    for canary in ["canary-of-http-1", "canary-of-http-2"] {
        let request = browser
            .request(Method::POST, "/api/upload")
            .header("authorization", format!("Bearer {canary}"))
            .header("proxy-authorization", format!("Basic {canary}"))
            .header("cookie", format!("other={canary}"))
            .body(Body::from(canary))
            .unwrap();
        let answer =
            if canary.ends_with('2') { client.request(request).await.unwrap() } else { browser.send(request).await };
        assert_eq!(answer.status(), 200);
        assert!(answer.into_body().collect().await.is_ok());
    }
    kit.revoke("ada");
    assert_eq!(browser.get("/api/me").await.status, 401);
    let mut wrong = Browser::at(program.address);
    assert_eq!(wrong.login("ada", "wrong").await.status, 401);
    assert_eq!(wrong.login("eve", "correct-horse-battery").await.status, 204);
    assert_eq!(wrong.post("/logout", "").await.status, 204);
    program.terminate();
    assert!(program.exit(Duration::from_secs(5)).await.success());
    let log = log.join();
    assert!(log.lines().count() > 10);
    for line in log.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(event["level"].is_string() && event["timestamp"].is_string(), "{line}");
    }
    for secret in ["correct-horse-battery", cookie.split_once('=').unwrap().1, "canary-of", "at_", "rt_"] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
    let ours = log.lines().filter(|line| line.contains("\"target\":\"gateway"));
    assert!(ours.clone().any(|line| line.contains("/api/me")));
    assert!(!ours.clone().any(|line| line.contains("in-the-query")));
}
