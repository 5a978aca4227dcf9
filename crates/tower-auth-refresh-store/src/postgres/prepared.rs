//! The statement that reads rows, prepared where that is safe: to parse and plan it takes longer than to read a row.
//!
//! A pooler gives each transaction a connection of its own choice. There, a prepared statement isn't known, or its name is
//! that of another client's, which would be executed. So it is prepared only on a direct connection: one of TCP whose two
//! ends are those that the server sees, address by address. Behind a proxy or a translation of addresses, and over a socket
//! of the file system, there is no such proof.

use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{CancelToken, Client, Error, NoTls, Row, Statement};

use super::schema::{Parameters, get};
use super::stream::Ends;

/// The plan is made once, perhaps while the table is small, and is to be right when it is large: by the index, as all
/// statements of a store find their rows. To compile it would take longer than to execute it.
const ONE_PLAN: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off";

/// A statement of one connection.
pub(super) struct Prepared {
    statement: OnceLock<Statement>,
    /// False on a connection that isn't direct, and once the server has refused the statement.
    is_usable: AtomicBool,
    is_begun: AtomicBool,
}

impl Prepared {
    pub(super) fn new(is_direct: bool) -> Self {
        Self { statement: OnceLock::new(), is_usable: AtomicBool::new(is_direct), is_begun: AtomicBool::new(false) }
    }

    /// Executes the statement. Returns `None` if it is to be sent unprepared.
    pub(super) async fn query(&self, client: &Client, parameters: Parameters<'_>) -> Option<Result<Vec<Row>, Error>> {
        let statement = self.statement.get().filter(|_| self.is_usable.load(Ordering::Relaxed))?;
        let values: Vec<_> = parameters.iter().map(|(value, _)| *value).collect();
        let rows = client.query(statement, &values).await;
        // The columns of the table have changed, or the statement is gone.
        let codes = [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INVALID_SQL_STATEMENT_NAME];
        let is_refused = rows.as_ref().is_err_and(|error| error.code().is_some_and(|code| codes.contains(code)));
        if is_refused {
            self.is_usable.store(false, Ordering::Relaxed);
        }
        (!is_refused).then_some(rows)
    }

    /// Returns true if the caller is to have the statement prepared.
    pub(super) fn begins(&self) -> bool {
        self.is_usable.load(Ordering::Relaxed) && !self.is_begun.swap(true, Ordering::Relaxed)
    }

    /// Prepares the statement. If the server refuses it, as it does while there is no table, the next read begins anew.
    pub(super) async fn prepare(&self, client: &Client, sql: &str, types: &[Type]) {
        match tokio::join!(client.batch_execute(ONE_PLAN), client.prepare_typed(sql, types)) {
            // It is empty: nothing begins anew after this.
            (Ok(()), Ok(statement)) => drop(self.statement.set(statement)),
            (Ok(()), Err(_)) => self.is_begun.store(false, Ordering::Relaxed),
            // The server doesn't know a setting, or is gone.
            (Err(_), _) => {}
        }
    }
}

/// The connection as the server sees it.
struct Seen {
    /// The address and the port of each end, as the server writes them, if it has any.
    client: Option<(String, i32)>,
    server: Option<(String, i32)>,
    /// The server process that executes this statement.
    process: Option<i32>,
}

/// Returns true if the server sees this very connection. If it can't say, it's taken not to.
pub(super) async fn is_direct(client: &Client, ends: Option<Ends>) -> bool {
    let Some(ends) = ends else { return false };
    let question = "SELECT host(inet_client_addr()), inet_client_port(), host(inet_server_addr()), inet_server_port(),
        pg_backend_pid()";
    let rows = client.query_typed(question, &[]).await.unwrap_or_default();
    let [row] = &*rows else { return false };
    let end = |column| {
        let address = get::<Option<String>>(row, column).ok()??;
        Some((address, get::<Option<i32>>(row, column + 1).ok()??))
    };
    let seen = Seen { client: end(0), server: end(2), process: get(row, 4).ok() };
    is_same(ends, process_of(&client.cancel_token()).await, &seen)
}

