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
const IN_FLIGHT: usize = 64;

/// The version that connections speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1, with keep-alive.
    H1,
    /// HTTP/2.
    H2,
}

/// A server that reads each request to its end and answers a few bytes.
pub struct Server {
    address: SocketAddr,
    /// So many requests are to be refused as expired.
    refuse: Arc<AtomicUsize>,
}

impl Server {
    /// Serves from now on, for as long as the runtime lives.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let refuse = Arc::new(AtomicUsize::new(0));
        tokio::spawn(accept(listener, Arc::clone(&refuse)));
        Self { address, refuse }
    }

    /// Refuses the next request as expired, once its body has been read.
    pub fn refuse_next(&self) {
        self.refuse.store(1, Ordering::SeqCst);
    }

    /// The address of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A layer for this server.
    ///
    /// # Panics
    ///
    /// Never.
    #[must_use]
    pub fn layer(&self, session: &Session) -> AuthRefreshLayer {
        AuthRefreshLayer::new(session.clone(), Origin::parse(&self.url("")).expect("loopback"))
    }

    /// A bare client, whose caller writes the token's header by hand, or the same bytes would not cross the wire; and
    /// one with the middleware over it.
    ///
    /// # Panics
    ///
    /// Never.
    #[must_use]
    pub fn clients(&self, http: Http, session: &Session) -> (impl Get + use<>, impl Get + use<>) {
        let mut token = HeaderValue::try_from(format!("Bearer {TOKEN}")).expect("a token");
        token.set_sensitive(true);
        let by_hand = move |mut request: Request<Full<Bytes>>| {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
            request
        };
        let bare = ServiceBuilder::new().map_request(by_hand).service(client(http));
        (bare, self.layer(session).layer(client(http)))
    }

    /// The time of so many GETs, `IN_FLIGHT` at a time.
    ///
    /// # Panics
    ///
    /// If one fails.
    pub async fn get(&self, client: &impl Get, requests: usize) -> Duration {
        let url = self.url("/");
        let begun = Instant::now();
        let calls = (0..IN_FLIGHT).map(|_| {
            let (mut client, url) = (client.clone(), url.clone());
            tokio::spawn(async move {
                for _ in 0..requests / IN_FLIGHT {
                    let request = Request::get(&url).body(Full::default()).expect("valid");
                    let response = client.ready().await.expect("ready").call(request).await.expect("answered");
                    assert_eq!(response.status(), StatusCode::OK);
                    response.into_body().collect().await.expect("a whole answer");
                }
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.expect("no caller panics");
        }
        begun.elapsed()
    }
}

/// A client for GETs.
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

/// A client that speaks this version.
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
