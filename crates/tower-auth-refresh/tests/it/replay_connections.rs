//! Connection reuse over HTTP/1: a 401 is drained, so that the replay can use the same connection.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tower::{Service, ServiceExt};
use tower_auth_refresh::{
    AuthRefresh, AuthRefreshLayer, Origin, RefreshError, RefreshReport, RefreshRequest, ReplayBody, Session,
};
use tower_layer::Layer;

use crate::support::*;

type HttpClient = Client<HttpConnector, ReplayBody<Full<Bytes>>>;

/// The length of a refusal's body, and its framing.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Sized(usize),
    Chunked(usize),
}

impl Refusal {
    fn text(self) -> Bytes {
        let (Self::Sized(length) | Self::Chunked(length)) = self;
        Bytes::from(b"no, ".repeat(length / 4))
    }

    fn body(self) -> UnsyncBoxBody<Bytes, Infallible> {
        let text = self.text();
        match self {
            Self::Sized(_) => Full::new(text).boxed_unsync(),
            Self::Chunked(_) => {
                let half = text.len() / 2;
                let frames = [text.slice(..half), text.slice(half..)].map(|data| Ok(Frame::data(data)));
                StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
            }
        }
    }
}

/// Accepts each token once, and echoes the body. Counts connections and requests.
#[derive(Clone)]
struct Server {
    url: String,
    refusal: Refusal,
    connections: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
}

impl Server {
    async fn start(refusal: Refusal) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server =
            Self { url, refusal, connections: Arc::default(), accepted: Arc::default(), refused: Arc::default() };
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                stream.set_nodelay(true).unwrap();
                let server = accepting.clone();
                let service = service_fn(move |request| server.clone().answer(request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        server
    }

    async fn answer(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        if head.headers[AUTHORIZATION] != format!("Bearer a{}", self.accepted.load(Ordering::SeqCst) + 1) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Ok(response(401).map(|_| self.refusal.body()));
        }
        self.accepted.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(Full::new(body).boxed_unsync()))
    }

    /// A client whose first request is accepted, and whose later requests are each refused once.
    async fn client(
        &self,
        mut refresh: impl FnMut() -> Result<u32, RefreshError> + Clone + Send + Sync + 'static,
    ) -> AuthRefresh<HttpClient, Session> {
        let refresh = tower::service_fn(move |_: RefreshRequest| std::future::ready(refresh().map(pair)));
        let session = Session::builder(refresh).tokens(pair(1)).build().await.unwrap();
        let layer = AuthRefreshLayer::new(session, Origin::parse(&self.url).unwrap());
        layer.layer(Client::builder(TokioExecutor::new()).build_http())
    }
}

fn post(server: &Server, body: Bytes) -> Request<Full<Bytes>> {
    Request::post(format!("{}/notes", server.url)).body(Full::new(body)).unwrap()
}

async fn fifty_refusals(body: &Bytes, refusal: Refusal) {
    let server = Server::start(refusal).await;
    let next = Arc::new(AtomicUsize::new(1));
    let mut client = server.client(move || Ok(u32::try_from(next.fetch_add(1, Ordering::SeqCst) + 1).unwrap())).await;
    for round in 0..=50 {
        let response = client.ready().await.unwrap().call(post(&server, body.clone())).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.extensions().get::<RefreshReport>().is_some(), round > 0);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
    }
    assert_eq!(server.refused.load(Ordering::SeqCst), 50);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1, "{refusal:?} to {} bytes", body.len());
}

const REFUSALS: [Refusal; 4] =
    [Refusal::Sized(300), Refusal::Chunked(300), Refusal::Sized(40 * 1024), Refusal::Chunked(40 * 1024)];

#[tokio::test]
async fn one_connection_serves_fifty_401s_and_their_replays() {
    for refusal in REFUSALS {
        fifty_refusals(&Bytes::new(), refusal).await;
    }
}

#[tokio::test]
async fn one_connection_serves_fifty_401s_to_posts_of_16_kib_and_their_replays() {
    let body = Bytes::from((0..16 * 1024).map(|i: u32| i.to_le_bytes()[0]).collect::<Vec<_>>());
    for refusal in REFUSALS {
        fifty_refusals(&body, refusal).await;
    }
}

#[tokio::test]
async fn a_401_whose_refresh_fails_is_returned_whole_over_the_wire() {
    for refusal in REFUSALS {
        for body in [Bytes::new(), Bytes::from(vec![7; 16 * 1024])] {
            let server = Server::start(refusal).await;
            let mut client = server.client(|| Err(RefreshError::misconfigured("no"))).await;
            let first = client.ready().await.unwrap().call(post(&server, body.clone())).await.unwrap();
            assert_eq!(first.into_body().collect().await.unwrap().to_bytes(), body);
            // The connection is reused although the refresh fails.
            for _ in 0..3 {
                let response = client.ready().await.unwrap().call(post(&server, body.clone())).await.unwrap();
                assert_eq!(response.status(), 401);
                not_refreshed(&response);
                assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), refusal.text());
            }
            assert_eq!(server.refused.load(Ordering::SeqCst), 3);
            assert_eq!(server.connections.load(Ordering::SeqCst), 1);
        }
    }
}
