//! [`ResponseHead`]: a response as a policy sees it.

use std::fmt;
use std::time::SystemTime;

use http::header::HeaderMap;
use http::status::StatusCode;
use http::{Extensions, Response};

use crate::refresh::Generation;

/// A response without its body, as a [`ChallengePolicy`](super::ChallengePolicy) sees it.
///
/// It also has the token that the request carried: a server that answers 403 for an expired token *and* for a
/// forbidden resource can only be told apart by the token's expiry:
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use http::StatusCode;
/// use tower_auth_refresh::challenge::ResponseHead;
/// use tower_auth_refresh::ChallengePolicy;
///
/// // The clocks of the server and of this machine may differ.
/// const SKEW: Duration = Duration::from_secs(30);
///
/// let policy = ChallengePolicy::when(|response: &ResponseHead<'_>| {
///     let replaced = response.generation().is_some() && !response.is_in_force();
///     let expired = response.expires_at().is_some_and(|at| at <= SystemTime::now() + SKEW);
///     response.status() == StatusCode::FORBIDDEN && (replaced || expired)
/// });
/// # let _ = policy;
/// ```
#[derive(Clone, Copy)]
pub struct ResponseHead<'a> {
    pub(super) status: StatusCode,
    pub(super) headers: &'a HeaderMap,
    pub(super) extensions: Option<&'a Extensions>,
    pub(super) scheme: &'a str,
    pub(super) sent: Option<SentToken>,
}

/// The token that a request carried, compared with the session's state when the response has arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SentToken {
    pub(crate) generation: Generation,
    pub(crate) in_force: bool,
    pub(crate) expires_at: Option<SystemTime>,
}

/// The mark in the extensions of a response whose body says that the token has expired.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenExpired;

impl<'a> ResponseHead<'a> {
    /// Creates the head of a response to a request that carried no token: to test a policy.
    #[must_use]
    pub fn new(status: StatusCode, headers: &'a HeaderMap) -> Self {
        Self { status, headers, extensions: None, scheme: "Bearer", sent: None }
    }

    /// The head of a response to a request of a layer that sends its token under `scheme`.
    #[inline]
    pub(crate) fn of<B>(response: &'a Response<B>, scheme: &'a str) -> Self {
        let (status, headers) = (response.status(), response.headers());
        Self { status, headers, extensions: Some(response.extensions()), scheme, sent: None }
    }

    /// Returns the status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the headers.
    ///
    /// [`Challenge`](super::Challenge) reads `WWW-Authenticate`.
    #[must_use]
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// Returns an extension of the response, which a layer inside this middleware may have set.
    #[must_use]
    pub fn extension<T: Clone + Send + Sync + 'static>(&self) -> Option<&'a T> {
        self.extensions?.get()
    }

    /// Returns the generation of the token that the request carried.
    ///
    /// `None` if the request carried no token.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.sent.map(|sent| sent.generation)
    }

    /// Returns `true` if the token that the request carried is still in force.
    ///
    /// If it has been replaced since, a challenge causes a replay and no refresh.
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        self.sent.is_some_and(|sent| sent.in_force)
    }

    /// Returns the known expiry of the token that the request carried.
    ///
    /// `None` if the expiry is unknown, or if the token is no longer in force.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.sent?.expires_at
    }
}

impl fmt::Debug for ResponseHead<'_> {
    /// Shows no header: a server may repeat a token in one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseHead").field("status", &self.status).field("sent", &self.sent).finish_non_exhaustive()
    }
}
