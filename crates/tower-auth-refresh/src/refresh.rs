//! The refresh call: [`RefreshService`], its request ([`RefreshRequest`]) and its error ([`RefreshError`]).
//!
//! Any `tower` service from a [`RefreshRequest`] to [`Tokens`] is a [`RefreshService`]; a closure becomes one through
//! [`tower::service_fn`]:
//!
//! ```
//! use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Tokens};
//!
//! let refresh = tower::service_fn(|request: RefreshRequest| async move {
//!     let old = request.refresh_token().expect("this session was signed in with one");
//!     // … POST it to /auth/refresh, then:
//! #   let _ = old;
//!     let access = AccessToken::new("new access token").map_err(RefreshError::in_doubt)?;
//!     let refresh = RefreshToken::new("its successor").map_err(RefreshError::in_doubt)?;
//!     Ok::<_, RefreshError>(Tokens::new(access, refresh))
//! });
//! # fn is_refresh_service(_: impl tower_auth_refresh::RefreshService) {}
//! # is_refresh_service(refresh);
//! ```
//!
//! A refresh service can be layered like any other service, and its error may be a [`tower::BoxError`]:
//!
//! ```
//! # use tower_auth_refresh::{RefreshError, RefreshRequest, Tokens};
//! # let refresh = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
//! use tower::ServiceBuilder;
//!
//! let refresh = ServiceBuilder::new()
//!     .map_err(|error: RefreshError| { eprintln!("{error}"); error })
//!     .service(refresh);
//! # fn is_refresh_service(_: impl tower_auth_refresh::RefreshService) {}
//! # is_refresh_service(refresh);
//! ```

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tower::BoxError;
use tower_service::Service;

use crate::token::{RefreshToken, Tokens};

/// A service that exchanges the refresh token for new [`Tokens`].
///
/// A trait alias, like `tower`'s `MakeService`: it is implemented for every
/// `Service<RefreshRequest, Response = Tokens>` that is `Clone + Send + Sync + 'static`, whose error converts into a
/// [`BoxError`], and whose future is `Send + 'static`. A service that isn't `Clone` is wrapped in `tower`'s `Buffer`.
///
/// Each attempt calls a fresh clone, once it is ready. An error that is a [`RefreshError`], or has one among its
/// sources, is classified by that; any other error counts as [`InDoubt`](RefreshErrorKind::InDoubt), and so does a
/// panic.
///
/// The call should be sent to the authorization server through a client without this middleware. If it is sent through
/// the session's own layer nonetheless, it is recognised and passes untouched, unless a `Buffer` or another task is
/// between them: then the refresh ends by its time-out.
pub trait RefreshService:
    Service<RefreshRequest, Response = Tokens, Error: Into<BoxError>, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> RefreshService for S where
    S: Service<RefreshRequest, Response = Tokens, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// A service that revokes tokens at the authorization server.
///
/// By RFC 7009, or an app's `/auth/logout`. A trait alias like [`RefreshService`], for
/// `Service<RevokeRequest, Response = ()>`.
///
/// A call that failed is [repeated](crate::SessionBuilder::revoke), unless its error is a [`RefreshError`] of the kind
/// [`Misconfigured`](RefreshErrorKind::Misconfigured) or [`Rejected`](RefreshErrorKind::Rejected), or has one as a
/// source. Tokens that the server no longer accepts are no error.
pub trait RevokeService:
    Service<RevokeRequest, Response = (), Error: Into<BoxError>, Future: Send + 'static> + Clone + Send + Sync + 'static
{
}

impl<S> RevokeService for S where
    S: Service<RevokeRequest, Response = (), Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// A request to a [`RefreshService`].
#[derive(Clone, Debug)]
pub struct RefreshRequest {
    pub(crate) tokens: Tokens,
    pub(crate) generation: Generation,
    pub(crate) trigger: Trigger,
    pub(crate) in_doubt: bool,
}

impl RefreshRequest {
    /// Creates a request to refresh these tokens, as a challenge to the first generation does: to test a service with.
    #[must_use]
    pub fn new(tokens: Tokens) -> Self {
        Self { tokens, generation: Generation(1), trigger: Trigger::Challenge, in_doubt: false }
    }

    /// Sets the reason for the refresh. Default: [`Trigger::Challenge`].
    #[must_use]
    pub fn with_trigger(self, trigger: Trigger) -> Self {
        Self { trigger, ..self }
    }

    /// Sets whether the refresh token may have been presented before. Default: `false`.
    #[must_use]
    pub fn with_in_doubt(self, in_doubt: bool) -> Self {
        Self { in_doubt, ..self }
    }

