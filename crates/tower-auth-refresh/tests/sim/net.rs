//! The simulated network for `hyper`: a connector for its client, and an accept loop for its server.

use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tower::Service;
use turmoil::net::{TcpListener, TcpStream};

/// Opens simulated TCP connections.
#[derive(Clone)]
pub struct Connector;

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().to_owned();
            Ok(Stream(TokioIo::new(TcpStream::connect((host, 80)).await?)))
        })
    }
}

pub struct Stream(TokioIo<TcpStream>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The interval and the time-out of HTTP/2 pings. Without them, a lost message would go unnoticed.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A client of HTTP/1 or HTTP/2.
pub fn client<B>(http2: bool) -> Client<Connector, B>
where
    B: Body<Data: Send> + Send + Unpin + 'static,
{
    let mut builder = Client::builder(TokioExecutor::new());
    if http2 {
        builder
            .timer(TokioTimer::new())
            .http2_only(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .http2_keep_alive_timeout(KEEP_ALIVE)
            .http2_keep_alive_while_idle(true);
    }
    builder.build(Connector)
}

/// Serves HTTP/1 or HTTP/2 on port 80 until the host crashes.
pub async fn serve<F>(http2: bool, answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static) -> turmoil::Result
where
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind(("0.0.0.0", 80)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let answer = answer.clone();
        let service = hyper::service::service_fn(move |request| {
            let response = answer(request);
            async move { Ok::<_, std::convert::Infallible>(response.await) }
        });
        // The result is ignored: connections are expected to break.
        let stream = TokioIo::new(stream);
        if http2 {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(stream, service));
        } else {
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
        }
    }
}

/// Never resolves: for a host that is about to crash, or that runs until the simulation ends.
pub async fn forever<T>() -> T {
    pending().await
}
