//! Errors of calls: the reason, without what the server repeats of a call, and whether the call may have acted.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::error::{Problem, StoreErrorKind};

/// The failure of one attempt at a call.
#[derive(Clone)]
pub(super) enum Failure {
    /// The server has not acted. Another attempt won't help.
    Refused(Problem),
    /// The server has not acted. Another one may, or this one later.
    Unready(Problem),
    /// The server may have acted: the answer is lost.
    Lost(Problem),
}

impl Failure {
    /// Returns the failure of a call that was sent.
    pub(super) fn of(error: &RedisError) -> Self {
        let problem = describe(error);
        match error.kind() {
            ErrorKind::Server(
                ServerErrorKind::ReadOnly
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown,
            ) => Self::Unready(problem),
            ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::AuthenticationFailed => Self::Refused(problem),
            _ => Self::Lost(problem),
        }
    }

    pub(super) fn problem(self) -> Problem {
        match self {
            Self::Refused(problem) | Self::Unready(problem) | Self::Lost(problem) => problem,
        }
    }
}

/// Returns the reason of an error.
pub(super) fn describe(error: &RedisError) -> Problem {
    let unavailable = |reason: String| Problem::new(StoreErrorKind::Unavailable, reason);
    match (error.kind(), error.code()) {
        (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS" | "NOAUTH")) => {
            Problem::new(StoreErrorKind::Misconfigured, "the server refuses the user name or the password")
        }
        (_, Some("WRONGTYPE")) => {
            let reason = "the key has a value that isn't a record; remove it to sign in again";
            Problem::new(StoreErrorKind::Corrupt, reason)
        }
        (_, Some(code @ ("MOVED" | "ASK" | "CROSSSLOT" | "NOPERM" | "ERR"))) => {
            Problem::new(StoreErrorKind::Misconfigured, answered(code, error.detail()))
        }
        (_, Some(code)) => unavailable(answered(code, error.detail())),
        (ErrorKind::Io, None) if error.is_timeout() => unavailable("the server doesn't answer".to_owned()),
        (ErrorKind::Io, None) => unavailable("the connection is broken".to_owned()),
        // The text of other errors may repeat what was received.
        (kind, None) => unavailable(format!("the server's answer isn't understood ({kind:?})")),
    }
}

/// Returns the server's words, but for what it repeats of the call: that may be a password or a token.
fn answered(code: &str, detail: Option<&str>) -> String {
    let detail = detail.unwrap_or_default();
    let detail = detail.split_once(", with args").map_or(detail, |(detail, _)| detail);
    let shown: String = detail.chars().take(200).collect();
    format!("the server answers {code} {shown}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_server_that_is_silent_is_told_from_a_connection_that_breaks() {
        for (kind, reason) in [
            (io::ErrorKind::TimedOut, "the server doesn't answer"),
            (io::ErrorKind::BrokenPipe, "the connection is broken"),
        ] {
            let failure = Failure::of(&RedisError::from(io::Error::from(kind)));
            assert!(matches!(failure, Failure::Lost(_)), "the server may have acted");
            let error = failure.problem().of("redis");
            assert_eq!((error.kind(), error.to_string()), (StoreErrorKind::Unavailable, format!("redis: {reason}")));
        }
    }
}