    /// Returns the refresh token to present.
    ///
    /// `None` in a session that needs no refresh token (client credentials).
    #[must_use]
    pub fn refresh_token(&self) -> Option<&RefreshToken> {
        self.tokens.refresh_token()
    }

    /// Returns all tokens in force.
    ///
    /// Some servers require the expired access token too, or a further member of their last answer.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Returns the generation that is to be replaced.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns the reason for the refresh.
    #[must_use]
    pub fn trigger(&self) -> Trigger {
        self.trigger
    }

    /// Returns `true` if the refresh token may have been presented before.
    ///
    /// The answer to that call was lost. The server may have rotated the token then, and may take this call for a
    /// theft.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }
}

/// A request to a [`RevokeService`].
#[derive(Clone, Debug)]
pub struct RevokeRequest {
    pub(crate) tokens: Tokens,
}

impl RevokeRequest {
    /// Creates a request to revoke these tokens.
    #[must_use]
    pub fn new(tokens: Tokens) -> Self {
        Self { tokens }
    }

    /// Returns the tokens to revoke.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }
}

/// The number of a session's access token in force.
///
/// It only grows. Each request keeps the generation of the token that it was sent with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub(crate) u64);

impl Generation {
    /// Returns the number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The reason for a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trigger {
    /// An API refused the access token in force.
    Challenge,
    /// The access token nears its expiry, and the session refreshes early.
    Early,
    /// A request needs an access token and the session has none.
    Acquire,
    /// The app called [`Session::refresh`](crate::Session::refresh).
    Manual,
}

impl Trigger {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Challenge => "challenge",
            Self::Early => "early",
            Self::Acquire => "acquire",
            Self::Manual => "manual",
        }
    }
}

/// The error of a refresh. Waiters share one, in an `Arc`.
#[derive(Debug)]
pub struct RefreshError {
    kind: RefreshErrorKind,
    details: Option<Box<Details>>,
    source: Option<BoxError>,
}

/// The parts of a [`RefreshError`] that most errors don't have.
#[derive(Clone, Default)]
struct Details {
    retry_after: Option<Duration>,
    no_retry: bool,
    /// Never in `Debug`.
    refresh_token: Option<RefreshToken>,
}

/// What a [`RefreshError`] means for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefreshErrorKind {
    /// The authorization server says that the refresh token is expired or revoked (`invalid_grant`, RFC 6749 §5.2): the
    /// session ends. No other error of a refresh call ends a session.
    Rejected,
    /// The call is wrong or something stands before the server (`invalid_client`, a firewall's page): the tokens are
    /// kept, and asking again at once is no use.
    Misconfigured,
    /// The refresh token was not used (nothing was sent, or the server said "later"): it can be presented again.
    Unavailable,
    /// The call may have reached the server but its answer was lost: the refresh token may be used up.
    InDoubt,
    /// The sign-in has lasted for its [longest time](crate::SessionBuilder::max_lifetime): the session ends. No call was
    /// made.
    LifetimeOver,
}

impl RefreshError {
    /// A [`Rejected`](RefreshErrorKind::Rejected): ends the session.
    pub fn rejected(source: impl Into<BoxError>) -> Self {
        Self::new(RefreshErrorKind::Rejected, source.into())
    }

    /// A [`Misconfigured`](RefreshErrorKind::Misconfigured): keeps the tokens and cools down.
    pub fn misconfigured(source: impl Into<BoxError>) -> Self {
        Self::new(RefreshErrorKind::Misconfigured, source.into())
    }

