//! `/readyz`, the drain at shutdown, and the admin listener.

use std::net::TcpStream;
use std::time::Duration;

use http::header::CONNECTION;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};
use tower_auth_refresh_testkit::TestServer;

use crate::program::Program;
use crate::test_gateway::{Browser, TestGateway};

/// Waits until `/readyz` answers with this status.
async fn wait_for_readiness(browser: &Browser, status: u16) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while browser.get("/readyz").await.status != status {
        assert!(Instant::now() < deadline, "/readyz doesn't answer with {status}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_draining_gateway_serves_while_its_readiness_fails() {
    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    let drain = ["--upstream", &origin, "--auth", &origin, "--admin-listen=127.0.0.1:0", "--drain-delay=10m"];
    let mut program = Program::start(&drain);
    let mut browser = Browser::at(program.address);
    let admin = Browser::at(program.admin.unwrap());
    for listener in [&browser, &admin] {
        assert_eq!(listener.get("/readyz").await.body, "ready\n");
        assert_eq!(listener.get("/healthz").await.body, "ok\n");
    }
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    assert!(!browser.get("/api/me").await.headers.contains_key(CONNECTION));
    program.terminate();
    wait_for_readiness(&admin, 503).await;
    // New connections are accepted, and each answer is the last of its connection.
    for _ in 0..3 {
        let response = browser.get("/api/me").await;
        assert_eq!((response.status.as_u16(), &response.headers[CONNECTION]), (200, &"close".parse().unwrap()));
    }
    assert_eq!(browser.get("/readyz").await.body, "draining\n");
    assert_eq!(browser.get("/healthz").await.status, 200);
    assert!(TcpStream::connect(program.address).is_ok());
    // A second signal ends the drain.
    program.terminate();
    assert_eq!(program.exit(Duration::from_secs(20)).await.code(), Some(143));
}

/// A balancer learns of the shutdown by the answer, not by a closed connection.
#[tokio::test]
async fn a_request_on_an_idle_connection_is_answered_during_the_drain() {
    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    let program = Program::start(&["--upstream", &origin, "--auth", &origin, "--drain-delay=10m"]);
    let mut idle = tokio::net::TcpStream::connect(program.address).await.unwrap();
    let request = b"GET /readyz HTTP/1.1\r\nhost: gateway\r\n\r\n";
    let mut answer = [0; 1024];
    idle.write_all(request).await.unwrap();
    let length = idle.read(&mut answer).await.unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 200 "));
    program.terminate();
    wait_for_readiness(&Browser::at(program.address), 503).await;
    idle.write_all(request).await.unwrap();
    let mut answer = String::new();
    idle.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("connection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn the_shutdown_follows_the_drain() {
    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    let mut program = Program::start(&["--upstream", &origin, "--auth", &origin, "--drain-delay=1s"]);
    let started = Instant::now();
    program.terminate();
    assert!(program.exit(Duration::from_secs(20)).await.success());
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
}

/// It has users whose sessions are in memory, and all gateways share the servers behind it.
#[tokio::test]
async fn readiness_does_not_depend_on_the_servers_behind() {
    let nothing = "http://127.0.0.1:1";
    let gateway = TestGateway::in_front_of(TestServer::start().await.unwrap(), nothing, |_| {}).await;
    let browser = gateway.browser("ada").await;
    assert_eq!(browser.get("/api/me").await.status, 502);
    assert_eq!(browser.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn the_metrics_are_on_the_admin_listener_alone() {
    let kit = TestServer::start().await.unwrap();
    let origin = kit.origin();
    let arguments = ["--upstream", &origin, "--auth", &origin];
    let without = Program::start(&arguments);
    assert_eq!(without.admin, None);
    Browser::at(without.address).get("/metrics").await.assert_problem(404, "not-found");

    let program = Program::start(&[&arguments[..], &["--admin-listen=127.0.0.1:0"]].concat());
    let (mut browser, admin) = (Browser::at(program.address), Browser::at(program.admin.unwrap()));
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    browser.get("/metrics").await.assert_problem(404, "not-found");
    assert_eq!(admin.get("/metrics").await.status, 200);
    // No user's request passes the admin listener.
    let mut user = admin.clone();
    user.cookie.clone_from(&browser.cookie);
    for path in ["/api/me", "/session", "/"] {
        user.get(path).await.assert_problem(404, "not-found");
    }
    user.login("ada", "correct horse").await.assert_problem(404, "not-found");
}

/// `option httpchk /readyz` asks by OPTIONS, with HTTP/1.0 and no host.
#[tokio::test]
async fn the_health_check_of_haproxy_needs_no_more_than_a_path() {
    let gateway = TestGateway::start().await;
    let answer = gateway.send_raw("OPTIONS /readyz HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
}
