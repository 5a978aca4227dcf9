//! The servers of a database, of which one is the primary, and the connections to it.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_postgres::{CancelToken, Client, Config, Connection};

use super::fault::{Fault, fault_of};
use super::prepared::is_direct;
use super::schema::get;
use super::stream::{Endpoint, Stream};
use super::tls::{Encrypted, Tls};
use super::url::Address;
use crate::error::{Problem, StoreErrorKind};

/// A connection before it is driven: the future that does so, and that ends when the connection ends.
pub(super) type Driver = Connection<Stream, Encrypted<Stream>>;

/// The servers of a database, and a limit to the connections with them.
pub(super) struct Server {
    address: Address,
    tls: Tls,
    /// One permit for each connection that is open, retired ones too. These give it back within a minute.
    pub(super) permits: Arc<Semaphore>,
    /// The host that was the primary last.
    primary: AtomicUsize,
    clock: Clock,
}

/// The server's clock, as it was read last, and when.
struct Clock(Mutex<(SystemTime, std::time::Instant)>);

/// A new connection to the primary.
pub(super) struct Connected {
    pub(super) client: Client,
    pub(super) driver: Driver,
    pub(super) endpoint: Endpoint,
    /// Nothing is in between that has connections of its own, such as a pooler.
    pub(super) is_direct: bool,
}

impl Server {
    /// `connections`: those that are in use at the same time.
    pub(super) fn new(address: Address, connections: usize) -> Result<Arc<Self>, Problem> {
        let tls = Tls::new(&address)?;
        // As many again may have been retired.
        let permits = Arc::new(Semaphore::new(2 * connections));
        let clock = Clock(Mutex::new((SystemTime::now(), std::time::Instant::now())));
        Ok(Arc::new(Self { address, tls, permits, primary: AtomicUsize::new(0), clock }))
    }

    /// Returns the URL without credentials.
    pub(super) fn name(&self) -> &str {
        &self.address.name
    }

    /// Returns the number of hosts.
    pub(super) fn hosts(&self) -> u32 {
        u32::try_from(self.address.hosts.len()).unwrap_or(u32::MAX)
    }

    /// Connects to the primary. `patience`: the time for each host.
    pub(super) async fn connect(&self, patience: Duration) -> Result<Connected, Problem> {
        let hosts = &self.address.hosts;
        let first = self.primary.load(Ordering::Relaxed);
        let mut failure = None;
        for at in (first..first + hosts.len()).map(|at| at % hosts.len()) {
            match timeout(patience, self.connect_to(&hosts[at])).await {
                Ok(Ok(connected)) => {
                    self.primary.store(at, Ordering::Relaxed);
                    return Ok(connected);
                }
                Ok(Err(fault)) => failure = Some(fault.into_problem().while_doing("failed to connect")),
                Err(_) => failure = Some(unavailable("failed to connect: the server doesn't answer")),
            }
        }
        Err(failure.unwrap_or_else(|| unavailable("failed to connect")))
    }

    /// Connects to the first address of a host that leads to the primary.
    async fn connect_to(&self, host: &Config) -> Result<Connected, Fault> {
        let mut failure = Fault::lost("the host has no address");
        for endpoint in Endpoint::all_of(host).await.map_err(|error| unreachable(&error))? {
            match self.connect_at(host, endpoint).await {
                Ok(connected) => return Ok(connected),
                Err(fault) => failure = fault,
            }
        }
        Err(failure)
    }

    async fn connect_at(&self, host: &Config, endpoint: Endpoint) -> Result<Connected, Fault> {
        let time = host.get_connect_timeout().copied().unwrap_or(Duration::MAX);
        let connected = timeout(time, endpoint.connect()).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let (stream, ends) = connected.map_err(|error| unreachable(&error))?;
        let handshake = self.tls.handshake(&endpoint.name).map_err(Fault::Refused)?;
        let (client, mut driver) = host.connect_raw(stream, handshake).await.map_err(|error| fault_of(&error))?;
        let state = "SELECT clock_timestamp(), pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'";
        let asked = async { tokio::join!(client.query_typed(state, &[]), is_direct(&client, ends)) };
        let (rows, is_direct) = tokio::select! {
            asked = asked => asked,
            _ = &mut driver => return Err(Fault::lost("the connection was closed")),
        };
        let rows = rows.map_err(|error| fault_of(&error))?;
        let [row] = &*rows else { return Err(Fault::lost("the server doesn't answer")) };
        if get(row, 1).map_err(Fault::Refused)? {
            return Err(Fault::Standby);
        }
        self.set_clock(get(row, 0).map_err(Fault::Refused)?);
        Ok(Connected { client, driver, endpoint, is_direct })
    }

    /// Asks the server of a connection to cancel the statement under way. A failure leaves it as it is.
    pub(super) async fn cancel(&self, connection: &CancelToken, endpoint: &Endpoint) {
        if let (Ok((stream, _)), Ok(handshake)) = (endpoint.connect().await, self.tls.handshake(&endpoint.name)) {
            let _ = connection.cancel_query_raw(stream, handshake).await;
        }
    }

    /// Notes the time that the server has just sent.
    pub(super) fn set_clock(&self, time: SystemTime) {
        // Poisoning is ignored: a reading is replaced as a whole.
        *self.clock.0.lock().unwrap_or_else(PoisonError::into_inner) = (time, std::time::Instant::now());
    }

    /// Returns the server's time in `left` from now: a little earlier, by the time that the last reading was on its way.
    pub(super) fn time_in(&self, left: Duration) -> SystemTime {
        let (time, at) = *self.clock.0.lock().unwrap_or_else(PoisonError::into_inner);
        time + at.elapsed() + left
    }
}

fn unreachable(error: &io::Error) -> Fault {
    Fault::Lost(unavailable(&error.to_string()))
}

fn unavailable(reason: &str) -> Problem {
    Problem::new(StoreErrorKind::Unavailable, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_the_server_goes_on_after_its_last_reading() {
        let server = Server::new(Address::parse("postgres://ada@localhost").unwrap(), 1).unwrap();
        let (time, left, second) = (SystemTime::UNIX_EPOCH, Duration::from_secs(2), Duration::from_secs(1));
        *server.clock.0.lock().unwrap() = (time, std::time::Instant::now().checked_sub(second).unwrap());
        let passed = server.time_in(left).duration_since(time + second + left).unwrap();
        assert!(passed < 60 * second, "{passed:?}");
        server.set_clock(time);
        let passed = server.time_in(left).duration_since(time + left).unwrap();
        assert!(passed < 60 * second, "{passed:?}");
    }
}
