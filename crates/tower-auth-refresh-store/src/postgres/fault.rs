//! The meaning of a failed statement: whether it has taken effect, and the remedy.

use std::error::Error as _;

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, SqlState};

use crate::error::{Problem, StoreErrorKind};

/// A statement that failed, or an attempt to connect.
#[derive(Debug)]
pub(super) enum Fault {
    /// It had no effect, and won't have one.
    Refused(Problem),
    /// It had no effect, and may have one if it is sent again.
    RolledBack(Problem),
    /// The server doesn't write: it is a standby, or was made read-only.
    Standby,
    /// It may have taken effect, or still will.
    Lost(Problem),
}

impl Fault {
    pub(super) fn lost(reason: &str) -> Self {
        Self::Lost(Problem::new(StoreErrorKind::Unavailable, reason))
    }

    /// Returns the error of the attempt to do `what`.
    pub(super) fn into_problem(self, what: &str) -> Problem {
        match self {
            Self::Standby => {
                Problem::new(StoreErrorKind::Unavailable, format!("failed to {what}: the server is a standby"))
            }
            Self::Refused(problem) | Self::RolledBack(problem) | Self::Lost(problem) => {
                problem.while_doing(&format!("failed to {what}"))
            }
        }
    }
}

pub(super) fn fault_of(error: &Error) -> Fault {
    match error.as_db_error() {
        Some(error) => fault_of_answer(error),
        // Nothing else of the error is shown: its text may hold a part of a value.
        None => Fault::Lost(problem_of_connection(error)),
    }
}

/// The server's own words are those of the message. Its detail may hold a whole row.
fn fault_of_answer(error: &DbError) -> Fault {
    let code = error.code();
    let problem = |kind| Problem::new(kind, format!("{} (SQLSTATE {})", error.message(), code.code()));
    let unavailable = || problem(StoreErrorKind::Unavailable);
    if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
        return Fault::Standby;
    }
    if [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code) {
        return Fault::RolledBack(unavailable());
    }
    // By the class of the code.
    match code.code().get(..2).unwrap_or_default() {
        // The connection has failed, or the server ends it.
        "08" => Fault::Lost(unavailable()),
        "57" if *code != SqlState::QUERY_CANCELED => Fault::Lost(unavailable()),
        // A lack of resources, a lock, the operator, the operating system, the database itself.
        "40" | "53" | "55" | "57" | "58" | "XX" => Fault::Refused(unavailable()),
        // Credentials, database, table, privileges, and all that should not be.
        _ => Fault::Refused(problem(StoreErrorKind::Misconfigured)),
    }
}

/// Returns the error of a connection: of the network, of TLS, or of the protocol.
fn problem_of_connection(error: &Error) -> Problem {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<rustls::Error>() {
            let is_of_certificate = matches!(cause, rustls::Error::InvalidCertificate(_));
            let kind = if is_of_certificate { StoreErrorKind::Misconfigured } else { StoreErrorKind::Unavailable };
            return Problem::new(kind, format!("TLS: {cause}"));
        }
        if let Some(cause) = cause.downcast_ref::<std::io::Error>() {
            let inner = cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            let Some(inner) = inner else {
                return Problem::new(StoreErrorKind::Unavailable, cause.to_string());
            };
            source = Some(inner);
            continue;
        }
        source = cause.source();
    }
    let text = error.to_string();
    if text.contains("TLS") {
        return Problem::new(StoreErrorKind::Misconfigured, "the server has no TLS: see `sslmode`");
    }
    if text.contains("authentication") || text.contains("password") {
        return Problem::new(StoreErrorKind::Misconfigured, "the server asks for other credentials than the URL has");
    }
    Problem::new(StoreErrorKind::Unavailable, "the connection was closed")
}
