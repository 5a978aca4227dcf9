//! An HTTP client for the testkit's routes.

#![expect(clippy::unwrap_used, reason = "a test's client may fail the test")]

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Hyper;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tower::BoxError;
use tower_auth_refresh_testkit::{TestServer, TokenPair};

/// The limit for one response.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Client {
    hyper: Hyper<HttpConnector, Full<Bytes>>,
    origin: String,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Starts a server, and makes a client of it.
pub(crate) async fn start() -> (TestServer, Client) {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    (server, client)
}

impl Client {
    pub(crate) fn of(server: &TestServer) -> Self {
        Self { hyper: Hyper::builder(TokioExecutor::new()).build_http(), origin: server.origin() }
    }

    pub(crate) fn http2(server: &TestServer) -> Self {
        let hyper = Hyper::builder(TokioExecutor::new()).http2_only(true).build_http();
        Self { hyper, origin: server.origin() }
    }

    /// Returns the response with its body unread.
    pub(crate) async fn open(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, BoxError> {
        Ok(tokio::time::timeout(TIMEOUT, self.hyper.request(request)).await??)
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply, BoxError> {
        let (head, body) = self.open(request).await?.into_parts();
        let body = tokio::time::timeout(TIMEOUT, body.collect()).await??.to_bytes();
        Ok(Reply { status: head.status, headers: head.headers, body })
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Result<Reply, BoxError> {
        self.send(self.post_request(path, &body)).await
    }

    fn post_request(&self, path: &str, body: &Value) -> Request<Full<Bytes>> {
        Request::post(format!("{}{path}", self.origin)).body(Full::from(body.to_string())).unwrap()
    }

    pub(crate) async fn login(&self, user: &str) -> TokenPair {
        let reply = self.post("/auth/login", json!({ "username": user, "password": "open sesame" })).await.unwrap();
        assert_eq!(reply.status, 200);
        serde_json::from_slice(&reply.body).unwrap()
    }

    pub(crate) async fn refresh(&self, refresh_token: &str) -> Result<Reply, BoxError> {
        self.send(self.refresh_request(refresh_token)).await
    }

    /// Starts a refresh in a new task.
    pub(crate) fn spawn_refresh(&self, refresh_token: &str) -> JoinHandle<Result<Reply, BoxError>> {
        let (client, token) = (self.clone(), refresh_token.to_owned());
        tokio::spawn(async move { client.refresh(&token).await })
    }

    pub(crate) fn refresh_request(&self, refresh_token: &str) -> Request<Full<Bytes>> {
        self.post_request("/auth/refresh", &json!({ "refresh_token": refresh_token }))
    }

    pub(crate) fn request(&self, path: &str, access_token: &str) -> Request<Full<Bytes>> {
        let builder = Request::get(format!("{}{path}", self.origin));
        builder.header("authorization", format!("Bearer {access_token}")).body(Full::default()).unwrap()
    }

    pub(crate) async fn get(&self, path: &str, access_token: &str) -> Result<Reply, BoxError> {
        self.send(self.request(path, access_token)).await
    }
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn tokens(&self) -> TokenPair {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn challenge(&self) -> Option<&str> {
        self.headers.get("www-authenticate").map(|value| value.to_str().unwrap())
    }
}
