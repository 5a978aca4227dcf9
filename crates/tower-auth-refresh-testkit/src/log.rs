//! What the servers saw, as a test reads it: the log's entries, the counters, and the oracle's violations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde::{Serialize, Serializer};

use crate::faults::Route;

/// One request, as the server saw it. Entries are logged when the request is answered, or given up.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// Counts requests in the order they arrived, from 1, since the kit was made or [`reset`](crate::TestKit::reset).
    pub number: u64,
    /// When it arrived, since the kit was made. In JSON: milliseconds.
    #[serde(serialize_with = "milliseconds")]
    pub at: Duration,
    /// How long the answer's head took. In JSON: milliseconds.
    #[serde(serialize_with = "milliseconds")]
    pub took: Duration,
    /// Its method.
    #[serde(serialize_with = "method")]
    pub method: Method,
    /// Its path, with the query if it has one.
    pub path: String,
    /// The class that its path belongs to.
    pub route: Route,
    /// The answer's status; `None` where there was none: the connection was dropped, or the client went away.
    pub status: Option<u16>,
    /// Whose token it carried, or who signs in.
    pub user: Option<Arc<str>>,
    /// The generation of the token it carried, counted from 1 for each sign-in: the access token's, and for
    /// `/auth/refresh` the refresh token's.
    pub generation: Option<u64>,
    /// The connection it came over, counted from 1; `None` for a call without a socket.
    pub connection: Option<u64>,
    /// What was peculiar, in a word or two: why it was refused, that a fault was injected.
    pub note: Option<&'static str>,
}

/// What was counted since the kit was made or [`reset`](crate::TestKit::reset).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// Requests of any kind, when they arrived.
    pub requests: u64,
    /// Requests to `/auth/login`.
    pub logins: u64,
    /// Requests to `/auth/refresh`, whatever became of them.
    pub refreshes: u64,
    /// Refreshes that the server granted, whether or not the answer reached the client.
    pub granted: u64,
    /// Requests to `/auth/logout`.
    pub logouts: u64,
    /// Requests to `/api/…`.
    pub api: u64,
    /// Answers of `/api/…` by status.
    pub api_by_status: BTreeMap<u16, u64>,
    /// Generations of access tokens that the API refused, each counted once, at its first 401.
    pub generations_challenged: u64,
    /// Requests that got no answer.
    pub unanswered: u64,
    /// Connections opened.
    pub connections: u64,
    /// Superseded refresh tokens that were presented: see [`Violation`].
    pub violations: u64,
    /// Superseded refresh tokens that were presented because the kit had kept the successor from the client.
    pub excused: u64,
    /// The most refreshes that one user had under way at the same moment.
    pub max_concurrent_refreshes: u64,
    /// Request bodies that were read whole and weren't what their headers announced: see the crate's documentation.
    pub body_mismatches: u64,
    /// Request bodies that broke off.
    pub bodies_cut_short: u64,
    /// Requests that a fault was injected into.
    pub faults: u64,
}

impl Counters {
    /// The API's answers with status 401.
    #[must_use]
    pub fn unauthorized(&self) -> u64 {
        self.api_by_status.get(&401).copied().unwrap_or_default()
    }
}

/// What was counted for one user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UserCounters {
    /// His requests to `/auth/refresh`.
    pub refreshes: u64,
    /// Those that the server granted.
    pub granted: u64,
    /// The most of them under way at the same moment.
    pub max_concurrent_refreshes: u64,
    /// Answers of `/api/…` by status.
    pub api_by_status: BTreeMap<u16, u64>,
    /// Superseded refresh tokens that were presented.
    pub violations: u64,
    /// The same, excused.
    pub excused: u64,
}

/// A superseded refresh token was presented, and the kit had done nothing to cause it.
///
/// It counts whatever the server answers: within a grace window too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Violation {
    /// When, since the kit was made. In JSON: milliseconds.
    #[serde(serialize_with = "milliseconds")]
    pub at: Duration,
    /// Whose token.
    pub user: Arc<str>,
    /// The generation of the refresh token presented.
    pub generation: u64,
    /// The generation in force.
    pub current: u64,
}

fn milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64() * 1000.0)
}

fn method<S: Serializer>(method: &Method, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(method.as_str())
}
