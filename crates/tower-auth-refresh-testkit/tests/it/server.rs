//! Sockets, the log and the counters.

use http::Request;
use http_body_util::Full;
use tower_auth_refresh_testkit::{Fault, Route, TestKit, TestServer};

use crate::client::{self, Client};

#[tokio::test]
async fn http1_and_http2_are_served_on_one_port() {
    let server = TestServer::start().await.unwrap();
    for client in [Client::of(&server), Client::http2(&server)] {
        let tokens = client.login("ada").await;
        for _ in 0..5 {
            assert_eq!(client.get("/api/me", &tokens.access_token).await.unwrap().status, 200);
        }
    }
    assert_eq!(server.counters().connections, 2);
}

#[tokio::test]
async fn the_log_has_every_request_in_order() {
    let (server, client) = client::start().await;
    let mut live = server.subscribe();
    let first = client.login("ada").await;
    server.expire_access_tokens();
    client.get("/api/me?x=1", &first.access_token).await.unwrap();
    let second = client.refresh(&first.refresh_token).await.unwrap().tokens();
    client.get("/api/me", &second.access_token).await.unwrap();

    let log = server.log();
    let lines: Vec<_> = log
        .iter()
        .map(|entry| {
            let (status, generation) = (entry.status.unwrap(), entry.generation.unwrap_or_default());
            format!("{} {} {} {status} {generation}", entry.number, entry.method, entry.path)
        })
        .collect();
    let expected =
        ["1 POST /auth/login 200 0", "2 GET /api/me?x=1 401 1", "3 POST /auth/refresh 200 1", "4 GET /api/me 200 2"];
    assert_eq!(lines, expected);
    assert!(log.iter().all(|entry| entry.user.as_deref() == Some("ada") && entry.connection == Some(1)));
    assert!(log.is_sorted_by_key(|entry| entry.at));
    for entry in log {
        assert_eq!(live.recv().await.unwrap().number, entry.number);
    }
}

#[tokio::test]
async fn entries_and_counters_serialize_to_json() {
    let (server, client) = client::start().await;
    client.login("ada").await;
    let entry = serde_json::to_value(&server.log()[0]).unwrap();
    assert!(entry["at"].as_f64().unwrap() > 0.0);
    let members = (&entry["method"], &entry["route"], &entry["status"], &entry["user"]);
    assert_eq!(members, (&"POST".into(), &"login".into(), &200.into(), &"ada".into()));
    serde_json::to_value(server.counters()).unwrap();
}

#[tokio::test]
async fn the_log_is_bounded_and_counters_count_without_a_log() {
    let (server, client) = client::start().await;
    let tokens = client.login("ada").await;
    server.configure(|settings| settings.log_capacity = 3);
    for _ in 0..10 {
        client.get("/api/me", &tokens.access_token).await.unwrap();
    }
    let numbers: Vec<_> = server.log().iter().map(|entry| entry.number).collect();
    assert_eq!(numbers, [9, 10, 11]);
    server.configure(|settings| settings.log_capacity = 0);
    let mut live = server.subscribe();
    client.get("/api/me", &tokens.access_token).await.unwrap();
    assert!(server.log().is_empty());
    assert_eq!(live.recv().await.unwrap().number, 12);
    assert_eq!((server.counters().api, server.user("ada").api_by_status[&200]), (11, 11));

    server.reset();
    assert_eq!(server.counters(), tower_auth_refresh_testkit::Counters::default());
    assert_eq!(client.get("/api/me", &tokens.access_token).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_graceful_shutdown_waits_for_a_request_under_way() {
    let (server, client) = client::start().await;
    let kit = server.kit().clone();
    let address = server.address();
    let tokens = client.login("ada").await;
    let gate = server.hold_refreshes();
    let refresh = client.spawn_refresh(&tokens.refresh_token);
    gate.arrived(1).await;
    let shutdown = tokio::spawn(server.shutdown());
    gate.open();
    let tokens = refresh.await.unwrap().unwrap().tokens();
    shutdown.await.unwrap();
    client.get("/api/me", &tokens.access_token).await.unwrap_err();

    // The kit outlives the server, and can be served again.
    let _server = kit.serve(address).await.unwrap();
    assert_eq!(client.get("/api/me", &tokens.access_token).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_dropped_server_closes_its_connections() {
    let (server, client) = client::start().await;
    server.inject(Route::Api, Fault::hang());
    let mut entries = server.subscribe();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.get("/api/me", "none").await }
    });
    // The request hangs or hasn't arrived yet. It fails in both cases.
    tokio::task::yield_now().await;
    drop(server);
    call.await.unwrap().unwrap_err();
    assert!(entries.try_recv().map_or(true, |entry| entry.status.is_none()));
}

#[tokio::test]
async fn a_connection_that_the_test_made_is_served() {
    let kit = TestKit::new();
    let (client, server) = tokio::io::duplex(1024);
    let serving = tokio::spawn({
        let kit = kit.clone();
        async move { kit.serve_connection(server).await }
    });
    let io = hyper_util::rt::TokioIo::new(client);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let driving = tokio::spawn(connection);
    let request = Request::get("/api/me").body(Full::<bytes::Bytes>::default()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 401);
    drop(sender);
    driving.await.unwrap().unwrap();
    serving.await.unwrap();
    assert_eq!(kit.counters().connections, 1);
}