    /// An [`Unavailable`](RefreshErrorKind::Unavailable): tried again with backoff.
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self::new(RefreshErrorKind::Unavailable, source.into())
    }

    /// An [`InDoubt`](RefreshErrorKind::InDoubt): tried again as the session's [`Rotation`](crate::Rotation) allows.
    pub fn in_doubt(source: impl Into<BoxError>) -> Self {
        Self::new(RefreshErrorKind::InDoubt, source.into())
    }

    /// A [`LifetimeOver`](RefreshErrorKind::LifetimeOver), which only a session makes.
    pub(crate) fn lifetime_over() -> Self {
        Self { kind: RefreshErrorKind::LifetimeOver, details: None, source: None }
    }

    fn new(kind: RefreshErrorKind, source: BoxError) -> Self {
        Self { kind, details: None, source: Some(source) }
    }

    /// Adds the delay that the server asked for (`Retry-After`, RFC 9110 §10.2.3).
    ///
    /// The session clamps it, and applies it to an [`Unavailable`](RefreshErrorKind::Unavailable) error.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Self {
        self.details_mut().retry_after = Some(delay);
        self
    }

    /// Rules out another attempt within this flight; the session cools down first.
    ///
    /// For a server that asked for fewer calls without saying when the next one is welcome (429, RFC 6585 §4).
    #[must_use]
    pub fn without_retry(mut self) -> Self {
        self.details_mut().no_retry = true;
        self
    }

    /// Adds a refresh token that the failed call issued all the same.
    ///
    /// A server that rotates refresh tokens may answer with a new one beside something unreadable. The session saves
    /// this refresh token, keeping the rest of its tokens, before it settles the failure.
    #[must_use]
    pub fn with_refresh_token(mut self, token: RefreshToken) -> Self {
        self.details_mut().refresh_token = Some(token);
        self
    }

    /// The meaning of this error for the session.
    #[must_use]
    pub fn kind(&self) -> RefreshErrorKind {
        self.kind
    }

    /// The delay that the server asked for, as it was given.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.details.as_ref()?.retry_after
    }

    /// The refresh token that the failed call issued, if there is one.
    #[must_use]
    pub fn refresh_token(&self) -> Option<&RefreshToken> {
        self.details.as_ref()?.refresh_token.as_ref()
    }

    /// Returns `false` if another attempt within this flight is ruled out.
    pub(crate) fn may_retry(&self) -> bool {
        self.details.as_ref().is_none_or(|details| !details.no_retry)
    }

    fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_default()
    }

    /// Classifies whatever a refresh service failed with: by the first [`RefreshError`] in its chain of sources, and
    /// else as in doubt, since nothing says that the call was not sent.
    pub(crate) fn classify(error: BoxError) -> Self {
        Self::find(error).unwrap_or_else(Self::in_doubt)
    }

    /// Classifies an error of a service that failed before it was called: nothing was sent.
    pub(crate) fn classify_unsent(error: BoxError) -> Self {
        Self::find(error).unwrap_or_else(Self::unavailable)
    }

    fn find(error: BoxError) -> Result<Self, BoxError> {
        let error = match error.downcast::<Self>() {
            Ok(own) => return Ok(*own),
            Err(other) => other,
        };
        match Self::in_chain(&*error) {
            Some(own) => Ok(Self { kind: own.kind, details: own.details.clone(), source: Some(error) }),
            None => Err(error),
        }
    }

    /// Returns the first [`RefreshError`] among an error and its sources.
    pub(crate) fn in_chain<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(own) = error.downcast_ref() {
                return Some(own);
            }
            cause = error.source();
        }
        None
    }

    /// Returns the source of a [`RefreshError`], and any other error as it is.
    pub(crate) fn unwrap_source(error: BoxError) -> BoxError {
        match error.downcast::<Self>() {
            Ok(mut own) => own.source.take().unwrap_or(own),
            Err(other) => other,
        }
    }
}

impl RefreshErrorKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Misconfigured => "misconfigured",
            Self::Unavailable => "unavailable",
            Self::InDoubt => "in_doubt",
            Self::LifetimeOver => "lifetime_over",
        }
    }
}

impl fmt::Debug for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Details")
            .field("retry_after", &self.retry_after)
            .field("no_retry", &self.no_retry)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for RefreshError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            RefreshErrorKind::Rejected => "the authorization server rejected the refresh token",
            RefreshErrorKind::Misconfigured => "the refresh call is misconfigured",
            RefreshErrorKind::Unavailable => "the refresh call is unavailable",
            RefreshErrorKind::InDoubt => "the answer to the refresh call was lost",
            RefreshErrorKind::LifetimeOver => "the sign-in has lasted for its longest time",
        })
    }
}

impl Error for RefreshError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// The reason why there are no newer tokens.
///
/// The error of [`Session::refresh`](crate::Session::refresh), and the reason in a
/// [`RefreshReport`](crate::RefreshReport) of a 401 that the caller got back.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NotRefreshed {
    /// The refresh call failed. The session keeps its tokens and refreshes again after a cool-down.
    Failed(Arc<RefreshError>),
    /// The session cools down after a refresh call that failed with this error; it was not called again.
    CoolingDown(Arc<RefreshError>),
    /// The authorization server rejected the refresh token, or the sign-in has lasted for its longest time: the session has
    /// ended and the user must sign in again.
    Ended(Arc<RefreshError>),
    /// The request carries no session, and the layer takes sessions from requests.
    NoSession,
    /// The session is signed out.
    SignedOut,
    /// A sign-in or sign-out happened since the request was made: the request is not replayed for another user.
    SessionChanged,
    /// The session has no refresh token, and its service needs one.
    NoRefreshToken,
    /// The authorization server issued the same token that the API refuses.
    SameToken,
    /// The API refused several fresh tokens and accepted none: the session cools down, so as not to refresh in a loop.
    Looping,
    /// The API refuses this request with fresh tokens, which it accepts with other requests.
    ///
    /// The refusal is about the request (a missing scope, an endpoint that requires a more recent sign-in), so a
    /// refresh would not help. The session goes on refreshing for other requests.
    RequestRefused,
}

