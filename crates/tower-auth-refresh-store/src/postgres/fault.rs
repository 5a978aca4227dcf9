//! The meaning of a failed statement: whether it has taken effect, and the remedy.

use std::error::Error as _;
use std::io;

use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

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

    pub(super) fn into_problem(self) -> Problem {
        match self {
            Self::Standby => Problem::new(StoreErrorKind::Unavailable, "the server is a standby"),
            Self::Refused(problem) | Self::RolledBack(problem) | Self::Lost(problem) => problem,
        }
    }
}

pub(super) fn fault_of(error: &Error) -> Fault {
    match error.as_db_error() {
        // The server's own words are those of the message. Its detail may hold a whole row.
        Some(error) => fault_of_answer(error.code(), error.message()),
        // Nothing else of the error is shown: its text may hold a part of a value.
        None => Fault::Lost(problem_of_connection(error)),
    }
}

fn fault_of_answer(code: &SqlState, message: &str) -> Fault {
    let problem = |kind| Problem::new(kind, format!("{message} (SQLSTATE {})", code.code()));
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
    let unavailable = |reason: String| Problem::new(StoreErrorKind::Unavailable, reason);
    let misconfigured = |reason: &str| Problem::new(StoreErrorKind::Misconfigured, reason);
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        if let Some(tls) = source.downcast_ref::<rustls::Error>() {
            let reason = format!("TLS: {tls}");
            let is_of_certificate = matches!(tls, rustls::Error::InvalidCertificate(_));
            return if is_of_certificate { misconfigured(&reason) } else { unavailable(reason) };
        }
        // Of an error that wraps another, `source` is the source of the other.
        let io = source.downcast_ref::<io::Error>();
        cause = match io {
            Some(io) => match io.get_ref() {
                Some(inner) => Some(inner),
                None => return unavailable(io.to_string()),
            },
            None => source.source(),
        };
        text = source.to_string();
    }
    if text.contains("TLS") {
        misconfigured("the server has no TLS: see `sslmode`")
    } else if text.contains("authentication") || text.contains("password") {
        misconfigured("the server asks for other credentials than the URL has")
    } else {
        unavailable("the connection was closed".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_an_answer_says_if_the_statement_may_have_had_an_effect_and_what_helps() {
        for (code, expected) in [
            ("25006", "Standby"),
            ("40001", "RolledBack Unavailable"),
            ("40P01", "RolledBack Unavailable"),
            ("40003", "Refused Unavailable"),
            // The connection ends, with or without an effect.
            ("08006", "Lost Unavailable"),
            ("57P01", "Lost Unavailable"),
            ("57P03", "Lost Unavailable"),
            ("57014", "Refused Unavailable"),
            ("53100", "Refused Unavailable"),
            ("55P03", "Refused Unavailable"),
            ("58030", "Refused Unavailable"),
            ("XX000", "Refused Unavailable"),
            ("42501", "Refused Misconfigured"),
            ("42P01", "Refused Misconfigured"),
            ("28P01", "Refused Misconfigured"),
            ("3D000", "Refused Misconfigured"),
        ] {
            let found = match fault_of_answer(&SqlState::from_code(code), "words") {
                Fault::Standby => "Standby".to_owned(),
                Fault::Refused(problem) => format!("Refused {:?}", problem.kind()),
                Fault::RolledBack(problem) => format!("RolledBack {:?}", problem.kind()),
                Fault::Lost(problem) => format!("Lost {:?}", problem.kind()),
            };
            assert_eq!(found, expected, "{code}");
        }
        let error = fault_of_answer(&SqlState::DISK_FULL, "words").into_problem().of("table");
        assert_eq!(error.to_string(), "table: words (SQLSTATE 53100)");
    }
}
