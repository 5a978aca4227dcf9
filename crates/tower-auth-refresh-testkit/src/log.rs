//! The records that a test reads: the log's entries, the counters, and the oracle's violations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde::{Serialize, Serializer};

use crate::faults::Route;

/// One request in the log, as the server saw it.
///
/// A request is logged when its response is sent or the request is aborted.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// The request's number in the order of arrival, from 1.
    ///
    /// The number restarts when the kit is [reset](crate::TestKit::reset).
    pub number: u64,
    /// The time of arrival, since the kit was created. In JSON: milliseconds.
    #[serde(serialize_with = "milliseconds")]
    pub at: Duration,
    /// The time from arrival to the response's head. In JSON: milliseconds.
    #[serde(serialize_with = "milliseconds")]
    pub took: Duration,
    /// The method.
    #[serde(serialize_with = "method")]
    pub method: Method,
    /// The path and query.
    pub path: String,
    /// The class of routes that the path belongs to.
    pub route: Route,
    /// The response's status, or `None` if no response was sent.
    ///
    /// The connection was dropped, or the client aborted the request.
    pub status: Option<u16>,
    /// The user of the token that the request carried, or the user that signs in.
    pub user: Option<Arc<str>>,
    /// The generation of the request's token, counted from 1 for each sign-in.
    ///
    /// For `/auth/refresh` and `/auth/logout`, the refresh token's generation; otherwise the access token's.
    pub generation: Option<u64>,
    /// The number of the connection, from 1. `None` for a call without a socket.
    pub connection: Option<u64>,
    /// The reason for a refusal, or another remark.
    ///
    /// The remarks are `fault` for an injected fault, and `grace` for a refresh in the grace window.
    pub note: Option<&'static str>,
}

/// Counters since the kit was created or [reset](crate::TestKit::reset).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// All requests, counted when they arrive.
    pub requests: u64,
    /// Requests to `/auth/login`.
    pub logins: u64,
    /// Refreshes, granted or not: requests to `/auth/refresh`, and to `/oauth/token` with a refresh token.
    pub refreshes: u64,
    /// Refreshes that the server granted, even if the response was lost.
    pub granted: u64,
    /// Requests to `/auth/logout`.
    pub logouts: u64,
    /// Requests to `/api/…`.
    pub api: u64,
    /// Responses of `/api/…` by status.
    pub api_by_status: BTreeMap<u16, u64>,
    /// Generations of access tokens that the API refused.
    ///
    /// Each generation is counted once, at its first 401.
    pub generations_challenged: u64,
    /// Requests without a response.
    pub unanswered: u64,
    /// Connections opened.
    pub connections: u64,
    /// Uses of superseded refresh tokens: see [`Violation`].
    pub violations: u64,
    /// Uses of superseded refresh tokens that were allowed.
    ///
    /// The kit had withheld the successor, or the test had called
    /// [`allow_reuse_once`](crate::TestKit::allow_reuse_once).
    pub allowed_reuses: u64,
    /// The largest number of refreshes that one user had under way at the same time.
    pub max_concurrent_refreshes: u64,
    /// Complete request bodies that differed from what their headers announced.
    ///
    /// The crate's documentation names the headers.
    pub body_mismatches: u64,
    /// Request bodies that were cut short.
    pub bodies_cut_short: u64,
    /// Requests that a fault was injected into.
    pub faults: u64,
}

impl Counters {
    /// Returns the number of the API's responses with status 401.
    #[must_use]
    pub fn unauthorized(&self) -> u64 {
        self.api_by_status.get(&401).copied().unwrap_or_default()
    }
}

/// The counters of one user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UserCounters {
    /// The user's requests to `/auth/refresh`.
    pub refreshes: u64,
    /// Refreshes that the server granted.
    pub granted: u64,
    /// The largest number of the user's refreshes that were under way at the same time.
    pub max_concurrent_refreshes: u64,
    /// Responses of `/api/…` by status.
    pub api_by_status: BTreeMap<u16, u64>,
    /// Uses of superseded refresh tokens: see [`Violation`].
    pub violations: u64,
    /// Allowed uses of superseded refresh tokens: see [`Counters::allowed_reuses`].
    pub allowed_reuses: u64,
}

/// A use of a superseded refresh token that the kit had not caused.
///
/// Each use is a violation, even if the server grants the refresh because of a grace window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Violation {
    /// The time of the refresh, since the kit was created. In JSON: milliseconds.
    #[serde(serialize_with = "milliseconds")]
    pub at: Duration,
    /// The user of the token.
    pub user: Arc<str>,
    /// The generation of the refresh token that was presented.
    pub generation: u64,
    /// The generation of the current refresh token.
    pub current: u64,
}

fn milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64() * 1000.0)
}

fn method<S: Serializer>(method: &Method, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(method.as_str())
}
