//! The client stack: [`AuthRefreshLayer`] around [`StallTimeout`] around an HTTP client.

use std::error::Error;
use std::fmt;
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryFutureExt;
use futures_util::future::Either;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tower::{BoxError, Layer, Service, ServiceExt};
use tower_auth_refresh::layer::PerRequest;
use tower_auth_refresh::replay::ReplayBody;
use tower_auth_refresh::{AuthRefreshLayer, Session};

use super::body::{DownloadBody, UploadBody};
use super::early_answer::{Connector, answer_first};
use super::stall_timeout::StallTimeout;
use crate::config::{InvalidSetting, Settings};
use crate::server::BUFFER;
use crate::tls;

/// A client that sends requests to the upstream, each with its user's token.
pub(crate) struct UpstreamClient {
    stack: Stack,
    timeout: Duration,
}

/// Without boxes, of which each would cost an allocation for each request.
enum Stack {
    /// The layer is applied for each request: its session in the extensions would be three allocations.
    Refreshing(AuthRefreshLayer<PerRequest>, RequireToken<StallTimeout<ReplayBody<UploadBody>>>),
    WithoutRefresh(StallTimeout<UploadBody>),
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Shorter than the keep-alive of most servers: a POST fails if the server closes its reused connection at that moment.
const POOL_IDLE: Duration = Duration::from_secs(20);

impl UpstreamClient {
    /// Builds the client of the gateway.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSetting`] if a file of certificates can't be used.
    pub(crate) fn new(settings: &Settings) -> Result<Self, InvalidSetting> {
        let (client, timeout) = (to_upstream(settings)?, settings.upstream_timeout);
        let checked = RequireToken(StallTimeout::new(client, timeout));
        let layer = AuthRefreshLayer::per_request(settings.upstream.origin.clone());
        Ok(Self { stack: Stack::Refreshing(layer, checked), timeout })
    }

    /// Builds a client that attaches the access token without [`AuthRefreshLayer`], the baseline for the layer's cost.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSetting`] if a file of certificates can't be used.
    pub(crate) fn without_refresh(settings: &Settings) -> Result<Self, InvalidSetting> {
        let (client, timeout) = (to_upstream(settings)?, settings.upstream_timeout);
        Ok(Self { stack: Stack::WithoutRefresh(StallTimeout::new(client, timeout)), timeout })
    }

    /// Sends a request of a session.
    pub(super) fn send(
        &self,
        session: Session,
        request: Request<UploadBody>,
    ) -> impl Future<Output = Result<Response<DownloadBody>, BoxError>> {
        let response = match &self.stack {
            Stack::Refreshing(layer, checked) => {
                let layer = layer.clone().session(Some(session));
                Either::Left(layer.layer(checked.clone()).oneshot(request))
            }
            Stack::WithoutRefresh(stack) => Either::Right(stack.clone().oneshot(with_token(&session, request))),
        };
        response.map_ok(|response| response.map(|body| DownloadBody::new(body, self.timeout)))
    }
}

fn to_upstream<B>(settings: &Settings) -> Result<HttpsClient<B>, InvalidSetting>
where
    B: http_body::Body<Data: Send> + Send,
{
    Ok(https(tls::client::config("--upstream", &settings.upstream_tls)?))
}

fn with_token(session: &Session, mut request: Request<UploadBody>) -> Request<UploadBody> {
    let tokens = session.tokens();
    if let Some(token) = tokens.access_token() {
        let value = format!("Bearer {}", token.expose_secret());
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
    }
    request
}

/// Rejects a request without a token: its session has ended since the request was admitted, and the upstream must not
/// take it for an anonymous one.
///
/// Not `tower`'s `Filter`, through whose predicate each request is moved twice.
#[derive(Clone, Debug)]
struct RequireToken<S>(S);

impl<S, B> Service<Request<B>> for RequireToken<S>
where
    S: Service<Request<B>, Error = BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Either<S::Future, Ready<Result<S::Response, BoxError>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.headers().contains_key(AUTHORIZATION) {
            Either::Left(self.0.call(request))
        } else {
            Either::Right(ready(Err(NoToken.into())))
        }
    }
}

/// The request was not sent, because its session has no token.
#[derive(Debug)]
pub(super) struct NoToken;

impl fmt::Display for NoToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the session has no access token")
    }
}

impl Error for NoToken {}

/// The client that [`https`] builds.
pub(crate) type HttpsClient<B> = Client<HttpsConnector<Connector>, B>;

/// Builds a connector for TCP and TLS.
pub(crate) fn connector(tls: ClientConfig) -> HttpsConnector<Connector> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(answer_first(tcp))
}

/// Builds a pooled client for HTTP/1 and, if negotiated by TLS, HTTP/2.
pub(crate) fn https<B>(tls: ClientConfig) -> HttpsClient<B>
where
    B: http_body::Body<Data: Send> + Send,
{
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .http1_max_buf_size(BUFFER)
        .build(connector(tls))
}
