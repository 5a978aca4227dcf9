//! A gateway before the test kit, and browsers before the gateway.

use std::future::pending;
use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use gateway::{AuthServer, Gateway, Settings};
use http::header::{CONTENT_TYPE, COOKIE, SET_COOKIE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower_auth_refresh_testkit::TestServer;

/// A gateway in this process.
pub(crate) struct World {
    pub(crate) kit: TestServer,
    pub(crate) upstream: String,
    pub(crate) address: SocketAddr,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let kit = TestServer::start().await.unwrap();
        let upstream = kit.origin();
        Self::before(kit, &upstream, change)
    }

    /// In front of another API than the kit's. It sees all tokens and checks none.
    pub(crate) async fn with_upstream(api: Router, change: impl FnOnce(&mut Settings)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, api).await });
        Self::before(TestServer::start().await.unwrap(), &upstream, change)
    }

    pub(crate) fn before(kit: TestServer, upstream: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::new(upstream, AuthServer::Json(kit.origin())).unwrap();
        change(&mut settings);
        let address = spawn(Gateway::new(settings));
        Self { kit, upstream: upstream.to_owned(), address }
    }

    pub(crate) fn stranger(&self) -> Browser {
        Browser::at(self.address)
    }

    pub(crate) async fn browser(&self, user: &str) -> Browser {
        let mut browser = self.stranger();
        let answer = browser.login(user, "correct horse").await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{answer:?}");
        browser
    }
}

/// An upstream that reads a request's head and answers with these bytes, whatever was asked; then it hangs up.
pub(crate) async fn upstream_that_says(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    origin
}

impl World {
    /// What is answered to these bytes, until the gateway hangs up: so they should say `connection: close`.
    pub(crate) async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// A metric that has no labels.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let page = self.stranger().get("/metrics").await.body;
        let page = str::from_utf8(&page).unwrap();
        let told = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        told.unwrap_or_else(|| panic!("{name} is not in:\n{page}")).parse().unwrap()
    }
}

/// Starts a gateway that runs as long as the test.
pub(crate) fn spawn(gateway: Gateway) -> SocketAddr {
    let listening = gateway.listen().unwrap();
    let address = listening.address().unwrap();
    tokio::spawn(listening.serve(pending()));
    address
}

/// A browser: it keeps its cookie, and says where its requests come from.
#[derive(Clone)]
pub(crate) struct Browser {
    client: Client<HttpConnector, Body>,
    origin: String,
    pub(crate) cookie: Option<String>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Browser {
    pub(crate) fn at(address: SocketAddr) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { client, origin: format!("http://{address}"), cookie: None }
    }

    /// A request as a page of this origin would make it.
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

    pub(crate) async fn ask(&self, request: Request<Body>) -> Answer {
        let (head, body) = self.send(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(self.request(Method::GET, path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.ask(self.request(Method::POST, path).body(body.into()).unwrap()).await
    }

    pub(crate) async fn login(&mut self, user: &str, password: &str) -> Answer {
        let credentials = json!({ "username": user, "password": password }).to_string();
        let request = self.request(Method::POST, "/login").header(CONTENT_TYPE, "application/json");
        let answer = self.ask(request.body(credentials.into()).unwrap()).await;
        self.keep_cookie(&answer);
        answer
    }

    fn keep_cookie(&mut self, answer: &Answer) {
        if let Some(set) = answer.headers.get(SET_COOKIE) {
            let pair = set.to_str().unwrap().split(';').next().unwrap();
            self.cookie = (!pair.ends_with('=')).then(|| pair.to_owned());
        }
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?} is not JSON"))
    }

    /// That it is this problem, as RFC 9457 has it.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, name: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.headers[CONTENT_TYPE], "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["type"], format!("/problems/{name}"));
        assert_eq!(problem["status"], status);
        assert!(problem["title"].is_string());
    }

    /// Whether it makes the browser forget its session.
    pub(crate) fn clears_cookie(&self) -> bool {
        let mut set = self.headers.get_all(SET_COOKIE).iter().map(|set| set.to_str().unwrap());
        set.any(|set| set.contains("session=;") && set.contains("Max-Age=0"))
    }
}
