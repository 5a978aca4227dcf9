//! Sessions, and a server that answers as a test says and records its requests.

use std::convert::Infallible;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Collected, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower_auth_refresh_reqwest::{
    AccessToken, ApiClient, AuthRefreshLayer, JsonRefresh, Origin, RefreshReport, RefreshToken, ReqwestService,
    Session, Tokens, reqwest,
};
use tower_auth_refresh_testkit::TestServer;

/// A session whose first token is `a1`, and the next `a2`, `a3` and so on.
pub(crate) struct Numbered {
    pub(crate) session: Session,
    refreshes: Arc<AtomicU32>,
}

impl Numbered {
    pub(crate) async fn new() -> Self {
        let refreshes = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&refreshes);
        let refresh = tower::service_fn(move |_| {
            let generation = counted.fetch_add(1, Ordering::SeqCst) + 2;
            async move { Ok::<_, tower_auth_refresh_reqwest::tower_auth_refresh::RefreshError>(tokens(generation)) }
        });
        let session = Session::builder(refresh).tokens(tokens(1)).build().await.unwrap();
        Self { session, refreshes }
    }

    pub(crate) fn refreshes(&self) -> u32 {
        self.refreshes.load(Ordering::SeqCst)
    }
}

fn tokens(generation: u32) -> Tokens {
    let access = AccessToken::new(format!("a{generation}")).unwrap();
    Tokens::new(access, RefreshToken::new(format!("r{generation}")).unwrap())
}

/// A client of reqwest's without proxies and root certificates, which take a tenth of a second to load.
pub(crate) fn builder() -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder().no_proxy();
    #[cfg(feature = "default")]
    let builder = builder.tls_certs_only([]);
    builder
}

pub(crate) fn service() -> ReqwestService {
    ReqwestService::new(builder()).unwrap()
}

pub(crate) fn origin(url: &str) -> Origin {
    Origin::parse(url).unwrap()
}

/// A client of this server, with the session.
pub(crate) fn client_of(server: &Server, session: &Session) -> ApiClient {
    ApiClient::new(session.clone(), origin(&server.origin()), service())
}

/// A client of this server, whose token is in the header `x-api-token`.
pub(crate) fn client_with_own_header(server: &Server, session: &Session) -> ApiClient {
    let layer =
        AuthRefreshLayer::per_request(origin(&server.origin())).header("x-api-token".parse().unwrap()).without_scheme();
    ApiClient::from_layer(layer, service()).with_session(session.clone())
}

/// A user of the kit who is signed in, by calls over the client's own service.
pub(crate) async fn signed_in(server: &TestServer, user: &str, service: &ReqwestService) -> Session {
    let refresh = JsonRefresh::new(service.auth_client(), &server.url("/auth/refresh")).unwrap();
    let tokens = server.sign_in(user).try_into().unwrap();
    Session::builder(refresh).tokens(tokens).build().await.unwrap()
}

/// A client of the kit, over HTTP/2 or HTTP/1, and its session.
pub(crate) async fn kit_client(server: &TestServer, builder: reqwest::ClientBuilder) -> (ApiClient, Session) {
    let service = ReqwestService::new(builder).unwrap();
    let session = signed_in(server, "ada", &service).await;
    (ApiClient::new(session.clone(), origin(&server.origin()), service), session)
}

pub(crate) fn report(response: &reqwest::Response) -> Option<&RefreshReport> {
    response.extensions().get()
}

pub(crate) fn is_replayed(response: &reqwest::Response) -> bool {
    matches!(report(response), Some(RefreshReport::Replayed))
}

/// The messages of an error and of its sources.
pub(crate) fn chain(error: &dyn Error) -> Vec<String> {
    let mut chain = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        chain.push(error.to_string());
        source = error.source();
    }
    chain
}

/// A request, as a [`Server`] saw it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn token(&self) -> Option<&str> {
        self.header("authorization")
    }

    /// Returns `true` if the request carries the token `a1`.
    pub(crate) fn is_expired(&self) -> bool {
        self.token() == Some("Bearer a1") || self.header("x-api-token") == Some("a1")
    }

    pub(crate) fn without_token(mut self) -> Self {
        self.headers.remove(AUTHORIZATION);
        self
    }
}

pub(crate) type Answer = Response<Full<Bytes>>;

pub(crate) fn status(code: u16) -> Answer {
    Response::builder().status(code).body(Full::default()).unwrap()
}

pub(crate) fn expired() -> Answer {
    let challenge = "Bearer error=\"invalid_token\"";
    Response::builder().status(401).header("www-authenticate", challenge).body(Full::from("expired")).unwrap()
}

pub(crate) fn redirect(code: u16, location: &str) -> Answer {
    Response::builder().status(code).header("location", location).body(Full::default()).unwrap()
}

/// A server on loopback that answers as a test says and records its requests.
pub(crate) struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    accepting: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let (answer, recorded) = (Arc::new(answer), Arc::clone(&seen));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&recorded));
                let service = service_fn(move |request| {
                    let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                    async move {
                        let request = read(request).await;
                        let response = answer(&request);
                        seen.lock().unwrap().push(request);
                        Ok::<_, Infallible>(response)
                    }
                });
                tokio::spawn(async move {
                    // The client may close the connection at any moment.
                    let _ =
                        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, seen, accepting }
    }

    /// A server that answers 401 to the token `a1`, and then as `answer` says.
    pub(crate) async fn expiring(answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        Self::start(move |seen| if seen.is_expired() { expired() } else { answer(seen) }).await
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Returns the requests since the last call.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn read(request: Request<Incoming>) -> Seen {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
    Seen { method: head.method, path: head.uri.path().to_owned(), headers: head.headers, body }
}
