//! Accepts connections, and stops in good order.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

/// How every HTTP/2 connection begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How many may wait to be accepted. The system may allow fewer.
const BACKLOG: u32 = 1024;

/// How long a client may have to wait that has sent the first half of a greeting and then the other.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Who is at the other end of a connection; in each request's extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Opens the socket.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Else a restart would wait for connections of the process before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `shutdown`, which says by when to be done; then waits for the requests under way. `patience`: how long a
/// client may take to send the head of a request, or to take something of an answer.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    patience: Duration,
    shutdown: impl Future<Output = Instant>,
) -> Instant {
    let mut shutdown = pin!(shutdown);
    let (stop, stopping) = watch::channel(());
    let graceful = GracefulShutdown::new();
    // Said once, not twenty times a second.
    let mut said = false;
    let deadline = loop {
        tokio::select! {
            biased;
            deadline = &mut shutdown => break deadline,
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    said = false;
                    let (router, watcher, stopping) = (router.clone(), graceful.watcher(), stopping.clone());
                    tokio::spawn(async move {
                        if is_greeted(&stream, patience, stopping).await {
                            converse(stream, Peer(address), router, patience, watcher).await;
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: give the others time to return some.
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%error, "a connection could not be accepted");
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            },
        }
    };
    // Whoever connects from now on is refused, and tries another instance.
    drop((listener, stop));
    tracing::info!("stopping");
    if timeout_at(deadline, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were cut off: they took too long");
    }
    deadline
}

/// Serves one connection, over HTTP/1 or HTTP/2.
async fn converse(stream: TcpStream, peer: Peer, router: Router, patience: Duration, watcher: Watcher) {
    // An answer of two small writes must not wait for the client's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(patience));
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(patience);
    http.http2().timer(TokioTimer::new()).keep_alive_interval(patience).keep_alive_timeout(patience);
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.clone().oneshot(request)
    });
    // It fails when the client goes away, or talks nonsense: neither is news.
    let _ = watcher.watch(http.serve_connection(TokioIo::new(Box::pin(stream)), service)).await;
}

/// Whether the client begins to speak: in time, and before the gateway stops.
async fn is_greeted(stream: &TcpStream, patience: Duration, mut stopping: watch::Receiver<()>) -> bool {
    tokio::select! {
        // Whoever has spoken by then is answered.
        biased;
        greeted = timeout(patience, greeting(stream)) => matches!(greeted, Ok(Ok(()))),
        // Its sender is dropped.
        _ = stopping.changed() => false,
    }
}

/// Waits until it can be told which protocol the client speaks: what tells them apart has no time-out of its own.
async fn greeting(stream: &TcpStream) -> io::Result<()> {
    let mut seen = [0; PREFACE.len()];
    // Nothing tells when more is there than was seen before: it is looked for ever less often.
    let mut pause = Duration::from_millis(5);
    loop {
        let length = stream.peek(&mut seen).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if length == PREFACE.len() || !PREFACE.starts_with(&seen[..length]) {
            return Ok(());
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
