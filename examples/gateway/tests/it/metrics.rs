//! The metrics, counted on real sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use gateway::{AuthServer, Gateway, PublicOrigin, Settings};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsConnector;
use tower_auth_refresh::{MemoryStore, Origin, TokenStore};
use tower_auth_refresh_testkit::conformance::{Call, FaultyStore, StoreFault};
use tower_auth_refresh_testkit::{Fault, Route, TestServer};

use crate::certificates::{Certificates, VERSIONS};
use crate::test_gateway::{Browser, TestGateway, wait_for_counters};

const README: &str = include_str!("../../README.md");

impl TestGateway {
    /// Waits until a metric satisfies a condition: the end of a response is counted after its client has it.
    async fn wait_for_metric(&self, name: &str, condition: impl Fn(u64) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition(self.metric(name).await) {
            assert!(Instant::now() < deadline, "{name} is {}", self.metric(name).await);
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn requests_are_in_flight_until_their_responses_end_and_then_measured() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    gateway.kit.inject(Route::Api, Fault::hang());
    let call = browser.spawn_get("/api/me");
    wait_for_counters(&gateway.kit, |counters| counters.api > 0).await;
    // The request for the metrics is in flight too.
    gateway.wait_for_metric("gateway_requests_in_flight", |value| value == 2).await;
    call.abort();
    gateway.wait_for_metric("gateway_requests_in_flight", |value| value == 1).await;
    gateway.wait_for_metric("gateway_requests_total{route=\"api\",code=\"499\"}", |value| value == 1).await;

    gateway.kit.clear_faults();
    let upload = browser.request(Method::POST, "/api/upload").body(Body::from("12345")).unwrap();
    gateway.wait_for_metric("gateway_request_duration_seconds_count{route=\"login\"}", |value| value == 1).await;
    let before = gateway.metric("gateway_request_body_bytes_total").await;
    assert_eq!(browser.fetch(upload).await.status, 200);
    gateway.wait_for_metric("gateway_request_body_bytes_total", |value| value == before + 5).await;
    gateway.wait_for_metric("gateway_request_duration_seconds_count{route=\"api\"}", |value| value == 2).await;
    assert_eq!(gateway.metric("gateway_upstream_duration_seconds_count").await, 1);
    assert_eq!(gateway.metric("gateway_upstream_calls_total{outcome=\"2xx\"}").await, 1);
    assert!(gateway.metric("gateway_response_body_bytes_total").await > 0);
}

#[tokio::test]
async fn failures_of_the_upstream_are_told_apart() {
    let gateway = TestGateway::start_with(|settings| settings.upstream_timeout = Duration::from_millis(300)).await;
    let browser = gateway.browser("ada").await;
    gateway.kit.inject(Route::Api, Fault::status(503));
    assert_eq!(browser.get("/api/me").await.status, 503);
    gateway.kit.clear_faults();
    gateway.kit.inject(Route::Api, Fault::hang());
    browser.get("/api/me").await.assert_problem(504, "upstream-too-slow");
    for (outcome, count) in [("5xx", 1), ("timeout", 1), ("connect_error", 0), ("error", 0)] {
        assert_eq!(gateway.metric(&format!("gateway_upstream_calls_total{{outcome=\"{outcome}\"}}")).await, count);
    }
    assert_eq!(gateway.metric("gateway_limits_exceeded_total{limit=\"upstream_timeout\"}").await, 1);

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let kit = gateway.kit;
    let gateway = TestGateway::in_front_of(kit, &format!("http://{closed}"), |_| {}).await;
    let browser = gateway.browser("ada").await;
    browser.get("/api/me").await.assert_problem(502, "upstream-failed");
    assert_eq!(gateway.metric("gateway_upstream_calls_total{outcome=\"connect_error\"}").await, 1);
}

#[tokio::test]
async fn connections_are_counted_with_the_reason_of_their_end() {
    let gateway = TestGateway::start_with(|settings| {
        settings.client_timeout = Duration::from_millis(200);
        settings.idle_connection_timeout = Duration::from_millis(200);
        settings.max_connections_per_address = Some(3);
    })
    .await;
    let mut slow_head = TcpStream::connect(gateway.address).await.unwrap();
    slow_head.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n").await.unwrap();
    let mut idle = TcpStream::connect(gateway.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    for mut stream in [slow_head, idle] {
        // Until the gateway closes it.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    // On a busy machine, connections that read the metrics may be idle for too long too.
    for reason in ["slow_head", "idle"] {
        let name = format!("gateway_connections_closed_total{{reason=\"{reason}\"}}");
        gateway.wait_for_metric(&name, |value| value >= 1).await;
    }
    assert!(gateway.metric("gateway_connections_accepted_total").await >= 2);
    assert!(gateway.metric("gateway_connections").await >= 1, "the one that reads the metrics");
}

#[tokio::test]
async fn errors_of_the_store_are_counted_by_operation() {
    let store = Arc::new(FaultyStore::new(MemoryStore::new()).durable());
    let kit = TestServer::start().await.unwrap();
    let mut settings = Settings::new(&kit.origin(), AuthServer::Json(kit.origin())).unwrap();
    settings.admin_listen = Some(([127, 0, 0, 1], 0).into());
    let factory = {
        let store = store.clone();
        move || -> Arc<dyn TokenStore> { store.clone() }
    };
    let listening = Gateway::new(settings).store_factory(factory).listen().await.unwrap();
    let (address, admin) = (listening.address().unwrap(), listening.admin_address().unwrap());
    tokio::spawn(listening.serve(pending()));
    let errors = async |operation: &str| {
        let page = String::from_utf8(Browser::at(admin).get("/metrics").await.body.into()).unwrap();
        let name = format!("gateway_store_errors_total{{operation=\"{operation}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse::<u64>().unwrap()
    };
    let mut browser = Browser::at(address);
    browser.cookie = Some("session=AAAAAAAAAAAAAAAAAAAAAA".to_owned());
    browser.get("/api/me").await.assert_problem(401, "sign-in-first");
    assert_eq!(errors("load").await, 0);
    store.inject(Call::Load, StoreFault::fail());
    browser.get("/api/me").await.assert_problem(503, "store-unavailable");
    assert!(errors("load").await >= 1);
    assert_eq!(errors("commit").await, 0);
}

#[tokio::test]
async fn the_certificate_and_failed_handshakes_are_counted() {
    let Some(certificates) = Certificates::make("metrics") else { return };
    let identity = certificates.identity("server");
    let gateway = TestGateway::start_with(|settings| {
        settings.tls = Some(identity);
        settings.public = PublicOrigin::Named(Origin::parse("https://app.example.com").unwrap());
    });
    let gateway = gateway.await;
    let expiry = gateway.metric("gateway_tls_certificate_expiry_seconds").await;
    assert!(expiry > 1_700_000_000, "{expiry}");
    let failed = |reason: &str| format!("gateway_tls_handshakes_failed_total{{reason=\"{reason}\"}}");
    let mut plain = TcpStream::connect(gateway.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    gateway.wait_for_metric(&failed("not_tls"), |value| value == 1).await;
    drop(TcpStream::connect(gateway.address).await.unwrap());
    gateway.wait_for_metric(&failed("unfinished"), |value| value == 1).await;
    // This client doesn't trust the CA.
    let Some(others) = Certificates::make("metrics-other") else { return };
    let connector = TlsConnector::from(Arc::new(others.client_config(VERSIONS)));
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let name = rustls::pki_types::ServerName::IpAddress(gateway.address.ip().into());
    assert!(connector.connect(name, stream).await.is_err());
    gateway.wait_for_metric(&failed("refused_by_client"), |value| value == 1).await;
}

#[tokio::test]
async fn limits_of_connections_and_of_users_sessions_are_counted() {
    let gateway = TestGateway::start_with(|settings| {
        settings.max_connections_per_address = Some(1);
        settings.sessions_per_user = Some(1);
    });
    let gateway = gateway.await;
    for _ in 0..2 {
        gateway.browser("ada").await;
    }
    assert_eq!(gateway.metric("gateway_limits_exceeded_total{limit=\"sessions_per_user\"}").await, 1);
    let _first = TcpStream::connect(gateway.address).await.unwrap();
    let _second = TcpStream::connect(gateway.address).await.unwrap();
    let name = "gateway_limits_exceeded_total{limit=\"max_connections_per_address\"}";
    gateway.wait_for_metric(name, |value| value >= 1).await;
}

#[tokio::test]
async fn connections_that_wait_for_room_are_counted_once() {
    let gateway = TestGateway::start_with(|settings| settings.max_connections = Some(1)).await;
    let limited = "gateway_limits_exceeded_total{limit=\"max_connections\"}";
    let evicted = "gateway_connections_closed_total{reason=\"evicted\"}";
    let mut idle = TcpStream::connect(gateway.address).await.unwrap();
    // It looks for room repeatedly, until the other has been idle for long enough.
    let mut waiting = TcpStream::connect(gateway.address).await.unwrap();
    waiting.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let _ = idle.read_to_end(&mut Vec::new()).await;
    gateway.wait_for_metric(evicted, |value| value == 1).await;
    assert_eq!(gateway.metric(limited).await, 1);
}

#[tokio::test]
async fn connections_that_a_shutdown_closes_are_counted() {
    let kit = TestServer::start().await.unwrap();
    let mut settings = Settings::new(&kit.origin(), AuthServer::Json(kit.origin())).unwrap();
    settings.admin_listen = Some(([127, 0, 0, 1], 0).into());
    let listening = Gateway::new(settings).listen().await.unwrap();
    let (address, admin) = (listening.address().unwrap(), Browser::at(listening.admin_address().unwrap()));
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(listening.serve(async { drop(stopped.await) }));
    let mut browser = Browser::at(address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    // The shutdown waits for it, and its connection is kept by the browser.
    kit.inject(Route::Api, Fault::hang());
    let call = browser.spawn_get("/api/me");
    wait_for_counters(&kit, |counters| counters.api > 0).await;
    let unused = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    drop(stop);
    for mut stream in unused {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let page = String::from_utf8(admin.get("/metrics").await.body.into()).unwrap();
        if page.lines().any(|line| line == "gateway_connections_closed_total{reason=\"shutdown\"} 2") {
            break;
        }
        assert!(Instant::now() < deadline, "{page}");
        sleep(Duration::from_millis(5)).await;
    }
    assert!(!call.is_finished());
    kit.clear_faults();
    call.abort();
    serving.await.unwrap();
}

/// Alerts and dashboards are written from the table.
#[tokio::test]
async fn the_table_of_the_readme_has_all_metrics_with_their_types_and_labels() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    assert_eq!(browser.get("/api/me").await.status, 200);
    let page = gateway.metrics().await;
    let mut found: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for line in page.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            found.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((name, labels)) = line.split_once('{')
            && !line.starts_with('#')
        {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
                let family = name.strip_suffix(suffix)?;
                found.get(family).is_some_and(|(kind, _)| kind == "histogram").then_some(family)
            });
            let labels = labels.split_once("} ").unwrap().0.split(',').map(|label| label.split_once('=').unwrap().0);
            let labels = labels.filter(|label| *label != "le").map(str::to_owned);
            found.get_mut(family.unwrap_or(name)).unwrap().1.extend(labels);
        }
    }
    let mut listed = BTreeMap::new();
    for line in README.lines().filter(|line| line.starts_with("| `gateway_") || line.starts_with("| `process_")) {
        let [_, name, kind, labels, ..] = line.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        // Of `route`: `api`, …, the first is the name.
        let labels = labels.split(';').filter_map(|label| label.split('`').nth(1)).map(str::to_owned).collect();
        listed.insert(name.trim_matches('`').to_owned(), (kind.to_owned(), labels));
    }
    assert_eq!(found, listed);
}
