//! [`Options`], which a layer's services share, and [`SessionSource`]: the sessions of a layer's requests.

use std::fmt;

use http::HeaderName;

use crate::challenge::ChallengePolicy;
use crate::replay::ReplayLimit;
use crate::scope::Origins;
use crate::session::Session;

/// Where a layer's sessions come from: a [`Session`] or [`PerRequest`].
pub trait SessionSource: Clone + fmt::Debug + Send + Sync + sealed::Sealed + 'static {
    /// The session of all requests, if there is one.
    #[doc(hidden)]
    fn shared(&self) -> Option<&Session>;
}

impl SessionSource for Session {
    fn shared(&self) -> Option<&Session> {
        Some(self)
    }
}

impl SessionSource for PerRequest {
    fn shared(&self) -> Option<&Session> {
        None
    }
}

/// Takes the [`Session`] out of each request's extensions. A request without one passes untouched, without a token.
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

/// Put into a request's extensions, it makes the request pass untouched: no token is attached, and a 401 to it
/// triggers nothing.
///
/// `tower-http`'s `FollowRedirect` drops extensions when a hop crosses origins, unless its policy lets this one pass
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

/// What is set on a layer.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) origins: Origins,
    pub(crate) challenge: ChallengePolicy,
    pub(crate) header: HeaderName,
    /// Empty: the token stands alone.
    pub(crate) scheme: Box<str>,
    pub(crate) replay_limit: ReplayLimit,
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Session {}
    impl Sealed for super::PerRequest {}
}
