//! Accepts connections and shuts down gracefully.

mod activity;
mod exchange;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_io_timeout::TimeoutStream;

use self::activity::Activity;
use self::socket::{Socket, linger};
use crate::config::Settings;
use crate::routes::Router;

/// The connection preface of HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The number of connections that may wait to be accepted. The operating system may allow fewer.
const BACKLOG: u32 = 1024;

/// The longest interval between two peeks: the delay for a client that sends the preface in two parts.
const MAX_PEEK_INTERVAL: Duration = Duration::from_millis(500);

/// The address of a connection's client, in each request's extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Opens the socket.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Otherwise a restart can't bind until the connections of the previous process are gone.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The limits of each connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The longest time in which a client sends the head of a request, or reads nothing of a response.
    client_timeout: Duration,
    /// The most that is read after the last response.
    body_limit: u64,
}

impl From<&Settings> for Limits {
    fn from(settings: &Settings) -> Self {
        Self { client_timeout: settings.client_timeout, body_limit: settings.body_limit }
    }
}

/// The protocol of a connection, known from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

/// Serves until `shutdown` returns a deadline, then waits until that deadline for the open requests.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = Instant>,
) -> Instant {
    let mut shutdown = pin!(shutdown);
    let (stop, stopping) = watch::channel(());
    let graceful = GracefulShutdown::new();
    // Failures are logged once, not twenty times a second.
    let mut logged = false;
    let deadline = loop {
        tokio::select! {
            biased;
            deadline = &mut shutdown => break deadline,
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    logged = false;
                    let (router, watcher, stopping) = (router.clone(), graceful.watcher(), stopping.clone());
                    tokio::spawn(async move {
                        if let Some(protocol) = first_bytes(&stream, limits.client_timeout, stopping).await {
                            serve_connection(stream, protocol, Peer(address), router, limits, watcher).await;
                        }
                    });
                }
                Err(error) => {
                    // Most likely out of file descriptors: wait for other connections to close.
                    if !std::mem::replace(&mut logged, true) {
                        tracing::warn!(%error, "accepting a connection failed");
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            },
        }
    };
    // New connections are refused from here on: their clients can try another instance.
    drop((listener, stop));
    tracing::info!("shutting down");
    if timeout_at(deadline, graceful.shutdown()).await.is_err() {
        tracing::warn!("shutdown timed out: requests were cut off");
    }
    deadline
}

/// Serves one connection, over HTTP/1 or HTTP/2.
async fn serve_connection(
    stream: TcpStream,
    protocol: Protocol,
    peer: Peer,
    router: Router,
    limits: Limits,
    watcher: Watcher,
) {
    let timeout = limits.client_timeout;
    // With Nagle's algorithm, a response of two small writes waits for the client's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(timeout));
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(timeout);
    http.http2().timer(TokioTimer::new()).keep_alive_interval(timeout).keep_alive_timeout(timeout);
    let activity = Arc::new(Activity::new(protocol));
    let (socket, given_back) = Socket::new(Box::pin(stream), activity.clone());
    let service = {
        let activity = activity.clone();
        service_fn(move |request| exchange::answer(router.clone(), peer, activity.clone(), request))
    };
    // An error means that the client has disconnected or sent invalid HTTP: not worth a line in the log.
    let _ = watcher.watch(http.serve_connection(TokioIo::new(socket), service)).await;
    let Ok(stream) = given_back.await else { return };
    if activity.must_reset() {
        // A reset is the only sign that a response without framing is not complete.
        let _ = SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO));
    } else if activity.client_sends_on() {
        linger(stream, timeout, limits.body_limit).await;
    }
}

/// Waits for the first bytes of a connection. Returns `None` after the time-out, or when shutdown begins first.
async fn first_bytes(
    stream: &TcpStream,
    client_timeout: Duration,
    mut stopping: watch::Receiver<()>,
) -> Option<Protocol> {
    tokio::select! {
        // A request that has arrived before the shutdown is served.
        biased;
        read = timeout(client_timeout, peek_protocol(stream)) => read.ok()?.ok(),
        // The sender has been dropped.
        _ = stopping.changed() => None,
    }
}

/// Waits for enough bytes to tell HTTP/1 from HTTP/2. hyper's own detection has no time-out.
async fn peek_protocol(stream: &TcpStream) -> io::Result<Protocol> {
    let mut seen = [0; PREFACE.len()];
    // A peeked socket stays readable, so no event signals more bytes: poll, at growing intervals.
    let mut interval = Duration::from_millis(5);
    loop {
        let length = stream.peek(&mut seen).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !PREFACE.starts_with(&seen[..length]) {
            return Ok(Protocol::Http1);
        }
        if length == PREFACE.len() {
            return Ok(Protocol::Http2);
        }
        sleep(interval).await;
        interval = (interval * 2).min(MAX_PEEK_INTERVAL);
    }
}
