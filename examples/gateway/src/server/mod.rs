//! Accepts connections, limits their number, and shuts down gracefully.

mod activity;
mod connection;
mod exchange;
mod frames;
mod on_wake;
mod progress;
mod proxy_protocol;
mod socket;
mod table;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

pub(crate) use self::table::limited_address;
use self::table::{Slot, Table};
use crate::client_address::Peer;
use crate::config::{Settings, TrustedProxies};
use crate::descriptors;
use crate::metrics::CloseReason;
use crate::phase::Phase;
use crate::routes::Router;
use crate::tls::ServerTls;

/// The number of connections that may wait to be accepted. The operating system may allow fewer.
const BACKLOG: u32 = 1024;

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

/// Opens the socket.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Otherwise a restart can't bind until the connections of the previous process are gone.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Takes a socket that is open already.
pub(crate) fn adopt(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Serves until the phase is [`Stopping`](Phase::Stopping), then waits for the open requests until a deadline, which is
/// returned.
///
/// From [`Draining`](Phase::Draining) on, each response is the last of its connection of HTTP/1.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<ServerTls>>,
    limits: Limits,
    proxies: Arc<TrustedProxies>,
    mut phase: watch::Receiver<Phase>,
) -> Instant {
    let (stop, stopping) = watch::channel(false);
    let table = Arc::new(Table::new(limits.connections, limits.connections_per_address));
    let spawn = |accepted: Result<Accepted, CloseReason>| match accepted {
        Ok((stream, peer, slot)) => {
            tokio::spawn(connection::serve(stream, peer, slot, tls.clone(), router.clone(), limits, stopping.clone()));
        }
        Err(reason) => router.metrics().connections.refuse(reason),
    };
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
            accepted = accept(&listener, &table, limits, &proxies) => match accepted {
                Ok(accepted) => {
                    logged = false;
                    spawn(accepted);
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
    while let Some(Ok(accepted)) = accept(&listener, &table, limits, &proxies).now_or_never() {
        spawn(accepted);
    }
    // New connections are refused from here on: their clients can try another instance.
    drop(listener);
    tracing::info!("shutting down");
    stop.send_replace(true);
    drop(stopping);
    if timeout_at(deadline, stop.closed()).await.is_err() {
        tracing::warn!("shutdown timed out: requests were cut off");
    }
    deadline
}

/// A connection with its place in the table.
type Accepted = (TcpStream, Peer, Slot);

/// Accepts a connection and waits until there is room for it. Returns the reason if it is not admitted.
///
/// The connections of a trusted proxy are those of many clients, and not limited by the address of the proxy.
async fn accept(
    listener: &TcpListener,
    table: &Arc<Table>,
    limits: Limits,
    proxies: &Arc<TrustedProxies>,
) -> io::Result<Result<Accepted, CloseReason>> {
    let (stream, address) = listener.accept().await?;
    let peer = Peer::new(address.ip(), proxies);
    if limits.proxy_protocol && !peer.is_trusted() {
        tracing::debug!(peer = %peer.ip(), "connection closed: the PROXY protocol is only for trusted proxies");
        return Ok(Err(CloseReason::ProxyProtocol));
    }
    let limited = (!peer.is_trusted()).then(|| peer.ip());
    let slot = table.admit(limited).await.ok_or(CloseReason::AddressLimit);
    Ok(slot.map(|slot| (stream, peer, slot)))
}
