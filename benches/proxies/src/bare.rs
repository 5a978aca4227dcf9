//! The bare proxy: a hyper server and hyper-util's client, with one header set and no check at all.

use std::env;
use std::net::SocketAddr;

use hyper::body::Incoming;
use hyper::header::{HOST, HeaderName, HeaderValue};
use hyper::http::uri::{Authority, Scheme};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Serves until the process is killed. The arguments are the address to listen on, and that of the upstream.
///
/// # Panics
///
/// If an argument is invalid, or the address can't be bound.
#[tokio::main]
pub async fn serve() {
    let addresses: Vec<SocketAddr> =
        env::args().skip(1).map(|address| address.parse().expect("arguments are addresses")).collect();
    let [listen, upstream] = addresses[..] else { panic!("two arguments are needed") };
    let upstream: Authority = upstream.to_string().parse().expect("an address is an authority");
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(connector);
    let listener = TcpListener::bind(listen).await.expect("the address is free");
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let (client, upstream) = (client.clone(), upstream.clone());
        let forwarded_for = HeaderValue::from_str(&peer.ip().to_string()).expect("an address is visible ASCII");
        let service = service_fn(move |mut request: Request<Incoming>| {
            let mut uri = std::mem::take(request.uri_mut()).into_parts();
            (uri.scheme, uri.authority) = (Some(Scheme::HTTP), Some(upstream.clone()));
            *request.uri_mut() = Uri::from_parts(uri).expect("a request has a path");
            request.headers_mut().remove(HOST);
            request.headers_mut().insert(FORWARDED_FOR, forwarded_for.clone());
            client.request(request)
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}