impl NotRefreshed {
    /// Returns `true` if only a sign-in helps.
    ///
    /// No user is signed in, the authorization server has ended the session, or the access token was refused and there is
    /// no refresh token to replace it. After any other reason the session may obtain tokens by itself later.
    #[must_use]
    pub fn requires_sign_in(&self) -> bool {
        matches!(self, Self::SignedOut | Self::Ended(_) | Self::NoRefreshToken)
    }

    /// Returns the name of the reason in traces.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Failed(_) => "refresh_failed",
            Self::CoolingDown(_) => "cooling_down",
            Self::Ended(_) => "session_ended",
            Self::NoSession => "no_session",
            Self::SignedOut => "signed_out",
            Self::SessionChanged => "session_changed",
            Self::NoRefreshToken => "no_refresh_token",
            Self::SameToken => "same_token",
            Self::Looping => "looping",
            Self::RequestRefused => "request_refused",
        }
    }
}

impl fmt::Display for NotRefreshed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed(_) => "the refresh failed",
            Self::CoolingDown(_) => "the session cools down after a failed refresh",
            Self::Ended(_) => "the session has ended",
            Self::NoSession => "the request carries no session",
            Self::SignedOut => "the session is signed out",
            Self::SessionChanged => "a sign-in or sign-out happened since the request was made",
            Self::NoRefreshToken => "the session has no refresh token",
            Self::SameToken => "the authorization server issued the token that the API refuses",
            Self::Looping => "the API refuses every fresh token",
            Self::RequestRefused => "the API refuses this request with tokens that it accepts with others",
        })
    }
}

impl Error for NotRefreshed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed(error) | Self::CoolingDown(error) | Self::Ended(error) => Some(&**error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wrapper(RefreshError);

    impl fmt::Display for Wrapper {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("wrapped")
        }
    }

    impl Error for Wrapper {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn an_error_is_classified_by_the_refresh_error_that_it_is_or_wraps() {
        let kind = |error: BoxError| RefreshError::classify(error).kind();
        assert_eq!(kind(RefreshError::rejected("no").into()), RefreshErrorKind::Rejected);
        assert_eq!(kind(Wrapper(RefreshError::misconfigured("no")).into()), RefreshErrorKind::Misconfigured);
        assert_eq!(kind("something else".into()), RefreshErrorKind::InDoubt);
    }

    #[test]
    fn the_message_is_its_own_and_the_cause_is_the_source() {
        let error = RefreshError::unavailable("connection refused").with_retry_after(Duration::from_secs(3));
        assert_eq!(error.to_string(), "the refresh call is unavailable");
        assert_eq!(error.source().unwrap().to_string(), "connection refused");
        assert_eq!(error.kind(), RefreshErrorKind::Unavailable);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_classified_error_keeps_its_delay_its_refresh_token_and_whether_it_may_be_retried() {
        let token = RefreshToken::new("rt-2").unwrap();
        let error = || {
            RefreshError::misconfigured("no access token")
                .with_retry_after(Duration::from_secs(3))
                .with_refresh_token(token.clone())
                .without_retry()
        };
        for classified in [RefreshError::classify(error().into()), RefreshError::classify(Wrapper(error()).into())] {
            assert_eq!(classified.kind(), RefreshErrorKind::Misconfigured);
            assert_eq!(classified.retry_after(), Some(Duration::from_secs(3)));
            assert_eq!(classified.refresh_token(), Some(&token));
            assert!(!classified.may_retry());
            assert!(!format!("{classified} {classified:?}").contains("rt-2"));
        }
        let plain = RefreshError::in_doubt("lost");
        assert_eq!((plain.retry_after(), plain.refresh_token()), (None, None));
        assert!(plain.may_retry());
    }

    #[test]
    fn the_debug_output_of_an_error_shows_its_delay_and_whether_it_may_be_retried() {
        let error = RefreshError::unavailable("later").with_retry_after(Duration::from_secs(3)).without_retry();
        let shown = format!("{error:?}");
        assert!(shown.contains("retry_after: Some(3s), no_retry: true"), "{shown}");
    }

    #[test]
    fn a_request_to_test_a_service_with_is_as_it_was_made() {
        let request = RefreshRequest::new(Tokens::default());
        assert_eq!((request.trigger(), request.is_in_doubt()), (Trigger::Challenge, false));
        assert_eq!(request.generation().to_string(), "1");
        let request = request.with_trigger(Trigger::Early).with_in_doubt(true);
        assert_eq!((request.trigger(), request.is_in_doubt()), (Trigger::Early, true));
    }
}
