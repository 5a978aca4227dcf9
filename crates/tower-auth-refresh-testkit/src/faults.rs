//! [`Fault`]: a failure to inject, and the requests that it applies to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::Value;

use crate::families::Grant;

/// A class of routes, for injecting a [`Fault`] and for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Route {
    /// `POST /auth/login`
    Login,
    /// `POST /auth/refresh`, and `POST /oauth/token` with a refresh token
    Refresh,
    /// `POST /auth/logout`
    Logout,
    /// `/api/…`
    Api,
    /// `/oauth/…` but a refresh, and the server's metadata
    SignIn,
    /// Any other path
    Other,
}

impl Route {
    pub(crate) fn of(path: &str) -> Self {
        match path {
            "/auth/login" => Self::Login,
            "/auth/refresh" => Self::Refresh,
            "/auth/logout" => Self::Logout,
            path if path.starts_with("/api/") || path == "/api" => Self::Api,
            path if path.starts_with("/oauth/") || path == "/.well-known/oauth-authorization-server" => Self::SignIn,
            _ => Self::Other,
        }
    }
}

/// A failure to inject into the requests of a route.
///
/// A fault applies until it is [cleared](crate::TestKit::clear_faults) or has been applied the set number of
/// [times](Self::times). If several faults match a request, only the one that was injected first applies.
///
/// ```
/// # use std::time::Duration;
/// # use tower_auth_refresh_testkit::{Fault, Route, TestKit};
/// let kit = TestKit::new();
/// // The next two refreshes get a 503.
/// kit.inject(Route::Refresh, Fault::status(503).header("retry-after", "1").times(2));
/// // After that, the server processes the refreshes of the user "ada", waits 50 ms, and drops the connection.
/// let fault = Fault::drop_connection().after_processing().delayed(Duration::from_millis(50));
/// kit.inject(Route::Refresh, fault.of("ada"));
/// ```
///
/// If the server has rotated a refresh token and the fault then changes or withholds the response, the client may
/// present the superseded token once more without a [`Violation`](crate::Violation).
#[derive(Clone, Debug)]
#[must_use = "a fault does nothing until it is injected"]
pub struct Fault {
    act: Act,
    phase: Phase,
    delay: Duration,
    pace: Pace,
    times: usize,
    user: Option<String>,
}

#[derive(Clone)]
pub(crate) enum Act {
    Answer,
    Status(StatusCode, HeaderMap, Bytes),
    Hang,
    Drop,
    Malformed,
    Huge(Option<u64>),
    Alter(Arc<dyn Fn(&mut Value) + Send + Sync>),
    Grant(Grant),
}

/// The pace at which a response body is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pace {
    #[default]
    Whole,
    Drip(Duration),
    Stall,
}

/// The two phases of a request in which a fault can apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    BeforeProcessing,
    AfterProcessing,
}

impl Fault {
    fn new(act: Act) -> Self {
        Self {
            act,
            phase: Phase::BeforeProcessing,
            delay: Duration::ZERO,
            pace: Pace::Whole,
            times: usize::MAX,
            user: None,
        }
    }

    /// Delays the ordinary response.
    pub fn delay(delay: Duration) -> Self {
        Self::new(Act::Answer).delayed(delay)
    }

    /// Responds with this status instead of the ordinary response.
    ///
    /// # Panics
    ///
    /// If the code is less than 100 or greater than 999.
    pub fn status(code: u16) -> Self {
        let status = StatusCode::from_u16(code).expect("a status code has three digits");
        Self::new(Act::Status(status, HeaderMap::new(), Bytes::new()))
    }

    /// Never responds. The connection stays open.
    pub fn hang() -> Self {
        Self::new(Act::Hang)
    }

    /// Closes the connection instead of responding.
    ///
    /// Over HTTP/2, this ends all requests of the connection.
    pub fn drop_connection() -> Self {
        Self::new(Act::Drop)
    }

    /// Responds with a 200 whose JSON is cut short, after processing.
    pub fn malformed() -> Self {
        Self::new(Act::Malformed).after_processing()
    }

    /// Responds with a 200 of this many bytes, after processing.
    ///
    /// The body begins like a token response and is malformed.
    pub fn huge(length: u64) -> Self {
        Self::new(Act::Huge(Some(length))).after_processing()
    }

    /// Responds as [`huge`](Self::huge) does, with a body that never ends.
    pub fn endless() -> Self {
        Self::new(Act::Huge(None)).after_processing()
    }

