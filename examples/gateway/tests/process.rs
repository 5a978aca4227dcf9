//! The program: settings, signals, log and metrics.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/certificates.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod certificates;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod program;
#[path = "process/reload.rs"]
mod reload;
#[path = "process/requests_log.rs"]
mod requests_log;
#[path = "support/test_gateway.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod test_gateway;

use std::convert::Infallible;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use futures_util::{StreamExt, stream};
use http::Method;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustix::process::Signal;
use tokio::time::sleep;
use tower_auth_refresh_testkit::{Fault, Route, TestServer, UnreadBody};

use self::certificates::{Certificates, VERSIONS, connect};
use self::program::{Program, command};
use self::test_gateway::{Browser, disconnect, serve, wait_for_counters};

/// Starts a program in front of the kit and signs a user in.
async fn signed_in(kit: &TestServer, more: &[&str]) -> (Program, Browser) {
    let origin = kit.origin();
    let program = Program::start(&[&["--upstream", &origin, "--auth", &origin], more].concat());
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    (program, browser)
}

#[tokio::test]
async fn sigterm_waits_for_a_request_during_its_refresh() {
    let kit = TestServer::start().await.unwrap();
    let (mut program, browser) = signed_in(&kit, &[]).await;
    kit.expire_access_tokens();
    let gate = kit.hold_refreshes();
    let call = browser.spawn_get("/api/me");
    gate.arrived(1).await;
    program.terminate();
    program.stops_accepting().await;
    sleep(Duration::from_millis(200)).await;
    assert!(program.is_running());
    gate.open();
    let response = call.await.unwrap();
    assert_eq!((response.status.as_u16(), response.json()["generation"].as_u64()), (200, Some(2)));
    assert!(program.exit(Duration::from_secs(5)).await.success());
    assert_eq!(kit.violations(), []);
}

#[tokio::test]
async fn sigterm_waits_for_a_refresh_whose_client_has_disconnected() {
    let kit = TestServer::start().await.unwrap();
    let (mut program, browser) = signed_in(&kit, &[]).await;
    kit.expire_access_tokens();
    let gate = kit.hold_refreshes();
    let call = browser.spawn_get("/api/me");
    gate.arrived(1).await;
    disconnect(call).await;
    sleep(Duration::from_millis(50)).await;
    program.terminate();
    sleep(Duration::from_millis(300)).await;
    assert!(program.is_running(), "the program waits for the refresh");
    gate.open();
    assert!(program.exit(Duration::from_secs(5)).await.success());
    assert_eq!(kit.counters().unanswered, 0);
}

#[tokio::test]
async fn sigterm_stops_an_idle_program_at_once() {
    let kit = TestServer::start().await.unwrap();
    // One connection is kept alive; a second one has sent nothing.
    let (mut program, browser) = signed_in(&kit, &[]).await;
    let silent = TcpStream::connect(program.address).unwrap();
    program.terminate();
    assert!(program.exit(Duration::from_secs(2)).await.success());
    drop((browser, silent));
}

#[tokio::test]
async fn sigterm_waits_no_longer_than_the_shutdown_timeout() {
    let kit = TestServer::start().await.unwrap();
    let (mut program, browser) = signed_in(&kit, &["--shutdown-timeout", "300ms"]).await;
    kit.inject(Route::Api, Fault::hang());
    let call = browser.spawn_get("/api/me");
    wait_for_counters(&kit, |counters| counters.api > 0).await;
    program.terminate();
    assert!(program.exit(Duration::from_secs(3)).await.success());
    call.abort();

    // The limit holds for a refresh without a waiter too.
    let (mut program, browser) = signed_in(&kit, &["--shutdown-timeout", "300ms"]).await;
    kit.clear_faults();
    kit.expire_access_tokens();
    let gate = kit.hold_refreshes();
    let call = browser.spawn_get("/api/me");
    gate.arrived(1).await;
    call.abort();
    program.terminate();
    assert!(program.exit(Duration::from_secs(3)).await.success());
}

#[tokio::test]
async fn a_second_signal_ends_the_program_at_once() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let kit = TestServer::start().await.unwrap();
        let (mut program, browser) = signed_in(&kit, &[]).await;
        kit.inject(Route::Api, Fault::hang());
        let call = browser.spawn_get("/api/me");
        wait_for_counters(&kit, |counters| counters.api > 0).await;
        program.signal(Signal::TERM);
        program.stops_accepting().await;
        assert!(program.is_running());
        program.signal(signal);
        assert_eq!(program.exit(Duration::from_secs(3)).await.code(), Some(code));
        call.abort();
    }
}

