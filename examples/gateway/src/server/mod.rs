//! Accepts connections, limits their number, and shuts down gracefully.

mod activity;
mod connection;
mod exchange;
mod frames;
mod progress;
mod socket;
mod table;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

pub(crate) use self::table::limited_address;
use self::table::{Slot, Table};
use crate::config::Settings;
use crate::descriptors;
use crate::routes::Router;
use crate::tls::ServerTls;

/// The number of connections that may wait to be accepted. The operating system may allow fewer.
const BACKLOG: u32 = 1024;

/// The buffer of each connection and stream, which also limits the head of a request. A stalled transfer holds at most
/// two, beside those of the operating system.
pub(crate) const BUFFER: usize = 64 * 1024;

/// The address of a connection's client, in each request's extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// The limits of connections.
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
}

impl From<&Settings> for Limits {
    fn from(settings: &Settings) -> Self {
        Self {
            connections: settings.max_connections.unwrap_or_else(descriptors::for_connections),
            connections_per_address: settings.max_connections_per_address.unwrap_or(usize::MAX),
            client_timeout: settings.client_timeout,
            idle_timeout: settings.idle_connection_timeout,
            body_limit: settings.body_limit,
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

/// Serves until `shutdown` returns a deadline, then waits until that deadline for the open requests.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<ServerTls>>,
    limits: Limits,
    shutdown: impl Future<Output = Instant>,
) -> Instant {
    let mut shutdown = pin!(shutdown);
    let (stop, stopping) = watch::channel(false);
    let table = Arc::new(Table::new(limits.connections, limits.connections_per_address));
    let spawn = |(stream, address, slot): Accepted| {
        tokio::spawn(connection::serve(stream, address, slot, tls.clone(), router.clone(), limits, stopping.clone()));
    };
    // Failures are logged once, not twenty times a second.
    let mut logged = false;
    let deadline = loop {
        tokio::select! {
            biased;
            deadline = &mut shutdown => break deadline,
            accepted = accept(&listener, &table) => match accepted {
                Ok(accepted) => {
                    logged = false;
                    accepted.into_iter().for_each(&spawn);
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
    };
    table.close_soon();
    // Clients that have connected already get their answers.
    while let Some(Ok(accepted)) = accept(&listener, &table).now_or_never() {
        accepted.into_iter().for_each(&spawn);
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
type Accepted = (TcpStream, SocketAddr, Slot);

/// Accepts a connection and waits until there is room for it. Returns `None` if it is over the limit of its address.
async fn accept(listener: &TcpListener, table: &Arc<Table>) -> io::Result<Option<Accepted>> {
    let (stream, mut address) = listener.accept().await?;
    // A socket of IPv6 sees clients of IPv4 as `::ffff:192.0.2.1`.
    address.set_ip(address.ip().to_canonical());
    Ok(table.admit(address).await.map(|slot| (stream, address, slot)))
}
