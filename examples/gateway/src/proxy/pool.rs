//! [`Pool`]: the connections to the one upstream.
//!
//! hyper-util's client keeps connections to any number of servers. For each request it hashes the name of the server, and
//! starts a task that waits until the connection can be kept. Here a connection comes back with the end of the response,
//! and is asked whether it is ready when it is taken again.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};
use std::time::Duration;

use http::header::HOST;
use http::{Extensions, Request, Response, Uri};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::{Connection, HttpInfo};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Notify;
use tokio::time::sleep;
use tower::{BoxError, Service, ServiceExt};

use super::early_answer::WritesFailed;
use crate::server::BUFFER;

/// The longest time for which a connection is kept without a request, in ticks.
///
/// It is shorter than the keep-alive of most servers: a POST fails if the server closes its connection at that moment.
const MAX_IDLE: u32 = 10;
const TICK: Duration = Duration::from_secs(2);

/// The connections to the upstream. Those without a request are kept for the next.
pub(super) struct Pool<C, B> {
    connector: C,
    upstream: Uri,
    kept: Arc<Kept<B>>,
    sweeper: Once,
}

/// The connections without a request.
struct Kept<B> {
    connections: Mutex<Connections<B>>,
    /// Tells a request that waits for its own connection that another one is free.
    released: Notify,
}

/// Connections with the tick at which they were used last.
struct Connections<B> {
    /// In the order in which they were used. The last is the next, so that few are kept.
    http1: Vec<(Http1<B>, u32)>,
    /// The one that all requests share, if the upstream has negotiated HTTP/2.
    http2: Option<(Http2<B>, u32)>,
    tick: u32,
}

type Http1<B> = Connected<http1::SendRequest<B>>;
type Http2<B> = Connected<http2::SendRequest<B>>;

/// An open connection, on which hyper sends requests.
#[derive(Clone)]
struct Connected<S> {
    sender: S,
    address: Option<SocketAddr>,
    writes_failed: Arc<AtomicBool>,
    /// The connection has been without a request, during which the upstream may have closed it.
    is_kept: bool,
}

/// A connection for one request.
enum Taken<B> {
    Http1(Http1<B>),
    Http2(Http2<B>),
}

/// A connection whose response is being read. It is kept for other requests once this is dropped, or closed if hyper can't
/// use it again: because the response has not been read to its end, for instance.
pub(super) struct Lease<B> {
    address: Option<SocketAddr>,
    /// `None` if the connection is shared, or is not to be kept.
    connection: Option<Http1<B>>,
    kept: Arc<Kept<B>>,
}

/// A request without a response.
#[derive(Debug)]
pub(super) enum Failed {
    /// There is no connection.
    Connect(BoxError),
    /// The connection has failed.
    Sent { error: hyper::Error, was_kept: bool },
}

impl<C, B> Pool<C, B>
where
    C: Service<Uri, Response: Connection + Read + Write + Send + Unpin, Error: Into<BoxError>, Future: Send>,
    C: Clone + Send + 'static,
    C::Response: 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    /// Creates a pool of connections to the origin of `upstream`.
    pub(super) fn new(connector: C, upstream: Uri) -> Self {
        let connections = Mutex::new(Connections { http1: Vec::new(), http2: None, tick: 0 });
        let kept = Arc::new(Kept { connections, released: Notify::new() });
        Self { connector, upstream, kept, sweeper: Once::new() }
    }

    /// Sends a request. The lease is to be dropped with the response's body.
    ///
    /// A request that has not been sent, since its connection was closed just before, is sent on another connection.
    pub(super) async fn send(&self, mut request: Request<B>) -> Result<(Response<Incoming>, Lease<B>), Failed> {
        loop {
            let taken = match self.kept.take() {
                Some(taken) => taken,
                // In a box, since few requests need room for it.
                None => Box::pin(self.open()).await.map_err(Failed::Connect)?,
            };
            let (mut unsent, was_kept) = match taken {
                Taken::Http1(mut connection) => {
                    set_path(&mut request);
                    match connection.sender.try_send_request(request).await {
                        Ok(response) => return Ok((response, self.lease(connection.address, Some(connection)))),
                        Err(unsent) => (unsent, connection.is_kept),
                    }
                }
                Taken::Http2(mut connection) => {
                    self.set_authority(&mut request);
                    match connection.sender.try_send_request(request).await {
                        Ok(response) => return Ok((response, self.lease(connection.address, None))),
                        Err(unsent) => (unsent, connection.is_kept),
                    }
                }
            };
            match unsent.take_message() {
                Some(message) if was_kept => request = message,
                _ => return Err(Failed::Sent { error: unsent.into_error(), was_kept }),
            }
        }
    }

    fn lease(&self, address: Option<SocketAddr>, connection: Option<Http1<B>>) -> Lease<B> {
        Lease { address, connection, kept: Arc::clone(&self.kept) }
    }

    /// Sets the parts of a request that are its `Host` over HTTP/1.
    fn set_authority(&self, request: &mut Request<B>) {
        let mut uri = request.uri().clone().into_parts();
        (uri.scheme, uri.authority) = (self.upstream.scheme().cloned(), self.upstream.authority().cloned());
        if let Ok(uri) = Uri::from_parts(uri) {
            *request.uri_mut() = uri;
        }
        request.headers_mut().remove(HOST);
    }

    /// Opens a connection, or returns one that has become free in the meantime.
    async fn open(&self) -> Result<Taken<B>, BoxError> {
        self.sweeper.call_once(|| drop(tokio::spawn(sweep(Arc::downgrade(&self.kept)))));
        let mut opening = Box::pin(open(self.connector.clone(), self.upstream.clone()));
        loop {
            tokio::select! {
                biased;
                opened = &mut opening => {
                    let opened = opened?;
                    if let Taken::Http2(connection) = &opened {
                        self.kept.share(connection);
                    }
                    return Ok(opened);
                }
                () = self.kept.released.notified() => if let Some(taken) = self.kept.take() {
                    let kept = Arc::clone(&self.kept);
                    tokio::spawn(async move {
                        match opening.await {
                            Ok(Taken::Http1(connection)) => kept.put(connection),
                            Ok(Taken::Http2(connection)) => kept.share(&connection),
                            // The next request says so, if need be.
                            Err(_) => {}
                        }
                    });
                    return Ok(taken);
                },
            }
        }
    }
}

