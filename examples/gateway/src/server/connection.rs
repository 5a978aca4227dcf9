//! Serves one connection: hyper does the protocol, and a supervisor beside it keeps the limits.

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::server::TlsStream;

use super::activity::{Activity, State};
use super::on_wake::OnWake;
use super::progress::{Stream, Transport, limit_stalls};
use super::socket::{Socket, linger};
use super::streams::Streams;
use super::table::Slot;
use super::{BUFFER, Limits, exchange, proxy_protocol};
use crate::client_address::Peer;
use crate::metrics::CloseReason;
use crate::routes::Router;
use crate::tls::ServerTls;

/// The connection preface of HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest interval between two peeks: the delay for a client that sends the preface in two parts.
const MAX_PEEK_INTERVAL: Duration = Duration::from_millis(500);

/// The time in which a request may still arrive on an idle connection after the shutdown has begun: the client may have
/// sent it before it could know.
const DRAIN_TIME: Duration = Duration::from_millis(500);

/// The protocol of a connection, known from its first bytes or its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Serves a connection until it ends, a limit is exceeded, or it has to make room for another.
pub(super) async fn serve(
    mut stream: TcpStream,
    mut peer: Peer,
    mut slot: Slot,
    tls: Option<Arc<ServerTls>>,
    router: Router,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let activity = slot.activity.clone();
    let metrics = router.metrics().clone();
    let time = limits.client_timeout;
    metrics.connections.open();
    tokio::select! {
        biased;
        () = OnWake::new(activity.eviction()) => {}
        () = async {
            if limits.proxy_protocol {
                let passed_on = passed_on(&mut stream, &peer, &mut slot);
                // In a box, so that other connections take no memory for it.
                let Some(client) = Box::pin(opening(passed_on, time, &activity, &mut stopping)).await else {
                    return activity.closes_for(CloseReason::ProxyProtocol);
                };
                peer = client;
            }
            let Some(tls) = tls else {
                if let Some(protocol) = opening(peek_protocol(&stream), time, &activity, &mut stopping).await {
                    let stream = limit_stalls(stream, time);
                    serve_protocol(stream, protocol, peer, &activity, router, limits, stopping).await;
                }
                return;
            };
            // In a box too.
            Box::pin(async {
                let handshake = handshake(limit_stalls(stream, time), &tls, peer.ip());
                if let Some((stream, protocol)) = opening(handshake, time, &activity, &mut stopping).await {
                    serve_protocol(stream, protocol, peer, &activity, router, limits, stopping).await;
                }
            })
            .await;
        } => {}
    }
    metrics.connections.close(activity.close_reason());
}

async fn serve_protocol(
    stream: impl Transport + 'static,
    protocol: Protocol,
    peer: Peer,
    activity: &Arc<Activity>,
    router: Router,
    limits: Limits,
    stopping: watch::Receiver<bool>,
) {
    let (socket, given_back) = Socket::new(stream, protocol, activity.clone());
    let service = {
        let (activity, router) = (activity.clone(), Arc::new(router.for_connection()));
        service_fn(move |request: Request<Incoming>| {
            let client = peer.client(request.headers());
            let observed = router.observe(&request, &client, peer.is_trusted());
            exchange::answer(router.clone(), client, observed, activity.clone(), request)
        })
    };
    // Holds its receiver to the end of this function: a shutdown waits for the lingering close too.
    let mut supervisor = Supervisor { protocol, activity, limits, stopping, drained_at: None, finishing: false };
    {
        let http = http(protocol, limits);
        let mut connection = pin!(http.serve_connection(TokioIo::new(socket), service));
        loop {
            // An error means that the client has disconnected or sent invalid HTTP: not worth a line in the log.
            let step = tokio::select! {
                biased;
                _ = connection.as_mut() => break,
                step = OnWake::new(supervisor.next()) => step,
            };
            match step {
                Step::Finish => connection.as_mut().graceful_shutdown(),
                Step::Abort => return,
            }
        }
    }
    let Ok(stream) = given_back.await else { return };
    if activity.must_reset() {
        stream.close_by_reset();
    } else if protocol == Protocol::Http1 && activity.client_sends_on() {
        linger(stream, limits.client_timeout, limits.body_limit).await;
    }
}

/// Returns hyper's settings. The limits of time are the supervisor's and those of [`Streams`].
fn http(protocol: Protocol, limits: Limits) -> auto::Builder<Streams> {
    let http = auto::Builder::new(Streams::new(limits.client_timeout));
    let mut http = match protocol {
        Protocol::Http1 => http.http1_only(),
        Protocol::Http2 => http.http2_only(),
    };
    http.http1().header_read_timeout(None).max_buf_size(BUFFER);
    http.http2().max_send_buf_size(BUFFER);
    http
}

/// Watches over a connection beside hyper.
struct Supervisor<'a> {
    protocol: Protocol,
    activity: &'a Activity,
    limits: Limits,
    stopping: watch::Receiver<bool>,
    /// The end of the time in which requests may still arrive, once the shutdown has begun.
    drained_at: Option<Instant>,
    /// hyper has been told to finish.
    finishing: bool,
}

