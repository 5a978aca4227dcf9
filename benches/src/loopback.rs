//! Throughput over real connections: a hyper server and a hyper-util client on loopback.

use std::convert::Infallible;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt};
use tower_auth_refresh::{AuthRefreshLayer, Origin, Session};

use crate::stack::TOKEN;

/// Requests in flight at any moment.
pub const IN_FLIGHT: usize = 64;

/// The HTTP version of the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1, with keep-alive.
    H1,
    /// HTTP/2.
    H2,
}

/// A server that reads each request to its end and responds with a few bytes.
pub struct Server {
    address: SocketAddr,
    /// The number of requests still to refuse as expired.
    refuse: Arc<AtomicUsize>,
}

impl Server {
    /// Starts a server that runs until the runtime is dropped.
    ///
    /// # Panics
    ///
    /// If no port is free.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("free port");
        let address = listener.local_addr().expect("bound listener");
        let refuse = Arc::new(AtomicUsize::new(0));
        tokio::spawn(accept(listener, Arc::clone(&refuse)));
        Self { address, refuse }
    }

    /// Refuses the next request as expired, after reading its body.
    pub fn refuse_next(&self) {
        self.refuse.store(1, Ordering::SeqCst);
    }

    /// Returns the URL of `path`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Returns the middleware's layer for this server.
    ///
    /// # Panics
    ///
    /// Never.
    #[must_use]
    pub fn layer(&self, session: &Session) -> AuthRefreshLayer {
        AuthRefreshLayer::new(session.clone(), Origin::parse(&self.url("")).expect("loopback origin"))
    }

    /// Returns a bare client and a client with the middleware.
    ///
    /// The bare client sets a constant token header, so that both clients send the same bytes.
    ///
    /// # Panics
    ///
    /// Never.
    #[must_use]
    pub fn clients(&self, http: Http, session: &Session) -> (impl Get + use<>, impl Get + use<>) {
        let mut token = HeaderValue::try_from(format!("Bearer {TOKEN}")).expect("valid header value");
        token.set_sensitive(true);
        let set_token = move |mut request: Request<Full<Bytes>>| {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
            request
        };
        let bare = ServiceBuilder::new().map_request(set_token).service(client(http));
        (bare, self.layer(session).layer(client(http)))
    }

    /// Sends `requests` GET requests, `IN_FLIGHT` at a time, and returns the elapsed time.
    ///
    /// # Panics
    ///
    /// If a request fails.
    pub async fn get(&self, client: &impl Get, requests: usize) -> Duration {
        let url = self.url("/");
        let start = Instant::now();
        let calls = (0..IN_FLIGHT).map(|_| {
            let (mut client, url) = (client.clone(), url.clone());
            tokio::spawn(async move {
                for _ in 0..requests / IN_FLIGHT {
                    let request = Request::get(&url).body(Full::default()).expect("valid request");
                    let response = client.ready().await.expect("ready").call(request).await.expect("response");
                    assert_eq!(response.status(), StatusCode::OK);
                    response.into_body().collect().await.expect("complete body");
                }
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.expect("no caller panics");
        }
        start.elapsed()
    }
}

/// A client for GET requests.
pub trait Get:
    Service<Request<Full<Bytes>>, Response = Response<Incoming>, Error: fmt::Debug, Future: Send> + Clone + Send + 'static
{
}

impl<S> Get for S where
    S: Service<Request<Full<Bytes>>, Response = Response<Incoming>, Error: fmt::Debug, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// Returns a client for one HTTP version.
#[must_use]
pub fn client<B>(http: Http) -> Client<HttpConnector, B>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).http2_only(http == Http::H2).build(connector)
}

async fn accept(listener: TcpListener, refuse: Arc<AtomicUsize>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let refuse = Arc::clone(&refuse);
        let service = service_fn(move |request: Request<Incoming>| {
            let refuse = Arc::clone(&refuse);
            async move {
                let mut body = request.into_body();
                while let Some(Ok(_)) = body.frame().await {}
                let mut response = Response::new(Full::new(Bytes::from_static(b"hello")));
                if refuse.load(Ordering::SeqCst) > 0 && refuse.swap(0, Ordering::SeqCst) > 0 {
                    *response.status_mut() = StatusCode::UNAUTHORIZED;
                }
                Ok::<_, Infallible>(response)
            }
        });
        tokio::spawn(async move {
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