/// Opens a connection.
async fn open<C, B>(connector: C, upstream: Uri) -> Result<Taken<B>, BoxError>
where
    C: Service<Uri, Response: Connection + Read + Write + Send + Unpin + 'static, Error: Into<BoxError>>,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    let io = connector.oneshot(upstream).await.map_err(Into::into)?;
    let (connected, mut about) = (io.connected(), Extensions::new());
    connected.get_extras(&mut about);
    let address = about.get().map(HttpInfo::remote_addr);
    let WritesFailed(writes_failed) = about.remove().unwrap_or_default();
    // The errors of the connections are those of their requests.
    Ok(if connected.is_negotiated_h2() {
        let (sender, connection) =
            http2::Builder::new(TokioExecutor::new()).timer(TokioTimer::new()).handshake(io).await?;
        tokio::spawn(connection);
        Taken::Http2(Connected { sender, address, writes_failed, is_kept: false })
    } else {
        let (sender, connection) = http1::Builder::new().max_buf_size(BUFFER).handshake(io).await?;
        tokio::spawn(connection);
        Taken::Http1(Connected { sender, address, writes_failed, is_kept: false })
    })
}

/// Sets the target that HTTP/1 has on its wire.
fn set_path<B>(request: &mut Request<B>) {
    if let Some(path) = request.uri().path_and_query().cloned() {
        *request.uri_mut() = path.into();
    }
}

impl<B> Kept<B> {
    fn connections(&self) -> MutexGuard<'_, Connections<B>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a connection that is ready for a request.
    fn take(&self) -> Option<Taken<B>> {
        let mut connections = self.connections();
        let tick = connections.tick;
        if let Some((connection, used)) =
            connections.http2.as_mut().filter(|(connection, _)| connection.sender.is_ready())
        {
            *used = tick;
            return Some(Taken::Http2(connection.clone()));
        }
        let http1 = &mut connections.http1;
        loop {
            // Others are still busy: with the rest of an upload, or with the last steps of their response.
            let next =
                http1.iter().rposition(|(connection, _)| connection.sender.is_ready() || connection.is_over())?;
            let (connection, _) = http1.remove(next);
            if !connection.is_over() {
                return Some(Taken::Http1(connection));
            }
        }
    }

    /// Keeps a connection for other requests.
    fn put(&self, mut connection: Http1<B>) {
        if connection.is_over() {
            return;
        }
        connection.is_kept = true;
        let mut connections = self.connections();
        let tick = connections.tick;
        connections.http1.push((connection, tick));
        drop(connections);
        self.released.notify_one();
    }

    /// Keeps a connection of HTTP/2, unless there is one.
    fn share(&self, connection: &Http2<B>) {
        let mut connections = self.connections();
        let tick = connections.tick;
        if !connections.http2.as_ref().is_some_and(|(connection, _)| connection.sender.is_ready()) {
            connections.http2 = Some((Connected { is_kept: true, ..connection.clone() }, tick));
        }
        drop(connections);
        self.released.notify_waiters();
    }

    /// Closes the connections that have been without a request for too long.
    fn tick(&self) {
        let mut connections = self.connections();
        connections.tick += 1;
        let now = connections.tick;
        let expired = connections.http1.partition_point(|(_, used)| used + MAX_IDLE <= now);
        connections.http1.drain(..expired);
        connections.http2.take_if(|(_, used)| *used + MAX_IDLE <= now);
    }
}

/// Closes idle connections for as long as there is a pool.
async fn sweep<B>(kept: Weak<Kept<B>>) {
    loop {
        sleep(TICK).await;
        let Some(kept) = kept.upgrade() else { return };
        kept.tick();
    }
}

impl<B> Http1<B> {
    /// Checks if no request can be sent any more: the connection is closed, or the upstream doesn't read from it.
    fn is_over(&self) -> bool {
        self.sender.is_closed() || self.writes_failed.load(Ordering::Relaxed)
    }
}

impl<B> Lease<B> {
    /// Returns the address of the server.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Keeps other requests from the connection, which the upstream may be closing. Over HTTP/2, only the stream ends.
    pub(super) fn discard(&mut self) {
        self.connection = None;
    }
}

impl<B> Drop for Lease<B> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.kept.put(connection);
        }
    }
}

impl Failed {
    /// Checks if there was no connection.
    pub(super) fn is_connect(&self) -> bool {
        matches!(self, Self::Connect(_))
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect(_) => "connecting failed",
            Self::Sent { .. } => "the connection failed",
        })
    }
}

impl Error for Failed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(match self {
            Self::Connect(error) => &**error,
            Self::Sent { error, .. } => error,
        })
    }
}

#[cfg(test)]
mod tests;
