//! Limits of what is in flight: logins, and requests of a session and in all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use gateway::{AuthServer, Gateway, Settings, TrustedProxies};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tower_auth_refresh::{MemoryStore, TokenStore};
use tower_auth_refresh_testkit::conformance::{Call, FaultyStore};

use crate::test_gateway::{Browser, BufferedResponse, TestGateway, disconnect, serve, spawn, wait_for_counters};

const LONG: Duration = Duration::from_secs(20);

/// A server that holds all requests until it is opened, and then refuses them.
#[derive(Clone)]
struct Held {
    gate: Arc<Semaphore>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Held {
    async fn serve() -> (Self, String) {
        let held = Self { gate: Arc::new(Semaphore::new(0)), now: Arc::default(), most: Arc::default() };
        let answer = {
            let held = held.clone();
            async move || {
                held.most.fetch_max(held.now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                let _open = held.gate.acquire().await.unwrap();
                held.now.fetch_sub(1, Ordering::Relaxed);
                StatusCode::UNAUTHORIZED
            }
        };
        let origin = serve(Router::new().fallback(any(answer))).await;
        (held, origin)
    }

    async fn reached(&self, count: usize) {
        let reached = async {
            while self.now.load(Ordering::Relaxed) < count {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, reached).await.unwrap();
    }

    fn open(&self) {
        self.gate.add_permits(Semaphore::MAX_PERMITS);
    }
}

fn login(gateway: &TestGateway, user: usize) -> Request<Body> {
    Request::post(format!("http://{}/login", gateway.address))
        .header("x-requested-with", "x")
        .header("content-type", "application/json")
        .body(format!(r#"{{"username":"user-{user}","password":"x"}}"#).into())
        .unwrap()
}

fn http_2() -> Client<hyper_util::client::legacy::connect::HttpConnector, Body> {
    Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

#[tokio::test]
async fn logins_over_the_limit_are_refused_at_once() {
    let (auth, origin) = Held::serve().await;
    let gateway = TestGateway::start_with(|settings| {
        settings.auth = AuthServer::Json(origin);
        settings.logins_in_flight = 10;
    });
    let gateway = gateway.await;
    let calls = (0..5).flat_map(|connection| {
        let client = http_2();
        let gateway = &gateway;
        (0..100).map(move |user| client.request(login(gateway, connection * 100 + user)))
    });
    // Ten wait for the authorization server.
    let answers = tokio::spawn(join_all(calls.collect::<Vec<_>>()));
    auth.reached(10).await;
    sleep(Duration::from_millis(300)).await;
    auth.open();
    let mut refused = 0;
    for answer in timeout(LONG, answers).await.unwrap().unwrap() {
        let (head, body) = answer.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let answer = BufferedResponse { status: head.status, headers: head.headers, body };
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            answer.assert_problem(429, "too-many-logins");
            assert!(answer.headers.contains_key("retry-after"));
            refused += 1;
        } else {
            answer.assert_problem(401, "wrong-credentials");
        }
    }
    assert_eq!((refused, auth.most.load(Ordering::Relaxed)), (490, 10));
    // The places are free again.
    assert_eq!(http_2().request(login(&gateway, 0)).await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

/// A login that has been abandoned by its client still is one at the authorization server.
#[tokio::test]
async fn a_login_without_its_client_still_counts() {
    let (auth, origin) = Held::serve().await;
    let gateway = TestGateway::start_with(|settings| {
        settings.auth = AuthServer::Json(origin);
        settings.logins_in_flight = 1;
    });
    let gateway = gateway.await;
    let call = tokio::spawn(http_2().request(login(&gateway, 0)));
    auth.reached(1).await;
    crate::test_gateway::disconnect(call).await;
    let over = || async { http_2().request(login(&gateway, 1)).await.unwrap().status() };
    assert_eq!(over().await, StatusCode::TOO_MANY_REQUESTS);
    auth.open();
    let free = async {
        while over().await == StatusCode::TOO_MANY_REQUESTS {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, free).await.unwrap();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn logins_are_limited_per_address() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let (auth, origin) = Held::serve().await;
    let gateway = TestGateway::start_with(|settings| {
        settings.auth = AuthServer::Json(origin);
        settings.logins_in_flight_per_address = Some(2);
    });
    let gateway = gateway.await;
    let login_from = async |last: u8| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, last], 0).into()).unwrap();
        let mut stream = socket.connect(gateway.address).await.unwrap();
        let head = format!("host: {}\r\nx-requested-with: x\r\nconnection: close\r\n", gateway.address);
        let request =
            format!("POST /login HTTP/1.1\r\n{head}content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response[9..12].to_owned()
    };
    let waiting = async { tokio::join!(login_from(2), login_from(2), login_from(3)) };
    let over = async {
        auth.reached(3).await;
        assert_eq!(login_from(2).await, "429");
        for (limit, count) in [("logins_in_flight_per_address", 1), ("logins_in_flight", 0)] {
            let name = format!("gateway_limits_exceeded_total{{limit=\"{limit}\"}}");
            assert_eq!(gateway.metric(&name).await, count);
        }
        auth.open();
    };
    let ((a, b, c), ()) = timeout(LONG, async { tokio::join!(waiting, over) }).await.unwrap();
    assert_eq!([&*a, &*b, &*c], ["401"; 3]);
}

#[tokio::test]
async fn logins_are_limited_by_the_address_that_a_trusted_proxy_names() {
    let (auth, origin) = Held::serve().await;
    let gateway = TestGateway::start_with(|settings| {
        settings.auth = AuthServer::Json(origin);
        settings.logins_in_flight_per_address = Some(1);
        settings.trusted_proxies = TrustedProxies::read(&["127.0.0.1".to_owned()]).unwrap();
    });
    let gateway = gateway.await;
    let login_from = async |address: &str| {
        let mut request = login(&gateway, 0);
        request.headers_mut().insert("x-forwarded-for", address.parse().unwrap());
        http_2().request(request).await.unwrap().status()
    };
    let waiting = async { tokio::join!(login_from("192.0.2.1"), login_from("2001:db8::1")) };
    let over = async {
        auth.reached(2).await;
        // A client forges no address, and an address of IPv6 counts with its network.
        assert_eq!(login_from("192.0.2.9, 192.0.2.1").await, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(login_from("2001:db8::2").await, StatusCode::TOO_MANY_REQUESTS);
        auth.open();
    };
    let ((one, two), ()) = timeout(LONG, async { tokio::join!(waiting, over) }).await.unwrap();
    assert_eq!([one, two], [StatusCode::UNAUTHORIZED; 2]);
}

/// Starts a gateway in front of an API that holds all requests.
async fn in_front_of_held(change: impl FnOnce(&mut Settings)) -> (Held, TestGateway) {
    let (api, origin) = Held::serve().await;
    let kit = tower_auth_refresh_testkit::TestServer::start().await.unwrap();
    (api, TestGateway::in_front_of(kit, &origin, change).await)
}

#[tokio::test]
async fn the_requests_of_a_session_are_limited() {
    let (api, gateway) = in_front_of_held(|settings| settings.requests_in_flight_per_session = 20).await;
    let browser = gateway.browser("ada").await;
    let call = |client: &Client<_, Body>| {
        let request = Request::get(format!("http://{}/api/x", gateway.address));
        client.request(request.header("cookie", browser.cookie.clone().unwrap()).body(Body::empty()).unwrap())
    };
    let calls = (0..3).flat_map(|_| {
        let client = http_2();
        (0..100).map(|_| call(&client)).collect::<Vec<_>>()
    });
    let answers = tokio::spawn(join_all(calls.collect::<Vec<_>>()));
    api.reached(20).await;
    // Others aren't concerned.
    let eve = gateway.browser("eve").await;
    let other = eve.spawn_get("/api/x");
    api.reached(21).await;
    let over = browser.get("/api/x").await;
    over.assert_problem(429, "too-many-requests");
    assert!(over.headers.contains_key("retry-after"));
    api.open();
    other.await.unwrap();
    let answers = timeout(LONG, answers).await.unwrap().unwrap();
    let refused = answers.into_iter().filter(|answer| answer.as_ref().unwrap().status() == 429).count();
    assert_eq!(refused, 280);
    assert_ne!(browser.get("/api/x").await.status, 429);
}

#[tokio::test]
async fn the_requests_of_an_address_are_limited() {
    let held = in_front_of_held(|settings| {
        settings.requests_in_flight_per_address = Some(3);
        settings.trusted_proxies = TrustedProxies::read(&["127.0.0.1".to_owned()]).unwrap();
    });
    let (api, gateway) = held.await;
    let (ada, eve) = (gateway.browser("ada").await, gateway.browser("eve").await);
    let call = |browser: &Browser, address: &str| {
        let (browser, request) = (browser.clone(), browser.request(Method::GET, "/api/x"));
        let request = request.header("x-forwarded-for", address).body(Body::empty()).unwrap();
        async move { browser.fetch(request).await }
    };
    let calls = [&ada, &eve, &ada].map(|browser| tokio::spawn(call(browser, "2001:db8::1")));
    api.reached(3).await;
    // Of any session.
    for (browser, address) in [(&ada, "2001:db8::1"), (&eve, "2001:db8::2"), (&eve, "192.0.2.1, 2001:db8::3")] {
        let over = call(browser, address).await;
        over.assert_problem(429, "too-many-requests");
        assert!(over.headers.contains_key("retry-after"));
    }
    // Other addresses aren't concerned.
    let other = tokio::spawn(call(&ada, "192.0.2.1"));
    api.reached(4).await;
    api.open();
    for call in calls.into_iter().chain([other]) {
        assert_ne!(call.await.unwrap().status, 429);
    }
    assert_ne!(call(&ada, "2001:db8::1").await.status, 429);
}

#[tokio::test]
async fn a_login_over_the_limit_of_its_user_signs_the_oldest_session_out() {
    let gateway = TestGateway::start_with(|settings| settings.sessions_per_user = Some(2)).await;
    let eve = gateway.browser("eve").await;
    let state = async |browser: &Browser| browser.get("/session").await.json()["state"].clone();
    let (first, mut second) = (gateway.browser("ada").await, gateway.browser("ada").await);
    // A login that replaces a session takes its place.
    second.login("ada", "correct horse").await;
    assert_eq!(first.get("/api/me").await.status, 200);
    let third = gateway.browser("ada").await;
    first.get("/api/me").await.assert_problem(401, "sign-in-first");
    assert_eq!((state(&second).await, state(&third).await), ("active".into(), "active".into()));
    // A session that is over takes none.
    assert_eq!(third.post("/logout", "").await.status, 204);
    let fourth = gateway.browser("ada").await;
    for browser in [&second, &fourth, &eve] {
        assert_eq!(browser.get("/api/me").await.status, 200);
    }
    // A login that fails signs nothing out.
    gateway.anonymous().login("ada", "wrong").await.assert_problem(401, "wrong-credentials");
    assert_eq!(second.get("/api/me").await.status, 200);
    // A replaced session, one over the limit and a logout: all have been revoked.
    wait_for_counters(&gateway.kit, |counters| counters.logouts == 3).await;
}

#[tokio::test]
async fn the_requests_of_all_sessions_are_limited() {
    let (api, gateway) = in_front_of_held(|settings| settings.requests_in_flight = Some(2)).await;
    let (ada, eve) = (gateway.browser("ada").await, gateway.browser("eve").await);
    let calls = [ada.spawn_get("/api/x"), eve.spawn_get("/api/x")];
    api.reached(2).await;
    let over = eve.post("/api/x", vec![b'x'; 1000]).await;
    over.assert_problem(503, "overloaded");
    assert!(over.headers.contains_key("retry-after"));
    // The gateway's own routes have no limit.
    assert_eq!(ada.get("/session").await.status, 200);
    api.open();
    join_all(calls).await;
    assert_ne!(ada.get("/api/x").await.status, 503);
}

/// A response counts until its end, and a client that disconnects counts no longer.
#[tokio::test]
async fn a_response_counts_until_its_end() {
    let endless = async || Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(endless)), |settings| {
        settings.requests_in_flight_per_session = 1;
    });
    let gateway = gateway.await;
    let browser = gateway.browser("ada").await;
    let get = async || browser.send(browser.request(Method::GET, "/api/x").body(Body::empty()).unwrap()).await;
    let open = get().await;
    assert_eq!((open.status().as_u16(), get().await.status().as_u16()), (200, 429));
    drop(open);
    let free = async {
        while get().await.status() == StatusCode::TOO_MANY_REQUESTS {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, free).await.unwrap();
}

/// Any cookie names a session, and the look-up of one that isn't in memory reads the store.
#[tokio::test]
async fn the_lookups_of_unknown_sessions_are_limited() {
    for of_address in [false, true] {
        let store = Arc::new(FaultyStore::new(MemoryStore::new()).durable());
        let gate = store.hold(Call::Load);
        let mut settings = Settings::new("http://127.0.0.1:9", AuthServer::Json("http://127.0.0.1:9".into())).unwrap();
        if of_address {
            settings.requests_in_flight_per_address = Some(3);
        } else {
            settings.requests_in_flight = Some(3);
        }
        let factory = {
            let store = store.clone();
            move || -> Arc<dyn TokenStore> { store.clone() }
        };
        let address = spawn(Gateway::new(settings).store_factory(factory)).await;
        let mut random = 0_u128;
        let mut browser = move || {
            random += 1;
            let mut browser = Browser::at(address);
            browser.cookie = Some(format!("session={}", URL_SAFE_NO_PAD.encode(random.to_be_bytes())));
            browser
        };
        let (call, poll, logout) = (browser(), browser(), browser());
        let mut held = vec![call.spawn_get("/api/x"), poll.spawn_get("/session")];
        held.push(tokio::spawn(async move { logout.post("/logout", "").await }));
        let reached = async {
            while store.count(Call::Load) < 3 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, reached).await.unwrap();
        // The store is read for a logout that waits no longer, and for a client that has disconnected.
        assert_eq!(held.pop().unwrap().await.unwrap().status, 204);
        disconnect(held.pop().unwrap()).await;
        let (status, problem) = if of_address { (429, "too-many-requests") } else { (503, "overloaded") };
        browser().get("/api/x").await.assert_problem(status, problem);
        browser().get("/session").await.assert_problem(status, problem);
        browser().post("/logout", "").await.assert_problem(status, problem);
        assert_eq!(store.count(Call::Load), 3);
        gate.open();
        held.pop().unwrap().await.unwrap().assert_problem(401, "sign-in-first");
        let free = async {
            loop {
                let polled = browser().get("/session").await;
                if polled.status == StatusCode::OK {
                    break assert_eq!(polled.json()["state"], "signed_out");
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, free).await.unwrap();
    }
}
