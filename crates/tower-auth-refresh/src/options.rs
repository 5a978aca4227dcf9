//! [`Options`]: the settings of a layer; and the markers that requests carry: [`PerRequest`], [`SkipAuth`].

use std::fmt;

use http::HeaderName;

use crate::challenge::ChallengePolicy;
use crate::replay::{OnePiece, ReplayLimit};
use crate::scope::Origins;
use crate::session::Session;

/// The source of a layer's sessions: a [`Session`], [`PerRequest`], or either of them ([`Option<Session>`](Option)).
pub trait SessionSource: Clone + fmt::Debug + Send + Sync + sealed::Sealed + 'static {
    /// Returns the session that all requests share, if there is one.
    #[doc(hidden)]
    fn shared(&self) -> Option<&Session>;
}

impl SessionSource for Session {
    fn shared(&self) -> Option<&Session> {
        Some(self)
    }
}

/// One session for all requests; with `None`, as [`PerRequest`].
impl SessionSource for Option<Session> {
    fn shared(&self) -> Option<&Session> {
        self.as_ref()
    }
}

impl SessionSource for PerRequest {
    fn shared(&self) -> Option<&Session> {
        None
    }
}

/// A source of sessions: takes the [`Session`] out of a request's extensions.
///
/// A request without a session is sent without a token. If the API refuses it, the
/// [`RefreshReport`](crate::RefreshReport) says so ([`NotRefreshed::NoSession`](crate::NotRefreshed::NoSession)).
///
/// ```
/// # fn example(session: tower_auth_refresh::Session) -> http::Result<http::Request<()>> {
/// http::Request::get("https://api.example.com/orders").extension(session).body(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct PerRequest(());

impl PerRequest {
    pub(crate) fn new() -> Self {
        Self(())
    }
}

/// A marker in a request's extensions that makes the request pass untouched.
///
/// No token is attached to the request, and a 401 to it triggers nothing and has no report.
///
/// `tower-http`'s `FollowRedirect` drops extensions when a hop crosses origins, unless its policy keeps the marker
/// (`FilterCredentials::allow_extension::<SkipAuth>()`).
///
/// ```
/// use http::Request;
/// use tower_auth_refresh::SkipAuth;
///
/// let login = Request::post("https://api.example.com/auth/login").extension(SkipAuth).body(());
/// # login.unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkipAuth;

/// The settings of a layer, which all its services share.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) origins: Origins,
    pub(crate) challenge: ChallengePolicy,
    pub(crate) header: HeaderName,
    /// Empty if the token is sent without a scheme.
    pub(crate) scheme: Box<str>,
    pub(crate) replay_limit: ReplayLimit,
    pub(crate) one_piece: OnePiece,
    /// Set if a [`RequireToken`](crate::layer::RequireToken) inside refuses requests without a token.
    pub(crate) require_token: bool,
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Session {}
    impl Sealed for Option<super::Session> {}
    impl Sealed for super::PerRequest {}
}
