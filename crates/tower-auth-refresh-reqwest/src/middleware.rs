//! [`AuthRefreshMiddleware`], for reqwest-middleware.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use http::{Extensions, Request};
use reqwest_middleware::{Error, Middleware, Next};
use tower::{Layer, Service};
use tower_auth_refresh::layer::PerRequest;
use tower_auth_refresh::{AuthRefresh, AuthRefreshLayer, Origins, ReplayLimit, Session, SkipAuth};

use crate::body::{IntoReqwestBody, ResponseBody, one_piece};
use crate::options::{Hops, Options, execute};
use crate::redirect::HopFuture;
use crate::shell;

/// A middleware for reqwest-middleware that refreshes expired access tokens and replays the requests.
///
/// **Build the client by [`ReqwestService`](crate::ReqwestService)**: its redirects are switched off, and the middleware
/// follows them itself and checks [each hop](crate#redirects). A client that follows redirects inside carries a token in
/// a header of its own to other hosts, and makes their 401 look like the API's.
///
/// ```
/// # fn example(session: tower_auth_refresh_reqwest::Session) -> Result<(), Box<dyn std::error::Error>> {
/// use tower_auth_refresh_reqwest::{AuthRefreshMiddleware, Origin, ReqwestService, reqwest};
///
/// let http = ReqwestService::new(reqwest::Client::builder())?;
/// let client = reqwest_middleware::ClientBuilder::new(http.client().clone())
///     .with(AuthRefreshMiddleware::new(session, Origin::parse("https://api.example.com")?))
///     .build();
/// # let _ = client;
/// # Ok(()) }
/// ```
///
/// A request's own [`Session`], [`SkipAuth`] or [`ReplayLimit`] is set by `with_extension` of its builder.
///
/// # The order of middlewares
///
/// The first `with` is the outermost. With `RetryTransientMiddleware` of reqwest-retry:
///
/// | this middleware | meaning |
/// | --- | --- |
/// | inside of the retries: `.with(retry).with(this)` | Each try is a request of its own, with the token in force, and with its own refresh and replay. The pause before a try is one in which the token may expire. **The usual order** |
/// | outside of them: `.with(this).with(retry)` | Each attempt is retried with the token that it began with; the request is replayed once, after all retries. A 401 in the middle of the retries ends them |
///
/// In both orders, a body of one piece is repeated. reqwest-retry refuses streams.
///
/// Middlewares inside see the extensions of the request anew with each attempt. The changes of the last attempt reach
/// those outside.
///
/// # Cancel safety
///
/// Dropping the future of a request cancels that request alone. A refresh that it waits for goes on.
#[derive(Clone)]
pub struct AuthRefreshMiddleware {
    layer: AuthRefreshLayer<Option<Session>>,
    options: Options,
}

impl AuthRefreshMiddleware {
    /// Creates a middleware that sends the token of this session to these origins.
    ///
    /// A request with a [`Session`] of its own gets that one's token.
    pub fn new(session: Session, origins: impl Into<Origins>) -> Self {
        Self::with_layer(AuthRefreshLayer::per_request(origins).session(Some(session)))
    }

    /// Creates a middleware with a layer of other settings, which takes the session of each request.
    ///
    /// The middleware sets [`one_piece`](AuthRefreshLayer::one_piece) itself.
    #[must_use]
    pub fn from_layer(layer: AuthRefreshLayer<PerRequest>) -> Self {
        Self::with_layer(layer.session(None))
    }

    fn with_layer(layer: AuthRefreshLayer<Option<Session>>) -> Self {
        Self { layer: layer.one_piece(one_piece), options: Options::new() }
    }
}

#[async_trait]
impl Middleware for AuthRefreshMiddleware {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<reqwest::Response, Error> {
        let mut options = self.options;
        let mut layer = self.layer.clone();
        if let Some(session) = extensions.get::<Session>() {
            layer = layer.session(Some(session.clone()));
        }
        options.replay_limit = extensions.get::<ReplayLimit>().copied();
        options.skip_auth = extensions.get::<SkipAuth>().is_some();
        let hops = NextHops { layer, next, extensions: extensions.clone() };
        let mut response = execute(hops, options, Ok(request)).await?;
        if let Some(Changed(changed)) = response.extensions_mut().remove() {
            *extensions = changed;
        }
        Ok(response)
    }
}

/// The layer, the rest of the middlewares and the client.
struct NextHops<'n> {
    layer: AuthRefreshLayer<Option<Session>>,
    next: Next<'n>,
    extensions: Extensions,
}

impl<'n> Hops for NextHops<'n> {
    type Service<'a> = AuthRefresh<NextService<'n, 'a>, Option<Session>>;
    type Error = Error;

    fn service<'a>(&self, shell: &'a reqwest::Request, last: bool) -> Self::Service<'a> {
        let (next, extensions) = (self.next.clone(), self.extensions.clone());
        self.layer.layer(NextService { next, extensions, shell, last })
    }
}

/// The rest of the middlewares, and the client, for one hop of a request.
#[derive(Clone)]
struct NextService<'n, 'a> {
    next: Next<'n>,
    extensions: Extensions,
    shell: &'a reqwest::Request,
    /// A redirect of this hop is one too many.
    last: bool,
}

/// The extensions of a request as the middlewares inside have left them, in those of the response.
#[derive(Clone)]
struct Changed(Extensions);

impl<'n, B: IntoReqwestBody> Service<Request<B>> for NextService<'n, '_> {
    type Response = http::Response<ResponseBody>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send + 'n>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let request = shell::fill(self.shell, request);
        let (next, mut extensions) = (self.next.clone(), self.extensions.clone());
        let call = async move {
            let mut response = next.run(request, &mut extensions).await?;
            response.extensions_mut().insert(Changed(mem::take(&mut extensions)));
            Ok(ResponseBody::split(response))
        };
        Box::pin(HopFuture::new(call, self.last))
    }
}

impl fmt::Debug for AuthRefreshMiddleware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthRefreshMiddleware").finish_non_exhaustive()
    }
}