    /// Changes the ordinary response by `change`, if it is JSON.
    pub fn alter(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::new(Act::Alter(Arc::new(change)))
    }

    /// Grants a refresh with the current access token and a new refresh token.
    pub fn same_access_token() -> Self {
        Self::new(Act::Grant(Grant::SameAccessToken))
    }

    /// Grants a refresh with an access token that the API refuses.
    pub fn refused_token() -> Self {
        Self::new(Act::Grant(Grant::Refused))
    }

    /// Grants a refresh without a `refresh_token` in the response.
    ///
    /// The refresh token that was presented stays valid.
    pub fn omit_refresh_token() -> Self {
        Self::new(Act::Grant(Grant::KeepRefreshToken))
    }

    /// Sends the body of the ordinary response one byte at a time, with this interval.
    pub fn drip(every: Duration) -> Self {
        Self::new(Act::Answer).dripping(every)
    }

    /// Sends the ordinary response, and never ends its body.
    pub fn stall() -> Self {
        Self::new(Act::Answer).stalling()
    }

    /// Adds a header to the response of [`status`](Self::status).
    ///
    /// # Panics
    ///
    /// If the name isn't a lowercase header name, or the value isn't a header value.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Act::Status(_, headers, _) = &mut self.act {
            let value = HeaderValue::from_str(value).expect("the value is a valid header value");
            headers.append(HeaderName::from_static(name), value);
        }
        self
    }

    /// Sets the body of the response of [`status`](Self::status). Default: empty.
    pub fn body(mut self, content: impl Into<Bytes>) -> Self {
        if let Act::Status(_, _, body) = &mut self.act {
            *body = content.into();
        }
        self
    }

    /// Applies the fault after the server has processed the request.
    ///
    /// A refresh has then rotated its token when the response is lost. Default: before, and the request isn't
    /// processed.
    pub fn after_processing(mut self) -> Self {
        self.phase = Phase::AfterProcessing;
        self
    }

    /// Applies the fault after this delay. Default: none.
    pub fn delayed(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sends the response body one byte at a time, with this interval.
    ///
    /// Default: all at once.
    pub fn dripping(mut self, every: Duration) -> Self {
        self.pace = Pace::Drip(every);
        self
    }

    /// Sends the response body and never ends it. Default: the body ends.
    pub fn stalling(mut self) -> Self {
        self.pace = Pace::Stall;
        self
    }

    /// Applies the fault this many times. Default: until the fault is cleared.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Applies the fault to the requests of this user only. Default: of all users.
    pub fn of(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    pub(crate) fn matches(&self, user: Option<&str>) -> bool {
        self.times > 0 && (self.user.is_none() || self.user.as_deref() == user)
    }

    /// Counts one use. Returns `false` if no use is left.
    pub(crate) fn use_up(&mut self) -> bool {
        if self.times != usize::MAX {
            self.times = self.times.saturating_sub(1);
        }
        self.times > 0
    }

    /// Returns the delay and the act of this phase.
    pub(crate) fn at(&self, phase: Phase) -> (Duration, Option<&Act>) {
        let delay = if phase == self.phase { self.delay } else { Duration::ZERO };
        let act = match &self.act {
            Act::Answer | Act::Alter(_) | Act::Grant(_) => None,
            act @ (Act::Status(..) | Act::Hang | Act::Drop) => (phase == self.phase).then_some(act),
            act @ (Act::Malformed | Act::Huge(_)) => (phase == Phase::AfterProcessing).then_some(act),
        };
        (delay, act)
    }

    pub(crate) fn grant(&self) -> Grant {
        if let Act::Grant(grant) = self.act { grant } else { Grant::Ordinary }
    }

    pub(crate) fn alteration(&self) -> Option<&(dyn Fn(&mut Value) + Send + Sync)> {
        if let Act::Alter(change) = &self.act { Some(&**change) } else { None }
    }

    pub(crate) fn pace(&self) -> Pace {
        self.pace
    }
}

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer => f.write_str("Answer"),
            Self::Status(status, ..) => f.debug_tuple("Status").field(&status.as_u16()).finish(),
            Self::Hang => f.write_str("Hang"),
            Self::Drop => f.write_str("Drop"),
            Self::Malformed => f.write_str("Malformed"),
            Self::Huge(length) => f.debug_tuple("Huge").field(length).finish(),
            Self::Alter(_) => f.write_str("Alter"),
            Self::Grant(grant) => f.debug_tuple("Grant").field(grant).finish(),
        }
    }
}
