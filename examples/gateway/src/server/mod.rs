//! Accepts connections, limits their number, and shuts down gracefully.

mod activity;
mod connection;
mod exchange;
mod frames;
mod listener;
mod on_wake;
mod progress;
mod proxy_protocol;
mod socket;
mod streams;
mod table;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

pub(crate) use self::listener::Listener;
pub(crate) use self::table::limited_address;
use self::table::{Slot, Table};
use crate::client_address::Peer;
use crate::config::{Settings, TrustedProxies};
use crate::descriptors;
use crate::metrics::CloseReason;
use crate::phase::Phase;
use crate::routes::Router;
use crate::tls::ServerTls;

/// The buffer of each connection and stream, which also limits the head of a request. A stalled transfer holds at most
/// two, beside those of the operating system.
pub(crate) const BUFFER: usize = 64 * 1024;

/// The limits of connections, and how they begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    connections: usize,
    connections_per_address: usize,
    /// The longest time in which a client sends the head of a request, or reads nothing of a response.
    client_timeout: Duration,
    /// The longest time without a request.
    idle_timeout: Duration,
    /// The most that is read after the last response.
    body_limit: u64,
    /// The longest time in which open requests are finished.
    shutdown_timeout: Duration,
    /// Each connection begins with the header of the PROXY protocol.
    proxy_protocol: bool,
}

impl Limits {
    /// The most connections to an admin listener.
    pub(crate) const ADMIN_CONNECTIONS: usize = 16;

    /// Returns the limits of the admin listener.
    pub(crate) fn admin(settings: &Settings) -> Self {
        Self {
            connections: Self::ADMIN_CONNECTIONS,
            connections_per_address: usize::MAX,
            // It is asked directly.
            proxy_protocol: false,
            ..settings.into()
        }
    }
}

impl From<&Settings> for Limits {
    fn from(settings: &Settings) -> Self {
        Self {
            connections: settings.max_connections.unwrap_or_else(descriptors::for_connections),
            connections_per_address: settings.max_connections_per_address.unwrap_or(usize::MAX),
            client_timeout: settings.client_timeout,
            idle_timeout: settings.idle_connection_timeout,
            body_limit: settings.body_limit,
            shutdown_timeout: settings.shutdown_timeout,
            proxy_protocol: settings.proxy_protocol,
        }
    }
}

/// Serves until the phase is [`Stopping`](Phase::Stopping), then waits for the open requests until a deadline, which is
/// returned.
///
/// From [`Draining`](Phase::Draining) on, each response is the last of its connection of HTTP/1.
pub(crate) async fn serve(
    listener: Listener,
    router: Router,
    tls: Option<Arc<ServerTls>>,
    limits: Limits,
    proxies: Arc<TrustedProxies>,
    mut phase: watch::Receiver<Phase>,
) -> Instant {
    let (stop, stopping) = watch::channel(false);
    let table = Arc::new(Table::new(limits.connections, limits.connections_per_address, router.metrics().clone()));
    let spawn = |accepted: Result<Accepted, CloseReason>, stopping: &watch::Receiver<bool>| match accepted {
        Ok((stream, peer, slot)) => {
            tokio::spawn(connection::serve(stream, peer, slot, tls.clone(), router.clone(), limits, stopping.clone()));
        }
        Err(reason) => router.metrics().connections.refuse(reason),
    };
    // The connection that waits for room: it outlives a change of the phase.
    let mut waiting = None;
    // Failures are logged once, not twenty times a second.
    let mut logged = false;
    let mut reached = Phase::Serving;
    loop {
        tokio::select! {
            biased;
            next = reached.after(&mut phase) => {
                table.close_soon();
                if next == Phase::Stopping {
                    break;
                }
                reached = next;
            },
            accepted = accept(&listener, &table, limits, &proxies, &mut waiting) => match accepted {
                Ok(accepted) => {
                    logged = false;
                    spawn(accepted, &stopping);
                }
                Err(error) => {
                    // Most likely out of file descriptors.
                    if !std::mem::replace(&mut logged, true) {
                        tracing::warn!(%error, "accepting a connection failed");
                    }
                    table.evict();
                    sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    let deadline = Instant::now() + limits.shutdown_timeout;
    // Clients that have connected already get their answers.
    let mut connected: Vec<_> = waiting.into_iter().map(Ok).collect();
    connected.extend(listener.close().await.into_iter().map(|accepted| check_peer(accepted, limits, &proxies)));
    tracing::info!("shutting down");
    stop.send_replace(true);
    let answered = async {
        for connected in connected {
            let accepted = match connected {
                Ok(connected) => admit(&table, connected).await,
                Err(reason) => Err(reason),
            };
            spawn(accepted, &stopping);
        }
        drop(stopping);
        stop.closed().await;
    };
    if timeout_at(deadline, answered).await.is_err() {
        tracing::warn!("shutdown timed out: requests were cut off");
    }
    deadline
}

/// A connection that has no place in the table yet.
type Connected = (TcpStream, Peer);

/// A connection with its place in the table.
type Accepted = (TcpStream, Peer, Slot);

/// Accepts a connection and waits until there is room for it. Returns the reason if it is not admitted.
///
/// # Cancel safety
///
/// Cancel safe: the connection that waits for room stays in `waiting`.
async fn accept(
    listener: &Listener,
    table: &Arc<Table>,
    limits: Limits,
    proxies: &Arc<TrustedProxies>,
    waiting: &mut Option<Connected>,
) -> io::Result<Result<Accepted, CloseReason>> {
    let (_, peer) = match waiting {
        Some(waiting) => waiting,
        None => match check_peer(listener.accept().await?, limits, proxies) {
            Ok(connected) => waiting.insert(connected),
            Err(reason) => return Ok(Err(reason)),
        },
    };
    let slot = table.admit(limited(peer)).await;
    let accepted = waiting.take().zip(slot).map(|((stream, peer), slot)| (stream, peer, slot));
    Ok(accepted.ok_or(CloseReason::AddressLimit))
}

/// Returns a connection with its peer, or the reason if the peer may not make one.
fn check_peer(
    (stream, address): (TcpStream, SocketAddr),
    limits: Limits,
    proxies: &Arc<TrustedProxies>,
) -> Result<Connected, CloseReason> {
    let peer = Peer::new(address.ip(), proxies);
    if limits.proxy_protocol && !peer.is_trusted() {
        tracing::debug!(peer = %peer.ip(), "connection closed: the PROXY protocol is only for trusted proxies");
        return Err(CloseReason::ProxyProtocol);
    }
    Ok((stream, peer))
}

/// Waits until there is room for a connection. Returns the reason if it is not admitted.
async fn admit(table: &Arc<Table>, (stream, peer): Connected) -> Result<Accepted, CloseReason> {
    let slot = table.admit(limited(&peer)).await.ok_or(CloseReason::AddressLimit)?;
    Ok((stream, peer, slot))
}

/// Returns the address by which a connection is limited. Those of a trusted proxy are the connections of many clients.
fn limited(peer: &Peer) -> Option<IpAddr> {
    (!peer.is_trusted()).then(|| peer.ip())
}