/// The first answer of the store may take as long as its time-outs allow.
#[tokio::test]
async fn a_signal_ends_a_start_that_waits_for_its_store() {
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let store = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", store.local_addr().unwrap());
        let mut command = command(&["--upstream=http://127.0.0.1:9", "--auth=http://127.0.0.1:9", "--store", &url]);
        let mut child = command.spawn().unwrap();
        // The program has connected, and gets no answer.
        let (_connection, _) = tokio::task::spawn_blocking(move || store.accept()).await.unwrap().unwrap();
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let status = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(code));
    }
}

/// Tools that rotate logs send it to all servers.
#[tokio::test]
async fn sighup_does_not_stop_the_program() {
    let kit = TestServer::start().await.unwrap();
    let (mut program, browser) = signed_in(&kit, &[]).await;
    for _ in 0..3 {
        program.signal(Signal::HUP);
        sleep(Duration::from_millis(50)).await;
    }
    assert!(program.is_running());
    assert_eq!(browser.get("/api/me").await.status, 200);
    program.terminate();
    assert!(program.exit(Duration::from_secs(5)).await.success());
}

#[tokio::test]
async fn sighup_reloads_the_certificate_and_keeps_the_old_one_if_it_is_broken() {
    let Some(certificates) = Certificates::make("sighup") else { return };
    certificates.issue("next", "IP:127.0.0.1", false);
    let kit = TestServer::start().await.unwrap();
    let path = |file: &str| certificates.path(file).into_os_string().into_string().unwrap();
    let (origin, tls) = (kit.origin(), ["--public-origin", "https://app.example.com"]);
    let mut command = command(&["--upstream", &origin, "--auth", &origin, "--listen", "127.0.0.1:0"]);
    command.args(tls).args(["--tls-cert", &path("server.pem"), "--tls-key", &path("server.key")]);
    let log = std::fs::File::create(path("log")).unwrap();
    let mut program = Program::start_command(command.env("RUST_LOG", "gateway=debug").stderr(log));
    let logs = async |expected: &str| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(path("log")).unwrap().contains(expected) {
            assert!(Instant::now() < deadline, "{expected:?} is not logged");
            sleep(Duration::from_millis(5)).await;
        }
    };
    let mut browser = Browser::over_tls(program.address, certificates.client_config(VERSIONS));
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);

    for file in ["pem", "key"] {
        std::fs::copy(path(&format!("next.{file}")), path(&format!("server.{file}"))).unwrap();
    }
    let client = Arc::new(certificates.client_config(VERSIONS));
    let next = certificates.certificate("next.pem");
    let presented =
        async || connect(&client, program.address).await.get_ref().1.peer_certificates().unwrap()[0].clone();
    assert!(presented().await != next);
    program.signal(Signal::HUP);
    logs("expiry=2049-12-31T23:59:59Z").await;
    assert!(presented().await == next);
    std::fs::write(path("server.pem"), "broken").unwrap();
    program.signal(Signal::HUP);
    logs("the previous one stays in use").await;
    logs(&format!("--tls-cert: {}: there is no certificate in PEM", path("server.pem"))).await;
    assert!(presented().await == next);
    // The connection of the first certificate is open still.
    assert_eq!(browser.get("/api/me").await.status, 200);

    let plain = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let url = format!("http://{}/healthz", program.address);
    assert!(plain.get(url.parse().unwrap()).await.is_err());
    logs("the client speaks plain HTTP, or another protocol than TLS").await;
    drop(TcpStream::connect(program.address).unwrap());
    logs("tls handshake eof").await;
    program.terminate();
    assert!(program.exit(Duration::from_secs(10)).await.success());
}

/// The client that most operators try first.
#[tokio::test]
async fn curl_is_served_over_http_2_and_http_1() {
    if std::process::Command::new("curl").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "curl is not installed");
        return;
    }
    let Some(certificates) = Certificates::make("curl") else { return };
    let kit = TestServer::start().await.unwrap();
    let path = |file: &str| certificates.path(file).into_os_string().into_string().unwrap();
    let (chain, key, origin) = (path("server.pem"), path("server.key"), kit.origin());
    let tls = ["--public-origin", "https://app.example.com", "--tls-cert", &chain, "--tls-key", &key];
    let program = Program::start(&[&["--upstream", &origin, "--auth", &origin], &tls[..]].concat());
    let url = format!("https://localhost:{}/healthz", program.address.port());
    for (arguments, expected) in [
        (&["--http2"][..], "2 200"),
        (&["--http1.1"], "1.1 200"),
        (&["--http2", "--tlsv1.2", "--tls-max", "1.2"], "2 200"),
        (&["--tls-max", "1.1"], "0 000"),
    ] {
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["--silent", "--cacert", &path("ca.pem"), "--write-out", "%{http_version} %{http_code}"]);
        let output = curl.args(["--output", "/dev/null", "--noproxy", "*"]).args(arguments).arg(&url).output();
        let output = output.await.unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{arguments:?}");
    }
}

