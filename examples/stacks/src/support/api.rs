//! [`Api`]: an API over a socket that speaks a stack's protocol and checks the tokens of a [`TestKit`].

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, SEC_WEBSOCKET_KEY};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower::{BoxError, ServiceExt};
use tower_auth_refresh_testkit::TestKit;

use super::world::TOKEN_HEADER;

pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The protocol of an API, beside its tokens.
pub(crate) trait Protocol: Send + Sync + 'static {
    /// Answers a request whose token is accepted.
    fn accept(&self, request: Request<Bytes>) -> impl Future<Output = Response<Body>> + Send;

    /// Answers a request that needs no token.
    fn open(&self, _: &TestKit, _: &Request<Bytes>) -> Option<Response<Body>> {
        None
    }

    /// Writes a 401 as the protocol has it.
    fn refuse(&self, refusal: Response<Body>) -> Response<Body> {
        refusal
    }
}

/// A server that answers each request by a [`Protocol`], if a kit accepts its token.
pub(crate) struct Api {
    address: SocketAddr,
    attempts: Arc<Mutex<Vec<Attempt>>>,
    accepting: JoinHandle<()>,
}

/// A request as it arrived, and the status that it got.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    /// Without those that carry a token.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) token: Option<HeaderValue>,
    pub(crate) status: StatusCode,
}

impl Attempt {
    /// Returns `true` if the other request is this one with another token.
    pub(crate) fn is_repeated_by(&self, other: &Self) -> bool {
        self.token != other.token
            && (&self.method, &self.uri, &self.headers, &self.body)
                == (&other.method, &other.uri, &other.headers, &other.body)
    }

    /// Returns `true` if the text is anywhere in the request.
    pub(crate) fn holds(&self, secret: &str) -> bool {
        let texts = self.headers.values().chain(&self.token).map(HeaderValue::as_bytes);
        let mut texts = texts.chain([self.uri.path().as_bytes(), &self.body]).map(String::from_utf8_lossy);
        texts.any(|text| text.contains(secret)) || self.uri.to_string().contains(secret)
    }
}

impl Api {
    pub(crate) async fn start(kit: &TestKit, protocol: impl Protocol) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let attempts = Arc::default();
        let server = Arc::new(Server { kit: kit.clone(), protocol, attempts: Arc::clone(&attempts) });
        let accepting = tokio::spawn(accept(listener, server));
        Self { address, attempts, accepting }
    }

    /// Returns `http://127.0.0.1:34567`.
    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn attempts(&self) -> Vec<Attempt> {
        self.attempts.lock().unwrap().clone()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Server<P> {
    kit: TestKit,
    protocol: P,
    attempts: Arc<Mutex<Vec<Attempt>>>,
}

async fn accept<P: Protocol>(listener: TcpListener, server: Arc<Server<P>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let server = Arc::clone(&server);
                async move { Ok::<_, Infallible>(server.answer(request).await) }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            // A client that closes its connection is no failure.
            let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

impl<P: Protocol> Server<P> {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let Ok(whole) = body.collect().await else { return status(StatusCode::BAD_REQUEST) };
        let request = Request::from_parts(head, whole.to_bytes());
        if let Some(open) = self.protocol.open(&self.kit, &request) {
            return open;
        }
        let (head, bytes) = request.into_parts();
        let mut headers = head.headers.clone();
        let custom = headers.remove(&TOKEN_HEADER).map(|token| bearer(&token));
        let token = headers.remove(AUTHORIZATION).or(custom);
        // Drawn for each handshake (RFC 6455 §4.1).
        headers.remove(SEC_WEBSOCKET_KEY);

        let mut check = Request::post("/api/check").body(Full::new(bytes.clone())).unwrap();
        if let Some(token) = &token {
            check.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        let verdict = self.kit.clone().oneshot(check).await.unwrap();
        let status = verdict.status();
        let (method, uri) = (head.method.clone(), head.uri.clone());
        let attempt = Attempt { method, uri, headers, body: bytes.clone(), token, status };
        self.attempts.lock().unwrap().push(attempt);

        match status {
            StatusCode::OK => self.protocol.accept(Request::from_parts(head, bytes)).await,
            StatusCode::UNAUTHORIZED => self.protocol.refuse(verdict),
            _ => verdict,
        }
    }
}

fn bearer(token: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(&[b"Bearer ", token.as_bytes()].concat()).unwrap()
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(body(""));
    *response.status_mut() = status;
    response
}

/// Makes the body of a response.
pub(crate) fn body(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(BoxError::from).boxed_unsync()
}

/// Makes a response of JSON.
pub(crate) fn json(content: &Value) -> Response<Body> {
    Response::builder().header(CONTENT_TYPE, "application/json").body(body(content.to_string())).unwrap()
}

/// Answers every request with `{}`.
#[derive(Default)]
pub(crate) struct Json;

impl Protocol for Json {
    async fn accept(&self, _: Request<Bytes>) -> Response<Body> {
        json(&json!({}))
    }
}
