//! A gateway in front of the test kit, and browsers as its clients.

use std::fmt::Debug;
use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use gateway::{AuthServer, Gateway, PublicOrigin, Settings};
use http::header::{CONTENT_TYPE, COOKIE, SET_COOKIE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tower_auth_refresh::Origin;
use tower_auth_refresh_testkit::{Counters, TestServer};

/// A gateway in this process.
pub(crate) struct TestGateway {
    pub(crate) kit: TestServer,
    pub(crate) upstream: String,
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
}

impl TestGateway {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let kit = TestServer::start().await.unwrap();
        let upstream = kit.origin();
        Self::in_front_of(kit, &upstream, change).await
    }

    /// Starts a gateway whose browsers connect to `https://app.example.com`.
    pub(crate) async fn start_behind_tls() -> Self {
        let origin = Origin::parse("https://app.example.com").unwrap();
        Self::start_with(|settings| settings.public = PublicOrigin::Named(origin)).await
    }

    /// Starts a gateway in front of another API than the kit's. That API receives all tokens and checks none.
    pub(crate) async fn with_upstream(api: Router, change: impl FnOnce(&mut Settings)) -> Self {
        let upstream = serve(api).await;
        Self::in_front_of(TestServer::start().await.unwrap(), &upstream, change).await
    }

    pub(crate) async fn in_front_of(kit: TestServer, upstream: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::new(upstream, AuthServer::Json(kit.origin())).unwrap();
        settings.admin_listen = Some(([127, 0, 0, 1], 0).into());
        change(&mut settings);
        let listening = Gateway::new(settings).listen().await.unwrap();
        let (address, admin) = (listening.address().unwrap(), listening.admin_address().unwrap());
        tokio::spawn(listening.serve(pending()));
        Self { kit, upstream: upstream.to_owned(), address, admin }
    }

    /// Returns a browser without a session.
    pub(crate) fn anonymous(&self) -> Browser {
        Browser::at(self.address)
    }

    /// Returns a browser in which the user has signed in.
    pub(crate) async fn browser(&self, user: &str) -> Browser {
        let mut browser = self.anonymous();
        let response = browser.login(user, "correct horse").await;
        assert_eq!(response.status, StatusCode::NO_CONTENT, "{response:?}");
        browser
    }

    /// Sends bytes and returns all bytes until the gateway closes the connection: the request should have
    /// `connection: close`.
    pub(crate) async fn send_raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.unwrap();
        String::from_utf8(response).unwrap()
    }

    /// Returns all metrics.
    pub(crate) async fn metrics(&self) -> String {
        String::from_utf8(Browser::at(self.admin).get("/metrics").await.body.into()).unwrap()
    }

    /// Returns the value of a metric, whose labels are part of its name.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let page = self.metrics().await;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is not in:\n{page}")).parse().unwrap()
    }
}

/// Serves an API on a free port and returns its origin.
pub(crate) async fn serve(api: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, api).await });
    origin
}

/// Starts an upstream that reads the head of each request, responds with these bytes, and closes the connection.
pub(crate) async fn upstream_with_raw_response(response: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(response.as_bytes()).await.unwrap();
        }
    });
    origin
}

/// Starts a gateway that runs until the end of the test.
pub(crate) async fn spawn(gateway: Gateway) -> SocketAddr {
    let listening = gateway.listen().await.unwrap();
    let address = listening.address().unwrap();
    tokio::spawn(listening.serve(pending()));
    address
}

/// Waits until the counters of the kit satisfy a condition.
pub(crate) async fn wait_for_counters(kit: &TestServer, condition: impl Fn(&Counters) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition(&kit.counters()) {
        assert!(Instant::now() < deadline, "{:?}", kit.counters());
        sleep(Duration::from_millis(5)).await;
    }
}

/// Cancels a call: its client disconnects.
pub(crate) async fn disconnect<T: Debug>(call: JoinHandle<T>) {
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
}

/// A browser: keeps its cookie and sends `Sec-Fetch-Site`.
#[derive(Clone)]
pub(crate) struct Browser {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    origin: String,
    pub(crate) cookie: Option<String>,
}

/// A response with its whole body.
#[derive(Debug)]
pub(crate) struct BufferedResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Browser {
    pub(crate) fn at(address: SocketAddr) -> Self {
        let config = ClientConfig::builder_with_provider(ring::default_provider().into());
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        Self { origin: format!("http://{address}"), ..Self::over_tls(address, config) }
    }

    /// Returns a browser that speaks HTTP/2 and HTTP/1.1 over TLS.
    pub(crate) fn over_tls(address: SocketAddr, config: ClientConfig) -> Self {
        let tls = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_all_versions().build();
        let client = Client::builder(TokioExecutor::new()).build(tls);
        Self { client, origin: format!("https://{address}"), cookie: None }
    }

    /// Returns the address to which requests are sent.
    pub(crate) fn address(&self) -> SocketAddr {
        self.origin.split_once("://").unwrap().1.parse().unwrap()
    }

    /// Sends the requests from here on to another address: that of a proxy.
    pub(crate) fn connect_to(&mut self, address: SocketAddr) {
        self.origin = format!("http://{address}");
    }

    /// Builds a request as made by a page of this origin.
    pub(crate) fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.origin));
        let request = request.header("sec-fetch-site", "same-origin");
        match &self.cookie {
            Some(cookie) => request.header(COOKIE, cookie),
            None => request,
        }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Incoming> {
        self.client.request(request).await.unwrap()
    }

    pub(crate) async fn fetch(&self, request: Request<Body>) -> BufferedResponse {
        let (head, body) = self.send(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        BufferedResponse { status: head.status, headers: head.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> BufferedResponse {
        self.fetch(self.request(Method::GET, path).body(Body::empty()).unwrap()).await
    }

    /// Makes a GET request in a task.
    pub(crate) fn spawn_get(&self, path: &'static str) -> JoinHandle<BufferedResponse> {
        let browser = self.clone();
        tokio::spawn(async move { browser.get(path).await })
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Body>) -> BufferedResponse {
        self.fetch(self.request(Method::POST, path).body(body.into()).unwrap()).await
    }

    pub(crate) async fn login(&mut self, user: &str, password: &str) -> BufferedResponse {
        let credentials = json!({ "username": user, "password": password }).to_string();
        let request = self.request(Method::POST, "/login").header(CONTENT_TYPE, "application/json");
        let response = self.fetch(request.body(credentials.into()).unwrap()).await;
        self.keep_cookie(&response);
        response
    }

    fn keep_cookie(&mut self, response: &BufferedResponse) {
        if let Some(set) = response.headers.get(SET_COOKIE) {
            let pair = set.to_str().unwrap().split(';').next().unwrap();
            self.cookie = (!pair.ends_with('=')).then(|| pair.to_owned());
        }
    }
}

impl BufferedResponse {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?} is not JSON"))
    }

    /// Asserts that the response is this problem (RFC 9457).
    #[track_caller]
    pub(crate) fn assert_problem(&self, status: u16, name: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.headers[CONTENT_TYPE], "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["type"], format!("/problems/{name}"));
        assert_eq!(problem["status"], status);
        assert!(problem["title"].is_string());
    }

    /// Checks if the response removes the session cookie.
    pub(crate) fn clears_cookie(&self) -> bool {
        let mut set = self.headers.get_all(SET_COOKIE).iter().map(|set| set.to_str().unwrap());
        set.any(|set| set.contains("session=;") && set.contains("Max-Age=0"))
    }
}