/// The parent process may close the pipe that receives the `listening on` line.
#[tokio::test]
async fn a_closed_stdout_does_not_stop_the_program() {
    let kit = TestServer::start().await.unwrap();
    let (parent_end, child_end) = UnixStream::pair().unwrap();
    drop(parent_end);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let arguments = ["--upstream", &kit.origin(), "--auth", &kit.origin(), "--listen", &free.to_string()];
    let mut command = command(&arguments);
    let mut child = command.stdout(Stdio::from(OwnedFd::from(child_end))).spawn().unwrap();
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

/// The client of the cut-off response gets an error.
#[tokio::test]
async fn sigterm_cuts_off_an_endless_response_at_the_deadline() {
    let kit = TestServer::start().await.unwrap();
    let endless = async || {
        Body::from_stream(stream::repeat(()).then(async |()| {
            sleep(Duration::from_millis(20)).await;
            Ok::<_, Infallible>("data: x\n\n")
        }))
    };
    let upstream = serve(Router::new().fallback(any(endless))).await;
    let timeout = ["--upstream", &upstream, "--auth", &kit.origin(), "--shutdown-timeout=500ms"];
    let mut program = Program::start(&timeout);
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    let request = browser.request(Method::GET, "/api/events").body(Body::empty()).unwrap();
    let mut events = browser.send(request).await.into_body();
    events.frame().await.unwrap().unwrap();
    program.terminate();
    let started = Instant::now();
    while events.frame().await.expect("the stream has no end").is_ok() {}
    assert!(started.elapsed() >= Duration::from_millis(400), "{:?}", started.elapsed());
    assert!(program.exit(Duration::from_secs(3)).await.success());
}

#[tokio::test]
async fn sigterm_waits_until_the_login_of_a_disconnected_client_is_undone() {
    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    let mut program = Program::start(&["--upstream", &origin, "--auth", &origin]);
    kit.inject(Route::Login, Fault::delay(Duration::from_millis(500)).after_processing());
    let mut browser = Browser::at(program.address);
    let login = tokio::spawn(async move { browser.login("ada", "correct horse").await });
    wait_for_counters(&kit, |counters| counters.logins > 0).await;
    disconnect(login).await;
    program.terminate();
    assert!(program.exit(Duration::from_secs(5)).await.success());
    assert_eq!(kit.counters().logouts, 1);
}

/// The logout response is sent before the tokens are revoked.
#[tokio::test]
async fn sigterm_waits_for_a_sign_out_after_its_response() {
    let kit = TestServer::start().await.unwrap();
    let (mut program, browser) = signed_in(&kit, &[]).await;
    kit.inject(Route::Logout, Fault::delay(Duration::from_secs(2)));
    let started = Instant::now();
    assert_eq!(browser.post("/logout", "").await.status, 204);
    program.terminate();
    assert!(program.exit(Duration::from_secs(5)).await.success());
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!((kit.counters().logouts, kit.counters().unanswered), (1, 0));
}

/// Half of the descriptors is kept for the upstream and the authorization server.
#[tokio::test]
async fn idle_connections_do_not_use_up_the_descriptors() {
    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -n 256; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_gateway"), "--listen=127.0.0.1:0"]);
    limited.args(["--upstream", &origin, "--auth", &origin]).env_clear();
    let program = Program::start_command(&mut limited);
    let idle: Vec<_> = (0..245).map(|_| TcpStream::connect(program.address).unwrap()).collect();
    let users = (0..60).map(async |number| {
        let mut browser = Browser::at(program.address);
        assert_eq!(browser.login(&format!("user-{number}"), "correct horse").await.status, 204);
        for _ in 0..5 {
            assert_eq!(browser.get("/api/me").await.status, 200);
        }
    });
    tokio::time::timeout(Duration::from_secs(20), futures_util::future::join_all(users)).await.unwrap();
    drop(idle);
}

#[test]
fn an_invalid_setting_is_reported_in_one_line() {
    let refused = |arguments: &[&str], variables: &[(&str, &str)], name: &str| {
        let output = program::run_to_failure(command(arguments).envs(variables.iter().copied()));
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.starts_with("gateway: ") && message.contains(name), "{message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        assert!(output.stdout.is_empty());
        message
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
    refused(&[api, auth, "--strip-header=X Y"], &[], "--strip-header");
    for setting in ["--logins-in-flight", "--logins-in-flight-per-address", "--max-connections"] {
        refused(&[api, auth, &format!("{setting}=0")], &[], setting);
    }
    for setting in ["--requests-in-flight", "--requests-in-flight-per-session"] {
        refused(&[api, auth, &format!("{setting}=0")], &[], setting);
    }
    refused(&[api, auth, "--max-connections-per-address=0"], &[], "--max-connections-per-address");
    refused(&[api, auth, "--idle-connection-timeout=0s"], &[], "--idle-connection-timeout");
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
        let message = refused(arguments, &[], &format!("gateway: {name}: "));
        assert!(message.contains("use https, or --allow-plain-http") && !message.contains("::"), "{message}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    refused(&[api, auth, "--listen", &taken], &[], "gateway: --listen: ");
    refused(&[api, auth, "--listen=127.0.0.1:0", "--admin-listen", &taken], &[], "gateway: --admin-listen: ");
}

#[tokio::test]
async fn settings_are_read_from_the_environment() {
    let kit = TestServer::start().await.unwrap();
    let mut command = command(&[]);
    command.env("GATEWAY_UPSTREAM", kit.origin()).env("GATEWAY_AUTH", kit.origin());
    command.env("GATEWAY_LISTEN", "127.0.0.1:0").env("GATEWAY_MAX_SESSIONS", "1");
    let program = Program::start_command(&mut command);
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    assert_eq!(browser.get("/api/me").await.status, 200);
    Browser::at(program.address).login("eve", "x").await.assert_problem(503, "too-many-sessions");

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
fn help_lists_every_flag_and_its_variable() {
    let output = command(&["--help"]).output().unwrap();
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(!help.contains('`'), "{help}");
    for flag in [
        "--demo",
        "--listen",
        "--admin-listen",
        "--upstream",
        "--auth",
        "--token-endpoint",
        "--client-id",
        "--client-secret",
        "--max-sessions",
        "--strip-header",
        "--idle",
        "--refreshes-in-flight",
        "--refresh-early",
        "--refresh-timeout",
        "--body-limit",
        "--upstream-timeout",
        "--client-timeout",
        "--logins-in-flight",
        "--logins-in-flight-per-address",
        "--requests-in-flight",
        "--requests-in-flight-per-session",
        "--max-connections",
        "--max-connections-per-address",
        "--idle-connection-timeout",
        "--drain-delay",
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
async fn the_metrics_count_one_refresh_for_many_calls() {
    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    let mut command = command(&["--upstream", &origin, "--auth", &origin, "--listen=127.0.0.1:0"]);
    command.arg("--admin-listen=127.0.0.1:0");
    // The metrics do not depend on the filter of the log.
    let program = Program::start_command(command.env("RUST_LOG", "off"));
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    assert_eq!(browser.get("/healthz").await.body, "ok\n");
    kit.expire_access_tokens();
    kit.hold_unauthorized_until(20);
    let gate = kit.hold_refreshes();
    let calls: Vec<_> = (0..20).map(|_| browser.spawn_get("/api/me")).collect();
    gate.arrived(1).await;
    // Time for another call to get its 401.
    sleep(Duration::from_millis(200)).await;
    gate.open();
    for call in calls {
        assert_eq!(call.await.unwrap().status, 200);
    }
    kit.expire_access_tokens();
    // A server that closes the connection before it has read the body can lose its own 401.
    kit.configure(|settings| settings.unread_body = UnreadBody::Read);
    assert_eq!(browser.post("/api/upload", vec![0; 100_000]).await.status, 503);
    // The refresh completes without a waiter.
    while browser.get("/session").await.json()["generation"] != 3 {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(browser.get("/api/me").await.status, 200);
    let (mut eve, mut bob) = (Browser::at(program.address), Browser::at(program.address));
    assert_eq!(eve.login("eve", "correct horse").await.status, 204);
    kit.inject(Route::Refresh, Fault::status(503).times(1));
    kit.expire_access_tokens_of("eve");
    eve.get("/api/me").await.assert_problem(503, "refresh-failed");
    assert_eq!(bob.login("bob", "correct horse").await.status, 204);
    kit.revoke("bob");
    bob.get("/api/me").await.assert_problem(401, "session-ended");
    // A refresh is counted after its waiters have been answered. Until then it holds the ended session, which the
    // registry removes on the next lookup.
    let deadline = Instant::now() + Duration::from_secs(10);
    let page = loop {
        assert_ne!(bob.get("/session").await.json()["state"], "active");
        let page = Browser::at(program.admin.unwrap()).get("/metrics").await;
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
        assert!(page.lines().any(|found| found == line), "{line} is not in:\n{page}");
    }
    // Calls that arrived after the refresh found newer tokens and did not wait.
    let waiters = page.lines().find_map(|line| line.strip_prefix("gateway_coalesced_waiters_total ")).unwrap();
    assert!((1..20).contains(&waiters.parse::<u32>().unwrap()), "{waiters}");
}

/// The calls of a burst do not arrive over the network, but are counted like others.
#[tokio::test]
async fn the_metrics_count_the_calls_of_the_demo_page() {
    let program = Program::start(&["--demo", "--admin-listen=127.0.0.1:0"]);
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    let request = browser.request(Method::POST, "/demo/calls").header("content-type", "application/json");
    let response = browser.fetch(request.body(r#"{ "number": 1, "size": 20 }"#.into()).unwrap()).await;
    assert_eq!(response.json(), serde_json::json!(vec![200; 20]));
    let page = String::from_utf8(Browser::at(program.admin.unwrap()).get("/metrics").await.body.to_vec()).unwrap();
    let line = "gateway_requests_total{route=\"api\",code=\"200\"} 20";
    assert!(page.lines().any(|found| found == line), "{page}");
}

/// The log is written by a thread of its own, which an exit must not overtake.
#[tokio::test]
async fn no_line_of_the_log_is_lost_at_an_exit() {
    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    for signals in [1, 2] {
        let mut command = command(&["--upstream", &origin, "--auth", &origin, "--listen=127.0.0.1:0"]);
        let mut program = Program::start_command(command.stderr(Stdio::piped()));
        let log = program.take_log();
        let mut browser = Browser::at(program.address);
        assert_eq!(browser.login("ada", "correct horse").await.status, 204);
        for _ in 0..50 {
            assert_eq!(browser.get("/healthz").await.status, 200);
        }
        kit.inject(Route::Api, Fault::hang());
        let call = (signals == 2).then(|| browser.spawn_get("/api/me"));
        if call.is_some() {
            wait_for_counters(&kit, |counters| counters.api > 0).await;
            program.terminate();
            program.stops_accepting().await;
        }
        program.terminate();
        program.exit(Duration::from_secs(5)).await;
        let log = log.join();
        assert_eq!(log.matches("request completed").count(), 51, "{log}");
    }
}

#[tokio::test]
async fn the_log_is_json_and_holds_no_secret() {
    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    let mut command = command(&["--upstream", &origin, "--auth", &origin, "--listen=127.0.0.1:0", "--log=json"]);
    let mut program = Program::start_command(command.env("RUST_LOG", "trace").stderr(Stdio::piped()));
    let mut browser = Browser::at(program.address);
    // Read in a thread: a full pipe would block the program.
    let log = program.take_log();
    assert_eq!(browser.login("ada", "correct-horse-battery").await.status, 204);
    kit.expire_access_tokens();
    assert_eq!(browser.get("/api/me?secret=in-the-query").await.status, 200);
    let cookie = browser.cookie.clone().unwrap();
    // HTTP/2 headers are parsed and logged by other code.
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Body>();
    for canary in ["canary-of-http-1", "canary-of-http-2"] {
        let request = browser
            .request(Method::POST, "/api/upload")
            .header("authorization", format!("Bearer {canary}"))
            .header("proxy-authorization", format!("Basic {canary}"))
            .header("cookie", format!("other={canary}"))
            .body(Body::from(canary))
            .unwrap();
        let response =
            if canary.ends_with('2') { client.request(request).await.unwrap() } else { browser.send(request).await };
        assert_eq!(response.status(), 200);
        assert!(response.into_body().collect().await.is_ok());
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
    let own = log.lines().filter(|line| line.contains("\"target\":\"gateway"));
    assert!(own.clone().any(|line| line.contains("/api/me")));
    assert!(!own.clone().any(|line| line.contains("in-the-query")));
}