/// The next step with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Take no further requests.
    Finish,
    /// Close it at once.
    Abort,
}

impl Supervisor<'_> {
    /// Waits until the connection has to end.
    async fn next(&mut self) -> Step {
        loop {
            let look = self.next_look();
            let stops = tokio::select! {
                biased;
                _ = self.stopping.wait_for(|stopping| *stopping), if self.drained_at.is_none() => true,
                () = sleep_until(look) => false,
            };
            if let Some(step) = if stops { self.stop() } else { self.look() } {
                return step;
            }
        }
    }

    /// Begins the shutdown.
    fn stop(&mut self) -> Option<Step> {
        self.drained_at = Some(Instant::now() + DRAIN_TIME);
        self.activity.closes_for(CloseReason::Shutdown);
        // HTTP/2 tells the client which requests will be answered.
        let at_once = self.protocol == Protocol::Http2 || self.activity.state() == State::Busy;
        if at_once { self.finish() } else { None }
    }

    /// Returns the time of the next look. A state that begins later is seen at most half a time-out late.
    fn next_look(&self) -> Instant {
        let soon = Instant::now() + self.limits.client_timeout / 2;
        let due = match (self.activity.state(), self.drained_at) {
            (_, Some(drained_at)) if !self.finishing => drained_at,
            (State::Head(since), _) => since + self.limits.client_timeout,
            (State::Idle(since), _) if !self.finishing => since + self.limits.idle_timeout,
            _ => soon,
        };
        due.min(soon)
    }

    fn look(&mut self) -> Option<Step> {
        let now = Instant::now();
        let is_over = match self.activity.state() {
            State::Busy => false,
            State::Head(since) if now >= since + self.limits.client_timeout => {
                self.activity.closes_for(CloseReason::SlowHead);
                return Some(Step::Abort);
            }
            State::Head(_) => return None,
            // Told to finish, a client of HTTP/2 may have said nothing since.
            State::Idle(since) if self.finishing => {
                let end = since + self.limits.idle_timeout + self.limits.client_timeout;
                return (now >= end).then_some(Step::Abort);
            }
            State::Idle(since) => now >= since + self.limits.idle_timeout,
        };
        if is_over {
            self.activity.closes_for(CloseReason::Idle);
        }
        let is_drained = self.drained_at.is_some_and(|drained_at| now >= drained_at);
        if is_over || is_drained { self.finish() } else { None }
    }

    fn finish(&mut self) -> Option<Step> {
        (!std::mem::replace(&mut self.finishing, true)).then_some(Step::Finish)
    }
}

/// Waits until a client has opened its connection: for the first bytes or for the handshake. Returns `None` if that
/// fails, after the time-out, or when the shutdown begins first.
async fn opening<T>(
    opened: impl Future<Output = io::Result<T>>,
    client_timeout: Duration,
    activity: &Activity,
    stopping: &mut watch::Receiver<bool>,
) -> Option<T> {
    let drained = async {
        // The sender is kept for as long as there are connections.
        let _ = stopping.wait_for(|stopping| *stopping).await;
        sleep(DRAIN_TIME).await;
    };
    tokio::select! {
        // A request that has arrived before the shutdown is served.
        biased;
        opened = timeout(client_timeout, opened) => opened.ok()?.ok(),
        () = drained => {
            activity.closes_for(CloseReason::Shutdown);
            None
        }
    }
}

/// Reads the header of the PROXY protocol. Returns the client for which the proxy has made the connection.
async fn passed_on(stream: &mut TcpStream, proxy: &Peer, slot: &mut Slot) -> io::Result<Peer> {
    let client = proxy_protocol::read(stream).await.inspect_err(|error| {
        tracing::debug!(%error, proxy = %proxy.ip(), "connection closed: malformed PROXY protocol");
    })?;
    let Some(peer) = client.and_then(|client| proxy.passing_on(client)) else {
        return Ok(proxy.clone());
    };
    if !peer.is_trusted() && !slot.count_for(peer.ip()).await {
        slot.activity.closes_for(CloseReason::AddressLimit);
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    Ok(peer)
}

/// Makes a handshake, which decides on the protocol (RFC 7301), and waits for the first bytes after it. Clients that don't
/// negotiate get HTTP/1.
async fn handshake(stream: Stream, tls: &ServerTls, client: IpAddr) -> io::Result<(TlsStream<Stream>, Protocol)> {
    let mut stream = tls.accept(stream).await.inspect_err(|error| {
        // Probes of a balancer hang up, and scanners try everything.
        tracing::debug!(%error, %client, "TLS handshake failed");
    })?;
    // Before its preface, hyper doesn't finish a connection of HTTP/2. Browsers open connections in advance.
    if stream.fill_buf().await?.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((stream, if is_http2 { Protocol::Http2 } else { Protocol::Http1 }))
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
