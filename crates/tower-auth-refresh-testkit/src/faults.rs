//! [`Fault`]: what goes wrong, where, for whom and how often.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::Value;

use crate::families::Grant;

/// A class of routes: what a [`Fault`] is injected into, and what the log calls a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Route {
    /// `POST /auth/login`
    Login,
    /// `POST /auth/refresh`
    Refresh,
    /// `POST /auth/logout`
    Logout,
    /// `/api/…`
    Api,
    /// Anything else.
    Other,
}

impl Route {
    pub(crate) fn of(path: &str) -> Self {
        match path {
            "/auth/login" => Self::Login,
            "/auth/refresh" => Self::Refresh,
            "/auth/logout" => Self::Logout,
            path if path.starts_with("/api/") || path == "/api" => Self::Api,
            _ => Self::Other,
        }
    }
}

/// Something that goes wrong, until it is [cleared](crate::TestKit::clear_faults) or has happened
/// [often enough](Self::times).
///
/// ```
/// # use std::time::Duration;
/// # use tower_auth_refresh_testkit::{Fault, Route, TestKit};
/// let kit = TestKit::new();
/// // The next two refreshes are turned away …
/// kit.inject(Route::Refresh, Fault::status(503).header("retry-after", "1").times(2));
/// // … then ada's are served, 50 ms late, but she never hears of it.
/// kit.inject(Route::Refresh, Fault::drop_connection().after_processing().delayed(Duration::from_millis(50)).of("ada"));
/// ```
///
/// Of several faults that fit a request, the one injected first applies, alone.
///
/// If the server has rotated a refresh token, and a fault then spoils the answer or keeps it from the client, he is
/// excused, once, for presenting that token again.
#[derive(Clone, Debug)]
#[must_use = "a fault does nothing until it is injected"]
pub struct Fault {
    act: Act,
    after: bool,
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

/// How the answer's body is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pace {
    #[default]
    Whole,
    Drip(Duration),
    Stall,
}

/// Before or after the server has done its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Before,
    After,
}

impl Fault {
    fn new(act: Act) -> Self {
        Self { act, after: false, delay: Duration::ZERO, pace: Pace::Whole, times: usize::MAX, user: None }
    }

    /// The ordinary answer, but late.
    pub fn delay(delay: Duration) -> Self {
        Self::new(Act::Answer).delayed(delay)
    }

    /// This status instead of an answer.
    ///
    /// # Panics
    ///
    /// If the code isn't one of three digits.
    pub fn status(code: u16) -> Self {
        let status = StatusCode::from_u16(code).expect("a status code has three digits");
        Self::new(Act::Status(status, HeaderMap::new(), Bytes::new()))
    }

    /// No answer, ever; the connection stays open.
    pub fn hang() -> Self {
        Self::new(Act::Hang)
    }

    /// The connection is closed instead of an answer; over HTTP/2 with all that it carries.
    pub fn drop_connection() -> Self {
        Self::new(Act::Drop)
    }

    /// A 200 whose JSON breaks off, after processing.
    pub fn malformed() -> Self {
        Self::new(Act::Malformed).after_processing()
    }

    /// A 200 that begins like an answer and goes on for this many bytes, after processing.
    pub fn huge(length: u64) -> Self {
        Self::new(Act::Huge(Some(length))).after_processing()
    }

    /// As [`huge`](Self::huge), but it never ends.
    pub fn endless() -> Self {
        Self::new(Act::Huge(None)).after_processing()
    }

    /// The ordinary answer, if it is JSON, changed by `change`.
    pub fn alter(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::new(Act::Alter(Arc::new(change)))
    }

    /// A refresh answers the access token that is in force already, beside a new refresh token.
    pub fn same_access_token() -> Self {
        Self::new(Act::Grant(Grant::SameAccessToken))
    }

    /// A refresh answers an access token that the API refuses.
    pub fn refused_token() -> Self {
        Self::new(Act::Grant(Grant::Refused))
    }

    /// A refresh answers no `refresh_token`: the one presented stays good.
    pub fn omit_refresh_token() -> Self {
        Self::new(Act::Grant(Grant::KeepRefreshToken))
    }

    /// The ordinary answer, its body sent one byte at a time.
    pub fn drip(every: Duration) -> Self {
        Self::new(Act::Answer).dripping(every)
    }

    /// The ordinary answer, whose body never ends.
    pub fn stall() -> Self {
        Self::new(Act::Answer).stalling()
    }

    /// Adds a header to the answer of [`status`](Self::status).
    ///
    /// # Panics
    ///
    /// If it isn't a valid header.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Act::Status(_, headers, _) = &mut self.act {
            let value = HeaderValue::from_str(value).expect("a header value is visible text");
            headers.append(HeaderName::from_static(name), value);
        }
        self
    }

    /// Sets the body of the answer of [`status`](Self::status). Default: empty.
    pub fn body(mut self, content: impl Into<Bytes>) -> Self {
        if let Act::Status(_, _, body) = &mut self.act {
            *body = content.into();
        }
        self
    }

    /// It happens after the server has done its work: a refresh has rotated the token, and the answer is lost.
    /// Default: before, and nothing is done.
    pub fn after_processing(mut self) -> Self {
        self.after = true;
        self
    }

    /// It happens after this time. Default: at once.
    pub fn delayed(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// The answer's body is sent one byte at a time. Default: whole.
    pub fn dripping(mut self, every: Duration) -> Self {
        self.pace = Pace::Drip(every);
        self
    }

    /// The answer's body is sent, but never ends. Default: it does.
    pub fn stalling(mut self) -> Self {
        self.pace = Pace::Stall;
        self
    }

    /// It happens this many times. Default: until it is cleared.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// It happens to this user alone. Default: to all.
    pub fn of(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    pub(crate) fn fits(&self, user: Option<&str>) -> bool {
        self.times > 0 && (self.user.is_none() || self.user.as_deref() == user)
    }

    /// Counts one use. `false` if it was the last.
    pub(crate) fn use_up(&mut self) -> bool {
        if self.times != usize::MAX {
            self.times = self.times.saturating_sub(1);
        }
        self.times > 0
    }

    /// What happens at this moment, and how late.
    pub(crate) fn at(&self, moment: Moment) -> (Duration, Option<&Act>) {
        let chosen = if self.after { Moment::After } else { Moment::Before };
        let delay = if moment == chosen { self.delay } else { Duration::ZERO };
        let act = match &self.act {
            Act::Answer | Act::Alter(_) | Act::Grant(_) => None,
            act @ (Act::Status(..) | Act::Hang | Act::Drop) => (moment == chosen).then_some(act),
            act @ (Act::Malformed | Act::Huge(_)) => (moment == Moment::After).then_some(act),
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
