//! [`AuthRefreshLayer`]: the layer that a client stack is built with, its settings, and the types behind it.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderName;
use http::header::AUTHORIZATION;
use tower_layer::Layer;

use crate::challenge::ChallengePolicy;
pub use crate::future::ResponseFuture;
use crate::options::Options;
pub use crate::options::{PerRequest, SessionSource};
use crate::replay::{OnePiece, ReplayLimit};
pub use crate::require_token::{RequireToken, RequireTokenFuture};
use crate::scope::Origins;
use crate::service::AuthRefresh;
use crate::session::Session;

/// A layer that refreshes expired access tokens and replays the requests.
///
/// It attaches the access token of a session to each request, refreshes the token when an API says that the token has
/// expired, and replays the requests that failed.
///
/// `S` is the source of sessions: one [`Session`] for all requests ([`new`](AuthRefreshLayer::new)), or a session in
/// each request's extensions ([`per_request`](AuthRefreshLayer::per_request)).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
/// use tower::ServiceBuilder;
/// use tower_auth_refresh::{AuthRefreshLayer, Origin, RefreshError, RefreshRequest, Session, Tokens};
///
/// # let refresh_service = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
/// # let http_client = tower::service_fn(|_: http::Request<tower_auth_refresh::ReplayBody<String>>| async {
/// #     Ok::<_, tower::BoxError>(http::Response::new(String::new()))
/// # });
/// let session = Session::builder(refresh_service).build().await?;
/// let client = ServiceBuilder::new()
///     .layer(AuthRefreshLayer::new(session, Origin::parse("https://api.example.com")?))
///     .service(http_client);
/// # Ok(()) }
/// ```
///
/// An API that reads the token from another header, and answers 403 when the token has expired:
///
/// ```
/// use http::{HeaderName, StatusCode};
/// use tower_auth_refresh::{AuthRefreshLayer, ChallengePolicy, Origin};
///
/// let layer = AuthRefreshLayer::per_request(Origin::parse("https://api.example.com")?)
///     .header(HeaderName::from_static("x-api-token"))
///     .without_scheme()
///     .challenge(ChallengePolicy::when(|response| response.status() == StatusCode::FORBIDDEN));
/// # Ok::<(), tower_auth_refresh::InvalidOrigin>(())
/// ```
///
#[doc = include_str!("order.md")]
#[derive(Clone, Debug)]
pub struct AuthRefreshLayer<S = Session> {
    source: S,
    options: Arc<Options>,
}

impl AuthRefreshLayer<Session> {
    /// Creates a layer with one session for all requests to these origins.
    ///
    /// Requests to other origins pass untouched.
    pub fn new(session: Session, origins: impl Into<Origins>) -> Self {
        Self::from_source(session, origins.into())
    }
}

impl AuthRefreshLayer<PerRequest> {
    /// Creates a layer that takes the session of a request from its extensions.
    ///
    /// Requests to other origins than these pass untouched. A request without a [`Session`] is sent without a token.
    pub fn per_request(origins: impl Into<Origins>) -> Self {
        Self::from_source(PerRequest::new(), origins.into())
    }
}

impl<S> AuthRefreshLayer<S> {
    fn from_source(source: S, origins: Origins) -> Self {
        let options = Options {
            origins,
            challenge: ChallengePolicy::default(),
            header: AUTHORIZATION,
            scheme: "Bearer".into(),
            replay_limit: ReplayLimit::DEFAULT,
            one_piece: OnePiece::default(),
            require_token: false,
        };
        Self { source, options: Arc::new(options) }
    }

