//! The statement that reads rows, prepared where that is safe: to parse and plan it takes longer than to read a row.
//!
//! A pooler gives each transaction a connection of its own choice. There, a prepared statement isn't known, or its name is
//! that of another client's, which would be executed. So it is prepared only on a connection of TCP whose two ends are those
//! that the server sees, address by address: nothing is in between that has connections of its own. Behind a proxy, a
//! translation of addresses, or a socket of the file system, there is no such proof.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::OnceCell;
use tokio_postgres::{Client, Error, Row, Statement};

use super::schema::{Parameters, get};
use super::stream::Ends;

/// The plan is made once, perhaps while the table is small, and is to be right when it is large. All statements of a store
/// find their rows by an index.
const ONE_PLAN: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off";

/// A statement of one connection, which is prepared at its first use.
pub(super) struct Prepared {
    statement: OnceCell<Statement>,
    /// False on a connection that isn't direct, and once the server has refused the statement.
    is_usable: AtomicBool,
}

impl Prepared {
    pub(super) fn new(is_direct: bool) -> Self {
        Self { statement: OnceCell::new(), is_usable: AtomicBool::new(is_direct) }
    }

    /// Executes the statement. Returns `None` if it is to be sent unprepared. `answers`: counts the answer to the preparation.
    pub(super) async fn query(
        &self,
        client: &Client,
        sql: &str,
        parameters: Parameters<'_>,
        answers: &AtomicUsize,
    ) -> Option<Result<Vec<Row>, Error>> {
        if !self.is_usable.load(Ordering::Relaxed) {
            return None;
        }
        let prepare = async || {
            let types: Vec<_> = parameters.iter().map(|(_, of_type)| of_type.clone()).collect();
            let (one_plan, statement) = tokio::join!(client.batch_execute(ONE_PLAN), client.prepare_typed(sql, &types));
            answers.fetch_add(1, Ordering::Relaxed);
            one_plan.and(statement)
        };
        let rows = match self.statement.get_or_try_init(prepare).await {
            Ok(statement) => {
                let values: Vec<_> = parameters.iter().map(|(value, _)| *value).collect();
                client.query(statement, &values).await
            }
            Err(error) => Err(error),
        };
        // Such as after a change of the table's columns. If the statement itself is at fault, it fails again, unprepared.
        let is_refused = rows.as_ref().is_err_and(|error| error.as_db_error().is_some());
        if is_refused {
            self.is_usable.store(false, Ordering::Relaxed);
        }
        (!is_refused).then_some(rows)
    }
}

/// Returns true if the server sees the two ends of this connection. If it can't say, it's taken not to.
pub(super) async fn is_direct(client: &Client, ends: Option<Ends>) -> bool {
    let Some(ends) = ends else { return false };
    let question = "SELECT host(inet_client_addr()), inet_client_port(), host(inet_server_addr()), inet_server_port()";
    let rows = client.query_typed(question, &[]).await.unwrap_or_default();
    let seen = |row: &Row, column| {
        let address = get::<Option<String>>(row, column).ok()??;
        Some((address, get::<Option<i32>>(row, column + 1).ok()??))
    };
    matches!(&*rows, [row] if are_seen(ends, [seen(row, 0), seen(row, 2)]))
}

/// `seen`: address and port of the client and of the server, as the server writes them, if it has any.
fn are_seen(ends: Ends, seen: [Option<(String, i32)>; 2]) -> bool {
    let is_seen = |(end, seen): (SocketAddr, Option<(String, i32)>)| {
        let Some((address, port)) = seen else { return false };
        let address = address.parse::<IpAddr>().map(|address| address.to_canonical());
        address == Ok(end.ip().to_canonical()) && port == i32::from(end.port())
    };
    [ends.client, ends.server].into_iter().zip(seen).all(is_seen)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("[::1]:5432", "127.0.0.1", 5432, false),
        ] {
            let (end, seen) = (end.parse().unwrap(), Some((address.into(), port)));
            let (other, other_seen) = ("192.0.2.7:40000".parse().unwrap(), Some(("192.0.2.7".into(), 40_000)));
            let server = Ends { client: other, server: end };
            assert_eq!(are_seen(server, [other_seen.clone(), seen.clone()]), expected, "server {end} {address} {port}");
            let client = Ends { client: end, server: other };
            assert_eq!(are_seen(client, [seen, other_seen.clone()]), expected, "client {end} {address} {port}");
            assert!(!are_seen(client, [None, other_seen]));
        }
    }
}
