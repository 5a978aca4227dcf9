//! [`ApiClient`]: the handle that requests are made and sent with.

use std::fmt;
use std::future::Future;

use http::Method;
use reqwest::IntoUrl;
use tower::Layer;
use tower_auth_refresh::layer::PerRequest;
use tower_auth_refresh::{AuthRefresh, AuthRefreshLayer, Origins, ReplayLimit, Session};

use crate::body::one_piece;
use crate::options::{Hops, Options, execute};
use crate::request_builder::RequestBuilder;
use crate::service::{HopService, ReqwestService};

/// A client of an API: reqwest, with access tokens that are refreshed.
///
/// It is used like a [`reqwest::Client`]. Each request carries the token of the session; if the API says that the token
/// has expired, the token is refreshed once, however many requests fail together, and they are sent again.
///
/// Clones are cheap and share the connections. The settings are those of one clone: `api.clone().with_skip_auth()` is
/// another client, for the requests that need it.
///
/// ```
/// # use tower_auth_refresh_reqwest::{ApiClient, SendWith, Session, reqwest};
/// # async fn example(api: ApiClient, ada: Session, stranger: reqwest::RequestBuilder) -> reqwest::Result<()> {
/// let response = api.post("https://api.example.com/notes").json(&["a note"]).send().await?;
///
/// // For many users: each request has a session of its own.
/// let response = api.clone().with_session(ada).get("https://api.example.com/me").send().await?;
///
/// // An endpoint that needs no token.
/// let response = api.clone().with_skip_auth().get("https://api.example.com/status").send().await?;
///
/// // Requests of another library, as a `RequestBuilder` or a `Request` of reqwest.
/// let response = stranger.send_with(&api).await?;
/// # Ok(()) }
/// ```
///
/// [Redirects](crate#redirects), [time-outs](crate#time-outs), [errors](crate#errors) and [cookies](crate#cookies) are
/// described in the crate's documentation.
///
/// # Cancel safety
///
/// Dropping the future of a request cancels that request alone. A refresh that it waits for goes on.
#[derive(Clone)]
pub struct ApiClient {
    layer: AuthRefreshLayer<Option<Session>>,
    http: ReqwestService,
    options: Options,
}

impl ApiClient {
    /// Creates a client that sends the token of this session to these origins.
    ///
    /// Requests to other origins pass untouched.
    pub fn new(session: Session, origins: impl Into<Origins>, http: ReqwestService) -> Self {
        Self::from_layer(AuthRefreshLayer::per_request(origins), http).with_session(session)
    }

    /// Creates a client with a layer of other settings.
    ///
    /// The session is that of [`with_session`](Self::with_session). Without one, requests are sent without a token. The
    /// client sets [`one_piece`](AuthRefreshLayer::one_piece) itself.
    ///
    /// ```
    /// # fn example(
    /// #     session: tower_auth_refresh_reqwest::Session,
    /// #     http: tower_auth_refresh_reqwest::ReqwestService,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_auth_refresh_reqwest::{ApiClient, AuthRefreshLayer, Origin};
    ///
    /// let layer = AuthRefreshLayer::per_request(Origin::parse("https://api.example.com")?)
    ///     .header("x-api-token".parse()?)
    ///     .without_scheme();
    /// let api = ApiClient::from_layer(layer, http).with_session(session);
    /// # let _ = api;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn from_layer(layer: AuthRefreshLayer<PerRequest>, http: ReqwestService) -> Self {
        Self { layer: layer.one_piece(one_piece).session(None), http, options: Options::new() }
    }

    /// Sets the session whose token requests carry.
    #[must_use]
    pub fn with_session(mut self, session: Session) -> Self {
        self.layer = self.layer.session(Some(session));
        self
    }

    /// Sends requests untouched: without a token, and without a refresh after a 401.
    #[must_use]
    pub fn with_skip_auth(mut self) -> Self {
        self.options.skip_auth = true;
        self
    }

    /// Sets how many bytes of a request's body are kept for a replay.
    ///
    /// Default: the limit of the layer, 64 KiB unless it is set.
    #[must_use]
    pub fn with_replay_limit(mut self, bytes: usize) -> Self {
        self.options.replay_limit = Some(ReplayLimit(bytes));
        self
    }

    /// Sets how many redirects of a request are followed. Default: 10.
    ///
    /// One more is an error whose [`is_redirect`](reqwest::Error::is_redirect) is `true`.
    #[must_use]
    pub fn with_max_redirects(mut self, max: usize) -> Self {
        self.options.max_redirects = Some(max);
        self
    }

    /// Returns redirects to the caller instead of following them.
    #[must_use]
    pub fn without_redirects(mut self) -> Self {
        self.options.max_redirects = None;
        self
    }

    /// Sends no `Referer` with the hops of a redirect. Default: it is sent, except from `https` to `http`.
    #[must_use]
    pub fn without_referer(mut self) -> Self {
        self.options.referer = false;
        self
    }

    /// Starts a `GET` request.
    pub fn get(&self, url: impl IntoUrl) -> RequestBuilder {
        self.request(Method::GET, url)
    }

    /// Starts a `POST` request.
    pub fn post(&self, url: impl IntoUrl) -> RequestBuilder {
        self.request(Method::POST, url)
    }

    /// Starts a `PUT` request.
    pub fn put(&self, url: impl IntoUrl) -> RequestBuilder {
        self.request(Method::PUT, url)
    }

    /// Starts a `PATCH` request.
    pub fn patch(&self, url: impl IntoUrl) -> RequestBuilder {
        self.request(Method::PATCH, url)
    }

    /// Starts a `DELETE` request.
    pub fn delete(&self, url: impl IntoUrl) -> RequestBuilder {
        self.request(Method::DELETE, url)
    }

    /// Starts a `HEAD` request.
    pub fn head(&self, url: impl IntoUrl) -> RequestBuilder {
        self.request(Method::HEAD, url)
    }

    /// Starts a request.
    ///
    /// An URL that can't be parsed is an error of [`send`](RequestBuilder::send).
    pub fn request(&self, method: Method, url: impl IntoUrl) -> RequestBuilder {
        RequestBuilder::new(self.clone(), self.http.client().request(method, url))
    }

    /// Sends a request.
    ///
    /// A request of any client of reqwest's will do: its settings are in the client, not in the request.
    ///
    /// # Errors
    ///
    /// Those of [`reqwest::Client::execute`].
    pub fn execute(
        &self,
        request: reqwest::Request,
    ) -> impl Future<Output = reqwest::Result<reqwest::Response>> + Send + use<> {
        self.clone().send(Ok(request))
    }

    pub(crate) fn send(
        self,
        request: reqwest::Result<reqwest::Request>,
    ) -> impl Future<Output = reqwest::Result<reqwest::Response>> + Send {
        let options = self.options;
        execute(self, options, request)
    }
}

impl Hops for ApiClient {
    type Service<'a> = AuthRefresh<HopService<'a>, Option<Session>>;
    type Error = reqwest::Error;

    fn service<'a>(&self, shell: &'a reqwest::Request, last: bool) -> Self::Service<'a> {
        self.layer.layer(HopService::new(&self.http, shell, last))
    }
}

impl fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiClient").field("http", &self.http).finish_non_exhaustive()
    }
}