    /// Sets one session for all requests; with `None`, the session of each request is in its extensions.
    ///
    /// For a client that is made for each user, or for each request, from the settings of one layer. A session in a
    /// request's extensions takes three allocations.
    ///
    /// ```
    /// # fn example(session: tower_auth_refresh::Session) -> Result<(), tower_auth_refresh::InvalidOrigin> {
    /// use tower_auth_refresh::{AuthRefreshLayer, Origin};
    ///
    /// let settings = AuthRefreshLayer::per_request(Origin::parse("https://api.example.com")?).replay_limit(1024);
    /// let layer = settings.clone().session(Some(session));
    /// # let _ = layer;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn session(self, session: Option<Session>) -> AuthRefreshLayer<Option<Session>> {
        AuthRefreshLayer { source: session, options: self.options }
    }

    /// Sets which responses say that the token has expired.
    ///
    /// Default: [`ChallengePolicy::bearer`].
    #[must_use]
    pub fn challenge(mut self, challenge: ChallengePolicy) -> Self {
        Arc::make_mut(&mut self.options).challenge = challenge;
        self
    }

    /// Sets the header that carries the token.
    ///
    /// A request that has the header already passes untouched. Default: `Authorization`.
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        Arc::make_mut(&mut self.options).header = name;
        self
    }

    /// Sets the authentication scheme before the token (RFC 9110 §11.1).
    ///
    /// Default: `Bearer`.
    ///
    /// # Panics
    ///
    /// If the scheme isn't a `token` of RFC 9110 §5.6.2.
    #[must_use]
    pub fn scheme(mut self, scheme: &str) -> Self {
        let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        assert!(
            !scheme.is_empty() && scheme.bytes().all(is_token_byte),
            "the scheme is not an authentication scheme (RFC 9110 §11.1)"
        );
        Arc::make_mut(&mut self.options).scheme = scheme.into();
        self
    }

    /// Sends the token without a scheme before it.
    #[must_use]
    pub fn without_scheme(mut self) -> Self {
        Arc::make_mut(&mut self.options).scheme = "".into();
        self
    }

    /// Sets how many bytes of a request's body are kept for a replay.
    ///
    /// A [`ReplayLimit`] in a request's extensions takes precedence. Default: 64 KiB.
    #[must_use]
    pub fn replay_limit(mut self, bytes: usize) -> Self {
        Arc::make_mut(&mut self.options).replay_limit = ReplayLimit(bytes);
        self
    }

    /// Sets a function that returns the whole body of a request, if the body is in memory as one piece.
    ///
    /// Such a body needs no record and no lock, and [`ReplayBody::try_into_bytes`] gives it back. The function must not
    /// change the body. It is called for bodies of the type `B`; one type can be set. Default: none; `Full<Bytes>` and
    /// `String` are always recognized.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use tower_auth_refresh::{AuthRefreshLayer, Origin};
    /// # struct ClientBody(Option<&'static [u8]>);
    /// # impl ClientBody { fn as_bytes(&self) -> Option<&[u8]> { self.0 } }
    ///
    /// // As reqwest's body has it.
    /// let layer = AuthRefreshLayer::per_request(Origin::parse("https://api.example.com")?)
    ///     .one_piece(|body: &ClientBody| body.as_bytes().map(Bytes::copy_from_slice));
    /// # let _ = layer;
    /// # Ok::<(), tower_auth_refresh::InvalidOrigin>(())
    /// ```
    ///
    /// [`ReplayBody::try_into_bytes`]: crate::ReplayBody::try_into_bytes
    #[must_use]
    pub fn one_piece<B: 'static>(mut self, take: fn(&B) -> Option<Bytes>) -> Self {
        Arc::make_mut(&mut self.options).one_piece = OnePiece::new(take);
        self
    }

    /// Refuses requests that would be sent without a token, instead of sending them.
    ///
    /// For gateways: an API may serve anonymous requests, which a user whose session has ended shouldn't get unnoticed.
    /// The error is a [`BoxError`](tower::BoxError) around the [`RefreshReport`](crate::RefreshReport) that a 401 would
    /// have; for a request without a session, [`NotRefreshed::NoSession`](crate::NotRefreshed::NoSession). The inner
    /// service's own errors are boxed too. Default: such requests are sent.
    ///
    /// Requests that pass untouched still do: to foreign origins, with [`SkipAuth`](crate::SkipAuth), or with a header
    /// of the caller's own.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower::BoxError> {
    /// use tower::{ServiceBuilder, ServiceExt};
    /// use tower_auth_refresh::{AuthRefreshLayer, NotRefreshed, Origin, RefreshReport};
    /// # use tower_auth_refresh::{RefreshError, RefreshRequest, Session, Tokens};
    /// # let refresh = tower::service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
    /// # let session = Session::builder(refresh).build().await?;
    /// # let http_client = tower::service_fn(|_: http::Request<tower_auth_refresh::ReplayBody<String>>| async {
    /// #     Ok::<_, tower::BoxError>(http::Response::new(String::new()))
    /// # });
    ///
    /// let layer = AuthRefreshLayer::new(session, Origin::parse("https://api.example.com")?).require_token();
    /// let client = ServiceBuilder::new().layer(layer).service(http_client);
    ///
    /// let request = http::Request::get("https://api.example.com/").body(String::new())?;
    /// let error = client.oneshot(request).await.unwrap_err();
    /// let report = error.downcast_ref::<RefreshReport>();
    /// assert!(matches!(report, Some(RefreshReport::NotRefreshed(NotRefreshed::SignedOut))));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn require_token(mut self) -> RequireTokenLayer<S> {
        Arc::make_mut(&mut self.options).require_token = true;
        RequireTokenLayer { layer: self }
    }
}