/// `process`: the one that the connection began with, if it is known.
fn is_same(ends: Ends, process: Option<i32>, seen: &Seen) -> bool {
    let is_seen = |end: SocketAddr, seen: &Option<(String, i32)>| {
        let Some((address, port)) = seen else { return false };
        let address = address.parse::<IpAddr>().map(|address| address.to_canonical());
        address == Ok(end.ip().to_canonical()) && *port == i32::from(end.port())
    };
    // Other hosts and containers have the same loopback addresses. Through a tunnel to one with a pooler, the ports may be
    // equal by chance, but a pooler makes up the number of the process as well.
    let is_loopback = ends.server.ip().to_canonical().is_loopback();
    let is_process = if process.is_some() { process == seen.process } else { !is_loopback };
    is_seen(ends.client, &seen.client) && is_seen(ends.server, &seen.server) && is_process
}

/// Returns the number of a connection's server process, from the request by which a statement of it would be cancelled.
/// `None` with TLS: the request begins with a handshake then.
async fn process_of(connection: &CancelToken) -> Option<i32> {
    let mut request = tokio::io::join(tokio::io::empty(), Vec::new());
    connection.cancel_query_raw(&mut request, NoTls).await.ok()?;
    // After its length and a code.
    let process = request.into_inner().1.get(8..12)?.try_into().ok()?;
    Some(i32::from_be_bytes(process))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_reads_of_a_direct_connection_one_has_the_statement_prepared() {
        let (direct, other) = (Prepared::new(true), Prepared::new(false));
        assert_eq!([direct.begins(), direct.begins(), direct.begins()], [true, false, false]);
        assert!(!other.begins());
    }

    #[test]
    fn a_connection_is_direct_if_the_server_sees_the_address_and_the_port_of_both_ends() {
        for (end, address, port, expected) in [
            ("10.0.0.1:5432", "10.0.0.1", 5432, true),
            ("10.0.0.1:5432", "10.0.0.2", 5432, false),
            ("10.0.0.1:5432", "10.0.0.1", 5433, false),
            ("10.0.0.1:65535", "10.0.0.1", -1, false),
            ("10.0.0.1:5432", "", 5432, false),
            // A server that listens for both families may see an address of one in the form of the other.
            ("[::ffff:10.0.0.1]:5432", "10.0.0.1", 5432, true),
            ("10.0.0.1:5432", "::ffff:10.0.0.1", 5432, true),
            ("[fe80::1%2]:5432", "fe80::1", 5432, true),
            ("[::1]:5432", "10.0.0.1", 5432, false),
        ] {
            let (end, seen) = (end.parse().unwrap(), Some((address.to_owned(), port)));
            let (other, other_seen) = ("192.0.2.7:40000".parse().unwrap(), Some(("192.0.2.7".to_owned(), 40_000)));
            let process = Some(7);
            let as_server = Seen { client: other_seen.clone(), server: seen.clone(), process };
            let ends = Ends { client: other, server: end };
            assert_eq!(is_same(ends, process, &as_server), expected, "server {end} {address} {port}");
            let as_client = Seen { client: seen, server: other_seen, process };
            let ends = Ends { client: end, server: other };
            assert_eq!(is_same(ends, process, &as_client), expected, "client {end} {address} {port}");
            assert!(!is_same(ends, process, &Seen { client: None, ..as_client }));
        }
    }

    #[test]
    fn the_server_process_has_to_be_the_same_if_it_is_known_and_on_a_loopback_address_it_has_to_be_known() {
        for (server, process, seen, expected) in [
            ("10.0.0.1", Some(7), Some(7), true),
            ("10.0.0.1", Some(7), Some(8), false),
            ("10.0.0.1", Some(7), None, false),
            ("10.0.0.1", None, Some(7), true),
            ("127.0.0.1", Some(7), Some(7), true),
            ("127.0.0.1", Some(7), Some(8), false),
            ("127.0.0.1", None, Some(7), false),
            ("127.0.0.1", None, None, false),
            ("::1", None, Some(7), false),
            ("::ffff:127.0.0.1", None, Some(7), false),
        ] {
            let end = SocketAddr::new(server.parse().unwrap(), 5432);
            let as_seen = Some((server.to_owned(), 5432));
            let seen = Seen { client: as_seen.clone(), server: as_seen, process: seen };
            assert_eq!(is_same(Ends { client: end, server: end }, process, &seen), expected, "{server} {process:?}");
        }
    }
}
