//! The outcomes of logins, told apart for the metrics and the log.

use http::StatusCode;

use crate::problem::Kind;

/// The names of all outcomes.
pub(crate) const LOGIN_OUTCOMES: [&str; 11] = [
    "succeeded",
    "wrong_credentials",
    "malformed",
    "cross_origin",
    "limited",
    "too_many_sessions",
    "auth_server_unavailable",
    "auth_server_failed",
    "store_unavailable",
    "client_disconnected",
    "internal",
];

/// Returns the position of a login's outcome in [`LOGIN_OUTCOMES`]; `None` as status: the client has disconnected.
pub(super) fn outcome(status: Option<StatusCode>, problem: Option<Kind>) -> usize {
    let name = match (problem, status) {
        (None, Some(status)) if status.is_success() => "succeeded",
        (None, None) | (Some(Kind::RequestTooSlow), _) => "client_disconnected",
        (Some(Kind::WrongCredentials), _) => "wrong_credentials",
        (Some(Kind::CrossOrigin), _) => "cross_origin",
        (Some(Kind::MalformedRequest | Kind::WrongMediaType | Kind::BodyTooLarge), _) => "malformed",
        (Some(Kind::TooManyLogins | Kind::TooManyLoginsOfAddress), _) => "limited",
        (Some(Kind::TooManySessions), _) => "too_many_sessions",
        (Some(Kind::AuthServerUnavailable), _) => "auth_server_unavailable",
        (Some(Kind::AuthServerFailed), _) => "auth_server_failed",
        (Some(Kind::StoreUnavailable), _) => "store_unavailable",
        _ => "internal",
    };
    LOGIN_OUTCOMES.iter().position(|outcome| *outcome == name).unwrap_or(LOGIN_OUTCOMES.len() - 1)
}

/// Checks if an outcome is the client's doing, as opposed to trouble of the gateway or a server behind it.
pub(super) fn is_of_the_client(outcome: usize) -> bool {
    matches!(LOGIN_OUTCOMES[outcome], "wrong_credentials" | "malformed" | "cross_origin" | "client_disconnected")
}
