//! [`ApiClient`]: the handle that requests are made and sent with.

use std::fmt;
use std::future::Future;

use http::Method;
use reqwest::IntoUrl;
use tower::Layer;
use tower_auth_refresh::layer::PerRequest;
use tower_auth_refresh::{AuthRefresh, AuthRefreshLayer, Origins, ReplayLimit, Session};

use crate::body::one_piece;
use crate::options::{Options, execute};
use crate::request_builder::RequestBuilder;
use crate::service::ReqwestService;

/// A client of an API: reqwest, with access tokens that are refreshed.
#[derive(Clone)]
pub struct ApiClient {
    service: AuthRefresh<ReqwestService, PerRequest>,
    options: Options,
}

impl ApiClient {
    /// Creates a client that sends the token of this session to these origins.
    pub fn new(session: Session, origins: impl Into<Origins>, service: ReqwestService) -> Self {
        Self::from_layer(AuthRefreshLayer::per_request(origins), service).with_session(session)
    }

    /// Creates a client with a layer of other settings; the session is that of [`with_session`](Self::with_session).
    #[must_use]
    pub fn from_layer(layer: AuthRefreshLayer<PerRequest>, service: ReqwestService) -> Self {
        Self { service: layer.one_piece(one_piece).layer(service), options: Options::new() }
    }

    /// Sets the session whose token requests carry.
    #[must_use]
    pub fn with_session(mut self, session: Session) -> Self {
        self.options.session = Some(session);
        self
    }

    /// Sends requests untouched: without a token, and without a refresh after a 401.
    #[must_use]
    pub fn with_skip_auth(mut self) -> Self {
        self.options.skip_auth = true;
        self
    }

    /// Sets how many bytes of a request's body are kept for a replay.
    #[must_use]
    pub fn with_replay_limit(mut self, bytes: usize) -> Self {
        self.options.replay_limit = Some(ReplayLimit(bytes));
        self
    }

    /// Sets how many redirects of a request are followed. Default: 10.
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

    /// Sends no `Referer` after a redirect.
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
    pub fn request(&self, method: Method, url: impl IntoUrl) -> RequestBuilder {
        RequestBuilder::new(self.clone(), self.service.get_ref().client().request(method, url))
    }

    /// Sends a request.
    pub fn execute(
        &self,
        request: reqwest::Request,
    ) -> impl Future<Output = reqwest::Result<reqwest::Response>> + Send + use<> {
        self.clone().into_execute(request)
    }

    pub(crate) fn into_execute(
        self,
        request: reqwest::Request,
    ) -> impl Future<Output = reqwest::Result<reqwest::Response>> + Send {
        execute(self.service, self.options, request)
    }
}

impl fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiClient").finish_non_exhaustive()
    }
}