/// An [`AuthRefreshLayer`] that refuses requests that would be sent without a token.
///
/// It is made by [`AuthRefreshLayer::require_token`], after all other settings.
#[derive(Clone, Debug)]
pub struct RequireTokenLayer<S = Session> {
    layer: AuthRefreshLayer<S>,
}

// Here and not in `service`, so that a service doesn't depend on its layer.
impl AuthRefresh<(), Session> {
    /// Returns a new [`Layer`] that wraps services with an [`AuthRefresh`] middleware.
    ///
    /// The same as [`AuthRefreshLayer::new`]:
    ///
    /// ```
    /// # fn example(session: tower_auth_refresh::Session) -> Result<(), tower_auth_refresh::InvalidOrigin> {
    /// use tower_auth_refresh::{AuthRefresh, Origin};
    ///
    /// let layer = AuthRefresh::layer(session, Origin::parse("https://api.example.com")?);
    /// # let _ = layer;
    /// # Ok(()) }
    /// ```
    pub fn layer(session: Session, origins: impl Into<Origins>) -> AuthRefreshLayer<Session> {
        AuthRefreshLayer::new(session, origins)
    }
}

impl AuthRefresh<(), PerRequest> {
    /// Returns a new [`Layer`] whose services take the session of a request from its extensions.
    ///
    /// The same as [`AuthRefreshLayer::per_request`]:
    ///
    /// ```
    /// use tower_auth_refresh::{AuthRefresh, Origin};
    ///
    /// let layer = AuthRefresh::layer_per_request(Origin::parse("https://api.example.com")?);
    /// # let _ = layer;
    /// # Ok::<(), tower_auth_refresh::InvalidOrigin>(())
    /// ```
    pub fn layer_per_request(origins: impl Into<Origins>) -> AuthRefreshLayer<PerRequest> {
        AuthRefreshLayer::per_request(origins)
    }
}

impl<Svc: Clone, S: Clone> Layer<Svc> for AuthRefreshLayer<S> {
    type Service = AuthRefresh<Svc, S>;

    fn layer(&self, inner: Svc) -> Self::Service {
        AuthRefresh::new(inner, self.source.clone(), Arc::clone(&self.options))
    }
}

impl<Svc: Clone, S: Clone> Layer<Svc> for RequireTokenLayer<S> {
    type Service = AuthRefresh<RequireToken<Svc>, S>;

    fn layer(&self, inner: Svc) -> Self::Service {
        self.layer.layer(RequireToken::new(inner))
    }
}
